package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db/dbtest"
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
