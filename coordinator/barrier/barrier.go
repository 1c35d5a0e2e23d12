package barrier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
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
	ReasonBytesMax = 1024    // of a refusal's reason; a longer one is cut
	// WaitMax is how long a call waits for another transaction that is at work on its branch. It waits shorter where lock_timeout (MySQL: innodb_lock_wait_timeout) says so, and for no more than three quarters of the time
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
	// Job and Attempt tell the caller's attempts apart: the number of his job, and that of the attempt; 0 if he does not say. An action or a try that was refused may be done after all
	// in a later attempt, or for a later job.
	Job     int64
	Attempt int
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
	if b.Job < 0 || b.Attempt < 0 || b.Attempt > math.MaxInt32 {
		faults = append(faults, fmt.Errorf("%w: Job %d and Attempt %d may not be below 0", ErrInvalid, b.Job, b.Attempt))
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

// The outcomes. All but Refused are successes.
const (
	Done      Outcome = "done"      // work ran
	Duplicate Outcome = "duplicate" // it ran before
	Null      Outcome = "null"      // there is nothing to compensate, and never will be
	Refused   Outcome = "refused"   // work refused, now or before
)

// Result is what a branch comes to.
type Result struct {
	Outcome Outcome
	Value   json.RawMessage // what work returned, now or before; nil for none
	Reason  string          // of a refusal
}

// Do runs work and records the branch in tx, a READ COMMITTED transaction in which the caller writes, and which he commits if the error is nil, whatever the outcome: a refusal is a
// row, too. work writes in tx, and returns what the caller of the branch is to be told: JSON of up to ResultBytesMax, nil for none. It does not run for a Duplicate or a Null.
//
// While another transaction is at work on the branch Do waits, see WaitMax. The branch is taken until tx ends, so tx had better be short and not call other services.
//
// What work has written before it refuses is undone. After an error tx is to be rolled back. The error is work's, ErrTooLate, ErrInFlight, ErrEnded, ErrInvalid, ErrSchema or the
// database's. One round trip before work, and one after it; one in all for a Duplicate. Savepoint pawl_barrier is set meanwhile.
func Do(ctx context.Context, tx pgx.Tx, b Branch, work func(ctx context.Context) (json.RawMessage, error)) (Result, error) {
	return do(ctx, postgres{tx}, b, work)
}

func do(ctx context.Context, in store, b Branch, work func(ctx context.Context) (json.RawMessage, error)) (Result, error) {
	if err := b.validate(); err != nil {
		return Result{}, err
	}
	e, err := in.enter(ctx, b)
	if err != nil {
		return Result{}, err
	}
	out, leave, err := b.run(ctx, e, work)
	if err != nil || !leave {
		return out, err
	}
	if err := in.leave(ctx, b, e, out); err != nil {
		return Result{}, err
	}
	return out, nil
}

// run does what the entry says. leave: it is to be recorded.
func (b Branch) run(ctx context.Context, e entry, work func(context.Context) (json.RawMessage, error)) (out Result, leave bool, err error) {
	switch e.what {
	case stateRun:
		value, err := work(ctx)
		if r := (refusal{}); errors.As(err, &r) {
			if b.Op == Action || b.Op == Try {
				return Result{Outcome: Refused, Reason: reason(err)}, true, nil
			}
			return Result{}, false, fmt.Errorf("%s may not be refused: %w", b, err)
		}
		if err == nil {
			err = checkResult(value)
		}
		if err != nil {
			return Result{}, false, err
		}
		return Result{Outcome: Done, Value: value}, true, nil
	case stateNull:
		return Result{Outcome: Null}, true, nil
	case stateDuplicate:
		return Result{Outcome: Duplicate, Value: e.result}, false, nil
	case stateRefused:
		var r refused
		if err := json.Unmarshal(e.result, &r); err != nil {
			return Result{}, false, fmt.Errorf("%s: refusal: %w", b, err)
		}
		return Result{Outcome: Refused, Reason: r.Reason}, false, nil
	case stateLate:
		return Result{}, false, fmt.Errorf("%s: %w", b, ErrTooLate)
	default:
		return Result{}, false, fmt.Errorf("barrier: unknown state %q", e.what)
	}
}

// reason is the text of a refusal, cut at ReasonBytesMax.
func reason(err error) string {
	text := strings.ToValidUTF8(strings.ReplaceAll(err.Error(), "\x00", "\uFFFD"), "\uFFFD") // Postgres reads no NUL in JSON
	if len(text) > ReasonBytesMax {
		text = strings.ToValidUTF8(text[:ReasonBytesMax], "") // the last character may be cut through
	}
	return text
}

func checkResult(value json.RawMessage) error {
	if len(value) > ResultBytesMax {
		return fmt.Errorf("%w: a result of %d bytes exceeds %d", ErrInvalid, len(value), ResultBytesMax)
	}
	if value != nil && (!json.Valid(value) || !utf8.Valid(value)) {
		return fmt.Errorf("%w: the result is not JSON in UTF-8", ErrInvalid)
	}
	return nil
}

// Refuse says of an action or a try that nothing was done, and that this is the last word: a business's no, such as no money. Its text is told to the caller. What work has written is
// undone, and the refusal is stored: it is the answer to every other copy of this call. What may come right by itself is another error, so that the caller tries again. For a
// compensation or a confirmation it is as any other error.
func Refuse(err error) error {
	if err == nil {
		err = errors.New("no reason given")
	}
	return refusal{err}
}

type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }
