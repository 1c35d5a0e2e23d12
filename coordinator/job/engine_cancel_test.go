package job_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// cancel returns what the job was when it was asked to cancel.
func (e *engine) cancel(db dbtx, job int64) string {
	e.Helper()
	return get[string](e, db, "SELECT coalesce(was::text, 'none') FROM pawl.job_cancel(1::smallint, $1, 'test')", job)
}

func (e *engine) retry(db dbtx, job int64) string {
	e.Helper()
	return get[string](e, db, "SELECT coalesce(was::text, 'none') FROM (SELECT pawl.job_retry(1::smallint, $1)) r(was)", job)
}

// TestEngineCancelClaim: a cancel waits for a claim in flight, and a claim for a cancel, so that what was cancelled never runs.
func TestEngineCancelClaim(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		q, s := e.queue("q"), e.session()
		a := e.enqueue(e.pool, "q")
		claim, _ := e.begin()
		e.claim(claim, s, q, 1)
		var was string
		_, err := e.second(claim, func(conn *pgx.Conn) error { was = e.cancel(conn, a); return nil })
		if err != nil || was != "running" {
			return fmt.Errorf("cancel behind a claim: got %s, %v, want running", was, err)
		}
		b := e.enqueue(e.pool, "q")
		cancel, _ := e.begin()
		if was := e.cancel(cancel, b); was != "available" {
			return fmt.Errorf("cancel before a claim: got %s, want available", was)
		}
		var c claimed
		_, err = e.second(cancel, func(conn *pgx.Conn) (err error) { c, err = e.tryClaim(conn, s, q, 1); return err })
		if err != nil || len(c.jobs) != 0 {
			return fmt.Errorf("claim behind a cancel: got %v, %v, want no jobs", c.jobs, err)
		}
		if got := e.state(e.pool, b); got != "cancelled 1" {
			return fmt.Errorf("the cancelled job: got %s, want cancelled 1", got)
		}
		return nil
	}, without{"the line's lock in job_cancel", "job_withdraw", "PERFORM pg_advisory_xact_lock(pawl.line_key(p_ns, j.queue_id, j.priority));", ""},
		without{"the line's lock in claim", "claim", "PERFORM pawl.line_lock(p_ns, p_queue, p_priority);", ""},
		without{"pruning", "claim", "SELECT p.jobs, p.job_ids, p.job_counts, p.attempts INTO v_n, v_ids, v_counts, v_tries FROM pawl.claim_prune(p_ns, v_ids, v_counts, v_tries) p;", "NULL;"})
}

// TestEngineCancelEnding: a cancel that meets a failing attempt, or a rescue, waits for it: then the job waits for its retry, which is cancelled.
// Answered "running" it would be asked of an attempt that is over, and the job would go on.
func TestEngineCancelEnding(t *testing.T) {
	t.Parallel()
	var none int64
	for name, end := range map[string]func(e *engine, tx pgx.Tx, c claimed){
		"failed":   func(e *engine, tx pgx.Tx, c claimed) { e.settle(tx, c, 0, "failed", nil) },
		"snoozed":  func(e *engine, tx pgx.Tx, c claimed) { e.settle(tx, c, 0, "snoozed", &none) },
		"returned": func(e *engine, tx pgx.Tx, c claimed) { e.settle(tx, c, 0, "returned", &none) },
		"rescued": func(e *engine, tx pgx.Tx, c claimed) {
			e.exec(e.pool, "SELECT pawl.session_end(1::smallint, $1, 'test')", c.session)
			e.exec(tx, "SELECT pawl.session_rescue(1::smallint, $1, 100)", c.session)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			c := e.one(1)
			tx, _ := e.begin()
			end(e, tx, c)
			var was string
			if _, err := e.second(tx, func(conn *pgx.Conn) error { was = e.cancel(conn, c.jobs[0]); return nil }); err != nil {
				t.Fatal(err)
			}
			if got := e.state(e.pool, c.jobs[0]); !strings.HasPrefix(got, "cancelled") {
				t.Errorf("after a cancel that said %q: got %s, want cancelled", was, got)
			}
			other := e.enqueue(e.pool, "q") // and one that is cancelled while it waits, so that the claim prunes
			e.cancel(e.pool, other)
			if got := e.drain(e.pool, e.session(), e.queue("q"), 10); len(got) != 0 {
				t.Errorf("claimed: got %v, want nothing", got)
			}
			if got := e.state(e.pool, c.jobs[0]); got == "none 0" {
				t.Error("the job has no state any more")
			}
		})
	}
}

