package saga

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

var (
	// ErrInvalid: a definition, an argument or an option is not as documented; the text says which.
	ErrInvalid = errors.New("saga: invalid")
	// ErrChanged: the version of a definition is registered with other steps. [ChangedError] tells the difference.
	ErrChanged = errors.New("saga: definition was changed")
	// ErrUnregistered: the database does not know the definition, or not this version of it.
	ErrUnregistered = errors.New("saga: definition is not registered")
	// ErrConflict: a saga of that id was started with another input, or by another definition.
	ErrConflict = errors.New("saga: id is taken")
	// ErrCompensated: the saga has failed, and all it did was undone. [CompensatedError] tells why.
	ErrCompensated = errors.New("saga: compensated")
	// ErrForced: an operator ended the saga as it stood.
	ErrForced = errors.New("saga: forced to an end")
	// ErrUnfinished: the saga has not ended.
	ErrUnfinished = errors.New("saga: unfinished")
	// ErrNotFound: there is no such saga, or none any more.
	ErrNotFound = errors.New("saga: not found")
	// ErrTooLate: the saga has passed its pivot, and only goes forward.
	ErrTooLate = errors.New("saga: past its pivot")
	// ErrEnded: the saga has ended.
	ErrEnded = errors.New("saga: ended")
	// ErrNotWaiting: the saga does not wait for this.
	ErrNotWaiting = errors.New("saga: does not wait for this")
	// ErrHeld: another saga has the semantic lock. [HeldError] names it.
	ErrHeld = errors.New("saga: held by another")
	// ErrNoOutput: the step has no output yet.
	ErrNoOutput = errors.New("saga: no output")
	// ErrPayloadTooLarge: an input or a value exceeds what is allowed.
	ErrPayloadTooLarge = errors.New("saga: payload too large")
	// ErrMoved: the database was restored or copied into another cluster; run "pawl doctor --rebase" once.
	ErrMoved = errors.New("saga: database was moved to another cluster")
	// ErrSchema: the database lacks Pawl's schema or has an older one; run "pawl migrate up".
	ErrSchema = session.ErrSchema
)

// ChangedError tells how a definition differs from the one that is registered under its name and version.
type ChangedError struct {
	Name       string
	Version    int
	Difference []string // one line each
}

func (e *ChangedError) Error() string {
	return fmt.Sprintf("saga: definition %q, version %d, is registered otherwise: %s", e.Name, e.Version, strings.Join(e.Difference, "; "))
}

// Is makes it an ErrChanged.
func (e *ChangedError) Is(target error) bool { return target == ErrChanged }

// CompensatedError tells why a saga was compensated.
type CompensatedError struct {
	ID     string
	Step   string // that failed; "": it was cancelled, or its deadline has passed
	Reason string
}

func (e *CompensatedError) Error() string {
	if e.Step == "" {
		return fmt.Sprintf("saga %s: compensated: %s", e.ID, e.Reason)
	}
	return fmt.Sprintf("saga %s: compensated, since step %q failed: %s", e.ID, e.Step, e.Reason)
}

// Is makes it an ErrCompensated.
func (e *CompensatedError) Is(target error) bool { return target == ErrCompensated }

// HeldError tells which saga has a semantic lock.
type HeldError struct {
	Name string // of the lock
	Saga string // that has it
}

func (e *HeldError) Error() string { return fmt.Sprintf("saga: %q is held by saga %s", e.Name, e.Saga) }

// Is makes it an ErrHeld.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// wrap gives errors of the database their names.
func wrap(err error) error {
	for code, own := range map[string]error{
		db.CodeSagaConflict: ErrConflict, db.CodeSagaUnregistered: ErrUnregistered, db.CodeSagaTooLate: ErrTooLate, db.CodeSagaEnded: ErrEnded, db.CodeSagaNotFound: ErrNotFound,
		db.CodeSagaNotWaiting: ErrNotWaiting, db.CodePayloadTooLarge: ErrPayloadTooLarge, db.CodeMoved: ErrMoved, db.CodeMisuse: ErrInvalid,
		"22023": ErrInvalid, "22P02": ErrInvalid, "22001": ErrInvalid, "23514": ErrInvalid, "22P05": ErrInvalid, "22021": ErrInvalid,
	} {
		if db.Code(err) == code {
			return fmt.Errorf("%w: %s", own, db.Message(err))
		}
	}
	if db.IsUnmigrated(err) {
		return fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
	}
	return err
}
