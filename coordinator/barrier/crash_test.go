package barrier_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
)

// The tests here call branches in processes of their own: this test binary again, told by the environment what to do.
const (
	envURL   = "PAWL_TEST_BARRIER_URL"   // the database
	envOp    = "PAWL_TEST_BARRIER_OP"    // of the branch
	envPoint = "PAWL_TEST_BARRIER_POINT" // where the process kills itself
)

func TestMain(m *testing.M) {
	if url := os.Getenv(envURL); url != "" {
		if err := child(url, os.Getenv(envOp), os.Getenv(envPoint)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// killer kills the process at a point.
type killer string

func (k killer) at(point string) {
	if string(k) == point {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // it is on its way
	}
}

type killerKey struct{}

// name gives what a statement is called in the points.
func (killer) name(sql string) string {
	for _, name := range []string{"savepoint", "barrier_enter", "barrier_leave", "begin", "commit", "rollback"} {
		if strings.Contains(strings.ToLower(sql), name) {
			return name
		}
	}
	return ""
}

func (k killer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	name := k.name(q.SQL)
	k.at("before " + name)
	return context.WithValue(ctx, killerKey{}, name)
}

func (k killer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	name, _ := ctx.Value(killerKey{}).(string)
	k.at("after " + name)
}

func (k killer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, b pgx.TraceBatchStartData) context.Context {
	queries := b.Batch.QueuedQueries
	name := k.name(queries[len(queries)-1].SQL)
	if name == "savepoint" {
		name = k.name(queries[len(queries)-2].SQL)
	}
	k.at("before " + name)
	return context.WithValue(ctx, killerKey{}, name)
}

func (killer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (k killer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) {
	name, _ := ctx.Value(killerKey{}).(string)
	k.at("after " + name)
}

// child calls a branch, through a handler or, at points that begin with "tx ", in a transaction of its own.
func child(url, op, point string) error {
	conf, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	point, inTx := strings.CutPrefix(point, "tx ")
	k := killer(point)
	conf.ConnConfig.Tracer = k
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		return err
	}
	defer pool.Close()
	op, refuses := strings.CutSuffix(op, " refused")
	work := func(ctx context.Context, tx pgx.Tx, b barrier.Branch, _ []byte) (json.RawMessage, error) {
		out, err := effect(tx, b)(ctx)
		k.at("in work")
		if refuses {
			err = barrier.Refuse(errors.New("no"))
		}
		return out, err
	}
	if inTx {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			b := branch(barrier.Op(op))
			_, err := barrier.Do(ctx, tx, b, func(ctx context.Context) (json.RawMessage, error) { return work(ctx, tx, b, nil) })
			return err
		})
	}
	if w := call(barrier.Handler(pool, work), branch(barrier.Op(op)), ""); w.Code != 200 {
		return fmt.Errorf("status %d: %s", w.Code, w.Body)
	}
	return nil
}

// A process that is killed between any two statements leaves the writes and the row, or neither; whoever calls next finds out which.
func TestKilled(t *testing.T) {
	t.Parallel()
	handler := []string{"before barrier_enter", "after barrier_enter", "in work", "before commit", "after commit"}
	inTx := []string{
		"tx before begin", "tx after begin", "tx before barrier_enter", "tx after barrier_enter", "tx in work", "tx before barrier_leave", "tx after barrier_leave", "tx before commit", "tx after commit",
	}
	for _, point := range slices.Concat(handler, inTx) {
		for _, op := range []barrier.Op{barrier.Action, barrier.Undo} {
			t.Run(fmt.Sprint(op, " ", point), func(t *testing.T) {
				if testing.Short() && op == barrier.Undo {
					t.Skip("a process for each point")
				}
				t.Parallel()
				pool := open(t)
				if op == barrier.Undo {
					if _, err := do(t, pool, branch(barrier.Action)); err != nil {
						t.Fatal(err)
					}
				}
				cmd := osexec.Command(os.Args[0], "-test.run=^$")
				cmd.Env = append(os.Environ(), envURL+"="+pool.Config().ConnString(), envOp+"="+string(op), envPoint+"="+point)
				out, err := cmd.CombinedOutput()
				if cmd.ProcessState == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the point was not reached: %v: %s", err, out)
				}
				until(t, "its connections to go", func() bool {
					return count(t, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle in transaction'") == 0
				})
				committed := strings.HasSuffix(point, "after commit")
				rows, effects := count(t, pool, "SELECT count(*) FROM pawl.barrier WHERE op = $1", op), count(t, pool, "SELECT count(*) FROM effect WHERE op = $1", op)
				if rows != effects || (rows == 1) != committed {
					t.Errorf("%d rows, %d effects", rows, effects)
				}
				want := barrier.Done
				if committed {
					want = barrier.Duplicate
				}
				if out, err := do(t, pool, branch(op)); err != nil || out.Outcome != want {
					t.Errorf("next: %s, %v; want %s", out.Outcome, err, want)
				}
				if n := count(t, pool, "SELECT count(*) FROM effect WHERE op = $1", op); n != 1 {
					t.Errorf("%d effects", n)
				}
			})
		}
	}
}

// A process that is killed before it could store a refusal has refused nothing.
func TestKilledRefused(t *testing.T) {
	t.Parallel()
	for point, stored := range map[string]bool{"in work": false, "before rollback": false, "after rollback": false, "before begin": false, "before barrier_enter": false, "before commit": false, "after commit": true} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			pool := open(t)
			cmd := osexec.Command(os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), envURL+"="+pool.Config().ConnString(), envOp+"=action refused", envPoint+"="+point)
			if out, err := cmd.CombinedOutput(); err == nil || len(out) > 0 {
				t.Fatalf("the point was not reached: %s", out)
			}
			w := call(barrier.Handler(pool, work), branch(barrier.Action), "")
			if (w.Code == 409) != stored || (w.Code == 200) != !stored {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

// A process that is killed before it could record that it found nothing to compensate has barred nothing.
func TestKilledNull(t *testing.T) {
	t.Parallel()
	for point, late := range map[string]bool{"before commit": false, "after commit": true} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			pool := open(t)
			cmd := osexec.Command(os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), envURL+"="+pool.Config().ConnString(), envOp+"=undo", envPoint+"="+point)
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Fatalf("the point was not reached: %s", out)
			}
			w := call(barrier.Handler(pool, work), branch(barrier.Action), "")
			if (w.Code == 409) != late || (w.Code == 200) != !late {
				t.Errorf("the action: %d %s", w.Code, w.Body)
			}
			if n := count(t, pool, "SELECT count(*) FROM pawl.barrier"); n != map[bool]int{true: 2, false: 1}[late] {
				t.Errorf("%d rows", n)
			}
		})
	}
}
