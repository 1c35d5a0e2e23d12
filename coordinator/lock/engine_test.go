package lock_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/db/devpg"
)

// ask is a request of a session, in a statement of its own.
func ask(tb testing.TB, pool *pgxpool.Pool, session int64, op, name string, number int64) (string, int64) {
	tb.Helper()
	row, err := db.New(pool).AskLock(bounded(tb), db.AskLockParams{
		Ns: 1, SessionID: session, Op: op, Name: name, Owner: fmt.Sprint("owner ", session), Mode: "exclusive", Permits: 1, Waits: op == "acquire", NumberIn: number,
	})
	if err != nil {
		tb.Fatalf("%s %s: %v", op, name, err)
	}
	return row.Status, row.Number
}

// What goes together ends as it would one by one.
func TestBatch(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := bounded(t)
	us, other := open(t, pool, lock.Config{}).SessionID(), open(t, pool, lock.Config{}).SessionID()
	dead := open(t, pool, lock.Config{}).SessionID()
	asserting, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = asserting.Rollback(ctx) }()
	// Each situation is made twice, for a request alone and for one of many.
	situations := []struct {
		name  string
		op    string
		want  string
		setUp func(name string) int64 // gives the number of the request
	}{
		{"free", "acquire", "granted", func(string) int64 { return 0 }},
		{"freed", "acquire", "granted", func(n string) int64 {
			_, token := ask(t, pool, other, "acquire", n, 0)
			ask(t, pool, other, "release", n, token)
			return 0
		}},
		{"held", "acquire", "waiting", func(n string) int64 { ask(t, pool, other, "acquire", n, 0); return 0 }},
		{"held by the dead", "acquire", "granted", func(n string) int64 { ask(t, pool, dead, "acquire", n, 0); return 0 }},
		{"ours", "release", "released", func(n string) int64 { _, token := ask(t, pool, us, "acquire", n, 0); return token }},
		{"ours and wanted", "release", "released", func(n string) int64 {
			_, token := ask(t, pool, us, "acquire", n, 0)
			ask(t, pool, other, "acquire", n, 0)
			return token
		}},
		{"ours and asserted", "release", "asserted", func(n string) int64 {
			_, token := ask(t, pool, us, "acquire", n, 0)
			if err := db.New(asserting).AssertLock(ctx, db.AssertLockParams{Ns: 1, SessionID: us, Name: n, Token: token}); err != nil {
				t.Fatal(err)
			}
			return token
		}},
		{"another's", "release", "gone", func(n string) int64 { _, token := ask(t, pool, other, "acquire", n, 0); return token }},
		{"waiting", "poll", "waiting", func(n string) int64 {
			ask(t, pool, other, "acquire", n, 0)
			_, waiter := ask(t, pool, us, "acquire", n, 0)
			return waiter
		}},
		{"waiting no more", "cancel", "granted", func(n string) int64 {
			_, token := ask(t, pool, other, "acquire", n, 0)
			_, waiter := ask(t, pool, us, "acquire", n, 0)
			ask(t, pool, other, "release", n, token)
			return waiter
		}},
		{"tired of waiting", "cancel", "cancelled", func(n string) int64 {
			ask(t, pool, other, "acquire", n, 0)
			_, waiter := ask(t, pool, us, "acquire", n, 0)
			return waiter
		}},
	}
	numbers := map[string]int64{}
	p := db.LockBatchParams{Ns: 1, SessionID: us}
	for _, s := range situations {
		alone, together := s.name+", alone", s.name+", together"
		numbers[alone] = s.setUp(alone)
		p.Ops, p.Names, p.Owners, p.Modes = append(p.Ops, s.op), append(p.Names, together), append(p.Owners, fmt.Sprint("owner ", us)), append(p.Modes, "exclusive")
		p.Permits, p.Waits, p.Holds = append(p.Permits, 1), append(p.Waits, s.op == "acquire"), append(p.Holds, false)
		p.HoldMs, p.DelayMs, p.NumbersIn = append(p.HoldMs, 0), append(p.DelayMs, 0), append(p.NumbersIn, s.setUp(together))
	}
	if _, err := pool.Exec(ctx, "SELECT pawl.session_end(1::smallint, $1, 'test')", dead); err != nil {
		t.Fatal(err)
	}
	rows, err := db.New(pool).LockBatch(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range situations {
		if got, _ := ask(t, pool, us, s.op, s.name+", alone", numbers[s.name+", alone"]); got != s.want {
			t.Errorf("%s of a lock that is %s, alone: got %s, want %s", s.op, s.name, got, s.want)
		}
		if rows.Statuses[i] != s.want {
			t.Errorf("%s of a lock that is %s, together with others: got %s, want %s", s.op, s.name, rows.Statuses[i], s.want)
		}
	}
	// The dead are refused.
	p.SessionID, p.Ops = dead, slices.Repeat([]string{"acquire"}, len(p.Ops))
	if _, err := db.New(pool).LockBatch(ctx, p); db.Code(err) != db.CodeSessionEnded {
		t.Errorf("a batch of a session that has ended: got %v", err)
	}
	_, err = db.New(pool).AskLock(ctx, db.AskLockParams{Ns: 1, SessionID: dead, Op: "acquire", Name: "new", Owner: "o", Mode: "exclusive", Permits: 1})
	if db.Code(err) != db.CodeSessionEnded {
		t.Errorf("a request of a session that has ended: got %v", err)
	}
}

