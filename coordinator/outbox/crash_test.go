package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/db/devpg"
)

// The tests here run relays as processes of their own: this test binary again, told by the environment what to do.
const (
	envURL   = "PAWL_TEST_RELAY_URL"   // the database
	envPoint = "PAWL_TEST_RELAY_POINT" // where the process kills itself
)

func TestMain(m *testing.M) {
	if url := os.Getenv(envURL); url != "" {
		if err := child(url, os.Getenv(envPoint)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// killer kills the process at a point, the second time that it comes to it; at one with an exclamation mark, the first time.
type killer struct {
	point string
	hits  atomic.Int32
}

func (k *killer) at(point string) {
	if name, first := strings.CutSuffix(k.point, "!"); name == point && (k.hits.Add(1) == 2 || first) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // it is on its way
	}
}

type killerKey struct{}

func (k *killer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	for _, name := range []string{"outbox_open", "outbox_page", "outbox_settle", "parked_settle", "commit"} {
		if strings.Contains(q.SQL, name) {
			k.at("before " + name)
			return context.WithValue(ctx, killerKey{}, name)
		}
	}
	return ctx
}

func (k *killer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if name, ok := ctx.Value(killerKey{}).(string); ok {
		k.at("after " + name)
	}
}

// killable is the subscription of a child. Events of payload "refused" are, once.
func killable(k *killer, pool *pgxpool.Pool, inTx bool) outbox.Subscription {
	s := fast("killed", nil)
	s.Page, s.Batch, s.Parallel = 10, 3, 2
	write := func(ctx context.Context, on outbox.DB, events []outbox.Event) (int, error) {
		for i, e := range events {
			if e.Attempt == 1 && string(e.Payload) == "refused" {
				return i, errors.New("once")
			}
			if _, err := on.Exec(ctx, "INSERT INTO arrived (key, n, event_id) VALUES ($1, $2, $3)", e.Key, e.Seq, e.ID); err != nil {
				return i, err
			}
			k.at("in the sink")
		}
		return len(events), nil
	}
	if inTx {
		s.Sink, s.SinkTx = nil, outbox.TxSinkFunc(func(ctx context.Context, tx pgx.Tx, events []outbox.Event) error {
			_, err := write(ctx, tx, events)
			return err
		})
	} else {
		s.Sink = outbox.SinkFunc(func(ctx context.Context, events []outbox.Event) (int, error) { return write(ctx, pool, events) })
	}
	return s
}

// child is a relay that ends when all has arrived and been settled.
func child(url, point string) error {
	conf, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	point, inTx := strings.CutPrefix(point, "tx ")
	k := &killer{point: point}
	conf.ConnConfig.Tracer = k
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		return err
	}
	defer pool.Close()
	go func() {
		defer stop()
		for done := false; !done && ctx.Err() == nil; {
			_ = pool.QueryRow(ctx, `SELECT count(DISTINCT a.event_id) = (SELECT count(*) FROM pawl.outbox_event) AND NOT EXISTS (SELECT FROM pawl.parked_event)
				FROM arrived a, (SELECT pg_sleep(0.02)) s`).Scan(&done)
		}
	}()
	return outbox.Relay(ctx, pool, killable(k, pool, inTx), 0, nil)
}

// A relay that is killed between any two steps loses nothing and keeps the order of each key; what it does in the database happens once.
func TestRelayKilled(t *testing.T) {
	t.Parallel()
	points := []string{
		"before outbox_open", "after outbox_open", "after outbox_page", "in the sink", "before outbox_settle", "after outbox_settle", "before parked_settle!", "after parked_settle!",
	}
	for mode, points := range map[string][]string{"": points, "tx ": append(slices.Clone(points), "before commit", "after commit")} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			exec(t, pool, "CREATE TABLE arrived (id bigint GENERATED ALWAYS AS IDENTITY, key text, n bigint, event_id uuid)")
			if _, err := outbox.Create(t.Context(), pool, killable(nil, nil, mode != "")); err != nil {
				t.Fatal(err)
			}
			for _, point := range append(points, "") {
				for i := range 30 {
					publish(t, pool, event(fmt.Sprint("k", i%4), ""))
				}
				publish(t, pool, event("parked", "refused"), event("parked", ""), event("k1", "refused"), event("k1", ""))
				cmd := osexec.Command(os.Args[0], "-test.run=^$")
				cmd.Env = append(os.Environ(), envURL+"="+pool.Config().ConnString(), envPoint+"="+mode+point)
				out, err := cmd.CombinedOutput()
				killed := cmd.ProcessState != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
				if killed != (point != "") || !killed && err != nil {
					t.Fatalf("at %q: killed %t, %v: %s", point, killed, err, out)
				}
			}
			if n := scan[int](t, pool, "SELECT count(*) FROM pawl.outbox_event e WHERE NOT EXISTS (SELECT FROM arrived a WHERE a.event_id = e.event_id)"); n != 0 {
				t.Errorf("%d events did not arrive", n)
			}
			if n := scan[int](t, pool, `SELECT count(*) FROM (SELECT f.*, lag(n) OVER (PARTITION BY key ORDER BY id) AS before
				FROM (SELECT DISTINCT ON (event_id) * FROM arrived ORDER BY event_id, id) f) a WHERE n < before`); n != 0 {
				t.Errorf("%d events out of order", n)
			}
			twice := scan[int](t, pool, "SELECT count(*) - count(DISTINCT event_id) FROM arrived")
			if mode != "" && twice != 0 {
				t.Errorf("%d events had their effect twice", twice)
			}
			if mode == "" && twice == 0 {
				t.Error("no event came twice: the processes were not killed where it matters")
			}
		})
	}
}

