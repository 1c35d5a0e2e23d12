package worker_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

// A job whose transaction cannot begin has not been tried: its one attempt is still there when the database is back.
func TestHandleTx_databaseAway(t *testing.T) {
	t.Parallel()
	healthy := dbtest.New(t)
	sweep(t, healthy)

	var away atomic.Bool
	conf := healthy.Config()
	dial := conf.ConnConfig.DialFunc
	conf.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if away.Load() {
			return nil, errors.New("the database is away")
		}
		return dial(ctx, network, addr)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)

	charge := job.Define[greeting]("charge")
	w := newWorker(t, pool, quick())
	first := true
	w.Use(func(next func(context.Context, *worker.Raw) error) func(context.Context, *worker.Raw) error {
		return func(ctx context.Context, j *worker.Raw) error {
			if first {
				first = false
				away.Store(true)
				pool.Reset() // ends the connections that idle
				defer away.Store(false)
			}
			return next(ctx, j)
		}
	})
	called := make(chan int, 10)
	worker.HandleTx(w, charge, func(_ context.Context, _ pgx.Tx, j *job.Job[greeting]) (worker.None, error) {
		called <- j.Attempt
		return worker.None{}, nil
	})
	id := enqueue(t, healthy, charge, greeting{"Ada"}, job.MaxAttempts(1))
	run(t, w)
	if got := receive(t, "call of the handler", called); got != 1 {
		t.Errorf("the handler was called first at attempt %d, want 1", got)
	}
	s := untilState(t, healthy, id, job.StateSucceeded)
	if len(s.Attempts) != 2 || s.Attempts[0].Outcome != job.Returned || s.Attempts[1].Number != 1 {
		t.Errorf("got attempts %+v, want one handed back and one more at the same number", s.Attempts)
	}
}
