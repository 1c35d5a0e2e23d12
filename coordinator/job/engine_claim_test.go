package job_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestEngineLateCommit: jobs of a transaction that commits after the line has moved past it are claimed, once.
func TestEngineLateCommit(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		q, s := e.queue("q"), e.session()
		late, _ := e.begin()
		first := e.enqueue(late, "q")
		second := e.enqueue(e.pool, "q")
		got := e.drain(e.pool, s, q, 10)
		e.commit(late)
		got = append(got, e.drain(e.pool, s, q, 10)...)
		if want := []int64{second, first}; !slices.Equal(got, want) {
			return fmt.Errorf("claimed: got %v, want %v", got, want)
		}
		return nil
	}, without{"stragglers", "claim", "WHERE x > l.c_xid AND x < t.last_xid", "WHERE false"})
}

// TestEngineOneSnapshot: what commits between the claim's snapshot and its reading of the line is a straggler, not taken as well.
func TestEngineOneSnapshot(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		e.change("claim", "v_snap := pg_current_snapshot();", "v_snap := pg_current_snapshot(); PERFORM pg_advisory_xact_lock_shared(42);")
		q, s := e.queue("q"), e.session()
		gate, _ := e.begin()
		e.exec(gate, "SELECT pg_advisory_xact_lock(42)")
		late, _ := e.begin()
		a := e.enqueue(late, "q")
		b := e.enqueue(e.pool, "q")
		claimer := e.conn()
		var c claimed
		done := e.async(func() (err error) { c, err = e.tryClaim(claimer, s, q, 10); return err })
		e.awaitBlocked(claimer.PgConn().PID())
		e.commit(late)
		after := e.enqueue(e.pool, "q")
		e.commit(gate)
		if err := <-done; err != nil {
			return err
		}
		got := append(c.jobs, e.drain(e.pool, s, q, 10)...)
		if want := []int64{b, a, after}; !slices.Equal(got, want) {
			return fmt.Errorf("claimed: got %v, want %v", got, want)
		}
		return nil
	}, without{"visible in the snapshot", "claim", "CASE WHEN e = l.epoch THEN v_snap END, p_limit", "NULL, p_limit"})
}

// TestEngineStragglerBounded: a transaction of 100,000 jobs that commits late is taken in claims of the limit, nothing twice.
func TestEngineStragglerBounded(t *testing.T) {
	t.Parallel()
	const batches, limit = 100, 7321
	prove(t, func(e *engine) error {
		q, s := e.queue("q"), e.session()
		late, _ := e.begin()
		for range batches {
			e.enqueueMany(late, "q", 1000)
		}
		e.enqueue(e.pool, "q")
		n := len(e.drain(e.pool, s, q, limit))
		e.commit(late)
		seen := map[int64]bool{}
		for c := e.claim(e.pool, s, q, limit); c.id != 0; c = e.claim(e.pool, s, q, limit) {
			if len(c.jobs) > limit {
				return fmt.Errorf("jobs of one claim: got %d, want at most %d", len(c.jobs), limit)
			}
			for _, j := range c.jobs {
				if seen[j] {
					return fmt.Errorf("job %d was claimed twice", j)
				}
				seen[j] = true
			}
		}
		if n += len(seen); n != batches*1000+1 {
			return fmt.Errorf("jobs claimed: got %d, want %d", n, batches*1000+1)
		}
		return nil
	}, without{"how far a straggler was taken", "claim", "l.late_id[i] := coalesce(t.last_id, l.late_id[i]);", ""},
		without{"the limit among stragglers", "claim", "NULL, p_limit - v_n) x", "NULL, 1000000) x"})
}

// TestEngineHighXID: a row with an xid far above the current one, copied or forged, does not end the line for those that follow.
func TestEngineHighXID(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		q, s := e.queue("q"), e.session()
		e.exec(e.pool, `INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again)
			VALUES ((pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000000)::text::xid8, 999999, 1, $1, 1, 2, 0, 1, false)`, q)
		var got []int64
		a := e.enqueue(e.pool, "q")
		for range 2 {
			c, err := e.tryClaim(e.pool, s, q, 10)
			if err != nil {
				return err
			}
			got = append(got, c.jobs...)
		}
		b := e.enqueue(e.pool, "q")
		c, err := e.tryClaim(e.pool, s, q, 10)
		if err != nil {
			return err
		}
		got = append(got, c.jobs...)
		if want := []int64{a, b}; !slices.Equal(got, want) {
			return fmt.Errorf("claimed: got %v, want %v", got, want)
		}
		if n := get[int](e, e.pool, "SELECT cardinality(queue_ids) FROM pawl.look(1::smallint, ARRAY[$1::int])", q); n != 0 {
			return fmt.Errorf("lines with work: got %d, want 0", n)
		}
		return nil
	}, without{
		"the bound xmax", "claim", "THEN pg_snapshot_xmax(v_snap) ELSE '18446744073709551615' END, CASE WHEN e = l.epoch THEN v_snap END",
		"THEN xid8 '18446744073709551615' ELSE xid8 '18446744073709551615' END, NULL",
	},
		without{"the bound xmax in look", "look", "OR r.xid < pg_snapshot_xmax(v_snap)", "OR true"})
}

