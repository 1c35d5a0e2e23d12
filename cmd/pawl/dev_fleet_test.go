//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// shellRole is a role of shell processes.
func shellRole(name string, size int, script string) role {
	return role{name: name, size: size, command: func(int) (*exec.Cmd, error) { return exec.Command("/bin/sh", "-c", script), nil }}
}

// testFleet is a fleet of shell processes.
func testFleet(t *testing.T, size int, script string) (*fleet, *logBuffer, context.Context) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	t.Cleanup(func() { cancel(nil) })
	log := &logBuffer{grown: make(chan struct{})}
	return startFleet(newLive(log), cancel, shellRole("worker", size, script)), log, ctx
}

// A process ends when its standard input does.
func TestFleet(t *testing.T) {
	t.Parallel()
	f, log, ctx := testFleet(t, 3, "echo ready; read _")
	for _, line := range []string{"worker 1: ready", "worker 2: ready", "worker 3: ready"} {
		log.await(t, line)
	}
	if got := f.alive(); got != 3 {
		t.Errorf("%d processes are alive, want 3", got)
	}
	if left := f.stop(patience); left != 0 || f.alive() != 0 {
		t.Errorf("%d processes were killed and %d are left, want none", left, f.alive())
	}
	if ctx.Err() != nil || strings.Contains(log.String(), "ended by itself") {
		t.Errorf("a process ended by itself: %v\n%s", context.Cause(ctx), log)
	}
}

// A killed process is replaced, and was not at fault.
func TestFleet_kill(t *testing.T) {
	t.Parallel()
	f, log, _ := testFleet(t, 2, "echo ready; read _")
	log.await(t, "worker 1: ready")
	log.await(t, "worker 2: ready")
	if !f.kill() {
		t.Fatal("there was no process to kill")
	}
	log.await(t, "worker 3: ready")
	if got := f.killed(); got != 1 {
		t.Errorf("%d kills, want 1", got)
	}
	f.stop(patience)
	if strings.Contains(log.String(), "ended by itself") {
		t.Errorf("the killed process is said to have ended by itself:\n%s", log)
	}
	if f.kill() {
		t.Error("killed a process of a fleet that has stopped")
	}
}

// Every role has its turn before one is killed again, and a process of the same role takes the place.
func TestFleet_roles(t *testing.T) {
	t.Parallel()
	_, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	log := &logBuffer{grown: make(chan struct{})}
	f := startFleet(newLive(log), cancel, shellRole("shop", 3, "echo ready; read _"), shellRole("relay", 1, "echo ready; read _"))
	log.await(t, "relay 1: ready")
	for n := range 4 {
		if !f.kill() {
			t.Fatal("there was no process to kill")
		}
		shop, relay := f.killed("shop"), f.killed("relay")
		if shop+relay != n+1 || f.killed() != n+1 || max(shop, relay) > n/2+1 {
			t.Fatalf("after %d kills %d shop processes and %d relays were killed", n+1, shop, relay)
		}
		if shop > 0 {
			log.await(t, fmt.Sprintf("shop %d: ready", 3+shop))
		}
		if relay > 0 {
			log.await(t, fmt.Sprintf("relay %d: ready", 1+relay))
		}
	}
	if left := f.stop(patience); left != 0 {
		t.Errorf("%d processes did not end", left)
	}
}

// Who does not end in time is killed.
func TestFleet_stubborn(t *testing.T) {
	t.Parallel()
	f, log, _ := testFleet(t, 1, "echo ready; exec sleep 1000")
	log.await(t, "ready")
	if left := f.stop(10 * time.Millisecond); left != 1 || f.alive() != 0 {
		t.Errorf("%d processes were killed and %d are left, want 1 and none", left, f.alive())
	}
}

// A fleet whose processes end again and again is given up.
func TestFleet_crashes(t *testing.T) {
	t.Parallel()
	f, log, ctx := testFleet(t, 2, "echo broken >&2; exit 3")
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		t.Fatal("the fleet is not given up")
	}
	var exit *exec.ExitError
	if err := context.Cause(ctx); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("got %v, want exit code 3", err)
	}
	f.stop(patience)
	mentions(t, log.String(), "worker 1: broken", "ended by itself: exit status 3")
}

func TestFleet_noProgram(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	f := startFleet(newLive(&logBuffer{grown: make(chan struct{})}), cancel,
		role{name: "worker", size: 1, command: func(int) (*exec.Cmd, error) { return exec.Command("/nowhere/pawl"), nil }})
	if ctx.Err() == nil {
		t.Error("the fleet is not given up")
	}
	f.stop(patience)
}
