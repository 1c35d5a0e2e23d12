package tcc

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db"
)

const (
	// TimeoutDefault is how long a transaction has until it must be confirmed, where Timeout does not say.
	TimeoutDefault = 30 * time.Second
	// TimeoutMax is the longest it can have.
	TimeoutMax = 10 * 24 * time.Hour
	// BranchesMax is how many branches a transaction can have.
	BranchesMax = 100
	// IDCharsMax is how long a transaction's id may be.
	IDCharsMax = 256
	// Keep is how long transactions are kept after they are done: longer than barriers know of their branches, so that an id that is free again means nothing to them.
	Keep = barrier.Keep + TimeoutMax

	decisionsMax = 3 // how often a decision is asked for whose reply is lost
)

// BeginOption is a property of one transaction.
type BeginOption func(*beginOptions) error

type beginOptions struct {
	namespace int16
	id        string
	timeout   time.Duration
	header    map[string]string
}

// ID is the transaction's, 1 to IDCharsMax characters, unique in its namespace, and among all coordinators that share participants, which know it by nothing else: what happens once under it however often it is begun. Default:
// a new UUID.
func ID(id string) BeginOption {
	return func(o *beginOptions) error {
		o.id = id
		if n := utf8.RuneCountInString(id); n < 1 || n > IDCharsMax || !utf8.ValidString(id) {
			return fmt.Errorf("an id has 1 to %d characters, not %d", IDCharsMax, n)
		}
		return nil
	}
}

// Timeout is how long the transaction has until it must be confirmed, by the database's clock, from 1 ms to TimeoutMax. Default: TimeoutDefault.
func Timeout(d time.Duration) BeginOption {
	return func(o *beginOptions) error {
		o.timeout = d
		if d < time.Millisecond || d > TimeoutMax {
			return fmt.Errorf("a timeout of %s is outside 1 ms to %s", d, TimeoutMax)
		}
		return nil
	}
}

// Namespace sets the number of the namespace, in the coordinator's database and in those of participants. Default: 1, "default".
func Namespace(ns int16) BeginOption {
	return func(o *beginOptions) error {
		o.namespace = ns
		return nil
	}
}

// Header adds a header, such as traceparent, that handlers find in Call.Headers and HTTP participants among theirs.
func Header(key, value string) BeginOption {
	return func(o *beginOptions) error {
		if o.header == nil {
			o.header = map[string]string{}
		}
		o.header[key] = value
		return nil
	}
}

// Transaction is a global transaction in the process that began it. It is safe for concurrent use: branches may be tried in parallel. One that is left alone is cancelled at its deadline.
type Transaction struct {
	pool   *pgxpool.Pool
	ns     int16
	id     string
	header map[string]string

	mu    sync.Mutex
	tried []int32 // branches whose try has succeeded
}

// Begin begins a transaction. The error is ErrExists if there is one of the ID: it was begun before, and Get tells what became of it; ErrInvalid, ErrSchema, or the database's.
func Begin(ctx context.Context, pool *pgxpool.Pool, opts ...BeginOption) (*Transaction, error) {
	o := beginOptions{namespace: 1, timeout: TimeoutDefault}
	var faults []error
	for _, opt := range opts {
		faults = append(faults, opt(&o))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("begin: %w: %w", ErrInvalid, err)
	}
	if o.id == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("begin: %w", err)
		}
		o.id = id.String()
	}
	var headers []byte
	if o.header != nil {
		var err error
		if headers, err = json.Marshal(o.header); err != nil {
			return nil, fmt.Errorf("begin %s: %w", o.id, err)
		}
	}
	if err := db.New(pool).BeginTCC(ctx, db.BeginTCCParams{Ns: o.namespace, ID: o.id, TimeoutMs: o.timeout.Milliseconds(), Headers: headers}); err != nil {
		return nil, fmt.Errorf("begin %s: %w", o.id, wrap(err))
	}
	return &Transaction{pool: pool, ns: o.namespace, id: o.id, header: o.header}, nil
}

