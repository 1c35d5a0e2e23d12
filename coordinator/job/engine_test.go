package job_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db/dbtest"
)

// The engine tests call the SQL functions of the schema themselves: they test the protocol, not the Go around it.

// dbtx is a pool, a connection or a transaction.
type dbtx interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// engine is a migrated database of the test's own. Its methods end the test on an error that no scenario expects.
type engine struct {
	testing.TB
	ctx     context.Context
	pool    *pgxpool.Pool
	changed map[string]string // the text of the functions that were changed, as it was
	calls   []chan struct{}   // closed when a call of async is over
}

// nonces are unique in this process, as a client's are in the world.
var nonces atomic.Int64

func newEngine(tb testing.TB) *engine {
	tb.Helper()
	return &engine{TB: tb, ctx: tb.Context(), pool: dbtest.New(tb), changed: map[string]string{}}
}

// conn opens a connection that a scenario may block. It is closed when the test ends.
func (e *engine) conn() *pgx.Conn {
	e.Helper()
	config := e.pool.Config().ConnConfig.Copy()
	config.RuntimeParams["application_name"] = "scenario"
	conn, err := pgx.ConnectConfig(e.ctx, config)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// begin begins a transaction on a connection of its own, and gives the id of its backend.
func (e *engine) begin() (pgx.Tx, uint32) {
	e.Helper()
	conn := e.conn()
	tx, err := conn.Begin(e.ctx)
	if err != nil {
		e.Fatal(err)
	}
	return tx, conn.PgConn().PID()
}

func (e *engine) exec(db dbtx, sql string, args ...any) {
	e.Helper()
	if _, err := db.Exec(e.ctx, sql, args...); err != nil {
		e.Fatalf("%s: %v", sql, err)
	}
}

func (e *engine) commit(tx pgx.Tx) {
	e.Helper()
	if err := tx.Commit(e.ctx); err != nil {
		e.Fatalf("commit: %v", err)
	}
}

// get returns the one value that a query gives.
func get[T any](e *engine, db dbtx, sql string, args ...any) T {
	e.Helper()
	var v T
	if err := db.QueryRow(e.ctx, sql, args...).Scan(&v); err != nil {
		e.Fatalf("%s: %v", sql, err)
	}
	return v
}

// all returns the values of a query's only column.
func all[T any](e *engine, db dbtx, sql string, args ...any) []T {
	e.Helper()
	rows, err := db.Query(e.ctx, sql, args...)
	if err != nil {
		e.Fatalf("%s: %v", sql, err)
	}
	vs, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		e.Fatalf("%s: %v", sql, err)
	}
	return vs
}

// sqlState returns the SQLSTATE of an error, "" if it has none.
func sqlState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

// async runs f beside the test. Its error waits in the channel.
func (e *engine) async(f func() error) <-chan error {
	done, over := make(chan error, 1), make(chan struct{})
	e.calls = append(e.calls, over)
	go func() {
		defer close(over)
		done <- f()
	}()
	return done
}

// awaitBlocked waits until the backend waits for a lock.
func (e *engine) awaitBlocked(pid uint32) {
	e.Helper()
	for !get[bool](e, e.pool, "SELECT CASE WHEN cardinality(pg_blocking_pids($1)) > 0 THEN true ELSE pg_sleep(0.002) IS NULL END", int32(pid)) {
	}
}

// blockedOrDone waits until the backend waits for a lock, which is true, or the call on it has returned.
func (e *engine) blockedOrDone(pid uint32, done <-chan error) (blocked bool, err error) {
	e.Helper()
	for {
		select {
		case err := <-done:
			return false, err
		default:
		}
		if get[bool](e, e.pool, "SELECT CASE WHEN cardinality(pg_blocking_pids($1)) > 0 THEN true ELSE pg_sleep(0.002) IS NULL END", int32(pid)) {
			return true, nil
		}
	}
}

