package outbox

import (
	"errors"
	"fmt"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

var (
	// ErrInvalid: an argument is outside what is documented; the text says which.
	ErrInvalid = errors.New("outbox: invalid")
	// ErrPayloadTooLarge: a payload exceeds payload_bytes_max of the namespace's outbox.
	ErrPayloadTooLarge = errors.New("outbox: payload too large")
	// ErrMoved: the database was restored or copied into another cluster; run "pawl doctor --rebase" once.
	ErrMoved = errors.New("outbox: database was moved to another cluster")
	// ErrLost: another relay or an operator has moved the subscription's position meanwhile.
	ErrLost = errors.New("outbox: position was moved by somebody else")
	// ErrNotFound: there is no such subscription.
	ErrNotFound = errors.New("outbox: no such subscription")
	// ErrPaused: the subscription is paused.
	ErrPaused = errors.New("outbox: subscription is paused")
	// ErrGap: events were dropped before the subscription had them; it goes on when an operator accepts that.
	ErrGap = errors.New("outbox: subscription has missed events")
	// ErrSchema: the database lacks Pawl's schema or has an older one.
	ErrSchema = session.ErrSchema
)

// wrap gives errors of the database their names.
func wrap(err error) error {
	for code, own := range map[string]error{
		db.CodePayloadTooLarge: ErrPayloadTooLarge, db.CodeMoved: ErrMoved, db.CodeLost: ErrLost, db.CodeGap: ErrGap, "22023": ErrInvalid, "22P02": ErrInvalid, "22021": ErrInvalid, db.CodeMisuse: ErrInvalid,
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
