//go:build unix

package devpg_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db/devpg"
)

// TestKill kills a server in the middle of its work.
func TestKill(t *testing.T) {
	t.Parallel()
	server := start(t, devpg.Config{Dir: newDir(t), Durable: true})
	mustAsk(t, server, "CREATE TABLE kept AS SELECT 'it is here'::text AS what")
	busy, err := pgx.Connect(bounded(t), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := busy.Exec(context.WithoutCancel(t.Context()), "SELECT count(*) FROM generate_series(1, 1000000000000)")
		ended <- err
	}()
	eventually(t, "the query runs", func() bool {
		return mustAsk(t, server, "SELECT count(*)::text FROM pg_stat_activity WHERE query LIKE '%generate_series(1, 10%' AND state = 'active' AND pid <> pg_backend_pid()") == "1"
	})
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if pids := devpg.ServerProcesses(server.DataDir(), server.PID()); len(pids) > 0 {
		t.Errorf("after Kill: processes %v", pids)
	}
	if err := <-ended; err == nil {
		t.Error("the query survived Kill")
	}
	if err := server.Kill(); err != nil {
		t.Errorf("Kill again: %v", err)
	}
	stop(t, server)
	again := start(t, server.Config())
	if got := mustAsk(t, again, "SELECT what FROM kept"); got != "it is here" {
		t.Errorf("table: got %q", got)
	}
}

func TestKill_adopted(t *testing.T) {
	t.Parallel()
	owned := start(t, devpg.Config{Dir: newDir(t)})
	adopted := start(t, devpg.Config{Dir: owned.Dir()})
	if err := adopted.Kill(); err != nil {
		t.Fatal(err)
	}
	<-owned.Done()
	if again := start(t, owned.Config()); again.Adopted() {
		t.Error("adopted a dead server")
	}
}

// TestPostmasterKilled kills the server from outside, as the kernel does when
// memory is short.
func TestPostmasterKilled(t *testing.T) {
	t.Parallel()
	server := start(t, devpg.Config{Dir: newDir(t)})
	if err := syscall.Kill(server.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again := start(t, server.Config()) // at once
	if again.Adopted() || again.PID() == server.PID() {
		t.Errorf("got adopted %v, pid %d; want a new server", again.Adopted(), again.PID())
	}
	<-server.Done()
}

// TestOwnerKilled kills the process that started the server: the server stops,
// and the next process starts it again.
func TestOwnerKilled(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	other := startOwner(t, dir, false)
	adopted := start(t, devpg.Config{Dir: dir})
	mustAsk(t, adopted, "CREATE TABLE kept AS SELECT 'it is here'::text AS what")
	other.kill()
	server := start(t, devpg.Config{Dir: dir}) // at once
	if server.Adopted() || server.PID() == other.pid {
		t.Errorf("got adopted %v, pid %d; want a new server", server.Adopted(), server.PID())
	}
	if got := mustAsk(t, server, "SELECT what FROM kept"); got != "it is here" {
		t.Errorf("table: got %q", got)
	}
}

// TestBothKilled kills the owner and the postmaster, so that nobody cleans up.
func TestBothKilled(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	other := startOwner(t, dir, false)
	adopted := start(t, devpg.Config{Dir: dir})
	mustAsk(t, adopted, "CREATE TABLE kept AS SELECT 'it is here'::text AS what")
	if err := syscall.Kill(other.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	other.kill()
	server := start(t, devpg.Config{Dir: dir})
	if got := mustAsk(t, server, "SELECT what FROM kept"); got != "it is here" {
		t.Errorf("table: got %q", got)
	}
}

// TestOwnerKilled_temporary also takes the directory with it.
func TestOwnerKilled_temporary(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	other := startOwner(t, dir, true)
	other.kill()
	eventually(t, "the directory is removed", func() bool {
		_, err := os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
	if pids := devpg.ServerProcesses(filepath.Join(dir, "data"), other.pid); len(pids) > 0 {
		t.Errorf("processes %v", pids)
	}
}

// TestStalePidFile finds, after a crash, the process id of the server given to
// another process: to one that has nothing to do with Postgres, and to another
// Postgres.
func TestStalePidFile(t *testing.T) {
	t.Parallel()
	sleeper := exec.Command("sleep", "600")
	if err := devpg.RunAsServer(sleeper); err != nil {
		t.Fatal(err)
	}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // not deferred: the parallel subtests run after this function
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	})
	another := start(t, devpg.Config{Dir: newDir(t)})
	t.Cleanup(func() { mustAskLate(t, another) })
	for name, pid := range map[string]int{"sleep": sleeper.Process.Pid, "postgres": another.PID()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := start(t, devpg.Config{Dir: newDir(t)})
			pidFile := filepath.Join(server.DataDir(), "postmaster.pid")
			text, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(text), "\n")
			socketDir := server.SocketDir()
			for _, file := range []string{pidFile, filepath.Join(socketDir, ".s.PGSQL.5432.lock")} {
				if err := os.WriteFile(file, []byte(strconv.Itoa(pid)+"\n"+rest), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			again := start(t, server.Config())
			if again.Adopted() || again.PID() == pid {
				t.Errorf("got adopted %v, pid %d; want a new server", again.Adopted(), again.PID())
			}
			if err := syscall.Kill(pid, 0); err != nil {
				t.Errorf("the other process: %v", err)
			}
		})
	}
}

func mustAskLate(t *testing.T, server *devpg.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := ask(ctx, server.URL("postgres"), "SELECT 'unharmed'"); err != nil {
		t.Errorf("the other server: %v", err)
	}
}

// TestByHand adopts a server that somebody started with Postgres's own means.
func TestByHand(t *testing.T) {
	t.Parallel()
	server := start(t, devpg.Config{Dir: newDir(t)})
	stop(t, server)
	cmd := exec.Command(filepath.Join(server.BinDir(), "postgres"), "-D", server.DataDir(),
		"-k", server.SocketDir(), "-c", "listen_addresses=", "-p", "6543")
	if err := devpg.RunAsServer(cmd); err != nil {
		t.Fatal(err)
	}
	cmd.Dir = server.DataDir()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Signal(syscall.SIGINT)
	pidFile := filepath.Join(server.DataDir(), "postmaster.pid")
	for deadline := time.Now().Add(patience); ; { // until it is there
		if text, err := os.ReadFile(pidFile); err == nil && strings.Contains(string(text), "ready") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the server does not start")
		}
	}
	adopted := start(t, devpg.Config{Dir: server.Dir()})
	if !adopted.Adopted() || adopted.PID() != cmd.Process.Pid {
		t.Errorf("got adopted %v, pid %d; want the server %d", adopted.Adopted(), adopted.PID(), cmd.Process.Pid)
	}
	if got := mustAsk(t, adopted, "SHOW port"); got != "6543" {
		t.Errorf("port: got %s", got)
	}
	stop(t, adopted)
	mustAsk(t, adopted, "SELECT 'still here'")
}

