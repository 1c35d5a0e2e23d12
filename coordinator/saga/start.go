package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"
)

// Started tells what became of a start.
type Started struct {
	ID string
	// Duplicate says that a saga with this id and the same input was there already.
	Duplicate bool
}

// StartOption is a property of one saga.
type StartOption func(*startOptions) error

type startOptions struct {
	id         string
	deadlineMs *int64 // nil: the definition's; 0: none
	header     map[string]string
}

const (
	// IDCharsMax is how long a saga's id may be.
	IDCharsMax = 256
	// BatchSagasMax is how many sagas StartMany sends in one round trip.
	BatchSagasMax = 1000
	// BatchBytesMax ends a batch of StartMany early.
	BatchBytesMax = 16 << 20
)

// ID is the saga's, 1 to IDCharsMax characters, unique in its namespace: what starts it once however often it is asked for. Default: a new UUID.
func ID(id string) StartOption {
	return func(o *startOptions) error {
		o.id = id
		return checkID(id)
	}
}

func checkID(id string) error {
	if id == "" || len(id) > IDCharsMax*4 {
		return fmt.Errorf("an id has 1 to %d characters", IDCharsMax)
	}
	return nil
}

// DeadlineIn sets the saga's deadline in place of the definition's; 0 is none.
func DeadlineIn(d time.Duration) StartOption {
	return func(o *startOptions) error {
		ms := d.Milliseconds()
		o.deadlineMs = &ms
		if d == 0 {
			return nil
		}
		return checkDuration("deadline", d)
	}
}

// Header adds a header, such as traceparent, that handlers find in Call.Headers and HTTP branches among theirs.
func Header(key, value string) StartOption {
	return func(o *startOptions) error {
		if o.header == nil {
			o.header = map[string]string{}
		}
		o.header[key] = value
		return nil
	}
}

// Start starts a saga, in the caller's transaction if on is one: it exists when that commits, with its first jobs. A saga of the same id, definition and input is a duplicate, and nothing is done; with another input or
// definition the error is ErrConflict. Others: ErrUnregistered, ErrInvalid, ErrPayloadTooLarge, ErrMoved. After an error the caller's transaction is aborted, as after any SQL error. On a pool an error of the
// connection leaves it unknown whether it started; with an ID it can be repeated.
func (d *Definition[In]) Start(ctx context.Context, on DB, in In, opts ...StartOption) (Started, error) {
	return Started{}, errors.ErrUnsupported
}

// StartMany starts sagas by their ids, BatchSagasMax a round trip, and returns how many it started: duplicates are not counted. opts apply to all. In a transaction it is all or nothing; on a pool each batch is a
// transaction of its own, and may be repeated after an error.
func (d *Definition[In]) StartMany(ctx context.Context, on DB, sagas iter.Seq2[string, In], opts ...StartOption) (int, error) {
	return 0, errors.ErrUnsupported
}

// StartByName starts a saga where the definition's Go types are not at hand. Version 0 is the newest that is registered. Otherwise it is as Start.
func StartByName(ctx context.Context, on DB, ns int16, name string, version int, input json.RawMessage, opts ...StartOption) (Started, error) {
	return Started{}, errors.ErrUnsupported
}

// Hint wakes the workers of the definition's first steps. Starts on a pool do it by themselves; call it after the commit of a transaction that started sagas, where a few hundred milliseconds until the next poll
// matter. Without it everything still works.
func (d *Definition[In]) Hint(ctx context.Context, on DB) error {
	return errors.ErrUnsupported
}
