package saga_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// lined declares a step whose jobs, and compensations, are in a queue.
func lined(d *saga.Definition[order], name, queue string, opts ...saga.StepOption) saga.AnyStep {
	return saga.Step[paid](d, name, append(opts, saga.Queue(queue))...)
}

// id is that of a saga inside.
func (e *engine) id(key string) int64 {
	e.Helper()
	return value[int64](e, "SELECT id FROM pawl.saga WHERE ns = 1 AND key = $1", key)
}

// withdraw calls saga_withdraw beside the test, on a connection of its own, and gives the id of its backend.
func (e *engine) withdraw(key string) (pid uint32, done <-chan error) {
	e.Helper()
	return e.beside("SELECT pawl.saga_withdraw(1::smallint, $1)", e.id(key))
}

// beside runs a statement beside the test, on a connection of its own, and gives the id of its backend.
func (e *engine) beside(sql string, args ...any) (pid uint32, done <-chan error) {
	e.Helper()
	c, over := e.conns(1)[0], make(chan error, 1)
	go func() {
		_, err := c.Exec(e.ctx, sql, args...)
		over <- err
	}()
	return c.PgConn().PID(), over
}

// hold takes advisory locks in a transaction of its own.
func (e *engine) hold(keys ...string) pgx.Tx {
	e.Helper()
	tx, err := e.conns(1)[0].Begin(e.ctx)
	if err != nil {
		e.Fatal(err)
	}
	for _, key := range keys {
		if _, err := tx.Exec(e.ctx, "SELECT pg_advisory_xact_lock("+key+")"); err != nil {
			e.Fatalf("%s: %v", key, err)
		}
	}
	return tx
}

func (e *engine) commit(tx pgx.Tx) {
	e.Helper()
	if err := tx.Commit(e.ctx); err != nil {
		e.Fatalf("commit: %v", err)
	}
}

// lineKey is the lock of a queue's line.
func (e *engine) lineKey(queue string) string {
	e.Helper()
	return fmt.Sprintf("pawl.line_key(1::smallint, %d, 2::smallint)", value[int32](e, "SELECT id FROM pawl.queue WHERE ns = 1 AND name = $1", queue))
}

func claimKey(a attempt) string { return fmt.Sprintf("pawl.claim_key(%d)", a.claim) }

// A pivot that may have been done is retried by an operator after the saga's time was over, and then the saga is cancelled: the new job is not withdrawn, though it has never begun.
func TestEngine_withdrawRetriedPivot(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		d := saga.Define[order]("order", saga.Deadline(time.Hour))
		a := lined(d, "a", engineQueue)
		lined(d, "b", engineQueue, saga.After(a), saga.Pivot(), saga.MaxAttempts(1))
		registered(e, e.pool, d)
		e.mustStart("order", "1")
		e.mustSettle("succeeded", e.mustClaim(1, "a")...)
		e.mustSettle("failed", e.mustClaim(1, "b")...)
		e.exec("UPDATE pawl.saga_timer SET at = now() - interval '1 s' WHERE step = 0")
		e.exec("SELECT pawl.sweep_sagas(1::smallint, 100)")
		if !value[bool](e, "SELECT pawl.saga_forward(1::smallint, $1)", e.id("1")) {
			return errors.New("the deadline has turned a saga whose pivot may have been done")
		}
		e.mustAct("1", "retried", nil)
		if got := e.state("1"); got != "running" {
			return fmt.Errorf("state after the retry: got %s, want running: whether it goes forward is for the pivot to say", got)
		}
		e.mustAct("1", "cancelled", nil)
		e.mustSweep()
		as, err := e.claim(e.pool, 10)
		if err != nil || len(as) != 1 || as[0].name() != "b" {
			return fmt.Errorf("in line: got %v, %w, want the pivot: nobody knows whether it was done", as, err)
		}
		e.mustSettle("succeeded", as...)
		if got := e.state("1"); got != "succeeded" {
			return fmt.Errorf("state: got %s, want succeeded", got)
		}
		return e.none()
	}, without{"no deadline turns a saga whose pivot is stuck", "saga_apply", "s.backward OR (s.ok | s.stuck) & d.pivot = 0", "s.backward OR s.ok & d.pivot = 0"}, without{
		"a pivot that has begun before is left alone", "saga_withdraw", "FROM unnest(w.jobs) b CROSS JOIN LATERAL pawl.job_attempts(p_ns, b) a", "FROM pawl.job_attempts(p_ns, w.job) a",
	})
}

