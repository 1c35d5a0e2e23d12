package saga_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// patience bounds every wait of these tests; what is waited for comes much earlier.
const patience = 60 * time.Second

// simple is a registered definition of one step that nobody serves.
func simple(tb testing.TB, pool *pgxpool.Pool, opts ...saga.Option) *saga.Definition[order] {
	tb.Helper()
	d := saga.Define[order]("simple", opts...)
	saga.Step[paid](d, "a", saga.Queue("here"))
	registered(tb, pool, d)
	return d
}

func registered[In any](tb testing.TB, pool *pgxpool.Pool, d *saga.Definition[In]) {
	tb.Helper()
	if err := d.Register(context.Background(), pool); err != nil {
		tb.Fatal(err)
	}
}

func tell(tb testing.TB, pool *pgxpool.Pool, id string) *saga.Story {
	tb.Helper()
	s, err := saga.Get(context.Background(), pool, 1, id)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func count(tb testing.TB, pool *pgxpool.Pool, sql string, args ...any) (n int) {
	tb.Helper()
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	return n
}

func TestRegister(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := t.Context()
	define := func(opts ...saga.StepOption) *saga.Definition[order] {
		d := saga.Define[order]("register", saga.Version(3))
		saga.Step[paid](d, "a", opts...)
		return d
	}
	for range 2 {
		if err := define().Register(ctx, pool); err != nil {
			t.Fatal(err)
		}
	}
	err := define(saga.MaxAttempts(7)).Register(ctx, pool)
	var changed *saga.ChangedError
	if !errors.Is(err, saga.ErrChanged) || !errors.As(err, &changed) || len(changed.Difference) != 1 || changed.Difference[0] != "step a: max_attempts is 7, was 5" {
		t.Errorf("got %v", err)
	}
	if err := define(saga.MaxAttempts(0)).Register(ctx, pool); !errors.Is(err, saga.ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
	child := saga.Define[order]("nobody")
	saga.Step[paid](child, "a")
	d := saga.Define[order]("parent")
	saga.Child(d, "c", child)
	if err := d.Register(ctx, pool); !errors.Is(err, saga.ErrUnregistered) {
		t.Errorf("got %v, want ErrUnregistered of the child", err)
	}
	all, err := saga.Definitions(ctx, pool, 1)
	if err != nil || len(all) != 1 || all[0].Name != "register" || all[0].Version != 3 || len(all[0].Steps) != 1 || all[0].Steps[0].Served || len(all[0].Digest) != 64 {
		t.Errorf("got %+v, %v", all, err)
	}
}

func TestStart(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := t.Context()
	d := simple(t, pool, saga.Deadline(time.Hour))
	first, err := d.Start(ctx, pool, order{"book"}, saga.ID("one"), saga.Header("a", "1"), saga.Header("b", "2"))
	if err != nil || first != (saga.Started{ID: "one"}) {
		t.Fatalf("got %+v, %v", first, err)
	}
	s := tell(t, pool, "one")
	if s.Name != "simple" || s.Version != 1 || s.State != saga.StateRunning || string(s.Input) != `{"item":"book"}` || s.Headers["a"] != "1" || s.Headers["b"] != "2" || s.StartedBy == "" {
		t.Errorf("got %+v", s)
	}
	if left := s.Deadline.Sub(s.StartedAt); left < 59*time.Minute || left > 61*time.Minute {
		t.Errorf("deadline: got %s after the start", left)
	}
	if st := s.Steps[0]; st.State != saga.StepRunning || st.JobID == 0 || st.Queue != "here" || st.Served {
		t.Errorf("got %+v", st)
	}
	again, err := d.Start(ctx, pool, order{"book"}, saga.ID("one"))
	if err != nil || again != (saga.Started{ID: "one", Duplicate: true}) {
		t.Errorf("the same again: got %+v, %v", again, err)
	}
	if _, err := d.Start(ctx, pool, order{"pen"}, saga.ID("one")); !errors.Is(err, saga.ErrConflict) {
		t.Errorf("another input: got %v, want ErrConflict", err)
	}
	other := saga.Define[order]("other")
	saga.Step[paid](other, "a")
	registered(t, pool, other)
	if _, err := other.Start(ctx, pool, order{"book"}, saga.ID("one")); !errors.Is(err, saga.ErrConflict) {
		t.Errorf("another definition: got %v, want ErrConflict", err)
	}
	none, err := d.Start(ctx, pool, order{}, saga.DeadlineIn(0))
	if err != nil || len(none.ID) != 36 {
		t.Fatalf("without an id: got %+v, %v", none, err)
	}
	if got := tell(t, pool, none.ID).Deadline; got != nil {
		t.Errorf("deadline: got %s, want none", got)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.saga"); n != 2 {
		t.Errorf("got %d sagas, want 2", n)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.job"); n != 2 {
		t.Errorf("got %d jobs, want 2", n)
	}
}

func TestStart_errors(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := t.Context()
	d := simple(t, pool)
	unknown := saga.Define[order]("unknown")
	saga.Step[paid](unknown, "a")
	wrong := saga.Define[func()]("simple")
	saga.Step[paid](wrong, "a", saga.Queue("here"))
	empty := saga.Define[order]("simple")
	for what, c := range map[string]struct {
		want error
		do   func() error
	}{
		"unregistered": {saga.ErrUnregistered, func() error { _, err := unknown.Start(ctx, pool, order{}); return err }},
		"no version": {saga.ErrUnregistered, func() error {
			_, err := saga.StartByName(ctx, pool, 1, "simple", 2, []byte("{}"))
			return err
		}},
		"no id":         {saga.ErrInvalid, func() error { _, err := d.Start(ctx, pool, order{}, saga.ID("")); return err }},
		"a long id":     {saga.ErrInvalid, func() error { _, err := d.Start(ctx, pool, order{}, saga.ID(strings.Repeat("ä", 257))); return err }},
		"no text":       {saga.ErrInvalid, func() error { _, err := d.Start(ctx, pool, order{}, saga.ID("a\x00b")); return err }},
		"deadline":      {saga.ErrInvalid, func() error { _, err := d.Start(ctx, pool, order{}, saga.DeadlineIn(-1)); return err }},
		"no JSON":       {saga.ErrInvalid, func() error { _, err := wrong.Start(ctx, pool, func() {}); return err }},
		"no JSON text":  {saga.ErrInvalid, func() error { _, err := saga.StartByName(ctx, pool, 1, "simple", 0, []byte("{")); return err }},
		"no input":      {saga.ErrInvalid, func() error { _, err := saga.StartByName(ctx, pool, 1, "simple", 0, nil); return err }},
		"a bad version": {saga.ErrInvalid, func() error { _, err := saga.StartByName(ctx, pool, 1, "simple", -1, []byte("{}")); return err }},
		"no steps":      {saga.ErrInvalid, func() error { _, err := empty.Start(ctx, pool, order{}); return err }},
		"too large": {saga.ErrPayloadTooLarge, func() error {
			_, err := d.Start(ctx, pool, order{strings.Repeat("x", 1<<18)})
			return err
		}},
		"ID for many": {saga.ErrInvalid, func() error {
			_, err := d.StartMany(ctx, pool, maps.All(map[string]order{"x": {}}), saga.ID("y"))
			return err
		}},
		"repeatable read": {saga.ErrInvalid, func() error {
			return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
				return saga.Cancel(ctx, tx, 1, "x", "test", "test")
			})
		}},
	} {
		if err := c.do(); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", what, err, c.want)
		}
	}
	if _, err := d.Start(ctx, pool, order{}, saga.ID(strings.Repeat("ä", 256))); err != nil {
		t.Errorf("an id of 256 characters: %v", err)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.saga"); n != 1 {
		t.Errorf("got %d sagas, want 1", n)
	}
}

