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

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

func TestHandle(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	greet := job.Define[greeting]("greet")
	w := newWorker(t, pool, quick())
	worker.HandleResult(w, greet, func(_ context.Context, j *job.Job[greeting]) (string, error) {
		return fmt.Sprintf("hello %s, attempt %d of %d in %s, %s", j.Args.Name, j.Attempt, j.MaxAttempts, j.Queue, j.Headers["trace"]), nil
	})
	run(t, w)
	id := enqueue(t, pool, greet, greeting{"Ada"}, job.MaxAttempts(3), job.Header("trace", "t1"))
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	got, err := job.Await[string](ctx, pool, 1, id)
	if want := "hello Ada, attempt 1 of 3 in default, t1"; err != nil || got != want {
		t.Errorf("Await: got %q, %v, want %q", got, err, want)
	}
	s := story(t, pool, id)
	if s.State != job.StateSucceeded || len(s.Attempts) != 1 || s.Attempts[0].Session != "test" || s.Attempts[0].Outcome != job.Succeeded {
		t.Errorf("story: got %+v", s)
	}
}

func TestHandle_transaction(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	greet := job.Define[greeting]("greet")
	ran := make(chan string, 10)
	w := newWorker(t, pool, quick())
	worker.Handle(w, greet, func(_ context.Context, j *job.Job[greeting]) error {
		ran <- j.Args.Name
		return nil
	})
	run(t, w)
	ctx := context.Background()
	for _, end := range []string{"rolled back", "committed"} {
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		enqueue(t, tx, greet, greeting{end})
		if end == "committed" {
			err = tx.Commit(ctx)
		} else {
			err = tx.Rollback(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := receive(t, "the job", ran); got != "committed" {
		t.Errorf("ran %q, want the committed one alone", got)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.job"); n != 1 {
		t.Errorf("jobs: got %d, want 1", n)
	}
}

// Each outcome a handler can choose, and what becomes of the job.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	sweep(t, pool)
	tries := map[string]*atomic.Int64{}
	kinds := map[string]struct {
		do       func(try int64) error
		opts     []job.Option
		want     job.State
		tries    int64
		attempt  int // of the last
		outcomes []job.Outcome
		says     string
	}{
		"retry": {
			do: func(try int64) error {
				if try < 3 {
					return errTest
				}
				return nil
			},
			opts: []job.Option{job.Backoff(10*time.Millisecond, 20*time.Millisecond)},
			want: job.StateSucceeded, tries: 3, attempt: 3, outcomes: []job.Outcome{job.Failed, job.Failed, job.Succeeded}, says: "no luck",
		},
		"used-up": {
			do:   func(int64) error { return errTest },
			opts: []job.Option{job.Backoff(0, 0), job.MaxAttempts(2)},
			want: job.StateDiscarded, tries: 2, attempt: 2, outcomes: []job.Outcome{job.Failed, job.Discarded}, says: "no luck",
		},
		"retry-after": {
			do: func(try int64) error {
				if try == 1 {
					return job.RetryAfter(time.Millisecond, errTest)
				}
				return nil
			},
			opts: []job.Option{job.Backoff(time.Hour, time.Hour)},
			want: job.StateSucceeded, tries: 2, attempt: 2, outcomes: []job.Outcome{job.Failed, job.Succeeded}, says: "no luck",
		},
		"snooze": {
			do: func(try int64) error {
				if try < 3 {
					return job.Snooze(time.Millisecond)
				}
				return nil
			},
			opts: []job.Option{job.MaxAttempts(1)},
			want: job.StateSucceeded, tries: 3, attempt: 1, outcomes: []job.Outcome{job.Snoozed, job.Snoozed, job.Succeeded},
		},
		"discard": {
			do:   func(int64) error { return fmt.Errorf("wrapped: %w", job.Discard(errTest)) },
			want: job.StateDiscarded, tries: 1, attempt: 1, outcomes: []job.Outcome{job.Discarded}, says: "no luck",
		},
		"cancel": {
			do:   func(int64) error { return job.Cancel(errTest) },
			want: job.StateCancelled, tries: 1, attempt: 1, outcomes: []job.Outcome{job.Cancelled}, says: "no luck",
		},
		"panic": {
			do:   func(int64) error { panic("out of cheese") },
			opts: []job.Option{job.MaxAttempts(1)},
			want: job.StateDiscarded, tries: 1, attempt: 1, outcomes: []job.Outcome{job.Discarded}, says: "panic: out of cheese",
		},
	}
	w := newWorker(t, pool, quick())
	ids := map[string]int64{}
	for kind, k := range kinds {
		tries[kind] = &atomic.Int64{}
		d := job.Define[greeting](kind, k.opts...)
		worker.Handle(w, d, func(context.Context, *job.Job[greeting]) error { return k.do(tries[kind].Add(1)) })
		ids[kind] = enqueue(t, pool, d, greeting{})
	}
	run(t, w)
	for kind, k := range kinds {
		s := untilState(t, pool, ids[kind], k.want)
		if got := tries[kind].Load(); got != k.tries || s.Attempt != k.attempt {
			t.Errorf("%s: ran %d times up to attempt %d, want %d up to %d", kind, got, s.Attempt, k.tries, k.attempt)
		}
		var got []job.Outcome
		details := ""
		for _, a := range s.Attempts {
			got = append(got, a.Outcome)
			details += string(a.Detail)
		}
		if fmt.Sprint(got) != fmt.Sprint(k.outcomes) || !strings.Contains(details, k.says) {
			t.Errorf("%s: outcomes %v with %s, want %v with %q", kind, got, details, k.outcomes, k.says)
		}
	}
}

func TestHandleTx(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	sweep(t, pool)
	exec(t, pool, "CREATE TABLE effect (job bigint, attempt int)")
	charge := job.Define[greeting]("charge", job.Backoff(0, 0))
	follow := job.Define[greeting]("follow")
	w := newWorker(t, pool, quick())
	worker.HandleTx(w, charge, func(ctx context.Context, tx pgx.Tx, j *job.Job[greeting]) (int, error) {
		if _, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1, $2)", j.ID, j.Attempt); err != nil {
			return 0, err
		}
		if _, err := follow.Enqueue(ctx, tx, j.Args); err != nil {
			return 0, err
		}
		if err := tx.Commit(ctx); err == nil {
			return 0, errors.New("the handler could commit")
		}
		if j.Attempt < 3 {
			return 0, errTest
		}
		return 42, nil
	})
	worker.Handle(w, follow, func(context.Context, *job.Job[greeting]) error { return nil })
	run(t, w)
	id := enqueue(t, pool, charge, greeting{"Ada"})
	s := untilState(t, pool, id, job.StateSucceeded)
	if n := count(t, pool, "SELECT count(*) FROM effect WHERE job = $1 AND attempt = 3", id); n != 1 || count(t, pool, "SELECT count(*) FROM effect") != 1 {
		t.Errorf("effects: got %d of attempt 3, want that one alone", n)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.job WHERE kind = 'follow'"); n != 1 {
		t.Errorf("follow-ups: got %d, want 1", n)
	}
	if string(s.Result) != "42" {
		t.Errorf("result: got %s, want 42", s.Result)
	}
}

