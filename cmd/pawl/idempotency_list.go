package main

import (
	"fmt"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
)

// idempotencyListCmd is "pawl idempotency list".
type idempotencyListCmd struct {
	Limit int `default:"100" help:"At most that many, 1 to 10,000."`
}

// Run lists phased requests in progress.
func (c *idempotencyListCmd) Run(a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	found, err := idempotency.List(a.ctx, pool, a.namespace, c.Limit)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"keys": keyRows(found)})
	}
	if len(found) == 0 {
		fmt.Fprintln(a.err, "no phased request is in progress")
		return nil
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	t := a.table("KEY", "SCOPE", "STATE", "SINCE", "CLAIM")
	for _, s := range found {
		t.row(s.Key.Key, s.Scope, "in progress "+reached(s.Points), ago(now, s.Progress.Since), claimText(now, s.Progress))
	}
	return t.end()
}
