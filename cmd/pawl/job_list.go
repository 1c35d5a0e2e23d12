package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pawl-dev/pawl/coordinator/job"
)

// jobListCmd is "pawl job list".
type jobListCmd struct {
	Queue  string    `placeholder:"NAME" help:"Only jobs of this queue."`
	Kind   string    `placeholder:"KIND" help:"Only jobs of this kind."`
	State  job.State `placeholder:"STATE" help:"Only jobs in this state: scheduled, available, running, retrying, succeeded, discarded or cancelled."`
	Limit  int       `default:"50" placeholder:"N" help:"Rows at most, 1 to 1,000. Default: ${default}."`
	Before int64     `placeholder:"ID" help:"Only jobs with ids below this one, to go on with a listing."`
}

// states are those a job can be in, in the order it may pass them.
var states = []job.State{
	job.StateScheduled, job.StateAvailable, job.StateRunning, job.StateRetrying, job.StateSucceeded, job.StateDiscarded, job.StateCancelled,
}

// Help is the long help text.
func (*jobListCmd) Help() string {
	return fmt.Sprintf(`A job's state is worked out from what happened to it, so a listing by state looks at %d jobs at most and says where to go on. SINCE: since when the state is so, or when a waiting job will run.`, job.ListScanMax)
}

// Run lists jobs.
func (c *jobListCmd) Run(a *app) error {
	if c.Limit < 1 || c.Limit > 1000 {
		return usagef("--limit %d is outside 1 to 1,000", c.Limit)
	}
	if c.State != "" && !slices.Contains(states, c.State) {
		return usagef("--state %q is none of %s", c.State, strings.Trim(fmt.Sprint(states), "[]"))
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	jobs, next, err := job.List(a.ctx, pool, job.Filter{
		Namespace: a.namespace, Queue: c.Queue, Kind: c.Kind, State: c.State, Before: c.Before, Limit: c.Limit,
	})
	if err != nil {
		return err
	}
	if a.json {
		if jobs == nil {
			jobs = []job.Summary{}
		}
		return a.printJSON(struct {
			Jobs []job.Summary `json:"jobs"`
			Next int64         `json:"next,string,omitempty"` // for --before
		}{jobs, next})
	}
	if len(jobs) == 0 {
		fmt.Fprintln(a.err, "no such jobs")
	} else {
		now, err := a.now(a.ctx, pool)
		if err != nil {
			return err
		}
		t := a.table("ID", "STATE", "SINCE", "ATTEMPT", "KIND", "QUEUE", "PRIORITY", "CREATED")
		for _, j := range jobs {
			t.row(strconv.FormatInt(j.ID, 10), string(j.State), ago(now, j.At), attemptOf(j), j.Kind, j.Queue, strconv.Itoa(j.Priority), ago(now, j.CreatedAt))
		}
		if err := t.end(); err != nil {
			return err
		}
	}
	if next != 0 {
		fmt.Fprintf(a.err, "there may be more: --before %d\n", next)
	}
	return nil
}

// attemptOf writes which attempt a job is at, of how many.
func attemptOf(j job.Summary) string { return fmt.Sprintf("%d/%d", j.Attempt, j.MaxAttempts) }
