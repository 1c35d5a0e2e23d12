package saga_test

import (
	"errors"
	"fmt"
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

// A pivot that may have been done is retried by an operator after the saga's time was over: the new job is not withdrawn, though it has never begun.
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
		e.mustAct("1", "retried", nil)
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
	}, without{
		"a pivot that has begun before is left alone", "saga_withdraw", "EXISTS (SELECT FROM unnest(w.jobs) b CROSS JOIN LATERAL pawl.job_attempts(p_ns, b) a WHERE a.claim_id IS NOT NULL)",
		"EXISTS (SELECT FROM pawl.job_attempts(p_ns, w.job) a WHERE a.claim_id IS NOT NULL)",
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
	}, without{"the request is deleted last", "saga_withdraw", "SELECT y.at INTO v_at FROM pawl.saga_timer y", "DELETE FROM pawl.saga_timer y WHERE y.ns = p_ns AND y.saga_id = p_saga AND y.step = -1; SELECT y.at INTO v_at FROM pawl.saga_timer y"},
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
	}, without{"claims are locked in order", "saga_withdraw", "ORDER BY x.claim_id, u.step", "ORDER BY u.step"})
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
	}, without{"what is removed holds nothing", "sweep_sagas_old", "DELETE FROM pawl.saga_hold e WHERE e.ns = p_ns AND e.saga_id = x.id;", ""})
}
