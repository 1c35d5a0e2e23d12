package checkout

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Claim says what holds for a number of things, unless there are differences.
type Claim struct {
	Count       int      `json:"count"`
	Of          string   `json:"of"`
	Text        string   `json:"claim"`
	Differences []string `json:"differences"`
}

// Figures are what a finished run came to.
type Figures struct {
	Keys      int `json:"keys"`
	Clients   int `json:"clients"` // that asked with them for one order each
	Others    int `json:"others"`  // that used a key again for another order
	Customers int `json:"customers"`
	Orders    int `json:"orders"`
	Confirmed int `json:"confirmed"` // of them
	// Cancelled are the others: there was no piece left, the bank refused, payments gave no answer, or an operator cancelled the saga, which Stopped counts, maybe before it had begun.
	Cancelled  int `json:"cancelled"`
	Short      int `json:"short"`
	Refused    int `json:"refused"`
	Unanswered int `json:"unanswered"`
	Stopped    int `json:"stopped"`

	Items          int `json:"items"`
	Payments       int `json:"payments"` // charges and refunds
	Refunds        int `json:"refunds"`
	PaymentRepeats int `json:"payment_repeats"` // calls that came again and were known
	Parcels        int `json:"parcels"`
	Repeats        int `json:"repeats"` // events that came again and were known
	// ExampleKey is one that was asked for most often, ExampleOrder and ExampleCustomer are its order and customer. ExampleCancelled is an order that was cancelled, 0 for none.
	ExampleKey       string `json:"example_key"`
	ExampleOrder     int64  `json:"example_order,string"`
	ExampleCustomer  string `json:"example_customer"`
	ExampleCancelled int64  `json:"example_cancelled,string"`
}

// of is what the queries below have in common: the requests and answers of run $1, the order that the clients of a key were told of, the orders and the parcels of its customers, what the
// services did of each order, and what became of its saga.
const of = `
	WITH request AS (
	  SELECT q.*, (SELECT min(substring(a.location FROM '^/orders/(\d{1,18})$')::bigint) FROM checkout.answer a WHERE a.run_id = q.run_id AND a.key = q.key AND NOT a.other) AS order_id
	  FROM checkout.request q
	  WHERE q.run_id = $1),
	answer AS (SELECT a.* FROM checkout.answer a WHERE a.run_id = $1),
	customer AS (SELECT DISTINCT q.customer AS id FROM request q),
	saga AS (
	  SELECT g.ns, g.id, g.key, substring(g.key FROM '^checkout:(\d{1,18})$')::bigint AS order_id, n.state::text AS state, d.steps
	  FROM pawl.saga_definition d
	  JOIN pawl.saga g ON g.ns = d.ns AND g.definition_id = d.id
	  CROSS JOIN LATERAL pawl.saga_now(g.ns, g.id) n
	  WHERE d.ns = $2 AND d.name = 'checkout'),
	orders AS (
	  SELECT o.id, o.customer, o.number, o.item, o.cents, CASE WHEN o.state = 'placed' AND s.state = 'compensated' THEN 'cancelled' ELSE o.state END AS state, o.turn, o.gift
	  FROM checkout.orders o
	  LEFT JOIN saga s ON s.order_id = o.id
	  WHERE o.customer IN (SELECT c.id FROM customer c)),
	parcel AS (SELECT p.* FROM checkout.parcel p WHERE p.customer IN (SELECT c.id FROM customer c)),
	done AS (
	  SELECT o.id, o.customer, o.item, o.cents, o.state, coalesce(r.pieces, 0) AS pieces, coalesce(r.reserved, 0) AS reserved, coalesce(r.released, 0) AS released,
	    coalesce(p.cents, 0) AS paid, coalesce(p.charges, 0) AS charges, coalesce(p.refunds, 0) AS refunds, coalesce(p.backward, false) AS backward,
	    coalesce(a.parcels, 0) AS parcels
	  FROM orders o
	  LEFT JOIN (SELECT a.order_id, count(*) AS parcels FROM parcel a GROUP BY a.order_id) a ON a.order_id = o.id
	  LEFT JOIN (
	    SELECT r.order_id, sum(r.pieces) AS pieces, count(*) FILTER (WHERE r.pieces > 0) AS reserved, count(*) FILTER (WHERE r.pieces < 0) AS released
	    FROM checkout.reservation r
	    GROUP BY r.order_id) r ON r.order_id = o.id
	  LEFT JOIN (
	    SELECT p.order_id, sum(p.cents) AS cents, count(*) FILTER (WHERE p.cents > 0) AS charges, count(*) FILTER (WHERE p.cents < 0) AS refunds,
	      max(p.id) FILTER (WHERE p.cents > 0) > min(p.id) FILTER (WHERE p.cents < 0) AS backward
	    FROM checkout.payment p
	    GROUP BY p.order_id) p ON p.order_id = o.id),
	branch AS (
	  SELECT b.gid, bool_or(b.op = 'action' AND b.reason = 'action') AS charged, bool_or(b.op = 'action' AND b.reason = 'action') AND bool_or(b.op = 'undo') AS refunded
	  FROM pawl.barrier b
	  WHERE b.ns = $2 AND b.branch = 'charge'
	  GROUP BY b.gid)`

