package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
)

// queueListCmd is "pawl queue list".
type queueListCmd struct {
	After string `placeholder:"NAME" help:"Only queues behind this name."`
	Limit int    `default:"100" placeholder:"N" help:"Rows at most, 1 to 10,000. Default: ${default}."`
}

// Help is the long help text.
func (*queueListCmd) Help() string {
	return `AVAILABLE: jobs in line. SCHEDULED: jobs that wait for their time, retries included. OLDEST: the age of the first job in line. Jobs that run are not counted.`
}

// Run lists queues.
func (c *queueListCmd) Run(a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	queues, err := job.Queues(a.ctx, pool, a.namespace, c.After, c.Limit)
	if err != nil {
		return err
	}
	next := ""
	if len(queues) == c.Limit {
		next = queues[len(queues)-1].Name
	}
	if a.json {
		return a.printJSON(struct {
			Queues []job.QueueInfo `json:"queues"`
			Next   string          `json:"next,omitempty"` // for --after
		}{queues, next})
	}
	if len(queues) == 0 {
		fmt.Fprintln(a.err, "no queues; the first job enqueued to one makes it")
		return nil
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	t := a.table("NAME", "STATE", "AVAILABLE", "SCHEDULED", "OLDEST", "CREATED")
	for _, q := range queues {
		state, oldest := "open", "-"
		if q.Paused {
			state = "paused"
		}
		if q.Available > 0 {
			oldest = span(time.Duration(q.OldestS * float64(time.Second)))
		}
		t.row(q.Name, state, counted(q.Available), counted(q.Scheduled), oldest, ago(now, q.CreatedAt))
	}
	if err := t.end(); err != nil {
		return err
	}
	if next != "" {
		fmt.Fprintf(a.err, "there may be more: --after %s\n", strconv.Quote(next))
	}
	return nil
}

// counted writes a count that stops at a bound.
func counted(n int64) string {
	if n >= job.AvailableMax {
		return strconv.FormatInt(n, 10) + "+"
	}
	return strconv.FormatInt(n, 10)
}
