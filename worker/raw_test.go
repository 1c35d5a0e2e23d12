package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

func TestHandleRaw(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "CREATE TABLE effect (args text)")
	plain, tx := job.Define[greeting]("plain"), job.Define[greeting]("tx", job.MaxAttempts(2), job.Backoff(0, 0))
	w := newWorker(t, pool, quick())
	w.HandleRaw("plain", func(_ context.Context, j *worker.Raw) (json.RawMessage, error) {
		if strings.Contains(string(j.Args), "nobody") {
			return nil, nil
		}
		return j.Args, nil
	})
	w.HandleRawTx("tx", func(ctx context.Context, tx pgx.Tx, j *worker.Raw) (json.RawMessage, error) {
		if _, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1)", string(j.Args)); err != nil {
			return nil, err
		}
		if j.Attempt == 1 {
			return j.Args, errTest
		}
		return json.RawMessage("42"), nil
	})
	run(t, w)
	for _, c := range []struct {
		id   int64
		want string
	}{
		{enqueue(t, pool, plain, greeting{"Ada"}), `{"name":"Ada"}`},
		{enqueue(t, pool, plain, greeting{"nobody"}), ``},
		{enqueue(t, pool, tx, greeting{"Ada"}), `42`},
	} {
		if s := untilState(t, pool, c.id, job.StateSucceeded); string(s.Result) != c.want {
			t.Errorf("%s: got %s, want %s", s.Kind, s.Result, c.want)
		}
	}
	if n := count(t, pool, `SELECT count(*) FROM effect WHERE args = '{"name":"Ada"}'`); n != 1 {
		t.Errorf("effects: got %d, want 1", n)
	}
}

// A refusal is told apart from another end without success, in the receipt.
func TestRefused(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := job.Define[greeting]("d")
	w := newWorker(t, pool, quick())
	worker.Handle(w, d, func(_ context.Context, j *job.Job[greeting]) error {
		if j.Args.Name == "refused" {
			return fmt.Errorf("so: %w", saga.Fail(errTest))
		}
		return job.Discard(errTest)
	})
	run(t, w)
	for name, want := range map[string]string{"refused": `{"error":"no luck","refused":true}`, "discarded": `{"error":"no luck"}`} {
		s := untilState(t, pool, enqueue(t, pool, d, greeting{name}), job.StateDiscarded)
		if got := string(s.Attempts[0].Detail); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

// idles gives a channel that tells when the worker has looked for work and waits to look again.
func idles(w *worker.Worker) <-chan string {
	ch := make(chan string, 1000)
	worker.SetFailpoint(w, func(name string, _ int64) {
		if name == "before-sleep" {
			ch <- name
		}
	})
	return ch
}

// A worker that nothing else tells of work: no hints, and polls far apart.
func TestWake(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := job.Define[greeting]("d")
	conf := quick()
	conf.PollOnly, conf.PollMin, conf.PollMax = true, time.Hour, time.Hour
	w := newWorker(t, pool, conf)
	ran := make(chan string, 10)
	worker.Handle(w, d, func(_ context.Context, j *job.Job[greeting]) error {
		ran <- j.Args.Name
		return nil
	})
	w.Wake("default") // does not run yet
	idle := idles(w)
	run(t, w)
	receive(t, "an idle worker", idle)
	enqueue(t, pool, d, greeting{"Ada"})
	w.Wake("another")
	w.Wake("default")
	receive(t, "the job", ran)
	receive(t, "an idle worker", idle)
	w.Wake("another")
	select {
	case <-idle:
		t.Error("woken for another's queue")
	case <-time.After(20 * time.Millisecond):
	}
}

// The steps of a saga that one worker serves follow each other without a poll or a hint, and who awaits it hears of the end.
func TestOnSagas(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[order]("awake")
	a := saga.Step[note](d, "a", saga.ReadOnly())
	b := saga.Step[note](d, "b", saga.After(a), saga.Queue("second"), saga.ReadOnly())
	registered(t, pool, d)
	conf := worker.Config{Queues: map[string]int{"default": 1, "second": 1}, PollOnly: true, PollMin: time.Hour, PollMax: time.Hour}
	w := newWorker(t, pool, conf)
	ended := make(chan string, 10)
	w.OnSagas(func(ids []string) {
		for _, id := range ids {
			ended <- id
		}
	})
	saga.Handle(w, a, func(context.Context, *saga.Call[order]) (note, error) { return note{}, nil }, nil)
	saga.HandleTx(w, b, func(_ context.Context, _ pgx.Tx, c *saga.Call[order]) (note, error) {
		if c.Input.Item == "bad" {
			return note{}, saga.Fail(errTest)
		}
		return note{}, nil
	}, nil)
	idle := idles(w)
	run(t, w)
	receive(t, "an idle worker", idle)
	for _, item := range []string{"good", "bad"} {
		id := start(t, pool, d, order{Item: item})
		if got := receive(t, "the end", ended); got != id {
			t.Errorf("got %s, want %s", got, id)
		}
		_, err := await(t, pool, d, id)
		if want := map[string]error{"bad": saga.ErrCompensated}[item]; !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", item, err, want)
		}
	}
}

// A step whose queue is another worker's is hinted at.
func TestHint_otherQueue(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	d := saga.Define[order]("hint")
	a := saga.Step[note](d, "a", saga.ReadOnly())
	b := saga.Step[note](d, "b", saga.After(a), saga.Queue("second"), saga.ReadOnly())
	registered(t, pool, d)
	ran := make(chan string, 10)
	for _, s := range []*saga.StepOf[order, note]{a, b} {
		conf := worker.Config{Queues: map[string]int{"default": 1}, PollMin: time.Hour, PollMax: time.Hour}
		if s == b {
			conf.Queues = map[string]int{"second": 1}
		}
		w := newWorker(t, pool, conf)
		saga.Handle(w, s, func(_ context.Context, c *saga.Call[order]) (note, error) {
			ran <- c.Step
			return note{}, nil
		}, nil)
		idle := idles(w)
		run(t, w)
		receive(t, "an idle worker", idle)
	}
	elsewhere := saga.Define[order]("hint") // a process without a worker
	saga.Step[note](elsewhere, "a", saga.ReadOnly())
	start(t, pool, elsewhere, order{})
	for _, want := range []string{"a", "b"} {
		if got := receive(t, want, ran); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
