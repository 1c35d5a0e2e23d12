package saga_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// A session has died with the steps of two sagas in hand, in claims of the opposite order of these, and is rescued while another session ends other steps of them in one flush.
func TestEngine_rescueCrossed(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		d := saga.Define[order]("order")
		lined(d, "a", "x", saga.MaxAttempts(1), saga.Undo(saga.Queue(engineQueue)))
		lined(d, "b", engineQueue)
		registered(e, e.pool, d)
		e.mustStart("order", "1")
		e.mustStart("order", "2")
		dead, line := e.session, e.line
		e.line = value[int32](e, "SELECT id FROM pawl.queue WHERE ns = 1 AND name = 'x'")
		first := e.mustClaim(1, "a")[0]
		second := e.mustClaim(1, "a")[0]
		// As if they had been claimed in the other order, which a queue with several priorities does.
		e.exec("UPDATE pawl.claim c SET job_ids = ARRAY[$1::bigint + $2 - c.job_ids[1]] WHERE c.id IN ($3, $4)", first.job, second.job, first.claim, second.claim)
		e.exec("SELECT pawl.session_end(1::smallint, $1, 'test')", dead)
		e.begin()
		e.line = line
		rest := e.mustClaim(2, "b", "b")
		tx := e.hold(fmt.Sprintf("pawl.saga_lock_key(%d)", e.id("1")), fmt.Sprintf("pawl.saga_lock_key(%d)", e.id("2")))
		rescue, rescued := e.beside("SELECT pawl.session_rescue(1::smallint, $1, 100)", dead)
		e.awaitBlocked(rescue)
		c, settled := e.conns(1)[0], make(chan error, 1)
		go func() {
			_, _, err := e.settle(c, ends("succeeded", rest...)...)
			settled <- err
		}()
		e.awaitBlocked(c.PgConn().PID())
		e.commit(tx)
		if err := errors.Join(<-rescued, <-settled); err != nil {
			return err
		}
		for _, key := range []string{"1", "2"} {
			if got := e.state(key); got != "compensating" {
				return fmt.Errorf("saga %s: got %s, want compensating", key, got)
			}
		}
		e.runThrough("")
		return errors.Join(e.expect("1", "compensated", "undone a", "undone b"), e.expect("2", "compensated", "undone a", "undone b"))
	}, without{
		"sagas hear of it after all claims", "session_rescue", "jobs := pawl.claim_give_back(p_ns, v_claims, 'lost', v_detail);",
		"SELECT sum(pawl.claim_give_back(p_ns, ARRAY[c], 'lost', v_detail)) INTO jobs FROM unnest(v_claims) c;",
	})
}

// A saga whose split step has no unit that can still end, or whose child is over without its parent having heard of it, is forgotten; one of which a single unit still waits, runs or is to be tried again, or whose child goes on, is not.
func TestEngine_forgottenExpanded(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	child := saga.Define[order]("child")
	lined(child, "x", "other")
	registered(e, e.pool, child)
	d := saga.Define[order]("order")
	engineEach(d, "parts")
	registered(e, e.pool, d)
	whole := saga.Define[order]("whole")
	saga.Child(whole, "sub", child, saga.Queue(engineQueue))
	registered(e, e.pool, whole)
	want := func(when string, keys ...string) {
		t.Helper()
		if got := e.forgotten(); !slices.Equal(got, keys) {
			t.Errorf("forgotten when %s: got %v, want %v", when, got, keys)
		}
	}

	e.mustStart("order", "1")
	e.split("parts", 1030)
	want("units are in line")
	e.mustSettle("succeeded", e.mustClaim(3)...)
	first := e.mustClaim(1)
	e.mustSettle("succeeded", e.mustClaim(1025)...)
	want("a unit runs and another is in line")
	e.mustSettle("failed", e.mustClaim(1)...)
	e.mustSettle("failed", first...)
	want("units are to be tried again")
	e.exec("DELETE FROM pawl.scheduled WHERE job_id = (SELECT max(job_id) FROM pawl.scheduled)")
	e.exec("DELETE FROM pawl.job WHERE saga_unit = 1029")
	want("one is to be tried again and one is gone")
	e.exec("DELETE FROM pawl.scheduled")
	e.exec("DELETE FROM pawl.job WHERE saga_unit = 3")
	want("both are gone", "1")
	if got := e.runThrough(""); !slices.Equal(got, []string{"parts/undo"}) {
		t.Errorf("then ran %v, want [parts/undo]", got)
	}
	if err := e.expect("1", "compensated", "exhausted parts"); err != nil {
		t.Error(err)
	}

	e.mustStart("whole", "2")
	e.succeed("{}", e.mustClaim(1, "sub")...)
	want("the child goes on")
	e.exec("UPDATE pawl.saga_event SET state = 'forced' WHERE saga_id = $1", e.id("2/sub"))
	want("the child is over", "2")
	if got := e.state("2"); got != "compensating" {
		t.Errorf("state: got %s, want compensating", got)
	}
}

// Behind the pivot a split step whose units are gone is stuck, and is split anew by a retry, for what they were is gone too.
func TestEngine_forgottenRetried(t *testing.T) {
	t.Parallel()
	for _, gone := range []string{"saga_unit = 2", "saga_unit = 0"} { // one that still waits, and one that has failed
		t.Run(gone, func(t *testing.T) {
			t.Parallel()
			e := stuckUnits(t, 3, "parts")
			e.mustSettle("refused", e.mustClaim(1, "parts#0")...)
			e.mustSettle("succeeded", e.mustClaim(1, "parts#1")...)
			if gone == "saga_unit = 0" {
				e.mustSettle("succeeded", e.mustClaim(1, "parts#2")...)
			}
			e.exec("DELETE FROM pawl.job WHERE " + gone)
			e.forgotten()
			if got := e.state("stuck:1"); got != "stuck" {
				t.Fatalf("state: got %s, want stuck", got)
			}
			e.mustAct("stuck:1", "retried", nil)
			e.split("parts", 2)
			if got := e.runThrough("7"); !slices.Equal(got, []string{"parts#0", "parts#1", "join"}) {
				t.Errorf("then ran %v, want two units and the step behind them", got)
			}
			if err := e.expect("stuck:1", "succeeded"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Sagas that were forgotten are put right one in a transaction: a sweep that had several of them would wait in a circle with who ends steps of the same ones in the order of their roots.
func TestEngine_forgottenCrossed(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	d := saga.Define[order]("order")
	lined(d, "a", engineQueue)
	registered(e, e.pool, d)
	const sagas = 3
	for i := range sagas {
		e.mustStart("order", fmt.Sprint(i))
	}
	e.exec("DELETE FROM pawl.job")
	after, n := int64(0), 0
	for more := true; more; {
		var last *int64
		var keys []string
		tx, err := e.conns(1)[0].Begin(e.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.QueryRow(e.ctx, "SELECT last, forgotten FROM pawl.sweep_sagas_forgotten(1::smallint, $1, 100)", after).Scan(&last, &keys); err != nil {
			t.Fatal(err)
		}
		var locks int
		if err := tx.QueryRow(e.ctx, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()").Scan(&locks); err != nil {
			t.Fatal(err)
		}
		e.commit(tx)
		if locks > 1 || len(keys) > 1 {
			t.Errorf("in one transaction: got %d sagas, %d locks, want at most one", len(keys), locks)
		}
		n += len(keys)
		if more = last != nil; more {
			after = *last
		}
	}
	if n != sagas {
		t.Errorf("forgotten: got %d, want %d", n, sagas)
	}
}
