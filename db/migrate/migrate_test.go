package migrate_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db/migrate"
	"github.com/pawl-dev/pawl/migrations"
)

func TestUp(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	for _, c := range []struct {
		files   int
		version int64
		steps   string
	}{
		{2, 2, "00001_box.sql 00002_fill.sql"},
		{2, 2, ""},
		{3, 3, "00003_index.sql"},
		{3, 3, ""},
	} {
		got, err := files(c.files, nil).Up(bounded(t), url)
		if err != nil || got.Version != c.version || names(got.Steps) != c.steps {
			t.Errorf("%d files: got %+v, %v; want version %d after %q", c.files, got, err, c.version, c.steps)
		}
	}
	if got := ask[int](t, url, "SELECT count(*) FROM pawl.box"); got != 3 {
		t.Errorf("rows: got %d, want 3", got)
	}
	if got := ask[bool](t, url, "SELECT abs(extract(epoch FROM max(tstamp) - now() AT TIME ZONE 'UTC')) < 60 FROM pawl.migration"); !got {
		t.Error("the time of the migrations is not in UTC")
	}
}

// TestUp_ours applies the real migrations, twice, in both ways.
func TestUp_ours(t *testing.T) {
	t.Parallel()
	all, err := fs.Glob(migrations.FS, "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	url := newDatabase(t)
	got, err := migrate.Up(bounded(t), url)
	if err != nil || len(got.Steps) != len(all) {
		t.Fatalf("got %+v, %v; want %d steps", got, err, len(all))
	}
	pool, err := pgxpool.New(bounded(t), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	again, err := migrate.UpPool(bounded(t), pool)
	if err != nil || again.Version != got.Version || len(again.Steps) != 0 {
		t.Errorf("again: got %+v, %v", again, err)
	}
	states, err := migrate.Status(bounded(t), url)
	if err != nil || len(states) != len(all) {
		t.Fatalf("Status: got %+v, %v; want %d migrations", states, err, len(all))
	}
	for _, state := range states {
		if state.AppliedAt.IsZero() {
			t.Errorf("%s is pending", state.Name)
		}
	}
}

func TestDown(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	set := files(3, nil)
	if got, err := set.Down(bounded(t), url, 0); err != nil || len(got.Steps) != 0 {
		t.Errorf("of an empty database: got %+v, %v", got, err)
	}
	if _, err := set.Up(bounded(t), url); err != nil {
		t.Fatal(err)
	}
	got, err := set.Down(bounded(t), url, 1)
	if err != nil || got.Version != 1 || names(got.Steps) != "00003_index.sql 00002_fill.sql" {
		t.Errorf("to 1: got %+v, %v", got, err)
	}
	exec(t, url, "CREATE TABLE pawl.mine ()")
	got, err = set.Down(bounded(t), url, 0)
	if err == nil || !strings.Contains(err.Error(), "pawl.mine") && !strings.Contains(err.Error(), "other objects") {
		t.Errorf("with a table that is not ours: got %+v, %v; want an error", got, err)
	}
	exec(t, url, "DROP TABLE pawl.mine")
	if got, err = set.Down(bounded(t), url, 0); err != nil || got.Version != 0 || len(got.Steps) != 0 {
		t.Errorf("to 0: got %+v, %v", got, err)
	}
	if ask[bool](t, url, "SELECT to_regnamespace('pawl') IS NOT NULL") {
		t.Error("the schema is still there")
	}
	if got, err := set.Up(bounded(t), url); err != nil || got.Version != 3 {
		t.Errorf("up again: got %+v, %v", got, err)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	pending := func(states []migrate.Migration) (names []string) {
		for _, state := range states {
			if state.AppliedAt.IsZero() {
				names = append(names, state.Name)
			}
		}
		return names
	}
	states, err := files(3, nil).Status(bounded(t), url)
	if err != nil || len(states) != 3 || len(pending(states)) != 3 {
		t.Errorf("of an empty database: got %+v, %v", states, err)
	}
	if ask[bool](t, url, "SELECT to_regnamespace('pawl') IS NOT NULL") {
		t.Error("Status made the schema")
	}
	if _, err := files(1, nil).Up(bounded(t), url); err != nil {
		t.Fatal(err)
	}
	states, err = files(3, nil).Status(bounded(t), url)
	if err != nil || strings.Join(pending(states), " ") != "00002_fill.sql 00003_index.sql" || states[0].Version != 1 {
		t.Errorf("half way: got %+v, %v", states, err)
	}
}

// TestNewer meets a database that a newer binary migrated.
func TestNewer(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	if _, err := files(3, nil).Up(bounded(t), url); err != nil {
		t.Fatal(err)
	}
	old := files(2, nil)
	_, errUp := old.Up(bounded(t), url)
	_, errDown := old.Down(bounded(t), url, 0)
	states, errStatus := old.Status(bounded(t), url)
	for what, err := range map[string]error{"Up": errUp, "Down": errDown, "Status": errStatus} {
		var newer *migrate.NewerError
		if !errors.Is(err, migrate.ErrNewer) || !errors.As(err, &newer) || newer.Database != 3 || newer.Binary != 2 ||
			!strings.Contains(err.Error(), "upgrade the binary") {
			t.Errorf("%s: got %v, want ErrNewer of 3 and 2", what, err)
		}
	}
	if len(states) != 2 {
		t.Errorf("Status: got %+v, want the two it knows", states)
	}
	if got := ask[int](t, url, "SELECT count(*) FROM pawl.box"); got != 3 {
		t.Errorf("rows: got %d, want 3", got)
	}
}

// TestFailed has a migration fail: those before it stay, it leaves nothing.
func TestFailed(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	bad := "-- +goose Up\nCREATE TABLE pawl.half ();\nSELECT 1/0;\n\n-- +goose Down\nSELECT 1/0;\n"
	got, err := files(2, map[string]string{"00003_bad.sql": bad}).Up(bounded(t), url)
	var failed *migrate.FailedError
	if !errors.As(err, &failed) || failed.Version != 3 || failed.Name != "00003_bad.sql" || failed.Direction != "up" ||
		!strings.Contains(err.Error(), "division by zero") {
		t.Errorf("got %v, want a FailedError of 3", err)
	}
	if names(got.Steps) != "00001_box.sql 00002_fill.sql" {
		t.Errorf("steps: got %+v, want the two before it", got.Steps)
	}
	if ask[bool](t, url, "SELECT to_regclass('pawl.half') IS NOT NULL") {
		t.Error("the failed migration left a table")
	}
	good := "-- +goose Up\nSELECT 1;\n\n-- +goose Down\nSELECT 1/0;\n"
	mended := files(2, map[string]string{"00003_bad.sql": good})
	if got, err := mended.Up(bounded(t), url); err != nil || names(got.Steps) != "00003_bad.sql" {
		t.Errorf("mended: got %+v, %v", got, err)
	}
	if _, err := mended.Down(bounded(t), url, 0); !errors.As(err, &failed) || failed.Direction != "down" {
		t.Errorf("down: got %v, want a FailedError", err)
	}
}

func TestURL(t *testing.T) {
	t.Parallel()
	if _, err := migrate.Up(bounded(t), "postgres://%"); err == nil {
		t.Error("got no error")
	}
}

// TestSQL runs the script by hand; Up then has nothing to do.
func TestSQL(t *testing.T) {
	t.Parallel()
	t.Run("three", func(t *testing.T) {
		t.Parallel()
		var script strings.Builder
		if err := files(3, nil).SQL(&script); err != nil {
			t.Fatal(err)
		}
		if got := script.String(); strings.Contains(got, "goose") || strings.Count(got, "BEGIN;") != 2 || strings.Contains(got, "DROP") {
			t.Errorf("got script:\n%s", got)
		}
		url := newDatabase(t)
		// One statement of it must run outside a transaction, which psql does
		// for it and this test by itself.
		before, after, found := strings.Cut(script.String(), "CREATE INDEX CONCURRENTLY box_note ON pawl.box (note);")
		if !found {
			t.Fatalf("no index in script:\n%s", script.String())
		}
		exec(t, url, before)
		exec(t, url, "CREATE INDEX CONCURRENTLY box_note ON pawl.box (note)")
		exec(t, url, after)
		if got, err := files(3, nil).Up(bounded(t), url); err != nil || got.Version != 3 || len(got.Steps) != 0 {
			t.Errorf("Up: got %+v, %v; want nothing to do", got, err)
		}
		if got := ask[int](t, url, "SELECT count(*) FROM pawl.box WHERE note = '-- not a comment;'"); got != 3 {
			t.Errorf("rows: got %d, want 3", got)
		}
	})
	t.Run("ours", func(t *testing.T) {
		t.Parallel()
		var script strings.Builder
		if err := migrate.SQL(&script); err != nil {
			t.Fatal(err)
		}
		url := newDatabase(t)
		exec(t, url, script.String())
		if got, err := migrate.Up(bounded(t), url); err != nil || len(got.Steps) != 0 {
			t.Errorf("Up: got %+v, %v; want nothing to do", got, err)
		}
	})
}
