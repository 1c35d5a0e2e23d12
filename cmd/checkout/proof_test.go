package checkout_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/cmd/checkout"
)

// Whatever is wrong in the tables speaks against the claim that it should, and against no other but those named.
func TestProve(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	run := finish(t, pool, 60, nil)
	const (
		some      = " (SELECT o.id FROM checkout.orders o WHERE o.state = 'confirmed' ORDER BY o.id LIMIT 1) "
		cancelled = " (SELECT o.id FROM checkout.orders o WHERE o.state = 'cancelled' ORDER BY o.id LIMIT 1) "
		often     = " (SELECT o.customer FROM checkout.orders o WHERE o.state = 'confirmed' GROUP BY o.customer ORDER BY count(*) DESC LIMIT 1) "
		paid      = " ('checkout:' ||" + some + ") "
		turn      = " (SELECT max(seq) FROM pawl.saga_event x WHERE x.saga_id = e.saga_id) "
	)
	for _, c := range []struct {
		what   string
		tamper string
		want   map[string]string // what is said against the claims, by what they are of
	}{
		{"nothing", "SELECT 1", map[string]string{}},
		{"an order is missing", "DELETE FROM checkout.orders WHERE id =" + some, map[string]string{
			"keys": " was told, and is not there as ", "orders": "its order is not there", "confirmed orders": "there is no order ", "payments": "there is no order ",
			"items": " orders are confirmed", "customers": " were confirmed",
		}},
		{"an order is there twice", "INSERT INTO checkout.orders (customer, number, item, cents, state, turn) SELECT customer, number, item, cents, state, turn FROM checkout.orders WHERE id =" + some, map[string]string{
			"keys": "there is no key for it", "orders": "its saga is missing", "confirmed orders": "was packed 0 times", "items": " orders are confirmed", "customers": " were confirmed",
		}},
		{"an order was not decided", "UPDATE checkout.orders SET state = 'accepted' WHERE id =" + cancelled, map[string]string{"orders": " is accepted, and its saga is compensated"}},
		{"a cancelled order was confirmed", "UPDATE checkout.orders SET state = 'confirmed' WHERE id =" + cancelled, map[string]string{
			"orders": " is confirmed, and its saga is compensated", "confirmed orders": " has 0 pieces and 0 of ", "items": " orders are confirmed", "customers": " were confirmed",
		}},
		{"a confirmed order was cancelled", "UPDATE checkout.orders SET state = 'cancelled', gift = false WHERE id =" + some, map[string]string{
			"orders": " is cancelled, and its saga is succeeded", "confirmed orders": " orders for ", "cancelled orders": " has 1 pieces and ", "items": " orders are confirmed", "customers": " were confirmed",
		}},
		{"a saga goes on", "UPDATE pawl.saga_event e SET state = 'running' WHERE e.seq =" + turn + "AND e.saga_id = (SELECT id FROM pawl.saga WHERE key =" + paid + ")", map[string]string{
			"orders": "is left over: it is running",
		}},
		{"a saga is missing", "DELETE FROM pawl.saga WHERE key =" + paid, map[string]string{"orders": "its saga is missing"}},
		{"a saga of no order", "UPDATE pawl.saga SET key = 'checkout:0' WHERE key =" + paid, map[string]string{"orders": "saga checkout:0 is left over"}},
		{"an order was charged twice", "INSERT INTO checkout.payment (order_id, customer, cents) SELECT order_id, customer, cents FROM checkout.payment WHERE order_id =" + some, map[string]string{
			"confirmed orders": " of ", "payments": "was charged 2 times",
		}},
		{"an order was not charged", "DELETE FROM checkout.payment WHERE order_id =" + some, map[string]string{"confirmed orders": " and 0 of ", "payments": "; the barrier says 1 and 0"}},
		{"a confirmed order was refunded", "INSERT INTO checkout.payment (order_id, customer, cents) SELECT id, customer, -cents FROM checkout.orders WHERE id =" + some, map[string]string{
			"confirmed orders": " and 0 of ", "payments": "charged 1 times and refunded 1 times; the barrier says 1 and 0",
		}},
		{"a cancelled order was charged", "INSERT INTO checkout.payment (order_id, customer, cents) SELECT id, customer, cents FROM checkout.orders WHERE id =" + cancelled, map[string]string{
			"cancelled orders": " has 0 pieces and ", "payments": "the barrier says",
		}},
		{"a charge came after its refund", `INSERT INTO checkout.payment (order_id, customer, cents)
			SELECT o.id, o.customer, x.cents FROM checkout.orders o, LATERAL (VALUES (-o.cents), (o.cents)) x (cents) WHERE o.id =` + cancelled, map[string]string{"payments": "was charged after its refund"}},
		{"an order was refunded that was not charged", "INSERT INTO checkout.payment (order_id, customer, cents) SELECT id, customer, -cents FROM checkout.orders WHERE id =" + cancelled, map[string]string{
			"cancelled orders": " cents", "payments": " refunded ",
		}},
		{"a payment is another's", "UPDATE checkout.payment SET cents = cents - 1 WHERE order_id =" + some, map[string]string{"confirmed orders": " cents", "payments": " of theirs for as much"}},
		{"an account does not add up", "UPDATE checkout.account SET cents = cents + 1 WHERE customer =" + often, map[string]string{"confirmed orders": ": paid "}},
		{"the barrier forgot a payment", "DELETE FROM pawl.barrier WHERE gid =" + paid, map[string]string{"payments": "; the barrier says 0 and 0"}},
		{"the barrier was passed by", "UPDATE pawl.barrier SET reason = 'undo' WHERE op = 'action' AND gid =" + paid, map[string]string{"payments": "; the barrier says 0 and 0"}},
		{"a piece was reserved twice", "INSERT INTO checkout.reservation (order_id, item, pieces) SELECT order_id, item, pieces FROM checkout.reservation WHERE pieces > 0 AND order_id =" + some, map[string]string{
			"confirmed orders": " has 2 pieces", "items": " took 2 pieces",
		}},
		{"a piece of a cancelled order was not put back", "INSERT INTO checkout.reservation (order_id, item, pieces) SELECT id, item, 1 FROM checkout.orders WHERE id =" + some + "OR id =" + cancelled, map[string]string{
			"confirmed orders": " has 2 pieces", "cancelled orders": " has 1 pieces", "items": " took 2 pieces",
		}},
		{"a piece was put back twice", "INSERT INTO checkout.reservation (order_id, item, pieces) SELECT id, item, -1 FROM checkout.orders WHERE id =" + cancelled, map[string]string{
			"cancelled orders": " has -1 pieces", "items": " gave back ",
		}},
		{"another piece was taken", "UPDATE checkout.reservation SET item = 'gold' WHERE order_id =" + some, map[string]string{"items": ", and took gold"}},
		{"the stock does not add up", "UPDATE checkout.stock SET pieces = pieces + 1 WHERE item = (SELECT min(item) FROM checkout.stock)", map[string]string{"items": " are in stock, and "}},
		{"more was taken than there was", "UPDATE checkout.stock SET pieces = pieces - delivered - 1, delivered = -1 WHERE item = (SELECT min(item) FROM checkout.stock)", map[string]string{"items": " are in stock, and "}},
		{"a gift was given twice", "UPDATE checkout.orders SET gift = true WHERE state = 'confirmed' AND customer =" + often, map[string]string{"customers": " gifts, "}},
		{"a gift came with a cancelled order", "UPDATE checkout.orders SET gift = true WHERE id =" + cancelled, map[string]string{"customers": " of them with confirmed orders"}},
		{"an order is not what was asked for", "UPDATE checkout.orders SET item = item || '!' WHERE id =" + some, map[string]string{"keys": " was told, and is not there as ", "items": "!, and took "}},
		{"two keys have one order", `UPDATE checkout.answer a SET location = b.location, body = b.body FROM checkout.answer b
			WHERE a.key = (SELECT min(key) FROM checkout.request) AND b.key = (SELECT max(key) FROM checkout.request) AND NOT a.other AND NOT b.other`, map[string]string{
			"keys": "it was told for 2 keys",
		}},
		{"a client was told another order", `UPDATE checkout.answer SET location = '/orders/0'
			WHERE ctid = (SELECT ctid FROM checkout.answer WHERE NOT other LIMIT 1)`, map[string]string{"keys": ": order 0 was told, and is not there as ", "clients": "2 different answers"}},
		{"a client was given another body", `UPDATE checkout.answer SET body = body || ' '::bytea
			WHERE ctid = (SELECT ctid FROM checkout.answer WHERE NOT other LIMIT 1)`, map[string]string{"clients": "2 different answers"}},
		{"all clients of a key were given a wrong body", `UPDATE checkout.answer SET body = '{"id":"0"}' WHERE key = (SELECT min(key) FROM checkout.request) AND NOT other`, map[string]string{
			"clients": "an answer is not about order",
		}},
		{"a client was refused", `UPDATE checkout.answer SET status = 422, location = '', body = 'no' WHERE ctid = (SELECT ctid FROM checkout.answer WHERE NOT other LIMIT 1)`, map[string]string{
			"clients": "a client was refused with 422: no",
		}},
		{"a client has no answer", "DELETE FROM checkout.answer WHERE ctid = (SELECT ctid FROM checkout.answer WHERE NOT other LIMIT 1)", map[string]string{
			"clients": " clients have an answer",
		}},
		{"a key was taken for another order", "UPDATE checkout.answer SET status = 201 WHERE other AND key = (SELECT min(key) FROM checkout.answer WHERE other)", map[string]string{
			"clients that used a key again for another order": "it was answered 201",
		}},
		{"another order was not answered", "DELETE FROM checkout.answer WHERE other AND key = (SELECT min(key) FROM checkout.answer WHERE other)", map[string]string{
			"clients that used a key again for another order": "it was answered nothing",
		}},
		{"an effect is doubled", `WITH r AS (UPDATE checkout.recipient SET parcels = parcels + 1, cents = cents + 1 WHERE customer =` + often + `RETURNING customer, parcels)
			INSERT INTO checkout.parcel (event_id, order_id, customer, turn, number)
			SELECT p.event_id, p.order_id, p.customer, p.turn, r.parcels FROM checkout.parcel p JOIN r ON r.customer = p.customer WHERE p.turn = 1`, map[string]string{
			"confirmed orders": "was packed 2 times", "customers": "confirmed order 1 was packed as number",
		}},
		{"an effect is doubled, but for its row", "UPDATE checkout.recipient SET cents = cents + 1 WHERE customer =" + often, map[string]string{"confirmed orders": "shipping counted"}},
		{"an effect is missing", "DELETE FROM checkout.parcel WHERE order_id =" + some, map[string]string{"confirmed orders": "was packed 0 times"}},
		{"an event was taken for two orders", `UPDATE checkout.parcel SET event_id = (SELECT event_id FROM checkout.parcel ORDER BY order_id LIMIT 1)
			WHERE order_id = (SELECT max(order_id) FROM checkout.parcel)`, map[string]string{"confirmed orders": "it was taken 2 times"}},
		{"two orders of a customer are swapped", `UPDATE checkout.parcel SET number = 3 - number WHERE number IN (1, 2) AND customer =` + often, map[string]string{
			"customers": "confirmed order 2 was packed as number 1",
		}},
		{"a turn is there twice", "UPDATE checkout.orders SET turn = 1 WHERE turn = 2 AND customer =" + often, map[string]string{"customers": " were confirmed"}},
		{"an order's number is there twice", "UPDATE checkout.orders SET number = 1 WHERE number = 2 AND customer =" + often, map[string]string{"customers": " were counted"}},
	} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tag, err := tx.Exec(t.Context(), c.tamper)
		if err != nil || tag.RowsAffected() == 0 {
			t.Fatalf("%s: %d rows, %v", c.what, tag.RowsAffected(), err)
		}
		check(t, tx, run, c.what, c.want)
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func check(t *testing.T, tx pgx.Tx, run int64, what string, want map[string]string) {
	t.Helper()
	_, claims, err := checkout.Prove(t.Context(), tx, ns, run)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for _, c := range claims {
		text, against := want[c.Of]
		got := strings.Join(c.Differences, "\n")
		if against != (got != "") || !strings.Contains(got, text) {
			t.Errorf("%s: of %s it is said %q, want %q", what, c.Of, got, text)
		}
		delete(want, c.Of)
	}
	if len(want) > 0 {
		t.Errorf("%s: there is no claim for %v", what, want)
	}
}

// A run that nobody asked anything in proves nothing.
func TestProve_noRun(t *testing.T) {
	t.Parallel()
	if _, _, err := checkout.Prove(t.Context(), newPool(t), ns, 42); err == nil {
		t.Error("a run that is not there was proved")
	}
}
