package job

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
)

// DB is what a call of this package runs on: a pgx.Tx for what must be atomic with your own rows, a *pgxpool.Pool or *pgx.Conn for
// what stands alone.
type DB = db.DBTX

const (
	// BatchJobsMax is how many jobs EnqueueMany sends in one round trip.
	BatchJobsMax = 1000
	// BatchBytesMax ends a batch of EnqueueMany early, so that large payloads do not add up.
	BatchBytesMax = 16 << 20
	// QueueDefault is the queue of definitions that name none.
	QueueDefault = "default"
)

// Definition is a kind of job with args of type A: what an enqueuer and a worker agree on. It is safe for concurrent use.
type Definition[A any] struct {
	kind string
	opts options
	hint *Hinter
}

// Define declares a kind of job. The name is its identity: a renamed Go type changes nothing, a renamed kind is another kind.
// It panics if the name or an option is invalid: both are written in code.
func Define[A any](kind string, opts ...Option) *Definition[A] {
	d := &Definition[A]{kind: kind, opts: defaults(), hint: &Hinter{}}
	if kind == "" || len(kind) > 128 {
		panic(fmt.Sprintf("job: a kind's name has 1 to 128 bytes, %q has %d", kind, len(kind)))
	}
	if err := d.opts.apply(opts); err != nil {
		panic(fmt.Sprintf("job: kind %q: %v", kind, err))
	}
	if d.opts.dedupeKey != nil {
		if _, ok := d.opts.dedupeKey.(func(A) string); !ok {
			panic(fmt.Sprintf("job: kind %q: the Dedupe function takes %T, not its args", kind, d.opts.dedupeKey))
		}
	}
	return d
}

// Kind is the definition's name.
func (d *Definition[A]) Kind() string { return d.kind }

// Queue is where the definition's jobs go unless an enqueue says otherwise.
func (d *Definition[A]) Queue() string { return d.opts.queue }

// Enqueued tells what became of an enqueue.
type Enqueued struct {
	ID int64
	// Duplicate says that an unfinished job (or one within the window) has the same dedupe key. ID is that job's.
	Duplicate bool
}

// Enqueue adds one job, in the caller's transaction if db is one: it exists when that commits, and leaves nothing if it does not.
// opts override the definition's. The error is ErrPayloadTooLarge, ErrMoved, or ErrInvalid for a bad option; after it the caller's transaction is
// aborted, as after any SQL error. On a pool an error of the connection leaves the outcome unknown; a dedupe key makes it safe to repeat.
func (d *Definition[A]) Enqueue(ctx context.Context, on DB, args A, opts ...Option) (Enqueued, error) {
	o := &d.opts
	if len(opts) > 0 {
		own := d.opts
		if err := own.apply(opts); err != nil {
			return Enqueued{}, fmt.Errorf("enqueue %s: %w: %w", d.kind, ErrInvalid, err)
		}
		o = &own
	}
	body, err := json.Marshal(args)
	if err != nil {
		return Enqueued{}, fmt.Errorf("enqueue %s: %w: args: %w", d.kind, ErrInvalid, err)
	}
	e, err := d.enqueue(ctx, on, o, args, body)
	if err != nil {
		return Enqueued{}, fmt.Errorf("enqueue %s: %w", d.kind, wrap(err))
	}
	if !e.Duplicate {
		d.hint.enqueued(ctx, on, o)
	}
	return e, nil
}

func (d *Definition[A]) enqueue(ctx context.Context, on DB, o *options, args A, body []byte) (Enqueued, error) {
	if o.dedupeKey == nil {
		id, err := db.New(on).EnqueueJob(ctx, db.EnqueueJobParams{
			Ns: o.namespace, Queue: o.queue, Kind: d.kind, Args: body, Priority: o.priority, RunAt: o.runAt, MaxAttempts: o.maxAttempts,
			TimeoutMs: o.timeoutMs, BackoffMs: o.backoffMs, BackoffMsMax: o.backoffMsMax, Headers: o.headers,
		})
		return Enqueued{ID: id}, err
	}
	row, err := d.enqueueBatch(ctx, on, o, [][]byte{body}, []string{o.dedupeKey.(func(A) string)(args)})
	if err != nil {
		return Enqueued{}, err
	}
	return Enqueued{ID: row.IDs[0], Duplicate: row.Duplicates[0]}, nil
}

