package worker_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	osexec "os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/db/devpg"
	"github.com/pawl-dev/pawl/worker"
)

// The tests here run workers as processes of their own: this test binary again, told by the environment what to do.
const (
	envURL   = "PAWL_TEST_WORKER_URL"   // the database
	envPoint = "PAWL_TEST_WORKER_POINT" // a failpoint, reached once
	envHow   = "PAWL_TEST_WORKER_HOW"   // KILL or STOP: the signal the process sends itself there; or howTransfer
	envBank  = "PAWL_TEST_WORKER_BANK"  // another database, of participants in transactions
)

var (
	effectJob = job.Define[greeting]("effect", job.Backoff(0, 0))
	plainJob  = job.Define[greeting]("plain", job.Backoff(0, 0))
)

func TestMain(m *testing.M) {
	if url := os.Getenv(envURL); url != "" {
		work := child
		if os.Getenv(envHow) == howTransfer {
			work = transferChild
		}
		if err := work(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child is a worker process. It prints its stats as it ends, on SIGTERM or when its parent's end of standard input closes.
func child(url string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		stop()
	}()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	conf := quick()
	conf.TTL = time.Second
	w, err := worker.New(pool, conf)
	if err != nil {
		return err
	}
	register(w)
	if url := os.Getenv(envBank); url != "" {
		bank, err := killingPool(ctx, url)
		if err != nil {
			return err
		}
		defer bank.Close()
		registerTCC(w, bank)
	}
	hit := make(chan struct{}, 1)
	hit <- struct{}{}
	worker.SetFailpoint(w, func(name string, _ int64) {
		if name != os.Getenv(envPoint) {
			return
		}
		select {
		case <-hit:
			signal := syscall.SIGKILL
			if os.Getenv(envHow) == "STOP" {
				signal = syscall.SIGSTOP
			}
			_ = syscall.Kill(os.Getpid(), signal)
		default:
		}
	})
	if err := w.Run(ctx); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(w.Stats())
}

func register(w *worker.Worker) {
	worker.HandleTx(w, effectJob, func(ctx context.Context, tx pgx.Tx, j *job.Job[greeting]) (worker.None, error) {
		_, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1, $2)", j.ID, j.Attempt)
		return worker.None{}, err
	})
	worker.Handle(w, plainJob, func(context.Context, *job.Job[greeting]) error { return nil })
	registerSagas(w)
}

type process struct {
	cmd  *osexec.Cmd
	out  chan worker.Stats // one, if it ended by itself
	done chan error        // how it ended
}

func startProcess(tb testing.TB, url, point, how string, env ...string) *process {
	tb.Helper()
	cmd := osexec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), envURL+"="+url, envPoint+"="+point, envHow+"="+how)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	p := &process{cmd: cmd, out: make(chan worker.Stats, 1), done: make(chan error, 1)}
	go func() {
		var s worker.Stats
		if json.NewDecoder(out).Decode(&s) == nil {
			p.out <- s
		}
		p.done <- cmd.Wait()
	}()
	tb.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		select {
		case err := <-p.done:
			tb.Logf("worker process %d ended: %v", cmd.Process.Pid, err)
		case <-time.After(patience):
			tb.Error("a worker process does not end")
		}
	})
	return p
}

// waitStopped waits until the process has stopped itself.
func (p *process) waitStopped(tb testing.TB) {
	until(tb, "the process to stop itself", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			return false
		}
		var state byte
		for i := len(b) - 1; i > 0; i-- { // after the name in parentheses
			if b[i] == ')' {
				state = b[i+2]
				break
			}
		}
		return state == 'T'
	})
}

// wake continues a process that stopped itself and was taken for dead: it finds out, starts a new session, and ends when told to.
func (p *process) wake(tb testing.TB, pool *pgxpool.Pool) {
	tb.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		tb.Fatal(err)
	}
	until(tb, "a new session", func() bool {
		return count(tb, pool, "SELECT count(*) FROM pawl.session WHERE pid = $1", p.cmd.Process.Pid) > 1
	})
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		tb.Fatal(err)
	}
	receive(tb, "its stats", p.out)
}

