package saga_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// The engine tests call the SQL functions of the schema themselves: they test the protocol, not the Go around it.

// engineQueue is where the jobs of these tests are, and the compensations.
const engineQueue = "engine"

// engine is a migrated database of the test's own, and a session in it. Its methods end the test on an error that no scenario expects; those that return one may be called from any goroutine.
type engine struct {
	testing.TB
	ctx     context.Context
	pool    *pgxpool.Pool
	session int64
	line    int32 // the queue's id
}

// nonces are unique in this process, as a client's are in the world.
var nonces atomic.Int64

func newEngine(tb testing.TB) *engine {
	tb.Helper()
	e := &engine{TB: tb, ctx: tb.Context(), pool: dbtest.New(tb)}
	e.begin()
	e.line = value[int32](e, "SELECT queue_id FROM pawl.line_create(1::smallint, $1, 2::smallint)", engineQueue)
	return e
}

// value returns the one value that a query gives.
func value[T any](e *engine, sql string, args ...any) (v T) {
	e.Helper()
	if err := e.pool.QueryRow(e.ctx, sql, args...).Scan(&v); err != nil {
		e.Fatalf("%s: %v", sql, err)
	}
	return v
}

// values returns the values of a query's only column.
func values[T any](e *engine, sql string, args ...any) []T {
	e.Helper()
	rows, err := e.pool.Query(e.ctx, sql, args...)
	if err != nil {
		e.Fatalf("%s: %v", sql, err)
	}
	vs, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		e.Fatalf("%s: %v", sql, err)
	}
	return vs
}

func (e *engine) exec(sql string, args ...any) {
	e.Helper()
	if _, err := e.pool.Exec(e.ctx, sql, args...); err != nil {
		e.Fatalf("%s: %v", sql, err)
	}
}

// code returns the SQLSTATE of an error, "" if it has none.
func code(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

// conns opens connections that are closed when the test ends.
func (e *engine) conns(n int) []*pgx.Conn {
	e.Helper()
	cs := make([]*pgx.Conn, n)
	for i := range cs {
		c, err := pgx.ConnectConfig(e.ctx, e.pool.Config().ConnConfig.Copy())
		if err != nil {
			e.Fatal(err)
		}
		e.Cleanup(func() { _ = c.Close(context.Background()) })
		cs[i] = c
	}
	return cs
}

// atOnce runs all of these, as much at the same time as can be, and returns their errors.
func atOnce(fs ...func() error) []error {
	errs := make([]error, len(fs))
	ready := make(chan struct{})
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() {
			<-ready
			errs[i] = f()
		})
	}
	close(ready)
	wg.Wait()
	return errs
}

// awaitBlocked waits until a backend waits for a lock.
func (e *engine) awaitBlocked(pid uint32) {
	e.Helper()
	for !value[bool](e, "SELECT CASE WHEN cardinality(pg_blocking_pids($1)) > 0 THEN true ELSE pg_sleep(0.002) IS NULL END", int32(pid)) {
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
		if value[bool](e, "SELECT CASE WHEN cardinality(pg_blocking_pids($1)) > 0 THEN true ELSE pg_sleep(0.002) IS NULL END", int32(pid)) {
			return true, nil
		}
	}
}

// begin gives the engine a new session.
func (e *engine) begin() {
	e.Helper()
	e.session = value[int64](e, "SELECT pawl.session_start(1::smallint, 'test', 'host', 1, 'v0', '15 s')")
}

// die ends the session and gives back what it held.
func (e *engine) die() {
	e.Helper()
	e.exec("SELECT pawl.session_end(1::smallint, $1, 'test')", e.session)
	for value[bool](e, "SELECT left_over FROM pawl.session_rescue(1::smallint, $1, 100)", e.session) {
	}
	e.begin()
}

// attempt is one of a job of a saga.
type attempt struct {
	claim, nonce int64
	ordinal      int32
	job          int64
	number       int16
	undo         bool
	saga, step   string
	unit         *int // of units of a step
	output       json.RawMessage
}

// name is the attempt's step, with /undo for a compensation and #n for a unit.
func (a attempt) name() string {
	s := a.step
	if a.undo {
		s += "/undo"
	}
	if a.unit != nil {
		s += fmt.Sprintf("#%d", *a.unit)
	}
	return s
}

