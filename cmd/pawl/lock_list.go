package main

import (
	"fmt"
	"strconv"

	"github.com/pawl-dev/pawl/coordinator/lock"
)

// lockListCmd is "pawl lock list".
type lockListCmd struct {
	After string `placeholder:"NAME" help:"Only locks behind this name."`
	Limit int    `default:"100" placeholder:"N" help:"Rows at most, 1 to 10,000. Default: ${default}."`
}

// Run lists locks.
func (c *lockListCmd) Run(a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	locks, err := lock.List(a.ctx, pool, a.namespace, c.After, c.Limit)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(struct {
			Locks []lock.Info `json:"locks"`
		}{locks})
	}
	if len(locks) == 0 {
		fmt.Fprintln(a.err, "no lock is held or waited for")
		return nil
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	t := a.table("NAME", "MODE", "TOKEN", "HOLDER", "HOST", "PID", "SINCE", "WAITERS")
	for _, l := range locks {
		waiters := strconv.FormatInt(l.Waiters, 10)
		if len(l.Holders) == 0 {
			why := "nobody"
			if l.FreeAt != nil {
				why = "nobody until " + ago(now, *l.FreeAt) + ", the last holder was lost"
			}
			t.row(l.Name, l.Mode, "-", why, "-", "-", "-", waiters)
		}
		for _, h := range l.Holders {
			name := h.Process
			if h.Dead {
				name += " (dead)"
			}
			t.row(l.Name, l.Mode, strconv.FormatInt(h.Token, 10), name, h.Host, strconv.Itoa(h.PID), ago(now, h.Since), waiters)
		}
	}
	return t.end()
}