// claims are what is to be proved, each with queries that find what speaks against it: a line of text for every case.
var claims = []struct {
	of, text string
	count    func(Figures) int
	against  []string
}{
	{
		"keys", "each has one order, as it was asked for, and there is no other",
		func(f Figures) int { return f.Keys },
		[]string{
			`SELECT 'key ' || q.key || ': order ' || coalesce(q.order_id::text, 'none') || ' was told, and is not there as ' || q.customer || ' asked for it: ' || q.item || ', ' || q.cents || ' cents'
			FROM request q
			WHERE NOT EXISTS (SELECT FROM orders o WHERE o.id = q.order_id AND o.customer = q.customer AND o.item = q.item AND o.cents = q.cents)`,
			`SELECT 'order ' || o.id || ' of ' || o.customer || ': there is no key for it'
			FROM orders o
			WHERE o.id NOT IN (SELECT q.order_id FROM request q WHERE q.order_id IS NOT NULL)`,
			`SELECT 'order ' || q.order_id || ': it was told for ' || count(*) || ' keys'
			FROM request q
			GROUP BY q.order_id
			HAVING count(*) > 1 AND q.order_id IS NOT NULL`,
		},
	},
	{
		"clients", "all that shared a key were told the same, byte for byte",
		func(f Figures) int { return f.Clients },
		[]string{
			`SELECT 'key ' || a.key || ': its clients were given ' || count(DISTINCT (a.status, a.location, a.content_type, a.body)) || ' different answers'
			FROM answer a
			WHERE NOT a.other
			GROUP BY a.key
			HAVING count(DISTINCT (a.status, a.location, a.content_type, a.body)) > 1`,
			`SELECT 'key ' || a.key || ': a client was refused with ' || a.status || ': ' || left(encode(a.body, 'escape'), 200)
			FROM answer a
			WHERE NOT a.other AND a.status <> 201`,
			`SELECT DISTINCT 'key ' || q.key || ': an answer is not about order ' || q.order_id || ', where its Location points'
			FROM request q
			JOIN answer a ON a.key = q.key AND NOT a.other AND a.status = 201
			WHERE encode(a.body, 'escape') NOT LIKE '{"id":"' || q.order_id || '",%'`,
			`SELECT 'key ' || q.key || ': ' || count(a.key) || ' of ' || q.clients || ' clients have an answer'
			FROM request q
			LEFT JOIN answer a ON a.key = q.key AND NOT a.other
			GROUP BY q.key, q.clients
			HAVING count(a.key) <> q.clients`,
		},
	},
	{
		"clients that used a key again for another order", "each was refused (422)",
		func(f Figures) int { return f.Others },
		[]string{
			`SELECT 'key ' || q.key || ': used for another order it was answered ' || coalesce(string_agg(a.status::text, ', '), 'nothing')
			FROM request q
			LEFT JOIN answer a ON a.key = q.key AND a.other
			WHERE q.others > 0
			GROUP BY q.key, q.others
			HAVING count(*) FILTER (WHERE a.status = 422) <> q.others`,
		},
	},
	{
		"orders", "the saga of each has ended, and the order is confirmed or cancelled as the saga is done or undone; none is left over",
		func(f Figures) int { return f.Orders },
		[]string{
			`SELECT 'order ' || o.id || ' of ' || o.customer || ' is ' || o.state || ', and its saga is ' || coalesce(s.state, 'missing')
			FROM orders o
			LEFT JOIN saga s ON s.order_id = o.id
			WHERE (o.state, s.state) NOT IN (('confirmed', 'succeeded'), ('cancelled', 'compensated')) OR s.state IS NULL`,
			`SELECT 'saga ' || s.key || ' is left over: it is ' || s.state || ', and its order ' || CASE WHEN o.id IS NULL THEN 'is not there' ELSE 'is ' || o.state END
			FROM saga s
			LEFT JOIN checkout.orders o ON o.id = s.order_id
			WHERE o.id IS NULL OR s.state NOT IN ('succeeded', 'compensated')`,
		},
	},
	{
		"confirmed orders", "each has its piece, is paid and packed once, and what each customer paid and was sent adds up",
		func(f Figures) int { return f.Confirmed },
		[]string{
			`SELECT 'order ' || d.id || ' of ' || d.customer || ' has ' || d.pieces || ' pieces and ' || d.paid || ' of ' || d.cents || ' cents, and was packed ' || d.parcels || ' times'
			FROM done d
			WHERE d.state = 'confirmed' AND (d.pieces, d.paid, d.parcels) IS DISTINCT FROM (1::bigint, d.cents::numeric, 1::bigint)`,
			`SELECT 'event ' || p.event_id || ': it was taken ' || count(*) || ' times'
			FROM parcel p
			GROUP BY p.event_id
			HAVING count(*) > 1`,
			`SELECT 'parcel ' || p.number || ' of ' || p.customer || ': there is no order ' || p.order_id
			FROM parcel p
			WHERE p.order_id NOT IN (SELECT o.id FROM orders o)`,
			`SELECT c.id || ': paid ' || coalesce(a.cents, 0) || ' cents, and shipping counted ' || coalesce(r.parcels, 0) || ' parcels for ' || coalesce(r.cents, 0) || ', of '
			  || count(o.id) || ' orders for ' || coalesce(sum(o.cents), 0)
			FROM customer c
			LEFT JOIN orders o ON o.customer = c.id AND o.state = 'confirmed'
			LEFT JOIN checkout.account a ON a.customer = c.id
			LEFT JOIN checkout.recipient r ON r.customer = c.id
			GROUP BY c.id, a.cents, r.parcels, r.cents
			HAVING (count(o.id), coalesce(sum(o.cents), 0), coalesce(sum(o.cents), 0))
			  IS DISTINCT FROM (coalesce(r.parcels, 0)::bigint, coalesce(r.cents, 0)::numeric, coalesce(a.cents, 0)::numeric)`,
		},
	},
	{
		"cancelled orders", "nothing is left of any: no piece, no cent, no parcel",
		func(f Figures) int { return f.Cancelled },
		[]string{
			`SELECT 'order ' || d.id || ' of ' || d.customer || ' is ' || d.state || ', and has ' || d.pieces || ' pieces and ' || d.paid || ' cents, and was packed ' || d.parcels || ' times'
			FROM done d
			WHERE d.state <> 'confirmed' AND (d.pieces <> 0 OR d.paid <> 0 OR d.parcels <> 0)`,
		},
	},
	{
		"payments", "none was made twice, whatever was lost on the way, repeated or late, and no charge after its refund; the barrier knows them all",
		func(f Figures) int { return f.Payments },
		[]string{
			`SELECT 'order ' || d.id || ' of ' || d.customer || ' was charged ' || d.charges || ' times and refunded ' || d.refunds || ' times'
			FROM done d
			WHERE d.charges > 1 OR d.refunds > d.charges`,
			`SELECT 'order ' || d.id || ' of ' || d.customer || ' was charged after its refund'
			FROM done d
			WHERE d.backward`,
			`SELECT 'order ' || d.id || ' of ' || d.customer || ' was charged ' || d.charges || ' times and refunded ' || d.refunds || ' times; the barrier says '
			  || coalesce(b.charged, false)::int || ' and ' || coalesce(b.refunded, false)::int
			FROM done d
			LEFT JOIN branch b ON b.gid = 'checkout:' || d.id
			WHERE (d.charges, d.refunds) IS DISTINCT FROM (coalesce(b.charged, false)::int::bigint, coalesce(b.refunded, false)::int::bigint)`,
			`SELECT 'a payment of ' || p.cents || ' cents by ' || p.customer || ': there is no order ' || p.order_id || ' of theirs for as much'
			FROM checkout.payment p
			WHERE p.customer IN (SELECT c.id FROM customer c) AND NOT EXISTS (SELECT FROM orders o WHERE o.id = p.order_id AND o.customer = p.customer AND o.cents = abs(p.cents))`,
		},
	},
	{
		"items", "what was delivered of each is in stock, or belongs to a confirmed order",
		func(f Figures) int { return f.Items },
		[]string{
			`SELECT s.item || ': ' || s.delivered || ' pieces were delivered, ' || s.pieces || ' are in stock, and ' || count(o.id) || ' orders are confirmed'
			FROM checkout.stock s
			LEFT JOIN checkout.orders o ON o.item = s.item AND o.state = 'confirmed'
			GROUP BY s.item, s.delivered, s.pieces
			HAVING s.pieces < 0 OR s.delivered <> s.pieces + count(o.id)`,
			`SELECT 'order ' || d.id || ' of ' || d.customer || ' took ' || d.reserved || ' pieces and gave back ' || d.released
			FROM done d
			WHERE d.reserved > 1 OR d.released > d.reserved`,
			`SELECT 'order ' || d.id || ' of ' || d.customer || ' is for ' || d.item || ', and took ' || r.item
			FROM done d
			JOIN checkout.reservation r ON r.order_id = d.id
			WHERE r.item <> d.item`,
		},
	},
	{
		"customers", "each got no more than one gift, with a confirmed order, and all orders came to shipping in the order in which they were confirmed",
		func(f Figures) int { return f.Customers },
		[]string{
			`SELECT o.customer || ': got ' || count(*) || ' gifts, ' || count(*) FILTER (WHERE o.state = 'confirmed') || ' of them with confirmed orders'
			FROM orders o
			WHERE o.gift
			GROUP BY o.customer
			HAVING count(*) > 1 OR bool_or(o.state <> 'confirmed')`,
			`SELECT p.customer || ': confirmed order ' || p.turn || ' was packed as number ' || p.number
			FROM parcel p
			WHERE p.turn <> p.number`,
			`SELECT c.id || ': its ' || count(o.id) || ' orders are numbered ' || coalesce(min(o.number), 0) || ' to ' || coalesce(max(o.number), 0) || ', and ' || coalesce(k.orders, 0) || ' were counted'
			FROM customer c
			LEFT JOIN orders o ON o.customer = c.id
			LEFT JOIN checkout.customer k ON k.id = c.id
			GROUP BY c.id, k.orders
			HAVING (count(o.id), count(DISTINCT o.number), min(o.number), max(o.number)) IS DISTINCT FROM (k.orders::bigint, k.orders::bigint, 1, k.orders)`,
			`SELECT c.id || ': its ' || count(o.id) || ' confirmed orders had turns ' || coalesce(min(o.turn), 0) || ' to ' || coalesce(max(o.turn), 0) || ', and ' || coalesce(k.confirmed, 0) || ' were confirmed'
			FROM customer c
			LEFT JOIN orders o ON o.customer = c.id AND o.state = 'confirmed'
			LEFT JOIN checkout.customer k ON k.id = c.id
			GROUP BY c.id, k.confirmed
			HAVING (count(o.id), count(DISTINCT o.turn), coalesce(min(o.turn), 1), coalesce(max(o.turn), 0)) IS DISTINCT FROM (k.confirmed::bigint, k.confirmed::bigint, 1, k.confirmed)`,
		},
	},
}

