package main

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// sagaForceCmd is "pawl saga force".
type sagaForceCmd struct {
	ID  string `arg:"" help:"Saga to end."`
	Yes bool   `short:"y" help:"Do not ask."`
	why
}

// Help is the long help text.
func (*sagaForceCmd) Help() string {
	return `The last resort. No further step or compensation of the saga runs, its locks are freed, and its state is forced for good. What was done stays done. Says what that leaves behind, and asks.`
}

// Run ends a saga as it stands.
func (c *sagaForceCmd) Run(a *app) error {
	if err := c.check(); err != nil {
		return err
	}
	question := func(s *saga.Story) error { return a.confirm(c.Yes, plain(leftBehind(s))) }
	return a.actOnSaga(c.ID, "forced", question, func(pool *pgxpool.Pool) error {
		return saga.Force(a.ctx, pool, a.namespace, c.ID, c.Actor, c.Reason)
	})
}

// leftBehind says what a saga that ends as it stands has done, may have done, and has not done.
func leftBehind(s *saga.Story) string {
	var done, open, never []string
	for _, st := range s.Steps {
		switch st.State {
		case saga.StepSucceeded, saga.StepSkipped:
			if !st.ReadOnly {
				done = append(done, st.Name)
			}
		case saga.StepRunning, saga.StepUnknown, saga.StepStuck, saga.StepUndoing:
			open = append(open, st.Name)
		case saga.StepWaiting:
			never = append(never, st.Name)
		case saga.StepRefused, saga.StepUndone:
		}
	}
	text := fmt.Sprintf("Saga %s ends as it stands, for good.", s.ID)
	for _, of := range []struct {
		steps []string
		what  string
	}{{done, "Done, and stays so: %s."}, {open, "Done or not, nobody knows: %s."}, {never, "Never begun: %s."}} {
		if len(of.steps) > 0 {
			text += " " + fmt.Sprintf(of.what, strings.Join(of.steps, ", "))
		}
	}
	return text
}
