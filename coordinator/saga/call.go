package saga

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
)

// Call is what a handler is called with.
type Call[In any] struct {
	Saga         string // the saga's id
	Step         string
	Version      int // of the definition that the saga started with
	Input        In  // of the saga
	Attempt      int // from 1
	MaxAttempts  int
	Compensating bool              // the step is to be undone
	Headers      map[string]string // of the saga, such as traceparent
	Unit         int               // its number, from 0, in a handler of a unit

	ref
	job  int64 // that does it
	unit bool
}

// ref is how a handler's call reaches the saga's rows.
type ref struct {
	ns int16
	id int64
	on DB
}

func (r ref) self() ref { return r }

// Caller is a handler's call, a [Call] of any type.
type Caller interface{ self() ref }

// Key is the idempotency key of what the handler does: "<saga>/<step>", with "/undo" behind it for the compensation, or "/<n>" for a unit. It is the same at every attempt.
func (c *Call[In]) Key() string {
	key := c.Saga + "/" + c.Step
	switch {
	case c.Compensating:
		return key + "/undo"
	case c.unit:
		return fmt.Sprintf("%s/%d", key, c.Unit)
	}
	return key
}

// Fail is a definite refusal: the step did nothing, and will not. The saga is compensated without it, or is stuck where it cannot be any more. Anything that may have been done is another error.
func Fail(err error) error {
	if err == nil {
		err = errors.New("no reason given")
	}
	return &job.Ending{Outcome: job.Discarded, Refused: true, Err: err}
}

// Hold takes a semantic lock for the saga, in a handler's transaction: no other saga can hold it until this one has ended, and with its last transaction it is free. It is how sagas keep from each other
// what they have done so far ("account:7": the money is moving). A saga that has it already gets it again. The error is ErrHeld, a [HeldError], at once if another saga has it: return it, and the step is
// tried again. Only sagas that ask are kept out.
func Hold(ctx context.Context, tx pgx.Tx, c Caller, name string) error {
	return errors.ErrUnsupported
}
