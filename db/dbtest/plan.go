package dbtest

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	planWarm     = 8 // rounds before the tables grow: from the sixth on Postgres may keep one plan for all
	planAnalyzed = 2 // that many of them before the tables are analyzed
	planRounds   = 3 // rounds that are measured: in one the server may have to read its catalogs anew
)

// planSizes are those of the tables, in rows, when plans are made, each on a connection of its own.
var planSizes = []int{0, 100, 1000}

// PlanTest is what [Plans] tests.
type PlanTest struct {
	Pool *pgxpool.Pool
	// Fill adds about that many rows to each table.
	Fill func(rows int)
	// Round makes each call once, on a connection of its own or in a transaction there. On names a call, and gives what makes it: at most so many buffers are to be touched.
	Round func(conn *pgx.Conn, on func(name string, most int) *Plan)
}

// Plans tests that what calls read does not depend on the size of the tables, though their plans were made while these were small, with statistics of that time
// ("analyzed") or none ("new"), nor on a transaction that stays open while Fill adds so many rows. It runs begin in two parallel subtests.
// Under -short it skips: with the race detector there is nothing to be found.
func Plans(t *testing.T, rows int, begin func(t *testing.T) PlanTest) {
	t.Helper()
	if testing.Short() {
		t.Skip("fills tables with many rows")
	}
	for name, analyzed := range map[string]bool{"analyzed": true, "new": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testPlans(t, begin(t), rows, analyzed)
		})
	}
}

func testPlans(t *testing.T, p PlanTest, rows int, analyzed bool) {
	t.Helper()
	ctx := t.Context()
	tables := NoStatistics(t, p.Pool)
	conns := make([]*planConn, len(planSizes))
	for k, size := range planSizes {
		p.Fill(size)
		conns[k] = newPlanConn(t, p.Pool)
		for i := range planWarm {
			if k == 0 && i == planAnalyzed && analyzed { // once: it has all plans made anew
				if _, err := conns[k].Exec(ctx, "VACUUM (ANALYZE) "+tables); err != nil {
					t.Fatal(err)
				}
			}
			p.Round(conns[k].Conn, func(string, int) *Plan { return &Plan{tb: t, conn: conns[k]} })
		}
	}
	old, err := p.Pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Rollback(ctx) }()
	if _, err := old.Exec(ctx, "SELECT count(*) FROM pawl.namespace"); err != nil {
		t.Fatal(err)
	}
	p.Fill(rows)
	for k, conn := range conns {
		conn.explain(ctx)
		var names []string
		fewest := map[string]*Plan{}
		for range planRounds {
			var made []*Plan
			p.Round(conn.Conn, func(name string, most int) *Plan {
				made = append(made, &Plan{tb: t, conn: conn, name: name, most: most})
				return made[len(made)-1]
			})
			for _, plan := range made {
				if fewest[plan.name] == nil {
					names = append(names, plan.name)
				}
				if was := fewest[plan.name]; was == nil || plan.buffers < was.buffers {
					fewest[plan.name] = plan
				}
			}
		}
		for _, name := range names {
			plan := fewest[name]
			t.Logf("%s, planned at %d rows: %d buffers", name, planSizes[k], plan.buffers)
			if plan.buffers > plan.most {
				t.Errorf("%s, planned at %d rows: got %d buffers with %d more, want at most %d\n%s", name, planSizes[k], plan.buffers, rows, plan.most, strings.Join(plan.within, "\n"))
			}
		}
	}
}

// NoStatistics keeps autovacuum away from the tables of the schema: plans are made of what was known when there was little, and are not made anew under a measurement. It lists the
// tables, for an ANALYZE.
func NoStatistics(tb testing.TB, pool *pgxpool.Pool) (tables string) {
	tb.Helper()
	rows, err := pool.Query(tb.Context(), "SELECT format('pawl.%I', relname) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'pawl'::regnamespace ORDER BY 1")
	if err != nil {
		tb.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		tb.Fatal(err)
	}
	for _, name := range names {
		if _, err := pool.Exec(tb.Context(), fmt.Sprintf("ALTER TABLE %s SET (autovacuum_enabled = off)", name)); err != nil {
			tb.Fatal(err)
		}
	}
	return strings.Join(names, ", ")
}

