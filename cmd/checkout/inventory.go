package checkout

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

var errShort = errors.New("out of stock")

// reserve takes a piece from the stock for an order. It commits with the advance of the saga, and so there is nothing here that keeps it from being done twice.
func reserve(ctx context.Context, tx pgx.Tx, c *saga.Call[Order]) (saga.None, error) {
	tag, err := tx.Exec(ctx, "UPDATE checkout.stock SET pieces = pieces - 1 WHERE item = $1 AND pieces > 0", c.Input.Item)
	if err != nil {
		return saga.None{}, err
	}
	if tag.RowsAffected() == 0 {
		return saga.None{}, saga.Fail(errShort)
	}
	_, err = tx.Exec(ctx, "INSERT INTO checkout.reservation (order_id, item, pieces) VALUES ($1, $2, 1)", c.Input.ID, c.Input.Item)
	return saga.None{}, err
}

// release puts the piece back. done is nil where no attempt to reserve it has committed, and none ever will.
func release(ctx context.Context, tx pgx.Tx, c *saga.Call[Order], done *saga.None) error {
	if done == nil {
		return nil
	}
	if _, err := tx.Exec(ctx, "UPDATE checkout.stock SET pieces = pieces + 1 WHERE item = $1", c.Input.Item); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "INSERT INTO checkout.reservation (order_id, item, pieces) VALUES ($1, $2, -1)", c.Input.ID, c.Input.Item)
	return err
}
