package job_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
)

// sweepSessions returns the sessions to be rescued; swept is false when another was at it.
func (e *engine) sweepSessions(db dbtx) (sessions []int64, swept bool) {
	e.Helper()
	var ids *[]int64
	if err := db.QueryRow(e.ctx, "SELECT pawl.sweep_sessions(1::smallint, 100)").Scan(&ids); err != nil {
		e.Fatalf("sweep_sessions: %v", err)
	}
	if ids == nil {
		return nil, false
	}
	return *ids, true
}

// swept makes as if the sweep had run without a break for a day, last p_ago ago.
func (e *engine) swept(ago string) {
	e.Helper()
	e.sweepSessions(e.pool)
	e.exec(e.pool, "UPDATE pawl.sweep SET ran_at = clock_timestamp() - $1::interval, resumed_at = now() - interval '1 day'", ago)
	// Postgres runs since the test began; so that it counts as up for long:
	if text := get[string](e, e.pool, "SELECT pg_get_functiondef('pawl.sweep_sessions'::regproc)"); e.changed["sweep_sessions"] == "" && len(text) > 0 {
		e.change("sweep_sessions", "pg_postmaster_start_time()", "timestamptz '-infinity'")
	}
}

// expire lets the time of a session be over for that long.
func (e *engine) expire(session int64, by string) {
	e.Helper()
	e.exec(e.pool, "UPDATE pawl.session SET expires_at = clock_timestamp() - $2::interval WHERE id = $1", session, by)
}

// TestEngineSweepSessions: a session ends when it has missed its heartbeat, and not before; its jobs go back in line.
func TestEngineSweepSessions(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	c := e.one(2)
	alive := e.session()
	e.swept("5 s")
	if got, _ := e.sweepSessions(e.pool); len(got) != 0 {
		t.Errorf("sessions to rescue: got %v, want none", got)
	}
	e.expire(c.session, "1 ms")
	if got, _ := e.sweepSessions(e.pool); !slices.Equal(got, []int64{c.session}) {
		t.Errorf("sessions to rescue: got %v, want [%d]", got, c.session)
	}
	if got, _ := e.sweepSessions(e.pool); !slices.Equal(got, []int64{c.session}) {
		t.Errorf("sessions to rescue, again: got %v, want [%d] until it is", got, c.session)
	}
	if n := e.die(c.session); n != 2 {
		t.Errorf("jobs rescued: got %d, want 2", n)
	}
	if got, _ := e.sweepSessions(e.pool); len(got) != 0 {
		t.Errorf("sessions to rescue after the rescue: got %v, want none", got)
	}
	if beats, _ := e.renew(e.pool, alive); !beats {
		t.Error("the other session: got ended")
	}
}

// TestEngineSweepGrace: after an outage of the sweeps or of Postgres nobody's session ends before it had a ttl to beat again.
func TestEngineSweepGrace(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		s := e.session()
		e.swept("20 s") // it was away
		e.expire(s, "19 s")
		if got, _ := e.sweepSessions(e.pool); len(got) != 0 {
			return fmt.Errorf("sessions to rescue at the first sweep: got %v, want none", got)
		}
		e.exec(e.pool, "UPDATE pawl.sweep SET resumed_at = resumed_at - interval '14 s'")
		if got, _ := e.sweepSessions(e.pool); len(got) != 0 {
			return fmt.Errorf("sessions to rescue within their ttl: got %v, want none", got)
		}
		e.exec(e.pool, "UPDATE pawl.sweep SET resumed_at = resumed_at - interval '2 s'")
		if got, _ := e.sweepSessions(e.pool); !slices.Equal(got, []int64{s}) {
			return fmt.Errorf("sessions to rescue after their ttl: got %v, want [%d]", got, s)
		}
		return nil
	}, without{"the grace", "sweep_sessions", "AND v_resumed + s.ttl < v_started", ""},
		without{"remembering the outage", "sweep_report", "THEN EXCLUDED.ran_at ELSE sweep.resumed_at END", "THEN sweep.resumed_at ELSE sweep.resumed_at END"})
}

// TestEngineSweepGraceShort: a short ttl is no reason to end all sessions after an outage that is short, too, but longer than it.
func TestEngineSweepGraceShort(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	s := get[int64](e, e.pool, "SELECT pawl.session_start(1::smallint, 'test', 'host', 1, 'v0', '3 s')")
	e.swept("12 s") // Postgres was away for some ten seconds
	e.expire(s, "9 s")
	if got, _ := e.sweepSessions(e.pool); len(got) != 0 {
		t.Errorf("sessions to rescue right after the outage: got %v, want none", got)
	}
}

// TestEngineSweepStart: the first sweep ever, and one after a start of Postgres, end nobody's session.
func TestEngineSweepStart(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	s := e.session()
	e.expire(s, "1 hour")
	if got, swept := e.sweepSessions(e.pool); !swept || len(got) != 0 {
		t.Errorf("first sweep: got %v, %v, want none", got, swept)
	}
}

// TestEngineSweepTwice: of two sweeps at once one does it, the other passes; a session with a claim in flight is left to the next.
func TestEngineSweepTwice(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	e.enqueue(e.pool, "q")
	e.swept("5 s")
	e.expire(s, "1 ms")
	flying, _ := e.begin()
	e.claim(flying, s, q, 1)
	if got, _ := e.sweepSessions(e.pool); len(got) != 0 {
		t.Errorf("with a claim in flight: got %v, want none", got)
	}
	e.commit(flying)
	first, _ := e.begin()
	if got, _ := e.sweepSessions(first); !slices.Equal(got, []int64{s}) {
		t.Errorf("first sweeper: got %v, want [%d]", got, s)
	}
	if _, swept := e.sweepSessions(e.pool); swept {
		t.Error("second sweeper: got a sweep, want none")
	}
	e.commit(first)
	if n := e.die(s); n != 1 {
		t.Errorf("jobs rescued: got %d, want 1", n)
	}
}