// planConn is a connection that keeps a prepared statement for each call, and tells of the statements within functions, where the server has auto_explain.
type planConn struct {
	*pgx.Conn
	prepared []string
	within   []string
}

func newPlanConn(tb testing.TB, pool *pgxpool.Pool) *planConn {
	tb.Helper()
	c := &planConn{}
	config := pool.Config().ConnConfig.Copy()
	config.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) {
		if strings.HasPrefix(notice.Message, "duration") && manyBuffers.MatchString(notice.Message) {
			c.within = append(c.within, notice.Message)
		}
	}
	var err error
	if c.Conn, err = pgx.ConnectConfig(tb.Context(), config); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// explain has the connection tell from now on.
func (c *planConn) explain(ctx context.Context) {
	_, _ = c.Exec(ctx, "LOAD 'auto_explain'")
	_, _ = c.Exec(ctx, `SELECT set_config('auto_explain.' || s, v, false) FROM (VALUES ('log_min_duration', '0'), ('log_analyze', 'on'), ('log_buffers', 'on'),
		('log_timing', 'off'), ('log_nested_statements', 'on'), ('log_level', 'notice')) x(s, v)`)
}

var manyBuffers = regexp.MustCompile(`(hit|read)=\d{3,}`)

// Plan makes a call, as what runs a query would (it is a db.DBTX), and notes what that touches. What the call gives is thrown away: there are no rows, and zeros where one is scanned.
// It fails the test if the call fails.
type Plan struct {
	tb      testing.TB
	conn    *planConn
	name    string
	most    int
	buffers int
	within  []string
}

// Exec makes the call.
func (p *Plan) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	p.tb.Helper()
	p.make(ctx, sql, args)
	return pgconn.CommandTag{}, nil
}

// Query makes the call.
func (p *Plan) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	p.tb.Helper()
	p.make(ctx, sql, args)
	return noRows{}, nil
}

// QueryRow makes the call.
func (p *Plan) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	p.tb.Helper()
	p.make(ctx, sql, args)
	return noRows{}
}

func (p *Plan) make(ctx context.Context, sql string, args []any) {
	p.tb.Helper()
	p.conn.within = nil
	defer func() { p.within = p.conn.within }()
	if len(args) == 0 {
		p.buffers = Buffers(p.tb, p.conn, sql)
		return
	}
	k := slices.Index(p.conn.prepared, sql)
	if k < 0 {
		k = len(p.conn.prepared)
		p.conn.prepared = append(p.conn.prepared, sql)
		if _, err := p.conn.Exec(ctx, fmt.Sprintf("PREPARE plan%d AS %s", k, sql)); err != nil {
			p.tb.Fatalf("prepare %s: %v", sql, err)
		}
	}
	params := make([]string, len(args))
	for i := range params {
		params[i] = fmt.Sprintf("$%d", i+1)
	}
	// EXECUTE takes no parameters: the simple protocol writes them into it.
	p.buffers = Buffers(p.tb, p.conn, fmt.Sprintf("EXECUTE plan%d(%s)", k, strings.Join(params, ", ")), append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...)
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Buffers returns how many buffers a call touches, those of the statements in its functions included.
func Buffers(tb testing.TB, on querier, call string, args ...any) int {
	tb.Helper()
	var text []byte
	if err := on.QueryRow(tb.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+call, args...).Scan(&text); err != nil {
		tb.Fatalf("%s: %v", call, err)
	}
	var plan []struct{ Plan map[string]any }
	if err := json.Unmarshal(text, &plan); err != nil {
		tb.Fatal(err)
	}
	n := 0
	for _, kind := range []string{"Shared Hit Blocks", "Shared Read Blocks", "Local Hit Blocks", "Local Read Blocks", "Temp Read Blocks"} {
		n += int(plan[0].Plan[kind].(float64))
	}
	return n
}

// noRows are the rows of a call whose plan was looked at.
type noRows struct{ pgx.Rows }

func (noRows) Close()            {}
func (noRows) Err() error        { return nil }
func (noRows) Next() bool        { return false }
func (noRows) Scan(...any) error { return nil }
