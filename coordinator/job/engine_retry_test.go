package job_test

import (
	"fmt"
	"slices"
	"testing"
)

// TestEngineAttempts: which ends use up an attempt, which do not, and where the job goes.
func TestEngineAttempts(t *testing.T) {
	t.Parallel()
	hour := int64(3600_000)
	for _, test := range []struct {
		outcome     string
		delay       *int64
		attemptsMax int
		counted     string
		state       string
	}{
		{"succeeded", nil, 1, "succeeded", "succeeded 1"},
		{"failed", nil, 2, "failed", "retrying 2"},
		{"failed", new(int64), 2, "failed", "available 2"},
		{"failed", &hour, 2, "failed", "retrying 2"},
		{"failed", nil, 1, "discarded", "discarded 1"},
		{"failed", new(int64), 1, "discarded", "discarded 1"},
		{"lost", nil, 2, "lost", "available 2"},
		{"lost", &hour, 2, "lost", "retrying 2"},
		{"lost", nil, 1, "discarded", "discarded 1"},
		{"snoozed", &hour, 1, "snoozed", "retrying 1"},
		{"snoozed", nil, 1, "snoozed", "available 1"},
		{"returned", nil, 1, "returned", "available 1"},
		{"returned", &hour, 1, "returned", "retrying 1"},
		{"discarded", nil, 9, "discarded", "discarded 1"},
		{"cancelled", nil, 9, "cancelled", "cancelled 1"},
	} {
		t.Run(fmt.Sprint(test.outcome, " of ", test.attemptsMax), func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			q, s := e.queue("q"), e.session()
			e.exec(e.pool, "SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}', p_max_attempts => $1::smallint)", test.attemptsMax)
			c := e.claim(e.pool, s, q, 1)
			if got := e.settle(e.pool, c, 0, test.outcome, test.delay); got != test.counted {
				t.Errorf("outcome: got %q, want %q", got, test.counted)
			}
			if got := e.state(e.pool, c.jobs[0]); got != test.state {
				t.Errorf("state: got %s, want %s", got, test.state)
			}
		})
	}
}

// TestEngineRunOut: a job that always fails runs max_attempts times, and each session that dies with it costs one of them.
func TestEngineRunOut(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	e.exec(e.pool, "SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}', p_max_attempts => 4::smallint)")
	var attempts []int16
	var job int64
	for c := e.claim(e.pool, s, q, 1); c.id != 0; c = e.claim(e.pool, s, q, 1) {
		job, attempts = c.jobs[0], append(attempts, c.attempts...)
		if len(attempts)%2 == 1 {
			e.settle(e.pool, c, 0, "failed", new(int64))
		} else {
			e.die(s)
			s = e.session()
		}
	}
	if want := []int16{1, 2, 3, 4}; !slices.Equal(attempts, want) {
		t.Errorf("attempts: got %v, want %v", attempts, want)
	}
	if got := e.state(e.pool, job); got != "discarded 4" {
		t.Errorf("state: got %s, want discarded 4", got)
	}
	got := all[string](e, e.pool, "SELECT attempt || ' ' || outcome FROM pawl.job_attempts(1::smallint, $1)", job)
	if want := []string{"1 failed", "2 lost", "3 failed", "4 discarded"}; !slices.Equal(got, want) {
		t.Errorf("story: got %v, want %v", got, want)
	}
}

// TestEngineBackoff: the backoff doubles, is capped, and spreads by a fifth to both sides.
func TestEngineBackoff(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	const draws = 200
	for _, test := range []struct {
		attempt          int
		baseMS, capMS    any
		shortest, widest float64 // seconds
	}{
		{1, nil, nil, 0.8, 1.2},
		{2, nil, nil, 1.6, 2.4},
		{5, nil, nil, 12.8, 19.2},
		{12, nil, nil, 1638.4, 2457.6},
		{13, nil, nil, 2880, 4320},
		{25, nil, nil, 2880, 4320},
		{1000, nil, nil, 2880, 4320},
		{3, 50, nil, 0.16, 0.24},
		{3, 50, 100, 0.08, 0.12},
		{1000, 2147483647, 2147483647, 1717986.9, 2576980.4},
		{7, 0, 0, 0, 0},
	} {
		var least, most float64
		err := e.pool.QueryRow(e.ctx, `SELECT min(s), max(s) FROM (SELECT extract(epoch FROM pawl.backoff($1::smallint, $2, $3))::float8 FROM generate_series(1, $4)) x(s)`,
			test.attempt, test.baseMS, test.capMS, draws).Scan(&least, &most)
		if err != nil {
			t.Fatal(err)
		}
		if least < test.shortest || most > test.widest {
			t.Errorf("attempt %d of %v up to %v: got %v to %v s, want %v to %v", test.attempt, test.baseMS, test.capMS, least, most, test.shortest, test.widest)
		}
		if test.widest > 0 && most-least < (test.widest-test.shortest)/2 {
			t.Errorf("attempt %d of %v up to %v: got %v to %v s, want them spread", test.attempt, test.baseMS, test.capMS, least, most)
		}
	}
}

// TestEngineBackoffUsed: a failed job waits for its own backoff, and carries on with the attempt after.
func TestEngineBackoffUsed(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	e.exec(e.pool, "SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}', p_backoff_ms => 100000, p_backoff_ms_max => 150000)")
	for _, want := range [][2]float64{{79, 121}, {119, 181}, {119, 181}} {
		c := e.claim(e.pool, s, q, 1)
		e.settle(e.pool, c, 0, "failed", nil)
		wait := get[float64](e, e.pool, "SELECT extract(epoch FROM run_at - clock_timestamp())::float8 FROM pawl.scheduled")
		if wait < want[0] || wait > want[1] {
			t.Errorf("attempt %d: got %v s to wait, want %v to %v", c.attempts[0], wait, want[0], want[1])
		}
		e.exec(e.pool, "UPDATE pawl.scheduled SET run_at = now()")
		e.exec(e.pool, "SELECT pawl.sweep_due(1::smallint, NULL, 10)")
	}
}

// TestEngineRetryResult: a job that succeeds once more has the result of that time.
func TestEngineRetryResult(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	job := e.enqueue(e.pool, "q")
	for _, result := range []string{"1", "2"} {
		c := e.claim(e.pool, s, q, 1)
		e.exec(e.pool, "SELECT pawl.finish_tx(1::smallint, $1, $2, $3, 0, $4)", s, c.id, c.nonce, result)
		if got := get[string](e, e.pool, "SELECT value::text FROM pawl.result WHERE ns = 1 AND job_id = $1", job); got != result {
			t.Errorf("result: got %s, want %s", got, result)
		}
		e.retry(e.pool, job)
	}
}

// TestEngineRetryAtOnce: a transaction puts a job in line once; a second time is refused by name, and leaves all as it was.
func TestEngineRetryAtOnce(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.queue("q")
	tx, _ := e.begin()
	job := e.enqueue(tx, "q")
	e.cancel(tx, job)
	if _, err := tx.Exec(e.ctx, "SELECT pawl.job_retry(1::smallint, $1)", job); sqlState(err) != "PW005" {
		t.Errorf("retry of what was enqueued in the same transaction: got %v, want PW005", err)
	}
	_ = tx.Rollback(e.ctx)
	if got := e.state(e.pool, job); got != "none 0" {
		t.Errorf("state: got %s, want none", got)
	}
}
