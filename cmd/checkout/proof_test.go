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
	run := finish(t, pool, 60)
	const (
		some  = " (SELECT o.id FROM checkout.orders o ORDER BY o.id LIMIT 1) "
		often = " (SELECT o.customer FROM checkout.orders o GROUP BY o.customer ORDER BY count(*) DESC LIMIT 1) "
	)
	for _, c := range []struct {
		what   string
		tamper string
		want   map[string]string // what is said against the claims, by what they are of
	}{
		{"nothing", "SELECT 1", map[string]string{}},
		{"an order is missing", "DELETE FROM checkout.orders WHERE id =" + some, map[string]string{
			"keys": " was told, and is not there as ", "orders": "there is no order ", "customers": " were counted",
		}},
		{"an order is there twice", "INSERT INTO checkout.orders (customer, number, item, cents) SELECT customer, number, item, cents FROM checkout.orders WHERE id =" + some, map[string]string{
			"keys": "there is no key for it", "orders": "it was packed 0 times", "customers": " were counted",
		}},
		{"an order is not what was asked for", "UPDATE checkout.orders SET item = item || '!' WHERE id =" + some, map[string]string{"keys": " was told, and is not there as "}},
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
			INSERT INTO checkout.parcel (event_id, order_id, customer, order_number, parcel_number)
			SELECT p.event_id, p.order_id, p.customer, p.order_number, r.parcels FROM checkout.parcel p JOIN r ON r.customer = p.customer WHERE p.order_number = 1`, map[string]string{
			"orders": "it was packed 2 times", "customers": "order number 1 was packed as number",
		}},
		{"an effect is doubled, but for its row", "UPDATE checkout.recipient SET cents = cents + 1 WHERE customer =" + often, map[string]string{"orders": "shipping counted"}},
		{"an effect is missing", "DELETE FROM checkout.parcel WHERE order_id =" + some, map[string]string{"orders": "it was packed 0 times"}},
		{"an event was taken for two orders", `UPDATE checkout.parcel SET event_id = (SELECT event_id FROM checkout.parcel ORDER BY order_id LIMIT 1)
			WHERE order_id = (SELECT max(order_id) FROM checkout.parcel)`, map[string]string{"orders": "it was taken 2 times"}},
		{"two orders of a customer are swapped", `UPDATE checkout.parcel SET parcel_number = 3 - parcel_number WHERE parcel_number IN (1, 2) AND customer =` + often, map[string]string{
			"customers": "order number 2 was packed as number 1",
		}},
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
	_, claims, err := checkout.Prove(t.Context(), tx, run)
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
	if _, _, err := checkout.Prove(t.Context(), newPool(t), 42); err == nil {
		t.Error("a run that is not there was proved")
	}
}
