package job_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db/dbtest"
)

// renew is a heartbeat of a process that holds these claims.
func (e *engine) renew(db dbtx, session int64, held ...int64) (alive bool, strays []int64) {
	e.Helper()
	if held == nil {
		held = []int64{}
	}
	err := db.QueryRow(e.ctx, "SELECT alive, stray_claims FROM pawl.session_renew(1::smallint, $1, $2)", session, held).Scan(&alive, &strays)
	if err != nil {
		e.Fatalf("session_renew: %v", err)
	}
	return alive, strays
}

// die ends a session and puts back what it had open, a claim a call. It returns the number of jobs.
func (e *engine) die(session int64) int {
	e.Helper()
	e.exec(e.pool, "SELECT pawl.session_end(1::smallint, $1, 'test')", session)
	total := 0
	for left := true; left; {
		var n int
		if err := e.pool.QueryRow(e.ctx, "SELECT * FROM pawl.session_rescue(1::smallint, $1, 1)", session).Scan(&n, &left); err != nil {
			e.Fatalf("session_rescue: %v", err)
		}
		total += n
	}
	return total
}

// TestEngineClaimsFrom: the heartbeat moves the point from which a rescue looks, but never past a claim with jobs open, nor past one in flight.
func TestEngineClaimsFrom(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		q, other, s := e.queue("q"), e.queue("other"), e.session()
		for range 3 {
			e.enqueue(e.pool, "q")
		}
		done, open, held := e.claim(e.pool, s, q, 1), e.claim(e.pool, s, q, 1), e.claim(e.pool, s, q, 1)
		e.finishAll(e.pool, done)
		e.renew(e.pool, s, held.id)
		from := "SELECT least(claims_clear, claims_open[1]) FROM pawl.session WHERE id = $1"
		if got := get[int64](e, e.pool, from, s); got != open.id {
			return fmt.Errorf("looks from: got %d, want %d, the first with a job open", got, open.id)
		}
		e.finishAll(e.pool, open)
		e.renew(e.pool, s, held.id)
		if got := get[int64](e, e.pool, from, s); got != held.id {
			return fmt.Errorf("looks from: got %d, want %d, the first that is held", got, held.id)
		}
		e.finishAll(e.pool, held)

		e.enqueue(e.pool, "q")
		e.enqueue(e.pool, "other")
		flying, _ := e.begin()
		inFlight := e.claim(flying, s, other, 1)
		after := e.claim(e.pool, s, q, 1)
		e.finishAll(e.pool, after)
		e.renew(e.pool, s)
		e.commit(flying)
		e.renew(e.pool, s, after.id)
		if n := e.die(s); n != 1 {
			return fmt.Errorf("jobs rescued: got %d, want that of claim %d, which was in flight at the heartbeat", n, inFlight.id)
		}
		return nil
	}, without{"the quiet moment", "session_renew", "v_quiet := pg_try_advisory_xact_lock(pawl.session_key(p_session));", "v_quiet := true;"},
		without{"what is open", "session_renew", "ELSIF NOT isempty(pawl.claim_open(p_ns, c.id)) THEN", "ELSIF false THEN"})
}

// TestEngineStrays: the heartbeat names claims the process does not know of, when they have been open for a while.
func TestEngineStrays(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	for range 4 {
		e.enqueue(e.pool, "q")
	}
	held, done, stray, fresh := e.claim(e.pool, s, q, 1), e.claim(e.pool, s, q, 1), e.claim(e.pool, s, q, 1), e.claim(e.pool, s, q, 1)
	e.finishAll(e.pool, done)
	e.exec(e.pool, "UPDATE pawl.claim SET claimed_at = claimed_at - interval '1 minute' WHERE id <> $1", fresh.id)
	if alive, strays := e.renew(e.pool, s, held.id); !alive || !slices.Equal(strays, []int64{stray.id}) {
		t.Errorf("heartbeat: got %v, %v, want true, [%d]", alive, strays, stray.id)
	}
	e.die(s)
	if alive, _ := e.renew(e.pool, s); alive {
		t.Error("heartbeat of an ended session: got alive")
	}
}

