package main

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// sagaRetryCmd is "pawl saga retry".
type sagaRetryCmd struct {
	ID string `arg:"" help:"Saga to bring on."`
	why
}

// Help is the long help text.
func (*sagaRetryCmd) Help() string {
	return `Every stuck step and compensation of the saga is tried again now, with as many attempts as its definition gives it, under the same idempotency key.`
}

// Run retries what is stuck.
func (c *sagaRetryCmd) Run(a *app) error {
	if err := c.check(); err != nil {
		return err
	}
	return a.actOnSaga(c.ID, "retried", nil, func(pool *pgxpool.Pool) error {
		return saga.Retry(a.ctx, pool, a.namespace, c.ID, c.Actor, c.Reason)
	})
}