func (e *engine) session() int64 {
	e.Helper()
	return get[int64](e, e.pool, "SELECT pawl.session_start(1::smallint, 'test', 'host', 1, 'v0', '15 s')")
}

// queue makes a queue with a line of priority 2 and returns its id.
func (e *engine) queue(name string) int32 {
	e.Helper()
	return get[int32](e, e.pool, "SELECT queue_id FROM pawl.line_create(1::smallint, $1, 2::smallint)", name)
}

func (e *engine) enqueue(db dbtx, queue string) int64 {
	e.Helper()
	return get[int64](e, db, "SELECT pawl.enqueue(1::smallint, $1, 'test', '{}')", queue)
}

// enqueueMany enqueues one batch of n jobs and returns the first id.
func (e *engine) enqueueMany(db dbtx, queue string, n int) int64 {
	e.Helper()
	return get[int64](e, db, "SELECT first_id FROM pawl.enqueue_many(1::smallint, $1, 'test', array_fill('{}'::json, ARRAY[$2::int]))", queue, n)
}

// claimed is what names a claim, and what it holds: jobs[i] is the job of ordinal i.
type claimed struct {
	id, nonce, session int64
	jobs               []int64
	attempts           []int16
}

// tryClaim claims from a line of priority 2. An id of 0 says that there was nothing.
func (e *engine) tryClaim(db dbtx, session int64, queue int32, limit int) (claimed, error) {
	return e.tryClaimLine(db, session, queue, 2, limit)
}

func (e *engine) tryClaimLine(db dbtx, session int64, queue int32, priority int16, limit int) (claimed, error) {
	c := claimed{nonce: nonces.Add(1), session: session}
	var id *int64
	var n *int
	err := db.QueryRow(e.ctx, "SELECT * FROM pawl.claim(1::smallint, $1, $2, $3, $4, $5)", session, c.nonce, queue, priority, limit).Scan(&id, &n)
	if err != nil || id == nil {
		return claimed{}, err
	}
	c.id = *id
	rows, err := db.Query(e.ctx, `SELECT r.first + i, r.attempt FROM pawl.claim c
		CROSS JOIN LATERAL ROWS FROM (unnest(c.job_ids), unnest(c.job_counts), unnest(c.attempts)) WITH ORDINALITY r(first, n, attempt, o)
		CROSS JOIN LATERAL generate_series(0, r.n - 1) i WHERE c.ns = 1 AND c.id = $1 ORDER BY r.o, i`, c.id)
	if err != nil {
		return claimed{}, err
	}
	var job int64
	var attempt int16
	_, err = pgx.ForEachRow(rows, []any{&job, &attempt}, func() error {
		c.jobs, c.attempts = append(c.jobs, job), append(c.attempts, attempt)
		return nil
	})
	if err == nil && len(c.jobs) != *n {
		err = fmt.Errorf("claim %d: jobs is %d, its runs hold %d", c.id, *n, len(c.jobs))
	}
	return c, err
}

func (e *engine) claim(db dbtx, session int64, queue int32, limit int) claimed {
	e.Helper()
	c, err := e.tryClaim(db, session, queue, limit)
	if err != nil {
		e.Fatalf("claim: %v", err)
	}
	return c
}

// drain claims from a line until it gives nothing, and returns the jobs in order.
func (e *engine) drain(db dbtx, session int64, queue int32, limit int) []int64 {
	e.Helper()
	var jobs []int64
	for c := e.claim(db, session, queue, limit); c.id != 0; c = e.claim(db, session, queue, limit) {
		jobs = append(jobs, c.jobs...)
	}
	return jobs
}

// tryFinish ends ordinals of a claim as succeeded, a multirange such as {[0,3)}. lost is what did not count, {} for nothing.
func (e *engine) tryFinish(db dbtx, c claimed, ordinals string) (lost string, err error) {
	err = db.QueryRow(e.ctx, `SELECT coalesce((SELECT f.lost[1] FROM (SELECT pawl.finish(1::smallint, $1, ARRAY[$2::bigint], ARRAY[$3::bigint],
		ARRAY[$4::int4multirange])) f(lost)), '{}')::text`, c.session, c.id, c.nonce, ordinals).Scan(&lost)
	return lost, err
}

