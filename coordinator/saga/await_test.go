package saga_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// fakeWorker registers handlers, for tests to call.
type fakeWorker struct {
	pool  *pgxpool.Pool
	mu    sync.Mutex
	kinds map[string]func(context.Context, *saga.Raw) (json.RawMessage, error)
	woken []string
	ended func([]string)
}

func (w *fakeWorker) HandleRaw(kind string, h func(context.Context, *saga.Raw) (json.RawMessage, error)) {
	if w.kinds == nil {
		w.kinds = map[string]func(context.Context, *saga.Raw) (json.RawMessage, error){}
	}
	w.kinds[kind] = h
}

func (w *fakeWorker) HandleRawTx(kind string, h func(context.Context, pgx.Tx, *saga.Raw) (json.RawMessage, error)) {
	w.HandleRaw(kind, func(ctx context.Context, j *saga.Raw) (json.RawMessage, error) { return h(ctx, nil, j) })
}

func (w *fakeWorker) Wake(queue string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.woken = append(w.woken, queue)
}

func (w *fakeWorker) OnSagas(f func([]string)) { w.ended = f }
func (w *fakeWorker) Pool() *pgxpool.Pool      { return w.pool }

func force(tb testing.TB, pool *pgxpool.Pool, id string) {
	tb.Helper()
	if err := saga.Force(context.Background(), pool, 1, id, "test", "enough"); err != nil {
		tb.Fatal(err)
	}
}

func start(tb testing.TB, on saga.DB, d *saga.Definition[order], id string) {
	tb.Helper()
	if _, err := d.Start(context.Background(), on, order{id}, saga.ID(id)); err != nil {
		tb.Fatal(err)
	}
}

func TestAwait(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	d := simple(t, pool)
	start(t, pool, d, "forced")
	start(t, pool, d, "open")
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	force(t, pool, "forced")
	for _, on := range []saga.DB{pool, conn.Conn()} {
		i, err := d.Await(ctx, on, "forced")
		if !errors.Is(err, saga.ErrForced) || i == nil || i.ID != "forced" || i.State != saga.StateForced {
			t.Errorf("%T: got %+v, %v, want ErrForced", on, i, err)
		}
		if _, err := d.Await(ctx, on, "nobody"); !errors.Is(err, saga.ErrNotFound) {
			t.Errorf("%T: got %v, want ErrNotFound", on, err)
		}
		short, stop := context.WithTimeoutCause(ctx, 30*time.Millisecond, errors.New("no patience"))
		_, err = d.Await(short, on, "open")
		stop()
		if !errors.Is(err, saga.ErrUnfinished) || !strings.Contains(err.Error(), "(running): no patience") {
			t.Errorf("%T: got %v, want ErrUnfinished", on, err)
		}
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := d.Await(ctx, tx, "forced")
		return err
	})
	if !errors.Is(err, saga.ErrForced) {
		t.Errorf("in a transaction: got %v, want ErrForced", err)
	}
	other := simple(t, dbtest.New(t))
	closed := dbtest.New(t)
	closed.Close()
	if _, err := other.Await(ctx, closed, "open"); err == nil || errors.Is(err, saga.ErrUnfinished) {
		t.Errorf("on a pool that is closed: got %v, want its error", err)
	}
}

