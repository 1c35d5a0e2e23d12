package job_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// stormEnv makes the tests that throw things together at random run for that long instead: PAWL_ENGINE_STORM=1m.
const stormEnv = "PAWL_ENGINE_STORM"

const stormDefault = 4 * time.Second

func stormTime(tb testing.TB) time.Duration {
	tb.Helper()
	text := os.Getenv(stormEnv)
	if text == "" {
		return stormDefault
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		tb.Fatalf("%s: %v", stormEnv, err)
	}
	return d
}

// storm is many writers and claimers on one line.
type storm struct {
	*engine
	queue                 int32
	over                  atomic.Bool // the time of the writers
	claims, again         atomic.Int64
	mu                    sync.Mutex
	committed, rolledBack map[int64]bool
}

// TestEngineStorm: whatever writers do, each place in line they committed is claimed exactly once, and none that they rolled back.
func TestEngineStorm(t *testing.T) {
	t.Parallel()
	const writers, stragglers, claimers = 26, 4, 6
	e := newEngine(t)
	s := &storm{engine: e, queue: e.queue("q"), committed: map[int64]bool{}, rolledBack: map[int64]bool{}}
	var writing, claiming sync.WaitGroup
	errs := make(chan error, writers+stragglers+claimers)
	start := func(group *sync.WaitGroup, f func(conn *pgx.Conn) error) {
		conn := e.conn()
		group.Go(func() {
			if err := f(conn); err != nil {
				errs <- err
			}
		})
	}
	for range writers {
		start(&writing, func(conn *pgx.Conn) error { return s.write(conn, 0.02) })
	}
	for range stragglers {
		start(&writing, func(conn *pgx.Conn) error { return s.write(conn, 1.5) })
	}
	written := make(chan struct{})
	for range claimers {
		session := e.session()
		start(&claiming, func(conn *pgx.Conn) error { return s.work(conn, session, written) })
	}
	timer := time.NewTimer(stormTime(t))
	<-timer.C
	s.over.Store(true)
	writing.Wait()
	close(written)
	claiming.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	s.check()
}

// write runs transactions that enqueue, one by one and in batches, with pauses and savepoints; one in ten is rolled back.
func (s *storm) write(conn *pgx.Conn, pauseMax float64) error {
	for !s.over.Load() {
		tx, err := conn.Begin(s.ctx)
		if err != nil {
			return err
		}
		var kept, lost []int64
		for range 1 + rand.N(4) {
			inner, savepoint := tx, rand.N(3) == 0
			if savepoint {
				if inner, err = tx.Begin(s.ctx); err != nil {
					return err
				}
			}
			ids, err := s.append(inner)
			if err != nil {
				return err
			}
			switch {
			case savepoint && rand.N(2) == 0:
				lost = append(lost, ids...)
				err = inner.Rollback(s.ctx)
			case savepoint:
				kept = append(kept, ids...)
				err = inner.Commit(s.ctx)
			default:
				kept = append(kept, ids...)
			}
			if err != nil {
				return err
			}
			if _, err := tx.Exec(s.ctx, "SELECT pg_sleep($1)", rand.Float64()*pauseMax); err != nil {
				return err
			}
		}
		if rand.N(10) == 0 {
			kept, lost = nil, append(lost, kept...)
			err = tx.Rollback(s.ctx)
		} else {
			err = tx.Commit(s.ctx)
		}
		if err != nil {
			return err
		}
		s.note(kept, lost)
	}
	return nil
}

// append enqueues one job or a batch.
func (s *storm) append(tx pgx.Tx) (ids []int64, err error) {
	n, first := 1, int64(0)
	if rand.N(3) > 0 {
		err = tx.QueryRow(s.ctx, "SELECT pawl.enqueue(1::smallint, 'q', 'test', '{}')").Scan(&first)
	} else {
		n = 1 + rand.N(40)
		err = tx.QueryRow(s.ctx, "SELECT first_id FROM pawl.enqueue_many(1::smallint, 'q', 'test', array_fill('{}'::json, ARRAY[$1::int]))", n).Scan(&first)
	}
	for i := range n {
		ids = append(ids, first+int64(i))
	}
	return ids, err
}

func (s *storm) note(kept, lost []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range kept {
		s.committed[id] = true
	}
	for _, id := range lost {
		s.rolledBack[id] = true
	}
}

// work claims and ends until the writers are done and there is nothing left. Some attempts go in line again, at once.
func (s *storm) work(conn *pgx.Conn, session int64, written <-chan struct{}) error {
	for {
		last := false
		select {
		case <-written:
			last = true
		default:
		}
		c, err := s.tryClaim(conn, session, s.queue, 1+rand.N(60))
		if err != nil {
			return fmt.Errorf("claim: %w", err)
		}
		if c.id == 0 {
			if last {
				return nil
			}
			if _, err := conn.Exec(s.ctx, "SELECT pg_sleep(0.002)"); err != nil {
				return err
			}
			continue
		}
		s.claims.Add(1)
		if err := s.end(conn, c); err != nil {
			return err
		}
	}
}