func (e *engine) finish(db dbtx, c claimed, ordinals string) string {
	e.Helper()
	lost, err := e.tryFinish(db, c, ordinals)
	if err != nil {
		e.Fatalf("finish: %v", err)
	}
	return lost
}

func (e *engine) finishAll(db dbtx, c claimed) {
	e.Helper()
	if lost := e.finish(db, c, fmt.Sprintf("{[0,%d)}", len(c.jobs))); lost != "{}" {
		e.Fatalf("finish all of claim %d: %s were lost", c.id, lost)
	}
}

// settle ends one attempt and returns the outcome that counted, "" for lost. delayMS nil: by the backoff.
func (e *engine) settle(db dbtx, c claimed, ordinal int, outcome string, delayMS *int64) string {
	e.Helper()
	return get[string](e, db, `SELECT coalesce(s.counted[1], '') FROM (SELECT (pawl.settle(1::smallint, $1, ARRAY[$2::bigint], ARRAY[$3::bigint], ARRAY[$4::int],
		ARRAY[$5::text]::pawl.outcome[], NULL, ARRAY[$6::bigint], NULL)).counted) s`, c.session, c.id, c.nonce, ordinal, outcome, delayMS)
}

// state returns what a job is doing, and its attempt: "running 2". "none 0": nothing is known of it.
func (e *engine) state(db dbtx, job int64) string {
	e.Helper()
	return get[string](e, db, "SELECT coalesce(state::text, 'none') || ' ' || coalesce(attempt, 0) FROM pawl.job_state(1::smallint, $1)", job)
}

// change replaces a part of a function's text. A part that is not there is a test to be brought up to date.
func (e *engine) change(function, from, to string) {
	e.Helper()
	text := get[string](e, e.pool, "SELECT pg_get_functiondef($1::regproc)", "pawl."+function)
	if !strings.Contains(text, from) {
		e.Fatalf("pawl.%s has no %q any more: say in this test what its rule is now", function, from)
	}
	if _, ok := e.changed[function]; !ok {
		e.changed[function] = text
	}
	e.exec(e.pool, strings.ReplaceAll(text, from, to))
}

// without is a rule left out: in the text of function, from becomes to.
type without struct{ rule, function, from, to string }

// prove runs a scenario, which must go well, and once more for each rule left out, where it must not: else it would prove nothing.
// The scenario returns what is wrong, nil if nothing is.
func prove(t *testing.T, scenario func(e *engine) error, rules ...without) {
	t.Helper()
	e := newEngine(t)
	run := func(t *testing.T, rule without) error {
		e := &engine{TB: t, ctx: e.ctx, pool: e.pool, changed: map[string]string{}}
		defer e.reset()
		if rule.function != "" {
			e.change(rule.function, rule.from, rule.to)
		}
		return scenario(e)
	}
	t.Run("rule", func(t *testing.T) {
		if err := run(t, without{}); err != nil {
			t.Error(err)
		}
	})
	for _, r := range rules {
		t.Run("without "+r.rule, func(t *testing.T) {
			if err := run(t, r); err == nil {
				t.Error("all went well without the rule: this test does not prove it")
			}
		})
	}
}

// reset ends what a scenario has left running and makes the database as it was: a new one for each would take longer.
func (e *engine) reset() {
	e.Helper()
	e.exec(e.pool, `SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 'scenario' AND pid <> pg_backend_pid()`)
	for _, over := range e.calls {
		<-over
	}
	for _, text := range e.changed {
		e.exec(e.pool, text)
	}
	for _, table := range []string{"ready", "job", "claim", "receipt", "result", "cancellation", "scheduled", "dedupe", "line", "queue", "session", "sweep"} {
		e.exec(e.pool, "DELETE FROM pawl."+table)
	}
}
