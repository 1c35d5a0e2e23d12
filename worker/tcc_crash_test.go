package worker_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/tcc"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/worker"
)

// howTransfer makes a process an initiator, of a transaction of that id; its point is a statement, as in "before tcc_register 2".
const howTransfer = "TRANSFER"

// killer kills the process before or after the n-th call of a function of pawl, or the n-th COMMIT: "before commit 2". It is shared by all pools of the process.
type killer struct {
	when, text string
	left       *atomic.Int64
}

func newKiller(point string) (k killer) {
	n := 1
	_, _ = fmt.Sscan(point, &k.when, &k.text, &n)
	k.left = new(atomic.Int64)
	k.left.Store(int64(n))
	return k
}

type killerKey struct{}

func (k killer) begin(ctx context.Context, sql ...string) context.Context {
	meant := func(s string) bool { return strings.Contains(s, "pawl."+k.text) || strings.EqualFold(s, k.text) }
	if k.text == "" || !slices.ContainsFunc(sql, meant) || k.left.Add(-1) != 0 {
		return ctx
	}
	k.at("before")
	return context.WithValue(ctx, killerKey{}, true)
}

func (k killer) end(ctx context.Context) {
	if ctx.Value(killerKey{}) != nil {
		k.at("after")
	}
}

func (k killer) at(when string) {
	if k.when == when {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // it is on its way
	}
}

func (k killer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	return k.begin(ctx, q.SQL)
}

func (k killer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) { k.end(ctx) }

func (k killer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, b pgx.TraceBatchStartData) context.Context {
	var sql []string
	for _, q := range b.Batch.QueuedQueries {
		sql = append(sql, q.SQL)
	}
	return k.begin(ctx, sql...)
}
func (killer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData)       {}
func (k killer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) { k.end(ctx) }

// killingPool kills the process at a statement, if its point names one.
func killingPool(ctx context.Context, url string) (*pgxpool.Pool, error) {
	return openKilling(ctx, newKiller(os.Getenv(envPoint)), url)
}

func openKilling(ctx context.Context, k killer, url string) (*pgxpool.Pool, error) {
	conf, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	conf.ConnConfig.Tracer = k
	return pgxpool.NewWithConfig(ctx, conf)
}

// transferChild is the process of an initiator.
func transferChild(url string) error {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	k := newKiller(os.Getenv(envPoint))
	pool, err := openKilling(ctx, k, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	bank, err := openKilling(ctx, k, os.Getenv(envBank))
	if err != nil {
		return err
	}
	defer bank.Close()
	x, err := transfer(ctx, pool, bank, money{"1", 100}, tcc.ID("killed"))
	if err != nil {
		return err
	}
	return x.Confirm(ctx)
}

// untilKilled waits until a process has killed itself, and its transactions are gone.
func untilKilled(tb testing.TB, p *process, pools ...*pgxpool.Pool) {
	tb.Helper()
	err := receive(tb, "the process to be killed", p.done)
	p.done <- err
	if p.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		tb.Fatalf("the point was not reached: %v", err)
	}
	for _, pool := range pools {
		until(tb, "its connections to go", func() bool {
			return count(tb, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle' AND backend_type = 'client backend'") == 0
		})
	}
}

// finish brings a transaction to its end, with a worker and a coordinator.
func finish(tb testing.TB, pool, bank *pgxpool.Pool, id string, want tcc.State) {
	tb.Helper()
	sweep(tb, pool)
	w := newWorker(tb, pool, quick())
	registerTCC(w, bank)
	worker.Handle(w, plainJob, func(context.Context, *job.Job[greeting]) error { return nil })
	run(tb, w)
	untilState(tb, pool, enqueue(tb, pool, plainJob, greeting{}), job.StateSucceeded) // they run; there may be nothing left to do
	untilTCC(tb, pool, id, want)
}

// An initiator is killed between any two of its commits, and within. Its transaction is confirmed everywhere if it had decided that, and else cancelled everywhere at its deadline.
func TestTCC_initiatorKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	t.Parallel()
	points := []string{"before tcc_begin", "after tcc_begin", "before tcc_decide", "after tcc_decide"}
	for n := 1; n <= 2; n++ { // the branches
		for _, text := range []string{"tcc_register", "barrier_enter", "barrier_leave", "commit"} {
			points = append(points, fmt.Sprintf("before %s %d", text, n), fmt.Sprintf("after %s %d", text, n))
		}
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			pool, bank := ledger(t)
			p := startProcess(t, pool.Config().ConnString(), point, howTransfer, envBank+"="+bank.Config().ConnString())
			untilKilled(t, p, pool, bank)
			if point == "before tcc_begin" {
				if n := count(t, pool, "SELECT count(*) FROM pawl.tcc"); n != 0 {
					t.Error("it was begun")
				}
				balanced(t, pool, bank, 0)
				return
			}
			if s := tellTCC(t, pool, "killed"); s.State == tcc.Active {
				if r := sweepTCC(t, pool); r.Did != 0 {
					t.Error("it was cancelled before its deadline")
				}
			}
			exec(t, pool, "UPDATE pawl.tcc SET deadline_at = clock_timestamp()")
			sweepTCC(t, pool)
			want, moved := tcc.Cancelled, 0
			if point == "after tcc_decide" {
				want, moved = tcc.Confirmed, 100
			}
			finish(t, pool, bank, "killed", want)
			balanced(t, pool, bank, moved)
		})
	}
}

// A worker process is killed at each of its failpoints, and between the commits of a branch in another database, while it confirms and while it cancels. Another brings that to its end, and it is done once.
func TestTCC_workerKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	t.Parallel()
	for _, point := range []string{
		"after-claim", "before-flush", "after-flush", "before-commit", "after-commit", "before barrier_enter", "after barrier_enter", "before barrier_leave", "after barrier_leave", "before commit", "after commit",
	} {
		for _, confirm := range []bool{true, false} {
			t.Run(fmt.Sprint(point, " ", confirm), func(t *testing.T) {
				t.Parallel()
				pool, bank := ledger(t)
				x, err := transfer(t.Context(), pool, bank, money{"1", 100})
				if err != nil {
					t.Fatal(err)
				}
				decide, want, moved := x.Cancel, tcc.Cancelled, 0
				if confirm {
					decide, want, moved = x.Confirm, tcc.Confirmed, 100
				}
				if err := decide(t.Context()); err != nil {
					t.Fatal(err)
				}
				p := startProcess(t, pool.Config().ConnString(), point, "KILL", envBank+"="+bank.Config().ConnString())
				untilKilled(t, p)
				if point == "after commit" {
					if n := count(t, bank, "SELECT sum(due) FROM account") + count(t, pool, "SELECT count(*) FROM pawl.tcc_end WHERE n = 2"); n != 0 {
						t.Error("the bank is not done, or its branch is")
					}
				}
				finish(t, pool, bank, x.ID(), want)
				balanced(t, pool, bank, moved)
				// Once in each database, though it may have been asked for more often.
				for _, on := range []db.DBTX{pool, bank} {
					var n int
					if err := on.QueryRow(t.Context(), "SELECT count(*) FROM pawl.barrier WHERE op IN ('confirm', 'cancel') AND reason = op").Scan(&n); err != nil || n != 1 {
						t.Errorf("%d rows, %v", n, err)
					}
				}
			})
		}
	}
}