// TestEngineCancelRunning: a running job that is asked to cancel is cancelled unless it succeeds, whatever else its end is.
func TestEngineCancelRunning(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		q, s := e.queue("q"), e.session()
		outcomes := []string{"succeeded", "failed", "snoozed", "returned", "lost", "discarded"}
		e.enqueueMany(e.pool, "q", len(outcomes)+1)
		c := e.claim(e.pool, s, q, len(outcomes)+1)
		for _, job := range c.jobs {
			if was := e.cancel(e.pool, job); was != "running" {
				return fmt.Errorf("cancel: got %s, want running", was)
			}
			if was := e.cancel(e.pool, job); was != "running" {
				return fmt.Errorf("second cancel: got %s, want running", was)
			}
		}
		asked := all[int](e, e.pool, "SELECT unnest(cancel_ordinals) FROM pawl.session_renew(1::smallint, $1, ARRAY[$2::bigint]) ORDER BY 1", s, c.id)
		if want := []int{0, 1, 2, 3, 4, 5, 6}; !slices.Equal(asked, want) {
			return fmt.Errorf("asked by the heartbeat: got %v, want %v", asked, want)
		}
		for i, outcome := range outcomes {
			want := "cancelled"
			if outcome == "succeeded" || outcome == "discarded" {
				want = outcome
			}
			if got := e.settle(e.pool, c, i, outcome, nil); got != want {
				return fmt.Errorf("%s: got %q, want %q", outcome, got, want)
			}
			if got := e.state(e.pool, c.jobs[i]); got != want+" 1" {
				return fmt.Errorf("state after %s: got %s, want %s 1", outcome, got, want)
			}
		}
		e.die(s)
		if got := e.state(e.pool, c.jobs[len(outcomes)]); got != "cancelled 1" {
			return fmt.Errorf("state after the rescue: got %s, want cancelled 1", got)
		}
		return nil
	}, without{"the request", "attempt_end", "AND EXISTS (SELECT FROM pawl.cancellation c", "AND false AND EXISTS (SELECT FROM pawl.cancellation c"})
}

// TestEngineCancelStates: what a cancel answers, and the state after it, for each state a job can be in.
func TestEngineCancelStates(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	finished := func(outcome string) int64 {
		id := e.enqueue(e.pool, "q")
		e.settle(e.pool, e.claim(e.pool, s, q, 1), 0, outcome, nil)
		return id
	}
	scheduled := get[int64](e, e.pool, "SELECT pawl.enqueue(1::smallint, 'q', 'test', '{}', p_run_at => now() + interval '1 hour')")
	for _, test := range []struct {
		job       int64
		was, then string
	}{
		{12345, "none", "none 0"},
		{scheduled, "scheduled", "cancelled 1"},
		{finished("failed"), "retrying", "cancelled 2"},
		{finished("succeeded"), "succeeded", "succeeded 1"},
		{finished("discarded"), "discarded", "discarded 1"},
		{finished("cancelled"), "cancelled", "cancelled 1"},
		{e.enqueue(e.pool, "q"), "available", "cancelled 1"},
	} {
		if was := e.cancel(e.pool, test.job); was != test.was {
			t.Errorf("cancel of a job that is %s: got %s", test.was, was)
		}
		if got := e.state(e.pool, test.job); got != test.then {
			t.Errorf("state after the cancel of a job that was %s: got %s, want %s", test.was, got, test.then)
		}
		if was := e.cancel(e.pool, test.job); was != strings.Fields(test.then)[0] {
			t.Errorf("second cancel of a job that was %s: got %s, want %s", test.was, was, test.then)
		}
	}
}

