package saga_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// buffers returns how many buffers a call touches, those of the statements in its functions included.
func (e *engine) buffers(on saga.DB, call string) int {
	e.Helper()
	var text []byte
	if err := on.QueryRow(e.ctx, "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+call).Scan(&text); err != nil {
		e.Fatalf("%s: %v", call, err)
	}
	var plan []struct{ Plan map[string]any }
	if err := json.Unmarshal(text, &plan); err != nil {
		e.Fatal(err)
	}
	n := 0
	for _, kind := range []string{"Shared Hit Blocks", "Shared Read Blocks", "Local Hit Blocks", "Local Read Blocks", "Temp Read Blocks"} {
		n += int(plan[0].Plan[kind].(float64))
	}
	return n
}

var manyBuffers = regexp.MustCompile(`hit=\d{3,}`)

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

// fill makes the tables large without ANALYZE: this many sagas of three events, each with a job that was claimed by one claim and ended, a timer and a lock.
func (e *engine) fill(definition string, rows int) {
	e.Helper()
	e.exec(`WITH f AS MATERIALIZED (
			SELECT i, nextval('pawl.saga_id') AS saga, nextval('pawl.job_id') << 10 AS job, nextval('pawl.claim_id_seq') AS claim, d.id AS definition FROM generate_series(1, $1) i, pawl.saga_definition d WHERE d.name = $2),
		s AS (INSERT INTO pawl.saga (ns, id, root_id, definition_id, started_at, key, started_by, input) SELECT 1, saga, saga, definition, now(), 'fill:' || i, 'fill', '{}' FROM f),
		x AS (INSERT INTO pawl.saga_event (ns, saga_id, seq, at, what, state, step, backward, lined, ok, refused, unknown, expanded, signalled, undoing, undone, stuck, jobs, job_steps)
			SELECT 1, saga, n, now(), 'succeeded', 'running', 1, false, 3, 1, 0, 0, 0, 0, 0, 0, 0, ARRAY[job], '{2}' FROM f, generate_series(1, 3) n),
		t AS (INSERT INTO pawl.saga_timer (ns, saga_id, step, at) SELECT 1, saga, 0, now() + interval '1 h' FROM f),
		h AS (INSERT INTO pawl.saga_hold (ns, name, saga_id, held_at) SELECT 1, 'fill:' || i, saga, now() FROM f),
		j AS (INSERT INTO pawl.job (id, created_at, xid, queue_id, ns, priority, epoch, max_attempts, kind, enqueued_by, args, saga_id, saga_step)
			SELECT job, now(), pg_current_xact_id(), $3, 1, 2, 0, 25, 'fill', 'fill', '{}', saga, 2 FROM f),
		r AS (INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again) SELECT pg_current_xact_id(), job, 1, $3, 1, 2, 0, 1, false FROM f),
		p AS (INSERT INTO pawl.receipt (claim_id, at, ns, outcome, jobs) SELECT claim, now(), 1, 'succeeded', '{[0,1)}' FROM f)
		INSERT INTO pawl.claim (id, nonce, session_id, claimed_at, cursor_xid, cursor_id, cursor_taken, jobs, queue_id, ns, priority, epoch, cursor_epoch, job_ids, job_counts, attempts)
			OVERRIDING SYSTEM VALUE SELECT claim, -claim, $4, now(), pg_current_xact_id(), job, 1, 1, $3, 1, 2, 0, 0, ARRAY[job], '{1}', '{1}' FROM f`, rows, definition, e.line, e.session)
}

// analyze tells the planner of all tables.
func (e *engine) analyze(on saga.DB) {
	e.Helper()
	tables := values[string](e, "SELECT 'pawl.' || relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'pawl'::regnamespace")
	if _, err := on.Exec(e.ctx, "VACUUM (ANALYZE) "+strings.Join(tables, ", ")); err != nil {
		e.Fatal(err)
	}
}

// What a call reads does not depend on the size of the tables, though its plans were made while they were small, with statistics of that time or none.
func TestEngine_plans(t *testing.T) {
	t.Parallel()
	for name, analyzed := range map[string]bool{"analyzed": true, "new": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testPlans(t, analyzed)
		})
	}
}

