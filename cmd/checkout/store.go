package checkout

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

// DB is what the reading functions take: a pool, a connection or a transaction.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// The example's own tables. They have nothing to do with Pawl's: a user of Pawl has tables like these. No unique key guards orders, reservation, payment and parcel.
const schema = `
CREATE SCHEMA IF NOT EXISTS checkout;

-- The shop's.
CREATE TABLE IF NOT EXISTS checkout.customer (
  id        text PRIMARY KEY,
  orders    int  NOT NULL,
  confirmed int  NOT NULL
);
CREATE TABLE IF NOT EXISTS checkout.orders (
  id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  customer text        NOT NULL,
  number   int         NOT NULL,
  item     text        NOT NULL,
  cents    bigint      NOT NULL,
  state    text        NOT NULL,
  turn     int,                            -- among the customer's confirmed orders
  gift     boolean     NOT NULL DEFAULT false,
  at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS orders_customer ON checkout.orders (customer, number);
CREATE INDEX IF NOT EXISTS orders_open ON checkout.orders (id) WHERE state IN ('placed', 'accepted');

-- The inventory's. What is put back is a row of its own, below 0.
CREATE TABLE IF NOT EXISTS checkout.stock (
  item      text   PRIMARY KEY,
  delivered bigint NOT NULL,
  pieces    bigint NOT NULL -- that are left
);
CREATE TABLE IF NOT EXISTS checkout.reservation (
  order_id bigint      NOT NULL,
  item     text        NOT NULL,
  pieces   int         NOT NULL,
  at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS reservation_order ON checkout.reservation (order_id);

-- Payments'. A refund is a row of its own, below 0. Of each call that came again there is a row in payment_repeat.
CREATE TABLE IF NOT EXISTS checkout.account (
  customer text   PRIMARY KEY,
  cents    bigint NOT NULL -- paid so far
);
CREATE TABLE IF NOT EXISTS checkout.payment (
  id       bigint      GENERATED ALWAYS AS IDENTITY,
  order_id bigint      NOT NULL,
  customer text        NOT NULL,
  cents    bigint      NOT NULL,
  at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS payment_order ON checkout.payment (order_id);
CREATE TABLE IF NOT EXISTS checkout.payment_repeat (
  saga text        NOT NULL,
  at   timestamptz NOT NULL DEFAULT now()
);

-- Shipping's. Of each event that came again there is a row in repeat.
CREATE TABLE IF NOT EXISTS checkout.recipient (
  customer text   PRIMARY KEY,
  parcels  int    NOT NULL,
  cents    bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS checkout.parcel (
  event_id uuid        NOT NULL,
  order_id bigint      NOT NULL,
  customer text        NOT NULL,
  turn     int         NOT NULL, -- the order's
  number   int         NOT NULL, -- among the customer's parcels
  at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS parcel_customer ON checkout.parcel (customer, number);
CREATE TABLE IF NOT EXISTS checkout.repeat (
  event_id uuid        NOT NULL,
  customer text        NOT NULL,
  at       timestamptz NOT NULL DEFAULT now()
);

-- What the clients of a run asked for, and what each of them was told in the end. other: for another order, with a key that was used.
CREATE TABLE IF NOT EXISTS checkout.run (
  id bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS checkout.request (
  run_id   bigint NOT NULL,
  key      text   NOT NULL,
  customer text   NOT NULL,
  item     text   NOT NULL,
  cents    bigint NOT NULL,
  clients  int    NOT NULL,
  others   int    NOT NULL,
  PRIMARY KEY (run_id, key)
);
CREATE TABLE IF NOT EXISTS checkout.answer (
  run_id       bigint  NOT NULL,
  key          text    NOT NULL,
  other        boolean NOT NULL,
  status       int     NOT NULL,
  replayed     boolean NOT NULL,
  location     text    NOT NULL,
  content_type text    NOT NULL,
  body         bytea   NOT NULL
);
CREATE INDEX IF NOT EXISTS answer_key ON checkout.answer (run_id, key);
`

