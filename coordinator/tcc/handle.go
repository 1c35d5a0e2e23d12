package tcc

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db"
)

// Raw is the job of a branch, its args not decoded.
type Raw = job.Job[json.RawMessage]

// Worker is what services register with how they confirm and cancel: a *worker.Worker.
type Worker interface {
	// HandleRaw registers the handler of a kind of job. What it returns is the job's result; nil is none.
	HandleRaw(kind string, h func(ctx context.Context, j *Raw) (json.RawMessage, error))
	// HandleRawTx registers one whose effects commit with the end of its job.
	HandleRawTx(kind string, h func(ctx context.Context, tx pgx.Tx, j *Raw) (json.RawMessage, error))
	// Pool is the pool that the worker works on.
	Pool() *pgxpool.Pool
}

// Call is what a handler is called with.
type Call[A any] struct {
	Transaction string     // the transaction's id
	Branch      string     // the branch's name within it: the kind's, a dot, and its number
	Op          barrier.Op // Confirm or Cancel
	Args        A          // those it was tried with
	Attempt     int        // from 1
	MaxAttempts int
	Headers     map[string]string // of the transaction, such as traceparent

	ns  int16
	n   int32
	job int64
}

// Barrier names what is asked for, for barrier.Do.
func (c *Call[A]) Barrier() barrier.Branch {
	return barrier.Branch{Namespace: c.ns, ID: c.Transaction, Branch: c.Branch, Op: c.Op, Job: c.job, Attempt: c.Attempt}
}

// Key is the idempotency key of what the handler does: "<transaction>/<branch>/confirm", or "/cancel". It is the same at every attempt. In it the transaction's id is percent-encoded where it holds what a segment
// of a path cannot.
func (c *Call[A]) Key() string {
	return url.PathEscape(c.Transaction) + "/" + c.Branch + "/" + string(c.Op)
}

// Handle registers how branches of the kind are confirmed and cancelled. Both may run more than once for a branch (a crash, a lost reply): Call.Key is the same at every attempt. cancel is called also for branches whose try failed, or
// never came, or comes later: it must find that out, and keep one that comes later from having an effect. Package barrier does all of that: use HandleTx, HandleOn or HandleMySQL where the effects are in a database.
//
// Neither may refuse: what try has reserved must be there. job.Snooze asks again later, without an attempt used; any other error, also job.Discard, a timeout or a panic is tried again, by the kind's Backoff, and when
// its attempts are used up the branch is stuck, and waits for an operator (Retry).
//
// It panics where a handler is missing, or the worker has one for the kind, or runs.
func Handle[A any](w Worker, k *Kind[A], confirm, cancel func(ctx context.Context, c *Call[A]) error) {
	k.register(confirm == nil || cancel == nil, func(op barrier.Op, kind string) {
		h := confirm
		if op == barrier.Cancel {
			h = cancel
		}
		w.HandleRaw(kind, func(ctx context.Context, j *Raw) (json.RawMessage, error) {
			c, err := k.call(j, op)
			if err == nil {
				err = sure(h(ctx, c))
			}
			if err == nil {
				err = c.done(ctx, w.Pool())
			}
			return nil, err
		})
	})
}

// HandleTx is Handle for effects in this database: what confirm or cancel write through tx, the barrier's row and the end of the branch and of its job commit together, or not at all. So they happen once, cancel only where try
// did, and a try (TryTx on this database) that comes after its cancel is refused. While a try is not committed yet it is asked again each second, and no attempt is used. tx is as in worker.HandleTx.
func HandleTx[A any](w Worker, k *Kind[A], confirm, cancel func(ctx context.Context, tx pgx.Tx, c *Call[A]) error) {
	k.register(confirm == nil || cancel == nil, func(op barrier.Op, kind string) {
		h := confirm
		if op == barrier.Cancel {
			h = cancel
		}
		w.HandleRawTx(kind, func(ctx context.Context, tx pgx.Tx, j *Raw) (json.RawMessage, error) {
			c, err := k.call(j, op)
			if err == nil {
				_, err = do(ctx, tx, c.Barrier(), func(ctx context.Context, tx pgx.Tx) error { return sure(h(ctx, tx, c)) })
				err = waiting(err)
			}
			if err == nil {
				err = c.done(ctx, tx)
			}
			return nil, err
		})
	})
}