func TestStart_transaction(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := t.Context()
	d := simple(t, pool)
	roll := errors.New("roll back")
	for _, end := range []error{roll, nil} {
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			for _, dup := range []bool{false, true} {
				s, err := d.Start(ctx, tx, order{fmt.Sprint(end)}, saga.ID("one"))
				if err != nil || s.Duplicate != dup {
					t.Errorf("got %+v, %v", s, err)
				}
			}
			return end
		})
		if !errors.Is(err, end) {
			t.Fatal(err)
		}
	}
	if s := tell(t, pool, "one"); string(s.Input) != `{"item":"\u003cnil\u003e"}` {
		t.Errorf("got input %s, want the committed one", s.Input)
	}
	if err := d.Hint(ctx, pool); err != nil {
		t.Error(err)
	}
}

// Two who start the same at once: the later waits for the first one's outcome.
func TestStart_concurrent(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := t.Context()
	d := simple(t, pool)
	for i, c := range []struct {
		commit bool
		input  string
		want   error
		dup    bool
	}{{true, "same", nil, true}, {true, "other", saga.ErrConflict, false}, {false, "same", nil, false}, {false, "other", nil, false}} {
		id := fmt.Sprint("saga ", i)
		first, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Start(ctx, first, order{"same"}, saga.ID(id)); err != nil {
			t.Fatal(err)
		}
		type result struct {
			saga.Started
			err error
		}
		second := make(chan result, 1)
		go func() {
			s, err := d.Start(ctx, pool, order{c.input}, saga.ID(id))
			second <- result{s, err}
		}()
		untilBlocked(t, pool)
		if c.commit {
			err = first.Commit(ctx)
		} else {
			err = first.Rollback(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		if r := <-second; !errors.Is(r.err, c.want) || r.Duplicate != c.dup {
			t.Errorf("first committed %v, second with %q: got %+v, want %v", c.commit, c.input, r, c.want)
		}
	}
}

// untilBlocked waits until a connection waits for another one's transaction.
func untilBlocked(tb testing.TB, pool *pgxpool.Pool) {
	tb.Helper()
	until(tb, "a wait for the other transaction", func() bool {
		return count(tb, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") > 0
	})
}

// until polls for a condition that no signal announces.
func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			tb.Fatalf("waited in vain for: %s", what)
		}
	}
}

