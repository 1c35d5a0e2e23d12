package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
)

// jobRetryCmd is "pawl job retry".
type jobRetryCmd struct {
	IDs []int64 `arg:"" name:"id" help:"Jobs to run again."`
}

// Run retries jobs.
func (c *jobRetryCmd) Run(a *app) error {
	return a.eachJob(c.IDs, func(ctx context.Context, pool *pgxpool.Pool, id int64) (job.State, string, string, error) {
		was, err := job.RetryByID(ctx, pool, a.namespace, id)
		switch {
		case err != nil:
			return was, "", "", err
		case was == job.StateRunning:
			return was, "unchanged", "is left as it is: it runs", nil
		case was == job.StateAvailable:
			return was, "unchanged", "is left as it is: it is in line already", nil
		case was.Final():
			return was, "lined", fmt.Sprintf("goes again: it had %s before and gets one attempt more", ended(was)), nil
		default:
			return was, "lined", "goes at once, rather than at its time", nil
		}
	})
}
