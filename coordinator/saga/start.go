package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db"
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
	named      bool  // by ID
	deadlineMs int64 // below 0: the definition's; 0: none
	header     map[string]string
	headers    []byte // the same as JSON, nil where there is none
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
	if n := utf8.RuneCountInString(id); n < 1 || n > IDCharsMax {
		return fmt.Errorf("%w: an id has 1 to %d characters, not %d", ErrInvalid, IDCharsMax, n)
	}
	return nil
}

// DeadlineIn sets the saga's deadline in place of the definition's; 0 is none.
func DeadlineIn(d time.Duration) StartOption {
	return func(o *startOptions) error {
		o.deadlineMs = d.Milliseconds()
		if d == 0 {
			return nil
		}
		if err := checkDuration("deadline", d); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return nil
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
// connection, or ctx's, leaves it unknown whether it started; with an ID it can be repeated. Calls on one pool at the same time share transactions, none of which waits for a lock for more than 20 ms, and each is
// told its own outcome.
func (d *Definition[In]) Start(ctx context.Context, on DB, in In, opts ...StartOption) (Started, error) {
	id, dup, err := d.start(ctx, on, in, opts)
	if err != nil {
		return Started{}, fmt.Errorf("start %s %s: %w", d.def.name, id, wrap(err))
	}
	return Started{id, dup}, nil
}

func (d *Definition[In]) start(ctx context.Context, on DB, in In, opts []StartOption) (id string, duplicate bool, err error) {
	o, err := newStart(opts)
	if err != nil {
		return o.id, false, err
	}
	if err := d.def.seal().err; err != nil {
		return o.id, false, err
	}
	input, err := json.Marshal(in)
	if err != nil {
		return o.id, false, fmt.Errorf("%w: input: %w", ErrInvalid, err)
	}
	duplicate, err = d.def.startOne(ctx, on, o, input)
	return o.id, duplicate, err
}

// StartMany starts sagas by their ids, BatchSagasMax a round trip, and returns how many it started: duplicates are not counted. opts apply to all. In a transaction it is all or nothing; on a pool each batch is a
// transaction of its own, and may be repeated after an error.
func (d *Definition[In]) StartMany(ctx context.Context, on DB, sagas iter.Seq2[string, In], opts ...StartOption) (int, error) {
	fail := func(seen int, err error) error {
		return fmt.Errorf("start %s: after %d sagas: %w", d.def.name, seen, wrap(err))
	}
	o, err := newStart(opts)
	if err == nil && o.named {
		err = fmt.Errorf("%w: the sagas have ids, and ID is for one", ErrInvalid)
	}
	if err == nil {
		err = d.def.seal().err
	}
	if err != nil {
		return 0, fail(0, err)
	}
	var (
		batch              []*start
		bytes, seen, added int
	)
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		row, err := d.def.startBatch(ctx, on, batch, false)
		if err != nil {
			return fail(seen, err)
		}
		seen += len(batch)
		for _, dup := range row.Duplicates {
			if !dup {
				added++
			}
		}
		batch, bytes = batch[:0], 0
		return nil
	}
	for id, in := range sagas {
		input, err := json.Marshal(in)
		if err != nil {
			err = fmt.Errorf("%w: input of %q: %w", ErrInvalid, id, err)
		} else {
			err = checkID(id)
		}
		if err != nil {
			return added, fail(seen, err)
		}
		if len(batch) == BatchSagasMax || bytes+len(input) > BatchBytesMax {
			if err := flush(); err != nil {
				return added, err
			}
		}
		batch, bytes = append(batch, &start{key: id, input: input, options: o}), bytes+len(input)
	}
	return added, flush()
}

// StartByName starts a saga where the definition's Go types are not at hand. Version 0 is the newest that is registered. Otherwise it is as Start.
func StartByName(ctx context.Context, on DB, ns int16, name string, version int, input json.RawMessage, opts ...StartOption) (Started, error) {
	o, err := newStart(opts)
	if err == nil && (version < 0 || version > VersionMax) {
		err = fmt.Errorf("%w: version %d is outside 1 to %d, and 0 for the newest", ErrInvalid, version, VersionMax)
	}
	d := &definition{name: name, version: version, namespace: ns} // of this call alone, so that it hints each time
	duplicate := false
	if err == nil {
		duplicate, err = d.startOne(ctx, on, o, input)
	}
	if err != nil {
		return Started{}, fmt.Errorf("start %s %s: %w", name, o.id, wrap(err))
	}
	return Started{o.id, duplicate}, nil
}

// newStart reads options, and gives a saga its id.
func newStart(opts []StartOption) (*startOptions, error) {
	o := &startOptions{deadlineMs: -1}
	var faults []error
	for _, opt := range opts {
		faults = append(faults, opt(o))
	}
	if o.named = o.id != ""; !o.named {
		id, err := uuid.NewV7()
		o.id = id.String()
		faults = append(faults, err)
	}
	if len(o.header) > 0 {
		o.headers, _ = json.Marshal(o.header) // of strings: cannot fail
	}
	return o, errors.Join(faults...)
}

func (d *definition) startOne(ctx context.Context, on DB, o *startOptions, input []byte) (duplicate bool, err error) {
	one := &start{ctx: ctx, key: o.id, input: input, options: o, told: make(chan started, 1)}
	if pool, ok := on.(*pgxpool.Pool); ok {
		return d.startOn(pool, one)
	}
	row, err := d.startBatch(ctx, on, []*start{one}, false)
	return err == nil && row.Duplicates[0], err
}

// startBatch starts up to BatchSagasMax sagas. gathered: they come of several callers.
func (d *definition) startBatch(ctx context.Context, on DB, batch []*start, gathered bool) (db.StartSagasRow, error) {
	p := db.StartSagasParams{Ns: d.namespace, Name: d.name, Version: int32(d.version), Gathered: gathered}
	for _, one := range batch {
		p.Keys, p.Inputs = append(p.Keys, one.key), append(p.Inputs, one.input)
		p.DeadlinesMs, p.Headers = append(p.DeadlinesMs, one.options.deadlineMs), append(p.Headers, one.options.headers)
	}
	row, err := db.New(on).StartSagas(ctx, p)
	if err == nil && len(row.Queues) > 0 {
		if _, ok := on.(*pgxpool.Pool); ok { // else it is not committed, or not ours to commit
			d.wake(row.Queues)
			if d.hint.Allow() {
				for _, q := range row.Queues {
					_ = job.Hint(ctx, on, d.namespace, q) // hints are hints
				}
			}
		}
	}
	return row, err
}

// Hint wakes the workers of the definition's first steps. Starts on a pool do it by themselves; call it after the commit of a transaction that started sagas, where a few hundred milliseconds until the next poll
// matter. Without it everything still works.
func (d *Definition[In]) Hint(ctx context.Context, on DB) error {
	if err := d.def.seal().err; err != nil {
		return err
	}
	var queues []string
	for _, s := range d.def.steps {
		if q := s.spec().Queue; len(s.opts.after) == 0 && q != "" && !slices.Contains(queues, q) {
			queues = append(queues, q)
		}
	}
	d.def.wake(queues)
	for _, q := range queues {
		if err := job.Hint(ctx, on, d.def.namespace, q); err != nil {
			return fmt.Errorf("hint %s: %w", d.def.name, err)
		}
	}
	return nil
}

// wake has the workers of this process that serve the definition look at once.
func (d *definition) wake(queues []string) {
	d.mu.Lock()
	served := d.served
	d.mu.Unlock()
	for _, w := range served {
		for _, q := range queues {
			w.Wake(q)
		}
	}
}
