package barrier_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// What a branch and the sweep read does not depend on how many branches are kept.
func TestPlans(t *testing.T) {
	t.Parallel()
	dbtest.Plans(t, 150_000, func(t *testing.T) dbtest.PlanTest {
		pool := dbtest.New(t)
		ctx := t.Context()
		fills := 0
		fill := func(rows int) { // one half is old
			fills++
			_, err := pool.Exec(ctx, `WITH z AS (DELETE FROM pawl.barrier_floor) -- the sweep begins from the front
				INSERT INTO pawl.barrier (ns, gid, branch, op, reason, at)
				SELECT 1, format('fill:%s:%s', $2::int, i), 'b', 'action', 'action', now() - interval '1 d' + (i - $1 / 2) * interval '1 s' FROM generate_series(1, $1::int) i`, rows, fills)
			if err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		return dbtest.PlanTest{Pool: pool, Fill: fill, Round: func(conn *pgx.Conn, on func(name string, most int) *dbtest.Plan) {
			n++
			gid := fmt.Sprintf("gid:%d", n)
			branch := func(op string, leave bool) {
				t.Helper()
				tx, err := conn.Begin(ctx)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = on(fmt.Sprintf("enter %s, to leave: %v", op, leave), 60).Exec(ctx, "SELECT * FROM pawl.barrier_enter(1::smallint, $1, 'b', $2, 1, 1, 1000, 1000)", gid, op)
				if leave {
					_, _ = on("leave "+op, 60).Exec(ctx, "SELECT pawl.barrier_leave(1::smallint, $1, 'b', $2, false, '{}', now())", gid, op)
				}
				if err := tx.Commit(ctx); err != nil {
					t.Fatal(err)
				}
			}
			branch("action", true)
			branch("action", false) // a duplicate
			branch("undo", true)
			branch("cancel", true) // of nothing
			branch("try", false)   // late
			_, _ = db.New(on("sweep", 600)).SweepBarrier(ctx, db.SweepBarrierParams{Ns: 1, Keep: 24 * time.Hour, LimitRows: 50})
		}}
	})
}
