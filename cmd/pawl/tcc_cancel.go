package main

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/tcc"
)

// tccCancelCmd is "pawl tcc cancel".
type tccCancelCmd struct {
	ID string `arg:"" help:"Transaction to cancel."`
	why
}

// Help is the long help text.
func (*tccCancelCmd) Help() string {
	return `Decides a transaction that is active: all its branches are cancelled, whether or not they were tried, and its initiator cannot confirm it any more. Without that it is cancelled at its deadline. One that is confirmed is refused, and nothing is changed.`
}

// Run cancels a transaction.
func (c *tccCancelCmd) Run(a *app) error {
	if err := c.check(); err != nil {
		return err
	}
	return a.actOnTCC(c.ID, func(pool *pgxpool.Pool, was *tcc.Story) (string, error) {
		did := "cancelled"
		if was.DecidedAt != nil {
			did = "unchanged"
		}
		return did, tcc.CancelByID(a.ctx, pool, a.namespace, c.ID, c.Actor, c.Reason)
	})
}
