package sagatest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/coordinator/saga/sagatest"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// recorder is a test that is watched.
type recorder struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

func noUndo(context.Context, *saga.Call[string], *string) error { return nil }

// A fault at a step that never runs, by a name that was written wrongly say, does not go unnoticed.
func TestBench_faultNotMet(t *testing.T) {
	t.Parallel()
	r := &recorder{TB: t}
	b := sagatest.New(r, dbtest.New(t))
	b.RefuseAt("chagre", errors.New("no"))
	for _, f := range r.cleanups {
		f()
	}
	if len(r.errors) != 1 || !strings.Contains(r.errors[0], "chagre") {
		t.Errorf("got %q", r.errors)
	}
	for what, bad := range map[string]func(){
		"no error": func() { b.FailAt("x", nil) },
		"no point": func() { b.CrashAt("x", 0) },
		"two handlers": func() {
			b.HandleRaw("x", nil)
			b.HandleRawTx("x", nil)
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", what)
				}
			}()
			bad()
		}()
	}
}

// A handler's panic, its timeout and an output too large for a job are errors; Run waits for none of their backoffs, and Advance ends them.
func TestBench_handlers(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), dbtest.New(t)
	b := sagatest.New(t, pool)
	d := saga.Define[string]("d")
	a := saga.Step[string](d, "a", saga.Timeout(20*time.Millisecond), saga.MaxAttempts(4))
	if err := d.Register(ctx, pool); err != nil {
		t.Fatal(err)
	}
	var attempts []int
	saga.Handle(b, a, func(ctx context.Context, c *saga.Call[string]) (string, error) {
		attempts = append(attempts, c.Attempt)
		switch c.Attempt {
		case 1:
			panic("out of cheese")
		case 2:
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), job.ErrTimeout) {
				t.Errorf("cause: got %v, want ErrTimeout", context.Cause(ctx))
			}
			return "", ctx.Err()
		}
		if c.Headers["k"] != "v" || c.MaxAttempts != 4 {
			t.Errorf("call: got %+v", c)
		}
		return strings.Repeat("x", 2<<20), nil
	}, noUndo)
	s, err := d.Start(ctx, pool, "in", saga.Header("k", "v"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		b.Run(ctx)
		b.Run(ctx)
		if len(attempts) != i+1 {
			t.Fatalf("after run %d: attempts %v", i+1, attempts)
		}
		b.Advance(time.Minute)
	}
	b.Run(ctx)
	if got := b.State(s.ID); got != saga.StateCompensated || !strings.Contains(b.History(s.ID), "result of 2097154 bytes") {
		t.Errorf("got %s: %s", got, b.History(s.ID))
	}
	if _, err := d.Await(ctx, pool, s.ID); !errors.Is(err, saga.ErrCompensated) {
		t.Errorf("Await: got %v", err)
	}
}

// What nobody has a handler for here waits, uses no attempt, and keeps nothing else from running; queues and priorities go in order.
func TestBench_order(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), dbtest.New(t)
	b := sagatest.New(t, pool)
	var ran []string
	define := func(name string, opts ...saga.StepOption) (*saga.Definition[string], func()) {
		d := saga.Define[string](name)
		s := saga.Step[string](d, name, append(opts, saga.MaxAttempts(1))...)
		if err := d.Register(ctx, pool); err != nil {
			t.Fatal(err)
		}
		return d, func() {
			saga.HandleTx(b, s, func(_ context.Context, _ pgx.Tx, c *saga.Call[string]) (string, error) {
				ran = append(ran, c.Saga)
				return "", nil
			}, func(context.Context, pgx.Tx, *saga.Call[string], *string) error { return nil })
		}
	}
	plain, handlePlain := define("plain")
	urgent, handleUrgent := define("urgent", saga.Priority(1))
	other, handleOther := define("other", saga.Queue("another"))
	strange, handleStrange := define("strange")
	for _, f := range []func(){handlePlain, handleUrgent, handleOther} {
		f()
	}
	for _, x := range []struct {
		id string
		d  *saga.Definition[string]
	}{{"s", strange}, {"o1", other}, {"p1", plain}, {"p2", plain}, {"u1", urgent}, {"u2", urgent}} {
		if _, err := x.d.Start(ctx, pool, "", saga.ID(x.id)); err != nil {
			t.Fatal(err)
		}
	}
	b.CrashAt("plain", sagatest.AfterCommit) // it gives back before what it does not know
	b.Run(ctx)
	if got, want := fmt.Sprint(ran), "[u1 u2 p1 p2 o1]"; got != want {
		t.Errorf("ran %s, want %s", got, want)
	}
	if got := b.State("s"); got != saga.StateRunning {
		t.Errorf("without a handler: got %s", got)
	}
	handleStrange()
	b.Run(ctx)
	if got := b.State("s"); got != saga.StateSucceeded || ran[len(ran)-1] != "s" {
		t.Errorf("with a handler: got %s, ran %v", got, ran)
	}
}

// The output of a step that succeeded while its saga was turning back is there for its compensation, as its argument and when it is asked for.
func TestBench_outputOfLateSuccess(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), dbtest.New(t)
	b := sagatest.New(t, pool)
	d := saga.Define[string]("d")
	step := saga.Step[string](d, "step")
	var got []string
	saga.Handle(b, step, func(ctx context.Context, c *saga.Call[string]) (string, error) {
		return "done", saga.Cancel(ctx, pool, 1, c.Saga, "test", "meanwhile")
	}, func(ctx context.Context, c *saga.Call[string], own *string) error {
		read, err := step.Output(ctx, c)
		got = append(got, *own, read)
		return err
	})
	if err := d.Register(ctx, pool); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Start(ctx, pool, "", saga.ID("s")); err != nil {
		t.Fatal(err)
	}
	b.Run(ctx)
	if len(got) != 2 || got[0] != "done" || got[1] != "done" || b.State("s") != saga.StateCompensated {
		t.Errorf("got %q, %s", got, b.State("s"))
	}
}
