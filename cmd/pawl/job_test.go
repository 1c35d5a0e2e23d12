package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
)

func TestJobEnqueue(t *testing.T) {
	t.Parallel()
	url := dbtest.NewURL(t)
	mentions(t, must(t, exitOK, url, "job", "enqueue", "--kind", "x"), "enqueued in queue default")

	file := filepath.Join(t.TempDir(), "args.json")
	if err := os.WriteFile(file, []byte(`{"from": "file"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s := show(t, url, enqueue(t, url, "x", "@"+file, "--queue", "mail", "--priority", "1", "--max-attempts", "3", "--timeout", "90s",
		"--backoff", "2s", "--backoff-max", "1m", "--header", "a=b=c", "--header", "d=e;f", "--dedupe-key", "k"))
	if s.Queue != "mail" || s.Priority != 1 || s.MaxAttempts != 3 || s.Timeout != 90*time.Second || s.Backoff != 2*time.Second || s.BackoffMax != time.Minute ||
		s.Headers["a"] != "b=c" || s.Headers["d"] != "e;f" || s.DedupeKey != "k" || compact(s.Args) != `{"from":"file"}` || s.State != job.StateAvailable {
		t.Errorf("got %+v, args %s", s, s.Args)
	}

	args := []string{"job", "enqueue", "--kind", "x", "--args", "-", "--json"}
	a := pawlIn(t, url, strings.NewReader(`[1, "ä"]`), args...)
	var got struct {
		ID int64 `json:"id,string"`
	}
	if err := json.Unmarshal([]byte(a.out), &got); err != nil || compact(show(t, url, got.ID).Args) != `[1,"ä"]` {
		t.Errorf("from standard input: %v, %+v", err, a)
	}
}

func compact(raw json.RawMessage) string { return inline(raw) }

func TestJobEnqueueRunAt(t *testing.T) {
	t.Parallel()
	url := dbtest.NewURL(t)
	s := show(t, url, enqueue(t, url, "x", "{}", "--run-at", "+5m"))
	if d := s.At.Sub(s.CreatedAt); s.State != job.StateScheduled || d < 4*time.Minute || d > 6*time.Minute {
		t.Errorf("+5m: %s, in %s", s.State, d)
	}
	s = show(t, url, enqueue(t, url, "x", "{}", "--run-at", "2099-01-31T15:04:05+02:00"))
	if s.State != job.StateScheduled || !s.At.Equal(time.Date(2099, 1, 31, 13, 4, 5, 0, time.UTC)) {
		t.Errorf("in 2099: %s at %s", s.State, s.At)
	}
	s = show(t, url, enqueue(t, url, "x", "{}", "--run-at", "2001-01-31T15:04:05Z"))
	if s.State != job.StateAvailable {
		t.Errorf("in 2001: %s", s.State)
	}
}

func TestJobEnqueueDuplicate(t *testing.T) {
	t.Parallel()
	url := dbtest.NewURL(t)
	id := enqueue(t, url, "x", "{}", "--dedupe-key", "k")
	got := mustJSON[struct {
		ID        int64 `json:"id,string"`
		Duplicate bool
	}](t, exitOK, url, "job", "enqueue", "--kind", "x", "--dedupe-key", "k", "--dedupe-for", "1h")
	if got.ID != id || !got.Duplicate {
		t.Errorf("got %+v, want a duplicate of %d", got, id)
	}
	mentions(t, must(t, exitOK, url, "job", "enqueue", "--kind", "x", "--dedupe-key", "k"), "nothing enqueued", id64(id))
}

func TestJobEnqueueBadInput(t *testing.T) {
	t.Parallel()
	url := dbtest.NewURL(t)
	base := []string{"job", "enqueue", "--kind", "x"}
	for _, c := range []struct {
		flags []string
		want  []string
	}{
		{[]string{"--args", "{bad"}, []string{"--args is not JSON", "byte 2"}},
		{[]string{"--args", "{} {}"}, []string{"--args is not JSON"}},
		{[]string{"--args", ""}, []string{"--args is not JSON"}},
		{[]string{"--args", "@/no/such/file"}, []string{"/no/such/file"}},
		{[]string{"--args", "-"}, []string{"standard input is not JSON"}},
		{[]string{"--run-at", "tomorrow"}, []string{"tomorrow", "+5m"}},
		{[]string{"--run-at", "+tomorrow"}, []string{"tomorrow", "+5m"}},
		{[]string{"--priority", "5"}, []string{"priority 5", "1 (first) to 4 (last)"}},
		{[]string{"--priority", "high"}, []string{"high"}},
		{[]string{"--max-attempts", "0"}, []string{"max attempts"}},
		{[]string{"--timeout", "5"}, []string{"--timeout"}},
		{[]string{"--timeout", "-5s"}, []string{"timeout"}},
		{[]string{"--backoff", "2h"}, []string{"backoff"}},
		{[]string{"--queue", ""}, []string{"queue's name"}},
		{[]string{"--queue", strings.Repeat("q", 129)}, []string{"queue's name"}},
		{[]string{"--kind", strings.Repeat("k", 129)}, []string{"--kind"}},
		{[]string{"--dedupe-for", "1h"}, []string{"--dedupe-key"}},
		{[]string{"--dedupe-key", strings.Repeat("k", 513)}, []string{"dedupe_key_length"}},
	} {
		refused(t, exitUsage, url, slices.Concat(base, c.flags), c.want...)
	}
	args := slices.Concat(base, []string{"--args", "-"})
	check(t, pawlIn(t, url, strings.NewReader(`"`+strings.Repeat("x", 1<<20)+`"`), args...), exitUsage, args, "payload too large", "1048576")
	if got := mustJSON[struct{ Jobs []job.Summary }](t, exitOK, url, "job", "list"); len(got.Jobs) != 0 {
		t.Errorf("bad input left jobs: %+v", got.Jobs)
	}
}

func TestJobList(t *testing.T) {
	t.Parallel()
	url := dbtest.NewURL(t)
	type listing struct {
		Jobs []job.Summary
		Next int64 `json:",string"`
	}
	if got := mustJSON[map[string]any](t, exitOK, url, "job", "list"); got["jobs"] == nil {
		t.Errorf("an empty listing has no list: %v", got)
	}
	a := enqueue(t, url, "a", "{}")
	b := enqueue(t, url, "b", "{}", "--queue", "mail")
	c := enqueue(t, url, "b", "{}", "--run-at", "+1h")
	for _, x := range []struct {
		flags []string
		want  []int64
	}{
		{nil, []int64{c, b, a}},
		{[]string{"--queue", "mail"}, []int64{b}},
		{[]string{"--kind", "b"}, []int64{c, b}},
		{[]string{"--state", "scheduled"}, []int64{c}},
		{[]string{"--state", "available", "--kind", "a"}, []int64{a}},
		{[]string{"--state", "running"}, nil},
		{[]string{"--limit", "2"}, []int64{c, b}},
		{[]string{"--before", id64(b)}, []int64{a}},
	} {
		got := mustJSON[listing](t, exitOK, url, append([]string{"job", "list"}, x.flags...)...)
		var ids []int64
		for _, j := range got.Jobs {
			ids = append(ids, j.ID)
		}
		if !slices.Equal(ids, x.want) {
			t.Errorf("list %v: %v, want %v", x.flags, ids, x.want)
		}
	}
	mentions(t, must(t, exitOK, url, "job", "list"), "ID", id64(a), "available", "scheduled", "in 59m", "1/25")
	mentions(t, pawl(t, url, "job", "list", "--limit", "1").err, "--before "+id64(c))
	refused(t, exitNotFound, url, []string{"job", "list", "--queue", "nope"}, "nope", "not found")
	refused(t, exitUsage, url, []string{"job", "list", "--state", "nope"}, "nope", "retrying")
	refused(t, exitUsage, url, []string{"job", "list", "--limit", "0"}, "--limit")
	refused(t, exitUsage, url, []string{"job", "list", "--limit", "1001"}, "--limit")
}

func TestJobCancel(t *testing.T) {
	t.Parallel()
	url := dbtest.NewURL(t)
	a, b := enqueue(t, url, "x", "{}"), enqueue(t, url, "x", "{}", "--run-at", "+1h")
	mentions(t, must(t, exitOK, url, "job", "cancel", id64(a), id64(b), "--reason", "a whim"), "job "+id64(a)+" cancelled: it was available", "it was scheduled")
	mentions(t, must(t, exitOK, url, "job", "cancel", id64(a)), "left as it is", "been cancelled before")
	for _, id := range []int64{a, b} {
		if s := show(t, url, id); s.State != job.StateCancelled || len(s.Cancels) != 1 || s.Cancels[0].Reason != "a whim" {
			t.Errorf("got %+v", s)
		}
	}
	type row struct {
		ID         string
		Was        job.State
		Did, Error string
	}
	got := mustJSON[struct{ Jobs []row }](t, exitNotFound, url, "job", "cancel", "77", id64(a))
	if len(got.Jobs) != 2 || got.Jobs[0].ID != "77" || !strings.Contains(got.Jobs[0].Error, "not found") || got.Jobs[1].Did != "unchanged" {
		t.Errorf("got %+v", got)
	}
	refused(t, exitNotFound, url, []string{"job", "cancel", "77"}, "job 77", "not found")
	refused(t, exitUsage, url, []string{"job", "cancel", id64(enqueue(t, url, "x", "{}")), "--reason", strings.Repeat("r", 2000)}, "reason")
}

func TestJobRetry(t *testing.T) {
	t.Parallel()
	url := dbtest.NewURL(t)
	a, b := enqueue(t, url, "x", "{}"), enqueue(t, url, "x", "{}", "--run-at", "+1h")
	mentions(t, must(t, exitOK, url, "job", "retry", id64(a), id64(b)), "in line already", "goes at once")
	if s := show(t, url, b); s.State != job.StateAvailable {
		t.Errorf("retried: %s", s.State)
	}
	must(t, exitOK, url, "job", "cancel", id64(a))
	mentions(t, must(t, exitOK, url, "job", "retry", id64(a)), "goes again", "been cancelled")
	if s := show(t, url, a); s.State != job.StateAvailable {
		t.Errorf("retried: %s", s.State)
	}
	refused(t, exitNotFound, url, []string{"job", "retry", "77"}, "job 77", "not found")
}

func TestJobShow(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	id := enqueue(t, url, "x", `{"to": "\u001b[31m"}`, "--max-attempts", "2", "--timeout", "30s", "--header", "traceparent=00-1")
	out := must(t, exitOK, url, "job", "show", id64(id))
	mentions(t, out, "job "+id64(id), "x", "available", "queue", "default, priority 2", "pawl job enqueue", "2 attempts, backoff 1s doubling to 1h, timeout 30s",
		"traceparent: 00-1", "no worker has taken it yet")
	if strings.Contains(out, "\x1b") {
		t.Errorf("an escape sequence goes to the terminal: %q", out)
	}
	refused(t, exitNotFound, url, []string{"job", "show", "77"}, "job 77", "not found")

	w := start(t, url, "work")
	id = enqueue(t, url, "pawl.exec", `{"name": "nope"}`, "--max-attempts", "1")
	if got := await(t, pool, id); got != job.StateDiscarded {
		t.Fatalf("state %s", got)
	}
	out = must(t, exitOK, url, "job", "show", id64(id))
	mentions(t, out, "discarded", "attempts\n  1  discarded after", "claimed 20", "by session 1: pawl work on ", ", pid ", `error: this worker's configuration names no command "nope"`,
		"policy    1 attempt, the worker's timeout")
	if code := w.stop(t); code != exitOK {
		t.Errorf("work: exit code %d", code)
	}
}
