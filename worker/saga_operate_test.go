package worker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// line is a saga a, b (the pivot), c, whose handlers do as they are told.
type line struct {
	*saga.Definition[order]
	pool *pgxpool.Pool
	a    *saga.StepOf[order, note]
	fail map[string]*atomic.Bool // "a", "a/undo": fails
	stop map[string]chan struct{}
	did  diary
}

func newLine(t *testing.T, pool *pgxpool.Pool, opts ...saga.Option) *line {
	l := &line{Definition: saga.Define[order]("line", opts...), pool: pool, fail: map[string]*atomic.Bool{}, stop: map[string]chan struct{}{}}
	a := saga.Step[note](l.Definition, "a", fast, saga.MaxAttempts(2), saga.Undo(fast, saga.MaxAttempts(2)))
	b := saga.Step[note](l.Definition, "b", saga.After(a), saga.Pivot(), fast, saga.MaxAttempts(2))
	c := saga.Step[note](l.Definition, "c", saga.After(b), fast, saga.MaxAttempts(2))
	l.a = a
	registered(t, pool, l.Definition)
	conf := quick()
	conf.TTL, conf.Drain = 3*time.Second, time.Millisecond // so that a stop is heard of soon, and nobody waits for those who were told to
	w := newWorker(t, pool, conf)
	for _, s := range []*saga.StepOf[order, note]{a, b, c} {
		name := s.Name()
		l.fail[name], l.fail[name+"/undo"], l.stop[name] = &atomic.Bool{}, &atomic.Bool{}, make(chan struct{}, 100)
		act := func(ctx context.Context, call *saga.Call[order]) (note, error) {
			if call.Input.Item == "stop at "+name {
				l.stop[name] <- struct{}{}
				<-ctx.Done()
				return note{}, context.Cause(ctx)
			}
			if l.fail[name].Load() {
				return note{}, errTest
			}
			l.did.add("%s", name)
			return note{name}, nil
		}
		if name != "a" {
			saga.Handle(w, s, act, nil)
			continue
		}
		saga.Handle(w, s, act, func(_ context.Context, _ *saga.Call[order], out *note) error {
			if l.fail["a/undo"].Load() {
				return errTest
			}
			l.did.add("undo %v", out)
			return nil
		})
	}
	run(t, w)
	return l
}

func (l *line) check(t *testing.T, id string, want string) {
	t.Helper()
	if got := states(tell(t, l.pool, id)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// happened finds an event.
func happened(s *saga.Story, what string) *saga.Event {
	for i := range s.Events {
		if s.Events[i].What == what {
			return &s.Events[i]
		}
	}
	return &saga.Event{}
}

func TestSagaCancel(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	sweep(t, pool)
	l := newLine(t, pool)
	ctx := t.Context()
	cancel := func(id string) error { return saga.Cancel(ctx, pool, 1, id, "ada", "changed my mind") }

	id := start(t, pool, l.Definition, order{Item: "stop at a"})
	receive(t, "a to run", l.stop["a"])
	if err := cancel(id); err != nil {
		t.Fatal(err)
	}
	sweepSagas(t, pool)
	_, err := await(t, pool, l.Definition, id)
	var why *saga.CompensatedError
	if !errors.As(err, &why) || why.Step != "" || why.Reason != "cancelled: changed my mind" {
		t.Errorf("got %v", err)
	}
	l.check(t, id, "compensated, a undone, b waiting, c waiting")
	if e := happened(tell(t, pool, id), "cancelled"); e.Actor != "ada" || !strings.Contains(string(e.Detail), "changed my mind") {
		t.Errorf("got %+v", e)
	}
	if err := cancel(id); !errors.Is(err, saga.ErrEnded) {
		t.Errorf("at its end: got %v, want ErrEnded", err)
	}
	if err := cancel("nobody"); !errors.Is(err, saga.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}

	late := start(t, pool, l.Definition, order{Item: "stop at c"})
	receive(t, "c to run", l.stop["c"])
	if err := cancel(late); !errors.Is(err, saga.ErrTooLate) {
		t.Errorf("past the pivot: got %v, want ErrTooLate", err)
	}
	for _, err := range []error{saga.Cancel(ctx, pool, 1, late, "", "why"), saga.Retry(ctx, pool, 1, late, "ada", ""), saga.Skip(ctx, pool, 1, late, "c", "perhaps", nil, "ada", "why")} {
		if !errors.Is(err, saga.ErrInvalid) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
	}

	// In a transaction that rolls back, nothing is cancelled.
	roll := errors.New("roll back")
	free := start(t, pool, l.Definition, order{Item: "stop at a"})
	receive(t, "a to run", l.stop["a"])
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := saga.Cancel(ctx, tx, 1, free, "ada", "why"); err != nil {
			t.Error(err)
		}
		return roll
	})
	if !errors.Is(err, roll) {
		t.Fatal(err)
	}
	l.check(t, free, "running, a running, b waiting, c waiting")
}