func testPlans(t *testing.T, analyzed bool) {
	const rows, warm = 150_000, 8
	e := newEngine(t)
	e.exec(`DO $$ DECLARE t regclass; BEGIN
		FOR t IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'pawl'::regnamespace LOOP EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', t); END LOOP; END $$`)
	d := saga.Define[order]("order", saga.Deadline(time.Hour))
	a := lined(d, "a", engineQueue)
	b := lined(d, "b", engineQueue, saga.After(a))
	c := lined(d, "c", engineQueue, saga.After(a))
	signal := saga.Signal[int](d, "s", saga.After(a))
	lined(d, "d", engineQueue, saga.After(b, c, signal), saga.Pivot())
	registered(e, e.pool, d)
	conn, explained := e.explained()
	n, key, id := 0, "", int64(0)
	settle := func() string {
		as, err := e.claim(conn, 1)
		if err == nil && len(as) == 0 { // it was a job that was withdrawn
			as, err = e.claim(conn, 1)
		}
		if err != nil || len(as) != 1 {
			e.Fatalf("claim: got %v, %v, want one", as, err)
		}
		*explained = nil // of the claim
		return fmt.Sprintf("SELECT * FROM pawl.settle(1::smallint, %d, ARRAY[%d], ARRAY[%d], ARRAY[0], ARRAY['succeeded'::pawl.outcome], ARRAY['{}'::json], ARRAY[0], ARRAY['{}'::json])",
			e.session, as[0].claim, as[0].nonce)
	}
	start := func() string {
		return fmt.Sprintf("SELECT * FROM pawl.saga_start(1::smallint, 'order', 0, ARRAY['%s'], ARRAY['{}'::json], NULL, NULL, true)", key)
	}
	calls := []struct {
		name string
		most int
		call func() string
	}{
		{"start", 100, func() string {
			n++
			key = fmt.Sprintf("order:%d", n)
			return start()
		}},
		{"start a duplicate", 60, func() string {
			id = e.id(key)
			return start()
		}},
		{"settle a", 150, settle},
		{"hold", 60, func() string { return fmt.Sprintf("SELECT pawl.saga_hold(1::smallint, '%s', '%s')", key, key) }},
		{"a hold that is taken", 60, func() string { return fmt.Sprintf("SELECT pawl.saga_hold(1::smallint, '%s', 'fill:%d')", key, rows/2) }},
		{"send", 100, func() string { return fmt.Sprintf("SELECT * FROM pawl.saga_send(1::smallint, '%s', 's', '1')", key) }},
		{"settle b", 150, settle},
		{"cancel", 100, func() string {
			return fmt.Sprintf("SELECT * FROM pawl.saga_act(1::smallint, '%s', 'cancelled', NULL, NULL, 'someone', 'a test')", key)
		}},
		{"sweep", 60, func() string { return "SELECT * FROM pawl.sweep_sagas(1::smallint, 100)" }},
		{"withdraw", 600, func() string { return fmt.Sprintf("SELECT * FROM pawl.saga_withdraw(1::smallint, %d)", id) }},
		{"settle b/undo", 150, settle},
		{"settle a/undo", 150, settle},
		{"sweep of the forgotten", 60, func() string {
			return fmt.Sprintf("SELECT * FROM pawl.sweep_sagas_forgotten(1::smallint, %d, 1)", id-1)
		}},
		{"sweep of the old", 60, func() string {
			return fmt.Sprintf("SELECT * FROM pawl.sweep_sagas_old(1::smallint, '1 h', %d, 1)", id-1)
		}},
	}
	run := func(each func(name string, got int)) {
		for _, call := range calls {
			each(call.name, e.buffers(conn, call.call()))
		}
		if got := e.state(key); got != "compensated" {
			e.Fatalf("saga %s: got %s, want compensated", key, got)
		}
	}
	for i := range warm {
		if i == 2 && analyzed { // now the statistics say how small the tables are
			e.analyze(conn)
		}
		run(func(string, int) {})
	}
	e.fill("order", rows)
	fewest := map[string]int{} // of some rounds: in one the server may have to read its catalogs anew
	for range 3 {
		run(func(name string, got int) { fewest[name] = min(got, cmp.Or(fewest[name], got)) })
	}
	for _, call := range calls {
		t.Logf("%s: %d buffers", call.name, fewest[call.name])
		if got := fewest[call.name]; got > call.most {
			t.Errorf("%s: got %d buffers with %d sagas, want at most %d\n%s", call.name, got, rows, call.most, strings.Join(*explained, "\n"))
		}
	}
}
