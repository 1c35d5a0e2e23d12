package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pawl-dev/pawl/db/migrate"
)

// migrateStatusCmd is "pawl migrate status".
type migrateStatusCmd struct{}

// Help is the long help text.
func (*migrateStatusCmd) Help() string {
	return `The exit code is 0 if the database has all migrations of this binary, and 5 if some are pending or the database is newer.`
}

// Run lists migrations.
func (*migrateStatusCmd) Run(a *app) error {
	u, err := a.checkURL()
	if err != nil {
		return err
	}
	all, err := migrate.Status(a.ctx, u)
	if err != nil && !errors.Is(err, migrate.ErrNewer) {
		return err
	}
	if err == nil {
		err = pending(all)
	}
	if a.json {
		if printed := a.printMigrations(all); printed != nil {
			return printed
		}
		return err
	}
	t := a.table("VERSION", "NAME", "APPLIED")
	for _, m := range all {
		applied := "pending"
		if !m.AppliedAt.IsZero() {
			applied = m.AppliedAt.Local().Format(time.DateTime)
		}
		t.row(strconv.FormatInt(m.Version, 10), m.Name, applied)
	}
	return errors.Join(t.end(), err)
}

func (a *app) printMigrations(all []migrate.Migration) error {
	type row struct {
		Version   int64      `json:"version"`
		Name      string     `json:"name"`
		AppliedAt *time.Time `json:"applied_at,omitempty"`
	}
	rows := make([]row, len(all))
	for i, m := range all {
		rows[i] = row{Version: m.Version, Name: m.Name}
		if !m.AppliedAt.IsZero() {
			rows[i].AppliedAt = &all[i].AppliedAt
		}
	}
	return a.printJSON(map[string]any{"migrations": rows})
}

// pending is an error if the database lacks migrations.
func pending(all []migrate.Migration) error {
	n := 0
	for _, m := range all {
		if m.AppliedAt.IsZero() {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf(`%w: %d of %d migrations are pending; run "pawl migrate up"`, errPending, n, len(all))
}

// checkSchema is an error if the database lacks migrations. One that is newer than this binary only gets a warning: during a rolling deploy it is.
func (a *app) checkSchema() error {
	u, err := a.checkURL()
	if err != nil {
		return err
	}
	all, err := migrate.Status(a.ctx, u)
	if errors.Is(err, migrate.ErrNewer) {
		a.log.Warn("the database is newer than this binary", "err", err)
		return nil
	} else if err != nil {
		return err
	}
	return pending(all)
}
