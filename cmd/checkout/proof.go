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
	Parcels   int `json:"parcels"`
	Repeats   int `json:"repeats"` // events that came again and were known
	// ExampleKey is one that was asked for most often, ExampleOrder and ExampleCustomer are its order and customer.
	ExampleKey      string `json:"example_key"`
	ExampleOrder    int64  `json:"example_order,string"`
	ExampleCustomer string `json:"example_customer"`
}

// of is what the queries below have in common: the requests and answers of run $1, the orders and the parcels of its customers, and the order that the clients of a key were told of.
const of = `
	WITH request AS (
	  SELECT q.*, (SELECT min(substring(a.location FROM '^/orders/(\d{1,18})$')::bigint) FROM checkout.answer a WHERE a.run_id = q.run_id AND a.key = q.key AND NOT a.other) AS order_id
	  FROM checkout.request q
	  WHERE q.run_id = $1),
	answer AS (SELECT a.* FROM checkout.answer a WHERE a.run_id = $1),
	customer AS (SELECT DISTINCT q.customer AS id FROM request q),
	orders AS (SELECT o.* FROM checkout.orders o WHERE o.customer IN (SELECT c.id FROM customer c)),
	parcel AS (SELECT p.* FROM checkout.parcel p WHERE p.customer IN (SELECT c.id FROM customer c))`

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
		"orders", "each was packed once, and the parcels and cents of every customer add up",
		func(f Figures) int { return f.Orders },
		[]string{
			`SELECT 'order ' || o.id || ' of ' || o.customer || ': it was packed ' || count(p.order_id) || ' times'
			FROM orders o
			LEFT JOIN parcel p ON p.order_id = o.id
			GROUP BY o.id, o.customer
			HAVING count(p.order_id) <> 1`,
			`SELECT 'event ' || p.event_id || ': it was taken ' || count(*) || ' times'
			FROM parcel p
			GROUP BY p.event_id
			HAVING count(*) > 1`,
			`SELECT 'parcel ' || p.parcel_number || ' of ' || p.customer || ': there is no order ' || p.order_id
			FROM parcel p
			WHERE p.order_id NOT IN (SELECT o.id FROM orders o)`,
			`SELECT c.id || ': shipping counted ' || coalesce(r.parcels, 0) || ' parcels for ' || coalesce(r.cents, 0) || ' cents, of ' || count(o.id) || ' orders for ' || coalesce(sum(o.cents), 0)
			FROM customer c
			LEFT JOIN orders o ON o.customer = c.id
			LEFT JOIN checkout.recipient r ON r.customer = c.id
			GROUP BY c.id, r.parcels, r.cents
			HAVING (count(o.id), coalesce(sum(o.cents), 0)) IS DISTINCT FROM (coalesce(r.parcels, 0)::bigint, coalesce(r.cents, 0)::numeric)`,
		},
	},
	{
		"customers", "the orders of each came to shipping in the order of their commits",
		func(f Figures) int { return f.Customers },
		[]string{
			`SELECT p.customer || ': order number ' || p.order_number || ' was packed as number ' || p.parcel_number
			FROM parcel p
			WHERE p.order_number <> p.parcel_number`,
			`SELECT c.id || ': its ' || count(o.id) || ' orders are numbered ' || coalesce(min(o.number), 0) || ' to ' || coalesce(max(o.number), 0) || ', and ' || coalesce(k.orders, 0) || ' were counted'
			FROM customer c
			LEFT JOIN orders o ON o.customer = c.id
			LEFT JOIN checkout.customer k ON k.id = c.id
			GROUP BY c.id, k.orders
			HAVING (count(o.id), count(DISTINCT o.number), min(o.number), max(o.number)) IS DISTINCT FROM (k.orders::bigint, k.orders::bigint, 1, k.orders)`,
		},
	},
}

// differencesMax is how many cases are listed that speak against a claim.
const differencesMax = 1000

// Prove looks in the tables for what speaks against each claim, once all clients of a run have their answer and nothing is on its way to shipping.
func Prove(ctx context.Context, on DB, run int64) (Figures, []Claim, error) {
	f, err := readFigures(ctx, on, run)
	if err != nil {
		return f, nil, err
	}
	var out []Claim
	for _, c := range claims {
		claim := Claim{Count: c.count(f), Of: c.of, Text: c.text}
		for _, query := range c.against {
			rows, err := on.Query(ctx, of+query+" ORDER BY 1 LIMIT $2", run, differencesMax)
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

func readFigures(ctx context.Context, on DB, run int64) (f Figures, err error) {
	err = on.QueryRow(ctx, of+`
		SELECT (SELECT count(*) FROM request), (SELECT coalesce(sum(q.clients), 0) FROM request q), (SELECT coalesce(sum(q.others), 0) FROM request q),
		  (SELECT count(*) FROM customer), (SELECT count(*) FROM orders), (SELECT count(*) FROM parcel),
		  (SELECT count(*) FROM checkout.repeat r WHERE r.customer IN (SELECT c.id FROM customer c)), x.key, coalesce(x.order_id, 0), x.customer
		FROM request x
		ORDER BY x.clients DESC, x.others DESC, x.key
		LIMIT 1`, run).Scan(&f.Keys, &f.Clients, &f.Others, &f.Customers, &f.Orders, &f.Parcels, &f.Repeats, &f.ExampleKey, &f.ExampleOrder, &f.ExampleCustomer)
	if err != nil {
		return f, fmt.Errorf("figures of run %d: %w", run, err)
	}
	return f, nil
}
