package main

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// sagaSkipCmd is "pawl saga skip".
type sagaSkipCmd struct {
	ID     string `arg:"" help:"Saga to bring on."`
	Step   string `arg:"" help:"Step that is stuck, in itself or in its compensation."`
	As     string `required:"" enum:"done,not-done" placeholder:"done|not-done" help:"What you know of it: that it was done, or that it was not."`
	Output string `placeholder:"JSON" help:"With --as done: what the step came to, for the steps behind it: JSON, @FILE, or - for standard input."`
	Yes    bool   `short:"y" help:"Do not ask."`
	why
}

// Help is the long help text.
func (*sagaSkipCmd) Help() string {
	return `Takes your word for a step that is stuck, or for its compensation. Nobody checks it: make sure first. Asks. not-done is for the pivot: the saga is undone. What comes behind the pivot must be done, and what is to be undone must be.

Examples:

    pawl saga skip checkout:4711 charge --as done --output '{"receipt": 17}' --reason 'the bank confirms it'

    pawl saga skip checkout:4711 reserve --as done --reason 'released by hand'`
}

// Run skips a step.
func (c *sagaSkipCmd) Run(a *app) error {
	if err := c.check(); err != nil {
		return err
	}
	as, what := saga.Verdict(c.As), "skipped"
	if as == saga.NotDone {
		what = "failed"
	}
	var output json.RawMessage
	if c.Output != "" {
		if as != saga.Done {
			return usagef("--output needs --as done: what was not done came to nothing")
		}
		var err error
		if output, err = readJSON("--output", c.Output, a.in); err != nil {
			return err
		}
	}
	question := func(s *saga.Story) error { return a.confirm(c.Yes, plain(c.claim(s))) }
	return a.actOnSaga(c.ID, what, question, func(pool *pgxpool.Pool) error {
		return saga.Skip(a.ctx, pool, a.namespace, c.ID, c.Step, as, output, c.Actor, c.Reason)
	})
}

// claim is what the operator vouches for, and what follows from it.
func (c *sagaSkipCmd) claim(s *saga.Story) string {
	undo := slices.ContainsFunc(s.Steps, func(st saga.StepStory) bool { return st.Name == c.Step && st.UndoJobID != 0 })
	switch {
	case undo:
		return fmt.Sprintf("You vouch that %s is undone, and saga %s goes on with undoing what was done before it.", c.Step, c.ID)
	case saga.Verdict(c.As) == saga.NotDone:
		return fmt.Sprintf("You vouch that %s was not done, and will not be; saga %s undoes all that it did.", c.Step, c.ID)
	default:
		return fmt.Sprintf("You vouch that %s was done, and saga %s goes on with the steps behind it.", c.Step, c.ID)
	}
}
