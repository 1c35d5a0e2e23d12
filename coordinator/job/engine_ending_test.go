package job_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
)

// one makes a session that has claimed n jobs in one claim.
func (e *engine) one(n int) claimed {
	e.Helper()
	q, s := e.queue("q"), e.session()
	e.enqueueMany(e.pool, "q", n)
	return e.claim(e.pool, s, q, n)
}

// second runs f on a connection of its own after first, which is not committed, and commits first once f waits for it or has returned.
func (e *engine) second(first pgx.Tx, f func(conn *pgx.Conn) error) (waited bool, err error) {
	e.Helper()
	conn := e.conn()
	done := e.async(func() error { return f(conn) })
	waited, err = e.blockedOrDone(conn.PgConn().PID(), done)
	e.commit(first)
	if waited {
		err = <-done
	}
	return waited, err
}

// TestEngineFinishTwice: of two endings of the same attempts at the same time one counts.
func TestEngineFinishTwice(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		c := e.one(5)
		first, _ := e.begin()
		e.finish(first, c, "{[0,3)}")
		var lost string
		_, err := e.second(first, func(conn *pgx.Conn) (err error) { lost, err = e.tryFinish(conn, c, "{[2,4)}"); return err })
		if want := "{[2,3)}"; err != nil || lost != want {
			return fmt.Errorf("lost: got %s, %v, want %s", lost, err, want)
		}
		if got, want := get[string](e, e.pool, "SELECT pawl.claim_open(1::smallint, $1)::text", c.id), "{[4,5)}"; got != want {
			return fmt.Errorf("open: got %s, want %s", got, want)
		}
		return nil
	}, without{"the claim's lock", "finish", "PERFORM pg_advisory_xact_lock(pawl.claim_key(p_claims[i]));", ""},
		without{"the receipts before", "finish", "WHERE r.ns = p_ns AND r.claim_id = t.claim_id", "WHERE false"})
}

// TestEngineSettleTwice: the same of endings with an outcome, where a second one would put the job in line twice.
func TestEngineSettleTwice(t *testing.T) {
	t.Parallel()
	var none int64
	prove(t, func(e *engine) error {
		c := e.one(1)
		first, _ := e.begin()
		e.settle(first, c, 0, "failed", &none)
		var outcome string
		_, err := e.second(first, func(conn *pgx.Conn) error { outcome = e.settle(conn, c, 0, "failed", &none); return nil })
		if err != nil || outcome != "" {
			return fmt.Errorf("second outcome: got %q, %v, want none", outcome, err)
		}
		return nil
	}, without{"the claim's lock", "settle", "PERFORM pg_advisory_xact_lock(pawl.claim_key(p_claims[i]));", ""},
		without{"the receipts before", "settle", "r.claim_id = n.claim_id", "false"})
}

// TestEngineGiveBack: a rescue waits for an ending in flight, and does not put back what it has ended.
func TestEngineGiveBack(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		c := e.one(3)
		first, _ := e.begin()
		e.finish(first, c, "{[1,2)}")
		e.exec(e.pool, "SELECT pawl.session_end(1::smallint, $1, 'test')", c.session)
		var n int
		_, err := e.second(first, func(conn *pgx.Conn) error {
			return conn.QueryRow(e.ctx, "SELECT jobs FROM pawl.session_rescue(1::smallint, $1, 100)", c.session).Scan(&n)
		})
		if err != nil || n != 2 {
			return fmt.Errorf("jobs put back: got %d, %v, want 2", n, err)
		}
		if lost := e.finish(e.pool, c, "{[0,3)}"); lost != "{[0,3)}" {
			return fmt.Errorf("lost to the ended session: got %s, want all", lost)
		}
		return nil
	}, without{"the claim's lock", "claim_give_back", "PERFORM pg_advisory_xact_lock(pawl.claim_key(v_claim));", ""})
}

