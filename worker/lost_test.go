package worker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

// A handler that stops since its session was lost has not failed. The process finds out before Postgres does, so its word would still count.
func TestHandle_sessionLost(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	greet := job.Define[greeting]("greet")
	conf := quick()
	conf.TTL = time.Second
	w := newWorker(t, pool, conf)
	started, stopped := make(chan int, 2), make(chan error, 1)
	worker.Handle(w, greet, func(ctx context.Context, j *job.Job[greeting]) error {
		started <- j.Attempt
		if j.Attempt > 1 {
			return nil
		}
		<-ctx.Done()
		stopped <- context.Cause(ctx)
		return ctx.Err()
	})
	id := enqueue(t, pool, greet, greeting{"Ada"})
	stop := run(t, w)
	receive(t, "first attempt", started)
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "SELECT FROM pawl.session FOR UPDATE"); err != nil { // the heartbeat does not get through
			return err
		}
		if cause := receive(t, "end of the session", stopped); !errors.Is(cause, session.ErrLost) {
			t.Errorf("got cause %v, want session.ErrLost", cause)
		}
		until(t, "new session", func() bool { return count(t, pool, "SELECT count(*) FROM pawl.session") > 1 })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if s := story(t, pool, id); s.State != job.StateRunning {
		t.Errorf("the job is %s before any sweep, want running", s.State)
	}
	sweep(t, pool)
	s := untilState(t, pool, id, job.StateSucceeded)
	if len(s.Attempts) != 2 || s.Attempts[0].Outcome != job.Lost {
		t.Errorf("got attempts %+v, want a lost one and another", s.Attempts)
	}
	stop()
}
