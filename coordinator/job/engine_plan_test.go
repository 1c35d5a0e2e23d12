package job_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db/dbtest"
)

// fill makes the tables large without ANALYZE: this many jobs, in line, claimed by one claim each and ended, of the same line and of another. The line stands
// behind them; its last claim is claimedLast.
func (e *engine) fill(queue, other int32, session int64, rows int) {
	e.Helper()
	e.exec(e.pool, fmt.Sprintf(`
		CREATE TEMP TABLE f ON COMMIT DROP AS SELECT nextval('pawl.job_id') << 10 AS id, nextval('pawl.claim_id_seq') AS claim, CASE WHEN i %% 2 = 0 THEN %[1]d ELSE %[2]d END AS queue
			FROM generate_series(1, %[4]d) i;
		INSERT INTO pawl.job (id, created_at, xid, queue_id, ns, priority, epoch, max_attempts, kind, enqueued_by, args)
			SELECT id, now(), pg_current_xact_id(), queue, 1, 2, 0, 25, 'test', 'fill', '{}' FROM f;
		INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again) SELECT pg_current_xact_id(), id, 1, queue, 1, 2, 0, 1, false FROM f;
		INSERT INTO pawl.claim (id, nonce, session_id, claimed_at, cursor_xid, cursor_id, cursor_taken, jobs, queue_id, ns, priority, epoch, cursor_epoch, job_ids, job_counts, attempts)
			OVERRIDING SYSTEM VALUE SELECT claim, -claim, %[3]d + claim %% 2, now(), pg_current_xact_id(), id, 1, 1, queue, 1, 2, 0, 0, ARRAY[id], '{1}', '{1}' FROM f;
		INSERT INTO pawl.receipt (claim_id, at, ns, outcome, jobs) SELECT claim, now(), 1, 'succeeded', '{[0,1)}' FROM f;
		INSERT INTO pawl.scheduled (run_at, job_id, queue_id, ns, priority, attempt) SELECT now() + interval '1 h' + id * interval '1 ms', -id, queue, 1, 2, 1 FROM f;
		INSERT INTO pawl.cancellation (ns, job_id, attempt, at, queue_id, priority, epoch, xid, ready_id, reason) SELECT 1, -id, 1, now(), queue, 2, 0, '3', 1, 'fill' FROM f WHERE id %% 10 = 0;
		INSERT INTO pawl.session (ns, name, host, pid, version, ttl, started_at, expires_at, ended_at, rescued_at)
			SELECT 1, 'fill', 'host', 1, 'v0', '15 s', now(), now(), now(), now() FROM f LIMIT %[4]d / 10`, queue, other, session, rows))
	e.exec(e.pool, "UPDATE pawl.session SET claims_clear = coalesce((SELECT max(id) FROM pawl.claim), 0)")
}

// TestEnginePlans: what a call reads does not depend on the size of the tables.
func TestEnginePlans(t *testing.T) {
	t.Parallel()
	dbtest.Plans(t, 150_000, func(t *testing.T) dbtest.PlanTest {
		e := newEngine(t)
		q, other, s, next := e.queue("q"), e.queue("other"), e.session(), e.session()
		if next != s+1 {
			t.Fatal("two sessions in a row are wanted")
		}
		return dbtest.PlanTest{Pool: e.pool, Fill: func(rows int) { e.fill(q, other, s, rows) }, Round: func(conn *pgx.Conn, on func(name string, most int) *dbtest.Plan) {
			call := func(name string, most int, sql string, args ...any) {
				t.Helper()
				if _, err := on(name, most).Exec(e.ctx, fmt.Sprintf(sql, args...)); err != nil {
					t.Fatal(err)
				}
			}
			job := e.enqueueMany(conn, "q", 9)
			call("look", 60, "SELECT * FROM pawl.look(1::smallint, ARRAY[%d, %d])", q, other)
			call("enqueue", 60, "SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}')")
			call("enqueue with a key", 100, "SELECT * FROM pawl.enqueue_unique(1::smallint, 'q', 'test', '{}', 'key%d')", job)
			call("claim", 150, "SELECT * FROM pawl.claim(1::smallint, %d, %d, %d, 2::smallint, 10)", s, nonces.Add(1), q)
			c := e.lastClaim(conn, s)
			call("bodies", 150, "SELECT * FROM pawl.claim_bodies(1::smallint, %d, %d, 0, 10)", c.id, c.nonce)
			call("settle", 120, "SELECT pawl.settle(1::smallint, %d, ARRAY[%d], ARRAY[%d], ARRAY[0], ARRAY['failed'::pawl.outcome], NULL, ARRAY[3600000], NULL)", s, c.id, c.nonce)
			call("finish", 120, "SELECT pawl.finish(1::smallint, %d, ARRAY[%d], ARRAY[%d], ARRAY['{[1,10)}'::int4multirange])", s, c.id, c.nonce)
			call("renew", 200, "SELECT * FROM pawl.session_renew(1::smallint, %d, ARRAY[%d])", s, c.id)
			call("state", 400, "SELECT * FROM pawl.job_state(1::smallint, %d)", job)
			call("cancel", 600, "SELECT * FROM pawl.job_cancel(1::smallint, %d, 'test')", job)
			call("due", 60, "SELECT * FROM pawl.sweep_due(1::smallint, NULL, 100)")
			call("sweep of the sessions", 60, "SELECT pawl.sweep_sessions(1::smallint, 100)")
		}}
	})
}

