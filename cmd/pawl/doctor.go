package main

import (
	"errors"
	"fmt"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/db/migrate"
)

// doctorCmd is "pawl doctor".
type doctorCmd struct {
	Rebase bool `help:"Make a database work again that was restored, copied or upgraded into another cluster. Asks first."`
	Yes    bool `short:"y" help:"With --rebase: do not ask."`
	participantFlags
}

// Help is the long help text.
func (*doctorCmd) Help() string {
	return `Checks the schema, the server, the sweeps, the sessions and what keeps Postgres from cleaning up, and says what to do. Changes nothing without --rebase. ok: as it should be. warn: works, and may not go on to. bad: a person must act; then the exit code is 1, or 5 if it is the schema.

With participants of global transactions it checks those too: whether they are reached and set up, may prepare, and how much, keep it over a crash, and what is prepared there for long.`
}

// Run checks, or rebases.
func (c *doctorCmd) Run(a *app) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	global, closeAll, err := c.manager(a, pool)
	if err != nil {
		return err
	}
	defer closeAll()
	coord, err := coordinator.New(pool, coordinator.Config{Namespace: a.namespace, Global: global, Logger: a.log})
	if err != nil {
		return err
	}
	if c.Rebase {
		return c.rebase(a, coord)
	}
	schema, schemaErr := a.checkVersions()
	if schemaErr != nil && !errors.Is(schemaErr, errPending) && !errors.Is(schemaErr, migrate.ErrNewer) {
		return schemaErr
	}
	findings, err := coord.Doctor(a.ctx)
	if err != nil && schemaErr == nil {
		return err
	}
	return a.diagnosis(append([]coordinator.Finding{schema}, findings...), schemaErr)
}

// checkVersions compares the migrations of the database with those of this binary. The error is errPending or migrate.ErrNewer if they differ.
func (a *app) checkVersions() (coordinator.Finding, error) {
	f := coordinator.Finding{Check: "schema", Level: coordinator.LevelOK, Value: float64(schemaVersion()), Unit: "version"}
	f.Message = fmt.Sprintf("at version %d, which this binary wants", schemaVersion())
	u, err := a.checkURL()
	if err != nil {
		return f, err
	}
	all, err := migrate.Status(a.ctx, u)
	var newer *migrate.NewerError
	switch {
	case errors.As(err, &newer):
		f.Level, f.Value, f.Remedy = coordinator.LevelBad, float64(newer.Database), "use a pawl at least as new"
		f.Message = fmt.Sprintf("at version %d, and this binary knows versions up to %d", newer.Database, newer.Binary)
		return f, err
	case err != nil:
		return f, err
	}
	if err := pending(all); err != nil {
		f.Level, f.Remedy, f.Value = coordinator.LevelBad, `run "pawl migrate up"`, 0
		n := 0
		for _, m := range all {
			if m.AppliedAt.IsZero() {
				n++
			} else {
				f.Value = float64(m.Version)
			}
		}
		f.Message = fmt.Sprintf("%d of %d migrations are pending", n, len(all))
		return f, err
	}
	return f, nil
}

// diagnosis prints findings. The error says that something is bad, and has been printed.
func (a *app) diagnosis(findings []coordinator.Finding, schemaErr error) error {
	var warn, bad int
	for _, f := range findings {
		switch f.Level {
		case coordinator.LevelWarn:
			warn++
		case coordinator.LevelBad:
			bad++
		case coordinator.LevelOK:
		}
	}
	if a.json {
		if err := a.printJSON(map[string]any{"ok": bad == 0, "findings": findings}); err != nil {
			return err
		}
	} else {
		a.printFindings(findings)
		switch {
		case bad > 0:
			fmt.Fprintf(a.out, "\n%d bad, %d to watch, of %d checks\n", bad, warn, len(findings))
		case warn > 0:
			fmt.Fprintf(a.out, "\nnothing bad, %d to watch, of %d checks\n", warn, len(findings))
		default:
			fmt.Fprintf(a.out, "\nall %d checks are ok\n", len(findings))
		}
	}
	switch {
	case schemaErr != nil:
		return reportedError{schemaErr}
	case bad > 0:
		return reportedError{errors.New("something is bad")}
	default:
		return nil
	}
}

func (a *app) printFindings(findings []coordinator.Finding) {
	width := 0
	for _, f := range findings {
		width = max(width, len(f.Check))
	}
	for _, f := range findings {
		fmt.Fprintf(a.out, "%-4s  %-*s  %s\n", f.Level, width, f.Check, plain(f.Message))
		if f.Remedy != "" {
			fmt.Fprintf(a.out, "%*s→ %s\n", 4+2+width+2, "", plain(f.Remedy))
		}
	}
}

func (c *doctorCmd) rebase(a *app, coord *coordinator.Coordinator) error {
	lines, away, err := coord.Moved(a.ctx)
	if err != nil {
		return err
	}
	if away == 0 {
		if a.json {
			return a.printJSON(map[string]any{"rebased": 0, "lines": lines})
		}
		fmt.Fprintf(a.out, "nothing to do: all %d lines of the queues and the outbox are at home in this cluster\n", lines)
		return nil
	}
	fmt.Fprintf(a.err, `%d of %d lines of the queues and the outbox were last used in another cluster: this database was restored, copied or upgraded.
A rebase makes each of them go on from where it stands, in the transaction ids of this cluster. No job is lost or run twice by it,
provided that nothing of Pawl, worker or coordinator, still uses the old database, nor will again. Of global transactions that were under way nothing is presumed: what is prepared and undecided waits for a person.
`, away, lines)
	if err := a.confirm(c.Yes, "The old database must be at rest for good."); err != nil {
		return err
	}
	n, err := coord.Rebase(a.ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"rebased": n, "lines": lines})
	}
	fmt.Fprintf(a.out, "%d lines rebased; enqueues and workers go on\n", n)
	return nil
}
