// Package worker claims jobs and runs their handlers.
//
// A worker has one fetcher, which claims ahead of the free slots; slots, which run handlers; and one completer, which ends the
// attempts of all slots together: whatever has gathered while the last flush ran goes in the next, so commits per job fall as load rises.
//
//	line ──claim──▶ buffer ──▶ slots ──▶ completer ──receipts──▶
//	        ▲  fetcher, one claim at a time        one flush at a time
//
// Everything hangs on the session. When that is lost, the contexts of all handlers are cancelled with cause session.ErrLost, nothing they still return counts,
// and the worker goes on with a new session.
//
//	Situation                                        | Error                                  | What to do
//	bad configuration                                | New's error lists all faults           | mend it
//	schema missing                                   | session.ErrSchema from Run             | run "pawl migrate up"
//	the session was lost                             | session.ErrLost, cause in the context  | stop; nothing more counts
//	the job was asked to cancel                      | job.ErrCancelled, cause in the context | stop and return an error
//	the attempt's time is over                       | job.ErrTimeout, cause in the context   | stop and return an error
//	the worker stops and the drain time is over      | ErrStopping, cause in the context      | stop; the job is handed back unharmed
package worker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
)

// ErrStopping is the cause in the context of a handler that still runs when the worker's drain time is over.
var ErrStopping = errors.New("worker: stopping")

// errLost says that an attempt was ended by others; what it did in its transaction is undone.
var errLost = errors.New("worker: the attempt was lost")

// Worker claims and runs jobs. Register handlers first, then call Run. Stats and Wake are safe for concurrent use, the rest is not.
type Worker struct {
	pool       *pgxpool.Pool
	conf       Config
	handlers   map[string]handler
	middleware []Middleware
	started    atomic.Bool
	stats      counters
	failpoint  func(name string, t *task)
	onSagas    []func(ended []string)
	current    atomic.Pointer[run] // nil: it does not run
}

// New makes a worker on a pool. The pool needs a few connections (fetcher, completer) and one for each HandleTx that runs at a time. The error
// lists every fault of conf.
func New(pool *pgxpool.Pool, conf Config) (*Worker, error) {
	conf = conf.withDefaults()
	if err := conf.validate(); err != nil {
		return nil, err
	}
	return &Worker{pool: pool, conf: conf, handlers: map[string]handler{}}, nil
}

// Use adds middleware: the first added is the outermost.
func (w *Worker) Use(m ...Middleware) {
	if w.started.Load() {
		panic("worker: Use after Run")
	}
	w.middleware = append(w.middleware, m...)
}

// Pool is the pool that the worker works on.
func (w *Worker) Pool() *pgxpool.Pool { return w.pool }

// Wake says that jobs were enqueued in this process, and committed: the worker looks at once if the queue is one of its own, rather than at its next poll. It is safe for concurrent use.
func (w *Worker) Wake(queue string) {
	if r := w.current.Load(); r != nil {
		r.tell(r.byName[queue])
	}
}

// OnSagas registers a function that is called with the ids of sagas that ended in a transaction of this worker, after its commit. It must not block, nor call the worker.
func (w *Worker) OnSagas(f func(ended []string)) {
	if w.started.Load() {
		panic("worker: OnSagas after Run")
	}
	w.onSagas = append(w.onSagas, f)
}

func (w *Worker) register(kind string, h handler) {
	if w.started.Load() {
		panic("worker: handler registered after Run")
	}
	if w.handlers[kind] != nil {
		panic(fmt.Sprintf("worker: kind %q has a handler already", kind))
	}
	w.handlers[kind] = h
}

func (w *Worker) fail(point string, t *task) {
	if w.failpoint != nil {
		w.failpoint(point, t)
	}
}

// Run works until ctx is cancelled, then drains: it claims nothing more, lets running jobs finish within Config.Drain, hands the rest back unharmed, ends its
// session and returns nil. It goes on through lost connections and lost sessions; an error means that it could not start. A worker runs once.
func (w *Worker) Run(ctx context.Context) error {
	if w.started.Swap(true) {
		return errors.New("worker: Run was called before")
	}
	first := true
	var complained time.Time
	for ctx.Err() == nil {
		err := w.runSession(ctx)
		switch {
		case err == nil:
		case first || errors.Is(err, session.ErrSchema):
			return err
		default:
			if time.Since(complained) > complainEvery {
				complained = time.Now()
				w.conf.Logger.Warn("worker could not start a session, trying again", "err", err)
			}
			pause(ctx, w.conf.TTL/10)
		}
		first = false
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