// Create makes the schema checkout and its tables where they are missing, registers the saga, and makes shipping's subscription, so that no event is missed. Several processes may do so at once.
func Create(ctx context.Context, pool *pgxpool.Pool, ns int16) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('checkout', 0))"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, schema); err != nil {
			return err
		}
		if err := newCheckout(ns).Register(ctx, tx); err != nil {
			return err
		}
		_, err := outbox.Create(ctx, tx, subscription(ns, nil))
		return err
	})
	if err != nil {
		return fmt.Errorf("create tables of checkout: %w", err)
	}
	return nil
}

// shortEvery is of how many pieces that are asked for one is not delivered.
const shortEvery = 5

// Start begins a run: what its clients will ask for, and most of it delivered to the stock.
func Start(ctx context.Context, pool *pgxpool.Pool, orders int) (run int64, requests []Request, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, "INSERT INTO checkout.run DEFAULT VALUES RETURNING id").Scan(&run); err != nil {
			return err
		}
		requests = plan(run, orders)
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"checkout", "request"}, []string{"run_id", "key", "customer", "item", "cents", "clients", "others"},
			pgx.CopyFromSlice(len(requests), func(i int) ([]any, error) {
				q := requests[i]
				return []any{run, q.Key, q.Customer, q.Item, q.Cents, q.Clients, q.Others}, nil
			}))
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			INSERT INTO checkout.stock AS s (item, delivered, pieces)
			SELECT x.item, x.pieces, x.pieces
			FROM (SELECT q.item, count(*) - (count(*) + $2::int / 2) / $2::int AS pieces FROM checkout.request q WHERE q.run_id = $1 GROUP BY q.item) x
			ON CONFLICT (item) DO UPDATE SET delivered = s.delivered + excluded.delivered, pieces = s.pieces + excluded.pieces`, run, shortEvery)
		return err
	})
	if err != nil {
		return 0, nil, fmt.Errorf("start run: %w", err)
	}
	return run, requests, nil
}

// Record writes what the clients of a run were told.
func Record(ctx context.Context, pool *pgxpool.Pool, run int64, answers []Answer) error {
	_, err := pool.CopyFrom(ctx, pgx.Identifier{"checkout", "answer"}, []string{"run_id", "key", "other", "status", "replayed", "location", "content_type", "body"},
		pgx.CopyFromSlice(len(answers), func(i int) ([]any, error) {
			a := answers[i]
			return []any{run, a.Key, a.Other, a.Status, a.Replayed, a.Location, a.ContentType, a.Body}, nil
		}))
	if err != nil {
		return fmt.Errorf("record answers of run %d: %w", run, err)
	}
	return nil
}

// Progress is how far the orders of a run are.
type Progress struct {
	Decided int   // confirmed or cancelled,
	Parcels int   // and packed
	Open    int   // whose sagas are still to end, of other runs too
	Waiting int64 // events, of other runs too, that shipping is still to be told of, or is to be told again
}

// ReadProgress tells how far the orders of a run are.
func ReadProgress(ctx context.Context, on DB, ns int16, run int64) (p Progress, err error) {
	all, err := outbox.List(ctx, on, ns, 10_000)
	if err != nil {
		return p, fmt.Errorf("progress of run %d: %w", run, err)
	}
	for _, s := range all {
		if s.Name == SubscriptionName {
			p.Waiting = s.Lag + s.Parked
		}
	}
	err = on.QueryRow(ctx, `
		WITH customer AS (SELECT DISTINCT q.customer AS id FROM checkout.request q WHERE q.run_id = $1),
		open AS (
		  SELECT o.customer
		  FROM checkout.orders o
		  WHERE o.state = 'accepted' OR o.state = 'placed' AND EXISTS (
		    SELECT FROM pawl.saga g CROSS JOIN LATERAL pawl.saga_now(g.ns, g.id) n WHERE g.ns = $2 AND g.key = 'checkout:' || o.id AND n.state NOT IN ('succeeded', 'compensated', 'forced')))
		SELECT (SELECT count(*) FROM checkout.orders o JOIN customer c ON c.id = o.customer) - (SELECT count(*) FROM open o JOIN customer c ON c.id = o.customer),
		  (SELECT count(*) FROM checkout.parcel p JOIN customer c ON c.id = p.customer),
		  (SELECT count(*) FROM open)`, run, ns).Scan(&p.Decided, &p.Parcels, &p.Open)
	if err != nil {
		return p, fmt.Errorf("progress of run %d: %w", run, err)
	}
	return p, nil
}
