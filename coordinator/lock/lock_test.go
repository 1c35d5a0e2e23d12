package lock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/db/dbtest"
)

const patience = time.Minute

func open(tb testing.TB, pool *pgxpool.Pool, conf lock.Config) *lock.Locks {
	tb.Helper()
	l, err := lock.Open(bounded(tb), pool, conf)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			tb.Errorf("close: %v", err)
		}
	})
	return l
}

func bounded(tb testing.TB) context.Context {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	tb.Cleanup(stop)
	return ctx
}

func acquire(tb testing.TB, l *lock.Locks, ctx context.Context, name string, opts ...lock.Option) *lock.Lease {
	tb.Helper()
	lease, err := l.Acquire(ctx, name, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return lease
}

func release(tb testing.TB, lease *lock.Lease) {
	tb.Helper()
	if err := lease.Release(bounded(tb)); err != nil {
		tb.Fatal(err)
	}
}

// until waits for what a query says.
func until(tb testing.TB, pool *pgxpool.Pool, what, sql string, args ...any) {
	tb.Helper()
	for ctx := bounded(tb); ; {
		var ok bool
		if err := pool.QueryRow(ctx, "SELECT CASE WHEN ("+sql+") THEN true ELSE pg_sleep(0.005) IS NULL END", args...).Scan(&ok); err != nil {
			tb.Fatalf("%s: %v", what, err)
		}
		if ok {
			return
		}
	}
}

func waiters(tb testing.TB, pool *pgxpool.Pool, name string, n int) {
	tb.Helper()
	until(tb, pool, fmt.Sprintf("%d waiters of %s", n, name),
		"SELECT count(*) = $2 FROM pawl.lock_waiter w WHERE w.name = $1 AND w.id > coalesce((SELECT max(served) FROM pawl.lock_state s WHERE s.name = $1), 0)", name, n)
}

func TestAcquire(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, b := open(t, pool, lock.Config{Name: "a"}), open(t, pool, lock.Config{Name: "b"})
	ctx := bounded(t)
	first := acquire(t, a, ctx, "x")
	var held *lock.HeldError
	if _, err := b.TryAcquire(ctx, "x"); !errors.Is(err, lock.ErrHeld) || !errors.As(err, &held) || !strings.Contains(held.Holder, "a on ") {
		t.Errorf("try of a held lock: got %v, want ErrHeld that names a", err)
	}
	if _, err := b.Acquire(ctx, "x", lock.Wait(20*time.Millisecond)); !errors.Is(err, lock.ErrTimeout) {
		t.Errorf("wait: got %v, want ErrTimeout", err)
	}
	waiters(t, pool, "x", 0)
	release(t, first)
	if context.Cause(first.Context()) != lock.ErrReleased {
		t.Errorf("cause: got %v", context.Cause(first.Context()))
	}
	if err := first.Release(ctx); !errors.Is(err, lock.ErrReleased) {
		t.Errorf("second release: got %v", err)
	}
	second := acquire(t, b, ctx, "x")
	if second.Token() <= first.Token() {
		t.Errorf("tokens: got %d after %d", second.Token(), first.Token())
	}
	release(t, second)
}

// A busy try writes nothing.
func TestTryAcquire_writesNothing(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, b := open(t, pool, lock.Config{}), open(t, pool, lock.Config{})
	ctx := bounded(t)
	defer release(t, acquire(t, a, ctx, "x"))
	rows := "SELECT (SELECT count(*) FROM pawl.lock_state) + (SELECT count(*) FROM pawl.lock_waiter) + (SELECT last_value FROM pawl.lock_id)"
	var before, after int
	if err := pool.QueryRow(ctx, rows).Scan(&before); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := b.TryAcquire(ctx, "x"); !errors.Is(err, lock.ErrHeld) {
			t.Fatal(err)
		}
	}
	if err := pool.QueryRow(ctx, rows).Scan(&after); err != nil || after != before {
		t.Errorf("rows and ids: got %d after %d, %v", after, before, err)
	}
}