// ID is the transaction's.
func (t *Transaction) ID() string { return t.id }

// Try registers a branch of the kind, and commits that, and then calls try, which is to reserve what confirming will use up, under the name b: in a database with barrier.Do, or by a call. While try runs ctx
// ends at the transaction's deadline at the latest.
//
// What try returns is wrapped. After any error of it, and after a crash, the branch counts as one that may have been tried, or may yet be: the transaction can only be cancelled, this branch with the others. So try may try
// again itself, with the same b, but another Try is another branch. Before try is called the error is ErrCancelled or ErrConfirmed if the transaction is decided, ErrExpired if its deadline has passed, ErrBusy, ErrTooMany, ErrInvalid,
// ErrPayloadTooLarge, ErrMoved, or the database's; if its reply was lost the branch may be registered.
func (k *Kind[A]) Try(ctx context.Context, t *Transaction, args A, try func(ctx context.Context, b barrier.Branch) error) error {
	body, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("try %s: %w: args: %w", k.name, ErrInvalid, err)
	}
	row, err := db.New(t.pool).RegisterTCCBranch(ctx, db.RegisterTCCBranchParams{
		Ns: t.ns, ID: t.id, Kind: k.name, Queue: k.opts.queue, Priority: int16(k.opts.priority), MaxAttempts: int16(k.opts.maxAttempts), TimeoutMs: k.opts.timeoutMs, BackoffMs: k.opts.backoffMs,
		BackoffMsMax: k.opts.backoffMsMax, Args: body, BranchesMax: BranchesMax,
	})
	if err != nil {
		return fmt.Errorf("try %s of %s: %w", k.name, t.id, wrap(err))
	}
	ctx, stop := context.WithTimeoutCause(ctx, time.Duration(row.LeftMs*float64(time.Millisecond)), ErrExpired)
	defer stop()
	if err := try(ctx, barrier.Branch{Namespace: t.ns, ID: t.id, Branch: branchName(k.name, row.N), Op: barrier.Try}); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return fmt.Errorf("try %s of %s: %w", k.name, t.id, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tried = append(t.tried, row.N)
	return nil
}

// TryTx is Try in a transaction of its own in a participant's Postgres, which has Pawl's barrier: what try writes through tx and the barrier's row commit together. try had better be short and not call other services. It refuses
// with barrier.Refuse, and the error is then ErrRefused.
func (k *Kind[A]) TryTx(ctx context.Context, t *Transaction, pool *pgxpool.Pool, args A, try func(ctx context.Context, tx pgx.Tx) error) error {
	return k.Try(ctx, t, args, func(ctx context.Context, b barrier.Branch) error { return within(pool)(ctx, b, try) })
}

// TryMySQL is TryTx for a participant whose database is MariaDB or MySQL, with the barrier that barrier.SetupMySQL makes. tx is as in barrier.RunMySQL.
func (k *Kind[A]) TryMySQL(ctx context.Context, t *Transaction, on *sql.DB, args A, try func(ctx context.Context, tx barrier.MySQLTx) error) error {
	return k.Try(ctx, t, args, func(ctx context.Context, b barrier.Branch) error { return withinMySQL(on)(ctx, b, try) })
}

// inTx does what is asked of a branch in a transaction of its own. A refusal is ErrRefused.
type inTx[T any] func(ctx context.Context, b barrier.Branch, work func(ctx context.Context, tx T) error) error

func within(pool *pgxpool.Pool) inTx[pgx.Tx] {
	return func(ctx context.Context, b barrier.Branch, work func(ctx context.Context, tx pgx.Tx) error) (err error) {
		var out barrier.Result
		err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
			out, err = do(ctx, tx, b, work)
			return err
		})
		return refused(out, err)
	}
}

func withinMySQL(on *sql.DB) inTx[barrier.MySQLTx] {
	return func(ctx context.Context, b barrier.Branch, work func(ctx context.Context, tx barrier.MySQLTx) error) error {
		return refused(barrier.RunMySQL(ctx, on, b, func(ctx context.Context, tx barrier.MySQLTx) (json.RawMessage, error) { return nil, work(ctx, tx) }))
	}
}

