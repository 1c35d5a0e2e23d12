package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
)

// sagaShowCmd is "pawl saga show".
type sagaShowCmd struct {
	ID string `arg:"" help:"Saga to show."`
}

// Help is the long help text.
func (*sagaShowCmd) Help() string {
	return `First what is wrong and what to do about it, then the steps as a graph, then what is known of the saga, then everything that happened to it, when, by whom and why.

A step that waits for several is below all of them, and lines lead to it. The signs: · waits for other steps, ▸ its job waits or runs, ✓ succeeded, ✗ refused, with nothing done, ? its attempts were used up and nobody knows whether it was done, ! stuck, ◂ its compensation waits or runs, ↶ undone, » skipped by an operator. Long texts are cut, --json has them whole.`
}

// Run tells a saga's story.
func (c *sagaShowCmd) Run(a *app) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	story, err := saga.Get(a.ctx, pool, a.namespace, c.ID)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(story)
	}
	s := &sagaStory{Story: story}
	if err := s.ask(a.ctx, pool, a.namespace); err != nil {
		return err
	}
	if s.page, err = a.page(pool); err != nil {
		return err
	}
	fmt.Fprint(a.out, s.text())
	return nil
}

// ask reads what the story does not tell of the steps that are not through: where their jobs are and who runs them, and how the sagas are that are steps of this one. What has left since is not known.
func (s *sagaStory) ask(ctx context.Context, pool *pgxpool.Pool, ns int16) error {
	s.jobs, s.children = map[int64]*job.Story{}, map[string]sagaChild{}
	for _, st := range s.Steps {
		if id := jobOf(st); id != 0 && (st.State == saga.StepRunning || st.State == saga.StepUndoing) {
			j, err := job.Get(ctx, pool, ns, id)
			if err != nil && !errors.Is(err, job.ErrNotFound) {
				return err
			} else if err == nil {
				s.jobs[id] = j
			}
		}
		if st.Child != "" {
			var err error
			if s.children[st.Child], err = findChild(ctx, pool, ns, st.Child); err != nil {
				return err
			}
		}
	}
	return nil
}

// findChild tells how a saga that is a step of another stands, and those below it.
func findChild(ctx context.Context, pool *pgxpool.Pool, ns int16, id string) (sagaChild, error) {
	s, err := saga.Get(ctx, pool, ns, id)
	if errors.Is(err, saga.ErrNotFound) {
		return sagaChild{}, nil
	} else if err != nil {
		return sagaChild{}, err
	}
	c := sagaChild{state: s.State}
	if s.State == saga.StateStuck {
		c.stuck = id
	}
	for _, st := range s.Steps {
		if c.stuck == "" && st.Child != "" && st.State == saga.StepRunning {
			below, err := findChild(ctx, pool, ns, st.Child)
			if err != nil {
				return c, err
			}
			c.stuck = below.stuck
		}
	}
	return c, nil
}

// jobOf is the job that a step waits for or ended with last: its compensation's, if it has one. 0: none.
func jobOf(st saga.StepStory) int64 {
	if st.UndoJobID != 0 {
		return st.UndoJobID
	}
	return st.JobID
}