func (s *storm) end(conn *pgx.Conn, c claimed) error {
	if n := len(c.jobs); n > 0 && rand.N(3) > 0 {
		i := rand.N(n)
		outcome := []string{"failed", "snoozed", "returned", "lost"}[rand.N(4)]
		var got string
		err := conn.QueryRow(s.ctx, `SELECT x.counted[1] FROM pawl.settle(1::smallint, $1, ARRAY[$2::bigint], ARRAY[$3::bigint], ARRAY[$4::int], ARRAY[$5::text]::pawl.outcome[], NULL,
			ARRAY[0], NULL) x`, c.session, c.id, c.nonce, i, outcome).Scan(&got)
		if err != nil || got == "" {
			return fmt.Errorf("settle: got %q, %w", got, err)
		}
		s.again.Add(1)
		if lost, err := s.tryFinish(conn, c, fmt.Sprintf("{[0,%d),[%d,%d)}", i, i+1, n)); err != nil || lost != "{}" {
			return fmt.Errorf("finish: lost %s, %w", lost, err)
		}
		return nil
	}
	lost, err := s.tryFinish(conn, c, fmt.Sprintf("{[0,%d)}", len(c.jobs)))
	if err != nil || lost != "{}" {
		return fmt.Errorf("finish: lost %s, %w", lost, err)
	}
	return nil
}

// places and taken expand the line's rows and the claims to one row a job and attempt.
const (
	places = "SELECT r.job_id + i AS job_id, r.attempt FROM pawl.ready r CROSS JOIN LATERAL generate_series(0, r.jobs - 1) i"
	taken  = `SELECT r.first + i AS job_id, r.attempt FROM pawl.claim c
		CROSS JOIN LATERAL ROWS FROM (unnest(c.job_ids), unnest(c.job_counts), unnest(c.attempts)) r(first, n, attempt)
		CROSS JOIN LATERAL generate_series(0, r.n - 1) i`
)

// unequal counts the places that were not claimed, and the claims of no place. A job may have been in line twice with one attempt: each counts.
func (e *engine) unequal() (missed, surplus int) {
	e.Helper()
	missed = get[int](e, e.pool, "SELECT count(*) FROM (("+places+") EXCEPT ALL ("+taken+")) x")
	return missed, get[int](e, e.pool, "SELECT count(*) FROM (("+taken+") EXCEPT ALL ("+places+")) x")
}

func (s *storm) check() {
	s.Helper()
	if missed, surplus := s.unequal(); missed != 0 || surplus != 0 {
		s.Errorf("places in line: got %d never claimed and %d claimed too often, want none", missed, surplus)
	}
	got := map[int64]bool{}
	var wrong, missing []int64
	for _, id := range all[int64](s.engine, s.pool, "SELECT DISTINCT job_id FROM ("+taken+") x") {
		got[id] = true
		if s.rolledBack[id] {
			wrong = append(wrong, id)
		}
	}
	for id := range s.committed {
		if !got[id] {
			missing = append(missing, id)
		}
	}
	if len(wrong) > 0 || len(missing) > 0 {
		s.Errorf("jobs: got %v claimed though rolled back, %v committed but never claimed, want none", wrong, missing)
	}
	succeeded := get[int](s.engine, s.pool, "SELECT sum(upper(u) - lower(u)) FROM pawl.receipt r CROSS JOIN LATERAL unnest(r.jobs) u WHERE r.outcome = 'succeeded'")
	if succeeded != len(s.committed) {
		s.Errorf("jobs that succeeded: got %d, want %d", succeeded, len(s.committed))
	}
	if len(s.committed) == 0 || len(s.rolledBack) == 0 || s.again.Load() == 0 {
		s.Error("nothing was committed, rolled back or put in line again: the storm proves nothing")
	}
	s.Logf("%d jobs committed, %d rolled back, %d put in line again, %d claims", len(s.committed), len(s.rolledBack), s.again.Load(), s.claims.Load())
}

