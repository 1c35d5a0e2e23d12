package job_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// buffers returns how many buffers a call touches, those of the statements in its functions included.
func (e *engine) buffers(db dbtx, call string) int {
	e.Helper()
	var plan []struct {
		Plan map[string]any
	}
	if err := json.Unmarshal(get[json.RawMessage](e, db, "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+call), &plan); err != nil {
		e.Fatal(err)
	}
	n := 0
	for _, kind := range []string{"Shared Hit Blocks", "Shared Read Blocks", "Local Hit Blocks", "Local Read Blocks", "Temp Read Blocks"} {
		n += int(plan[0].Plan[kind].(float64))
	}
	return n
}

// noStatistics keeps autovacuum away: plans are made of what was known when there was little, and are not made anew under a measurement.
func (e *engine) noStatistics() {
	e.Helper()
	e.exec(e.pool, `DO $$ DECLARE t regclass; BEGIN
		FOR t IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'pawl'::regnamespace LOOP EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', t); END LOOP; END $$`)
}

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

// TestEnginePlans: what a call reads does not depend on the size of the tables, though its plans were made while they were small, with statistics of that time or
// none, nor on a transaction that stays open.
func TestEnginePlans(t *testing.T) {
	t.Parallel()
	for name, analyzed := range map[string]bool{"analyzed": true, "new": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testPlans(t, analyzed)
		})
	}
}

func testPlans(t *testing.T, analyzed bool) {
	const rows, warm = 300_000, 8
	sizes := []int{0, 100, 1000} // of the tables when plans are made, each on a connection of its own
	e := newEngine(t)
	e.noStatistics()
	q, other, s, next := e.queue("q"), e.queue("other"), e.session(), e.session()
	if next != s+1 {
		t.Fatal("two sessions in a row are wanted")
	}
	var c claimed
	var job int64
	calls := []struct {
		name string
		most int
		call func() string
	}{
		{"look", 60, func() string { return fmt.Sprintf("SELECT * FROM pawl.look(1::smallint, ARRAY[%d, %d])", q, other) }},
		{"enqueue", 60, func() string { return "SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}')" }},
		{"enqueue with a key", 100, func() string {
			return fmt.Sprintf("SELECT * FROM pawl.enqueue_unique(1::smallint, 'q', 'test', '{}', 'key%d')", job)
		}},
		{"claim", 150, func() string {
			return fmt.Sprintf("SELECT * FROM pawl.claim(1::smallint, %d, %d, %d, 2::smallint, 10)", s, nonces.Add(1), q)
		}},
		{"bodies", 150, func() string { return e.bodiesCall(c) }},
		{"settle", 120, func() string {
			return fmt.Sprintf("SELECT pawl.settle(1::smallint, %d, ARRAY[%d], ARRAY[%d], ARRAY[0], ARRAY['failed'::pawl.outcome], NULL, ARRAY[3600000], NULL)", s, c.id, c.nonce)
		}},
		{"finish", 120, func() string {
			return fmt.Sprintf("SELECT pawl.finish(1::smallint, %d, ARRAY[%d], ARRAY[%d], ARRAY['{[1,10)}'::int4multirange])", s, c.id, c.nonce)
		}},
		{"renew", 200, func() string {
			return fmt.Sprintf("SELECT * FROM pawl.session_renew(1::smallint, %d, ARRAY[%d])", s, c.id)
		}},
		{"state", 400, func() string { return fmt.Sprintf("SELECT * FROM pawl.job_state(1::smallint, %d)", job) }},
		{"cancel", 600, func() string { return fmt.Sprintf("SELECT * FROM pawl.job_cancel(1::smallint, %d, 'test')", job) }},
		{"due", 60, func() string { return "SELECT * FROM pawl.sweep_due(1::smallint, NULL, 100)" }},
		{"sweep of the sessions", 60, func() string { return "SELECT pawl.sweep_sessions(1::smallint, 100)" }},
	}
	run := func(conn *pgx.Conn, each func(name string, got int)) {
		job = e.enqueueMany(conn, "q", 9)
		for _, call := range calls {
			if call.name == "bodies" {
				c = e.lastClaim(conn, s)
			}
			each(call.name, e.buffers(conn, call.call()))
		}
	}
	var conns []*pgx.Conn
	var plans []*[]string
	for _, size := range sizes {
		e.fill(q, other, s, size)
		conn, explained := e.explained()
		conns, plans = append(conns, conn), append(plans, explained)
		for i := range warm {
			if i == 2 && analyzed { // now the statistics say how small the tables are
				e.exec(conn, "VACUUM (ANALYZE) "+strings.Join(all[string](e, e.pool, "SELECT 'pawl.' || relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'pawl'::regnamespace"), ", "))
			}
			run(conn, func(string, int) {})
		}
	}
	holder, err := e.conn().BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	e.exec(holder, "SELECT count(*) FROM pawl.queue")
	e.fill(q, other, s, rows)
	for k, conn := range conns {
		fewest := map[string]int{} // of some rounds: in one the server may have to read its catalogs anew
		for range 3 {
			run(conn, func(name string, got int) { fewest[name] = min(got, cmp.Or(fewest[name], got)) })
		}
		for _, call := range calls {
			t.Logf("%s: %d buffers", call.name, fewest[call.name])
			if got := fewest[call.name]; got > call.most {
				t.Errorf("%s, planned at %d rows: got %d buffers with %d rows, want at most %d\n%s", call.name, sizes[k], got, rows, call.most, strings.Join(*plans[k], "\n"))
			}
		}
	}
}

