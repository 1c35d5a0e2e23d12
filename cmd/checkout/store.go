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

// The example's own tables. They have nothing to do with Pawl's: a user of Pawl has tables like these. No unique key guards orders and parcel.
const schema = `
CREATE SCHEMA IF NOT EXISTS checkout;

-- The shop's.
CREATE TABLE IF NOT EXISTS checkout.customer (
  id     text PRIMARY KEY,
  orders int  NOT NULL
);
CREATE TABLE IF NOT EXISTS checkout.orders (
  id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  customer text        NOT NULL,
  number   int         NOT NULL,
  item     text        NOT NULL,
  cents    bigint      NOT NULL,
  at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS orders_customer ON checkout.orders (customer, number);

-- Shipping's. Of each event that came again there is a row in repeat.
CREATE TABLE IF NOT EXISTS checkout.recipient (
  customer text   PRIMARY KEY,
  parcels  int    NOT NULL,
  cents    bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS checkout.parcel (
  event_id      uuid        NOT NULL,
  order_id      bigint      NOT NULL,
  customer      text        NOT NULL,
  order_number  int         NOT NULL,
  parcel_number int         NOT NULL,
  at            timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS parcel_customer ON checkout.parcel (customer, parcel_number);
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

// Create makes the schema checkout and its tables where they are missing, and shipping's subscription, so that no event is missed. Several processes may do so at once.
func Create(ctx context.Context, pool *pgxpool.Pool, ns int16) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('checkout', 0))"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, schema); err != nil {
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

// Start begins a run: what its clients will ask for.
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

// Progress is how far shipping is.
type Progress struct {
	Parcels int   // of the run's customers
	Waiting int64 // events, of other runs too, that shipping is still to be told of, or is to be told again
}

// ReadProgress tells how far shipping is with the orders of a run.
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
		SELECT count(*)
		FROM checkout.parcel p
		WHERE p.customer IN (SELECT q.customer FROM checkout.request q WHERE q.run_id = $1)`, run).Scan(&p.Parcels)
	if err != nil {
		return p, fmt.Errorf("progress of run %d: %w", run, err)
	}
	return p, nil
}
