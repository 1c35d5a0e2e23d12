package worker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

var _ saga.Worker = (*worker.Worker)(nil)

type order struct {
	Item  string `json:"item"`
	Cents int    `json:"cents"`
}

type note struct {
	Text string `json:"text"`
}

// fast has attempts follow each other at once.
var fast = saga.Backoff(0, 0)

// diary is what handlers did, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) add(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *diary) all() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lines)
}

func registered[In any](tb testing.TB, pool *pgxpool.Pool, d *saga.Definition[In]) {
	tb.Helper()
	if err := d.Register(context.Background(), pool); err != nil {
		tb.Fatal(err)
	}
}

func start[In any](tb testing.TB, on saga.DB, d *saga.Definition[In], in In, opts ...saga.StartOption) string {
	tb.Helper()
	s, err := d.Start(context.Background(), on, in, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return s.ID
}

func await[In any](tb testing.TB, pool *pgxpool.Pool, d *saga.Definition[In], id string) (*saga.Instance, error) {
	tb.Helper()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	i, err := d.Await(ctx, pool, id)
	if errors.Is(err, saga.ErrUnfinished) {
		tb.Fatalf("%v; %+v", err, tell(tb, pool, id))
	}
	return i, err
}

func tell(tb testing.TB, pool *pgxpool.Pool, id string) *saga.Story {
	tb.Helper()
	s, err := saga.Get(context.Background(), pool, 1, id)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// states writes how the steps of a saga stand.
func states(s *saga.Story) string {
	out := []string{string(s.State)}
	for _, st := range s.Steps {
		out = append(out, st.Name+" "+string(st.State))
	}
	return strings.Join(out, ", ")
}

func untilStuck(tb testing.TB, pool *pgxpool.Pool, id string) {
	tb.Helper()
	until(tb, "saga to be stuck", func() bool { return tell(tb, pool, id).State == saga.StateStuck })
}

// sweepSagas does what is due for sagas, as a coordinator would.
func sweepSagas(tb testing.TB, pool *pgxpool.Pool) {
	tb.Helper()
	var ids []int64
	if err := pool.QueryRow(context.Background(), "SELECT withdraw FROM pawl.sweep_sagas(1::smallint, 1000)").Scan(&ids); err != nil {
		tb.Fatal(err)
	}
	for _, id := range ids {
		exec(tb, pool, "SELECT pawl.saga_withdraw(1::smallint, $1)", id)
	}
}

// due moves everything that waits for its time to now.
func due(tb testing.TB, pool *pgxpool.Pool) {
	tb.Helper()
	exec(tb, pool, "UPDATE pawl.saga_timer SET at = clock_timestamp() - interval '1 s'")
	sweepSagas(tb, pool)
}

func TestSaga(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "CREATE TABLE effect (key text, cents int)")
	d := saga.Define[order]("checkout")
	reserve := saga.Step[note](d, "reserve")
	check := saga.Step[saga.None](d, "check", saga.ReadOnly())
	charge := saga.Step[int](d, "charge", saga.After(reserve, check), saga.Pivot())
	ship := saga.Step[note](d, "ship", saga.After(charge))
	registered(t, pool, d)
	w := newWorker(t, pool, quick())
	saga.Handle(w, reserve, func(_ context.Context, c *saga.Call[order]) (note, error) {
		return note{fmt.Sprintf("%s, attempt %d of %d, %s, version %d, %s, %v", c.Input.Item, c.Attempt, c.MaxAttempts, c.Key(), c.Version, c.Headers["trace"], c.Compensating)}, nil
	}, func(context.Context, *saga.Call[order], *note) error { return nil })
	saga.Handle(w, check, func(context.Context, *saga.Call[order]) (saga.None, error) { return saga.None{}, nil }, nil)
	saga.HandleTx(w, charge, func(ctx context.Context, tx pgx.Tx, c *saga.Call[order]) (int, error) {
		if _, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1, $2)", c.Key(), c.Input.Cents); err != nil {
			return 0, err
		}
		if _, err := check.Output(ctx, c); err != nil {
			return 0, err
		}
		if _, err := ship.Output(ctx, c); !errors.Is(err, saga.ErrNoOutput) {
			return 0, fmt.Errorf("output of a step to come: got %v, want ErrNoOutput", err)
		}
		return c.Input.Cents * 2, nil
	}, nil)
	saga.Handle(w, ship, func(ctx context.Context, c *saga.Call[order]) (note, error) {
		cents, err := charge.Output(ctx, c)
		if err != nil {
			return note{}, err
		}
		reserved, err := reserve.Output(ctx, c)
		return note{fmt.Sprintf("%d for %s", cents, reserved.Text)}, err
	}, nil)
	run(t, w)
	id := start(t, pool, d, order{"book", 100}, saga.ID("order:1"), saga.Header("trace", "t1"))
	i, err := await(t, pool, d, id)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ship.From(i)
	if want := "200 for book, attempt 1 of 5, order:1/reserve, version 1, t1, false"; err != nil || got.Text != want {
		t.Errorf("ship: got %q, %v, want %q", got.Text, err, want)
	}
	if i.ID != "order:1" || i.State != saga.StateSucceeded {
		t.Errorf("got %s %s", i.ID, i.State)
	}
	if n := count(t, pool, "SELECT count(*) FROM effect WHERE key = 'order:1/charge' AND cents = 100"); n != 1 {
		t.Errorf("effects: got %d, want 1", n)
	}
	s := tell(t, pool, id)
	if got, want := states(s), "succeeded, reserve succeeded, check succeeded, charge succeeded, ship succeeded"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if string(s.Steps[2].Output) != "200" || s.Steps[2].JobID == 0 || !s.Steps[2].Served || s.Headers["trace"] != "t1" || string(s.Input) != `{"item":"book","cents":100}` {
		t.Errorf("story: got %+v", s)
	}
	if j := story(t, pool, s.Steps[2].JobID); j.Kind != "saga:checkout@1/charge" || j.State != job.StateSucceeded {
		t.Errorf("the job of a step: got %s, %s", j.Kind, j.State)
	}
}

