package devmaria_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"os/exec"
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
	dir, err := os.MkdirTemp("", "pawl-maria-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := start(t, dir)
	ask(t, s, "CREATE DATABASE a")
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, start(t, dir), "SELECT count(*) FROM information_schema.schemata WHERE schema_name = 'a'"); got != "1" {
		t.Errorf("got %s databases, want 1", got)
	}
}

// TestOwner is the process that TestStart_killed kills, if that started it.
func TestOwner(t *testing.T) {
	if os.Getenv("DEVMARIA_OWNER") == "" {
		t.Skip("it is run by TestStart_killed")
	}
	s := start(t, "")
	_, _ = os.Stdout.WriteString("dir " + s.Dir() + "\n")
	<-s.Done()
}

// The server and its directory go when the process that started it is killed.
func TestStart_killed(t *testing.T) {
	t.Parallel()
	start(t, "") // or skip
	owner := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOwner$")
	owner.Env = append(os.Environ(), "DEVMARIA_OWNER=1")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 200)
	n, _ := out.Read(said)
	dir, ok := strings.CutPrefix(strings.TrimSpace(string(said[:n])), "dir ")
	if !ok {
		t.Fatalf("the owner said %q", said[:n])
	}
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
