package saga_test

import (
	"errors"
	"fmt"
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
