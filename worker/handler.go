package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db"
)

// None is the result of a handler that returns none.
type None = struct{}

// Raw is a job as middleware sees it: its args are not decoded.
type Raw = job.Job[json.RawMessage]

// Middleware wraps every handler of a worker: it calls next, or not, and may change what it returns.
type Middleware func(next func(context.Context, *Raw) error) func(context.Context, *Raw) error

// handler runs one attempt and says how it ended. ended: the ending is already in the database.
type handler func(ctx context.Context, r *run, t *task) (result json.RawMessage, ended bool, err error)

// Handle registers the handler of a kind. It may run more than once for a job (a crash, a lost reply); use HandleTx for effects in this database.
// What it returns ends the attempt: nil is success, job.Snooze, job.Discard, job.Cancel and job.RetryAfter say so themselves, another error or a panic is a
// failure. Registering a kind twice, or after Run, panics.
func Handle[A any](w *Worker, d *job.Definition[A], h func(ctx context.Context, j *job.Job[A]) error) {
	HandleResult(w, d, func(ctx context.Context, j *job.Job[A]) (None, error) { return None{}, h(ctx, j) })
}

// HandleResult is Handle for a handler with a result, which is kept for job.Await.
func HandleResult[A, R any](w *Worker, d *job.Definition[A], h func(ctx context.Context, j *job.Job[A]) (R, error)) {
	handle(w, d.Kind(), func(ctx context.Context, j *job.Job[A]) (json.RawMessage, error) {
		out, err := h(ctx, j)
		if err != nil {
			return nil, err
		}
		return encode(out)
	})
}

// HandleTx registers a handler whose effects happen exactly once: it gets a READ COMMITTED transaction, and what it writes there, the result it returns, what it
// enqueues through tx and the job's success commit together, or not at all. An attempt that was lost meanwhile (the process was frozen past its session's ttl)
// cannot commit. While the database is away and no transaction can begin, jobs are handed back with a delay and use no attempt.
// The handler must not commit or roll back tx itself. Bounds: the job's timeout, and Config.Grace idle in the transaction.
func HandleTx[A, R any](w *Worker, d *job.Definition[A], h func(ctx context.Context, tx pgx.Tx, j *job.Job[A]) (R, error)) {
	handleTx(w, d.Kind(), func(ctx context.Context, tx pgx.Tx, j *job.Job[A]) (json.RawMessage, error) {
		out, err := h(ctx, tx, j)
		if err != nil {
			return nil, err
		}
		return encode(out)
	})
}

// HandleRaw registers a handler of a kind whose args and result are JSON that it reads and writes itself; a nil result is none. Otherwise it is as Handle.
func (w *Worker) HandleRaw(kind string, h func(ctx context.Context, j *Raw) (json.RawMessage, error)) {
	handle(w, kind, h)
}

// HandleRawTx is HandleRaw with the transaction of HandleTx.
func (w *Worker) HandleRawTx(kind string, h func(ctx context.Context, tx pgx.Tx, j *Raw) (json.RawMessage, error)) {
	handleTx(w, kind, h)
}

func handle[A any](w *Worker, kind string, h func(ctx context.Context, j *job.Job[A]) (json.RawMessage, error)) {
	w.register(kind, func(ctx context.Context, _ *run, t *task) (result json.RawMessage, ended bool, err error) {
		err = wrap(ctx, w, t, func(ctx context.Context, j *job.Job[A]) (err error) {
			result, err = h(ctx, j)
			return err
		})
		return result, false, err
	})
}

func handleTx[A any](w *Worker, kind string, h func(ctx context.Context, tx pgx.Tx, j *job.Job[A]) (json.RawMessage, error)) {
	w.register(kind, func(ctx context.Context, r *run, t *task) (result json.RawMessage, ended bool, err error) {
		err = wrap(ctx, w, t, func(ctx context.Context, j *job.Job[A]) (err error) {
			ended, err = inTx(ctx, r, t, func(tx pgx.Tx) (json.RawMessage, error) { return h(ctx, tx, j) })
			return err
		})
		return nil, ended, err
	})
}