// TestEngineRetryStates: the same for a retry; two at once put the job in line once.
func TestEngineRetryStates(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		q, s := e.queue("q"), e.session()
		finished := func(outcome string) int64 {
			id := e.enqueue(e.pool, "q")
			e.settle(e.pool, e.claim(e.pool, s, q, 1), 0, outcome, nil)
			return id
		}
		cancelled := e.enqueue(e.pool, "q")
		e.cancel(e.pool, cancelled)
		e.claim(e.pool, s, q, 1)
		for _, test := range []struct {
			job       int64
			was, then string
		}{
			{12345, "none", "none 0"},
			{get[int64](e, e.pool, "SELECT pawl.enqueue(1::smallint, 'q', 'test', '{}', p_run_at => now() + interval '1 hour')"), "scheduled", "available 1"},
			{finished("failed"), "retrying", "available 2"},
			{finished("succeeded"), "succeeded", "available 2"},
			{finished("discarded"), "discarded", "available 2"},
			{finished("cancelled"), "cancelled", "available 2"},
			{cancelled, "cancelled", "available 2"},
		} {
			first, _ := e.begin()
			was := e.retry(first, test.job)
			var again string
			_, err := e.second(first, func(conn *pgx.Conn) error { again = e.retry(conn, test.job); return nil })
			if err != nil || was != test.was {
				return fmt.Errorf("retry of a job that is %s: got %s, %v", test.was, was, err)
			}
			if again != strings.Fields(test.then)[0] {
				return fmt.Errorf("second retry of a job that was %s: got %s, want %s", test.was, again, test.then)
			}
			if got := e.state(e.pool, test.job); got != test.then {
				return fmt.Errorf("state after the retry of a job that was %s: got %s, want %s", test.was, got, test.then)
			}
		}
		if got := e.drain(e.pool, s, q, 10); len(got) != 6 {
			return fmt.Errorf("claimed: got %v, want six jobs", got)
		}
		return nil
	}, without{"the line's lock", "job_retry", "PERFORM pg_advisory_xact_lock(pawl.line_key(p_ns, j.queue_id, j.priority));", ""})
}

// TestEngineStoryOfCancelled: a place in line that was cancelled has no claim, also when one claim passes it and covers the job's retry.
func TestEngineStoryOfCancelled(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	job := e.enqueue(e.pool, "q")
	e.cancel(e.pool, job)
	e.retry(e.pool, job)
	c := e.claim(e.pool, s, q, 10)
	e.finishAll(e.pool, c)
	got := all[string](e, e.pool, "SELECT attempt || ' ' || coalesce(outcome::text, 'none') FROM pawl.job_attempts(1::smallint, $1)", job)
	if want := []string{"1 none", "2 succeeded"}; !slices.Equal(got, want) {
		t.Errorf("attempts: got %v, want %v", got, want)
	}
}

// TestEngineStoryOfStraggler: a job that was claimed long after the line had passed it, by very many claims, is found to be running.
func TestEngineStoryOfStraggler(t *testing.T) {
	t.Parallel()
	const between = 120_000
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	late, _ := e.begin()
	job := e.enqueue(late, "q")
	e.enqueue(e.pool, "q")
	e.claim(e.pool, s, q, 1)
	// As if so many claims had been made meanwhile: each lists the straggler.
	e.exec(e.pool, `INSERT INTO pawl.claim (nonce, session_id, claimed_at, cursor_xid, cursor_id, cursor_taken, jobs, queue_id, ns, priority, epoch, cursor_epoch,
			late_xid, late_id, late_taken, job_ids, job_counts, attempts)
		SELECT nonce, session_id, claimed_at, cursor_xid, cursor_id, cursor_taken, 0, queue_id, ns, priority, epoch, cursor_epoch, late_xid, late_id, late_taken, '{}', '{}', '{}'
		FROM pawl.claim CROSS JOIN generate_series(1, $1)`, between)
	e.commit(late)
	if got := e.claim(e.pool, s, q, 1); !slices.Equal(got.jobs, []int64{job}) {
		t.Fatalf("claimed: got %v, want %d", got.jobs, job)
	}
	if got := e.state(e.pool, job); got != "running 1" {
		t.Errorf("state: got %s, want running 1", got)
	}
	if got := e.cancel(e.pool, job); got != "running" {
		t.Errorf("cancel: got %s, want running", got)
	}
}
