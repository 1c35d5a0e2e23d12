package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// sagaDefinitionsCmd is "pawl saga definitions".
type sagaDefinitionsCmd struct{}

// Help is the long help text.
func (*sagaDefinitionsCmd) Help() string {
	return `Services register definitions when they start; sagas keep the version that they started with. OPEN: sagas that are not at an end; 7+ are at least 7, since only the newest 20,000 sagas of the namespace are looked at. UNSERVED: steps that no live worker handles; sagas that come to them wait until one does.`
}

// Run lists definitions.
func (c *sagaDefinitionsCmd) Run(a *app) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	all, err := saga.Definitions(a.ctx, pool, a.namespace)
	if err != nil {
		return err
	}
	if a.json {
		if all == nil {
			all = []saga.Registered{}
		}
		return a.printJSON(map[string]any{"definitions": all})
	}
	if len(all) == 0 {
		fmt.Fprintln(a.err, "no definitions; services register them when they start")
		return nil
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	t := a.table("NAME", "VERSION", "REGISTERED", "STEPS", "OPEN", "UNSERVED")
	for _, d := range all {
		var missing []string
		for _, st := range d.Steps {
			if !st.Served {
				missing = append(missing, st.Name)
			}
		}
		unserved := "-"
		switch {
		case len(missing) == len(d.Steps):
			unserved = "all"
		case len(missing) > 0:
			unserved = strings.Join(missing, ",")
		}
		open := strconv.FormatInt(d.Open, 10)
		if d.OpenAtLeast {
			open += "+"
		}
		t.row(d.Name, strconv.Itoa(d.Version), ago(now, d.RegisteredAt), strconv.Itoa(len(d.Steps)), open, unserved)
	}
	return t.end()
}
