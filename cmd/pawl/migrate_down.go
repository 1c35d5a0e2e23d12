package main

import (
	"fmt"

	"github.com/pawl-dev/pawl/db/migrate"
)

// migrateDownCmd is "pawl migrate down".
type migrateDownCmd struct {
	To  int64 `required:"" placeholder:"VERSION" help:"Version to go back to; 0 removes everything of Pawl, the schema included."`
	Yes bool  `short:"y" help:"Do not ask."`
}

// Run migrates down, after asking.
func (c *migrateDownCmd) Run(a *app) error {
	u, err := a.url()
	if err != nil {
		return err
	}
	if c.To < 0 {
		return usagef("--to %d is negative", c.To)
	}
	if c.To > schemaVersion() {
		return usagef("--to %d: this binary knows versions up to %d", c.To, schemaVersion())
	}
	what := fmt.Sprintf("Going back to version %d removes what later migrations made, with the rows in it.", c.To)
	if c.To == 0 {
		what = "This removes the schema pawl with all jobs and their history."
	}
	if err := a.confirm(c.Yes, what); err != nil {
		return err
	}
	result, err := migrate.Down(a.ctx, u, c.To)
	return a.migrated(result, err, "undone", "nothing to do")
}