// claim claims up to limit jobs, and reads them.
func (e *engine) claim(on saga.DB, limit int) ([]attempt, error) {
	nonce := nonces.Add(1)
	var claim *int64
	if err := on.QueryRow(e.ctx, "SELECT claim_id FROM pawl.claim(1::smallint, $1, $2, $3, 2::smallint, $4)", e.session, nonce, e.line, limit).Scan(&claim); err != nil || claim == nil {
		return nil, err
	}
	rows, err := on.Query(e.ctx, "SELECT ordinal, id, attempt, kind, args FROM pawl.claim_bodies(1::smallint, $1, $2, 0, $3)", *claim, nonce, limit)
	if err != nil {
		return nil, err
	}
	var as []attempt
	var kind string
	var args []byte
	a := attempt{claim: *claim, nonce: nonce}
	_, err = pgx.ForEachRow(rows, []any{&a.ordinal, &a.job, &a.number, &kind, &args}, func() error {
		var body struct {
			Saga, Step string
			N          *int
			Output     json.RawMessage
		}
		if err := json.Unmarshal(args, &body); err != nil {
			return err
		}
		a.saga, a.step, a.unit, a.output, a.undo = body.Saga, body.Step, body.N, body.Output, strings.HasSuffix(kind, "/undo")
		as = append(as, a)
		return nil
	})
	if err == nil && len(as) == 0 {
		return e.claim(on, limit) // what was in front has been withdrawn
	}
	return as, err
}

// mustClaim claims up to limit jobs and checks their names, in any order.
func (e *engine) mustClaim(limit int, names ...string) []attempt {
	e.Helper()
	as, err := e.claim(e.pool, limit)
	if err != nil {
		e.Fatalf("claim: %v", err)
	}
	got := make([]string, len(as))
	for i, a := range as {
		got[i] = a.name()
	}
	slices.Sort(got)
	slices.Sort(names)
	if len(names) > 0 && !slices.Equal(got, names) {
		e.Fatalf("claim: got %v, want %v", got, names)
	}
	return as
}

// none checks that nothing is in line.
func (e *engine) none() error {
	as, err := e.claim(e.pool, 100)
	if err == nil && len(as) > 0 {
		err = fmt.Errorf("in line is still %s of %s, and %d others", as[0].name(), as[0].saga, len(as)-1)
	}
	return err
}

// ending is how an attempt ends. Its outcome may be refused, which is one of the discarded ones. delay in milliseconds; nil: by the backoff.
type ending struct {
	attempt
	outcome string
	result  string // JSON, "" for none
	delay   *int64
}

func ends(outcome string, as ...attempt) []ending {
	es := make([]ending, len(as))
	for i, a := range as {
		es[i] = ending{attempt: a, outcome: outcome}
	}
	return es
}

// settle ends attempts in one transaction, sorting them by claim, and returns the outcomes that counted, and the sagas that ended.
func (e *engine) settle(on saga.DB, es ...ending) (counted, ended []string, err error) {
	slices.SortStableFunc(es, func(a, b ending) int { return cmp.Compare(a.claim, b.claim) })
	var claims, noncesOf []int64
	var ordinals []int32
	var outcomes []string
	var details, results []*string
	var delays []*int64
	for _, x := range es {
		claims, noncesOf, ordinals, delays = append(claims, x.claim), append(noncesOf, x.nonce), append(ordinals, x.ordinal), append(delays, x.delay)
		var detail, result *string
		switch {
		case x.outcome == "refused":
			x.outcome, detail = "discarded", new(`{"error":"no","refused":true}`)
		case x.outcome != "succeeded":
			detail = new(`{"error":"who knows"}`)
		case x.result != "":
			result = &x.result
		}
		outcomes, details, results = append(outcomes, x.outcome), append(details, detail), append(results, result)
	}
	err = on.QueryRow(e.ctx, `SELECT counted, ended FROM pawl.settle(1::smallint, $1, $2, $3, $4, $5::text[]::pawl.outcome[], $6::text[]::json[], $7, $8::text[]::json[])`,
		e.session, claims, noncesOf, ordinals, outcomes, details, delays, results).Scan(&counted, &ended)
	return counted, ended, err
}

// mustSettle ends attempts with one outcome, all of which must count.
func (e *engine) mustSettle(outcome string, as ...attempt) {
	e.Helper()
	counted, _, err := e.settle(e.pool, ends(outcome, as...)...)
	if err != nil {
		e.Fatalf("settle: %v", err)
	}
	if slices.Contains(counted, "") {
		e.Fatalf("settle: an attempt was lost: %q", counted)
	}
}

// runThrough has everything that comes in line succeed, and returns the names in the order they came. An each or child step gives result.
func (e *engine) runThrough(result string) (names []string) {
	e.Helper()
	for {
		as := e.mustClaim(100)
		if len(as) == 0 {
			return names
		}
		es := ends("succeeded", as...)
		for i := range es {
			es[i].result = result
			names = append(names, es[i].name())
		}
		if _, _, err := e.settle(e.pool, es...); err != nil {
			e.Fatalf("settle: %v", err)
		}
	}
}

