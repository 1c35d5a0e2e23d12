package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/lock"
)

func TestLock(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	type listing struct{ Locks []lock.Info }
	if got := mustJSON[map[string]any](t, exitOK, url, "lock", "list"); got["locks"] == nil {
		t.Errorf("an empty listing has no list: %v", got)
	}
	refused(t, exitNotFound, url, []string{"lock", "show", "x"}, "x", "free")
	locks, err := lock.Open(t.Context(), pool, lock.Config{Name: "holder"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = locks.Close(t.Context()) })
	lease, err := locks.Acquire(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	refused(t, 1, url, []string{"lock", "run", "-n", "x", "--", "true"}, "held by holder")
	refused(t, 9, url, []string{"lock", "run", "-w", "10ms", "-E", "9", "x", "--", "true"}, "not free in time")
	// Its child does not heed the first signal, and keeps its output open: the test would not end.
	waiter := start(t, url, "lock", "run", "--grace", "100ms", "x", "--", "sh", "-c", "echo $PAWL_LOCK_TOKEN >&2; (trap '' TERM; sleep 600) & wait")
	for {
		got := mustJSON[listing](t, exitOK, url, "lock", "list")
		if len(got.Locks) == 1 && got.Locks[0].Waiters == 1 {
			if h := got.Locks[0].Holders; len(h) != 1 || h[0].Process != "holder" || h[0].Token != lease.Token() {
				t.Errorf("got %+v", got)
			}
			break
		}
	}
	mentions(t, must(t, exitOK, url, "lock", "list"), "NAME", "holder", "exclusive")
	mentions(t, must(t, exitOK, url, "lock", "show", "x"), "held (exclusive) by holder", "waiting 1. (exclusive) pawl lock run", "granted")
	refused(t, exitUsage, url, []string{"lock", "release", "x"}, "--force")
	mentions(t, must(t, exitOK, url, "lock", "release", "x", "--force", "--reason", "stuck"), "taken from 1")
	<-lease.Context().Done()
	waiter.log.await(t, "10995") // the token of the first timeline: the command runs
	mentions(t, must(t, exitOK, url, "lock", "show", "x"), "forced", "stuck", "held (exclusive) by pawl lock run")
	owner := lock.Owner("workflow:42") // holds y, and waits for x
	if _, err := locks.Acquire(t.Context(), "y", owner); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	waited := make(chan struct{})
	go func() { defer close(waited); _, _ = locks.Acquire(ctx, "x", owner) }()
	for !strings.Contains(must(t, exitOK, url, "lock", "show", "x"), "workflow:42") {
		runtime.Gosched()
	}
	mentions(t, must(t, exitOK, url, "lock", "show", "y"), "who asked", "for lock x", "held (exclusive) by pawl lock run")
	stop()
	<-waited
	must(t, exitOK, url, "lock", "release", "x", "--force", "--reason", "stuck again")
	if code := waiter.ended(t); code != exitLockLost {
		t.Errorf("a command whose lock was taken: got exit code %d, want %d", code, exitLockLost)
	}
	mentions(t, must(t, exitOK, url, "sweep", "locks"), "removed")
}

// TestLockRun has the exit codes of flock: the command's own, and some that tell what kept it from running.
func TestLockRun(t *testing.T) {
	t.Parallel()
	_, url := openPool(t)
	file := filepath.Join(t.TempDir(), "not executable")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, test := range map[string]struct {
		args []string
		code int
		out  string
	}{
		"output":      {[]string{"x", "--", "echo", "hello"}, 0, "hello\n"},
		"exit code":   {[]string{"x", "--", "sh", "-c", "exit 7"}, 7, ""},
		"signal":      {[]string{"x", "--", "sh", "-c", "kill -KILL $$"}, 137, ""},
		"no command":  {[]string{"x", "--", "no-such-command"}, 127, ""},
		"not allowed": {[]string{"x", "--", file}, 126, ""},
		"no name":     {[]string{"", "--", "true"}, exitUsage, ""},
		"nothing":     {[]string{"x"}, exitUsage, ""},
		"shared":      {[]string{"-s", "x", "--", "true"}, 0, ""},
	} {
		a := pawl(t, url, append([]string{"lock", "run"}, test.args...)...)
		if a.code != test.code || !strings.HasPrefix(a.out, test.out) {
			t.Errorf("%s: got exit code %d and %q (%s), want %d and %q", what, a.code, a.out, a.err, test.code, test.out)
		}
	}
}