// HandleOn is HandleTx for effects in another Postgres, which has Pawl's barrier: what confirm or cancel write through tx and the barrier's row commit together, and the end of the branch follows.
func HandleOn[A any](w Worker, k *Kind[A], pool *pgxpool.Pool, confirm, cancel func(ctx context.Context, tx pgx.Tx, c *Call[A]) error) {
	Handle(w, k, elsewhere(within(pool), confirm), elsewhere(within(pool), cancel))
}

// HandleMySQL is HandleOn for effects in a MariaDB or MySQL database, which has the barrier that barrier.SetupMySQL makes. tx is as in barrier.RunMySQL.
func HandleMySQL[A any](w Worker, k *Kind[A], on *sql.DB, confirm, cancel func(ctx context.Context, tx barrier.MySQLTx, c *Call[A]) error) {
	Handle(w, k, elsewhere(withinMySQL(on), confirm), elsewhere(withinMySQL(on), cancel))
}

// elsewhere is a handler whose effects are in a transaction of their own.
func elsewhere[A, T any](within inTx[T], h func(ctx context.Context, tx T, c *Call[A]) error) func(context.Context, *Call[A]) error {
	if h == nil {
		return nil
	}
	return func(ctx context.Context, c *Call[A]) error {
		return waiting(within(ctx, c.Barrier(), func(ctx context.Context, tx T) error { return sure(h(ctx, tx, c)) }))
	}
}

// register calls for each op with the kind of its jobs.
func (k *Kind[A]) register(missing bool, with func(op barrier.Op, kind string)) {
	if missing {
		panic(fmt.Sprintf("tcc: kind %q: both confirm and cancel are required", k.name))
	}
	for _, op := range []barrier.Op{barrier.Confirm, barrier.Cancel} {
		with(op, "tcc:"+k.name+"/"+string(op))
	}
}

// args are those of a branch's job.
type args struct {
	Namespace   int16           `json:"ns"`
	Transaction string          `json:"transaction"`
	N           int32           `json:"n"`
	Args        json.RawMessage `json:"args"`
}

func (k *Kind[A]) call(j *Raw, op barrier.Op) (*Call[A], error) {
	var a args
	if err := json.Unmarshal(j.Args, &a); err != nil {
		return nil, fmt.Errorf("args do not fit: %w", err)
	}
	c := &Call[A]{
		Transaction: a.Transaction, Branch: branchName(k.name, a.N), Op: op, Attempt: j.Attempt, MaxAttempts: j.MaxAttempts, Headers: j.Headers,
		ns: a.Namespace, n: a.N, job: j.ID,
	}
	if err := json.Unmarshal(a.Args, &c.Args); err != nil {
		return nil, fmt.Errorf("args do not fit %T: %w", c.Args, err)
	}
	return c, nil
}

// done notes that the branch is done. A late attempt may say so too: it is true.
func (c *Call[A]) done(ctx context.Context, on DB) error {
	return db.New(on).EndTCCBranch(ctx, db.EndTCCBranchParams{Ns: c.ns, ID: c.Transaction, N: c.n})
}

// sure makes an error one that is tried again, unless it says when.
func sure(err error) error {
	if e := (*job.Ending)(nil); errors.As(err, &e) && e.Outcome != job.Snoozed && e.Outcome != job.Failed {
		return fmt.Errorf("a branch cannot be given up: %v", err) //nolint:errorlint // it is no ending any more
	}
	return err
}

const inFlightAgain = time.Second // when a branch that another transaction is at work on is asked again

// waiting has a branch that another transaction is at work on asked again, without an attempt used.
func waiting(err error) error {
	if errors.Is(err, barrier.ErrInFlight) {
		return job.Snooze(inFlightAgain)
	}
	return err
}
