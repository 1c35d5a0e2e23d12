package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/gosrc"
	"github.com/pawl-dev/pawl/worker"
)

// devProcessEnv makes the test binary a process of "pawl dev": its value says how quick a worker's handlers are, "quick" or "slow".
const devProcessEnv = "PAWL_TEST_DEV_PROCESS"

// TestDevProcess is not a test: it is what the tests run as processes of their own.
func TestDevProcess(t *testing.T) {
	mode := os.Getenv(devProcessEnv)
	if mode == "" {
		t.Skip("for processes that other tests start")
	}
	var c struct {
		globals

		Dev         devCmd         `cmd:""`
		DevWorker   devWorkerCmd   `cmd:""`
		DevCheckout devCheckoutCmd `cmd:""`
		DevTransfer devTransferCmd `cmd:""`
	}
	parser, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(flag.Args())
	if err != nil {
		t.Fatal(err)
	}
	c.Dev.command = devProcess(mode)
	if mode == "slow" {
		c.DevWorker.use = []worker.Middleware{slowly}
		c.DevCheckout.wrap, c.DevCheckout.use = slowHandler, c.DevWorker.use
	}
	a := &app{ctx: context.Background(), in: os.Stdin, out: os.Stdout, err: os.Stderr}
	a.use(c.globals)
	if err := parsed.Run(a); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFailed)
	}
	os.Exit(exitOK)
}

// devProcess makes commands that run this test binary as a process of "pawl dev".
func devProcess(mode string) func(args ...string) (*exec.Cmd, error) {
	return func(args ...string) (*exec.Cmd, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cmd := exec.Command(self, append([]string{"-test.run=^TestDevProcess$", "--"}, args...)...)
		cmd.Env = append(os.Environ(), devProcessEnv+"="+mode)
		return cmd, nil
	}
}

// slowly holds every job for a moment, so that a process that is killed has some.
func slowly(next func(context.Context, *worker.Raw) error) func(context.Context, *worker.Raw) error {
	return func(ctx context.Context, j *worker.Raw) error {
		moment := time.NewTimer(20 * time.Millisecond)
		defer moment.Stop()
		select {
		case <-moment.C:
		case <-ctx.Done():
		}
		return next(ctx, j)
	}
}

// slowHandler holds every request for a moment, so that a process that is killed has some.
func slowHandler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		moment := time.NewTimer(10 * time.Millisecond)
		defer moment.Stop()
		select {
		case <-moment.C:
		case <-r.Context().Done():
		}
		next.ServeHTTP(w, r)
	})
}

// devRun is "pawl dev" in this process, with its worker processes.
type devRun struct {
	app       *app
	out       bytes.Buffer // read it when the run has ended
	log       *logBuffer
	interrupt context.CancelFunc
	ended     chan error
}

// runDev starts the command. The test's end interrupts it and waits.
func runDev(t *testing.T, url string, c *devCmd) *devRun {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &devRun{log: &logBuffer{grown: make(chan struct{})}, interrupt: cancel, ended: make(chan error, 1)}
	r.app = &app{
		ctx: ctx, in: strings.NewReader(""), out: &r.out, err: r.log, json: true, databaseURL: url, namespace: 1,
		log: slog.New(slog.NewTextHandler(r.log, nil)),
	}
	if c.Workers == 0 {
		c.Workers = 2
	}
	go func() {
		r.ended <- c.Run(r.app)
		close(r.ended)
	}()
	t.Cleanup(func() {
		cancel()
		for range r.ended { // until it is closed
		}
		if t.Failed() {
			t.Logf("pawl dev:\n%s", r.log)
		}
	})
	return r
}

// wait waits for the end of the run.
func (r *devRun) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(2 * patience):
		t.Fatal("pawl dev does not end")
		return nil
	}
}

// report waits for the end of a run that is to be right, and returns what it wrote.
func (r *devRun) report(t *testing.T) gosrcReport {
	t.Helper()
	if err := r.wait(t); err != nil {
		t.Fatalf("pawl dev: %v\n%s", err, r.out.String())
	}
	var report gosrcReport
	if err := json.Unmarshal(r.out.Bytes(), &report); err != nil {
		t.Fatalf("%v\n%s", err, r.out.String())
	}
	if !report.Equal || len(report.Differences) > 0 {
		t.Errorf("the totals are wrong: %q", report.Differences)
	}
	if text := r.log.String(); strings.Contains(text, "ended by itself") {
		t.Error("a worker process ended by itself")
	}
	return report
}