// A saga is forced to its end while its jobs are being withdrawn: neither waits for the other, and what was asked for last is done.
func TestEngine_withdrawForced_timer(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		d := saga.Define[order]("order")
		lined(d, "a", engineQueue)
		lined(d, "b", engineQueue)
		registered(e, e.pool, d)
		e.mustStart("order", "1")
		running := e.mustClaim(1)
		e.mustAct("1", "cancelled", nil)
		tx := e.hold(fmt.Sprintf("pawl.saga_lock_key(%d)", e.id("1")))
		pid, done := e.withdraw("1")
		e.awaitBlocked(pid)
		err := e.act(tx, "1", "forced", nil)
		if err == nil {
			e.commit(tx)
		} else {
			_ = tx.Rollback(e.ctx)
		}
		if err := errors.Join(err, <-done); err != nil {
			return err
		}
		if n := value[int](e, "SELECT count(*) FROM pawl.saga_timer WHERE step = -1"); n != 1 {
			return fmt.Errorf("the withdrawal that the end by force asked for: got %d, want 1", n)
		}
		e.mustSweep()
		e.mustSettle("failed", running...)
		if n := value[int](e, "SELECT count(*) FROM pawl.saga_timer"); n != 0 {
			return fmt.Errorf("left to be withdrawn: got %d, want none", n)
		}
		return e.none()
	}, without{"the request is deleted last", "saga_withdraw", "SELECT y.* INTO s FROM pawl.saga_now", "DELETE FROM pawl.saga_timer y WHERE y.ns = p_ns AND y.saga_id = p_saga AND y.step = -1; SELECT y.* INTO s FROM pawl.saga_now"},
		without{"only what was asked for is deleted", "saga_withdraw", "AND y.step = -1 AND y.at = v_at", "AND y.step = -1"})
}

// Two sagas that have jobs in the same lines, in opposite orders, are withdrawn at once.
func TestEngine_withdrawCrossedLines(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		for _, x := range []struct{ name, first, second string }{{"there", "x", "y"}, {"back", "y", "x"}} {
			d := saga.Define[order](x.name)
			lined(d, "a", x.first)
			lined(d, "b", x.second)
			registered(e, e.pool, d)
			e.mustStart(x.name, x.name)
			e.mustAct(x.name, "cancelled", nil)
		}
		tx := e.hold(e.lineKey("x"), e.lineKey("y"))
		there, thereDone := e.withdraw("there")
		back, backDone := e.withdraw("back")
		e.awaitBlocked(there)
		e.awaitBlocked(back)
		e.commit(tx)
		if err := errors.Join(<-thereDone, <-backDone); err != nil {
			return err
		}
		for _, key := range []string{"there", "back"} {
			if got := e.state(key); got != "compensated" {
				return fmt.Errorf("%s: got %s, want compensated", key, got)
			}
		}
		return nil
	}, without{"lines are locked in order", "saga_withdraw", "PERFORM pg_advisory_xact_lock(l.key)", "PERFORM l.key"})
}

// A saga is withdrawn whose jobs run in claims of the opposite order of its steps, while these are settled.
func TestEngine_withdrawCrossedClaims(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		d := saga.Define[order]("order")
		lined(d, "a", "x")
		lined(d, "b", engineQueue)
		registered(e, e.pool, d)
		e.mustStart("order", "1")
		b := e.mustClaim(1, "b")[0] // the older claim
		line := e.line
		e.line = value[int32](e, "SELECT id FROM pawl.queue WHERE ns = 1 AND name = 'x'")
		a := e.mustClaim(1, "a")[0]
		e.line = line
		e.mustAct("1", "cancelled", nil)
		tx := e.hold(claimKey(a), claimKey(b))
		withdraw, withdrawn := e.withdraw("1")
		e.awaitBlocked(withdraw)
		c, settled := e.conns(1)[0], make(chan error, 1)
		go func() {
			_, _, err := e.settle(c, ends("refused", a, b)...)
			settled <- err
		}()
		e.awaitBlocked(c.PgConn().PID())
		e.commit(tx)
		if err := errors.Join(<-withdrawn, <-settled); err != nil {
			return err
		}
		if got := e.state("1"); got != "compensated" {
			return fmt.Errorf("state: got %s, want compensated", got)
		}
		return nil
	}, without{"claims are locked in order", "saga_withdraw", "ORDER BY x.claim_id, u.step, u.job", "ORDER BY u.step"})
}