// A refusal before the pivot: what was done is undone in reverse, what was refused and what never began are not.
func TestSaga_refused(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	var did diary
	d := saga.Define[order]("trip")
	step := func(name string, after ...saga.AnyStep) *saga.StepOf[order, note] {
		return saga.Step[note](d, name, saga.After(after...), fast)
	}
	flight := step("flight")
	hotel := step("hotel", flight)
	car := step("car", flight)
	insure := step("insure", hotel, car)
	pay := step("pay", insure)
	registered(t, pool, d)
	w := newWorker(t, pool, quick())
	for _, s := range []*saga.StepOf[order, note]{flight, hotel, car, insure, pay} {
		saga.Handle(w, s, func(_ context.Context, c *saga.Call[order]) (note, error) {
			if c.Step == "insure" {
				return note{}, fmt.Errorf("wrapped: %w", saga.Fail(errors.New("too risky")))
			}
			did.add("%s", c.Step)
			return note{c.Step + " done"}, nil
		}, func(_ context.Context, c *saga.Call[order], out *note) error {
			if out == nil || !c.Compensating || c.Key() != c.Saga+"/"+c.Step+"/undo" {
				t.Errorf("undo of %s: got %v, %+v", c.Step, out, c)
				return nil
			}
			did.add("not %s", out.Text)
			return nil
		})
	}
	run(t, w)
	id := start(t, pool, d, order{})
	i, err := await(t, pool, d, id)
	var why *saga.CompensatedError
	if !errors.Is(err, saga.ErrCompensated) || !errors.As(err, &why) || why.ID != id || why.Step != "insure" || !strings.Contains(why.Reason, "too risky") {
		t.Errorf("got %v (%+v)", err, why)
	}
	if i == nil || i.State != saga.StateCompensated {
		t.Errorf("got %+v", i)
	}
	got := did.all()
	if len(got) != 6 || got[0] != "flight" || got[5] != "not flight done" {
		t.Errorf("got %q", got)
	}
	slices.Sort(got[1:3])
	slices.Sort(got[3:5])
	if want := []string{"flight", "car", "hotel", "not car done", "not hotel done", "not flight done"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	s := tell(t, pool, id)
	if got, want := states(s), "compensated, flight undone, hotel undone, car undone, insure refused, pay waiting"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !strings.Contains(s.Steps[3].Error, "too risky") || s.Steps[0].UndoJobID == 0 {
		t.Errorf("got %+v", s.Steps)
	}
}

// An action that never answered may have happened: it is undone too, not knowing.
func TestSaga_unknown(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	sweep(t, pool)
	var tries atomic.Int64
	d := saga.Define[order]("unknown")
	a := saga.Step[note](d, "a", fast, saga.MaxAttempts(3), saga.Undo(fast))
	registered(t, pool, d)
	w := newWorker(t, pool, quick())
	undone := make(chan *note, 10)
	saga.Handle(w, a, func(context.Context, *saga.Call[order]) (note, error) {
		if tries.Add(1) == 2 {
			panic("out of cheese")
		}
		return note{}, errTest
	}, func(_ context.Context, c *saga.Call[order], out *note) error {
		if c.Attempt == 1 {
			return errTest
		}
		undone <- out
		return nil
	})
	run(t, w)
	id := start(t, pool, d, order{})
	_, err := await(t, pool, d, id)
	if !errors.Is(err, saga.ErrCompensated) || !strings.Contains(err.Error(), "no luck") {
		t.Errorf("got %v", err)
	}
	if out := receive(t, "undo", undone); out != nil || tries.Load() != 3 {
		t.Errorf("undo of %v after %d tries, want nil after 3", out, tries.Load())
	}
	if got := states(tell(t, pool, id)); got != "compensated, a undone" {
		t.Errorf("got %s", got)
	}
}

func TestSaga_each(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[int]("each")
	fan := saga.Each[order, note](d, "fan")
	sum := saga.Step[string](d, "sum", saga.After(fan), saga.ReadOnly())
	registered(t, pool, d)
	w := newWorker(t, pool, quick())
	saga.HandleEach(w, fan, func(_ context.Context, c *saga.Call[int]) ([]order, error) {
		var units []order
		for i := range c.Input {
			units = append(units, order{Item: fmt.Sprint("item", i), Cents: i})
		}
		return units, nil
	}, func(_ context.Context, c *saga.Call[int], u order) (note, error) {
		if want := fmt.Sprintf("%s/fan/%d", c.Saga, u.Cents); c.Key() != want || c.Unit != u.Cents {
			return note{}, saga.Fail(fmt.Errorf("key %q, want %q", c.Key(), want))
		}
		return note{u.Item}, nil
	}, func(context.Context, *saga.Call[int]) error { return nil })
	saga.Handle(w, sum, func(ctx context.Context, c *saga.Call[int]) (string, error) {
		all, err := fan.Outputs(ctx, c)
		var texts []string
		for _, n := range all {
			texts = append(texts, n.Text)
		}
		return fmt.Sprint(len(all), " ", strings.Join(texts, " ")), err
	}, nil)
	run(t, w)
	for n, want := range map[int]string{0: "0 ", 3: "3 item0 item1 item2", 11: "11 item0 item1 item2 item3 item4 item5 item6 item7 item8 item9 item10"} {
		i, err := await(t, pool, d, start(t, pool, d, n))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := sum.From(i); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	id := start(t, pool, d, 2500)
	if _, err := await(t, pool, d, id); err != nil {
		t.Fatal(err)
	}
	st := tell(t, pool, id).Steps[0]
	if st.Units != 2500 || st.UnitsOver != 2500 || st.State != saga.StepSucceeded {
		t.Errorf("got %+v", st)
	}
	if j := story(t, pool, st.JobID); strings.Contains(string(j.Args), "unit") {
		t.Errorf("the step's job is one of a unit: %s", j.Args)
	}
}

func TestSaga_eachRefused(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[int]("each-refused")
	fan := saga.Each[int, int](d, "fan")
	registered(t, pool, d)
	conf := quick()
	conf.Queues["default"] = 1 // one after another
	w := newWorker(t, pool, conf)
	var ran, undone atomic.Int64
	saga.HandleEach(w, fan, func(_ context.Context, c *saga.Call[int]) ([]int, error) { return make([]int, c.Input), nil },
		func(_ context.Context, c *saga.Call[int], _ int) (int, error) {
			if ran.Add(1); c.Unit == 3 {
				return 0, saga.Fail(errTest)
			}
			return 0, nil
		}, func(context.Context, *saga.Call[int]) error {
			undone.Add(1)
			return nil
		})
	run(t, w)
	id := start(t, pool, d, 10)
	_, err := await(t, pool, d, id)
	if !errors.Is(err, saga.ErrCompensated) || !strings.Contains(err.Error(), "no luck") || undone.Load() != 1 || ran.Load() != 10 {
		t.Errorf("got %v, %d units ran, undone %d times", err, ran.Load(), undone.Load())
	}
	if got := states(tell(t, pool, id)); got != "compensated, fan undone" {
		t.Errorf("got %s", got)
	}
	if _, err := await(t, pool, d, start(t, pool, d, saga.UnitsMax+1)); !errors.Is(err, saga.ErrCompensated) || !strings.Contains(err.Error(), "100001 units") {
		t.Errorf("too many units: got %v", err)
	}
}

// Units of a saga that was cancelled do not begin.
func TestSaga_eachCancelled(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[int]("each-cancelled")
	fan := saga.Each[int, int](d, "fan")
	registered(t, pool, d)
	conf := quick()
	conf.Queues["default"] = 1
	w := newWorker(t, pool, conf)
	began, goOn := make(chan int, 100), make(chan struct{})
	saga.HandleEach(w, fan, func(_ context.Context, c *saga.Call[int]) ([]int, error) { return make([]int, c.Input), nil },
		func(_ context.Context, c *saga.Call[int], _ int) (int, error) {
			began <- c.Unit
			<-goOn
			return 0, nil
		}, func(context.Context, *saga.Call[int]) error { return nil })
	run(t, w)
	id := start(t, pool, d, 50)
	receive(t, "the first unit", began)
	if err := saga.Cancel(t.Context(), pool, 1, id, "test", "enough"); err != nil {
		t.Fatal(err)
	}
	<-time.After(150 * time.Millisecond) // what was found out before is not believed for longer
	close(goOn)
	if _, err := await(t, pool, d, id); !errors.Is(err, saga.ErrCompensated) {
		t.Errorf("got %v", err)
	}
	if n := len(began); n > 1 {
		t.Errorf("%d units began after the cancel", n)
	}
}

// A step that runs, and a unit, hear that their saga was cancelled at once, not at the next heartbeat.
func TestSaga_cancelledRunning(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[int]("cancelled-running")
	alone := saga.Step[int](d, "alone")
	fan := saga.Each[int, int](d, "fan")
	registered(t, pool, d)
	conf := quick()
	conf.TTL = time.Hour
	w := newWorker(t, pool, conf)
	began, heard := make(chan string, 10), make(chan error, 10)
	long := func(ctx context.Context, what string) (int, error) {
		began <- what
		<-ctx.Done()
		heard <- context.Cause(ctx)
		return 0, ctx.Err()
	}
	saga.Handle(w, alone, func(ctx context.Context, _ *saga.Call[int]) (int, error) { return long(ctx, "alone") }, func(context.Context, *saga.Call[int], *int) error { return nil })
	saga.HandleEach(w, fan, func(context.Context, *saga.Call[int]) ([]int, error) { return []int{1}, nil },
		func(ctx context.Context, _ *saga.Call[int], _ int) (int, error) { return long(ctx, "unit") }, func(context.Context, *saga.Call[int]) error { return nil })
	run(t, w)
	sweep(t, pool)
	id := start(t, pool, d, 1)
	for range 2 {
		receive(t, "the step and the unit", began)
	}
	if err := saga.Cancel(t.Context(), pool, 1, id, "test", "enough"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := receive(t, "word of the cancel", heard); !errors.Is(err, job.ErrCancelled) {
			t.Errorf("cause: got %v, want ErrCancelled", err)
		}
	}
	if _, err := await(t, pool, d, id); !errors.Is(err, saga.ErrCompensated) {
		t.Errorf("got %v", err)
	}
}

func TestSaga_child(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	inner := saga.Define[string]("inner")
	work := saga.Step[note](inner, "work", fast)
	d := saga.Define[order]("outer")
	part := saga.Child(d, "part", inner, fast, saga.MaxAttempts(1))
	last := saga.Step[note](d, "last", saga.After(part), fast)
	registered(t, pool, inner)
	registered(t, pool, d)
	w := newWorker(t, pool, quick())
	var undone diary
	saga.Handle(w, work, func(_ context.Context, c *saga.Call[string]) (note, error) {
		if c.Input == "bad inner" {
			return note{}, saga.Fail(errTest)
		}
		return note{"worked on " + c.Input}, nil
	}, func(context.Context, *saga.Call[string], *note) error { return nil })
	saga.HandleChild(w, part, func(_ context.Context, c *saga.Call[order]) (string, error) {
		if c.Input.Item == "no inner" {
			return "", errTest
		}
		return c.Input.Item, nil
	},
		func(_ context.Context, c *saga.Call[order], child *saga.Instance) error {
			if child == nil {
				undone.add("nothing of %s", c.Saga)
				return nil
			}
			n, err := work.From(child)
			undone.add("%s of %s: %s", n.Text, child.ID, child.State)
			return err
		})
	saga.Handle(w, last, func(ctx context.Context, c *saga.Call[order]) (note, error) {
		if c.Input.Item == "bad outer" {
			return note{}, saga.Fail(errTest)
		}
		child, err := part.Output(ctx, c)
		if err != nil {
			return note{}, err
		}
		return work.From(child)
	}, func(context.Context, *saga.Call[order], *note) error { return nil })
	run(t, w)
	i, err := await(t, pool, d, start(t, pool, d, order{Item: "good"}, saga.ID("good")))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := last.From(i); err != nil || got.Text != "worked on good" {
		t.Errorf("got %q, %v", got.Text, err)
	}
	s := tell(t, pool, "good")
	if s.Steps[0].Child != "good/part" {
		t.Errorf("child: got %q", s.Steps[0].Child)
	}
	if s := tell(t, pool, "good/part"); s.Parent != "good" || s.Name != "inner" {
		t.Errorf("parent: got %+v", s.Summary)
	}
	if _, err := await(t, pool, d, start(t, pool, d, order{Item: "bad inner"})); !errors.Is(err, saga.ErrCompensated) {
		t.Errorf("got %v", err)
	}
	if got := undone.all(); len(got) != 0 {
		t.Errorf("a child that was compensated was undone: %q", got)
	}
	if _, err := await(t, pool, d, start(t, pool, d, order{Item: "bad outer"}, saga.ID("x"))); !errors.Is(err, saga.ErrCompensated) {
		t.Errorf("got %v", err)
	}
	if _, err := await(t, pool, d, start(t, pool, d, order{Item: "no inner"}, saga.ID("y"))); !errors.Is(err, saga.ErrCompensated) {
		t.Errorf("got %v", err)
	}
	if got := undone.all(); len(got) != 2 || got[0] != "worked on bad outer of x/part: succeeded" || got[1] != "nothing of y" {
		t.Errorf("got %q", got)
	}
}

// A child that was compensated behind the pivot begins anew by a retry, and those behind it read what the new one came to.
func TestSaga_childAnew(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	inner := saga.Define[int]("inner")
	work := saga.Step[note](inner, "work", fast)
	d := saga.Define[int]("outer")
	pay := saga.Step[note](d, "pay", saga.Pivot(), fast)
	part := saga.Child(d, "part", inner, saga.After(pay), fast)
	last := saga.Step[string](d, "last", saga.After(part), fast)
	registered(t, pool, inner)
	registered(t, pool, d)
	w := newWorker(t, pool, quick())
	var works atomic.Int32
	saga.Handle(w, work, func(_ context.Context, c *saga.Call[int]) (note, error) {
		if works.Add(1) == 1 {
			return note{}, saga.Fail(errTest)
		}
		return note{"worked"}, nil
	}, func(context.Context, *saga.Call[int], *note) error { return nil })
	saga.Handle(w, pay, func(context.Context, *saga.Call[int]) (note, error) { return note{}, nil }, nil)
	saga.HandleChild(w, part, func(_ context.Context, c *saga.Call[int]) (int, error) { return c.Input, nil }, nil)
	saga.Handle(w, last, func(ctx context.Context, c *saga.Call[int]) (string, error) {
		child, err := part.Output(ctx, c)
		if err != nil {
			return "", err
		}
		n, err := work.From(child)
		return child.ID + " " + n.Text, err
	}, nil)
	run(t, w)
	id := start(t, pool, d, 1)
	untilStuck(t, pool, id)
	if err := saga.Retry(t.Context(), pool, 1, id, "test", "again"); err != nil {
		t.Fatal(err)
	}
	i, err := await(t, pool, d, id)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := last.From(i); err != nil || got != id+"/part/2 worked" {
		t.Errorf("behind the child: got %q, %v, want what %s/part/2 came to", got, err, id)
	}
	if got := tell(t, pool, id).Steps[1].Child; got != id+"/part/2" {
		t.Errorf("child in the story: got %q, want %s/part/2", got, id)
	}
}

func TestSaga_timer(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[order]("timer")
	wait := saga.Timer(d, "wait", time.Hour)
	after := saga.Step[saga.None](d, "after", saga.After(wait), saga.ReadOnly())
	registered(t, pool, d)
	w := newWorker(t, pool, quick())
	saga.Handle(w, after, func(context.Context, *saga.Call[order]) (saga.None, error) { return saga.None{}, nil }, nil)
	run(t, w)
	id := start(t, pool, d, order{})
	sweepSagas(t, pool)
	if got := states(tell(t, pool, id)); got != "running, wait running, after waiting" {
		t.Errorf("got %s", got)
	}
	due(t, pool)
	if _, err := await(t, pool, d, id); err != nil {
		t.Error(err)
	}
}

func TestSaga_signal(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[order]("signal")
	first := saga.Step[saga.None](d, "first")
	paid := saga.Signal[note](d, "paid", saga.After(first), saga.Expires(time.Hour))
	registered(t, pool, d)
	w := newWorker(t, pool, quick())
	turn := make(chan struct{})
	saga.Handle(w, first, func(_ context.Context, c *saga.Call[order]) (saga.None, error) {
		if c.Input.Item == "early" {
			<-turn
		}
		return saga.None{}, nil
	}, func(context.Context, *saga.Call[order], *saga.None) error { return nil })
	run(t, w)
	ctx := t.Context()
	early := start(t, pool, d, order{Item: "early"})
	if err := saga.Send(ctx, pool, paid, early, note{"early"}); err != nil {
		t.Fatal(err)
	}
	if err := saga.Send(ctx, pool, paid, early, note{"again"}); !errors.Is(err, saga.ErrNotWaiting) {
		t.Errorf("a second: got %v, want ErrNotWaiting", err)
	}
	close(turn)
	i, err := await(t, pool, d, early)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := paid.From(i); err != nil || got.Text != "early" {
		t.Errorf("got %q, %v", got.Text, err)
	}
	if err := saga.Send(ctx, pool, paid, early, note{}); !errors.Is(err, saga.ErrEnded) {
		t.Errorf("after the end: got %v, want ErrEnded", err)
	}
	if err := saga.Send(ctx, pool, paid, "nobody", note{}); !errors.Is(err, saga.ErrNotFound) {
		t.Errorf("nobody: got %v, want ErrNotFound", err)
	}
	if err := saga.Send(ctx, pool, first, early, saga.None{}); !errors.Is(err, saga.ErrInvalid) {
		t.Errorf("no signal: got %v, want ErrInvalid", err)
	}

	late := start(t, pool, d, order{})
	until(t, "its turn", func() bool { return tell(t, pool, late).Steps[1].State == saga.StepRunning })
	if err := saga.SendByName(ctx, pool, 1, late, "paid", []byte(`{"text": "late"}`)); err != nil {
		t.Fatal(err)
	}
	i, err = await(t, pool, d, late)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := paid.From(i); err != nil || got.Text != "late" {
		t.Errorf("got %q, %v", got.Text, err)
	}

	never := start(t, pool, d, order{})
	until(t, "its turn", func() bool { return tell(t, pool, never).Steps[1].State == saga.StepRunning })
	due(t, pool)
	if _, err := await(t, pool, d, never); !errors.Is(err, saga.ErrCompensated) || !strings.Contains(err.Error(), `step "paid"`) {
		t.Errorf("never: got %v", err)
	}
}

// Handlers for a version go before those for all.
func TestSaga_versions(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	define := func(version int) (*saga.Definition[order], *saga.StepOf[order, string]) {
		d := saga.Define[order]("versions", saga.Version(version))
		s := saga.Step[string](d, "a")
		registered(t, pool, d)
		return d, s
	}
	one, a1 := define(1)
	two, a2 := define(2)
	three, _ := define(3)
	w := newWorker(t, pool, quick())
	says := func(text string) func(context.Context, *saga.Call[order]) (string, error) {
		return func(_ context.Context, c *saga.Call[order]) (string, error) {
			if c.Input.Item == "bad" {
				return "", errors.New("unknown")
			}
			return fmt.Sprintf("%s for %d", text, c.Version), nil
		}
	}
	undo := func(context.Context, *saga.Call[order], *string) error { return nil }
	saga.Handle(w, a1.AtVersion(), says("old"), undo)
	saga.Handle(w, a2, says("all"), undo)
	run(t, w)
	for _, c := range []struct {
		d    *saga.Definition[order]
		want string
	}{{one, "old for 1"}, {two, "all for 2"}, {three, "all for 3"}} {
		i, err := await(t, pool, c.d, start(t, pool, c.d, order{}))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := a2.From(i); err != nil || got != c.want {
			t.Errorf("got %q, %v, want %q", got, err, c.want)
		}
	}
	all, err := saga.Definitions(t.Context(), pool, 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 || all[0].Version != 3 || !all[0].Steps[0].Served {
		t.Errorf("definitions: got %+v", all)
	}
}

// What no worker serves is shown, and waits.
func TestSaga_unserved(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[order]("unserved")
	a := saga.Step[saga.None](d, "a", saga.Queue("here"), saga.ReadOnly())
	b := saga.Step[saga.None](d, "b", saga.After(a), saga.Queue("elsewhere"), saga.ReadOnly())
	saga.Timer(d, "c", time.Hour, saga.After(b))
	registered(t, pool, d)
	w := newWorker(t, pool, worker.Config{Queues: map[string]int{"here": 1}})
	saga.Handle(w, a, func(context.Context, *saga.Call[order]) (saga.None, error) { return saga.None{}, nil }, nil)
	stop := run(t, w)
	id := start(t, pool, d, order{})
	until(t, "b", func() bool { return tell(t, pool, id).Steps[1].State == saga.StepRunning })
	s := tell(t, pool, id)
	if !s.Steps[0].Served || s.Steps[1].Served || !s.Steps[2].Served {
		t.Errorf("served: got %v, %v, %v, want true, false, true", s.Steps[0].Served, s.Steps[1].Served, s.Steps[2].Served)
	}
	all, err := saga.Definitions(t.Context(), pool, 1)
	if err != nil {
		t.Fatal(err)
	}
	if all[0].Open != 1 || all[0].Steps[1].Served || all[0].Steps[1].Queue != "elsewhere" {
		t.Errorf("definition: got %+v", all[0])
	}
	// Another worker, in another process, that is woken by a hint of this one.
	other := newWorker(t, pool, worker.Config{Queues: map[string]int{"elsewhere": 1}})
	saga.Handle(other, b, func(context.Context, *saga.Call[order]) (saga.None, error) { return saga.None{}, nil }, nil)
	run(t, other)
	until(t, "c", func() bool { return tell(t, pool, id).Steps[2].State == saga.StepRunning })
	stop()
	if s := tell(t, pool, id); s.Steps[0].Served || !s.Steps[1].Served {
		t.Errorf("served after a worker's end: got %v, %v, want false, true", s.Steps[0].Served, s.Steps[1].Served)
	}
}