// TestEngineHeartbeatShort: a heartbeat over thousands of claims does not make the claims of others wait, though they share a line.
func TestEngineHeartbeatShort(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	e.enqueue(e.pool, "q")
	e.exec(e.pool, `INSERT INTO pawl.claim (nonce, session_id, claimed_at, cursor_xid, cursor_id, cursor_taken, jobs, queue_id, ns, priority, epoch, cursor_epoch,
		job_ids, job_counts, attempts) SELECT 0, $1, now(), '0', 0, 0, 1, $2 + 1000, 1, 2, 0, 0, '{1}', '{1}', '{1}' FROM generate_series(1, 5000)`, s, q)
	e.exec(e.pool, "INSERT INTO pawl.receipt (claim_id, at, ns, outcome, jobs) SELECT id, now(), 1, 'succeeded', '{[0,1)}' FROM pawl.claim")
	// Stops the heartbeat in the middle of its search.
	e.change("session_renew", "v_last := c.id;", "v_last := c.id; IF c.id % 1000 = 0 THEN PERFORM pg_advisory_xact_lock_shared(42); END IF;")
	gate, _ := e.begin()
	e.exec(gate, "SELECT pg_advisory_xact_lock(42)")
	beat, claimer := e.conn(), e.conn()
	done := e.async(func() error {
		_, err := beat.Exec(e.ctx, "SELECT pawl.session_renew(1::smallint, $1, '{}')", s)
		return err
	})
	e.awaitBlocked(beat.PgConn().PID())
	claim := e.async(func() error { _, err := e.tryClaim(claimer, s, q, 1); return err })
	blocked, err := e.blockedOrDone(claimer.PgConn().PID(), claim)
	if blocked || err != nil {
		t.Errorf("a claim during the heartbeat: got blocked %v, %v, want it to go on: it holds the line of everyone", blocked, err)
	}
	e.commit(gate)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestEngineRescueTwice: of two that rescue a session at once the second finds nothing to do.
func TestEngineRescueTwice(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	c := e.one(3)
	e.exec(e.pool, "SELECT pawl.session_end(1::smallint, $1, 'test')", c.session)
	first, _ := e.begin()
	rescue := "SELECT jobs FROM pawl.session_rescue(1::smallint, $1, 100)"
	n := get[int](e, first, rescue, c.session)
	var m int
	_, err := e.second(first, func(conn *pgx.Conn) error { return conn.QueryRow(e.ctx, rescue, c.session).Scan(&m) })
	if err != nil || n != 3 || m != 0 {
		t.Errorf("jobs put back: got %d and %d, %v, want 3 and 0", n, m, err)
	}
	if got := e.drain(e.pool, e.session(), e.queue("q"), 10); !slices.Equal(got, c.jobs) {
		t.Errorf("claimed afterwards: got %v, want %v", got, c.jobs)
	}
}

// TestEngineRescueLarge: what a rescue takes grows with the jobs, not with their square, else it would never come to its end.
func TestEngineRescueLarge(t *testing.T) {
	t.Parallel()
	const jobs = 3000
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	e.exec(e.pool, "SELECT pawl.enqueue(1::smallint, 'q', 'test', '{}') FROM generate_series(1, $1)", jobs)
	e.claim(e.pool, s, q, jobs)
	e.exec(e.pool, "SELECT pawl.session_end(1::smallint, $1, 'test')", s)
	tx, _ := e.begin()
	e.exec(tx, "SET LOCAL statement_timeout = '10s'") // it takes 0.5 s; with the square of the jobs a minute
	if got := get[int](e, tx, "SELECT jobs FROM pawl.session_rescue(1::smallint, $1, 100)", s); got != jobs {
		t.Errorf("jobs put back: got %d, want %d", got, jobs)
	}
}

// TestEngineLongJob: behind a claim that stays open for long, thousands of others do not hide a stray, nor do they make the heartbeat or the rescue read
// them again and again.
func TestEngineLongJob(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	dbtest.NoStatistics(e, e.pool)
	q, s := e.queue("q"), e.session()
	e.enqueueMany(e.pool, "q", 3)
	long := e.claim(e.pool, s, q, 1)
	e.exec(e.pool, `INSERT INTO pawl.claim (nonce, session_id, claimed_at, cursor_xid, cursor_id, cursor_taken, jobs, queue_id, ns, priority, epoch, cursor_epoch,
		job_ids, job_counts, attempts) SELECT -i, $1, now(), '0', 0, 0, 1, $2 + 1000, 1, 2, 0, 0, '{1}', '{1}', '{1}' FROM generate_series(1, 12000) i`, s, q)
	e.exec(e.pool, "INSERT INTO pawl.receipt (claim_id, at, ns, outcome, jobs) SELECT id, now(), 1, 'succeeded', '{[0,1)}' FROM pawl.claim WHERE nonce < 0 AND nonce >= -12000")
	stray, held := e.claim(e.pool, s, q, 1), e.claim(e.pool, s, q, 1)
	e.exec(e.pool, "UPDATE pawl.claim SET claimed_at = claimed_at - interval '1 minute' WHERE id = $1", stray.id)
	e.renew(e.pool, s, long.id, held.id)
	if _, strays := e.renew(e.pool, s, long.id, held.id); !slices.Equal(strays, []int64{stray.id}) {
		t.Errorf("second heartbeat: got strays %v, want [%d]", strays, stray.id)
	}
	if got := dbtest.Buffers(e, e.pool, fmt.Sprintf("SELECT * FROM pawl.session_renew(1::smallint, %d, ARRAY[%d, %d])", s, long.id, held.id)); got > 100 {
		t.Errorf("heartbeat: got %d buffers, want at most 100", got)
	}
	if n := e.die(s); n != 3 {
		t.Errorf("jobs rescued: got %d, want 3", n)
	}
	if got := e.drain(e.pool, e.session(), q, 10); len(got) != 3 {
		t.Errorf("jobs back in line: got %v, want 3", got)
	}
}
