//go:build unix

package devmaria_test

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"

	"github.com/pawl-dev/pawl/db/devmaria"
)

const patience = 60 * time.Second

func start(t *testing.T, dir string, settings ...string) *devmaria.Server {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	s, err := devmaria.Start(ctx, dir, settings...)
	if errors.Is(err, devmaria.ErrNotInstalled) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func ask(t *testing.T, s *devmaria.Server, statements ...string) (answer string) {
	t.Helper()
	db, err := sql.Open("mysql", s.DSN("mysql"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, statement := range statements {
		if strings.HasPrefix(statement, "SELECT") {
			err = db.QueryRow(statement).Scan(&answer)
		} else {
			_, err = db.Exec(statement)
		}
		if err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	return answer
}

// What was committed and what was prepared outlive a kill, as do settings; a temporary directory goes with Stop.
func TestKill(t *testing.T) {
	t.Parallel()
	s := start(t, "", "--sync-binlog=7")
	ask(t, s, "CREATE DATABASE a", "CREATE TABLE a.b (i int PRIMARY KEY)", "INSERT INTO a.b VALUES (1)", "XA START 'x'", "INSERT INTO a.b VALUES (2)", "XA END 'x'", "XA PREPARE 'x'")
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, s, "SELECT @@sync_binlog"); got != "7" {
		t.Errorf("its setting: got %s, want 7", got)
	}
	if got := ask(t, s, "SELECT sum(i) FROM a.b"); got != "1" {
		t.Errorf("before its commit: got %s, want 1", got)
	}
	if got := ask(t, s, "XA COMMIT 'x'", "SELECT sum(i) FROM a.b"); got != "3" {
		t.Errorf("after: got %s, want 3", got)
	}
	for range 2 {
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(s.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory: got %v, want that it is gone", err)
	}
}

// A directory of one's own stays, with what is in it.
func TestStart_dir(t *testing.T) {
	t.Parallel()
	dir := temporaryDir(t)
	s := start(t, dir)
	ask(t, s, "CREATE DATABASE a")
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, start(t, dir), "SELECT count(*) FROM information_schema.schemata WHERE schema_name = 'a'"); got != "1" {
		t.Errorf("got %s databases, want 1", got)
	}
}

// Who comes second adopts the server, and leaves it when he goes; a killed one is started again by whoever is first.
func TestStart_adopted(t *testing.T) {
	t.Parallel()
	dir := temporaryDir(t)
	owner := start(t, dir)
	ended := owner.Done()
	second := start(t, dir)
	if owner.Adopted() || !second.Adopted() {
		t.Errorf("adopted: got %t and %t, want the second", owner.Adopted(), second.Adopted())
	}
	ask(t, second, "CREATE DATABASE a")
	if err := second.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask(t, owner, "CREATE DATABASE b")
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	for _, s := range []*devmaria.Server{second, owner} {
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		ask(t, s, "SELECT 1")
	}
	if second.Adopted() || !owner.Adopted() {
		t.Errorf("adopted: got %t and %t, want the one that came late", second.Adopted(), owner.Adopted())
	}
}

// What a process that was killed has half made is made again, and removed.
func TestStart_halfMade(t *testing.T) {
	t.Parallel()
	dir := temporaryDir(t)
	half := filepath.Join(dir, "data.new-1")
	if err := os.MkdirAll(filepath.Join(half, "mysql"), 0o755); err != nil {
		t.Fatal(err)
	}
	ask(t, start(t, dir), "CREATE DATABASE a")
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was half made: got %v, want that it is gone", err)
	}
}

// A server that does not start says why.
func TestStart_fails(t *testing.T) {
	t.Parallel()
	start(t, "") // or skip
	dir := temporaryDir(t)
	if err := os.MkdirAll(filepath.Join(dir, "data", "mysql"), 0o755); err != nil { // as if it were initialised
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data", "ibdata1"), []byte("none"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := devmaria.Start(t.Context(), dir)
	if err == nil {
		_ = s.Kill()
	}
	if err == nil || !strings.Contains(err.Error(), "[ERROR]") {
		t.Errorf("got %v, want what its log says", err)
	}
}

// A path that no socket may have is refused before anything is made.
func TestStart_tooLong(t *testing.T) {
	t.Parallel()
	start(t, "") // or skip
	dir := filepath.Join(temporaryDir(t), strings.Repeat("d", 100))
	if _, err := devmaria.Start(t.Context(), dir); !errors.Is(err, devmaria.ErrTooLong) {
		t.Errorf("got %v, want ErrTooLong", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory: got %v, want that there is none", err)
	}
}

// A server that has outlived its owner and its watchdog gives way to the next one in its directory.
func TestStart_orphan(t *testing.T) {
	t.Parallel()
	dir := temporaryDir(t)
	if err := start(t, dir).Stop(t.Context()); err != nil { // it is installed, and there are data
		t.Fatal(err)
	}
	owner, _ := startOwner(t, dir)
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // it was killed
	s := start(t, dir)
	ask(t, s, "CREATE DATABASE a")
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("unix", filepath.Join(dir, "sock")); err == nil {
		_ = conn.Close()
		t.Error("it was not the one that was started which answered")
	}
}

func temporaryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pawl-maria-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// A directory that is named and has no server is not passed over for another.
func TestStart_named(t *testing.T) {
	t.Setenv("PAWL_MARIADB_BIN", t.TempDir())
	_, err := devmaria.Start(t.Context(), "")
	if !errors.Is(err, devmaria.ErrNotInstalled) || !strings.Contains(err.Error(), "PAWL_MARIADB_BIN") {
		t.Errorf("got %v, want ErrNotInstalled and why", err)
	}
}

// TestOwner is the process that tests kill which have started it.
func TestOwner(t *testing.T) {
	dir, ok := os.LookupEnv("DEVMARIA_OWNER")
	if !ok {
		t.Skip("other tests run it")
	}
	s := start(t, dir)
	if dir != "" {
		s.Unwatch()
	}
	_, _ = os.Stdout.WriteString("dir " + s.Dir() + "\n")
	<-s.Done()
}

// The server and its directory go when the process that started it is killed.
func TestStart_killed(t *testing.T) {
	t.Parallel()
	start(t, "") // or skip
	owner, dir := startOwner(t, "")
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	late := time.After(patience)
	for {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			return
		}
		select {
		case <-ticker.C:
		case <-late:
			t.Fatalf("%s is still there", dir)
		}
	}
}

// startOwner starts a process that owns a server: in a temporary directory if dir is empty, else without a watchdog.
func startOwner(t *testing.T, dir string) (owner *exec.Cmd, at string) {
	t.Helper()
	owner = exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOwner$")
	owner.Env = append(os.Environ(), "DEVMARIA_OWNER="+dir)
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 200)
	n, _ := out.Read(said)
	at, ok := strings.CutPrefix(strings.TrimSpace(string(said[:n])), "dir ")
	if !ok {
		t.Fatalf("the owner said %q", said[:n])
	}
	return owner, at
}
