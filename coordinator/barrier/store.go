package barrier

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

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

// state is what a branch is to a call, as pawl.barrier_enter says.
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
	began  time.Time       // the transaction
}

func (e *entry) into() []any { return []any{&e.what, &e.result, &e.began} }

// enter gives the arguments of enterSQL. idle bounds how long the transaction may stand idle; 0 leaves that as it is.
func (b Branch) enter(ctx context.Context, idle time.Duration) []any {
	wait := WaitMax
	if deadline, ok := ctx.Deadline(); ok { // to hear that the branch is taken before the context ends, which would cost the connection
		wait = max(min(wait, time.Until(deadline)*3/4), time.Millisecond)
	}
	return []any{max(b.Namespace, 1), b.ID, b.Branch, b.Op, b.Job, b.Attempt, wait.Milliseconds(), idle.Milliseconds()}
}

// leave gives the arguments of leaveSQL.
func (b Branch) leave(out Result, e entry) ([]any, error) {
	value := out.Value
	if out.Outcome == Refused {
		var err error
		if value, err = json.Marshal(refused{out.Reason, b.Job, b.Attempt}); err != nil {
			return nil, err
		}
	}
	return []any{max(b.Namespace, 1), b.ID, b.Branch, b.Op, out.Outcome == Refused, value, e.began}, nil
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
