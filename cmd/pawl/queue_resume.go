package main

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
)

// queueResumeCmd is "pawl queue resume".
type queueResumeCmd struct {
	Names []string `arg:"" name:"queue" help:"Queues to resume."`
}

// Run resumes queues.
func (c *queueResumeCmd) Run(a *app) error {
	return a.eachQueue(c.Names, "open", func(ctx context.Context, pool *pgxpool.Pool, name string) error {
		return job.ResumeQueue(ctx, pool, a.namespace, name)
	})
}