// enqueueBatch adds up to BatchJobsMax jobs. keys is empty or as long as bodies.
func (d *Definition[A]) enqueueBatch(ctx context.Context, on DB, o *options, bodies [][]byte, keys []string) (db.EnqueueJobsRow, error) {
	return db.New(on).EnqueueJobs(ctx, db.EnqueueJobsParams{
		Ns: o.namespace, Queue: o.queue, Kind: d.kind, Args: bodies, Priority: o.priority, RunAt: o.runAt, MaxAttempts: o.maxAttempts,
		TimeoutMs: o.timeoutMs, BackoffMs: o.backoffMs, BackoffMsMax: o.backoffMsMax, Headers: o.headers,
		DedupeKeys: keys, DedupeWindow: o.dedupeWindow,
	})
}

// EnqueueMany adds jobs, BatchJobsMax a round trip. It returns how many were added, without duplicates.
// In a transaction it is all or nothing; on a pool each batch is a transaction of its own, and the error says how many jobs went before.
func (d *Definition[A]) EnqueueMany(ctx context.Context, on DB, args iter.Seq[A], opts ...Option) (int, error) {
	own := d.opts
	if err := own.apply(opts); err != nil {
		return 0, fmt.Errorf("enqueue %s: %w: %w", d.kind, ErrInvalid, err)
	}
	var (
		bodies [][]byte
		keys   []string
		bytes  int
		added  int
		seen   int
	)
	flush := func() error {
		if len(bodies) == 0 {
			return nil
		}
		row, err := d.enqueueBatch(ctx, on, &own, bodies, keys)
		if err != nil {
			return fmt.Errorf("enqueue %s: batch of %d after %d jobs: %w", d.kind, len(bodies), seen, wrap(err))
		}
		seen += len(bodies)
		added += len(bodies)
		for _, dup := range row.Duplicates {
			if dup {
				added--
			}
		}
		bodies, keys, bytes = bodies[:0], keys[:0], 0
		return nil
	}
	for a := range args {
		body, err := json.Marshal(a)
		if err != nil {
			return added, fmt.Errorf("enqueue %s: %w: args of job %d: %w", d.kind, ErrInvalid, seen+len(bodies), err)
		}
		if len(bodies) == BatchJobsMax || bytes+len(body) > BatchBytesMax {
			if err := flush(); err != nil {
				return added, err
			}
		}
		bodies = append(bodies, body)
		bytes += len(body)
		if own.dedupeKey != nil {
			keys = append(keys, own.dedupeKey.(func(A) string)(a))
		}
	}
	if err := flush(); err != nil {
		return added, err
	}
	if added > 0 {
		d.hint.enqueued(ctx, on, &own)
	}
	return added, nil
}

// Hint wakes workers that wait for the definition's queue. Enqueues on a pool do it by themselves; call it after the commit of a transaction
// that enqueued, where a few hundred milliseconds until the next poll matter. Without it everything still works.
func (d *Definition[A]) Hint(ctx context.Context, on DB) error {
	return Hint(ctx, on, d.opts.namespace, d.opts.queue)
}

// Job is a claimed job as its handler sees it.
type Job[A any] struct {
	ID          int64
	Kind        string
	Queue       string
	Attempt     int // from 1
	MaxAttempts int
	CreatedAt   time.Time
	Headers     map[string]string
	Args        A
}

var _ DB = (*pgxpool.Pool)(nil)