// Many wait for many; each is told of its own, and when the last has been told nothing is left running.
func TestAwait_many(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	d := simple(t, pool)
	const sagas, each = 300, 3
	if _, err := d.StartMany(ctx, pool, numbered(0, sagas)); err != nil {
		t.Fatal(err)
	}
	var waiting sync.WaitGroup
	for i := range sagas {
		for range each {
			waiting.Go(func() {
				id := fmt.Sprintf("n%d", i)
				got, err := d.Await(ctx, pool, id)
				if !errors.Is(err, saga.ErrForced) || got.ID != id {
					t.Errorf("%s: got %+v, %v", id, got, err)
				}
			})
		}
	}
	until(t, "a watcher", func() bool { return saga.Watchers(d) == 1 })
	if n := watchers(); n > 20 { // other tests have theirs
		t.Errorf("%d goroutines look, want one for all", n)
	}
	for i := range sagas {
		force(t, pool, fmt.Sprintf("n%d", i))
	}
	waiting.Wait()
	until(t, "the watcher's end", func() bool { return saga.Watchers(d) == 0 })

	// The last one gives up, and the next look would be in an hour.
	saga.SetPause(d, time.Hour)
	start(t, pool, d, "open")
	short, stop := context.WithCancel(ctx)
	gone := make(chan error, 1)
	go func() {
		_, err := d.Await(short, pool, "open")
		gone <- err
	}()
	until(t, "a look", func() bool { return saga.Looked(d) == 1 })
	stop()
	if err := <-gone; !errors.Is(err, saga.ErrUnfinished) {
		t.Errorf("got %v, want ErrUnfinished", err)
	}
	until(t, "the watcher's end", func() bool { return saga.Watchers(d) == 0 })
}

// watchers counts goroutines that look for ends, of all tests.
func watchers() int {
	stacks := make([]byte, 4<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "saga.(*watcher).run(")
}

// A worker of the same process tells of an end, and nobody waits for the next look.
func TestAwait_heard(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	d := saga.Define[order]("simple")
	s := saga.Step[paid](d, "a")
	registered(t, pool, d)
	w := &fakeWorker{pool: pool}
	saga.Handle(w, s, func(context.Context, *saga.Call[order]) (paid, error) { return paid{}, nil }, func(context.Context, *saga.Call[order], *paid) error { return nil })
	saga.SetPause(d, time.Hour)
	start(t, pool, d, "one")
	start(t, pool, d, "two")
	done := make(chan error, 2)
	for _, id := range []string{"one", "two"} {
		go func() {
			i, err := d.Await(ctx, pool, id)
			if i != nil && i.ID != id {
				t.Errorf("got %s, want %s", i.ID, id)
			}
			done <- err
		}()
	}
	until(t, "both to be looked at", func() bool { return saga.Looked(d) == 2 })
	force(t, pool, "one")
	force(t, pool, "two")
	w.ended([]string{"nobody", "two"})
	if err := <-done; !errors.Is(err, saga.ErrForced) {
		t.Errorf("got %v", err)
	}
	if n := saga.Looked(d); n != 1 {
		t.Errorf("%d wait, want the one that nobody told of", n)
	}
	w.ended([]string{"one"})
	if err := <-done; !errors.Is(err, saga.ErrForced) {
		t.Errorf("got %v", err)
	}
}

// Who awaits waits for word of an end before he looks only where workers of this process bring the end about: a definition of which another process does steps is looked at as one of which it does all.
func TestAwait_served(t *testing.T) {
	t.Parallel()
	act := func(context.Context, *saga.Call[order]) (paid, error) { return paid{}, nil }
	undo := func(context.Context, *saga.Call[order], *paid) error { return nil }
	w, other := &fakeWorker{}, &fakeWorker{}
	expect := func(what string, d *saga.Definition[order], hears bool) {
		t.Helper()
		if got := saga.FirstLook(d); (got >= 10*time.Millisecond) != hears {
			t.Errorf("%s: the first look is after %s", what, got)
		}
	}

	d := saga.Define[order]("two")
	a := saga.Step[paid](d, "a")
	pause := saga.Timer(d, "pause", time.Second, saga.After(a))
	b := saga.Step[paid](d, "b", saga.After(pause))
	expect("no steps", d, false)
	saga.Handle(w, a, act, undo)
	expect("one of two steps", d, false)
	saga.Handle(other, b, act, undo)
	expect("all, by two workers", d, true)

	timed := saga.Define[order]("timed")
	saga.Timer(timed, "pause", time.Second)
	saga.Handle(w, saga.Step[paid](timed, "a"), act, undo)
	expect("a timer last", timed, false)
	asked := saga.Define[order]("asked")
	c := saga.Step[paid](asked, "a")
	saga.Signal[bool](asked, "yes", saga.After(c))
	saga.Handle(w, c, act, undo)
	expect("a signal last", asked, false)

	bill := saga.Define[order]("bill")
	send := saga.Step[paid](bill, "send")
	parent := saga.Define[order]("parent")
	saga.HandleChild(w, saga.Child(parent, "bill", bill, saga.ReadOnly()), func(_ context.Context, c *saga.Call[order]) (order, error) { return c.Input, nil }, nil)
	expect("a child that another process does", parent, false)
	saga.Handle(w, send, act, undo)
	expect("a child that this one does", parent, true)
}