// A sweep that looks at an old snapshot would take a lock away from who has got it meanwhile.
func TestSweep_repeatableRead(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, sweep := range []string{"pawl.sweep_locks(1::smallint, 0, 10, '1 min')", "pawl.sweep_sessions(1::smallint, 10)"} {
		err := pgx.BeginTxFunc(bounded(t), pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
			_, err := tx.Exec(bounded(t), "SELECT "+sweep)
			return err
		})
		if db.Code(err) != "PW005" {
			t.Errorf("%s: got %v, want PW005", sweep, err)
		}
	}
}

// Two that come to wait for each other at the same moment do not miss each other.
func TestDeadlock_atOnce(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	locks := [2]*lock.Locks{open(t, pool, lock.Config{}), open(t, pool, lock.Config{})}
	ctx := bounded(t)
	for range 100 {
		leases := [2]*lock.Lease{acquire(t, locks[0], ctx, "x"), acquire(t, locks[1], ctx, "y")}
		var wg sync.WaitGroup
		var told [2]bool
		for i, name := range []string{"y", "x"} {
			wg.Go(func() {
				second, err := locks[i].Acquire(leases[i].Context(), name)
				switch told[i] = errors.Is(err, lock.ErrDeadlock); {
				case err == nil:
					err = second.Release(ctx)
				case told[i]:
					err = nil
				}
				if err := errors.Join(err, leases[i].Release(ctx)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if told[0] && told[1] {
			t.Error("both were told")
		}
	}
}

// What was granted is still so after a crash, whether it was asked for alone or with others, and whatever the database's default is.
func TestGrantsAreDurable(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"on", "off"} {
		t.Run("synchronous_commit "+how, func(t *testing.T) {
			t.Parallel()
			checkDurable(t, how)
		})
	}
}

func checkDurable(t *testing.T, how string) {
	server := dbtest.Private(t, devpg.Config{Settings: map[string]string{"wal_writer_delay": "10s", "synchronous_commit": how}})
	pool, err := pgxpool.New(context.Background(), server.URL(dbtest.PrivateDatabase))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	l, err := lock.Open(bounded(t), pool, lock.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(context.Background()) }) // the server is gone by then
	acquire(t, l, bounded(t), "alone")
	const n = 50
	var wg sync.WaitGroup
	leases := make([]*lock.Lease, n)
	trips := l.RoundTrips()
	for i := range n {
		wg.Go(func() {
			lease, err := l.Acquire(bounded(t), fmt.Sprint("together ", i))
			if err != nil {
				t.Error(err)
			}
			leases[i] = lease
		})
	}
	wg.Wait()
	if l.RoundTrips()-trips >= n {
		t.Error("none went together, so nothing is proved of those")
	}
	acquire(t, l, bounded(t), "alone, after all others")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err = devpg.Start(context.Background(), server.Config()); err != nil {
		t.Fatal(err)
	}
	pool.Reset()
	var kept int
	if err := pool.QueryRow(bounded(t), "SELECT count(*) FROM pawl.lock_state WHERE what = 'granted'").Scan(&kept); err != nil || kept != n+2 {
		t.Errorf("%d of %d grants are there after the crash, %v", kept, n+2, err)
	}
}