// refused makes an error of a refusal.
func refused(out barrier.Result, err error) error {
	if err == nil && out.Outcome == barrier.Refused {
		return fmt.Errorf("%w: %s", ErrRefused, out.Reason)
	}
	return err
}

func do(ctx context.Context, tx pgx.Tx, b barrier.Branch, work func(ctx context.Context, tx pgx.Tx) error) (barrier.Result, error) {
	lent := db.Lend(tx)
	return barrier.Do(ctx, tx, b, func(ctx context.Context) (json.RawMessage, error) { return nil, work(ctx, lent) })
}

// Confirm decides that all branches are confirmed, and commits that with the jobs that do it; Await waits for them. All branches must have been tried with success by this value's Try, and the deadline must lie ahead. Confirming
// what is confirmed is no error, and does nothing.
//
// The error is ErrCancelled, ErrExpired (it will be cancelled), ErrUntried (Cancel it), or ErrBusy: it is not confirmed. ErrUnknown if replies were lost: call it again, or Cancel, which tells.
func (t *Transaction) Confirm(ctx context.Context) error {
	return t.decide(ctx, t.pool, true, "")
}

// ConfirmTx is Confirm in the caller's transaction, READ COMMITTED and in the same database: the decision is made if that commits, together with what else it wrote. Until it ends nobody else can decide: a deadline that
// passes meanwhile does not count. It had better be the last statement. After an error the caller's transaction is aborted.
func (t *Transaction) ConfirmTx(ctx context.Context, tx pgx.Tx) error {
	return t.decide(ctx, tx, true, "")
}

// Cancel decides that all branches are cancelled, those too whose try has failed or not answered, and commits that with the jobs that do it. Cancelling what is cancelled is no error, and does nothing. The error is ErrConfirmed
// if it is confirmed, or ErrUnknown as for Confirm.
func (t *Transaction) Cancel(ctx context.Context) error {
	return t.decide(ctx, t.pool, false, "its initiator cancelled it")
}

func (t *Transaction) decide(ctx context.Context, on DB, confirm bool, reason string) error {
	t.mu.Lock()
	tried := slices.Clone(t.tried)
	t.mu.Unlock()
	if tried == nil {
		tried = []int32{}
	}
	return decide(ctx, on, db.DecideTCCParams{Ns: t.ns, ID: t.id, Confirm: confirm, Tried: tried, DecidedBy: "initiator", Reason: reason})
}

// decide asks again where a reply was lost: that is how one learns what became of it.
func decide(ctx context.Context, on DB, p db.DecideTCCParams) error {
	what := "cancel"
	if p.Confirm {
		what = "confirm"
	}
	_, again := on.(*pgxpool.Pool)
	for i := 1; ; i++ {
		queues, err := db.New(on).DecideTCC(ctx, p)
		if err == nil {
			hintAll(ctx, on, p.Ns, queues)
			return nil
		}
		if !lost(err) || !again {
			return fmt.Errorf("%s %s: %w", what, p.ID, wrap(err))
		}
		if i == decisionsMax || ctx.Err() != nil {
			return fmt.Errorf("%s %s: %w: %w", what, p.ID, ErrUnknown, err)
		}
	}
}

// lost tells errors after which nobody knows whether a statement was committed: Postgres did not answer, or was stopped.
func lost(err error) bool {
	code := db.Code(err)
	return code == "" || code[:2] == "08" || code[:3] == "57P"
}

// hintAll tells workers of queues that got work, unless on is a transaction: that is not committed.
func hintAll(ctx context.Context, on DB, ns int16, queues []string) {
	if _, ok := on.(*pgxpool.Pool); !ok {
		return
	}
	for _, q := range queues {
		_ = job.Hint(ctx, on, ns, q) // hints are hints
	}
}

func branchName(kind string, n int32) string { return fmt.Sprintf("%s.%d", kind, n) }