// A saga that is cancelled before anybody runs its job: the job is withdrawn, and nothing is to be undone.
func TestSagaCancel_inLine(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[order]("in-line")
	saga.Step[note](d, "a", saga.Queue("nobody"))
	registered(t, pool, d)
	id := start(t, pool, d, order{})
	if err := saga.Cancel(t.Context(), pool, 1, id, "ada", "why"); err != nil {
		t.Fatal(err)
	}
	sweepSagas(t, pool)
	if _, err := await(t, pool, d, id); !errors.Is(err, saga.ErrCompensated) {
		t.Errorf("got %v", err)
	}
	if got := states(tell(t, pool, id)); got != "compensated, a refused" {
		t.Errorf("got %s", got)
	}
}

func TestSagaDeadline(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	sweep(t, pool)
	l := newLine(t, pool, saga.Deadline(time.Hour))
	early := start(t, pool, l.Definition, order{Item: "stop at a"})
	receive(t, "a to run", l.stop["a"])
	late := start(t, pool, l.Definition, order{Item: "stop at c"})
	receive(t, "c to run", l.stop["c"])
	due(t, pool)
	_, err := await(t, pool, l.Definition, early)
	var why *saga.CompensatedError
	if !errors.As(err, &why) || why.Step != "" || why.Reason != "its time was over" {
		t.Errorf("got %v", err)
	}
	l.check(t, late, "running, a succeeded, b succeeded, c running")
}

func TestSagaRetry(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	sweep(t, pool)
	l := newLine(t, pool)
	ctx := t.Context()
	l.fail["c"].Store(true)
	id := start(t, pool, l.Definition, order{})
	untilStuck(t, pool, id)
	l.check(t, id, "stuck, a succeeded, b succeeded, c stuck")
	if s := tell(t, pool, id); !strings.Contains(s.Steps[2].Error, "no luck") {
		t.Errorf("got %+v", s.Steps[2])
	}
	sagas, _, err := saga.List(ctx, pool, 1, saga.Filter{State: saga.StateStuck})
	if err != nil || len(sagas) != 1 || sagas[0].ID != id {
		t.Errorf("List: got %+v, %v", sagas, err)
	}
	l.fail["c"].Store(false)
	if err := saga.Retry(ctx, pool, 1, id, "ada", "it is up again"); err != nil {
		t.Fatal(err)
	}
	if _, err := await(t, pool, l.Definition, id); err != nil {
		t.Error(err)
	}
	if err := saga.Retry(ctx, pool, 1, id, "ada", "why"); !errors.Is(err, saga.ErrEnded) {
		t.Errorf("got %v, want ErrEnded", err)
	}
	sagas, _, err = saga.List(ctx, pool, 1, saga.Filter{State: saga.StateStuck})
	if err != nil || len(sagas) != 0 {
		t.Errorf("List: got %+v, %v", sagas, err)
	}
	running := start(t, pool, l.Definition, order{Item: "stop at a"})
	if err := saga.Retry(ctx, pool, 1, running, "ada", "why"); !errors.Is(err, saga.ErrNotWaiting) {
		t.Errorf("got %v, want ErrNotWaiting", err)
	}
}