// TestEngineOneJob: claims, endings, cancels, retries and rescues race for a few jobs. What is cancelled while it waits never runs, every life of a job (a retry of
// a finished one begins another) has one end, and a request to cancel is heard or comes too late.
func TestEngineOneJob(t *testing.T) {
	t.Parallel()
	const jobs = 3
	e := newEngine(t)
	q := e.queue("q")
	var ids []int64
	for range jobs {
		ids = append(ids, e.enqueue(e.pool, "q"))
	}
	ctx, cancel := context.WithTimeout(e.ctx, stormTime(t)/2)
	defer cancel()
	var lives atomic.Int64
	lives.Store(jobs)
	var group sync.WaitGroup
	loop := func(step func(conn *pgx.Conn) error) {
		conn := e.conn()
		group.Go(func() {
			for ctx.Err() == nil {
				if err := step(conn); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 3 {
		session := e.session()
		loop(func(conn *pgx.Conn) (err error) { session, err = e.workRoughly(conn, session, q); return err })
	}
	for range 2 {
		loop(func(conn *pgx.Conn) error {
			_, err := conn.Exec(e.ctx, "SELECT pawl.job_cancel(1::smallint, $1, 'test') FROM pg_sleep($2)", ids[rand.N(jobs)], rand.Float64()*0.01)
			return err
		})
		loop(func(conn *pgx.Conn) error {
			var was string
			err := conn.QueryRow(e.ctx, "SELECT pawl.job_retry(1::smallint, $1) FROM pg_sleep($2)", ids[rand.N(jobs)], rand.Float64()*0.005).Scan(&was)
			if was == "succeeded" || was == "discarded" || was == "cancelled" {
				lives.Add(1)
			}
			return err
		})
	}
	loop(func(conn *pgx.Conn) error {
		_, err := conn.Exec(e.ctx, "SELECT pawl.sweep_due(1::smallint, NULL, 10) FROM pg_sleep(0.002)")
		return err
	})
	group.Wait()

	// An attempt that was snoozed or returned has had more than one place; the cancelled one is the last.
	if n := get[int](e, e.pool, `SELECT count(*) FROM pawl.cancellation x WHERE x.xid IS NOT NULL AND
			(SELECT count(*) FROM (`+taken+`) y WHERE (y.job_id, y.attempt) = (x.job_id, x.attempt))
			>= (SELECT count(*) FROM (`+places+`) y WHERE (y.job_id, y.attempt) = (x.job_id, x.attempt))`); n != 0 {
		t.Errorf("attempts that were cancelled while they waited, and claimed: got %d, want none", n)
	}
	open := 0
	for _, id := range ids {
		switch state := get[string](e, e.pool, "SELECT coalesce(state::text, 'none') FROM pawl.job_state(1::smallint, $1)", id); state {
		case "succeeded", "discarded", "cancelled":
		case "none":
			t.Errorf("job %d has no state", id)
		default:
			open++
		}
	}
	ends := get[int](e, e.pool, `SELECT (SELECT coalesce(sum(upper(u) - lower(u)), 0) FROM pawl.receipt r CROSS JOIN LATERAL unnest(r.jobs) u
		WHERE r.outcome IN ('succeeded', 'discarded', 'cancelled')) + (SELECT count(*) FROM pawl.cancellation WHERE claim_id IS NULL)`)
	if want := int(lives.Load()) - open; ends != want {
		t.Errorf("ends: got %d, want %d, one for each of %d lives but for %d that go on", ends, want, lives.Load(), open)
	}
	t.Logf("%d lives: %v", lives.Load(), all[string](e, e.pool, "SELECT outcome || ' ' || count(*) FROM pawl.receipt GROUP BY outcome"))
}

// workRoughly claims one job and ends it in some way, or dies: then the session returned is a new one.
func (e *engine) workRoughly(conn *pgx.Conn, session int64, queue int32) (int64, error) {
	c, err := e.tryClaim(conn, session, queue, 1+rand.N(2))
	if err != nil || len(c.jobs) == 0 {
		return session, err
	}
	if rand.N(8) == 0 {
		err := conn.QueryRow(e.ctx, "SELECT pawl.session_end(1::smallint, $1, 'test')", session).Scan(new(bool))
		if err == nil {
			err = conn.QueryRow(e.ctx, "SELECT jobs FROM pawl.session_rescue(1::smallint, $1, 100)", session).Scan(new(int))
		}
		var next int64
		return next, errors.Join(err, conn.QueryRow(e.ctx, "SELECT pawl.session_start(1::smallint, 'test', 'host', 1, 'v0', '15 s')").Scan(&next))
	}
	for i := range c.jobs {
		outcome := []string{"succeeded", "failed", "snoozed", "returned", "discarded", "cancelled"}[rand.N(6)]
		var counted string
		err := conn.QueryRow(e.ctx, `SELECT x.counted[1] FROM pawl.settle(1::smallint, $1, ARRAY[$2::bigint], ARRAY[$3::bigint], ARRAY[$4::int], ARRAY[$5::text]::pawl.outcome[], NULL,
			ARRAY[$6::bigint], NULL) x`, session, c.id, c.nonce, i, outcome, rand.N(2)*3).Scan(&counted)
		if err != nil || counted == "" {
			return session, fmt.Errorf("settle %s: got %q, %w", outcome, counted, err)
		}
	}
	return session, nil
}
