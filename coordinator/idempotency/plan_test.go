package idempotency_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// What a request and the sweep read does not depend on how many answers, claims and messages are kept.
func TestPlans(t *testing.T) {
	t.Parallel()
	dbtest.Plans(t, 100_000, func(t *testing.T) dbtest.PlanTest {
		pool := dbtest.New(t)
		ctx := t.Context()
		n := 0
		fill := func(rows int) { // of each, one half has expired
			n++
			_, err := pool.Exec(ctx, `WITH f AS MATERIALIZED (SELECT format('fill:%s:%s', $2::int, i) AS key, now() + (i - $1 / 2) * interval '1 s' AS at FROM generate_series(1, $1::int) i),
				k AS (INSERT INTO pawl.idempotency_key (ns, key, scope, fingerprint, status, body, created_at, expires_at) SELECT 1, key, 'fill', '', 200, '', now(), at FROM f),
				p AS (INSERT INTO pawl.idempotency_point (ns, key, scope, n, name, token, at) SELECT 1, key, 'fill', 1, 'a', 1, now() FROM f),
				c AS (INSERT INTO pawl.idempotency_claim (ns, key, scope, fingerprint, token, holder, claims, created_at, claimed_at, until)
					SELECT 1, 'claim:' || key, 'fill', '', 1, 'fill', 1, at, at, at FROM f),
				z AS (DELETE FROM pawl.idempotency_floor), -- the sweep begins from the front
				q AS (INSERT INTO pawl.idempotency_point (ns, key, scope, n, name, token, at) SELECT 1, 'claim:' || key, 'fill', 1, 'a', 1, now() FROM f)
				INSERT INTO pawl.inbox (ns, consumer, message_id, expires_at) SELECT 1, 'fill', key, at FROM f`, rows, n)
			if err != nil {
				t.Fatal(err)
			}
		}
		round := 0
		return dbtest.PlanTest{Pool: pool, Fill: fill, Round: func(conn *pgx.Conn, on func(name string, most int) *dbtest.Plan) {
			round++
			id := time.Duration(round).String()
			key, phased := "key:"+id, "phased:"+id
			exec := func(call string, most int, sql string, args ...any) {
				t.Helper()
				_, _ = on(call, most).Exec(ctx, sql, args...)
			}
			const take = "SELECT * FROM pawl.idempotency_take(1::smallint, 's', $1, '\\x01', 1000)"
			tx, err := conn.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			exec("take", 60, take, key)
			exec("store", 60, "SELECT pawl.idempotency_store(1::smallint, 's', $1, '\\x01', 200, NULL, '', '1 h', now())", key)
			if err := tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			exec("take what is answered", 60, take, key)
			_, _ = db.New(on("look", 60)).LookKey(ctx, db.LookKeyParams{Ns: 1, Scope: "s", Key: key, Fingerprint: []byte{1}})
			claim := func(call string) {
				_, _ = db.New(on(call, 60)).ClaimKey(ctx, db.ClaimKeyParams{Ns: 1, Scope: "s", Key: phased, Fingerprint: []byte{1}, Holder: "us", Lease: time.Hour})
			}
			claim("claim")
			claim("claim what is held")
			var token int64
			if err := conn.QueryRow(ctx, "SELECT token FROM pawl.idempotency_claim WHERE ns = 1 AND key = $1 AND scope = 's'", phased).Scan(&token); err != nil {
				t.Fatal(err)
			}
			exec("enter", 60, "SELECT pawl.idempotency_enter(1::smallint, 's', $1, $2, 1000)", phased, token)
			_ = db.New(on("advance", 60)).AdvanceKey(ctx, db.AdvanceKeyParams{Ns: 1, Scope: "s", Key: phased, Token: token, Name: "a"})
			_, _ = db.New(on("renew", 60)).RenewKey(ctx, db.RenewKeyParams{Ns: 1, Scope: "s", Key: phased, Token: token})
			claim("claim what was abandoned")
			if err := conn.QueryRow(ctx, "SELECT token FROM pawl.idempotency_claim WHERE ns = 1 AND key = $1 AND scope = 's'", phased).Scan(&token); err != nil {
				t.Fatal(err)
			}
			_ = db.New(on("finish", 60)).FinishKey(ctx, db.FinishKeyParams{Ns: 1, Scope: "s", Key: phased, Token: token, Status: 200, Body: []byte{}, TTL: time.Hour})
			once := db.SeeMessageParams{Ns: 1, Consumer: "c", MessageID: key, Keep: time.Hour}
			_, _ = db.New(on("once", 60)).SeeMessage(ctx, once)
			_, _ = db.New(on("once more", 60)).SeeMessage(ctx, once)
			_, _ = db.New(on("sweep", 2_000)).SweepIdempotency(ctx, db.SweepIdempotencyParams{Ns: 1, Keep: time.Millisecond, LimitRows: 50})
		}}
	})
}
