//go:build unix

package devpg_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/pawl-dev/pawl/db/devpg"
)

// TestStart is the life of a development server: made, used, stopped, started.
func TestStart(t *testing.T) {
	t.Parallel()
	cfg := devpg.Config{Dir: newDir(t), Durable: true}
	server, err := devpg.Start(bounded(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if server.Adopted() {
		t.Error("Adopted: got true of the only server")
	}
	want := map[string]string{
		"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "listen_addresses": "",
		"shared_buffers": "256MB", "max_connections": "200", "max_wal_size": "4GB", "max_prepared_transactions": "200",
		"server_encoding": "UTF8",
	}
	for name, value := range want {
		if got := mustAsk(t, server, "SHOW "+name); got != value {
			t.Errorf("%s: got %q, want %q", name, got, value)
		}
	}
	if got := mustAsk(t, server, "SHOW server_version"); !strings.HasPrefix(got, server.Version()) {
		t.Errorf("Version: got %q, the server says %q", server.Version(), got)
	}
	if _, err := os.Stat(filepath.Join(server.BinDir(), "postgres")); err != nil {
		t.Errorf("BinDir: %v", err)
	}
	mustAsk(t, server, "CREATE TABLE kept AS SELECT 'it is here'::text AS what")
	stop(t, server)
	select {
	case <-server.Done():
	default:
		t.Error("Done: open after Stop")
	}
	if pids := devpg.ServerProcesses(server.DataDir(), server.PID()); len(pids) > 0 {
		t.Errorf("after Stop: processes %v", pids)
	}
	stop(t, server) // again
	again, err := devpg.Start(bounded(t), server.Config())
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, again)
	if again.URL("postgres") != server.URL("postgres") {
		t.Errorf("URL: got %s, was %s", again.URL("postgres"), server.URL("postgres"))
	}
	if got := mustAsk(t, again, "SELECT what FROM kept"); got != "it is here" {
		t.Errorf("table: got %q", got)
	}
}

func TestStart_settings(t *testing.T) {
	t.Parallel()
	server := start(t, devpg.Config{Dir: newDir(t), Settings: map[string]string{"max_connections": "33", "work_mem": "9MB"}})
	want := map[string]string{
		"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "listen_addresses": "",
		"max_connections": "33", "work_mem": "9MB", "max_prepared_transactions": "200",
	}
	for name, value := range want {
		if got := mustAsk(t, server, "SHOW "+name); got != value {
			t.Errorf("%s: got %q, want %q", name, got, value)
		}
	}
}

// TestStart_closed checks that nobody but the server's user can get at it.
func TestStart_closed(t *testing.T) {
	t.Parallel()
	server := start(t, devpg.Config{Dir: newDir(t)})
	uid, err := devpg.ServerUID()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{server.DataDir(), server.SocketDir()} {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o700 {
			t.Errorf("%s: got mode %v, want 0700", dir, got)
		}
		if got := int(info.Sys().(*syscall.Stat_t).Uid); got != uid {
			t.Errorf("%s: got owner %d, want %d", dir, got, uid)
		}
	}
}

func TestStart_longDir(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(filepath.Dir(newDir(t)), strings.Repeat("long", 25))
	server := start(t, devpg.Config{Dir: dir})
	if got := mustAsk(t, server, "SELECT 'here'"); got != "here" {
		t.Errorf("got %q", got)
	}
	socketDir := server.SocketDir()
	if filepath.Dir(socketDir) == dir {
		t.Fatalf("socket directory: got %s, want one outside", socketDir)
	}
	if err := devpg.Remove(bounded(t), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(socketDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket directory after Remove: %v", err)
	}
}

func TestStart_tcp(t *testing.T) {
	t.Parallel()
	server := start(t, devpg.Config{Dir: newDir(t), TCP: true})
	url := server.URL("postgres")
	if !strings.Contains(url, "@127.0.0.1:") {
		t.Fatalf("URL: got %s, want one of 127.0.0.1", url)
	}
	if got := mustAsk(t, server, "SELECT host(inet_server_addr())"); got != "127.0.0.1" {
		t.Errorf("server address: got %q", got)
	}
	before, rest, _ := strings.Cut(url, "postgres:")
	_, after, _ := strings.Cut(rest, "@")
	if _, err := ask(bounded(t), before+"postgres@"+strings.TrimPrefix(after, "@"), "SELECT 'in'"); err == nil {
		t.Error("without the password: let in")
	}
	adopted := start(t, devpg.Config{Dir: server.Dir(), TCP: true})
	if adopted.URL("postgres") != url {
		t.Errorf("URL of the adopter: got %s, want %s", adopted.URL("postgres"), url)
	}
	local := start(t, devpg.Config{Dir: server.Dir()})
	if got := mustAsk(t, local, "SELECT coalesce(host(inet_server_addr()), 'socket')"); got != "socket" {
		t.Errorf("adopter without TCP: got %q, want the socket", got)
	}
	stop(t, server)
	again := start(t, server.Config())
	if again.URL("postgres") != url {
		t.Errorf("URL after a restart: got %s, want %s", again.URL("postgres"), url)
	}
}

// TestStart_concurrent has one of many starters own the server.
func TestStart_concurrent(t *testing.T) {
	t.Parallel()
	cfg := devpg.Config{Dir: newDir(t), Template: template(t)}
	servers := make([]*devpg.Server, 6)
	var all sync.WaitGroup
	barrier := make(chan struct{})
	for i := range servers {
		all.Go(func() {
			<-barrier
			var err error
			if servers[i], err = devpg.Start(bounded(t), cfg); err != nil {
				t.Errorf("starter %d: %v", i, err)
			}
		})
	}
	close(barrier)
	all.Wait()
	if t.Failed() {
		return
	}
	var owned *devpg.Server
	for i, server := range servers {
		if server.PID() != servers[0].PID() || server.URL("a") != servers[0].URL("a") || server.Version() != servers[0].Version() ||
			server.BinDir() != servers[0].BinDir() {
			t.Errorf("starter %d has another server than the first: %+v, %+v", i, server, servers[0])
		}
		if !server.Adopted() {
			if owned != nil {
				t.Error("the server has two owners")
			}
			owned = server
		}
	}
	if owned == nil {
		t.Fatal("the server has no owner")
	}
	for _, server := range servers {
		if server.Adopted() {
			stop(t, server)
		}
	}
	mustAsk(t, owned, "SELECT 'still here'")
	stop(t, owned)
	if _, err := ask(bounded(t), owned.URL("postgres"), "SELECT 'gone'"); err == nil {
		t.Error("the server outlived its owner's Stop")
	}
}

// TestPrepare_swept makes a directory while others remove it: it is nobody's.
func TestPrepare_swept(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newDir(t), "run")
	ctx, cancel := context.WithCancel(bounded(t))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _ = devpg.RemoveUnowned(ctx, dir) // all at once: some find nothing left
			}
		})
	}
	for i := range 1000 {
		if err := devpg.Prepare(dir); err != nil {
			t.Fatalf("try %d: %v", i, err)
		}
	}
}

// TestStart_other adopts the server of another process, and takes its place
// when that process stops it.
func TestStart_other(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	other := startOwner(t, dir, false)
	if other.adopted {
		t.Error("the first one adopted a server")
	}
	server := start(t, devpg.Config{Dir: dir})
	if !server.Adopted() || server.PID() != other.pid {
		t.Errorf("got adopted %v, pid %d; want the server %d of the other", server.Adopted(), server.PID(), other.pid)
	}
	stop(t, server)
	mustAsk(t, server, "SELECT 'still here'")
	other.quit(t)
	own := start(t, devpg.Config{Dir: dir})
	if own.Adopted() || own.PID() == other.pid {
		t.Errorf("after the owner stopped it: got adopted %v, pid %d", own.Adopted(), own.PID())
	}
}

func TestStart_cancelled(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := devpg.Start(ctx, devpg.Config{Dir: dir, Template: template(t)}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want context.Canceled", err)
	}
	start(t, devpg.Config{Dir: dir}) // nothing is in the way
}

func TestStop_impatient(t *testing.T) {
	t.Parallel()
	server := start(t, devpg.Config{Dir: newDir(t)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := server.Stop(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want context.Canceled", err)
	}
	<-server.Done() // it goes on stopping
}