// lastClaim is the newest claim of a session.
func (e *engine) lastClaim(db dbtx, session int64) claimed {
	e.Helper()
	c := claimed{session: session}
	if err := db.QueryRow(e.ctx, "SELECT id, nonce FROM pawl.claim WHERE ns = 1 AND session_id = $1 AND nonce > 0 ORDER BY id DESC LIMIT 1", session).Scan(&c.id, &c.nonce); err != nil {
		e.Fatal(err)
	}
	return c
}

// TestEngineManyQueues: a look reads a few buffers a queue, and an enqueue and a claim no more among 10,000 queues than among two.
func TestEngineManyQueues(t *testing.T) {
	t.Parallel()
	const queues = 10_000
	e := newEngine(t)
	dbtest.NoStatistics(e, e.pool)
	conn := e.conn()
	look := "SELECT * FROM pawl.look(1::smallint, ARRAY(SELECT id FROM pawl.queue))"
	q, s := e.queue("queue 0"), e.session()
	for range 8 { // the plans are made while there is one
		dbtest.Buffers(e, conn, look)
		e.enqueue(conn, "queue 0")
		e.claim(conn, s, q, 1)
	}
	e.exec(conn, "SELECT pawl.line_create(1::smallint, 'queue ' || i, 2::smallint) FROM generate_series(1, $1) i", queues-1)
	fewest := func(call string) int {
		n := dbtest.Buffers(e, conn, call)
		for range 2 { // in one the server may have to read its catalogs anew
			n = min(n, dbtest.Buffers(e, conn, call))
		}
		return n
	}
	if got := fewest("SELECT * FROM pawl.enqueue(1::smallint, 'queue 7777', 'test', '{}')"); got > 60 {
		t.Errorf("enqueue: got %d buffers, want at most 60", got)
	}
	got := dbtest.Buffers(e, conn, look)
	if most := 16 * queues; got > most {
		t.Errorf("look: got %d buffers for %d queues, want at most %d", got, queues, most)
	}
	t.Logf("look over %d queues: %d buffers", queues, got)
	found := all[int32](e, conn, "SELECT unnest(queue_ids) FROM ("+look+") l ORDER BY 1")
	if len(found) != 1 {
		t.Fatalf("queues with work: got %v, want one", found)
	}
	if got := fewest(fmt.Sprintf("SELECT * FROM pawl.claim(1::smallint, %d, 1, %d, 2::smallint, 1)", s, found[0])); got > 150 {
		t.Errorf("claim: got %d buffers, want at most 150", got)
	}
}

// TestEngineStoryLong: the state of a job that was put back in line many times is told by its newest place.
func TestEngineStoryLong(t *testing.T) {
	t.Parallel()
	const times = 150
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	job := e.enqueue(e.pool, "q")
	var none int64
	for range times {
		e.settle(e.pool, e.claim(e.pool, s, q, 1), 0, "snoozed", &none)
	}
	if got, want := e.state(e.pool, job), "available 1"; got != want {
		t.Errorf("state: got %s, want %s", got, want)
	}
	if got, most := dbtest.Buffers(e, e.pool, fmt.Sprintf("SELECT * FROM pawl.job_state(1::smallint, %d)", job)), 3*times; got > most {
		t.Errorf("state: got %d buffers after %d times in line, want at most %d", got, times, most)
	}
	if got := e.cancel(e.pool, job); got != "available" {
		t.Errorf("cancel: got %s, want available", got)
	}
	if got, most := dbtest.Buffers(e, e.pool, fmt.Sprintf("SELECT * FROM pawl.job_state(1::smallint, %d)", job)), 3*times; got > most {
		t.Errorf("state of the cancelled: got %d buffers, want at most %d", got, most)
	}
}

// TestEngineAppendOnly: enqueueing, claiming and ending update and delete nothing, and leave no dead row.
func TestEngineAppendOnly(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	conn := e.conn()
	const rounds = 30
	for range rounds {
		e.enqueueMany(conn, "q", 50)
		e.enqueue(conn, "q")
		c := e.claim(conn, s, q, 20)
		e.finish(conn, c, "{[0,19)}")
		e.settle(conn, c, 19, "failed", new(int64))
		e.exec(conn, "SELECT * FROM pawl.look(1::smallint, ARRAY[$1::int])", q)
		e.exec(conn, "SELECT * FROM pawl.claim_bodies(1::smallint, $1, $2, 0, 20)", c.id, c.nonce)
	}
	if err := conn.Close(t.Context()); err != nil { // so that its statistics are sent
		t.Fatal(err)
	}
	const stats = `SELECT coalesce(sum(%s), 0) FROM pg_stat_all_tables WHERE relid IN (SELECT inhrelid FROM pg_inherits)`
	for get[int](e, e.pool, fmt.Sprintf(stats, "n_tup_ins")) < rounds*(51+2+1+1+1) { // jobs, places, claim, receipts
		e.exec(e.pool, "SELECT pg_sleep(0.05)")
	}
	if got := get[int](e, e.pool, fmt.Sprintf(stats, "n_tup_upd + n_tup_del + n_dead_tup")); got != 0 {
		t.Errorf("rows updated, deleted or dead: got %d, want none", got)
	}
}
