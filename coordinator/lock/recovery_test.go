package lock_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/db/devpg"
)

// refuse ends the one request that waits for a lock's key, by an error of Postgres.
func refuse(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	until(t, pool, "a request to refuse", `SELECT count(*) = 1 FROM (SELECT pg_cancel_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND wait_event = 'advisory' AND query LIKE '%lock_ask%') c`)
}

// block keeps everybody from changing a lock until the function is called.
func block(t *testing.T, pool *pgxpool.Pool, names ...string) func() {
	t.Helper()
	tx, err := pool.Begin(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(bounded(t), "SELECT pg_advisory_xact_lock(pawl.lock_key(1::smallint, n)) FROM unnest($1::text[]) n", names); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(context.Background()); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			t.Error(err)
		}
	}
}

// A release that Postgres refuses is told, and the lock is given up all the same.
func TestRelease_refused(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, b := open(t, pool, lock.Config{}), open(t, pool, lock.Config{})
	lease := acquire(t, a, bounded(t), "x")
	unblock := block(t, pool, "x")
	done := make(chan error, 1)
	go func() { done <- lease.Release(bounded(t)) }()
	refuse(t, pool)
	if err := <-done; db.Code(err) != "57014" {
		t.Errorf("a release that was refused: got %v", err)
	}
	unblock()
	release(t, acquire(t, b, bounded(t), "x"))
}

// A wait that could not be withdrawn is not granted to nobody.
func TestWithdraw_refused(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, b := open(t, pool, lock.Config{PollInterval: time.Hour}), open(t, pool, lock.Config{})
	lease := acquire(t, b, bounded(t), "x")
	ctx, quit := context.WithCancel(bounded(t))
	done := make(chan error, 1)
	go func() { _, err := a.Acquire(ctx, "x"); done <- err }()
	waiters(t, pool, "x", 1)
	unblock := block(t, pool, "x")
	quit()
	refuse(t, pool)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
	unblock()
	release(t, lease)
	release(t, acquire(t, b, bounded(t), "x"))
}

// Nor is one whose withdrawal is sent when nobody waits for its reply any more.
func TestWithdraw_late(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, b := open(t, pool, lock.Config{}), open(t, pool, lock.Config{})
	lease := acquire(t, b, bounded(t), "x")
	ctx, quit := context.WithCancel(bounded(t))
	done := make(chan error, 1)
	go func() { _, err := a.Acquire(ctx, "x"); done <- err }()
	waiters(t, pool, "x", 1)
	unblock := block(t, pool, "p", "q") // both connections
	stuck := make(chan error, 2)
	for _, name := range []string{"p", "q"} {
		go func() {
			other, err := a.Acquire(bounded(t), name)
			if err == nil {
				err = other.Release(bounded(t))
			}
			stuck <- err
		}()
	}
	until(t, pool, "two stuck requests", "SELECT count(*) = 2 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'")
	quit()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
	release(t, lease)
	unblock()
	for range 2 {
		if err := <-stuck; err != nil {
			t.Error(err)
		}
	}
	release(t, acquire(t, b, bounded(t), "x"))
}

// Releases commit asynchronously. One that a crash undoes is made again, though its process asks nothing more.
func TestRelease_undone(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, devpg.Config{Settings: map[string]string{"wal_writer_delay": "10s"}})
	pool, err := pgxpool.New(context.Background(), server.URL(dbtest.PrivateDatabase))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	conf := lock.Config{TTL: time.Minute} // a lost session would free the lock, too
	a, b := open(t, pool, conf), open(t, pool, conf)
	session := a.SessionID()
	release(t, acquire(t, a, bounded(t), "x"))
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err = devpg.Start(context.Background(), server.Config()); err != nil {
		t.Fatal(err)
	}
	release(t, acquire(t, b, bounded(t), "x"))
	if a.SessionID() != session {
		t.Error("the session was lost, so nothing is proved")
	}
}

// A wait that is given up while it is granted is not left with the lock.
func TestResync_granted(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := bounded(t)
	us, other := open(t, pool, lock.Config{}).SessionID(), open(t, pool, lock.Config{}).SessionID()
	_, token := ask(t, pool, other, "acquire", "x", 0)
	ask(t, pool, us, "acquire", "x", 0)
	granting, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = granting.Rollback(ctx) }()
	_, err = db.New(granting).AskLock(ctx, db.AskLockParams{Ns: 1, SessionID: other, Op: "release", Name: "x", Owner: "o", Mode: "exclusive", Permits: 1, NumberIn: token})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := db.New(pool).ResyncLocks(ctx, db.ResyncLocksParams{Ns: 1, SessionID: us, Tokens: []int64{}, Waiters: []int64{}, AfterKey: math.MinInt64, NamesMax: 10})
		done <- err
	}()
	until(t, pool, "the resync to wait for the grant", "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'")
	if err := granting.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if info, err := lock.Read(ctx, pool, 1, "x"); err != nil || len(info.Holders) != 0 {
		t.Errorf("held by %+v, %v", info.Holders, err)
	}
}

// What a session holds among others is found also after a sweep.
func TestResync_swept(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, b := open(t, pool, lock.Config{}), open(t, pool, lock.Config{})
	lost := acquire(t, a, bounded(t), "x", lock.Shared())
	kept := acquire(t, b, bounded(t), "x", lock.Shared())
	for _, sql := range []string{
		"SELECT pawl.sweep_locks(1::smallint, -9223372036854775808, 1000, '1 min')",
		"SELECT pawl.lock_resync(1::smallint, (SELECT min(id) FROM pawl.session), '{}', '{}', -9223372036854775808, 100)", // a knows of nothing
	} {
		if _, err := pool.Exec(bounded(t), sql); err != nil {
			t.Fatal(err)
		}
	}
	info, err := lock.Read(bounded(t), pool, 1, "x")
	if err != nil || len(info.Holders) != 1 || info.Holders[0].Token != kept.Token() {
		t.Errorf("got %+v, %v; want the holder %d alone", info.Holders, err, kept.Token())
	}
	if err := lost.Release(bounded(t)); !errors.Is(err, lock.ErrLost) {
		t.Errorf("release of what was given up: got %v", err)
	}
	release(t, kept)
}