// A start that committed by itself wakes the workers of this process.
func TestStart_wakes(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[order]("simple")
	s := saga.Step[paid](d, "a", saga.Queue("here"))
	saga.Step[paid](d, "b", saga.Queue("later"), saga.After(s))
	registered(t, pool, d)
	w := &fakeWorker{pool: pool}
	saga.Handle(w, s, func(context.Context, *saga.Call[order]) (paid, error) { return paid{}, nil }, func(context.Context, *saga.Call[order], *paid) error { return nil })
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		start(t, tx, d, "tx")
		return nil
	})
	if err != nil || len(w.woken) != 0 {
		t.Errorf("in a transaction: got %q, %v, want nobody woken", w.woken, err)
	}
	if err := d.Hint(t.Context(), pool); err != nil || len(w.woken) != 1 || w.woken[0] != "here" {
		t.Errorf("Hint: got %q, %v", w.woken, err)
	}
	start(t, pool, d, "pool")
	start(t, pool, d, "pool") // a duplicate
	if len(w.woken) != 2 || w.woken[1] != "here" {
		t.Errorf("on a pool: got %q", w.woken)
	}
}

// A step that succeeded as the last to answer, after its saga had turned back, has an output like those before it; what an operator said of its compensation is none.
func TestAwait_outputOfLast(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	d := saga.Define[order]("order")
	first := saga.Step[paid](d, "first", saga.Queue(engineQueue))
	last := saga.Step[paid](d, "last", saga.Queue(engineQueue), saga.Undo(saga.MaxAttempts(1)))
	lined(d, "refused", engineQueue)
	registered(e, e.pool, d)
	e.mustStart("order", "1")
	as := e.mustClaim(3, "first", "last", "refused")
	slices.SortFunc(as, func(a, b attempt) int { return strings.Compare(a.step, b.step) })
	e.succeed(`{"receipt":1}`, as[0])
	e.mustSettle("refused", as[2])
	e.succeed(`{"receipt":2}`, as[1])
	undo := e.mustClaim(2, "first/undo", "last/undo")
	slices.SortFunc(undo, func(a, b attempt) int { return strings.Compare(a.step, b.step) })
	e.mustSettle("failed", undo[1])
	if _, err := e.pool.Exec(e.ctx, "SELECT pawl.saga_act(1::smallint, '1', 'skipped', 'last', '{\"receipt\":3}', 'someone', 'a test')"); err != nil {
		t.Fatal(err)
	}
	e.mustSettle("succeeded", undo[0])
	i, err := d.Await(t.Context(), e.pool, "1")
	if !errors.Is(err, saga.ErrCompensated) || i == nil {
		t.Fatalf("await: got %v, %v, want ErrCompensated and the saga", i, err)
	}
	for _, x := range []struct {
		step *saga.StepOf[order, paid]
		want int
	}{{first, 1}, {last, 2}} {
		if got, err := x.step.From(i); err != nil || got.Receipt != x.want {
			t.Errorf("output of %s: got %+v, %v, want %d", x.step.Name(), got, err, x.want)
		}
	}
}