// TestEngineGiveBackIsolation: a rescue at repeatable read would read receipts as they were before it waited, so it is refused.
func TestEngineGiveBackIsolation(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	c := e.one(1)
	first, _ := e.begin()
	e.finish(first, c, "{[0,1)}")
	e.exec(e.pool, "SELECT pawl.session_end(1::smallint, $1, 'test')", c.session)
	var n int
	_, err := e.second(first, func(conn *pgx.Conn) error {
		tx, err := conn.BeginTx(e.ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		if err != nil {
			return err
		}
		if err := tx.QueryRow(e.ctx, "SELECT jobs FROM pawl.session_rescue(1::smallint, $1, 100)", c.session).Scan(&n); err != nil {
			return err
		}
		return tx.Commit(e.ctx)
	})
	if got := sqlState(err); got != "PW005" {
		t.Errorf("SQLSTATE: got %q (%v), want PW005; %d finished jobs were put back in line", got, err, n)
	}
}

// TestEngineFenced: an ending counts only for the session and nonce of its claim, while the session lasts, and for ordinals the claim has.
func TestEngineFenced(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		c := e.one(3)
		other := e.session()
		for name, wrong := range map[string]claimed{
			"nonce":   {id: c.id, nonce: c.nonce + 1000000, session: c.session},
			"session": {id: c.id, nonce: c.nonce, session: other},
			"claim":   {id: c.id + 1, nonce: c.nonce, session: c.session},
		} {
			if lost := e.finish(e.pool, wrong, "{[0,1)}"); lost != "{[0,1)}" {
				return fmt.Errorf("finish with a wrong %s: got lost %s", name, lost)
			}
			if got := e.settle(e.pool, wrong, 0, "discarded", nil); got != "" {
				return fmt.Errorf("settle with a wrong %s: got %q, want none", name, got)
			}
		}
		if lost := e.finish(e.pool, c, "{[-5,1),[2,9)}"); lost != "{[-5,0),[3,9)}" {
			return fmt.Errorf("lost of ordinals out of range: got %s", lost)
		}
		for _, ordinal := range []int{-1, 3} {
			if got := e.settle(e.pool, c, ordinal, "succeeded", nil); got != "" {
				return fmt.Errorf("settle of ordinal %d: got %q, want none", ordinal, got)
			}
		}
		e.exec(e.pool, "SELECT pawl.session_end(1::smallint, $1, 'test')", c.session)
		if lost := e.finish(e.pool, c, "{[1,2)}"); lost != "{[1,2)}" {
			return fmt.Errorf("lost to the ended session: got %s", lost)
		}
		if got := e.settle(e.pool, c, 1, "succeeded", nil); got != "" {
			return fmt.Errorf("settle of an ended session: got %q, want none", got)
		}
		return nil
	}, without{"the nonce in finish", "finish", "AND x.nonce = t.nonce", ""},
		without{"the session in finish", "finish", "AND x.session_id + 0 = p_session", ""},
		without{"the session's end in finish", "finish", "AND s.ended_at IS NULL", ""},
		without{"the range in finish", "finish", "t.jobs * int4multirange(int4range(0, c.jobs))", "t.jobs"},
		without{"the nonce in settle", "settle", "AND y.nonce = n.nonce", ""},
		without{"the session in settle", "settle", "AND y.session_id + 0 = p_session", ""},
		without{"the session's end in settle", "settle", "AND s.ended_at IS NULL", ""})
}

// crash takes a claim away as a crash would that loses its asynchronous commit: the sequence hands its id out again.
func (e *engine) crash(c claimed) {
	e.Helper()
	e.exec(e.pool, "DELETE FROM pawl.claim WHERE ns = 1 AND id = $1", c.id)
	e.exec(e.pool, "SELECT setval('pawl.claim_id_seq', $1, false)", c.id)
}