// Postgres is killed under a storm of writers, some of whose transactions are prepared and committed much later: nothing is lost, and the order of each key is kept.
func TestPostgresKilled(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, devpg.Config{Settings: map[string]string{"max_prepared_transactions": "50"}})
	conf, err := pgxpool.ParseConfig(server.URL(dbtest.PrivateDatabase))
	if err != nil {
		t.Fatal(err)
	}
	conf.MaxConns = 30 // whoever waits for a prepared transaction must leave a connection for its end
	pool, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	exec(t, pool, "CREATE TABLE counter (key text PRIMARY KEY, n int NOT NULL); CREATE TABLE counted (key text, n int); INSERT INTO counter SELECT 'k' || i, 0 FROM generate_series(0, 4) i")
	r := newReceiver()
	s := fast("crash", r)
	s.Page, s.Batch = 20, 5
	start(t, pool, s)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	for w := range 8 {
		group.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(w), 3))
			for i := 0; ctx.Err() == nil; i++ {
				if dice.IntN(4) == 0 {
					_ = writePrepared(ctx, pool, dice, fmt.Sprintf("%d-%d", w, i)) // fails while the server is away
				} else {
					_ = write(ctx, pool, dice)
				}
			}
		})
	}
	for range 3 {
		before := len(r.events())
		r.waitN(t, before+100)
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if server, err = devpg.Start(t.Context(), server.Config()); err != nil {
			t.Fatal(err)
		}
	}
	r.waitN(t, len(r.events())+100)
	stop()
	group.Wait()
	rows, err := pool.Query(t.Context(), "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
	if err != nil {
		t.Fatal(err)
	}
	gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, gid := range gids {
		exec(t, pool, "COMMIT PREPARED '"+gid+"'")
	}
	t.Logf("%d transactions were left prepared", len(gids))
	n := scan[int](t, pool, "SELECT count(*) FROM counted")
	got := r.wait(t, func(got []outbox.Event) bool {
		ids := map[string]bool{}
		for _, e := range got {
			ids[e.ID] = true
		}
		return len(ids) >= n
	})
	if inversions, missing := history(t, pool, got); inversions != 0 || missing != 0 {
		t.Errorf("%d inversions, %d missing of %d", inversions, missing, n)
	}
}

// writePrepared counts a key up in a transaction that is prepared, and committed or rolled back some time later.
func writePrepared(ctx context.Context, pool *pgxpool.Pool, dice *rand.Rand, gid string) error {
	key := fmt.Sprintf("k%d", dice.IntN(5))
	err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback(context.WithoutCancel(ctx)) // of nothing, once it is prepared
		if err := count(ctx, tx, key); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "PREPARE TRANSACTION '"+gid+"'")
		return err
	})
	if err != nil {
		return err
	}
	end := "COMMIT"
	if dice.IntN(4) == 0 {
		end = "ROLLBACK"
	}
	for {
		_, err := pool.Exec(ctx, "SELECT pg_sleep($1)", dice.Float64()*0.02)
		if err == nil {
			_, err = pool.Exec(ctx, end+" PREPARED '"+gid+"'")
		}
		if err == nil || ctx.Err() != nil || db.Code(err) == "42704" { // gone: it ended, and the reply was lost
			return err
		}
	}
}
