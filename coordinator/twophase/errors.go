package twophase

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

var (
	// ErrAborted: nothing of the transaction was committed, anywhere. The error says why. It can be done again from the beginning.
	ErrAborted = errors.New("twophase: aborted")
	// ErrUnknown: nobody could be asked whether the transaction is committed. Recovery finds out, and makes all participants agree; Manager.Outcome tells, unless only one database wrote: that alone knows.
	ErrUnknown = errors.New("twophase: outcome unknown")
	// ErrEnded: the transaction has been committed or rolled back before.
	ErrEnded = errors.New("twophase: the transaction has ended")
	// ErrAbsent: the participant has no such prepared branch: it was finished before, or lost, or never came.
	ErrAbsent = errors.New("twophase: no such prepared branch")
	// ErrBusy: another is finishing the branch right now.
	ErrBusy = errors.New("twophase: another is finishing the branch")
	// ErrCannotPrepare: the participant takes no prepared transactions: see what the error says, and "pawl doctor".
	ErrCannotPrepare = errors.New("twophase: the participant cannot prepare")
	// ErrNotSetUp: the participant lacks the tables that Setup makes.
	ErrNotSetUp = errors.New("twophase: the participant is not set up")
	// ErrNotFound: there is no such global transaction, or participant.
	ErrNotFound = errors.New("twophase: not found")
	// ErrDecided: it is decided otherwise already.
	ErrDecided = errors.New("twophase: decided otherwise")
	// ErrInvalid: an argument is outside what is documented.
	ErrInvalid = errors.New("twophase: invalid")
	// ErrSchema: the coordinator's database lacks Pawl's schema or has an older one.
	ErrSchema = session.ErrSchema
)

// MixedError: these participants did the opposite of what was decided, since they lost what they had prepared or a person finished it by hand. Only a person can put that right.
type MixedError struct {
	ID           string
	Committed    bool // what was decided
	Participants []string
}

func (e *MixedError) Error() string {
	if !e.Committed {
		return fmt.Sprintf("twophase: %s is aborted, but somebody committed it by hand at %s: put that right by hand and settle it with \"pawl tx resolve\"", e.ID, strings.Join(e.Participants, ", "))
	}
	return fmt.Sprintf("twophase: %s is committed, but not at %s, which lost what it had prepared or where somebody rolled it back: put that right by hand and settle it with \"pawl tx resolve\"", e.ID,
		strings.Join(e.Participants, ", "))
}

// UnsettledError: recovery could not do at these participants all that it should, by their names. It goes on with the next pass; at the others all is done.
type UnsettledError struct{ Errors map[string]error }

func (e *UnsettledError) Error() string { return errors.Join(e.Unwrap()...).Error() }

// Unwrap gives the errors, in the order of the participants' names.
func (e *UnsettledError) Unwrap() []error {
	errs := make([]error, 0, len(e.Errors))
	for _, name := range slices.Sorted(maps.Keys(e.Errors)) {
		errs = append(errs, e.Errors[name])
	}
	return errs
}

// wrap gives errors of the coordinator's database their names.
func wrap(err error) error {
	if db.IsUnmigrated(err) {
		return fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
	}
	return err
}
