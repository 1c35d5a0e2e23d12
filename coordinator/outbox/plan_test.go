package outbox_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// What publishing reads, and a relay for a page, does not depend on how many events and positions are kept, how far behind the subscription is, nor how many events are parked behind other keys.
func TestPlans(t *testing.T) {
	t.Parallel()
	dbtest.Plans(t, 50_000, func(t *testing.T) dbtest.PlanTest {
		pool := dbtest.New(t)
		ctx := t.Context()
		sub, err := db.New(pool).CreateSubscription(ctx, db.CreateSubscriptionParams{Ns: 1, Name: "s", Shards: 1, Topics: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		var filler string // the newest transaction that filled
		fill := func(rows int) {
			// Events, each parked under a key of its own, and positions, of this subscription and of another.
			err := pool.QueryRow(ctx, `WITH
				e AS (INSERT INTO pawl.outbox_event (id, xid, created_at, event_id, key_hash, ns, epoch, topic, key, type, payload)
					SELECT nextval('pawl.outbox_event_id'), pg_current_xact_id(), now(), gen_random_uuid(), i, 1, 0, 'fill', 'fill', 'fill', '' FROM generate_series(1, $1) i RETURNING *),
				p AS (INSERT INTO pawl.parked_event (ns, subscription_id, shard, id, key, parked_at, attempt, retry_at, skipped, created_at, event_id, topic, type, payload)
					SELECT 1, $2::int + e.id % 2, 0, e.id, 'fill:' || e.id, now(), 1, now() + e.id * interval '1 min', false, now(), e.event_id, e.topic, e.type, '' FROM e),
				b AS (INSERT INTO pawl.subscription_batch (ns, subscription_id, shard, at, epoch, seen_xid, late, floor, mark, events)
					SELECT b.ns, b.subscription_id + i % 2, b.shard, b.at, b.epoch, b.seen_xid, b.late, b.floor, b.mark, b.events
					FROM pawl.subscription_position(1::smallint, $2::int, 0::smallint) b, generate_series(1, $1) i)
				SELECT pg_current_xact_id()::text`, rows, sub.ID).Scan(&filler)
			if err != nil {
				t.Fatal(err)
			}
		}
		round := 0
		return dbtest.PlanTest{Pool: pool, Fill: fill, Round: func(conn *pgx.Conn, on func(name string, most int) *dbtest.Plan) {
			round++
			q := db.New(conn)
			position := db.ReadPositionParams{Ns: 1, SubscriptionID: sub.ID}
			_ = db.New(on("publish", 60)).PublishEvent(ctx, db.PublishEventParams{Ns: 1, Topic: "t", Key: "k", Type: "x", Payload: []byte{}})
			_ = db.New(on("publish many", 60)).PublishEvents(ctx, db.PublishEventsParams{
				Ns: 1, Topics: []string{"t", "t"}, Keys: []string{"k", "k"}, Types: []string{"x", "x"}, Payloads: [][]byte{{1}, {2}}, ContentTypes: []string{"", ""}, Headers: []string{"", ""}, EventIds: []string{"", ""},
			})
			_, _ = db.New(on("position", 60)).ReadPosition(ctx, position)
			at, err := q.ReadPosition(ctx, position)
			if err != nil {
				t.Fatal(err)
			}
			open := db.OpenBatchParams{Ns: 1, SubscriptionID: sub.ID, Epoch: at.Epoch, SeenXID: at.SeenXID}
			_, _ = db.New(on("open", 60)).OpenBatch(ctx, open)
			b, err := q.OpenBatch(ctx, open)
			if err != nil {
				t.Fatal(err)
			}
			page := db.ReadPageParams{
				Ns: 1, Topics: []string{}, Shards: 1, Epoch: at.Epoch, SeenXID: at.SeenXID, Late: at.Late, Floor: at.Floor, ToXID: b.ToXID, ToLate: b.ToLate, Ceiling: b.Ceiling, LimitEvents: 10,
			}
			_, _ = db.New(on("page", 60)).ReadPage(ctx, page)
			events, err := q.ReadPage(ctx, page)
			if err != nil {
				t.Fatal(err)
			}
			page.Done = b.Ceiling / 2
			_, _ = db.New(on("page within", 60)).ReadPage(ctx, page)
			page.Topics = []string{"fill"}
			_, _ = db.New(on("page of a topic", 60)).ReadPage(ctx, page)
			page.Topics, page.Late, page.SeenXID = []string{}, []string{filler}, b.ToXID
			_, _ = db.New(on("page of what committed late", 100)).ReadPage(ctx, page)

			settle := db.SettleBatchParams{
				Ns: 1, SubscriptionID: sub.ID, FromID: at.ID, Epoch: at.Epoch, SeenXID: at.SeenXID, Late: at.Late, Floor: at.Floor, Mark: at.Mark, Done: -1, ToLate: []string{},
				Events: 1, IDs: []int64{}, Attempts: []int32{}, RetryMs: []int64{}, Dead: []bool{}, Errors: []string{}, Incarnation: b.Incarnation,
			}
			_, _ = db.New(on("settle", 60)).SettleBatch(ctx, settle)
			if at, err = q.ReadPosition(ctx, position); err != nil {
				t.Fatal(err)
			}
			settle.FromID = at.ID
			if len(events) > 0 {
				last := events[len(events)-1].ID
				settle.IDs, settle.Attempts, settle.RetryMs, settle.Dead, settle.Errors = []int64{last}, []int32{1}, []int64{3_600_000}, []bool{false}, []string{"no"}
			}
			_, _ = db.New(on("settle and park", 120)).SettleBatch(ctx, settle)

			key := fmt.Sprint("parked ", round)
			for i := range 2 {
				if _, err := conn.Exec(ctx, `INSERT INTO pawl.parked_event (ns, subscription_id, shard, id, key, parked_at, attempt, retry_at, skipped, created_at, event_id, topic, type, payload)
					SELECT 1, $1, 0, -$2::int, $3, now(), 1, CASE WHEN $4 THEN now() END, false, now(), gen_random_uuid(), 't', 'x', ''`, sub.ID, 2*round-i, key, i == 0); err != nil {
					t.Fatal(err)
				}
			}
			_, _ = db.New(on("parked", 150)).CountParked(ctx, db.CountParkedParams{Ns: 1, SubscriptionID: sub.ID, LimitEvents: 100})
			_, _ = db.New(on("due", 60)).ListDueParked(ctx, db.ListDueParkedParams{Ns: 1, SubscriptionID: sub.ID, LimitKeys: 16})
			_, _ = db.New(on("next due", 60)).NextParked(ctx, db.NextParkedParams{Ns: 1, SubscriptionID: sub.ID})
			first := int64(-2 * round)
			_, _ = db.New(on("read parked", 60)).ReadParked(ctx, db.ReadParkedParams{Ns: 1, SubscriptionID: sub.ID, Key: key, ID: first, LimitEvents: 100, LimitBytes: 1000})
			parked := db.SettleParkedParams{Ns: 1, SubscriptionID: sub.ID, Key: key, Delivered: []int64{}, Failed: first, Attempt: 2, RetryMs: 3_600_000, Error: "no", Incarnation: b.Incarnation}
			_, _ = db.New(on("settle parked that failed", 100)).SettleParked(ctx, parked)
			parked.Delivered, parked.Failed = []int64{first, first + 1}, 0
			_, _ = db.New(on("settle parked", 100)).SettleParked(ctx, parked)
			_, _ = db.New(on("sweep", 150)).SweepOutbox(ctx, db.SweepOutboxParams{Ns: 1, Keep: time.Nanosecond, LimitRows: 10})
			_, _ = on("leave", 60).Exec(ctx, "SELECT * FROM pawl.outbox_leave()")
			_, _ = db.New(on("kept", 60)).ReadKept(ctx, 1)
		}}
	})
}