// explained opens a connection that tells the plans of the statements within functions that read a hundred buffers and more, where the server has auto_explain.
func (e *engine) explained() (*pgx.Conn, *[]string) {
	e.Helper()
	config := e.pool.Config().ConnConfig.Copy()
	var plans []string
	config.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) {
		if strings.HasPrefix(notice.Message, "duration") && manyBuffers.MatchString(notice.Message) {
			plans = append(plans, notice.Message)
		}
	}
	conn, err := pgx.ConnectConfig(e.ctx, config)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, _ = conn.Exec(e.ctx, "LOAD 'auto_explain'")
	_, _ = conn.Exec(e.ctx, `SELECT set_config('auto_explain.' || s, v, false) FROM (VALUES ('log_min_duration', '0'), ('log_analyze', 'on'), ('log_buffers', 'on'),
		('log_timing', 'off'), ('log_nested_statements', 'on'), ('log_level', 'notice')) x(s, v)`)
	return conn, &plans
}

var manyBuffers = regexp.MustCompile(`hit=\d{3,}`)

// bodiesCall reads the bodies of a claim.
func (e *engine) bodiesCall(c claimed) string {
	return fmt.Sprintf("SELECT * FROM pawl.claim_bodies(1::smallint, %d, %d, 0, 10)", c.id, c.nonce)
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
	e.noStatistics()
	conn := e.conn()
	look := "SELECT * FROM pawl.look(1::smallint, ARRAY(SELECT id FROM pawl.queue))"
	q, s := e.queue("queue 0"), e.session()
	for range 8 { // the plans are made while there is one
		e.buffers(conn, look)
		e.enqueue(conn, "queue 0")
		e.claim(conn, s, q, 1)
	}
	e.exec(conn, "SELECT pawl.line_create(1::smallint, 'queue ' || i, 2::smallint) FROM generate_series(1, $1) i", queues-1)
	fewest := func(call string) int {
		n := e.buffers(conn, call)
		for range 2 { // in one the server may have to read its catalogs anew
			n = min(n, e.buffers(conn, call))
		}
		return n
	}
	if got := fewest("SELECT * FROM pawl.enqueue(1::smallint, 'queue 7777', 'test', '{}')"); got > 60 {
		t.Errorf("enqueue: got %d buffers, want at most 60", got)
	}
	got := e.buffers(conn, look)
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
	if got, most := e.buffers(e.pool, fmt.Sprintf("SELECT * FROM pawl.job_state(1::smallint, %d)", job)), 3*times; got > most {
		t.Errorf("state: got %d buffers after %d times in line, want at most %d", got, times, most)
	}
	if got := e.cancel(e.pool, job); got != "available" {
		t.Errorf("cancel: got %s, want available", got)
	}
	if got, most := e.buffers(e.pool, fmt.Sprintf("SELECT * FROM pawl.job_state(1::smallint, %d)", job)), 3*times; got > most {
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
