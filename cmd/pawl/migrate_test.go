package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/barrier"
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

// The barrier alone is made in a service's database, by the command and by what it prints, and both work.
func TestMigrateBarrier(t *testing.T) {
	t.Parallel()
	b := barrier.Branch{ID: "a", Branch: "b", Op: barrier.Try}
	for _, how := range []string{"command", "script"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			url := dbtest.EmptyURL(t)
			pool, err := poolOf(t, url)
			if err != nil {
				t.Fatal(err)
			}
			maria := mariaURL(t)
			on, err := participantMySQL("test", maria+"&multiStatements=true")
			if err != nil {
				t.Fatal(err)
			}
			defer on.Close()
			if how == "command" {
				mentions(t, must(t, exitOK, nowhere, "migrate", "barrier", url), "the barrier is there")
				mentions(t, must(t, exitOK, nowhere, "migrate", "barrier", url), "the barrier is there")
				mentions(t, must(t, exitOK, nowhere, "migrate", "barrier", maria), "the barrier is there")
				mentions(t, must(t, exitOK, nowhere, "--json", "migrate", "barrier", maria), `"mysql"`)
			} else {
				mustExec(t, pool, must(t, exitOK, nowhere, "migrate", "barrier", "--dry-run", url))
				if _, err := on.ExecContext(t.Context(), must(t, exitOK, nowhere, "migrate", "barrier", "--dry-run", maria)); err != nil {
					t.Fatal(err)
				}
			}
			out, err := barrier.RunMySQL(t.Context(), on, b, func(context.Context, barrier.MySQLTx) (json.RawMessage, error) { return nil, nil })
			if err != nil || out.Outcome != barrier.Done {
				t.Errorf("MariaDB: %+v, %v", out, err)
			}
			err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				out, err = barrier.Do(t.Context(), tx, b, func(context.Context) (json.RawMessage, error) { return nil, nil })
				return err
			})
			if err != nil || out.Outcome != barrier.Done {
				t.Errorf("Postgres: %+v, %v", out, err)
			}
		})
	}
}

// What is wrong is said without what the URL holds; a dry run asks no database.
func TestMigrateBarrierRefused(t *testing.T) {
	t.Parallel()
	for url, code := range map[string]int{
		"mongodb://pawl:s3cret@host/db": exitUsage, "mysql://pawl:s3/cret@host/db": exitUsage, "mysql://pawl:s3cret@host": exitUsage, "postgres://pawl:s3cret@host:port/db": exitUsage,
		"mysql://pawl:s3cret@127.0.0.1:1/db": exitUnreachable, "postgres://pawl:s3cret@127.0.0.1:1/db": exitUnreachable,
	} {
		a := pawl(t, nowhere, "migrate", "barrier", url)
		check(t, a, code, []string{"migrate", "barrier", url})
		if strings.Contains(a.err, "s3") {
			t.Errorf("%s: %s", url, a.err)
		}
	}
	refused(t, exitUsage, nowhere, []string{"migrate", "barrier"}, "url")
	mentions(t, must(t, exitOK, nowhere, "migrate", "barrier", "--dry-run", "mysql://pawl@127.0.0.1:1/db"), "CREATE TABLE IF NOT EXISTS pawl_barrier")
}