func TestInvalid(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	l := open(t, pool, lock.Config{})
	ctx := bounded(t)
	for what, try := range map[string]func() error{
		"empty name":     func() error { _, err := l.Acquire(ctx, ""); return err },
		"long name":      func() error { _, err := l.Acquire(ctx, strings.Repeat("x", 10_000)); return err },
		"zero byte":      func() error { _, err := l.Acquire(ctx, "a\x00b"); return err },
		"not UTF-8":      func() error { _, err := l.Acquire(ctx, "\xff"); return err },
		"negative wait":  func() error { _, err := l.Acquire(ctx, "x", lock.Wait(-1)); return err },
		"no permits":     func() error { _, err := l.Acquire(ctx, "x", lock.Semaphore(0)); return err },
		"owner":          func() error { _, err := l.Acquire(ctx, "x", lock.Owner("")); return err },
		"hold":           func() error { _, err := l.Acquire(ctx, "x", lock.MaxHold(0)); return err },
		"delay":          func() error { _, err := l.Acquire(ctx, "x", lock.DelayAfterLoss(-1)); return err },
		"nothing in tx":  func() error { return lock.InTx(ctx, nil) },
		"one bad of all": func() error { _, err := l.AcquireAll(ctx, []string{"a", ""}); return err },
	} {
		if err := try(); !errors.Is(err, lock.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", what, err)
		}
	}
	dead, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("too late"))
	if _, err := l.Acquire(dead, "x"); err == nil || !strings.Contains(err.Error(), "too late") {
		t.Errorf("dead context: got %v", err)
	}
	if _, err := l.TryAcquire(ctx, "a"); err != nil {
		t.Errorf("what was refused together is held: %v", err)
	}
}

func TestReentrant(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	l, other := open(t, pool, lock.Config{}), open(t, pool, lock.Config{})
	ctx := bounded(t)
	err := l.Do(ctx, "x", func(ctx context.Context, outer *lock.Lease) error {
		trips := l.RoundTrips()
		err := l.Do(ctx, "x", func(ctx context.Context, inner *lock.Lease) error {
			if inner.Token() != outer.Token() {
				t.Errorf("nested token: got %d, want %d", inner.Token(), outer.Token())
			}
			return nil
		})
		if l.RoundTrips() != trips {
			t.Error("nesting took a round trip")
		}
		if _, err := other.TryAcquire(ctx, "x"); !errors.Is(err, lock.ErrHeld) {
			t.Errorf("after the inner release: got %v, want ErrHeld", err)
		}
		if outer.Context().Err() != nil {
			t.Error("the inner release ended the outer lease")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// An owner that spans processes.
	a, b := acquire(t, l, ctx, "y", lock.Owner("workflow:42")), acquire(t, other, ctx, "y", lock.Owner("workflow:42"))
	if b.Token() <= a.Token() {
		t.Errorf("tokens: got %d after %d", b.Token(), a.Token())
	}
	release(t, a)
	if _, err := l.TryAcquire(ctx, "y"); !errors.Is(err, lock.ErrHeld) {
		t.Errorf("one of two released: got %v", err)
	}
	release(t, b)
}

// Waiters get the lock in the order in which they asked, over several processes, with hints and without; a cancelled one leaves nothing behind.
func TestFIFO(t *testing.T) {
	t.Parallel()
	for _, poll := range []bool{false, true} {
		t.Run(fmt.Sprint("poll only ", poll), func(t *testing.T) {
			t.Parallel()
			const n = 30
			pool := dbtest.New(t)
			ls := []*lock.Locks{open(t, pool, lock.Config{PollOnly: poll}), open(t, pool, lock.Config{PollOnly: poll}), open(t, pool, lock.Config{PollOnly: poll})}
			ctx := bounded(t)
			first := acquire(t, ls[0], ctx, "x")
			var mu sync.Mutex
			var order []int
			var tokens []int64
			var wg sync.WaitGroup
			quitter, quit := context.WithCancel(ctx)
			for i := range n {
				wctx := ctx
				if i%10 == 5 {
					wctx = quitter
				}
				wg.Go(func() {
					lease, err := ls[i%3].Acquire(wctx, "x")
					if wctx == quitter {
						if err == nil {
							t.Error("a cancelled wait was granted")
						}
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					order, tokens = append(order, i), append(tokens, lease.Token())
					mu.Unlock()
					if err := lease.Release(ctx); err != nil {
						t.Error(err)
					}
				})
				waiters(t, pool, "x", i+1)
			}
			quit()
			waiters(t, pool, "x", n-3)
			release(t, first)
			wg.Wait()
			if len(order) != n-3 || !slices.IsSorted(order) || !slices.IsSorted(tokens) {
				t.Errorf("order: got %v with tokens %v", order, tokens)
			}
		})
	}
}

// AcquireAll never deadlocks, and takes all or none.
func TestAcquireAll(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ls := []*lock.Locks{open(t, pool, lock.Config{}), open(t, pool, lock.Config{})}
	ctx := bounded(t)
	names := []string{"a", "b", "c", "d", "e"}
	var inside [5]atomic.Int32
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for range 10 {
				mine := slices.Clone(names)
				rand.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
				mine = mine[:3]
				all, err := ls[g%2].AcquireAll(ctx, mine)
				if err != nil {
					t.Error(err)
					return
				}
				for _, l := range all {
					if i := l.Name()[0] - 'a'; inside[i].Add(1) != 1 {
						t.Errorf("two hold %s", l.Name())
					}
				}
				for _, l := range all {
					inside[l.Name()[0]-'a'].Add(-1)
				}
				if err := all.Release(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	c := acquire(t, ls[0], ctx, "c")
	if _, err := ls[1].AcquireAll(ctx, names, lock.Wait(10*time.Millisecond)); !errors.Is(err, lock.ErrTimeout) {
		t.Errorf("one of all is held: got %v", err)
	}
	release(t, c)
	for _, name := range names {
		l, err := ls[0].TryAcquire(ctx, name)
		if err != nil {
			t.Errorf("%s after AcquireAll failed: %v", name, err)
			continue
		}
		release(t, l)
	}
}

// A holder that was stopped is fenced: its Assert fails, and before that whoever takes the lock waits for a transaction that has asserted it.
func TestAssert(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, b := open(t, pool, lock.Config{}), open(t, pool, lock.Config{PollInterval: 10 * time.Millisecond})
	ctx := bounded(t)
	lease := acquire(t, a, ctx, "x")
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if err := lease.Assert(ctx, tx); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "SELECT pawl.session_end(1::smallint, $1, 'test')", a.SessionID()); err != nil { // as the sweep does
		t.Fatal(err)
	}
	next := make(chan *lock.Lease, 1)
	go func() {
		l, err := b.Acquire(ctx, "x")
		if err != nil {
			t.Error(err)
		}
		next <- l
	}()
	waiters(t, pool, "x", 1)
	if _, err := b.TryAcquire(ctx, "x"); !errors.Is(err, lock.ErrHeld) {
		t.Errorf("a lock that an open transaction asserts: got %v, want ErrHeld", err)
	}
	select {
	case <-next:
		t.Error("the lock was taken from under a transaction that asserts it")
	default:
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	second := <-next
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return lease.Assert(ctx, tx) })
	if !errors.Is(err, lock.ErrLost) {
		t.Errorf("a stale holder's Assert: got %v, want ErrLost", err)
	}
	if second.Token() <= lease.Token() {
		t.Errorf("tokens: got %d after %d", second.Token(), lease.Token())
	}
	for token, want := range map[*lock.Lease]error{second: nil} {
		if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return token.Guard(ctx, tx, "file") }); !errors.Is(err, want) {
			t.Errorf("guard: got %v", err)
		}
	}
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return lease.Guard(ctx, tx, "file") }); !errors.Is(err, lock.ErrLost) {
		t.Errorf("an older token at the guard: got %v, want ErrLost", err)
	}
	release(t, second)
}

