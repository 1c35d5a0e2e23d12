package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
)

// queuePauseCmd is "pawl queue pause".
type queuePauseCmd struct {
	Names []string `arg:"" name:"queue" help:"Queues to pause."`
}

// Run pauses queues.
func (c *queuePauseCmd) Run(a *app) error {
	return a.eachQueue(c.Names, "paused", func(ctx context.Context, pool *pgxpool.Pool, name string) error {
		return job.PauseQueue(ctx, pool, a.namespace, name)
	})
}

// eachQueue does something to each queue and says so. Queues that cannot be changed do not keep the others from it; the error is the first one's.
func (a *app) eachQueue(names []string, did string, do func(context.Context, *pgxpool.Pool, string) error) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	type row struct {
		Name   string `json:"name"`
		Paused bool   `json:"paused"`
		Error  string `json:"error,omitempty"`
	}
	rows := []row{}
	var first error
	for _, name := range names {
		err := do(a.ctx, pool, name)
		r := row{Name: name, Paused: did == "paused"}
		if err != nil {
			r.Error, r.Paused = message(err), false
			first = firstError(first, err)
		}
		rows = append(rows, r)
		switch {
		case a.json:
		case err != nil:
			a.complain(err)
		default:
			fmt.Fprintf(a.out, "queue %s is %s\n", plain(name), did)
		}
	}
	if a.json {
		if err := a.printJSON(map[string]any{"queues": rows}); err != nil {
			return err
		}
	}
	if first != nil {
		return reportedError{first}
	}
	return nil
}

// firstError keeps the first error.
func firstError(first, err error) error {
	if first != nil {
		return first
	}
	return err
}
