package main

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/tcc"
)

// tccShowCmd is "pawl tcc show".
type tccShowCmd struct {
	ID string `arg:"" help:"Transaction to show."`
}

// Help is the long help text.
func (*tccShowCmd) Help() string {
	return `First what is wrong and what to do about it, then the branches, then what is known of the transaction, then everything that happened to it, when, by whom and why. A branch is there if it may have been tried. Long texts are cut, --json has them whole.`
}

// Run tells a transaction's story.
func (c *tccShowCmd) Run(a *app) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	story, err := tcc.Get(a.ctx, pool, a.namespace, c.ID)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(story)
	}
	s := &tccStory{Story: story}
	if err := s.ask(a, pool); err != nil {
		return err
	}
	if s.page, err = a.page(pool); err != nil {
		return err
	}
	fmt.Fprint(a.out, s.text())
	return nil
}

// ask reads what the story does not tell of the branches that are not through: where their jobs are and who runs them. What has left since is not known.
func (s *tccStory) ask(a *app, pool *pgxpool.Pool) error {
	s.jobs = map[int64]*job.Story{}
	for _, b := range s.Branches {
		if b.JobID == 0 || b.State.Final() {
			continue
		}
		j, err := job.Get(a.ctx, pool, a.namespace, b.JobID)
		if err != nil && !errors.Is(err, job.ErrNotFound) {
			return err
		} else if err == nil {
			s.jobs[b.JobID] = j
		}
	}
	return nil
}