func TestSagaSkip(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	sweep(t, pool)
	l := newLine(t, pool)
	ctx := t.Context()

	// What is behind the pivot must be done.
	l.fail["c"].Store(true)
	id := start(t, pool, l.Definition, order{})
	untilStuck(t, pool, id)
	for step, want := range map[string]error{"a": saga.ErrNotWaiting, "x": saga.ErrNotFound} {
		if err := saga.Skip(ctx, pool, 1, id, step, saga.Done, nil, "ada", "why"); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", step, err, want)
		}
	}
	if err := saga.Skip(ctx, pool, 1, id, "c", saga.NotDone, nil, "ada", "why"); !errors.Is(err, saga.ErrNotWaiting) {
		t.Errorf("got %v, want ErrNotWaiting", err)
	}
	if err := saga.Skip(ctx, pool, 1, id, "c", saga.Done, []byte(`{"text": "by hand"}`), "ada", "did it"); err != nil {
		t.Fatal(err)
	}
	if _, err := await(t, pool, l.Definition, id); err != nil {
		t.Error(err)
	}
	s := tell(t, pool, id)
	if got := states(s); got != "succeeded, a succeeded, b succeeded, c skipped" || string(s.Steps[2].Output) != `{"text": "by hand"}` {
		t.Errorf("got %s, %s", got, s.Steps[2].Output)
	}
	if e := happened(s, "skipped"); e.Actor != "ada" || e.Step != "c" {
		t.Errorf("got %+v", e)
	}

	// A pivot that nobody knows of, and was not done.
	l.fail["b"].Store(true)
	id = start(t, pool, l.Definition, order{})
	untilStuck(t, pool, id)
	if err := saga.Cancel(ctx, pool, 1, id, "ada", "why"); !errors.Is(err, saga.ErrTooLate) {
		t.Errorf("a pivot that may have been done: got %v, want ErrTooLate", err)
	}
	// Its compensation fails then, and is done by hand.
	l.fail["a/undo"].Store(true)
	if err := saga.Skip(ctx, pool, 1, id, "b", saga.NotDone, nil, "ada", "the bank says no"); err != nil {
		t.Fatal(err)
	}
	untilStuck(t, pool, id)
	l.check(t, id, "stuck, a stuck, b refused, c waiting")
	if err := saga.Skip(ctx, pool, 1, id, "a", saga.NotDone, nil, "ada", "why"); !errors.Is(err, saga.ErrNotWaiting) {
		t.Errorf("a compensation must be done: got %v, want ErrNotWaiting", err)
	}
	if err := saga.Skip(ctx, pool, 1, id, "a", saga.Done, nil, "ada", "undid it"); err != nil {
		t.Fatal(err)
	}
	i, err := await(t, pool, l.Definition, id)
	if !errors.Is(err, saga.ErrCompensated) {
		t.Errorf("got %v", err)
	}
	l.check(t, id, "compensated, a skipped, b refused, c waiting")
	if out, err := l.a.From(i); err != nil || out.Text != "a" {
		t.Errorf("got %+v, %v, want what the action came to", out, err)
	}
	if s := tell(t, pool, id); string(s.Steps[0].Output) != `{"text":"a"}` {
		t.Errorf("got %s", s.Steps[0].Output)
	}
}

func TestSagaForce(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	sweep(t, pool)
	l := newLine(t, pool)
	id := start(t, pool, l.Definition, order{Item: "stop at c"})
	receive(t, "c to run", l.stop["c"])
	force := func() error { return saga.Force(t.Context(), pool, 1, id, "ada", "enough") }
	if err := force(); err != nil {
		t.Fatal(err)
	}
	if err := force(); !errors.Is(err, saga.ErrEnded) {
		t.Errorf("got %v, want ErrEnded", err)
	}
	i, err := await(t, pool, l.Definition, id)
	if !errors.Is(err, saga.ErrForced) || i.State != saga.StateForced {
		t.Errorf("got %+v, %v", i, err)
	}
	sweepSagas(t, pool)
	job := tell(t, pool, id).Steps[2].JobID
	until(t, "the job's end", func() bool { return story(t, pool, job).State.Final() })
	if e := happened(tell(t, pool, id), "forced"); e.State != saga.StateForced || e.Actor != "ada" {
		t.Errorf("got %+v", e)
	}
}

func TestHold(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[order]("hold")
	a := saga.Step[note](d, "a", fast)
	wait := saga.Signal[note](d, "wait", saga.After(a))
	registered(t, pool, d)
	w := newWorker(t, pool, quick())
	held := make(chan error, 10)
	saga.HandleTx(w, a, func(ctx context.Context, tx pgx.Tx, c *saga.Call[order]) (note, error) {
		err := saga.Hold(ctx, tx, c, "account:7")
		if err == nil {
			err = saga.Hold(ctx, tx, c, "account:7") // again
		}
		held <- err
		if errors.Is(err, saga.ErrHeld) {
			return note{}, saga.Fail(err)
		}
		return note{}, err
	}, func(context.Context, pgx.Tx, *saga.Call[order], *note) error { return nil })
	run(t, w)
	first := start(t, pool, d, order{}, saga.ID("first"))
	if err := receive(t, "the first", held); err != nil {
		t.Fatal(err)
	}
	until(t, "the first to have it", func() bool { return fmt.Sprint(tell(t, pool, first).Held) == "[account:7]" })
	second := start(t, pool, d, order{}, saga.ID("second"))
	err := receive(t, "the second", held)
	var who *saga.HeldError
	if !errors.Is(err, saga.ErrHeld) || !errors.As(err, &who) || who.Saga != "first" || who.Name != "account:7" {
		t.Errorf("got %v", err)
	}
	if _, err := await(t, pool, d, second); !errors.Is(err, saga.ErrCompensated) {
		t.Errorf("got %v", err)
	}
	if err := saga.Send(t.Context(), pool, wait, first, note{}); err != nil {
		t.Fatal(err)
	}
	if _, err := await(t, pool, d, first); err != nil {
		t.Fatal(err)
	}
	if s := tell(t, pool, first); len(s.Held) != 0 {
		t.Errorf("got %q after its end", s.Held)
	}
	start(t, pool, d, order{}, saga.ID("third"))
	if err := receive(t, "the third", held); err != nil {
		t.Errorf("got %v after the first one's end", err)
	}
}

