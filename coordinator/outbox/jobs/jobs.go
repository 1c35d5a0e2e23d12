// Package jobs is a sink of the outbox that enqueues a job for each event, in the transaction that moves the subscription's position: exactly one job for each event, whatever
// crashes. It lets a worker, with its retries, timeouts and concurrency, do what an event asks for.
//
// Jobs of one key are enqueued in the order of its events; workers run several at once all the same.
//
//	Situation                            | Error                     | What to do
//	args says that it wants no job       | ErrSkip                   | nothing; the event counts as delivered
//	args fails, or a job is refused      | its error                 | the event is put aside with those of its key, and tried again: see outbox
package jobs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/outbox"
)

// ErrSkip is what args returns for an event that is to have no job.
var ErrSkip = errors.New("jobs: no job for this event")

// Sink makes a sink that enqueues a job of a kind for each event, with the args that args makes of it. The job's headers are the event's, such as the context of a trace. opts
// override the definition's. After each commit it hints the workers of the queue.
func Sink[A any](kind *job.Definition[A], args func(outbox.Event) (A, error), opts ...job.Option) outbox.TxSink {
	return &sink[A]{kind, args, opts}
}

type sink[A any] struct {
	kind *job.Definition[A]
	args func(outbox.Event) (A, error)
	opts []job.Option
}

// SendTx enqueues the jobs, as many at once as have the same headers.
func (s *sink[A]) SendTx(ctx context.Context, tx pgx.Tx, events []outbox.Event) error {
	for len(events) > 0 {
		n := 1
		for n < len(events) && maps.Equal(events[n].Headers, events[0].Headers) {
			n++
		}
		args := make([]A, 0, n)
		for _, e := range events[:n] {
			a, err := s.args(e)
			if errors.Is(err, ErrSkip) {
				continue
			}
			if err != nil {
				return fmt.Errorf("args of event %s: %w", e.ID, err)
			}
			args = append(args, a)
		}
		opts := slices.Clone(s.opts)
		for name, value := range events[0].Headers {
			opts = append(opts, job.Header(name, value))
		}
		if _, err := s.kind.EnqueueMany(ctx, tx, slices.Values(args), opts...); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

// Committed hints the workers.
func (s *sink[A]) Committed(ctx context.Context, pool *pgxpool.Pool) {
	_ = s.kind.Hint(ctx, pool) // hints are hints
}