// TestEngineReusedClaimID: what a crash took away from a process is another's under the same id, and stays it.
func TestEngineReusedClaimID(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		old := e.one(2)
		e.crash(old)
		again := e.claim(e.pool, old.session, e.queue("q"), 2) // even the same session
		if again.id != old.id || !slices.Equal(again.jobs, old.jobs) {
			e.Fatalf("claim after the crash: got %v, want the same id and jobs as %v", again, old)
		}
		if lost := e.finish(e.pool, old, "{[0,2)}"); lost != "{[0,2)}" {
			return fmt.Errorf("finish under the old nonce: got lost %s, want all", lost)
		}
		if got := e.settle(e.pool, old, 0, "succeeded", nil); got != "" {
			return fmt.Errorf("settle under the old nonce: got %q, want none", got)
		}
		e.finishAll(e.pool, again)
		return nil
	}, without{"the nonce in finish", "finish", "AND x.nonce = t.nonce", ""},
		without{"the nonce in settle", "settle", "AND y.nonce = n.nonce", ""})
}

// TestEngineAbandon: after a claim whose reply was lost, also one still in flight, the client gives up what it may have got, and only that.
func TestEngineAbandon(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		q, s := e.queue("q"), e.session()
		a := e.enqueue(e.pool, "q")
		kept := e.claim(e.pool, s, q, 1)
		b := e.enqueue(e.pool, "q")
		first, _ := e.begin()
		c := e.claim(first, s, q, 1)
		var n int
		_, err := e.second(first, func(conn *pgx.Conn) error {
			return conn.QueryRow(e.ctx, "SELECT pawl.abandon(1::smallint, $1, $2, $3, 2::smallint)", s, c.nonce, q).Scan(&n)
		})
		if err != nil || n != 1 {
			return fmt.Errorf("abandoned: got %d, %v, want 1", n, err)
		}
		e.finishAll(e.pool, kept)
		if got, want := []string{e.state(e.pool, a), e.state(e.pool, b)}, []string{"succeeded 1", "available 1"}; !slices.Equal(got, want) {
			return fmt.Errorf("states: got %v, want %v", got, want)
		}
		return nil
	}, without{"the line's lock", "abandon", "PERFORM pg_advisory_xact_lock(pawl.line_key(p_ns, p_queue, p_priority));", ""},
		without{"the nonce", "abandon", "AND c.nonce = p_nonce", ""})
}

// finishTx ends one attempt as a transactional handler does.
func (e *engine) finishTx(db dbtx, c claimed, ordinal int) error {
	_, err := db.Exec(e.ctx, "SELECT pawl.finish_tx(1::smallint, $1, $2, $3, $4, NULL)", c.session, c.id, c.nonce, ordinal)
	return err
}

// TestEngineFinishTx: handlers of one claim's jobs commit side by side; two endings of one attempt do not.
func TestEngineFinishTx(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		c := e.one(3)
		first, _ := e.begin()
		if err := e.finishTx(first, c, 0); err != nil {
			return err
		}
		neighbour := e.conn()
		done := e.async(func() error { return e.finishTx(neighbour, c, 1) })
		if waits, err := e.blockedOrDone(neighbour.PgConn().PID(), done); waits || err != nil {
			e.commit(first)
			return fmt.Errorf("another attempt of the claim: got waits %v, %v, want to go on", waits, err)
		}
		waits, err := e.second(first, func(conn *pgx.Conn) error { return e.finishTx(conn, c, 0) })
		if !waits || sqlState(err) != "PW001" {
			return fmt.Errorf("the same attempt: got waits %v, %v, want to wait and PW001", waits, err)
		}
		return nil
	}, without{"a shared lock of the claim", "finish_tx", "pg_advisory_xact_lock_shared(pawl.claim_key", "pg_advisory_xact_lock(pawl.claim_key"},
		without{"a lock of the ordinal", "finish_tx", "PERFORM pg_advisory_xact_lock(hashint8extended(p_claim, 7004 + p_ordinal));", ""})
}

// TestEngineFinishTxRolledBack: an attempt whose handler rolled back can still be ended.
func TestEngineFinishTxRolledBack(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	c := e.one(1)
	first, _ := e.begin()
	if err := e.finishTx(first, c, 0); err != nil {
		t.Fatal(err)
	}
	if err := first.Rollback(e.ctx); err != nil {
		t.Fatal(err)
	}
	if err := e.finishTx(e.pool, c, 0); err != nil {
		t.Errorf("finish_tx after a rollback: %v", err)
	}
}

