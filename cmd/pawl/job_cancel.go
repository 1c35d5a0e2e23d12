package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
)

// jobCancelCmd is "pawl job cancel".
type jobCancelCmd struct {
	IDs    []int64 `arg:"" name:"id" help:"Jobs to cancel."`
	Reason string  `placeholder:"TEXT" default:"cancelled by an operator" help:"Why, for those who look at the job. Default: ${default}."`
}

// Run cancels jobs.
func (c *jobCancelCmd) Run(a *app) error {
	return a.eachJob(c.IDs, func(ctx context.Context, pool *pgxpool.Pool, id int64) (job.State, string, string, error) {
		was, err := job.CancelByID(ctx, pool, a.namespace, id, c.Reason)
		switch {
		case err != nil:
			return was, "", "", err
		case was == job.StateRunning:
			return was, "asked", "runs; its process is asked to stop it, and it ends as cancelled unless it succeeds first", nil
		case was.Final():
			return was, "unchanged", fmt.Sprintf("is left as it is: it had %s before", ended(was)), nil
		default:
			return was, "cancelled", fmt.Sprintf("cancelled: it was %s and will not run", was), nil
		}
	})
}

// ended says what a finished job did.
func ended(s job.State) string {
	if s == job.StateSucceeded {
		return "succeeded"
	}
	return "been " + string(s)
}

// eachJob does something to each job and says what came of it: as one word for JSON and as a sentence. Jobs that cannot be changed do not keep the
// others from it; the error is the first one's.
func (a *app) eachJob(ids []int64, do func(context.Context, *pgxpool.Pool, int64) (was job.State, did, sentence string, err error)) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	type row struct {
		ID    int64     `json:"id,string"`
		Was   job.State `json:"was,omitempty"`
		Did   string    `json:"did,omitempty"`
		Error string    `json:"error,omitempty"`
	}
	rows := []row{}
	var first error
	for _, id := range ids {
		was, did, sentence, err := do(a.ctx, pool, id)
		r := row{ID: id, Was: was, Did: did}
		if err != nil {
			r.Error = message(err)
			first = firstError(first, err)
		}
		rows = append(rows, r)
		switch {
		case a.json:
		case err != nil:
			a.complain(err)
		default:
			fmt.Fprintf(a.out, "job %d %s\n", id, sentence)
		}
	}
	if a.json {
		if err := a.printJSON(map[string]any{"jobs": rows}); err != nil {
			return err
		}
	}
	if first != nil {
		return reportedError{first}
	}
	return nil
}
