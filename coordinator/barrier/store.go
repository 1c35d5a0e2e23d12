package barrier

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
)

const (
	enterSQL = `SELECT what::text, result::json, began::timestamptz
FROM pawl.barrier_enter($1::smallint, $2::text, $3::text, $4::text, $5::bigint, $6::int, $7::int, $8::int)`
	leaveSQL    = "SELECT pawl.barrier_leave($1::smallint, $2::text, $3::text, $4::text, $5::boolean, $6::json, $7::timestamptz)"
	setSQL      = "SAVEPOINT pawl_barrier"
	rollbackSQL = "ROLLBACK TO SAVEPOINT pawl_barrier"
	releaseSQL  = "RELEASE SAVEPOINT pawl_barrier"
)

// state is what a branch is to a call, as pawl.barrier_enter and mysqlStore.look say.
type state string

const (
	stateRun       state = "run"
	stateNull      state = "null" // nothing to compensate
	stateDuplicate state = "duplicate"
	stateRefused   state = "refused"
	stateLate      state = "late" // compensated before it was called
)

// entry is a branch that was taken.
type entry struct {
	what   state
	result json.RawMessage // of a duplicate or a refusal
	began  time.Time       // the transaction; Postgres only
}

// store keeps what was done of branches, in the database of the transaction that does it.
type store interface {
	// enter takes the branch for the transaction and sets a savepoint, where there is work to run.
	enter(ctx context.Context, b Branch) (entry, error)
	// leave records what became of it. Of a refusal it undoes what was written since enter.
	leave(ctx context.Context, b Branch, e entry, out Result) error
}

// postgres is the store of a transaction of Postgres.
type postgres struct{ tx pgx.Tx }

func (p postgres) enter(ctx context.Context, b Branch) (e entry, err error) {
	batch := &pgx.Batch{}
	batch.Queue(enterSQL, b.enter(ctx, 0)...).QueryRow(func(row pgx.Row) error { return row.Scan(e.into()...) })
	batch.Queue(setSQL)
	if err := p.tx.SendBatch(ctx, batch).Close(); err != nil {
		return entry{}, b.wrap("enter", err)
	}
	return e, nil
}

func (p postgres) leave(ctx context.Context, b Branch, e entry, out Result) error {
	args, err := b.leave(out, e)
	if err != nil {
		return err
	}
	batch := &pgx.Batch{}
	if out.Outcome == Refused {
		batch.Queue(rollbackSQL)
	}
	batch.Queue(leaveSQL, args...)
	batch.Queue(releaseSQL)
	if err := p.tx.SendBatch(ctx, batch).Close(); err != nil {
		return b.wrap("leave", err)
	}
	return nil
}

func (e *entry) into() []any { return []any{&e.what, &e.result, &e.began} }

// waitMax is how long a call waits for another transaction at work on its branch.
func waitMax(ctx context.Context) time.Duration {
	wait := WaitMax
	if deadline, ok := ctx.Deadline(); ok { // to hear that the branch is taken before the context ends, which would cost the connection
		wait = max(min(wait, time.Until(deadline)*3/4), time.Millisecond)
	}
	return wait
}

// namespace is the number of the branch's namespace.
func (b Branch) namespace() int16 { return max(b.Namespace, 1) }

// enter gives the arguments of enterSQL. idle bounds how long the transaction may stand idle; 0 leaves that as it is.
func (b Branch) enter(ctx context.Context, idle time.Duration) []any {
	return []any{b.namespace(), b.ID, b.Branch, b.Op, b.Job, b.Attempt, waitMax(ctx).Milliseconds(), idle.Milliseconds()}
}

// leave gives the arguments of leaveSQL.
func (b Branch) leave(out Result, e entry) ([]any, error) {
	value, err := b.stored(out)
	return []any{b.namespace(), b.ID, b.Branch, b.Op, out.Outcome == Refused, value, e.began}, err
}

// stored is what is stored as the result.
func (b Branch) stored(out Result) (json.RawMessage, error) {
	if out.Outcome == Refused {
		return json.Marshal(refused{out.Reason, b.Job, b.Attempt})
	}
	return out.Value, nil
}

// refused is the stored result of a refusal.
type refused struct {
	Reason  string `json:"reason"`
	Job     int64  `json:"job"`
	Attempt int    `json:"attempt"`
}

// wrap names errors of the database. step: enter or leave.
func (b Branch) wrap(step string, err error) error {
	switch code := db.Code(err); {
	case code == "55P03" && step == "enter":
		return fmt.Errorf("%s: %w", b, ErrInFlight)
	case code == db.CodeMisuse && step == "leave": // see pawl.idempotency_intact
		return fmt.Errorf("%s: %w", b, ErrEnded)
	case code == "22023", code == "22021", code == db.CodeMisuse:
		return fmt.Errorf("%s: %w: %s", b, ErrInvalid, db.Message(err))
	case db.IsUnmigrated(err):
		return fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
	}
	return fmt.Errorf("%s %s: %w", step, b, err)
}
