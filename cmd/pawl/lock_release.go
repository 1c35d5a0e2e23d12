package main

import (
	"fmt"

	"github.com/pawl-dev/pawl/coordinator/lock"
)

// lockReleaseCmd is "pawl lock release".
type lockReleaseCmd struct {
	Name   string `arg:"" help:"Lock."`
	Force  bool   `required:"" help:"Yes, take it away: what its holder does under it is not undone."`
	Reason string `required:"" placeholder:"TEXT" help:"Why; it is kept with the lock."`
}

// Run takes the lock away.
func (c *lockReleaseCmd) Run(a *app) error {
	if len(c.Reason) > 1024 {
		return usagef("--reason has %d bytes, more than 1,024", len(c.Reason))
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	n, err := lock.Force(a.ctx, pool, a.namespace, c.Name, c.Reason)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"name": c.Name, "holders": n})
	}
	if n == 0 {
		fmt.Fprintf(a.out, "lock %s was held by nobody\n", plain(c.Name))
		return nil
	}
	fmt.Fprintf(a.out, "lock %s was taken from %d; their contexts end, their tokens are refused\n", plain(c.Name), n)
	return nil
}
