package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db/dbtest"
)

func TestQueue(t *testing.T) {
	t.Parallel()
	url := dbtest.NewURL(t)
	type listing struct {
		Queues []job.QueueInfo
		Next   string
	}
	if got := mustJSON[map[string]any](t, exitOK, url, "queue", "list"); got["queues"] == nil {
		t.Errorf("an empty listing has no list: %v", got)
	}
	enqueue(t, url, "x", "{}", "--queue", "a")
	enqueue(t, url, "x", "{}", "--queue", "b", "--run-at", "+1h")
	mentions(t, must(t, exitOK, url, "queue", "pause", "a", "b"), "queue a is paused", "queue b is paused")
	got := mustJSON[listing](t, exitOK, url, "queue", "list")
	if len(got.Queues) != 2 || !got.Queues[0].Paused || got.Queues[0].Available != 1 || got.Queues[1].Scheduled != 1 || got.Next != "" {
		t.Errorf("got %+v", got)
	}
	mentions(t, must(t, exitOK, url, "queue", "list"), "NAME", "paused", "AVAILABLE")
	must(t, exitOK, url, "queue", "resume", "a")
	got = mustJSON[listing](t, exitOK, url, "queue", "list", "--limit", "1")
	if len(got.Queues) != 1 || got.Queues[0].Paused || got.Next != "a" {
		t.Errorf("got %+v", got)
	}
	got = mustJSON[listing](t, exitOK, url, "queue", "list", "--after", got.Next)
	if len(got.Queues) != 1 || got.Queues[0].Name != "b" || !got.Queues[0].Paused {
		t.Errorf("got %+v", got)
	}
	refused(t, exitNotFound, url, []string{"queue", "pause", "nope"}, "nope", "not found")
	refused(t, exitUsage, url, []string{"queue", "list", "--limit", "0"}, "--limit")
	rows := mustJSON[struct {
		Queues []struct {
			Name, Error string
			Paused      bool
		}
	}](t, exitNotFound, url, "queue", "resume", "nope", "b")
	if len(rows.Queues) != 2 || rows.Queues[0].Error == "" || rows.Queues[1].Error != "" || rows.Queues[1].Paused {
		t.Errorf("got %+v", rows)
	}
}

func TestSession(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	type listing struct{ Sessions []session.Info }
	if got := mustJSON[map[string]any](t, exitOK, url, "session", "list"); got["sessions"] == nil {
		t.Errorf("an empty listing has no list: %v", got)
	}
	s, err := session.Start(t.Context(), pool, session.Config{Name: "tester", Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	mentions(t, must(t, exitOK, url, "session", "list"), "tester", "alive", "v1", "in 1")
	got := mustJSON[listing](t, exitOK, url, "session", "list")
	if len(got.Sessions) != 1 || got.Sessions[0].ID != s.ID() || !got.Sessions[0].Alive {
		t.Errorf("got %+v", got)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := mustJSON[listing](t, exitOK, url, "session", "list"); len(got.Sessions) != 0 {
		t.Errorf("got %+v", got)
	}
	mentions(t, must(t, exitOK, url, "session", "list", "--all"), "ended", "closed")
	must(t, exitOK, url, "sweep", "sessions")
	mentions(t, must(t, exitOK, url, "session", "list", "--all"), "rescued")
}

func TestSweep(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	mentions(t, pawl(t, url, "sweep").err, "no sweep ever ran")
	for _, name := range coordinator.SweepNames() {
		got := mustJSON[coordinator.Report](t, exitOK, url, "sweep", name)
		if got.Name != name || got.Skipped {
			t.Errorf("got %+v", got)
		}
		if sweepDid[name] == "" {
			t.Errorf("what sweep %s does has no words", name)
		}
	}
	enqueue(t, url, "x", "{}", "--run-at", "+1h")
	mustExec(t, pool, "UPDATE pawl.scheduled SET run_at = now()")
	mentions(t, must(t, exitOK, url, "sweep", "due"), "sweep due: 1 due jobs put in line")
	mentions(t, must(t, exitOK, url, "sweep"), "sessions", "due", "dedupe", "partitions", "LAST RAN")
	got := mustJSON[struct{ Sweeps []coordinator.Status }](t, exitOK, url, "sweep")
	if len(got.Sweeps) != len(coordinator.SweepNames()) {
		t.Errorf("got %+v", got)
	}
	refused(t, exitUsage, url, []string{"sweep", "nope"}, "nope", "partitions")
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	type diagnosis struct {
		OK       bool
		Findings []coordinator.Finding
	}
	got := mustJSON[diagnosis](t, exitFailed, url, "doctor")
	if got.OK {
		t.Error("ok without a coordinator")
	}
	mentions(t, must(t, exitFailed, url, "doctor"), "bad   sweeps", `→ run a coordinator: "pawl serve"`, "1 bad")

	for _, name := range coordinator.SweepNames() {
		must(t, exitOK, url, "sweep", name)
	}
	enqueue(t, url, "x", "{}")
	got = mustJSON[diagnosis](t, exitOK, url, "doctor")
	if !got.OK || got.Findings[0].Check != "schema" || got.Findings[0].Level != coordinator.LevelOK {
		t.Errorf("got %+v", got)
	}

	mentions(t, must(t, exitOK, url, "doctor", "--rebase", "--yes"), "nothing to do")
	mustExec(t, pool, "UPDATE pawl.line SET cluster = 1")
	mentions(t, must(t, exitFailed, url, "doctor"), "bad   cluster", "1 of 1 lines", "--rebase")
	refused(t, exitFailed, url, []string{"job", "enqueue", "--kind", "x"}, "doctor --rebase")
	a := pawl(t, url, "doctor", "--rebase")
	if a.code != exitUsage || !strings.Contains(a.err, "--yes") || !strings.Contains(a.err, "No job is lost or run twice") {
		t.Errorf("unasked: %+v", a)
	}
	if got := mustJSON[struct{ Rebased, Lines int }](t, exitOK, url, "doctor", "--rebase", "--yes"); got.Rebased != 1 || got.Lines != 1 {
		t.Errorf("got %+v", got)
	}
	must(t, exitOK, url, "job", "enqueue", "--kind", "x")
}

func TestServe(t *testing.T) {
	t.Parallel()
	url := dbtest.EmptyURL(t)
	refused(t, exitSchema, url, []string{"serve"}, `run "pawl migrate up"`)
	serve := start(t, url, "serve", "--migrate", "--json")
	serve.log.await(t, "coordinator started")
	work := start(t, url, "work", "--poll-only", "--queue", "default=2")
	pool, err := poolOf(t, url)
	if err != nil {
		t.Fatal(err)
	}
	id := enqueue(t, url, "pawl.exec", `{"name": "nope"}`, "--run-at", "+50ms", "--max-attempts", "1")
	if got := await(t, pool, id); got != job.StateDiscarded {
		t.Errorf("a scheduled job ended as %s", got)
	}
	if code := serve.stop(t); code != exitOK {
		t.Errorf("serve: exit code %d\n%s", code, serve.log)
	}
	if code := work.stop(t); code != exitOK {
		t.Errorf("work: exit code %d\n%s", code, work.log)
	}
	for line := range strings.Lines(serve.log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON in the log: %s", line)
		}
	}
	mentions(t, serve.log.String(), "migrated", "coordinator stopped")
	mentions(t, work.log.String(), "worker stopped")
}
