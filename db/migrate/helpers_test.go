package migrate_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db/devpg"
	"github.com/pawl-dev/pawl/db/migrate"
)

// patience bounds everything these tests wait for.
const patience = time.Minute

// server is the one all tests of this package use, each with its own database.
var server *devpg.Server

func TestMain(m *testing.M) {
	status, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func runTests(m *testing.M) (status int, err error) {
	base, err := os.MkdirTemp("", "migrate-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(base)
	if err := os.Chmod(base, 0o711); err != nil { // the server may run as another user
		return 1, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	server, err = devpg.Start(ctx, devpg.Config{Dir: filepath.Join(base, "pg"), Temporary: true})
	if err != nil {
		return 1, err
	}
	status = m.Run()
	return status, server.Stop(context.WithoutCancel(ctx))
}

var databases atomic.Int64

// newDatabase returns the URL of an empty database.
func newDatabase(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", databases.Add(1))
	exec(t, server.URL("postgres"), "CREATE DATABASE "+name)
	return server.URL(name)
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(bounded(t), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, url, sql string) {
	t.Helper()
	conn := connect(t, url)
	defer conn.Close(bounded(t))
	if _, err := conn.Exec(bounded(t), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func ask[T any](t *testing.T, url, sql string, args ...any) T {
	t.Helper()
	conn := connect(t, url)
	defer conn.Close(bounded(t))
	var got T
	if err := conn.QueryRow(bounded(t), sql, args...).Scan(&got); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return got
}

// three is a set of migrations: a table, a function, and an index that is made
// outside any transaction.
var three = map[string]string{
	"00001_box.sql": `-- +goose Up
CREATE SCHEMA IF NOT EXISTS pawl;
CREATE TABLE pawl.box (id bigint PRIMARY KEY, note text NOT NULL DEFAULT '-- not a comment;');

-- +goose Down
DROP TABLE pawl.box;
`,
	"00002_fill.sql": `-- +goose Up
-- +goose StatementBegin
CREATE FUNCTION pawl.fill(n integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO pawl.box (id) SELECT generate_series(1, n);
END
$$;
-- +goose StatementEnd
SELECT pawl.fill(3);

-- +goose Down
DROP FUNCTION pawl.fill(integer);
`,
	"00003_index.sql": `-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX CONCURRENTLY box_note ON pawl.box (note);

-- +goose Down
DROP INDEX pawl.box_note;
`,
}

// files returns the first n of three, with changes over them.
func files(n int, changes map[string]string) migrate.Files {
	fsys := fstest.MapFS{}
	for name, text := range three {
		if name < fmt.Sprintf("%05d", n+1) {
			fsys[name] = &fstest.MapFile{Data: []byte(text)}
		}
	}
	for name, text := range changes {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return migrate.Files{FS: fsys}
}

// names lists the files of the steps.
func names(steps []migrate.Step) string {
	var all []string
	for _, step := range steps {
		all = append(all, step.Name)
	}
	return strings.Join(all, " ")
}

// eventually waits until done.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for ctx := bounded(t); !done(); {
		select {
		case <-ctx.Done():
			t.Fatalf("still not: %s", what)
		case <-ticker.C:
		}
	}
}
