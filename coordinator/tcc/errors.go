package tcc

import (
	"errors"
	"fmt"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

var (
	// ErrInvalid: an argument or an option is not as documented; the text says which.
	ErrInvalid = errors.New("tcc: invalid")
	// ErrExists: there is a transaction of that id.
	ErrExists = errors.New("tcc: id is taken")
	// ErrNotFound: there is no such transaction, or none any more.
	ErrNotFound = errors.New("tcc: not found")
	// ErrRefused: the participant said no, and has done nothing.
	ErrRefused = errors.New("tcc: refused")
	// ErrCancelled: the transaction is cancelled; the text says why.
	ErrCancelled = errors.New("tcc: cancelled")
	// ErrConfirmed: the transaction is confirmed.
	ErrConfirmed = errors.New("tcc: confirmed")
	// ErrExpired: the deadline has passed, and the transaction is, or will be, cancelled.
	ErrExpired = errors.New("tcc: deadline has passed")
	// ErrUntried: a branch was registered whose try did not succeed, as far as this process knows.
	ErrUntried = errors.New("tcc: not all branches were tried with success")
	// ErrBusy: another transaction is deciding it, or a ConfirmTx is not committed yet, and that did not end within 5 s. Nothing was done.
	ErrBusy = errors.New("tcc: another is deciding")
	// ErrTooMany: the transaction has BranchesMax branches.
	ErrTooMany = errors.New("tcc: too many branches")
	// ErrUnknown: the connection was lost, and nobody knows whether the decision was committed.
	ErrUnknown = errors.New("tcc: outcome unknown")
	// ErrUnfinished: branches are not done yet, or nothing is decided.
	ErrUnfinished = errors.New("tcc: unfinished")
	// ErrNotStuck: no branch of the transaction is stuck.
	ErrNotStuck = errors.New("tcc: not stuck")
	// ErrPayloadTooLarge: a branch's args exceed what its queue allows.
	ErrPayloadTooLarge = errors.New("tcc: payload too large")
	// ErrMoved: the database was restored or copied into another cluster; run "pawl doctor --rebase" once.
	ErrMoved = errors.New("tcc: database was moved to another cluster")
	// ErrSchema: the database lacks Pawl's schema or has an older one; run "pawl migrate up".
	ErrSchema = session.ErrSchema
)

// wrap gives errors of the database their names.
func wrap(err error) error {
	for code, own := range map[string]error{
		db.CodeTCCExists: ErrExists, db.CodeTCCNotFound: ErrNotFound, db.CodeTCCCancelled: ErrCancelled, db.CodeTCCConfirmed: ErrConfirmed, db.CodeTCCExpired: ErrExpired, db.CodeTCCUntried: ErrUntried,
		db.CodeTCCTooMany: ErrTooMany, db.CodeTCCNotStuck: ErrNotStuck, db.CodePayloadTooLarge: ErrPayloadTooLarge, db.CodeMoved: ErrMoved, db.CodeMisuse: ErrInvalid, "55P03": ErrBusy,
		"22023": ErrInvalid, "23514": ErrInvalid, "22P05": ErrInvalid, "22021": ErrInvalid,
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