// goSource returns a directory of the Go installation.
func goSource(t *testing.T, dir string) string {
	t.Helper()
	src, err := (&devCmd{}).source(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(src, filepath.FromSlash(dir))
}

// awaitRow looks until a query gives true.
func awaitRow(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for {
		var come bool
		if err := pool.QueryRow(t.Context(), sql, args...).Scan(&come); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		if come {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: still waiting", sql)
		}
	}
}

func TestDev(t *testing.T) {
	t.Parallel()
	_, url := openPool(t)
	for n := range int64(2) { // the second keeps what the first wrote
		r := runDev(t, url, &devCmd{Exit: true, Src: goSource(t, "strings"), command: devProcess("quick")})
		report := r.report(t)
		if report.Run != n+1 || report.Files == 0 || report.Packages == 0 || report.Attempts != report.Files || report.Lost+report.Failed+report.Kills > 0 {
			t.Errorf("got %+v, want run %d with one attempt for each file", report, n+1)
		}
	}
}

func TestDev_kill(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	t.Parallel()
	pool, url := openPool(t)
	r := runDev(t, url, &devCmd{Exit: true, Kill: true, Src: goSource(t, "go"), command: devProcess("slow")})
	report := r.report(t)
	if report.Kills != devKills || report.Lost == 0 || report.Sessions == 0 || report.LostJob == 0 || report.LostPath == "" {
		t.Errorf("got %+v, want %d kills and jobs that were lost", report, devKills)
	}
	if report.Attempts != report.Files+report.Lost+report.Failed {
		t.Errorf("got %d attempts for %d files, %d lost, %d failed", report.Attempts, report.Files, report.Lost, report.Failed)
	}
	mentions(t, r.log.String(), "killed worker", "put back in line", "Sessions expire after 3s here")
	awaitRow(t, pool, "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pawl dev%'")
}

// It stays up for a look around until it is interrupted, and that is no error.
func TestDev_staysUp(t *testing.T) {
	t.Parallel()
	_, url := openPool(t)
	r := runDev(t, url, &devCmd{Src: goSource(t, "sort"), command: devProcess("quick")})
	r.log.await(t, "It stays up until Ctrl-C.")
	r.interrupt()
	r.report(t)
}

// What is cut off is finished by the next run, before its own files.
func TestDev_interrupt(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	t.Parallel()
	pool, url := openPool(t)
	r := runDev(t, url, &devCmd{Src: goSource(t, "go"), command: devProcess("slow")})
	r.log.await(t, "jobs enqueued")
	awaitRow(t, pool, "SELECT count(*) > 0 FROM gosrc.file")
	r.interrupt()
	err := r.wait(t)
	var reported reportedError
	if !errors.As(err, &reported) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want an end that was reported", err)
	}
	mentions(t, r.log.String(), "Interrupted. What is left of run 1")
	next := runDev(t, url, &devCmd{Src: goSource(t, "sort"), command: devProcess("quick")})
	report := finishFirst(t, pool, next)
	if report.Run != 2 || report.Earlier == 0 {
		t.Errorf("got %+v, want run 2 after what was left of run 1", report)
	}
}