// A session that was ended while a handler ran: nothing that the handler does counts, in its transaction or outside.
func TestFencing(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "CREATE TABLE effect (job bigint, attempt int)")
	charge := job.Define[greeting]("charge")
	mail := job.Define[greeting]("mail")
	started, goOn := make(chan int, 10), make(chan struct{})
	causes := make(chan error, 10)
	w := newWorker(t, pool, quick())
	worker.HandleTx(w, charge, func(ctx context.Context, tx pgx.Tx, j *job.Job[greeting]) (worker.None, error) {
		started <- j.Attempt
		<-goOn
		_, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1, $2)", j.ID, j.Attempt)
		return worker.None{}, err
	})
	worker.Handle(w, mail, func(ctx context.Context, j *job.Job[greeting]) error {
		started <- j.Attempt
		<-goOn
		if j.Attempt == 1 {
			<-ctx.Done()
			causes <- context.Cause(ctx)
		}
		return nil
	})
	run(t, w)
	ids := []int64{enqueue(t, pool, charge, greeting{}), enqueue(t, pool, mail, greeting{})}
	for range ids {
		receive(t, "both to start", started)
	}
	exec(t, pool, "SELECT pawl.session_end(1::smallint, id, 'test') FROM pawl.session")
	exec(t, pool, "SELECT pawl.session_rescue(1::smallint, id, 100) FROM pawl.session")
	close(goOn)
	for _, id := range ids {
		s := untilState(t, pool, id, job.StateSucceeded)
		if s.Attempt != 2 || s.Attempts[0].Outcome != job.Lost {
			t.Errorf("%s: got attempt %d after %q, want 2 after lost", s.Kind, s.Attempt, s.Attempts[0].Outcome)
		}
	}
	if n := count(t, pool, "SELECT count(*) FROM effect WHERE attempt <> 2"); n != 0 || count(t, pool, "SELECT count(*) FROM effect") != 1 {
		t.Errorf("effects of the lost attempt: %d", n)
	}
	if cause := receive(t, "the cause", causes); !errors.Is(cause, session.ErrLost) {
		t.Errorf("cause: got %v, want session.ErrLost", cause)
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	slow := job.Define[greeting]("slow", job.Timeout(20*time.Millisecond), job.MaxAttempts(1))
	stuck := job.Define[greeting]("stuck", job.Timeout(20*time.Millisecond), job.MaxAttempts(1))
	conf := quick()
	conf.Queues["default"] = 1
	conf.Grace = 50 * time.Millisecond
	w := newWorker(t, pool, conf)
	worker.Handle(w, slow, func(ctx context.Context, _ *job.Job[greeting]) error {
		<-ctx.Done()
		if !errors.Is(context.Cause(ctx), job.ErrTimeout) {
			t.Errorf("cause: got %v, want job.ErrTimeout", context.Cause(ctx))
		}
		return ctx.Err()
	})
	free := make(chan struct{})
	worker.Handle(w, stuck, func(context.Context, *job.Job[greeting]) error {
		<-free // ignores its context
		return nil
	})
	run(t, w)
	t.Cleanup(func() { close(free) })
	s := untilState(t, pool, enqueue(t, pool, slow, greeting{}), job.StateDiscarded)
	if got := string(s.Attempts[0].Detail); !strings.Contains(got, "timeout after 20ms") {
		t.Errorf("detail: got %s", got)
	}
	s = untilState(t, pool, enqueue(t, pool, stuck, greeting{}), job.StateDiscarded)
	if got := string(s.Attempts[0].Detail); !strings.Contains(got, "given up") {
		t.Errorf("detail: got %s", got)
	}
	untilState(t, pool, enqueue(t, pool, slow, greeting{}), job.StateDiscarded) // the only slot is free again
	if got := w.Stats().GivenUp; got != 1 {
		t.Errorf("given up: got %d, want 1", got)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	for _, pollOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("pollOnly=%v", pollOnly), func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			ctx := context.Background()
			d := job.Define[greeting]("long")
			started := make(chan struct{}, 10)
			conf := quick()
			conf.Queues["default"] = 1
			conf.PollOnly = pollOnly
			conf.Drain = time.Millisecond
			conf.TTL = 3 * time.Second // cancels come with the heartbeat where hints do not
			w := newWorker(t, pool, conf)
			worker.Handle(w, d, func(ctx context.Context, _ *job.Job[greeting]) error {
				started <- struct{}{}
				<-ctx.Done()
				return context.Cause(ctx)
			})
			stop := run(t, w)
			running := enqueue(t, pool, d, greeting{})
			receive(t, "the first to start", started)
			later := enqueue(t, pool, d, greeting{}, job.RunAt(time.Now().Add(time.Hour)))
			waiting := enqueue(t, pool, d, greeting{}, job.Priority(4))
			for id, want := range map[int64]job.State{running: job.StateRunning, later: job.StateScheduled, waiting: job.StateAvailable} {
				if was, err := job.CancelByID(ctx, pool, 1, id, "test"); err != nil || was != want {
					t.Errorf("cancel: was %q, %v, want %q", was, err, want)
				}
			}
			for _, id := range []int64{running, later, waiting} {
				s := untilState(t, pool, id, job.StateCancelled)
				if len(s.Cancels) != 1 || s.Cancels[0].Reason != "test" {
					t.Errorf("cancels of %d: %+v", id, s.Cancels)
				}
			}
			if was, err := job.CancelByID(ctx, pool, 1, running, "again"); err != nil || was != job.StateCancelled {
				t.Errorf("second cancel: was %q, %v", was, err)
			}
			if _, err := job.CancelByID(ctx, pool, 1, 12345, ""); !errors.Is(err, job.ErrNotFound) {
				t.Errorf("cancel of nothing: got %v, want ErrNotFound", err)
			}
			// A retry of each runs.
			for _, id := range []int64{running, later, waiting} {
				if was, err := job.RetryByID(ctx, pool, 1, id); err != nil || was != job.StateCancelled {
					t.Errorf("retry: was %q, %v", was, err)
				}
			}
			receive(t, "a retried one to start", started)
			stop()
		})
	}
}