func numbered(from, to int) iter.Seq2[string, order] {
	return func(yield func(string, order) bool) {
		for i := from; i < to; i++ {
			if !yield(fmt.Sprintf("n%d", i), order{fmt.Sprint(i)}) {
				return
			}
		}
	}
}

func TestStartMany(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := t.Context()
	d := simple(t, pool)
	if n, err := d.StartMany(ctx, pool, numbered(0, 0)); n != 0 || err != nil {
		t.Errorf("none: got %d, %v", n, err)
	}
	if n, err := d.StartMany(ctx, pool, numbered(1990, 2010), saga.Header("a", "1")); n != 20 || err != nil {
		t.Errorf("got %d, %v, want 20", n, err)
	}
	if n, err := d.StartMany(ctx, pool, numbered(0, 2500)); n != 2480 || err != nil {
		t.Errorf("got %d, %v, want 2480", n, err)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.saga s JOIN pawl.job j ON j.saga_id = s.id"); n != 2500 {
		t.Errorf("got %d sagas with jobs, want 2500", n)
	}
	if s := tell(t, pool, "n2000"); s.Headers["a"] != "1" || string(s.Input) != `{"item":"2000"}` {
		t.Errorf("got %+v", s)
	}
	// The second batch has a conflict: on a pool the first stays, in a transaction nothing does.
	conflict := func(yield func(string, order) bool) {
		for id, in := range numbered(5000, 6500) {
			if id == "n6200" {
				id, in = "n7", order{"another"}
			}
			if !yield(id, in) {
				return
			}
		}
	}
	n, err := d.StartMany(ctx, pool, conflict)
	if n != 1000 || !errors.Is(err, saga.ErrConflict) || !strings.Contains(err.Error(), "after 1000 sagas") {
		t.Errorf("got %d, %v", n, err)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.saga"); n != 3500 {
		t.Errorf("got %d sagas, want 3500", n)
	}
}

// Starts of the same sagas from many sides, each in another order.
func TestStartMany_concurrent(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := simple(t, pool)
	var sides sync.WaitGroup
	added := make([]int, 4)
	for side := range added {
		sides.Go(func() {
			n, err := d.StartMany(context.Background(), pool, func(yield func(string, order) bool) {
				for i := range 1000 {
					i = (i*(2*side+1) + side*250) % 1000
					if !yield(fmt.Sprint(i), order{fmt.Sprint(i)}) {
						return
					}
				}
			})
			if err != nil {
				t.Error(err)
			}
			added[side] = n
		})
	}
	sides.Wait()
	if sum := added[0] + added[1] + added[2] + added[3]; sum != 1000 || count(t, pool, "SELECT count(*) FROM pawl.saga") != 1000 {
		t.Errorf("got %v, want 1000 in all", added)
	}
}

func TestStartByName(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := t.Context()
	simple(t, pool)
	two := saga.Define[order]("simple", saga.Version(2))
	saga.Step[paid](two, "b")
	registered(t, pool, two)
	for version, want := range map[int]int{0: 2, 1: 1, 2: 2} {
		s, err := saga.StartByName(ctx, pool, 1, "simple", version, []byte(`{"item": "x"}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := tell(t, pool, s.ID); got.Version != want || string(got.Input) != `{"item": "x"}` {
			t.Errorf("version %d: got %+v, want version %d", version, got.Summary, want)
		}
	}
}