// TestRemains starts in what a crash in the middle of initdb has left.
func TestRemains(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	half := filepath.Join(dir, "data.new-123")
	if err := os.MkdirAll(half, 0o711); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{filepath.Join(half, "PG_VERSION"), filepath.Join(dir, "lock")} {
		if err := os.WriteFile(file, []byte("15\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	start(t, devpg.Config{Dir: dir})
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a data directory: %v, want it gone", err)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	server := start(t, devpg.Config{Dir: newDir(t)})
	if removed, err := devpg.RemoveUnowned(bounded(t), server.Dir()); removed || err != nil {
		t.Errorf("RemoveUnowned of an owned server: got %v, %v", removed, err)
	}
	mustAsk(t, server, "SELECT 'still here'")
	segment := sharedMemory(t, server)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	// A process that another test is about to start may have its lock's file open until it runs its program.
	removed, err := false, error(nil)
	for ctx := bounded(t); !removed && err == nil && ctx.Err() == nil; {
		removed, err = devpg.RemoveUnowned(ctx, server.Dir())
	}
	if !removed || err != nil {
		t.Errorf("RemoveUnowned of a killed server: got %v, %v", removed, err)
	}
	if _, err := os.Stat(server.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory: %v", err)
	}
	if list, err := os.ReadFile("/proc/sysvipc/shm"); err == nil { // Linux only
		for line := range strings.Lines(string(list)) {
			if fields := strings.Fields(line); len(fields) > 1 && fields[1] == segment {
				t.Errorf("shared memory is left: %s", line)
			}
		}
	}
	owned := start(t, devpg.Config{Dir: newDir(t)})
	if err := devpg.Remove(bounded(t), owned.Dir()); err != nil {
		t.Error(err)
	}
	<-owned.Done()
}

// sharedMemory returns the id of the server's segment, from its pid file.
func sharedMemory(t *testing.T, server *devpg.Server) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(server.DataDir(), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var key, id string
	lines := strings.Split(string(text), "\n")
	if _, err := fmt.Sscan(lines[6], &key, &id); err != nil {
		t.Fatalf("%q: %v", lines[6], err)
	}
	return id
}

func TestTemporary(t *testing.T) {
	t.Parallel()
	server := start(t, devpg.Config{Dir: newDir(t), Temporary: true})
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	again := start(t, server.Config()) // Kill has left it
	stop(t, again)
	if _, err := os.Stat(server.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory after Stop: %v, want it gone", err)
	}
	kept := start(t, devpg.Config{Dir: newDir(t), Temporary: true})
	if err := kept.Keep(); err != nil {
		t.Fatal(err)
	}
	stop(t, kept)
	if _, err := os.Stat(kept.DataDir()); err != nil {
		t.Errorf("directory kept: %v", err)
	}
}