// start starts a saga with an input of {}.
func (e *engine) start(on saga.DB, name, key, input string) (duplicate bool, err error) {
	err = on.QueryRow(e.ctx, "SELECT duplicates[1] FROM pawl.saga_start(1::smallint, $1, 0, ARRAY[$2::text], ARRAY[$3::text]::json[], NULL, NULL, false)", name, key, input).Scan(&duplicate)
	return duplicate, err
}

func (e *engine) mustStart(name, key string) {
	e.Helper()
	if _, err := e.start(e.pool, name, key, "{}"); err != nil {
		e.Fatalf("start: %v", err)
	}
}

func (e *engine) act(on saga.DB, key, what string, step any) error {
	_, err := on.Exec(e.ctx, "SELECT pawl.saga_act(1::smallint, $1, $2::text::pawl.saga_what, $3, NULL, 'someone', 'a test')", key, what, step)
	return err
}

func (e *engine) mustAct(key, what string, step any) {
	e.Helper()
	if err := e.act(e.pool, key, what, step); err != nil {
		e.Fatalf("%s saga %s: %v", what, key, err)
	}
}

func (e *engine) send(on saga.DB, key, signal string) error {
	_, err := on.Exec(e.ctx, "SELECT pawl.saga_send(1::smallint, $1, $2, '7')", key, signal)
	return err
}

// sweep fires what is due, and withdraws.
func (e *engine) sweep(on saga.DB) error {
	var withdraw []int64
	if err := on.QueryRow(e.ctx, "SELECT coalesce(withdraw, '{}') FROM pawl.sweep_sagas(1::smallint, 1000)").Scan(&withdraw); err != nil {
		return err
	}
	for _, id := range withdraw {
		if _, err := on.Exec(e.ctx, "SELECT pawl.saga_withdraw(1::smallint, $1)", id); err != nil {
			return err
		}
	}
	return nil
}

func (e *engine) mustSweep() {
	e.Helper()
	if err := e.sweep(e.pool); err != nil {
		e.Fatalf("sweep: %v", err)
	}
}

// state is that of a saga now.
func (e *engine) state(key string) string {
	e.Helper()
	return value[string](e, "SELECT x.state::text FROM pawl.saga y CROSS JOIN LATERAL pawl.saga_now(1::smallint, y.id) x WHERE y.ns = 1 AND y.key = $1", key)
}

// told is how often something happened to a step of a saga.
func (e *engine) told(key, what, step string) int {
	e.Helper()
	return value[int](e, `SELECT count(*) FROM pawl.saga y JOIN pawl.saga_definition d ON d.ns = 1 AND d.id = y.definition_id JOIN pawl.saga_event x ON x.ns = 1 AND x.saga_id = y.id
		WHERE y.ns = 1 AND y.key = $1 AND x.what = $2::text::pawl.saga_what AND x.step = array_position(d.steps, $3)`, key, what, step)
}

// forgotten gives the sagas that the proof finds.
func (e *engine) forgotten() (keys []string) {
	e.Helper()
	for after := new(int64); after != nil; {
		var some []string
		if err := e.pool.QueryRow(e.ctx, "SELECT last, forgotten FROM pawl.sweep_sagas_forgotten(1::smallint, $1, 10000)", *after).Scan(&after, &some); err != nil {
			e.Fatalf("sweep of the forgotten: %v", err)
		}
		keys = append(keys, some...)
	}
	return keys
}

// proveTries is how often a race may end well by chance, though its rule is left out.
const proveTries = 5

// without is a rule left out: in the text of function, from becomes to.
type without struct{ rule, function, from, to string }

// prove runs a scenario, which must go well, and once more for each rule left out, where it must not: else it would prove nothing.
// The scenario returns what is wrong, nil if nothing is.
func prove(t *testing.T, scenario func(e *engine) error, rules ...without) {
	t.Helper()
	t.Run("rule", func(t *testing.T) {
		if err := scenario(newEngine(t)); err != nil {
			t.Error(err)
		}
	})
	for _, r := range rules {
		t.Run("without "+r.rule, func(t *testing.T) {
			for range proveTries {
				e := newEngine(t)
				text := value[string](e, "SELECT pg_get_functiondef($1::regproc)", "pawl."+r.function)
				if !strings.Contains(text, r.from) {
					e.Fatalf("pawl.%s has no %q any more: say in this test what its rule is now", r.function, r.from)
				}
				e.exec(strings.ReplaceAll(text, r.from, r.to))
				if scenario(e) != nil {
					return
				}
			}
			t.Error("all went well without the rule: this test does not prove it")
		})
	}
}