// finishFirst waits until run 1, over the source of package go and below, is finished by a later one that stays up, and checks it. It returns the report
// of the later one.
func finishFirst(t *testing.T, pool *pgxpool.Pool, later *devRun) gosrcReport {
	t.Helper()
	later.log.await(t, "It stays up until Ctrl-C.")
	awaitRow(t, pool, "SELECT finished_at IS NOT NULL FROM gosrc.run WHERE id = 1")
	later.interrupt()
	report := later.report(t)
	totals, err := gosrc.ReadTotals(t.Context(), pool, 1)
	if err != nil {
		t.Fatal(err)
	}
	want, err := gosrc.Walk(t.Context(), goSource(t, "go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range gosrc.Diff(totals, want) {
		t.Errorf("run 1: %s", line)
	}
	return report
}

// A killed parent takes its workers with it, and the next run puts right what they left.
func TestDev_parentKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	if runtime.GOOS != "linux" {
		t.Skip("looks for processes in /proc")
	}
	t.Parallel()
	pool, url := openPool(t)
	parent, err := devProcess("slow")("dev", "--kill", "--src="+goSource(t, "go"), "--database-url="+url)
	if err != nil {
		t.Fatal(err)
	}
	out := &logBuffer{grown: make(chan struct{})}
	parent.Stdout, parent.Stderr = out, out
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	awaitRow(t, pool, "SELECT to_regclass('gosrc.file') IS NOT NULL")
	awaitRow(t, pool, "SELECT count(*) > 20 FROM gosrc.file")
	if err := parent.Process.Kill(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_ = parent.Wait() // it was killed
	rows, err := pool.Query(t.Context(), "SELECT pid FROM pawl.session")
	if err != nil {
		t.Fatal(err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil || len(pids) < 2 {
		t.Fatalf("sessions of processes %v, %v, want two at least", pids, err)
	}
	for _, pid := range pids {
		awaitGone(t, pid)
	}

	finishFirst(t, pool, runDev(t, url, &devCmd{Kill: true, Src: goSource(t, "sort"), command: devProcess("quick")}))
}

// awaitGone waits until a process has ended, be it waited for or not.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, state, _ := strings.Cut(string(stat), ") ")
		if errors.Is(err, os.ErrNotExist) || strings.HasPrefix(state, "Z") {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("process %d goes on: %s", pid, stat)
		}
	}
}

// serverDir is where private servers of a test may lie.
func serverDir(t *testing.T) string {
	t.Helper()
	base, err := os.MkdirTemp("", "pawl-dev-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	if err := os.Chmod(base, 0o711); err != nil { // started by root, the server runs as another user
		t.Fatal(err)
	}
	return filepath.Join(base, "dev")
}

// With a private Postgres: nothing of it is left running, and its data serve the next run.
func TestDev_privatePostgres(t *testing.T) {
	if testing.Short() {
		t.Skip("initialises a server")
	}
	t.Parallel()
	dir := serverDir(t)
	for n := range int64(2) {
		report := runDev(t, "", &devCmd{Exit: true, Dir: dir, Src: goSource(t, "sort"), command: devProcess("quick")}).report(t)
		if report.Run != n+1 {
			t.Errorf("got run %d, want %d", report.Run, n+1)
		}
		if url := privateURL(dir); url != "" {
			t.Errorf("the server still runs at %s", url)
		}
	}
}

func TestDev_badInput(t *testing.T) {
	t.Parallel()
	_, url := openPool(t)
	for _, tc := range []struct {
		name string
		cmd  devCmd
		want string
	}{
		{"no workers", devCmd{Workers: -1}, "--workers -1 is outside 1 to 32"},
		{"too many workers", devCmd{Workers: 33}, "--workers 33 is outside 1 to 32"},
		{"no such directory", devCmd{Src: filepath.Join(t.TempDir(), "nowhere")}, "is not a directory"},
		{"nothing to count", devCmd{Src: t.TempDir()}, "there are no Go files"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			err := runDev(t, url, &tc.cmd).wait(t)
			if exitCode(err) != exitUsage {
				t.Fatalf("got %v, want wrong usage", err)
			}
			mentions(t, err.Error(), tc.want)
		})
	}
}

func TestDev_wrong(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := &dev{app: &app{ctx: t.Context(), out: &out, err: &out}, live: newLive(&out)}
	report := &gosrcReport{Differences: []string{"a/b: lines 1, want 2"}}
	report.take(gosrc.Totals{"a/b": {Files: 1}})
	err := d.conclude(report)
	if exitCode(err) != exitFailed {
		t.Errorf("got %v, want a failure", err)
	}
	mentions(t, out.String(), "WRONG: counted one by one without a database, 1 package differs:\n  a/b: lines 1, want 2\n")
	if strings.Contains(out.String(), "Proof") {
		t.Errorf("claims a proof:\n%s", out.String())
	}
}

// A run that does not go on says which jobs it waits for.
func TestDev_stalled(t *testing.T) {
	t.Parallel()
	pool, _ := openPool(t)
	if err := gosrc.Create(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	run, err := gosrc.Start(t.Context(), pool, 1, t.TempDir(), []string{"a.go", "b.go"})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	e := &devGosrc{dev: &dev{app: &app{ctx: t.Context(), namespace: 1}, live: newLive(&out), pool: pool}, run: run}
	err = e.stalled(t.Context())
	mentions(t, err.Error(), "nothing was counted for 2m0s, with 0 of 2 files done")
	mentions(t, out.String(), " is available at attempt 1")
	if n := strings.Count(out.String(), "\n"); n != 2 {
		t.Errorf("%d jobs are named, want 2:\n%s", n, out.String())
	}
}