// wrap calls the handler, through the worker's middleware if it has some.
func wrap[A any](ctx context.Context, w *Worker, t *task, call func(context.Context, *job.Job[A]) error) error {
	headers, err := job.ParseHeaders(t.headers)
	if err != nil {
		return err
	}
	if len(w.middleware) == 0 {
		j := &job.Job[A]{
			ID: t.id, Kind: t.kind, Queue: t.queue.name, Attempt: int(t.attempt), MaxAttempts: int(t.maxAttempts), CreatedAt: t.createdAt, Headers: headers,
		}
		return decode(ctx, t.args, j, call)
	}
	next := func(ctx context.Context, raw *Raw) error {
		j := &job.Job[A]{
			ID: raw.ID, Kind: raw.Kind, Queue: raw.Queue, Attempt: raw.Attempt, MaxAttempts: raw.MaxAttempts, CreatedAt: raw.CreatedAt, Headers: raw.Headers,
		}
		return decode(ctx, raw.Args, j, call)
	}
	for i := len(w.middleware) - 1; i >= 0; i-- {
		next = w.middleware[i](next)
	}
	return next(ctx, &Raw{
		ID: t.id, Kind: t.kind, Queue: t.queue.name, Attempt: int(t.attempt), MaxAttempts: int(t.maxAttempts), CreatedAt: t.createdAt, Headers: headers,
		Args: t.args,
	})
}

func decode[A any](ctx context.Context, args json.RawMessage, j *job.Job[A], call func(context.Context, *job.Job[A]) error) error {
	if err := json.Unmarshal(args, &j.Args); err != nil {
		return fmt.Errorf("args do not fit %T: %w", j.Args, err)
	}
	return call(ctx, j)
}

func encode(out any) (json.RawMessage, error) {
	if _, ok := out.(None); ok {
		return nil, nil
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	return b, nil
}

// panicError is a panic of a handler.
type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// call runs the handler of a task and turns a panic into an error with its stack.
func (r *run) call(ctx context.Context, t *task) (result json.RawMessage, ended bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	return t.handler(ctx, r, t)
}

// errNotBegun says that a handler of HandleTx was not called, since its transaction could not begin: the database was away.
var errNotBegun = errors.New("worker: transaction not begun")

// inTx runs do and the ending of the attempt in one transaction. The ending and COMMIT go in one message, so that a frozen process holds no lock.
func inTx(ctx context.Context, r *run, t *task, do func(pgx.Tx) (json.RawMessage, error)) (ended bool, err error) {
	conn, err := r.w.pool.Acquire(ctx)
	if err != nil {
		return false, fmt.Errorf("%w: %w", errNotBegun, err)
	}
	defer conn.Release()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{BeginQuery: r.beginTx})
	if err != nil {
		return false, fmt.Errorf("%w: %w", errNotBegun, err)
	}
	rollback := func() {
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), r.w.conf.Grace)
		defer stop()
		_ = tx.Rollback(ctx)
	}
	done := false
	defer func() {
		if !done { // also on a panic of the handler
			rollback()
		}
	}()
	result, err := do(db.Lend(tx))
	if err != nil {
		return false, err
	}
	r.w.fail("before-commit", t)
	var queues, over []string
	b := &pgx.Batch{}
	b.Queue("SELECT queues, ended FROM pawl.finish_tx($1::smallint, $2::bigint, $3::bigint, $4::bigint, $5::int, $6::json)",
		r.w.conf.Namespace, r.session.ID(), t.claim.id, t.claim.nonce, t.ordinal, result).QueryRow(func(row pgx.Row) error { return row.Scan(&queues, &over) })
	b.Queue("COMMIT")
	err = conn.SendBatch(ctx, b).Close()
	r.w.fail("after-commit", t)
	if db.Code(err) == db.CodeLost {
		return true, errLost
	}
	if err == nil {
		done = true
		r.advanced(queues, over)
	}
	return err == nil, err
}

// handlerOf is the handler of a kind: a step of a saga is served by that for all versions where none is registered for its own.
func (w *Worker) handlerOf(kind string) handler {
	h := w.handlers[kind]
	if h == nil {
		h = w.handlers[saga.AnyVersion(kind)]
	}
	return h
}
