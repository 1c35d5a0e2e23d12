package main

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/tcc"
)

// tccRetryCmd is "pawl tcc retry".
type tccRetryCmd struct {
	ID string `arg:"" help:"Transaction to bring on."`
	why
}

// Help is the long help text.
func (*tccRetryCmd) Help() string {
	return `Every stuck branch of the transaction is confirmed, or cancelled, again now, as was decided, with as many attempts as its kind gives it, under the same idempotency key.`
}

// Run retries what is stuck.
func (c *tccRetryCmd) Run(a *app) error {
	if err := c.check(); err != nil {
		return err
	}
	return a.actOnTCC(c.ID, func(pool *pgxpool.Pool, _ *tcc.Story) (string, error) {
		return "retried", tcc.Retry(a.ctx, pool, a.namespace, c.ID, c.Actor, c.Reason)
	})
}

// actOnTCC does something to a transaction, and says what came of it. do is given how it was, and tells what it did.
func (a *app) actOnTCC(id string, do func(*pgxpool.Pool, *tcc.Story) (did string, err error)) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	was, err := tcc.Get(a.ctx, pool, a.namespace, id)
	if err != nil {
		return err
	}
	did, err := do(pool, was)
	if err != nil {
		return err
	}
	is, err := tcc.Get(a.ctx, pool, a.namespace, id)
	if err != nil {
		return err
	}
	switch {
	case a.json:
		return a.printJSON(map[string]any{"id": id, "did": did, "was": was.State, "state": is.State})
	case did == "unchanged":
		fmt.Fprintf(a.out, "transaction %s is left as it is: it %s\n", plain(id), plain(tccNow(is)))
	default:
		fmt.Fprintf(a.out, "transaction %s was %s, and %s\n", plain(id), was.State, plain(tccNow(is)))
	}
	return nil
}

// tccNow says what a transaction does now.
func tccNow(s *tcc.Story) string {
	text, mark := "is "+string(s.State)+" now", ": "
	for _, state := range []tcc.State{tcc.Stuck, tcc.Confirming, tcc.Cancelling} {
		var names []string
		for _, b := range s.Branches {
			if b.State == state {
				names = append(names, b.Name)
			}
		}
		if len(names) > 0 && !s.State.Final() {
			text += mark + string(state) + " " + strings.Join(names, ", ")
			mark = "; "
		}
	}
	return text
}
