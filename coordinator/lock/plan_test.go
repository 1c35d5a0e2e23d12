package lock_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// What a request reads does not depend on how many locks there are, nor on how long their history is.
func TestPlans(t *testing.T) {
	t.Parallel()
	dbtest.Plans(t, 20_000, func(t *testing.T) dbtest.PlanTest {
		pool := dbtest.New(t)
		ctx := t.Context()
		session := func() (id int64) {
			if err := pool.QueryRow(ctx, "SELECT pawl.session_start(1::smallint, 'test', 'host', 1, '', '1 h')").Scan(&id); err != nil {
				t.Fatal(err)
			}
			return id
		}
		us, other := session(), session()
		fill := func(rows int) {
			// Held locks of others, for which others wait; the history of x, and what was waited for there; sessions that have ended.
			_, err := pool.Exec(ctx, `WITH
				s AS (INSERT INTO pawl.session (ns, name, host, pid, version, ttl, started_at, expires_at, ended_at, rescued_at)
					SELECT 1, 'fill', 'host', 1, 'v0', '15 s', now(), now(), now(), now() FROM generate_series(1, $1 / 10)),
				f AS MATERIALIZED (SELECT i, 'fill:' || nextval('pawl.lock_id') AS name, nextval('pawl.lock_id') AS id FROM generate_series(1, $1) i),
				l AS (INSERT INTO pawl.lock_state (key, id, ns, name, at, what, token, served, mode, holders, granted_to)
					SELECT pawl.lock_key(1::smallint, name), id, 1, name, now(), 'granted', i, 0, 'exclusive', ARRAY[ROW($2, i, 'fill', now(), NULL, 0, NULL)::pawl.lock_holder], $2 FROM f),
				w AS (INSERT INTO pawl.lock_waiter (key, id, ns, name, session_id, owner, mode, permits, delay_ms, at)
					SELECT pawl.lock_key(1::smallint, name), id, 1, name, $2, 'fill', 'exclusive', 1, 0, now() FROM f),
				h AS (INSERT INTO pawl.lock_waiter (key, id, ns, name, session_id, owner, mode, permits, delay_ms, at)
					SELECT pawl.lock_key(1::smallint, 'x'), id, 1, 'x', $2, 'fill', 'exclusive', 1, 0, now() FROM f),
				g AS (INSERT INTO pawl.lock_guard (ns, resource, token) SELECT 1, name, 1 FROM f)
				INSERT INTO pawl.lock_state (key, id, ns, name, at, what, token, served, mode, holders)
					SELECT pawl.lock_key(1::smallint, 'x'), id, 1, 'x', now(), 'released', coalesce((SELECT max(token) FROM pawl.lock_now(1::smallint, 'x')), 0), id, 'exclusive', '{}' FROM f`, rows, other)
			if err != nil {
				t.Fatal(err)
			}
		}
		return dbtest.PlanTest{Pool: pool, Fill: fill, Round: func(conn *pgx.Conn, on func(name string, most int) *dbtest.Plan) {
			one := func(sql string, args ...any) (v int64) {
				t.Helper()
				if err := conn.QueryRow(ctx, sql, args...).Scan(&v); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
				return v
			}
			ask := func(call string, most int, session int64, op, name string, waits bool, number int64) {
				t.Helper()
				_, _ = db.New(on(call, most)).AskLock(ctx, db.AskLockParams{
					Ns: 1, SessionID: session, Op: op, Name: name, Owner: map[int64]string{us: "us", other: "other"}[session], Mode: "exclusive", Permits: 1, Waits: waits, Holds: waits, NumberIn: number,
				})
			}
			token := func() int64 { return one("SELECT token FROM pawl.lock_now(1::smallint, 'x')") }
			waiter := func() int64 {
				return one("SELECT max(id) FROM pawl.lock_waiter WHERE key = pawl.lock_key(1::smallint, 'x')")
			}

			ask("acquire", 60, us, "acquire", "x", false, 0)
			_ = db.New(on("assert", 60)).AssertLock(ctx, db.AssertLockParams{Ns: 1, SessionID: us, Name: "x", Token: token()})
			_, _ = db.New(on("holder", 60)).ReadLockHolder(ctx, db.ReadLockHolderParams{Ns: 1, Name: "x"})
			ask("try", 60, other, "acquire", "x", false, 0)
			ask("wait", 200, other, "acquire", "x", true, 0)
			ask("poll", 60, other, "poll", "x", false, waiter())
			ask("hand over", 60, us, "release", "x", false, token())
			ask("wait to cancel", 200, us, "acquire", "x", true, 0)
			ask("cancel", 60, us, "cancel", "x", false, waiter())
			ask("release", 60, other, "release", "x", false, token())
			batch := func(call string, op string) {
				_, _ = db.New(on(call, 100)).LockBatch(ctx, db.LockBatchParams{
					Ns: 1, SessionID: us, Ops: []string{op, op}, Names: []string{"x", "y"}, Owners: []string{"us", "us"}, Modes: []string{"exclusive", "exclusive"}, Permits: []int32{1, 1}, Waits: []bool{false, false},
					Holds: []bool{false, false}, HoldMs: []int32{0, 0}, DelayMs: []int32{0, 0}, NumbersIn: []int64{token(), one("SELECT coalesce(max(token), 0) FROM pawl.lock_now(1::smallint, 'y')")},
				})
			}
			batch("acquire two", "acquire")
			batch("release two", "release")
			_ = db.New(on("guard", 60)).GuardLock(ctx, db.GuardLockParams{Ns: 1, Resource: "x", Token: token()})
			_, _ = db.New(on("resync", 400)).ResyncLocks(ctx, db.ResyncLocksParams{Ns: 1, SessionID: us, Tokens: []int64{}, Waiters: []int64{}, AfterKey: -1 << 63, NamesMax: 100})
			_, _ = db.New(on("sweep", 100)).SweepLocks(ctx, db.SweepLocksParams{Ns: 1, AfterKey: one("SELECT coalesce(min(key), 0) FROM pawl.lock_state WHERE granted_to = $1", other) - 1, LimitLocks: 1})
		}}
	})
}
