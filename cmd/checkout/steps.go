package checkout

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/saga"
)

// steps are the shop's of the saga. Each commits with the saga's advance.
type steps struct {
	ns   int16
	saga *checkout
}

func (s *steps) accept(ctx context.Context, tx pgx.Tx, c *saga.Call[Order]) (saga.None, error) {
	return saga.None{}, setState(ctx, tx, c.Input.ID, Accepted)
}

// cancel undoes accept, after all that came behind it was undone: with it the saga ends.
func (s *steps) cancel(ctx context.Context, tx pgx.Tx, c *saga.Call[Order], _ *saga.None) error {
	return setState(ctx, tx, c.Input.ID, Cancelled)
}

func setState(ctx context.Context, tx pgx.Tx, order int64, state State) error {
	_, err := tx.Exec(ctx, "UPDATE checkout.orders SET state = $2 WHERE id = $1", order, state)
	return err
}

// welcome finds out whether a gift comes with the order: with one of each customer, and that one must not be cancelled later. So the saga holds a lock until it has ended, and other orders of
// the customer that look meanwhile come without.
func (s *steps) welcome(ctx context.Context, tx pgx.Tx, c *saga.Call[Order]) (out welcome, err error) {
	switch err := saga.Hold(ctx, tx, c, "welcome:"+c.Input.Customer); {
	case errors.Is(err, saga.ErrHeld):
		return welcome{}, nil
	case err != nil:
		return welcome{}, err
	}
	err = tx.QueryRow(ctx, "SELECT NOT EXISTS (SELECT FROM checkout.orders o WHERE o.customer = $1 AND o.gift)", c.Input.Customer).Scan(&out.Gift)
	return out, err
}

// confirm confirms an order and publishes its event. The lock on the customer's row is held to the commit, and so the customer's events follow one another.
func (s *steps) confirm(ctx context.Context, tx pgx.Tx, c *saga.Call[Order]) (saga.None, error) {
	w, err := s.saga.welcome.Output(ctx, c)
	if err != nil {
		return saga.None{}, err
	}
	o := c.Input
	o.State, o.Gift = Confirmed, w.Gift
	if err := tx.QueryRow(ctx, "UPDATE checkout.customer SET confirmed = confirmed + 1 WHERE id = $1 RETURNING confirmed", o.Customer).Scan(&o.Turn); err != nil {
		return saga.None{}, err
	}
	if _, err := tx.Exec(ctx, "UPDATE checkout.orders SET state = $2, turn = $3, gift = $4 WHERE id = $1", o.ID, o.State, o.Turn, o.Gift); err != nil {
		return saga.None{}, err
	}
	payload, err := json.Marshal(o)
	if err != nil {
		return saga.None{}, err
	}
	return saga.None{}, outbox.Outbox{Namespace: s.ns}.Publish(ctx, tx, outbox.Event{Topic: Topic, Key: o.Customer, Type: OrderConfirmed, Payload: payload})
}