// TestEngineClaimRefused: where a claim would be wrong it is refused, and says how.
func TestEngineClaimRefused(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s, ended := e.queue("q"), e.session(), e.session()
	e.enqueue(e.pool, "q")
	e.exec(e.pool, "SELECT pawl.session_end(1::smallint, $1, 'test')", ended)
	tests := []struct {
		name    string
		level   pgx.TxIsoLevel
		before  string
		session int64
		want    string
	}{
		{"after a write", pgx.ReadCommitted, "SELECT pg_current_xact_id()", s, "PW005"},
		{"after a write in a savepoint", pgx.ReadCommitted, "DO $$ BEGIN CREATE TEMP TABLE x (); EXCEPTION WHEN OTHERS THEN NULL; END $$", s, "PW005"},
		{"at repeatable read", pgx.RepeatableRead, "SELECT 1", s, "PW005"},
		{"at serializable", pgx.Serializable, "SELECT 1", s, "PW005"},
		{"for an ended session", pgx.ReadCommitted, "SELECT 1", ended, "PW004"},
		{"for no session", pgx.ReadCommitted, "SELECT 1", 123456, "PW004"},
		{"in another cluster", pgx.ReadCommitted, "SELECT set_config('pawl.cluster', '1', true)", s, "PW003"},
		{"by itself", pgx.ReadCommitted, "SELECT 1", s, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { // one after the other: they share the line
			tx, err := e.conn().BeginTx(t.Context(), pgx.TxOptions{IsoLevel: test.level})
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			e.exec(tx, test.before)
			c, err := e.tryClaim(tx, test.session, q, 10)
			if got := sqlState(err); got != test.want {
				t.Errorf("SQLSTATE: got %q (%v), want %q", got, err, test.want)
			}
			if got := len(c.jobs) > 0; got != (test.want == "") {
				t.Errorf("has jobs: got %v", got)
			}
		})
	}
}

// TestEngineClaimSessionEnd: once session_end has committed, no claim of the session can come.
func TestEngineClaimSessionEnd(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		// Stops the claim where it has seen the session alive.
		e.change("claim", "SELECT p.* INTO l FROM", "IF v_planned THEN PERFORM pg_advisory_xact_lock_shared(42); END IF; SELECT p.* INTO l FROM")
		q, s := e.queue("q"), e.session()
		e.enqueue(e.pool, "q")
		gate, _ := e.begin()
		e.exec(gate, "SELECT pg_advisory_xact_lock(42)")
		claimer, ender := e.conn(), e.conn()
		claim := e.async(func() error { _, err := e.tryClaim(claimer, s, q, 10); return err })
		e.awaitBlocked(claimer.PgConn().PID())
		end := e.async(func() error {
			_, err := ender.Exec(e.ctx, "SELECT pawl.session_end(1::smallint, $1, 'test')", s)
			return err
		})
		blocked, err := e.blockedOrDone(ender.PgConn().PID(), end)
		if err != nil {
			return err
		}
		if !blocked {
			return errors.New("the session was ended while a claim of it was in flight")
		}
		e.commit(gate)
		if err := <-claim; err != nil {
			return err
		}
		if err := <-end; err != nil {
			return err
		}
		e.exec(e.pool, "SELECT pawl.session_rescue(1::smallint, $1, 100)", s)
		if got := e.drain(e.pool, e.session(), q, 10); len(got) != 1 {
			return fmt.Errorf("jobs back in line after the rescue: got %v, want one", got)
		}
		return nil
	}, without{"the session's lock in claim", "claim", "PERFORM pg_advisory_xact_lock_shared(pawl.session_key(p_session));", ""},
		without{"the session's lock in session_end", "session_end", "PERFORM pg_advisory_xact_lock(pawl.session_key(p_session));", ""})
}
