package main

import (
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/db/dbtest"
)

func TestMigrate(t *testing.T) {
	t.Parallel()
	url := dbtest.EmptyURL(t)
	type result struct {
		Version int64
		Steps   []struct {
			Version int64
			Name    string
		}
	}
	newest := schemaVersion()
	if got := mustJSON[result](t, exitOK, url, "migrate", "up"); got.Version != newest || len(got.Steps) != int(newest) {
		t.Errorf("up: %+v", got)
	}
	mentions(t, must(t, exitOK, url, "migrate", "up"), "nothing to do")
	if out := must(t, exitOK, url, "migrate", "status"); strings.Contains(out, "pending") {
		t.Errorf("status: %s", out)
	}
	status := mustJSON[struct{ Migrations []struct{ Name string } }](t, exitOK, url, "migrate", "status")
	if len(status.Migrations) != int(newest) || status.Migrations[0].Name != "00001_queue.sql" {
		t.Errorf("status: %+v", status)
	}

	refused(t, exitUsage, url, []string{"migrate", "down", "--to", "3"}, "--yes")
	refused(t, exitUsage, url, []string{"migrate", "down", "--to", "-1", "--yes"}, "--to")
	refused(t, exitUsage, url, []string{"migrate", "down", "--to", "99", "--yes"}, "99")
	if got := mustJSON[result](t, exitOK, url, "migrate", "down", "--to", "3", "--yes"); got.Version != 3 || len(got.Steps) != int(newest)-3 {
		t.Errorf("down to 3: %+v", got)
	}
	refused(t, exitSchema, url, []string{"serve"}, `run "pawl migrate up"`)
	mentions(t, must(t, exitOK, url, "migrate", "down", "--to", "0", "-y"), "undone 00001_queue.sql", "version 0")
}

// A database that a newer binary migrated is refused.
func TestMigrateNewer(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	mustExec(t, pool, "INSERT INTO pawl.migration (version_id, is_applied) VALUES (999, true)")
	refused(t, exitSchema, url, []string{"migrate", "up"}, "newer", "999")
	a := pawl(t, url, "migrate", "status")
	check(t, a, exitSchema, []string{"migrate", "status"}, "newer")
	mentions(t, must(t, exitSchema, url, "doctor"), "999", "sweeps")
	must(t, exitOK, url, "job", "list") // during a rolling deploy
}

func TestMigrateSQL(t *testing.T) {
	t.Parallel()
	out := must(t, exitOK, nowhere, "migrate", "sql")
	pool, err := poolOf(t, dbtest.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, pool, out)
	mentions(t, must(t, exitOK, pool.Config().ConnString(), "migrate", "up"), "nothing to do")
}