// TestEngineDue: due jobs are moved once, by one of two sweepers; the sweep says which queues, when the next is due, and how far it went.
func TestEngineDue(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q := e.queue("q")
	for _, in := range []string{"-3 s", "-2 s", "-1 s", "1 hour"} {
		e.exec(e.pool, "SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}', p_run_at => now() + interval '1 day')")
		e.exec(e.pool, "UPDATE pawl.scheduled SET run_at = now() + $1::interval WHERE run_at > now() + interval '2 hours'", in)
	}
	first, _ := e.begin()
	if n := get[int](e, first, "SELECT moved FROM pawl.sweep_due(1::smallint, NULL, 2)"); n != 2 {
		t.Errorf("first sweeper: got %d moved, want 2", n)
	}
	if got := get[*int](e, e.pool, "SELECT moved FROM pawl.sweep_due(1::smallint, NULL, 2)"); got != nil {
		t.Errorf("second sweeper: got %d moved, want NULL", *got)
	}
	e.commit(first)
	var moved int
	var queues []int32
	var next float64
	err := e.pool.QueryRow(e.ctx, "SELECT moved, queue_ids, extract(epoch FROM next_in)::float8 FROM pawl.sweep_due(1::smallint, NULL, 2)").Scan(&moved, &queues, &next)
	if err != nil || moved != 1 || !slices.Equal(queues, []int32{q}) || next < 3500 || next > 3600 {
		t.Errorf("third sweep: got %d moved, queues %v, next in %v s, %v, want 1, [%d], an hour", moved, queues, next, err, q)
	}
	if got := e.drain(e.pool, e.session(), q, 10); len(got) != 3 {
		t.Errorf("claimed: got %v, want three jobs", got)
	}
}

// TestEngineDueStraggler: a job scheduled by a transaction that commits after its time is behind the point up to which the sweep has looked; a pass from the front finds it.
func TestEngineDueStraggler(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q := e.queue("q")
	late, _ := e.begin()
	schedule := func(db dbtx, ago string) int64 {
		id := get[int64](e, db, "SELECT pawl.enqueue(1::smallint, 'q', 'test', '{}', p_run_at => now() + interval '1 h')")
		e.exec(db, "UPDATE pawl.scheduled SET run_at = clock_timestamp() - $2::interval WHERE job_id = $1", id, ago)
		return id
	}
	job := schedule(late, "2 s")
	schedule(e.pool, "1 s")
	floor := get[string](e, e.pool, "SELECT moved_to::text FROM pawl.sweep_due(1::smallint, NULL, 10)")
	e.commit(late)
	if n := get[int](e, e.pool, "SELECT moved FROM pawl.sweep_due(1::smallint, $1::text::timestamptz, 10)", floor); n != 0 {
		t.Errorf("from where the last sweep ended: got %d moved, want 0 (else this test proves nothing)", n)
	}
	if n := get[int](e, e.pool, "SELECT moved FROM pawl.sweep_due(1::smallint, NULL, 10)"); n != 1 {
		t.Errorf("from the front: got %d moved, want 1", n)
	}
	if got := e.drain(e.pool, e.session(), q, 10); len(got) != 2 || got[1] != job {
		t.Errorf("claimed: got %v, want two jobs, %d the last", got, job)
	}
}

// TestEngineDueCancel: a cancel and a move of the same job at once: it is cancelled and does not run, or it was moved and is cancelled in line.
func TestEngineDueCancel(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q := e.queue("q")
	schedule := func() int64 {
		id := get[int64](e, e.pool, "SELECT pawl.enqueue(1::smallint, 'q', 'test', '{}', p_run_at => now() + interval '1 hour')")
		e.exec(e.pool, "UPDATE pawl.scheduled SET run_at = now() - interval '1 s'")
		return id
	}
	a := schedule()
	sweep, _ := e.begin()
	e.exec(sweep, "SELECT pawl.sweep_due(1::smallint, NULL, 10)")
	var was string
	if _, err := e.second(sweep, func(conn *pgx.Conn) error { was = e.cancel(conn, a); return nil }); err != nil || was != "available" {
		t.Errorf("cancel behind the sweep: got %s, %v, want available", was, err)
	}
	b := schedule()
	cancel, _ := e.begin()
	if was := e.cancel(cancel, b); was != "scheduled" {
		t.Errorf("cancel before the sweep: got %s, want scheduled", was)
	}
	if n := get[int](e, e.pool, "SELECT moved FROM pawl.sweep_due(1::smallint, NULL, 10)"); n != 0 {
		t.Errorf("sweep during the cancel: got %d moved, want 0", n)
	}
	e.commit(cancel)
	if got := e.drain(e.pool, e.session(), q, 10); len(got) != 0 {
		t.Errorf("claimed: got %v, want nothing", got)
	}
	for _, id := range []int64{a, b} {
		if got := e.state(e.pool, id); got != "cancelled 1" {
			t.Errorf("state of %d: got %s, want cancelled 1", id, got)
		}
	}
}
