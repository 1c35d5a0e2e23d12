package main

import (
	"fmt"

	"github.com/pawl-dev/pawl/db/migrate"
)

// migrateUpCmd is "pawl migrate up".
type migrateUpCmd struct{}

// Help is the long help text.
func (*migrateUpCmd) Help() string {
	return `Applies what the database lacks, each migration in a transaction of its own. Any number of processes may migrate at once: they take turns. Needs the direct URL of Postgres, not that of a pooler. A database that a newer pawl migrated is refused (exit code 5).`
}

// Run migrates up.
func (*migrateUpCmd) Run(a *app) error {
	u, err := a.url()
	if err != nil {
		return err
	}
	result, err := migrate.Up(a.ctx, u)
	return a.migrated(result, err, "applied", "nothing to do")
}

// migrated tells what migrations did, also those before a failure.
func (a *app) migrated(result migrate.Result, err error, did, nothing string) error {
	type step struct {
		Version int64   `json:"version"`
		Name    string  `json:"name"`
		TookMS  float64 `json:"took_ms"`
	}
	steps := make([]step, len(result.Steps))
	for i, s := range result.Steps {
		steps[i] = step{s.Version, s.Name, float64(s.Duration.Microseconds()) / 1000}
		if !a.json {
			fmt.Fprintf(a.out, "%s %s (%s)\n", did, s.Name, span(s.Duration))
		}
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"version": result.Version, "steps": steps})
	}
	if len(steps) == 0 {
		fmt.Fprintf(a.out, "%s: ", nothing)
	}
	fmt.Fprintf(a.out, "the schema is at version %d\n", result.Version)
	return nil
}
