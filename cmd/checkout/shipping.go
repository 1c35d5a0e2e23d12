package checkout

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/webhook"
)

// shipping packs a parcel for each confirmed order.
type shipping struct {
	pool *pgxpool.Pool
	ns   int16
}

// Shipping is the HTTP interface of shipping: it takes events that are signed with the secret.
func Shipping(pool *pgxpool.Pool, ns int16, secret string, log *slog.Logger) (http.Handler, error) {
	s := &shipping{pool, ns}
	return webhook.Handler(webhook.Receiver{Secrets: []string{secret}, Handle: s.handle, Logger: log})
}

// handle packs the parcel of an event in the transaction that notes the event. An error, or a crash before the commit, leaves neither, and the event comes again; after the commit
// it may come again too, and is known.
func (s *shipping) handle(ctx context.Context, e outbox.Event) error {
	if e.Type != OrderConfirmed {
		return nil // nothing to ship
	}
	var o Order
	if err := json.Unmarshal(e.Payload, &o); err != nil {
		return outbox.Permanent(fmt.Errorf("event %s is no order: %w", e.ID, err))
	}
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		first, err := idempotency.Once(ctx, tx, s.ns, "shipping", e.ID)
		if err != nil {
			return err
		}
		if !first { // packed already; noted for the report only
			_, err := tx.Exec(ctx, "INSERT INTO checkout.repeat (event_id, customer) VALUES ($1, $2)", e.ID, o.Customer)
			return err
		}
		return pack(ctx, tx, e.ID, o)
	})
}

// pack does what would be wrong if it were done twice: it counts, it adds up, it adds a row.
func pack(ctx context.Context, tx pgx.Tx, eventID string, o Order) error {
	var parcel int
	err := tx.QueryRow(ctx, `
		INSERT INTO checkout.recipient AS r (customer, parcels, cents)
		VALUES ($1, 1, $2)
		ON CONFLICT (customer) DO UPDATE SET parcels = r.parcels + 1, cents = r.cents + excluded.cents
		RETURNING parcels`, o.Customer, o.Cents).Scan(&parcel)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO checkout.parcel (event_id, order_id, customer, turn, number)
		VALUES ($1, $2, $3, $4, $5)`, eventID, o.ID, o.Customer, o.Turn, parcel)
	return err
}
