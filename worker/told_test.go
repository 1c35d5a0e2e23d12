package worker_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

// A queue of which the worker is told without end, and whose jobs it then claims without a look, starves neither a line of another queue nor an urgent one of its own.
func TestWake_starvesNobody(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	busy := job.Define[greeting]("busy")
	quiet := job.Define[greeting]("quiet", job.Queue("quiet"))
	urgent := job.Define[greeting]("urgent", job.Priority(1))
	conf := worker.Config{Queues: map[string]int{"default": 100, "quiet": 1}, PollOnly: true}
	w := newWorker(t, pool, conf)
	others := make(chan string, 2)
	var done atomic.Int64
	begun := make(chan string, 1)
	worker.Handle(w, busy, func(ctx context.Context, _ *job.Job[greeting]) error {
		if done.Add(1) == 100 {
			begun <- "busy"
		}
		_, err := busy.Enqueue(ctx, pool, greeting{}) // its queue never runs dry
		w.Wake("default")
		return err
	})
	for _, d := range []*job.Definition[greeting]{quiet, urgent} {
		worker.Handle(w, d, func(context.Context, *job.Job[greeting]) error {
			others <- d.Kind()
			return nil
		})
	}
	for range 50 {
		enqueue(t, pool, busy, greeting{})
	}
	run(t, w)
	receive(t, "busy jobs", begun)
	enqueue(t, pool, quiet, greeting{})
	enqueue(t, pool, urgent, greeting{})
	got := []string{receive(t, "another job", others), receive(t, "yet another", others)}
	if got[0] == got[1] {
		t.Errorf("got %v, want one of each", got)
	}
}
