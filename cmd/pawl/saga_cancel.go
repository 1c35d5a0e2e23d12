package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// sagaCancelCmd is "pawl saga cancel".
type sagaCancelCmd struct {
	ID string `arg:"" help:"Saga to cancel."`
	why
}

// Help is the long help text.
func (*sagaCancelCmd) Help() string {
	return `Before its pivot, a saga compensates: no further step starts, what runs may answer, and then all that was or may have been done is undone, the last first. After the pivot it is too late: the saga goes forward, and nothing is changed.`
}

// Run cancels a saga.
func (c *sagaCancelCmd) Run(a *app) error {
	if err := c.check(); err != nil {
		return err
	}
	return a.actOnSaga(c.ID, "cancelled", nil, func(pool *pgxpool.Pool) error {
		return saga.Cancel(a.ctx, pool, a.namespace, c.ID, c.Actor, c.Reason)
	})
}

// actOnSaga does something to a saga, which its history calls what, and says what came of it. What cannot be taken back asks first; question is nil for the rest.
func (a *app) actOnSaga(id, what string, question func(*saga.Story) error, do func(*pgxpool.Pool) error) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	was, err := saga.Get(a.ctx, pool, a.namespace, id)
	if err != nil {
		return err
	}
	if question != nil && !was.State.Final() {
		if err := question(was); err != nil {
			return err
		}
	}
	if err := do(pool); err != nil {
		return err
	}
	is, err := saga.Get(a.ctx, pool, a.namespace, id)
	if err != nil {
		return err
	}
	did, last := "unchanged", was.Events[len(was.Events)-1].Seq
	if slices.ContainsFunc(is.Events, func(e saga.Event) bool { return e.Seq > last && e.What == what }) {
		did = what
	}
	switch {
	case a.json:
		return a.printJSON(map[string]any{"id": id, "did": did, "was": was.State, "state": is.State})
	case did == "unchanged":
		fmt.Fprintf(a.out, "saga %s is left as it is: it %s\n", plain(id), plain(sagaNow(is)))
	default:
		fmt.Fprintf(a.out, "saga %s was %s, and %s\n", plain(id), was.State, plain(sagaNow(is)))
	}
	return nil
}

// sagaNow says what a saga does now.
func sagaNow(s *saga.Story) string {
	text, mark := "is "+string(s.State)+" now", ": "
	for _, of := range []struct {
		state saga.StepState
		what  string
	}{{saga.StepStuck, "stuck"}, {saga.StepUndoing, "undoing"}, {saga.StepRunning, "running"}} {
		var names []string
		for _, st := range s.Steps {
			if st.State == of.state {
				names = append(names, st.Name)
			}
		}
		if len(names) > 0 && !s.State.Final() {
			text += mark + of.what + " " + strings.Join(names, ", ")
			mark = "; "
		}
	}
	return text
}