// A release waits for a transaction of one's own that asserts the lease, and says so when it may not wait.
func TestRelease_asserted(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	l := open(t, pool, lock.Config{})
	ctx := bounded(t)
	lease := acquire(t, l, ctx, "x")
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if err := lease.Assert(ctx, tx); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	if err := lease.Release(short); !errors.Is(err, lock.ErrAsserted) && !errors.Is(err, context.DeadlineExceeded) { // which depends on when the reply comes
		t.Errorf("got %v, want ErrAsserted", err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	release(t, acquire(t, open(t, pool, lock.Config{}), ctx, "x"))
}

// A dead process's locks go to the next, after its delay; its waits block nobody.
func TestDeath(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	quick := lock.Config{PollInterval: 10 * time.Millisecond}
	a, b, c := open(t, pool, quick), open(t, pool, quick), open(t, pool, quick)
	ctx := bounded(t)
	lease := acquire(t, a, ctx, "x", lock.DelayAfterLoss(300*time.Millisecond))
	waits := make(chan error, 1)
	dead, kill := context.WithCancel(ctx)
	go func() { _, err := b.Acquire(dead, "x"); waits <- err }()
	waiters(t, pool, "x", 1)
	got := make(chan *lock.Lease, 1)
	go func() {
		l, err := c.Acquire(ctx, "x")
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	waiters(t, pool, "x", 2)
	if _, err := pool.Exec(ctx, "SELECT pawl.session_end(1::smallint, s, 'test') FROM unnest($1::bigint[]) s", []int64{a.SessionID(), b.SessionID()}); err != nil {
		t.Fatal(err)
	}
	kill()
	if err := <-waits; err == nil {
		t.Error("a dead process's wait was granted")
	}
	second := <-got
	var delay float64
	err := pool.QueryRow(ctx, `SELECT extract(epoch FROM g.at - l.at) FROM pawl.lock_state l, pawl.lock_state g WHERE l.what = 'lost' AND g.token = $1 AND g.what = 'granted'`, second.Token()).Scan(&delay)
	if err != nil || delay < 0.29 {
		t.Errorf("delay after the loss: got %v s, %v, want 0.3", delay, err)
	}
	release(t, second)
	if err := lease.Release(ctx); !errors.Is(err, lock.ErrLost) {
		t.Errorf("release of a lost lock: got %v", err)
	}
}

// While a new session cannot be started, each who asks waits for as long as its own context allows.
func TestAcquire_whileSessionStarts(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	l := open(t, pool, lock.Config{})
	ctx := bounded(t)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if _, err := tx.Exec(ctx, "LOCK TABLE pawl.session IN ROW SHARE MODE"); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "SELECT pawl.session_end(1::smallint, $1, 'test')", l.SessionID()); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "LOCK TABLE pawl.session IN SHARE MODE"); err != nil { // read, but not written
		t.Fatal(err)
	}
	patient := make(chan error, 1)
	go func() {
		lease, err := l.Acquire(ctx, "x")
		if err == nil {
			err = lease.Release(ctx)
		}
		patient <- err
	}()
	until(t, pool, "a session that waits to start", "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'pawl.session'::regclass AND NOT granted")
	for range 3 {
		short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
		if _, err := l.Acquire(short, "y"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
		stop()
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-patient; err != nil {
		t.Errorf("the one that waits: %v", err)
	}
}

// Once its delay is over a lock is free, though nobody waited and no sweep came by.
func TestDelay_over(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, b := open(t, pool, lock.Config{}), open(t, pool, lock.Config{})
	ctx := bounded(t)
	lease := acquire(t, a, ctx, "x", lock.DelayAfterLoss(100*time.Millisecond))
	if _, err := pool.Exec(ctx, "SELECT pawl.session_end(1::smallint, $1, 'test')", a.SessionID()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.TryAcquire(ctx, "x"); !errors.Is(err, lock.ErrHeld) {
		t.Errorf("during the delay: got %v, want ErrHeld", err)
	}
	until(t, pool, "the delay over", "SELECT bool_or(free_at <= clock_timestamp()) FROM pawl.lock_state")
	next, err := b.TryAcquire(ctx, "x")
	if err != nil {
		t.Fatalf("after the delay: %v", err)
	}
	if next.Token() <= lease.Token() {
		t.Errorf("got token %d after %d", next.Token(), lease.Token())
	}
	release(t, next)
}

func TestForce(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, b := open(t, pool, lock.Config{}), open(t, pool, lock.Config{})
	ctx := bounded(t)
	lease := acquire(t, a, ctx, "x")
	got := make(chan *lock.Lease, 1)
	go func() {
		l, err := b.Acquire(ctx, "x")
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	waiters(t, pool, "x", 1)
	if n, err := lock.Force(ctx, pool, 1, "x", "stuck since Friday"); n != 1 || err != nil {
		t.Fatalf("force: got %d, %v", n, err)
	}
	<-lease.Context().Done()
	if cause := context.Cause(lease.Context()); cause != lock.ErrForced {
		t.Errorf("cause: got %v, want ErrForced", cause)
	}
	second := <-got
	if second.Token() <= lease.Token()+1 {
		t.Errorf("tokens: got %d after %d, want one between for what the operator did", second.Token(), lease.Token())
	}
	if err := lease.Release(ctx); !errors.Is(err, lock.ErrForced) {
		t.Errorf("release: got %v, want ErrForced", err)
	}
	release(t, second)
	var reason string
	if err := pool.QueryRow(ctx, "SELECT reason FROM pawl.lock_state WHERE what = 'forced'").Scan(&reason); err != nil || reason != "stuck since Friday" {
		t.Errorf("reason kept: got %q, %v", reason, err)
	}
}

func TestMaxHold(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, b := open(t, pool, lock.Config{}), open(t, pool, lock.Config{PollInterval: 10 * time.Millisecond})
	ctx := bounded(t)
	lease := acquire(t, a, ctx, "x", lock.MaxHold(200*time.Millisecond))
	second := acquire(t, b, ctx, "x")
	if cause := context.Cause(lease.Context()); cause != lock.ErrExpired {
		t.Errorf("cause when another has it: got %v, want ErrExpired", cause)
	}
	if err := lease.Release(ctx); !errors.Is(err, lock.ErrExpired) {
		t.Errorf("release: got %v", err)
	}
	release(t, second)
}

// Replies that are lost leave nothing behind: the connections of the requests are ended again and again.
func TestConnectionsLost(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	url := pool.Config().Copy()
	url.ConnConfig.RuntimeParams["application_name"] = "victim"
	victims, err := pgxpool.NewWithConfig(bounded(t), url)
	if err != nil {
		t.Fatal(err)
	}
	defer victims.Close()
	l := open(t, victims, lock.Config{PollInterval: 20 * time.Millisecond})
	ctx := bounded(t)
	stop := make(chan struct{})
	var killers sync.WaitGroup
	killers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = pool.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity, pg_sleep(0.2) WHERE datname = current_database() AND application_name = 'victim' AND query LIKE '%pawl.lock_%'")
			}
		}
	})
	var inside [4]atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				i := rand.N(4)
				lease, err := l.Acquire(ctx, fmt.Sprint("n", i))
				if err != nil {
					t.Error(err)
					return
				}
				if inside[i].Add(1) != 1 {
					t.Errorf("two hold n%d", i)
				}
				inside[i].Add(-1)
				if err := lease.Release(ctx); err != nil {
					t.Errorf("release: %v", err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	killers.Wait()
	for i := range inside {
		release(t, acquire(t, l, ctx, fmt.Sprint("n", i), lock.Wait(10*time.Second)))
	}
	until(t, pool, "nobody waits", "SELECT NOT EXISTS (SELECT FROM pawl.lock_waiter w WHERE w.id > (SELECT max(served) FROM pawl.lock_state s WHERE s.name = w.name))")
}

// Tokens go on rising when the database was restored into a cluster with a lower timeline, and when the lock's history was removed.
func TestTokensRise(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	l := open(t, pool, lock.Config{})
	ctx := bounded(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	last := int64(0)
	next := func(what string) {
		t.Helper()
		lease := acquire(t, l, ctx, "x")
		if lease.Token() <= last {
			t.Errorf("%s: got token %d after %d", what, lease.Token(), last)
		}
		last = lease.Token()
		release(t, lease)
	}
	next("first")
	next("second")
	exec("DELETE FROM pawl.lock_state")
	next("history removed")
	// As if the cluster it comes from had been at timeline 7.
	timeline := "CREATE OR REPLACE FUNCTION pawl.timeline() RETURNS bigint LANGUAGE sql STABLE BEGIN ATOMIC SELECT %d::bigint; END"
	exec(fmt.Sprintf(timeline, 7))
	next("higher timeline")
	exec(fmt.Sprintf(timeline, 1))
	next("lower timeline, history kept")
	exec("SELECT pawl.rebase(1::smallint); DELETE FROM pawl.lock_state")
	next("lower timeline, history removed after the rebase")
	var copied int64
	if err := pool.QueryRow(ctx, "SELECT last_value FROM pawl.lock_token").Scan(&copied); err != nil {
		t.Fatal(err)
	}
	next("after the copy")
	exec(fmt.Sprintf("SELECT setval('pawl.lock_token', %d); DELETE FROM pawl.lock_state; SELECT pawl.rebase(1::smallint)", copied))
	next("rebased from a copy that is older than the last grant")
}

// The sweep leaves of each lock what counts, and nothing of one that has been free for long.
func TestSweep(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, b := open(t, pool, lock.Config{}), open(t, pool, lock.Config{})
	ctx := bounded(t)
	for range 5 {
		release(t, acquire(t, a, ctx, "free"))
		release(t, acquire(t, a, ctx, "held"))
	}
	held := acquire(t, a, ctx, "held")
	got := make(chan *lock.Lease, 1)
	go func() {
		l, err := b.Acquire(ctx, "held")
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	waiters(t, pool, "held", 1)
	sweep := func(keep string, want int) {
		t.Helper()
		var left int
		if _, err := pool.Exec(ctx, "SELECT pawl.sweep_locks(1::smallint, (-9223372036854775808)::bigint, 100, $1::text::interval)", keep); err != nil {
			t.Fatal(err)
		}
		if err := pool.QueryRow(ctx, "SELECT (SELECT count(*) FROM pawl.lock_state) + (SELECT count(*) FROM pawl.lock_waiter)").Scan(&left); err != nil || left != want {
			t.Errorf("rows left with keep %s: got %d, %v, want %d", keep, left, err, want)
		}
	}
	sweep("1 h", 3) // both locks, the wait
	sweep("0", 2)
	release(t, held)
	second := <-got
	if second.Token() <= held.Token() {
		t.Errorf("tokens: got %d after %d", second.Token(), held.Token())
	}
	sweep("0", 1)
	release(t, second)
	sweep("0", 0)
}

func TestInTx(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := bounded(t)
	begin := func() pgx.Tx {
		t.Helper()
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	a, b := begin(), begin()
	if err := lock.InTx(ctx, a, "x", "y", "x"); err != nil {
		t.Fatal(err)
	}
	if ok, err := lock.TryInTx(ctx, b, "z", "y"); ok || err != nil {
		t.Errorf("one of two is held: got %v, %v", ok, err)
	}
	if err := a.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if ok, err := lock.TryInTx(ctx, b, "x", "y"); !ok || err != nil {
		t.Errorf("after the commit: got %v, %v", ok, err)
	}
	_ = b.Rollback(ctx)
}

func TestOnConn(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := bounded(t)
	a, err := lock.OnConn(ctx, pool, "x")
	if err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	if _, err := lock.OnConn(short, pool, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a held lock: got %v", err)
	}
	if err := a.Release(ctx); err != nil {
		t.Error(err)
	}
	if err := a.Release(ctx); !errors.Is(err, lock.ErrReleased) {
		t.Errorf("second release: got %v", err)
	}
	b, err := lock.OnConn(ctx, pool, "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"); err != nil {
		t.Fatal(err)
	}
	<-b.Context().Done()
	if cause := context.Cause(b.Context()); !errors.Is(cause, lock.ErrLost) {
		t.Errorf("cause: got %v, want ErrLost", cause)
	}
	if err := b.Release(ctx); !errors.Is(err, lock.ErrLost) {
		t.Errorf("release: got %v, want ErrLost", err)
	}
}

// One leads at a time; terms rise; observers see each leader that stays.
func TestCampaign_forced(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	l := open(t, pool, lock.Config{})
	ctx, stop := context.WithCancel(bounded(t))
	terms := make(chan int64)
	out := make(chan error, 1)
	go func() {
		out <- l.Campaign(ctx, "e", time.Millisecond, func(ctx context.Context, term lock.Term) error {
			select {
			case terms <- term.Number:
			case <-ctx.Done():
			}
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	first := <-terms
	if _, err := lock.Force(ctx, pool, 1, "e", "a test"); err != nil {
		t.Fatal(err)
	}
	select {
	case second := <-terms:
		if second <= first {
			t.Errorf("term %d after %d", second, first)
		}
	case err := <-out:
		t.Errorf("who was deposed stands no more: %v", err)
	}
	stop()
	if err := <-out; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
}

func TestCampaign(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx, stop := context.WithCancel(bounded(t))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	var leading atomic.Int32
	var mu sync.Mutex
	var terms []int64
	seen := make(chan lock.Leader, 1000)
	wg.Go(func() {
		_ = lock.Observe(ctx, pool, 1, "boss", time.Millisecond, func(l lock.Leader) { seen <- l })
	})
	resign := make(chan struct{})
	for i := range 3 {
		l := open(t, pool, lock.Config{Name: fmt.Sprint("candidate", i)})
		wg.Go(func() {
			err := l.Campaign(ctx, "boss", time.Millisecond, func(ctx context.Context, term lock.Term) error {
				if leading.Add(1) != 1 {
					t.Error("two lead")
				}
				defer leading.Add(-1)
				mu.Lock()
				terms = append(terms, term.Number)
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-resign:
				}
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("campaign: %v", err)
			}
		})
	}
	last := int64(0)
	for range 5 {
		for l := range seen {
			if l.Term > last {
				last = l.Term
				if !strings.Contains(l.Process, "candidate") {
					t.Errorf("leader: got %q", l.Process)
				}
				break
			}
		}
		resign <- struct{}{}
	}
	stop()
	wg.Wait()
	if !slices.IsSorted(terms) || len(terms) < 5 {
		t.Errorf("terms: got %v", terms)
	}
}