func TestSagaList(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := t.Context()
	define := func(name string) *saga.Definition[order] {
		d := saga.Define[order](name)
		saga.Step[note](d, "a", saga.Queue("nobody"))
		registered(t, pool, d)
		return d
	}
	one, two := define("one"), define("two")
	for i := range 30 {
		start(t, pool, one, order{}, saga.ID(fmt.Sprint("one:", i)))
		start(t, pool, two, order{}, saga.ID(fmt.Sprint("two:", i)))
	}
	if err := saga.Force(ctx, pool, 1, "one:3", "ada", "why"); err != nil {
		t.Fatal(err)
	}
	ids := func(f saga.Filter) (out []string, next string) {
		t.Helper()
		sagas, next, err := saga.List(ctx, pool, 1, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sagas {
			if s.Version != 1 || s.StartedAt.IsZero() || s.At.IsZero() {
				t.Errorf("got %+v", s)
			}
			out = append(out, s.ID)
		}
		return out, next
	}
	for what, c := range map[string]struct {
		f    saga.Filter
		want string
	}{
		"all":         {saga.Filter{Limit: 3}, "[two:29 one:29 two:28] two:28"},
		"behind":      {saga.Filter{Limit: 2, Before: "two:28"}, "[one:28 two:27] two:27"},
		"by name":     {saga.Filter{Limit: 2, Name: "one"}, "[one:29 one:28] one:28"},
		"by state":    {saga.Filter{State: saga.StateForced}, "[one:3] "},
		"no such":     {saga.Filter{State: saga.StateSucceeded}, "[] "},
		"none is":     {saga.Filter{State: saga.StateStuck}, "[] "},
		"no name":     {saga.Filter{Name: "three"}, "[] "},
		"name, state": {saga.Filter{Name: "one", State: saga.StateForced}, "[one:3] "},
		"the last":    {saga.Filter{Before: "one:0"}, "[] "},
	} {
		got, next := ids(c.f)
		if got := fmt.Sprint(got, " ", next); got != c.want {
			t.Errorf("%s: got %s, want %s", what, got, c.want)
		}
	}
	if got, _ := ids(saga.Filter{}); len(got) != 50 {
		t.Errorf("by default %d, want 50", len(got))
	}
	if _, _, err := saga.List(ctx, pool, 1, saga.Filter{Before: "nobody"}); !errors.Is(err, saga.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if _, err := saga.Get(ctx, pool, 1, "nobody"); !errors.Is(err, saga.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	all, err := saga.Definitions(ctx, pool, 1)
	if err != nil || len(all) != 2 || all[0].Open != 29 || all[1].Open != 30 {
		t.Errorf("got %+v, %v", all, err)
	}
}

// A saga that is cancelled when its job was only handed back, by a worker that does not know its kind: nothing of the step was done. Of one that was handed back as its worker stopped, whose handler had begun, nobody knows.
func TestSagaCancel_unrun(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		known bool
		want  string
	}{
		"unknown kind": {false, "compensated, a refused"},
		"stopped":      {true, "compensating, a undoing"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			d := saga.Define[order]("unrun")
			a := saga.Step[note](d, "a")
			registered(t, pool, d)
			conf := quick()
			conf.UnknownDelay, conf.Drain = time.Hour, time.Millisecond
			w := newWorker(t, pool, conf)
			begun := make(chan string, 1)
			if c.known {
				saga.Handle(w, a, func(ctx context.Context, _ *saga.Call[order]) (note, error) {
					begun <- "a"
					<-ctx.Done()
					return note{}, ctx.Err()
				}, func(context.Context, *saga.Call[order], *note) error { return nil })
			}
			stop := run(t, w)
			id := start(t, pool, d, order{})
			if c.known {
				receive(t, "a to begin", begun)
			} else {
				untilState(t, pool, tell(t, pool, id).Steps[0].JobID, job.StateRetrying)
			}
			stop()
			if at := story(t, pool, tell(t, pool, id).Steps[0].JobID).Attempts[0]; at.Outcome != job.Returned {
				t.Fatalf("got %+v, want it handed back", at)
			}
			if err := saga.Cancel(t.Context(), pool, 1, id, "ada", "why"); err != nil {
				t.Fatal(err)
			}
			sweepSagas(t, pool)
			if got := states(tell(t, pool, id)); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}