// The lock of a saga that took it too late, as it ended, is free when the saga was removed.
func TestEngine_holdOfRemoved(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		d := saga.Define[order]("order")
		lined(d, "a", engineQueue)
		registered(e, e.pool, d)
		e.mustStart("order", "1")
		e.mustStart("order", "2")
		tx, err := e.conns(1)[0].Begin(e.ctx)
		if err != nil {
			e.Fatal(err)
		}
		if _, err := tx.Exec(e.ctx, "SELECT pawl.saga_hold(1::smallint, '1', 'account:7')"); err != nil {
			return err
		}
		e.mustAct("1", "forced", nil)
		e.commit(tx)
		e.exec("UPDATE pawl.saga SET started_at = now() - interval '1 d' WHERE key = '1'")
		e.exec("UPDATE pawl.saga_event SET at = now() - interval '1 d' WHERE saga_id = $1", e.id("1"))
		if n := value[int](e, "SELECT removed FROM pawl.sweep_sagas_old(1::smallint, '1 h', 0, 100)"); n != 1 {
			e.Fatalf("sagas removed: got %d, want 1", n)
		}
		var who *string
		if err := e.pool.QueryRow(e.ctx, "SELECT pawl.saga_hold(1::smallint, '2', 'account:7')").Scan(&who); err != nil || who != nil {
			return fmt.Errorf("the lock: got %v, %w, want it to be free", who, err)
		}
		return nil
	}, without{"what is removed holds nothing", "sweep_sagas_old", "DELETE FROM pawl.saga_hold e WHERE -e.ns = -p_ns AND e.saga_id = x.id;", ""})
}

// withdrawAll sweeps until nothing is left to be withdrawn.
func (e *engine) withdrawAll() error {
	e.Helper()
	const callsMax = 20
	for range callsMax {
		e.mustSweep()
		if value[int](e, "SELECT count(*) FROM pawl.saga_timer WHERE step = -1") == 0 {
			return nil
		}
	}
	return fmt.Errorf("after %d calls there is still something to be withdrawn", callsMax)
}

// The units of a step that wait in line, or for their time, do not run once the saga has turned back; the saga compensates when those have answered that ran.
func TestEngine_withdrawUnits(t *testing.T) {
	t.Parallel()
	const units, most = 550, 200
	prove(t, func(e *engine) error {
		d := saga.Define[order]("order")
		engineEach(d, "parts")
		lined(d, "b", "b")
		registered(e, e.pool, d)
		e.mustStart("order", "1")
		e.split("parts", units)
		e.mustSettle("succeeded", e.mustClaim(5)...)
		e.mustSettle("failed", e.mustClaim(2)...) // they wait for their time
		running := e.mustClaim(3)
		first := e.session
		e.begin()
		other := e.mustClaim(1)
		line := e.line
		e.line = value[int32](e, "SELECT id FROM pawl.queue WHERE ns = 1 AND name = 'b'")
		e.mustSettle("refused", e.mustClaim(1, "b")...)
		e.line = line
		e.mustSweep()
		if n := value[int](e, "SELECT max((detail->>'over')::int) FROM pawl.saga_event WHERE what = 'units' AND detail->>'error' LIKE 'withdrawn%'"); n > most {
			return fmt.Errorf("units withdrawn by one call: got %d, want at most %d", n, most)
		}
		if err := errors.Join(e.withdrawAll(), e.none()); err != nil {
			return err
		}
		if n := value[int](e, "SELECT count(*) FROM pawl.scheduled"); n != 0 {
			return fmt.Errorf("units that wait for their time: got %d, want none", n)
		}
		if got := e.state("1"); got != "compensating" {
			return fmt.Errorf("state while units run: got %s, want compensating", got)
		}
		over, bad := value[int](e, "SELECT max(units_over) FROM pawl.saga_event"), value[int](e, "SELECT max(units_bad) FROM pawl.saga_event")
		if over != units-4 || bad != units-5-4 {
			return fmt.Errorf("units over and bad: got %d and %d, want %d and %d", over, bad, units-4, units-5-4)
		}
		if f := e.forgotten(); len(f) > 0 {
			return fmt.Errorf("forgotten: %v", f)
		}
		e.mustSettle("failed", other...) // cancelled, for they were asked
		now := e.session
		e.session = first
		e.mustSettle("failed", running[1:]...)
		e.mustSettle("succeeded", running[0])
		e.session = now
		if got := e.runThrough(""); !slices.Equal(got, []string{"parts/undo"}) {
			return fmt.Errorf("then ran %v, want [parts/undo]", got)
		}
		return e.expect("1", "compensated", "undone parts")
	}, without{"each call goes on where the last one came to", "saga_withdraw", "SET seen = v_last", "SET seen = 0"},
		without{"a call withdraws so many", "saga_withdraw", "LIMIT c_units_max", ""},
		without{"those that run are not over yet", "saga_withdraw", "'retrying', 'available');", "'retrying', 'available', 'running');"})
}

