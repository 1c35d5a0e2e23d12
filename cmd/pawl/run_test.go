package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/db/devpg"
	"github.com/pawl-dev/pawl/db/migrate"
)

// nowhere is a URL at which nothing listens.
const nowhere = "postgres://someone:secret@127.0.0.1:1/x"

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		nil, {"--help"}, {"job", "--help"}, {"job", "enqueue", "--help"}, {"work", "--help"}, {"doctor", "-h"}, {"migrate", "--help"}, {"help"}, {"help", "job", "list"},
	} {
		var out, stderr bytes.Buffer
		code := run(t.Context(), args, strings.NewReader(""), &out, &stderr)
		if code != exitOK || stderr.Len() > 0 || !strings.Contains(out.String(), "Usage: pawl") {
			t.Errorf("pawl %v: exit code %d\n%s%s", args, code, out.String(), stderr.String())
		}
		for i, line := range strings.Split(out.String(), "\n") {
			if len(line) > 120 {
				t.Errorf("pawl %v: line %d of the help has %d bytes", args, i, len(line))
			}
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	mentions(t, must(t, exitOK, nowhere, "version"), "pawl ", "schema ", "go1.")
	var out, stderr bytes.Buffer
	if code := run(t.Context(), []string{"--version"}, strings.NewReader(""), &out, &stderr); code != exitOK || !strings.Contains(out.String(), "pawl ") {
		t.Errorf("--version: exit code %d, %s%s", code, out.String(), stderr.String())
	}
	got := mustJSON[build](t, exitOK, nowhere, "version")
	if got.Version == "" || got.Schema != schemaVersion() || got.Schema < 9 {
		t.Errorf("got %+v", got)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ args, want []string }{
		{[]string{"jbo"}, []string{"jbo", `see "pawl --help"`}},
		{[]string{"job"}, []string{`"enqueue"`, `see "pawl job --help"`}},
		{[]string{"job", "list", "--nope"}, []string{"--nope", `see "pawl job list --help"`}},
		{[]string{"job", "show"}, []string{"<id>"}},
		{[]string{"job", "show", "abc"}, []string{"abc"}},
		{[]string{"--log-level", "loud", "version"}, []string{"loud"}},
		{[]string{"migrate", "down"}, []string{"--to"}},
	} {
		refused(t, exitUsage, nowhere, c.args, c.want...)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"migrate", "up"},
		{"migrate", "status"},
		{"serve"},
		{"work"},
		{"job", "list"},
		{"job", "enqueue", "--kind", "x"},
		{"queue", "list"},
		{"session", "list"},
		{"sweep", "due"},
		{"doctor"},
	} {
		a := pawl(t, nowhere, args...)
		check(t, a, exitUnreachable, args, "127.0.0.1:1", "connection refused", "PAWL_DATABASE_URL")
		if strings.Contains(a.err, "secret") {
			t.Errorf("pawl %v tells the password: %s", args, a.err)
		}
	}
	refused(t, exitUsage, "postgres://someone:secret@host:port/x", []string{"job", "list"}, "cannot parse", "xxxxx")
	refused(t, exitUnreachable, strings.Replace(dbtest.EmptyURL(t), "/pawl", "/not", 1), []string{"job", "list"}, "does not exist")
}

func TestNoSchema(t *testing.T) {
	t.Parallel()
	url := dbtest.EmptyURL(t)
	for _, args := range [][]string{
		{"migrate", "status"},
		{"serve"},
		{"work"},
		{"job", "list"},
		{"job", "show", "1"},
		{"job", "cancel", "1"},
		{"job", "retry", "1"},
		{"job", "enqueue", "--kind", "x"},
		{"queue", "list"},
		{"queue", "pause", "x"},
		{"session", "list"},
		{"sweep"},
		{"sweep", "due"},
		{"doctor", "--rebase"},
		{"--namespace", "other", "job", "list"},
	} {
		refused(t, exitSchema, url, args, `run "pawl migrate up"`)
	}
	out := must(t, exitSchema, url, "doctor")
	mentions(t, out, "schema", "pending", `run "pawl migrate up"`)
}

