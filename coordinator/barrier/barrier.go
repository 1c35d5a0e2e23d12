package barrier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/session"
)

var (
	// ErrTooLate: the compensation of this branch came first. Nothing was run.
	ErrTooLate = errors.New("barrier: the branch was compensated before it was called")
	// ErrInFlight: another transaction is at work on the branch, and did not end within WaitMax.
	ErrInFlight = errors.New("barrier: another call of the branch is in flight")
	// ErrRefused is what Refuse makes of an error.
	ErrRefused = errors.New("barrier: refused")
	// ErrEnded: work sent COMMIT or ROLLBACK as SQL. What it committed stays; no row was written.
	ErrEnded = errors.New("barrier: the transaction was ended within")
	// ErrInvalid: a branch or a result is outside what is documented, or the transaction is not READ COMMITTED.
	ErrInvalid = errors.New("barrier: invalid")
	// ErrSchema: the database lacks Pawl's schema or has an older one.
	ErrSchema = session.ErrSchema
)

// The limits.
const (
	IDBytesMax     = 1024
	BranchBytesMax = 255
	ResultBytesMax = 1 << 20 // of a result
	// WaitMax is how long a call waits for another transaction that is at work on its branch. It waits shorter where lock_timeout says so, and for no more than three quarters of the time
	// that is left to its context.
	WaitMax = 3 * time.Second
	// Keep is how long rows are kept, unless the sweep is told otherwise.
	Keep = 90 * 24 * time.Hour
)

// Op is what is asked of a branch: of a saga's step its action or its compensation; of a branch of a global transaction to try, and then to confirm or to cancel.
type Op string

// The ops. Undo compensates Action, Cancel compensates Try.
const (
	Action  Op = "action"
	Undo    Op = "undo"
	Try     Op = "try"
	Confirm Op = "confirm"
	Cancel  Op = "cancel"
)

var ops = []Op{Action, Undo, Try, Confirm, Cancel}

// Branch names what is to be done once.
type Branch struct {
	// Namespace is the number of the namespace in this database. Default: 1, "default".
	Namespace int16
	// ID is the saga's or the global transaction's.
	ID string
	// Branch is the saga's step, or the branch of the global transaction.
	Branch string
	// Op is what is asked for.
	Op Op
}

// String is for logs and errors.
func (b Branch) String() string { return fmt.Sprintf("%s of %s/%s", b.Op, b.ID, b.Branch) }

// validate reports all faults at once.
func (b Branch) validate() error {
	var faults []error
	for _, part := range []struct {
		name, value string
		max         int
	}{{"ID", b.ID, IDBytesMax}, {"Branch", b.Branch, BranchBytesMax}} {
		if fault := checkText(part.value, part.max); fault != "" {
			faults = append(faults, fmt.Errorf("%w: %s %s", ErrInvalid, part.name, fault))
		}
	}
	if !slices.Contains(ops, b.Op) {
		faults = append(faults, fmt.Errorf("%w: Op %q is not one of %s", ErrInvalid, b.Op, opList()))
	}
	return errors.Join(faults...)
}

// checkText says what is wrong with a text, or "".
func checkText(s string, bytesMax int) string {
	switch {
	case s == "" || len(s) > bytesMax:
		return fmt.Sprintf("must have 1 to %d bytes, not %d", bytesMax, len(s))
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		return "must be UTF-8 without NUL"
	}
	return ""
}

func opList() string {
	return strings.TrimSuffix(strings.ReplaceAll(fmt.Sprintf("%q", ops), `" "`, `", "`)[1:], "]")
}

// Outcome is what became of a call.
type Outcome string

// The outcomes.
const (
	Done      Outcome = "done"      // work ran
	Duplicate Outcome = "duplicate" // it ran before
	Null      Outcome = "null"      // there is nothing to compensate, and never will be
)

// Result is what a branch comes to. All outcomes are successes.
type Result struct {
	Outcome Outcome
	Value   json.RawMessage // what work returned, now or before; nil for none
}

// Do runs work and records the branch in tx, a READ COMMITTED transaction in which the caller writes and which he commits, whatever the outcome, if the error is nil. work writes in
// tx, and returns what the caller of the branch is to be told: JSON of up to ResultBytesMax, nil for none. It does not run for a Duplicate or a Null.
//
// While another transaction is at work on the branch Do waits, see WaitMax. The branch is taken until tx ends, so tx had better be short and not call other services.
//
// After an error tx is to be rolled back: what work has written until then is not undone, and no row says that it was done. The error is work's, ErrTooLate, ErrInFlight, ErrEnded,
// ErrInvalid, ErrSchema or the database's. One round trip before work, and one after it; one in all for a Duplicate.
func Do(ctx context.Context, tx pgx.Tx, b Branch, work func(ctx context.Context) (json.RawMessage, error)) (Result, error) {
	if err := b.validate(); err != nil {
		return Result{}, err
	}
	var e entry
	if err := tx.QueryRow(ctx, enterSQL, b.enter(ctx, 0)...).Scan(e.into()...); err != nil {
		return Result{}, b.wrap("enter", err)
	}
	out, leave, err := b.run(ctx, e, work)
	if err != nil || !leave {
		return out, err
	}
	if _, err := tx.Exec(ctx, leaveSQL, b.leave(out, e)...); err != nil {
		return Result{}, b.wrap("leave", err)
	}
	return out, nil
}

// run does what the entry says. leave: it is to be recorded.
func (b Branch) run(ctx context.Context, e entry, work func(context.Context) (json.RawMessage, error)) (out Result, leave bool, err error) {
	switch e.what {
	case stateRun:
		value, err := work(ctx)
		if err == nil {
			err = checkResult(value)
		}
		if err != nil {
			return Result{}, false, err
		}
		return Result{Done, value}, true, nil
	case stateNull:
		return Result{Outcome: Null}, true, nil
	case stateDuplicate:
		return Result{Duplicate, e.result}, false, nil
	case stateLate:
		return Result{}, false, fmt.Errorf("%s: %w", b, ErrTooLate)
	default:
		return Result{}, false, fmt.Errorf("barrier: unknown state %q", e.what)
	}
}

func checkResult(value json.RawMessage) error {
	if len(value) > ResultBytesMax {
		return fmt.Errorf("%w: a result of %d bytes exceeds %d", ErrInvalid, len(value), ResultBytesMax)
	}
	if value != nil && !json.Valid(value) {
		return fmt.Errorf("%w: the result is not JSON", ErrInvalid)
	}
	return nil
}

// Refuse says of an action or a try that nothing was done, and that the caller need not ask again: a business's no, such as no stock or no money. Its text is told to the caller. The
// transaction is rolled back, and nothing is stored, see the package documentation.
func Refuse(err error) error {
	if err == nil {
		err = errors.New("no reason given")
	}
	return refusal{err}
}

type refusal struct{ error }

func (r refusal) Unwrap() []error { return []error{ErrRefused, r.error} }