const jobsEach = 20

func enqueueBoth(tb testing.TB, pool *pgxpool.Pool) {
	tb.Helper()
	for range jobsEach {
		enqueue(tb, pool, effectJob, greeting{})
		enqueue(tb, pool, plainJob, greeting{})
	}
}

// checkBoth waits until all jobs have succeeded, and checks that each effect is there once.
func checkBoth(tb testing.TB, pool *pgxpool.Pool, n int) {
	tb.Helper()
	until(tb, "all jobs to succeed", func() bool {
		var left int
		err := pool.QueryRow(context.Background(),
			"SELECT count(*) FROM pawl.job j, LATERAL pawl.job_state(j.ns, j.id) s WHERE s.state <> 'succeeded'").Scan(&left)
		return err == nil && left == 0 // errors while the server is away
	})
	if got := count(tb, pool, "SELECT count(*) FROM effect"); got != n || count(tb, pool, "SELECT count(DISTINCT job) FROM effect") != n {
		tb.Errorf("effects: got %d, want %d and each once", got, n)
	}
}

// A worker is killed at each of its failpoints. What it held goes to the next one; no job is lost, no transactional effect doubled.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"after-claim", "before-commit", "after-commit", "before-flush", "after-flush"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			url := dbtest.NewURL(t)
			pool := connect(t, url)
			sweep(t, pool)
			exec(t, pool, "CREATE TABLE effect (job bigint, attempt int)")
			enqueueBoth(t, pool)
			p := startProcess(t, url, point, "KILL")
			if err := receive(t, "the process to die", p.done); err == nil {
				t.Fatal("the failpoint was not reached")
			}
			p.done <- nil
			startProcess(t, url, "", "")
			checkBoth(t, pool, jobsEach)
		})
	}
}

// A worker is stopped in the middle, longer than its session lives, and continued: it can neither complete nor commit anything any more.
func TestFrozen(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"before-commit", "before-flush", "after-claim"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			url := dbtest.NewURL(t)
			pool := connect(t, url)
			sweep(t, pool)
			exec(t, pool, "CREATE TABLE effect (job bigint, attempt int)")
			enqueueBoth(t, pool)
			p := startProcess(t, url, point, "STOP")
			p.waitStopped(t)
			startProcess(t, url, "", "")
			checkBoth(t, pool, jobsEach)
			receipts := count(t, pool, "SELECT count(*) FROM pawl.receipt")
			if n := count(t, pool, "SELECT count(*) FROM pawl.receipt WHERE outcome = 'lost'"); n == 0 {
				t.Error("nothing was lost: the process held no job when it was stopped")
			}
			p.wake(t, pool)
			if got := count(t, pool, "SELECT count(*) FROM pawl.receipt"); got != receipts {
				t.Errorf("receipts: %d before it went on, %d after", receipts, got)
			}
			checkBoth(t, pool, jobsEach)
		})
	}
}

// Postgres is killed under load and comes back: workers go on by themselves; nothing is lost, no transactional effect doubled.
func TestPostgresKilled(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, devpg.Config{})
	url := server.URL(dbtest.PrivateDatabase)
	pool := connect(t, url)
	exec(t, pool, "CREATE TABLE effect (job bigint, attempt int)")
	sweep(t, pool)
	conf := quick()
	conf.TTL = 2 * time.Second
	w := newWorker(t, pool, conf)
	register(w)
	run(t, w)
	until(t, "a session", func() bool { return count(t, pool, "SELECT count(*) FROM pawl.session") == 1 })
	const rounds, each = 2, 300
	for range rounds {
		for range each {
			enqueue(t, pool, effectJob, greeting{})
			enqueue(t, pool, plainJob, greeting{})
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		var err error
		if server, err = devpg.Start(context.Background(), server.Config()); err != nil {
			t.Fatal(err)
		}
		until(t, "the server to answer", func() bool { return pool.Ping(context.Background()) == nil })
	}
	checkBoth(t, pool, rounds*each)
}

func connect(tb testing.TB, url string) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(context.Background(), url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(pool.Close)
	return pool
}
