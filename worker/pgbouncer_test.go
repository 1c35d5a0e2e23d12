package worker_test

import (
	"context"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

// pgbouncer starts a PgBouncer in transaction mode before a database and returns its URL.
func pgbouncer(tb testing.TB, url string) string {
	tb.Helper()
	bin, err := osexec.LookPath("pgbouncer")
	if err != nil {
		bin = "/usr/sbin/pgbouncer"
		if _, err := os.Stat(bin); err != nil {
			tb.Skip("pgbouncer is not installed here")
		}
	}
	conf, err := pgx.ParseConfig(url)
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	_ = free.Close()
	password := ""
	if conf.Password != "" {
		password = " password=" + conf.Password
	}
	ini := fmt.Sprintf(`[databases]
db = host=%s port=%d dbname=%s user=%s%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 5
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
`, conf.Host, conf.Port, conf.Database, conf.User, password, port)
	path := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(path, []byte(ini), 0o644); err != nil {
		tb.Fatal(err)
	}
	args := []string{path}
	if os.Getuid() == 0 { // it refuses root
		for _, name := range []string{"postgres", "nobody"} {
			if _, err := user.Lookup(name); err == nil {
				args = []string{"-u", name, path}
				break
			}
		}
		for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				tb.Fatal(err)
			}
		}
	}
	cmd := osexec.Command(bin, args...)
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if tb.Failed() {
			tb.Log(log.String())
		}
	})
	pooled := fmt.Sprintf("postgres://%s@127.0.0.1:%d/db?default_query_exec_mode=cache_describe", conf.User, port)
	until(tb, "pgbouncer to answer", func() bool {
		c, err := pgx.Connect(context.Background(), pooled)
		if err != nil {
			return false
		}
		return c.Close(context.Background()) == nil
	})
	return pooled
}

// Behind a transaction pooler everything works, poll-only.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	url := dbtest.NewURL(t)
	direct := connect(t, url)
	sweep(t, direct)
	exec(t, direct, "CREATE TABLE effect (job bigint, attempt int)")
	pool := connect(t, pgbouncer(t, url))
	conf := quick()
	conf.PollOnly = true
	w := newWorker(t, pool, conf)
	register(w)
	failing := job.Define[greeting]("failing", job.Backoff(0, 0), job.MaxAttempts(3))
	worker.Handle(w, failing, func(context.Context, *job.Job[greeting]) error { return errTest })
	run(t, w)
	enqueueBoth(t, pool)
	id := enqueue(t, pool, failing, greeting{})
	untilState(t, pool, id, job.StateDiscarded)
	until(t, "the rest", func() bool { return w.Stats().Succeeded == 2*jobsEach })
	if got := count(t, direct, "SELECT count(*) FROM effect"); got != jobsEach {
		t.Errorf("effects: got %d, want %d", got, jobsEach)
	}
}