// TestEngineFinishTxRescue: a rescue and a plain ending wait for a handler that is about to commit, and find its receipt.
func TestEngineFinishTxRescue(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		c := e.one(1)
		first, _ := e.begin()
		if err := e.finishTx(first, c, 0); err != nil {
			return err
		}
		e.exec(e.pool, "SELECT pawl.session_end(1::smallint, $1, 'test')", c.session)
		n := 0
		waits, err := e.second(first, func(conn *pgx.Conn) error {
			return conn.QueryRow(e.ctx, "SELECT jobs FROM pawl.session_rescue(1::smallint, $1, 100)", c.session).Scan(&n)
		})
		if !waits || err != nil || n != 0 {
			return fmt.Errorf("rescue: got waits %v, %d jobs, %v, want to wait and 0 jobs", waits, n, err)
		}
		return nil
	}, without{"the claim's lock", "finish_tx", "PERFORM pg_advisory_xact_lock_shared(pawl.claim_key(p_claim));", ""})
}

// TestEngineFinishTxAfterRescue: a handler that comes to its end after its session's is refused, and what it wrote with it.
func TestEngineFinishTxAfterRescue(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		c := e.one(1)
		tx, _ := e.begin()
		id := e.enqueue(tx, "q") // an effect of the handler
		e.exec(e.pool, "SELECT pawl.session_end(1::smallint, $1, 'test')", c.session)
		if err := e.finishTx(tx, c, 0); sqlState(err) != "PW001" {
			return fmt.Errorf("finish_tx after the session's end: got %v, want PW001", err)
		}
		if err := tx.Commit(e.ctx); !errors.Is(err, pgx.ErrTxCommitRollback) {
			return fmt.Errorf("commit: got %v, want a rollback", err)
		}
		if got := e.state(e.pool, id); got != "none 0" {
			return fmt.Errorf("the handler's effect: got %s, want none", got)
		}
		return nil
	}, without{"the session's end", "claim_held", "AND s.ended_at IS NULL", ""})
}

// TestEngineEndingIsolation: an ending at repeatable read would not see what was ended while it waited.
func TestEngineEndingIsolation(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	c := e.one(1)
	for name, sql := range map[string]string{
		"finish":    "SELECT pawl.finish(1::smallint, $1, ARRAY[$2::bigint], ARRAY[$3::bigint], ARRAY['{[0,1)}'::int4multirange])",
		"settle":    "SELECT pawl.settle(1::smallint, $1, ARRAY[$2::bigint], ARRAY[$3::bigint], ARRAY[0], ARRAY['failed'::pawl.outcome], NULL, NULL, NULL)",
		"finish_tx": "SELECT pawl.finish_tx(1::smallint, $1, $2, $3, 0, NULL)",
	} {
		tx, err := e.pool.BeginTx(e.ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		if err != nil {
			t.Fatal(err)
		}
		_, err = tx.Exec(e.ctx, sql, c.session, c.id, c.nonce)
		if got := sqlState(err); got != "PW005" {
			t.Errorf("%s: got SQLSTATE %q (%v), want PW005", name, got, err)
		}
		_ = tx.Rollback(e.ctx)
	}
}

// TestEngineFinishOrder: claims that do not ascend are refused: named twice, a job would end twice.
func TestEngineFinishOrder(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		c := e.one(1)
		_, err := e.pool.Exec(e.ctx, "SELECT pawl.finish(1::smallint, $1, ARRAY[$2, $2]::bigint[], ARRAY[$3, $3]::bigint[], ARRAY['{[0,1)}', '{[0,1)}']::int4multirange[])",
			c.session, c.id, c.nonce)
		if sqlState(err) != "PW005" {
			return fmt.Errorf("a claim named twice: got %v, want PW005", err)
		}
		return nil
	}, without{"the order", "finish", "IF p_claims[i] <= p_claims[i - 1] THEN", "IF false THEN"})
}
