package job

import (
	"errors"
	"fmt"

	"github.com/pawl-dev/pawl/db"
)

var (
	// ErrInvalid: an argument is out of its bounds. Nothing was enqueued.
	ErrInvalid = errors.New("job: invalid")
	// ErrPayloadTooLarge: the args exceed what the queue allows (default 1 MiB).
	ErrPayloadTooLarge = errors.New("job: payload too large")
	// ErrMoved: the database was restored or copied into another cluster; "pawl doctor --rebase" makes it work again.
	ErrMoved = errors.New("job: database was moved to another cluster")
	// ErrNotFound: there is no such job or queue.
	ErrNotFound = errors.New("job: not found")
	// ErrUnfinished: the job has no result yet.
	ErrUnfinished = errors.New("job: unfinished")
	// ErrDiscarded: the job was given up.
	ErrDiscarded = errors.New("job: discarded")
	// ErrCancelled: the job was cancelled. It is also the cause in the context of a running job that was asked to cancel.
	ErrCancelled = errors.New("job: cancelled")
	// ErrTimeout is the cause in the context of a handler whose time is over.
	ErrTimeout = errors.New("job: timeout")
	// ErrSchema: the database lacks Pawl's schema or has an older one; run "pawl migrate up".
	ErrSchema = errors.New(`job: schema pawl is missing or too old; run "pawl migrate up"`)
)

// wrap joins the sentinel that fits what Postgres said.
func wrap(err error) error {
	switch db.Code(err) {
	case db.CodePayloadTooLarge:
		return fmt.Errorf("%w: %s", ErrPayloadTooLarge, db.Message(err))
	case db.CodeMoved:
		return fmt.Errorf("%w: %s", ErrMoved, db.Message(err))
	case "22023", "22P02", "22001", "23514", "22P05", "22021":
		return fmt.Errorf("%w: %s", ErrInvalid, db.Message(err))
	}
	if db.IsUnmigrated(err) {
		return fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
	}
	return err
}
