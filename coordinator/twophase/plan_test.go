package twophase_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db/dbtest"
)

// What a call reads does not depend on how many decisions are kept.
func TestPlans(t *testing.T) {
	t.Parallel()
	dbtest.Plans(t, 200_000, func(t *testing.T) dbtest.PlanTest {
		pool := dbtest.New(t)
		fill := func(rows int) {
			_, err := pool.Exec(t.Context(), `WITH d AS (INSERT INTO pawl.global_decision (ns, id, decided_at, committed, branch, participants, decided_by)
					SELECT 1, gen_random_uuid(), now() - interval '1 d' + i * interval '400 ms', true, 'pawl:1:h:x:0:', '{east,west}', 'fill' FROM generate_series(1, $1) i RETURNING ns, id)
				INSERT INTO pawl.global_end (ns, id, ended_at) SELECT ns, id, now() FROM d`, rows)
			if err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		return dbtest.PlanTest{Pool: pool, Fill: fill, Round: func(_ *pgx.Conn, on func(name string, most int) *dbtest.Plan) {
			call := func(name string, most int, sql string, args ...any) {
				t.Helper()
				if _, err := on(name, most).Exec(t.Context(), fmt.Sprintf(sql, args...)); err != nil {
					t.Fatal(err)
				}
			}
			n++
			id := fmt.Sprintf("ffffffff-0000-7000-8000-%012d", n)
			const decide = "SELECT pawl.global_decide(1::smallint, ARRAY['%s'::uuid], ARRAY[now() + interval '1 min'], ARRAY['pawl:1:h:x:0:'], ARRAY['east,west'], 'test')"
			call("decide", 60, decide, id)
			call("decide again, and note an end", 60, decide+", pawl.global_ended(1::smallint, ARRAY['%s'::uuid])", id, id)
			call("abort", 60, "SELECT pawl.global_abort(1::smallint, ARRAY['fffffffe-0000-7000-8000-%012d'::uuid], 'test', 'test')", n)
			call("unfinished", 300, "SELECT * FROM pawl.global_unfinished(1::smallint, now() - interval '1 min', '00000000-0000-0000-0000-000000000000', '5 s', 10000)")
			call("old", 60, "SELECT * FROM pawl.sweep_global_old(1::smallint, '30 d', '-infinity', '00000000-0000-0000-0000-000000000000', 10000)")
		}}
	})
}