func TestNamespace(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	mustExec(t, pool, "INSERT INTO pawl.namespace (ns, name) VALUES (7, 'billing')")
	id := enqueue(t, url, "x", "{}", "--namespace", "billing")
	if id == enqueue(t, url, "x", "{}") {
		t.Error("two jobs with one id")
	}
	for _, ns := range []string{"billing", "7"} {
		got := mustJSON[struct{ Jobs []job.Summary }](t, exitOK, url, "--namespace", ns, "job", "list")
		if len(got.Jobs) != 1 || got.Jobs[0].ID != id {
			t.Errorf("namespace %s lists %+v, want job %d", ns, got.Jobs, id)
		}
	}
	refused(t, exitNotFound, url, []string{"--namespace", "nope", "job", "list"}, "no such namespace", "nope")
	refused(t, exitUsage, url, []string{"--namespace", "8", "job", "enqueue", "--kind", "x"}, "namespace 8 does not exist")
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitOK},
		{errors.New("x"), exitFailed},
		{usagef("x"), exitUsage},
		{fmt.Errorf("x: %w", job.ErrPayloadTooLarge), exitUsage},
		{fmt.Errorf("x: %w", job.ErrNotFound), exitNotFound},
		{fmt.Errorf("x: %w", errNoDatabase), exitUnreachable},
		{&migrate.NewerError{Database: 2, Binary: 1}, exitSchema},
		{reportedError{job.ErrSchema}, exitSchema},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("exitCode(%v) = %d, want %d", c.err, got, c.want)
		}
	}
}

func TestMessage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("enqueue x: job: invalid: pawl: too much"), "enqueue x: invalid: too much"},
		{errors.Join(errors.New("worker: a"), errors.New("worker: b")), "a; b"},
		{fmt.Errorf("x: %w", context.Canceled), "interrupted"},
	} {
		if got := message(c.err); got != c.want {
			t.Errorf("message(%q) = %q, want %q", c.err, got, c.want)
		}
	}
}

func TestPrivateURL(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, devpg.Config{})
	url := privateURL(server.Dir())
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	var name string
	if err := conn.QueryRow(t.Context(), "SELECT current_database()").Scan(&name); err != nil || name != devDatabase {
		t.Errorf("database %q, %v; want %q", name, err, devDatabase)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := privateURL(server.Dir()); got != "" {
		t.Errorf("of a dead server: %q", got)
	}
	if got := privateURL(filepath.Join(t.TempDir(), "none")); got != "" {
		t.Errorf("without a server: %q", got)
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	now := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		d    time.Duration
		want string
	}{
		{0, "just now"},
		{3 * time.Second, "3.0s ago"},
		{-3 * time.Minute, "in 3m00s"},
		{50 * time.Hour, "2d ago"},
		{-30 * time.Hour, "in 30h00m"},
		{-100 * time.Millisecond, "at once"},
	} {
		if got := ago(now, now.Add(-c.d)); got != c.want {
			t.Errorf("%s: %q, want %q", c.d, got, c.want)
		}
	}
	for d, want := range map[time.Duration]string{time.Hour: "1h", 90 * time.Second: "1m30s", time.Minute: "1m", 10 * time.Second: "10s", 61 * time.Minute: "1h1m"} {
		if got := brief(d); got != want {
			t.Errorf("brief(%d) = %q, want %q", d, got, want)
		}
	}
	if got := cut("aäö", 2); got != "a … (4 bytes more)" {
		t.Errorf("cut: %q", got)
	}
	if got := plain("a\x1b[31m\n"); strings.ContainsAny(got, "\x1b\n") {
		t.Errorf("plain: %q", got)
	}
}
