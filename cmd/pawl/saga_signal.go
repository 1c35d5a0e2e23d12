package main

import (
	"fmt"
	"slices"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// sagaSignalCmd is "pawl saga signal".
type sagaSignalCmd struct {
	ID     string `arg:"" help:"Saga that waits, or will."`
	Signal string `arg:"" help:"Step that is a signal."`
	Value  string `arg:"" optional:"" default:"null" placeholder:"JSON" help:"What the signal brings, for the steps behind it: JSON, @FILE, or - for standard input. Default: ${default}."`
}

// Help is the long help text.
func (*sagaSignalCmd) Help() string {
	return `Does what a service does that sends the signal: the saga goes on with the steps behind it. One that comes before its turn is kept until then. The first value counts: a second is refused, and so is one that comes too late. Nobody checks the value: the steps behind it find out.

Examples:

    pawl saga signal checkout:4711 approval true

    pawl saga signal checkout:4711 approval '{"by": "mia"}'

    pawl saga signal checkout:4711 correction -- -5`
}

// Run sends a signal.
func (c *sagaSignalCmd) Run(a *app) error {
	value, err := readJSON("the value", c.Value, a.in)
	if err != nil {
		return err
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := saga.SendByName(a.ctx, pool, a.namespace, c.ID, c.Signal, value); err != nil {
		return err
	}
	s, err := saga.Get(a.ctx, pool, a.namespace, c.ID)
	if err != nil {
		return err
	}
	kept := slices.ContainsFunc(s.Steps, func(st saga.StepStory) bool { return st.Name == c.Signal && st.State == saga.StepWaiting })
	if a.json {
		return a.printJSON(struct {
			ID     string     `json:"id"`
			Signal string     `json:"signal"`
			Kept   bool       `json:"kept"` // it is not its turn yet
			State  saga.State `json:"state"`
		}{c.ID, c.Signal, kept, s.State})
	}
	if kept {
		fmt.Fprintf(a.out, "signal %s is kept for saga %s until it is its turn; the saga %s\n", plain(c.Signal), plain(c.ID), plain(sagaNow(s)))
		return nil
	}
	fmt.Fprintf(a.out, "signal %s came to saga %s, which %s\n", plain(c.Signal), plain(c.ID), plain(sagaNow(s)))
	return nil
}