func TestUnknownAndBad(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	sweep(t, pool)
	conf := quick()
	conf.UnknownDelay = time.Hour
	w := newWorker(t, pool, conf)
	num := job.Define[int]("num", job.MaxAttempts(1))
	worker.Handle(w, num, func(context.Context, *job.Job[int]) error { return nil })
	run(t, w)
	unknown := enqueue(t, pool, job.Define[greeting]("of-tomorrow"), greeting{})
	s := untilState(t, pool, unknown, job.StateRetrying)
	if s.Attempt != 1 || s.Attempts[0].Outcome != job.Returned {
		t.Errorf("unknown kind: got attempt %d after %q, want 1 after returned", s.Attempt, s.Attempts[0].Outcome)
	}
	bad := enqueue(t, pool, job.Define[greeting]("num", job.MaxAttempts(1)), greeting{"not a number"})
	s = untilState(t, pool, bad, job.StateDiscarded)
	if got := string(s.Attempts[0].Detail); !strings.Contains(got, "args do not fit int") {
		t.Errorf("bad args: got %s", got)
	}
	if w.Stats().Unknown != 1 {
		t.Errorf("stats: %+v", w.Stats())
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := job.Define[greeting]("work")
	conf := quick()
	conf.Queues["default"] = 2
	conf.Drain = 100 * time.Millisecond
	w := newWorker(t, pool, conf)
	started, finish := make(chan string, 10), make(chan struct{})
	worker.Handle(w, d, func(ctx context.Context, j *job.Job[greeting]) error {
		started <- j.Args.Name
		if j.Args.Name == "polite" {
			<-finish
			return nil
		}
		<-ctx.Done()
		if !errors.Is(context.Cause(ctx), worker.ErrStopping) {
			t.Errorf("cause: got %v, want ErrStopping", context.Cause(ctx))
		}
		return ctx.Err()
	})
	polite := enqueue(t, pool, d, greeting{"polite"})
	endless := enqueue(t, pool, d, greeting{"endless"})
	stop := run(t, w)
	receive(t, "the first", started)
	receive(t, "the second", started)
	close(finish)
	stop()
	if s := story(t, pool, polite); s.State != job.StateSucceeded {
		t.Errorf("polite: %s", s.State)
	}
	s := story(t, pool, endless)
	if s.State != job.StateAvailable || s.Attempt != 1 || s.Attempts[0].Outcome != job.Returned {
		t.Errorf("endless: %s, attempt %d, after %q, want available, 1, returned", s.State, s.Attempt, s.Attempts[0].Outcome)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.session WHERE ended_at IS NULL"); n != 0 {
		t.Errorf("open sessions: %d", n)
	}
}

func TestMiddleware(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := job.Define[greeting]("greet", job.MaxAttempts(1))
	w := newWorker(t, pool, quick())
	var trail []string
	wrap := func(name string) worker.Middleware {
		return func(next func(context.Context, *worker.Raw) error) func(context.Context, *worker.Raw) error {
			return func(ctx context.Context, j *worker.Raw) error {
				trail = append(trail, name+" "+string(j.Args))
				return next(ctx, j)
			}
		}
	}
	w.Use(wrap("outer"), wrap("inner"))
	worker.Handle(w, d, func(_ context.Context, j *job.Job[greeting]) error {
		trail = append(trail, "handler "+j.Args.Name)
		return nil
	})
	run(t, w)
	untilState(t, pool, enqueue(t, pool, d, greeting{"Ada"}), job.StateSucceeded)
	want := `outer {"name":"Ada"}, inner {"name":"Ada"}, handler Ada`
	if got := strings.Join(trail, ", "); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPriorities(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := job.Define[greeting]("greet")
	for p := 4; p >= 1; p-- {
		for range 3 {
			enqueue(t, pool, d, greeting{fmt.Sprint(p)}, job.Priority(p))
		}
	}
	conf := quick()
	conf.Queues["default"] = 1
	w := newWorker(t, pool, conf)
	var order []string
	all := make(chan struct{})
	worker.Handle(w, d, func(_ context.Context, j *job.Job[greeting]) error {
		if order = append(order, j.Args.Name); len(order) == 12 {
			close(all)
		}
		return nil
	})
	run(t, w)
	receive(t, "all", all)
	if got, want := strings.Join(order, ""), "111222333444"; got != want {
		t.Errorf("order: got %s, want %s", got, want)
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := context.Background()
	d := job.Define[greeting]("greet")
	ran := make(chan string, 10)
	w := newWorker(t, pool, quick())
	worker.Handle(w, d, func(_ context.Context, j *job.Job[greeting]) error {
		ran <- j.Queue
		return nil
	})
	enqueue(t, pool, d, greeting{})
	if err := job.PauseQueue(ctx, pool, 1, "default"); err != nil {
		t.Fatal(err)
	}
	run(t, w)
	until(t, "a session", func() bool { return count(t, pool, "SELECT count(*) FROM pawl.session") == 1 })
	if n := count(t, pool, "SELECT coalesce(sum(jobs), 0) FROM pawl.session s, LATERAL pawl.claim(1::smallint, s.id, 7, 1, 2::smallint, 10)"); n != 0 {
		t.Errorf("claimed from a paused queue: %d", n)
	}
	if err := job.ResumeQueue(ctx, pool, 1, "default"); err != nil {
		t.Fatal(err)
	}
	receive(t, "the job", ran)
	if err := job.PauseQueue(ctx, pool, 1, "nowhere"); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("pause of nothing: got %v, want ErrNotFound", err)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	_, err := worker.New(nil, worker.Config{Queues: map[string]int{"": 0}, Grace: -1, PollMin: time.Second, PollMax: time.Millisecond})
	for _, want := range []string{"name has", "slots", "grace", "poll interval"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("faults: %v, want %q among them", err, want)
		}
	}
}
