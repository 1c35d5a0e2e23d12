//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// newPooler puts a PgBouncer before a database and returns its URL.
func newPooler(t *testing.T, url, mode string) string {
	t.Helper()
	bin, err := exec.LookPath("pgbouncer")
	if err != nil {
		t.Skip("pgbouncer is not installed here")
	}
	to, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	password := ""
	if to.Password != "" {
		password = " password='" + to.Password + "'"
	}
	port := freePort(t)
	ini := fmt.Sprintf("[databases]\ndb = host=%s port=%d dbname=%s user=%s%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"+
		"unix_socket_dir =\nauth_type = any\npool_mode = %s\n", to.Host, to.Port, to.Database, to.User, password, port, mode)
	dir, err := os.MkdirTemp("", "pawl-pooler-") // not below t.TempDir, which the pooler's user may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(ini), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{file}
	if os.Getuid() == 0 { // which it refuses to run as
		name := "postgres"
		if _, err := user.Lookup(name); err != nil {
			name = "nobody"
		}
		args = []string{"-u", name, file}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(bin, args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	awaitPort(t, port)
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/db?sslmode=disable", to.User, port)
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func awaitPort(t *testing.T, port int) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(patience); ; {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("nothing listens: %v", err)
		}
	}
}

// Through a pooler in transaction mode every command works, and the doctor says what does not.
func TestPooler(t *testing.T) {
	t.Parallel()
	direct, url := openPool(t)
	pooled := newPooler(t, url, "transaction")
	serve := start(t, pooled, "serve")
	work := start(t, pooled, "work", "--poll-only", "--queue", "q=3")
	var ids []int64
	for range 5 {
		ids = append(ids, enqueue(t, pooled, "pawl.exec", `{"name": "nope"}`, "--queue", "q", "--max-attempts", "1", "--run-at", "+1ms"))
	}
	for _, id := range ids {
		if got := await(t, direct, id); got != job.StateDiscarded {
			t.Errorf("state %s", got)
		}
		must(t, exitOK, pooled, "job", "show", id64(id))
	}
	for _, args := range [][]string{
		{"job", "list"}, {"queue", "list"}, {"session", "list"}, {"sweep"}, {"sweep", "sessions"}, {"migrate", "status"}, {"queue", "pause", "q"}, {"queue", "resume", "q"},
	} {
		must(t, exitOK, pooled, args...)
	}
	mustExec(t, direct, "SELECT setval('pawl.outbox_event_id', 2000001), pawl.outbox_keep(1::smallint, '0', '0')")
	for dropped := ""; !strings.Contains(dropped, "dropped outbox_event from 0"); { // when other tests' transactions have ended
		dropped = must(t, exitOK, pooled, "sweep", "partitions")
	}
	mentions(t, pawl(t, pooled, "doctor").out, "warn  connection", "pooler in transaction mode", "--poll-only")
	if code := work.stop(t); code != exitOK {
		t.Errorf("work: exit code %d\n%s", code, work.log)
	}
	if code := serve.stop(t); code != exitOK {
		t.Errorf("serve: exit code %d\n%s", code, serve.log)
	}
}

// Locks need nothing of a connection either, but those that are a connection's own.
func TestPoolerLocks(t *testing.T) {
	t.Parallel()
	direct, url := openPool(t)
	pooled := newPooler(t, url, "transaction")
	must(t, 3, pooled, "lock", "run", "--poll-only", "x", "--", "sh", "-c", "exit 3")
	conf, err := pgxpool.ParseConfig(pooled)
	if err != nil {
		t.Fatal(err)
	}
	conf.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	pool, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	locks, err := lock.Open(t.Context(), pool, lock.Config{PollOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = locks.Close(context.Background()) }()
	var wg sync.WaitGroup
	inside := 0
	for range 20 {
		wg.Go(func() {
			err := locks.Do(t.Context(), "x", func(ctx context.Context, l *lock.Lease) error {
				inside++
				return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return l.Assert(ctx, tx) })
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if inside != 20 {
		t.Errorf("%d of 20 were inside", inside)
	}
	if _, err := lock.OnConn(t.Context(), pool, "x"); !errors.Is(err, lock.ErrPooler) {
		t.Errorf("a lock of a pooled connection: got %v, want ErrPooler", err)
	}
	own, err := lock.OnConn(t.Context(), direct, "x")
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPoolerSession(t *testing.T) {
	t.Parallel()
	pooled := newPooler(t, dbtest.NewURL(t), "session")
	got := mustJSON[struct{ Findings []coordinator.Finding }](t, exitFailed, pooled, "doctor")
	for _, f := range got.Findings {
		if f.Check == "connection" && (f.Level != coordinator.LevelOK || f.Message == "direct, without a pooler") {
			t.Errorf("got %+v", f)
		}
	}
}