// differencesMax is how many cases are listed that speak against a claim.
const differencesMax = 1000

// Prove looks in the tables for what speaks against each claim, once all clients of a run have their answer, every order is decided, and nothing is on its way to shipping.
func Prove(ctx context.Context, on DB, ns int16, run int64) (Figures, []Claim, error) {
	f, err := readFigures(ctx, on, ns, run)
	if err != nil {
		return f, nil, err
	}
	var out []Claim
	for _, c := range claims {
		claim := Claim{Count: c.count(f), Of: c.of, Text: c.text}
		for _, query := range c.against {
			rows, err := on.Query(ctx, of+query+" ORDER BY 1 LIMIT $3", run, ns, differencesMax)
			if err != nil {
				return f, nil, fmt.Errorf("prove run %d: %w", run, err)
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				return f, nil, fmt.Errorf("prove run %d: %s: %w", run, strings.Join(strings.Fields(query), " "), err)
			}
			claim.Differences = append(claim.Differences, lines...)
		}
		out = append(out, claim)
	}
	return f, out, nil
}

func readFigures(ctx context.Context, on DB, ns int16, run int64) (f Figures, err error) {
	err = on.QueryRow(ctx, of+`,
		-- Why orders were cancelled: what turned the saga.
		failed AS (
		  SELECT x.step, x.what
		  FROM saga s
		  JOIN orders o ON o.id = s.order_id AND o.state = 'cancelled'
		  CROSS JOIN LATERAL (
		    SELECT s.steps[e.step] AS step, e.what::text AS what
		    FROM pawl.saga_event e
		    WHERE e.ns = s.ns AND e.saga_id = s.id AND e.backward
		    ORDER BY e.seq
		    LIMIT 1) x)
		SELECT (SELECT count(*) FROM request), (SELECT coalesce(sum(q.clients), 0) FROM request q), (SELECT coalesce(sum(q.others), 0) FROM request q),
		  (SELECT count(*) FROM customer), (SELECT count(*) FROM orders), (SELECT count(*) FROM orders o WHERE o.state = 'confirmed'), (SELECT count(*) FROM orders o WHERE o.state = 'cancelled'),
		  (SELECT count(*) FROM failed f WHERE f.step = 'reserve' AND f.what = 'refused'), (SELECT count(*) FROM failed f WHERE f.step = 'charge' AND f.what = 'refused'),
		  (SELECT count(*) FROM failed f WHERE f.what = 'exhausted'), (SELECT count(*) FROM failed f WHERE f.what = 'cancelled'),
		  (SELECT count(*) FROM checkout.stock), (SELECT coalesce(sum(d.charges + d.refunds), 0) FROM done d), (SELECT coalesce(sum(d.refunds), 0) FROM done d),
		  (SELECT count(*) FROM checkout.payment_repeat r WHERE r.saga IN (SELECT 'checkout:' || o.id FROM orders o)), (SELECT count(*) FROM parcel),
		  (SELECT count(*) FROM checkout.repeat r WHERE r.customer IN (SELECT c.id FROM customer c)), x.key, coalesce(x.order_id, 0), x.customer,
		  (SELECT coalesce(max(d.id), 0) FROM done d WHERE d.state = 'cancelled' AND d.refunds = (SELECT max(d2.refunds) FROM done d2))
		FROM request x
		ORDER BY x.clients DESC, x.others DESC, x.key
		LIMIT 1`, run, ns).Scan(&f.Keys, &f.Clients, &f.Others, &f.Customers, &f.Orders, &f.Confirmed, &f.Cancelled, &f.Short, &f.Refused, &f.Unanswered, &f.Stopped, &f.Items, &f.Payments, &f.Refunds,
		&f.PaymentRepeats, &f.Parcels, &f.Repeats, &f.ExampleKey, &f.ExampleOrder, &f.ExampleCustomer, &f.ExampleCancelled)
	if err != nil {
		return f, fmt.Errorf("figures of run %d: %w", run, err)
	}
	return f, nil
}
