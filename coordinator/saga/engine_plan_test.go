package saga_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// fill makes the tables large without ANALYZE: this many sagas of three events, each with a job that was claimed by one claim and ended, a timer and a lock.
func (e *engine) fill(definition string, rows int) {
	e.Helper()
	e.exec(`WITH f AS MATERIALIZED (
			SELECT nextval('pawl.saga_id') AS saga, nextval('pawl.job_id') << 10 AS job, nextval('pawl.claim_id_seq') AS claim, d.id AS definition FROM generate_series(1, $1), pawl.saga_definition d WHERE d.name = $2),
		s AS (INSERT INTO pawl.saga (ns, id, root_id, definition_id, started_at, key, started_by, input) SELECT 1, saga, saga, definition, now(), 'fill:' || saga, 'fill', '{}' FROM f),
		x AS (INSERT INTO pawl.saga_event (ns, saga_id, seq, at, what, state, step, backward, lined, ok, refused, unknown, expanded, signalled, undoing, undone, stuck, jobs, job_steps)
			SELECT 1, saga, n, now(), 'succeeded', 'running', 1, false, 3, 1, 0, 0, 0, 0, 0, 0, 0, ARRAY[job], '{2}' FROM f, generate_series(1, 3) n),
		t AS (INSERT INTO pawl.saga_timer (ns, saga_id, step, at) SELECT 1, saga, 0, now() + interval '1 h' FROM f),
		h AS (INSERT INTO pawl.saga_hold (ns, name, saga_id, held_at) SELECT 1, 'fill:' || saga, saga, now() FROM f),
		j AS (INSERT INTO pawl.job (id, created_at, xid, queue_id, ns, priority, epoch, max_attempts, kind, enqueued_by, args, saga_id, saga_step)
			SELECT job, now(), pg_current_xact_id(), $3, 1, 2, 0, 25, 'fill', 'fill', '{}', saga, 2 FROM f),
		r AS (INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again) SELECT pg_current_xact_id(), job, 1, $3, 1, 2, 0, 1, false FROM f),
		p AS (INSERT INTO pawl.receipt (claim_id, at, ns, outcome, jobs) SELECT claim, now(), 1, 'succeeded', '{[0,1)}' FROM f)
		INSERT INTO pawl.claim (id, nonce, session_id, claimed_at, cursor_xid, cursor_id, cursor_taken, jobs, queue_id, ns, priority, epoch, cursor_epoch, job_ids, job_counts, attempts)
			OVERRIDING SYSTEM VALUE SELECT claim, -claim, $4, now(), pg_current_xact_id(), job, 1, 1, $3, 1, 2, 0, 0, ARRAY[job], '{1}', '{1}' FROM f`, rows, definition, e.line, e.session)
}

// What a call reads does not depend on the size of the tables.
func TestEngine_plans(t *testing.T) {
	t.Parallel()
	dbtest.Plans(t, 150_000, func(t *testing.T) dbtest.PlanTest {
		e := newEngine(t)
		d := saga.Define[order]("order", saga.Deadline(time.Hour))
		a := lined(d, "a", engineQueue)
		b := lined(d, "b", engineQueue, saga.After(a))
		c := lined(d, "c", engineQueue, saga.After(a))
		signal := saga.Signal[int](d, "s", saga.After(a))
		lined(d, "d", engineQueue, saga.After(b, c, signal), saga.Pivot())
		registered(e, e.pool, d)
		e.fill("order", 1)
		taken := value[string](e, "SELECT name FROM pawl.saga_hold")
		n := 0
		return dbtest.PlanTest{Pool: e.pool, Fill: func(rows int) { e.fill("order", rows) }, Round: func(conn *pgx.Conn, on func(name string, most int) *dbtest.Plan) {
			call := func(name string, most int, sql string, args ...any) {
				t.Helper()
				if _, err := on(name, most).Exec(e.ctx, fmt.Sprintf(sql, args...)); err != nil {
					t.Fatal(err)
				}
			}
			settle := func(name string) {
				t.Helper()
				as, err := e.claim(conn, 1)
				if err == nil && len(as) == 0 { // it was a job that was withdrawn
					as, err = e.claim(conn, 1)
				}
				if err != nil || len(as) != 1 {
					t.Fatalf("claim: got %v, %v, want one", as, err)
				}
				call(name, 150, "SELECT * FROM pawl.settle(1::smallint, %d, ARRAY[%d], ARRAY[%d], ARRAY[0], ARRAY['succeeded'::pawl.outcome], ARRAY['{}'::json], ARRAY[0], ARRAY['{}'::json])",
					e.session, as[0].claim, as[0].nonce)
			}
			n++
			key := fmt.Sprintf("order:%d", n)
			const start = "SELECT * FROM pawl.saga_start(1::smallint, 'order', 0, ARRAY['%s'], ARRAY['{}'::json], NULL, NULL, true)"
			call("start", 100, start, key)
			id := e.id(key)
			call("start a duplicate", 60, start, key)
			settle("settle a")
			call("hold", 60, "SELECT pawl.saga_hold(1::smallint, '%s', '%s')", key, key)
			call("a hold that is taken", 60, "SELECT pawl.saga_hold(1::smallint, '%s', '%s')", key, taken)
			call("send", 100, "SELECT * FROM pawl.saga_send(1::smallint, '%s', 's', '1')", key)
			settle("settle b")
			call("cancel", 100, "SELECT * FROM pawl.saga_act(1::smallint, '%s', 'cancelled', NULL, NULL, 'someone', 'a test')", key)
			call("sweep", 60, "SELECT * FROM pawl.sweep_sagas(1::smallint, 100)")
			call("withdraw", 600, "SELECT * FROM pawl.saga_withdraw(1::smallint, %d)", id)
			settle("settle b/undo")
			settle("settle a/undo")
			call("sweep of the forgotten", 60, "SELECT * FROM pawl.sweep_sagas_forgotten(1::smallint, %d, 1)", id-1)
			call("sweep of the old", 60, "SELECT * FROM pawl.sweep_sagas_old(1::smallint, '1 h', %d, 1)", id-1)
			if got := e.state(key); got != "compensated" {
				t.Fatalf("saga %s: got %s, want compensated", key, got)
			}
		}}
	})
}