// What was forced to its end leaves no units in line either.
func TestEngine_withdrawUnitsForced(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	d := saga.Define[order]("order")
	engineEach(d, "parts", saga.After(engineStep(d, "p", saga.Pivot())))
	registered(e, e.pool, d)
	e.mustStart("order", "1")
	e.mustSettle("succeeded", e.mustClaim(1, "p")...)
	e.split("parts", 300)
	running := e.mustClaim(1)
	e.mustAct("1", "forced", nil)
	if err := e.withdrawAll(); err != nil {
		t.Error(err)
	}
	if n := value[int](e, "SELECT count(*) FROM pawl.cancellation WHERE session_id = $1", e.session); n != 1 {
		t.Errorf("units asked to stop: got %d, want 1", n)
	}
	e.mustSettle("failed", running...)
	if err := e.expect("1", "forced"); err != nil {
		t.Error(err)
	}
}

// While units are withdrawn in parts, the saga is forced: what was asked for last begins anew.
func TestEngine_withdrawUnitsAnew(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		d := saga.Define[order]("order")
		engineEach(d, "parts")
		lined(d, "a", engineQueue)
		registered(e, e.pool, d)
		e.mustStart("order", "1")
		es := ends("succeeded", e.mustClaim(2, "a", "parts")...)
		for i := range es {
			es[i].result = "[" + strings.Repeat("1,", 500) + "1]"
		}
		if _, _, err := e.settle(e.pool, es...); err != nil {
			return err
		}
		again := e.mustClaim(1)[0]
		e.mustAct("1", "cancelled", nil)
		e.mustSweep()
		e.mustAct("1", "forced", nil)
		if n := value[int64](e, "SELECT seen FROM pawl.saga_timer WHERE step = -1"); n != 0 {
			return fmt.Errorf("what was asked for anew begins at job %d, not with the first", n)
		}
		err := e.withdrawAll()
		e.mustSettle("returned", again)
		return errors.Join(err, e.none())
	}, without{"what is asked for anew begins with the first", "saga_apply", "DO UPDATE SET at = v_now, seen = 0", "DO UPDATE SET at = v_now"})
}

// A saga was cancelled while its pivot ran, which then used up its attempts: an operator who retries it has the saga go forward, and a refusal turns it back again.
func TestEngine_retriedPivot(t *testing.T) {
	t.Parallel()
	for _, outcome := range []string{"succeeded", "refused"} {
		t.Run(outcome, func(t *testing.T) {
			t.Parallel()
			prove(t, func(e *engine) error {
				d := saga.Define[order]("order", saga.Deadline(time.Hour))
				a := engineStep(d, "a")
				b := engineStep(d, "b", saga.After(a), saga.Pivot(), saga.MaxAttempts(1))
				engineStep(d, "c", saga.After(b))
				registered(e, e.pool, d)
				e.mustStart("order", "1")
				e.mustSettle("succeeded", e.mustClaim(1, "a")...)
				pivot := e.mustClaim(1, "b")
				e.mustAct("1", "cancelled", nil)
				e.mustSettle("failed", pivot...)
				e.exec("UPDATE pawl.saga_timer SET at = now() - interval '1 s' WHERE step = 0")
				e.mustSweep()
				if got := e.state("1"); got != "stuck" {
					return fmt.Errorf("state: got %s, want stuck", got)
				}
				e.mustAct("1", "retried", nil)
				if got := e.state("1"); got != "running" {
					return fmt.Errorf("state after the retry: got %s, want running", got)
				}
				e.mustSettle(outcome, e.mustClaim(1, "b")...)
				if outcome == "refused" {
					return errors.Join(wantRun(e.runThrough(""), "a/undo"), e.expect("1", "compensated"))
				}
				return errors.Join(wantRun(e.runThrough(""), "c"), e.expect("1", "succeeded"))
			}, without{"a retry of the pivot goes forward", "saga_apply", "s.backward := s.backward AND v_bit <> d.pivot;", ""})
		})
	}
}

// wantRun checks what ran.
func wantRun(got []string, want ...string) error {
	if !slices.Equal(got, want) {
		return fmt.Errorf("then ran %v, want %v", got, want)
	}
	return nil
}

// A saga is forced to its end whose pivot is to be tried again: that does not happen.
func TestEngine_forcedPivot(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("order")
	engineStep(d, "pay", saga.Pivot())
	e := newEngine(t)
	registered(e, e.pool, d)
	e.mustStart("order", "1")
	e.mustSettle("failed", e.mustClaim(1, "pay")...)
	e.mustAct("1", "forced", nil)
	e.mustSweep()
	e.exec("UPDATE pawl.scheduled SET run_at = now() - interval '1 s'")
	e.exec("SELECT pawl.sweep_due(1::smallint, NULL, 100)")
	if err := e.none(); err != nil {
		t.Error(err)
	}
}
