package lock

import (
	"errors"
	"fmt"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

var (
	// ErrInvalid: a name, an option or a duration is out of its bounds. Nothing was asked of the database.
	ErrInvalid = errors.New("lock: invalid")
	// ErrHeld: another holds the lock. [HeldError] names it.
	ErrHeld = errors.New("lock: held")
	// ErrTimeout: the lock was not free within the time given by [Wait]. Nothing waits any more.
	ErrTimeout = errors.New("lock: not free in time")
	// ErrDeadlock: waiting would never end, since the holder waits for this owner. [DeadlockError] names the ring.
	ErrDeadlock = errors.New("lock: deadlock")
	// ErrLost: the session has ended, and with it the grant. It is the cause in the lease's context, and what Assert and Release return afterwards.
	ErrLost = errors.New("lock: lost")
	// ErrForced: an operator took the lock away.
	ErrForced = errors.New("lock: taken away by an operator")
	// ErrExpired: the maximum hold is over.
	ErrExpired = errors.New("lock: maximum hold is over")
	// ErrReleased: the lease was released before.
	ErrReleased = errors.New("lock: released before")
	// ErrClosed: the Locks were closed.
	ErrClosed = errors.New("lock: closed")
	// ErrAsserted: an open transaction still asserts the lease, so that it cannot be released. Commit first.
	ErrAsserted = errors.New("lock: asserted by an open transaction")
	// ErrPooler: the connection does not keep its session, as behind a pooler in transaction mode.
	ErrPooler = errors.New("lock: the connection does not keep its session")
	// ErrSchema: the database lacks Pawl's schema or has an older one; run "pawl migrate up".
	ErrSchema = session.ErrSchema
)

// HeldError tells who holds a lock.
type HeldError struct {
	Name   string
	Holder string // process, host, pid, session and since when, for people
}

func (e *HeldError) Error() string { return fmt.Sprintf("lock %s: held by %s", e.Name, e.Holder) }

// Is makes it an ErrHeld.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// DeadlockError tells the ring that waiting would have closed.
type DeadlockError struct {
	Name string
	Ring string
}

func (e *DeadlockError) Error() string { return fmt.Sprintf("lock %s: deadlock: %s", e.Name, e.Ring) }

// Is makes it an ErrDeadlock.
func (e *DeadlockError) Is(target error) bool { return target == ErrDeadlock }

// wrap joins the sentinel that fits what Postgres said.
func wrap(err error) error {
	switch db.Code(err) {
	case "":
		return err
	case db.CodeLost:
		return fmt.Errorf("%w: %s", ErrLost, db.Message(err))
	case "22021", "22P05", "22023":
		return fmt.Errorf("%w: %s", ErrInvalid, db.Message(err))
	}
	if db.IsUnmigrated(err) {
		return fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
	}
	return err
}
