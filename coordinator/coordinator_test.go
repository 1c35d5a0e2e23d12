package coordinator_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
)

const patience = 60 * time.Second

func exec(tb testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	tb.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

func get[T any](tb testing.TB, pool *pgxpool.Pool, sql string, args ...any) (v T) {
	tb.Helper()
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&v); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	return v
}

func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			tb.Fatalf("waited in vain for: %s", what)
		}
	}
}

func newCoordinator(tb testing.TB, pool *pgxpool.Pool) *coordinator.Coordinator {
	tb.Helper()
	c, err := coordinator.New(pool, coordinator.Config{})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func sweep(tb testing.TB, c *coordinator.Coordinator, name string) coordinator.Report {
	tb.Helper()
	r, err := c.Sweep(context.Background(), name)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// claimed enqueues jobs and claims them by a session that died.
func claimed(tb testing.TB, pool *pgxpool.Pool, jobs int) (session int64) {
	tb.Helper()
	exec(tb, pool, "SELECT pawl.enqueue_many('1', 'default', 'k', array_fill('{}'::json, ARRAY[$1::int]))", jobs)
	session = get[int64](tb, pool, "SELECT pawl.session_start('1', 'dead', 'h', 1, 'v', '1 s')")
	if got := get[int](tb, pool, "SELECT jobs FROM pawl.claim('1', $1, 7, 1, '2', $2)", session, jobs); got != jobs {
		tb.Fatalf("claimed %d of %d", got, jobs)
	}
	exec(tb, pool, "UPDATE pawl.session SET expires_at = now() - interval '1 s' WHERE id = $1", session)
	return session
}

func TestSweepSessions(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	c := newCoordinator(t, pool)
	claimed(t, pool, 100)
	// Nobody swept for long: everyone gets one ttl of grace.
	if r := sweep(t, c, coordinator.SweepSessions); r.Did != 0 {
		t.Errorf("during grace: did %d", r.Did)
	}
	if n := get[int](t, pool, "SELECT count(*) FROM pawl.session WHERE ended_at IS NOT NULL"); n != 0 {
		t.Errorf("ended during grace: %d", n)
	}
	exec(t, pool, "UPDATE pawl.sweep SET resumed_at = resumed_at - interval '1 min'")
	exec(t, pool, "UPDATE pawl.session SET expires_at = now() - interval '1 s'")
	until(t, "the server to be older than a ttl", func() bool {
		return get[bool](t, pool, "SELECT pg_postmaster_start_time() < now() - interval '2 s'")
	})
	if r := sweep(t, c, coordinator.SweepSessions); r.Did != 100 {
		t.Errorf("rescued %d, want 100", r.Did)
	}
	if r := sweep(t, c, coordinator.SweepSessions); r.Did != 0 {
		t.Errorf("a second time: %d", r.Did)
	}
	jobs, _, err := job.List(context.Background(), pool, job.Filter{State: job.StateAvailable, Limit: 1000})
	if err != nil || len(jobs) != 100 || jobs[0].Attempt != 2 {
		t.Errorf("available: %d, %v, want 100 at attempt 2", len(jobs), err)
	}
}

// Many nodes sweep at once: what they do is done once.
func TestSweep_manyNodes(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := job.Define[int]("k")
	const jobs = 500
	for i := range jobs {
		if _, err := d.Enqueue(context.Background(), pool, i, job.RunAt(time.Now().Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
	}
	session := claimed(t, pool, 50)
	exec(t, pool, "SELECT pawl.session_end('1', $1, 'test')", session)
	exec(t, pool, "UPDATE pawl.scheduled SET run_at = now() - interval '1 s'")
	var wg sync.WaitGroup
	for range 6 {
		c := newCoordinator(t, pool)
		wg.Go(func() {
			for _, name := range []string{coordinator.SweepDue, coordinator.SweepSessions, coordinator.SweepPartitions, coordinator.SweepDedupe} {
				if _, err := c.Sweep(context.Background(), name); err != nil && !strings.Contains(err.Error(), "lock timeout") {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	c := newCoordinator(t, pool)
	sweep(t, c, coordinator.SweepDue)
	sweep(t, c, coordinator.SweepSessions)
	if n := get[int](t, pool, "SELECT count(*) FROM pawl.ready WHERE again"); n != jobs+50 {
		t.Errorf("put in line: %d, want %d", n, jobs+50)
	}
	if n := get[int](t, pool, "SELECT count(DISTINCT job_id) FROM pawl.ready WHERE again"); n != jobs+50 {
		t.Errorf("different ones: %d, want %d", n, jobs+50)
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	c := newCoordinator(t, pool)
	go func() { done <- c.Run(ctx) }()
	if _, err := job.Define[int]("k").Enqueue(ctx, pool, 1, job.RunAt(time.Now().Add(100*time.Millisecond))); err != nil {
		t.Fatal(err)
	}
	until(t, "the job to be in line", func() bool { return get[int](t, pool, "SELECT count(*) FROM pawl.ready") == 1 })
	until(t, "a report", func() bool { return get[int](t, pool, "SELECT count(*) FROM pawl.sweep WHERE name = 'due'") == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	c := newCoordinator(t, pool)
	ctx := context.Background()
	if _, err := c.Sweep(ctx, "chimney"); !errors.Is(err, coordinator.ErrUnknownSweep) {
		t.Errorf("got %v, want ErrUnknownSweep", err)
	}
	_, err := coordinator.New(pool, coordinator.Config{DueMax: 1, Specs: map[string]string{"chimney": "", coordinator.SweepDedupe: "now and then"}})
	for _, want := range []string{"chimney", "now and then", "DueMax"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("faults: %v, want %q among them", err, want)
		}
	}
	// A database that came from another cluster.
	session := claimed(t, pool, 3)
	exec(t, pool, "SELECT pawl.session_end('1', $1, 'test')", session)
	exec(t, pool, "UPDATE pawl.line SET cluster = 1")
	if _, err := c.Sweep(ctx, coordinator.SweepSessions); !errors.Is(err, coordinator.ErrMoved) || !strings.Contains(err.Error(), "doctor --rebase") {
		t.Errorf("got %v, want ErrMoved with its remedy", err)
	}
	if n, err := c.Rebase(ctx); err != nil || n != 1 {
		t.Errorf("rebase: %d, %v, want 1", n, err)
	}
	if r := sweep(t, c, coordinator.SweepSessions); r.Did != 3 {
		t.Errorf("rescued %d, want 3", r.Did)
	}
	if n, err := c.Rebase(ctx); err != nil || n != 0 {
		t.Errorf("rebase at home: %d, %v, want 0", n, err)
	}
	empty, err := pgxpool.New(ctx, dbtest.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(empty.Close)
	if err := newCoordinator(t, empty).Run(ctx); !errors.Is(err, coordinator.ErrSchema) {
		t.Errorf("without schema: got %v, want ErrSchema", err)
	}
}
