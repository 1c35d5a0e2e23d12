package saga

import (
	"context"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db"
)

// DB is what a call of this package runs on: a pgx.Tx for what must be atomic with your own rows, a *pgxpool.Pool or *pgx.Conn for what stands alone.
type DB = db.DBTX

// None is the output of a step that has none.
type None = struct{}

const (
	// VersionMax bounds the number of a version.
	VersionMax = 1 << 20
	// DurationMax bounds deadlines, timers and Expires; timeouts and backoffs, which are a job's, end at 24 days.
	DurationMax = 10 * 365 * 24 * time.Hour
)

var nameForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Definition is a kind of saga with inputs of type In: its steps and what each needs, as starters and services agree on it. Declare it and its steps in variables of a package, which
// all of them import; how a step is done is registered by the service that does it (Handle and its like). From its first use on (Validate aside) no step can be added.
// It is safe for concurrent use once its steps are declared.
type Definition[In any] struct{ def *definition }

// definition is a Definition without its type.
type definition struct {
	name      string
	version   int
	namespace int16
	deadline  time.Duration
	steps     []*step // as they were declared, and so each behind those it needs

	hint   job.Hinter
	starts starts // those who start
	ends   ends   // those who await
	goes   going  // which sagas go forward, for units
	mu     sync.Mutex
	sealed *sealed // nil: steps may be added
	served []Worker
}

// sealed is what a definition is once no step can be added.
type sealed struct {
	spec   []byte // as it is registered
	digest string
	err    error // of Validate
}

// Option is a property of a definition.
type Option func(*definition) error

// Version numbers the definition, 1 to VersionMax. Default: 1. Sagas that have started keep their version; a changed definition needs another.
func Version(n int) Option {
	return func(d *definition) error {
		if n < 1 || n > VersionMax {
			return fmt.Errorf("version %d is outside 1 to %d", n, VersionMax)
		}
		d.version = n
		return nil
	}
}

// Deadline compensates a saga that has not passed its pivot, or has not ended where it has none, d after its start; not one that is stuck at its pivot, which may have been done. Default: none. DeadlineIn overrides it for one saga.
func Deadline(d time.Duration) Option {
	return func(def *definition) error {
		def.deadline = d
		return checkDuration("deadline", d)
	}
}

// Namespace sets the number of the namespace. Default: 1, "default".
func Namespace(ns int16) Option {
	return func(d *definition) error {
		if ns < 1 {
			return fmt.Errorf("namespace %d is below 1", ns)
		}
		d.namespace = ns
		return nil
	}
}

func checkDuration(what string, d time.Duration) error {
	if d < time.Millisecond || d > DurationMax {
		return fmt.Errorf("%s of %s is outside 1 ms to 10 years", what, d)
	}
	return nil
}

// Define declares a kind of saga. Name and version are its identity, whatever its Go types are called. A name has 1 to 64 letters, digits, dots, hyphens and underscores. It panics if the
// name or an option is invalid: both are written in code. What is wrong with the steps tells Validate.
func Define[In any](name string, opts ...Option) *Definition[In] {
	d := &definition{name: name, version: 1, namespace: 1}
	if !nameForm.MatchString(name) {
		panic(fmt.Sprintf("saga: definition %q: a name has 1 to 64 letters, digits, dots, hyphens and underscores", name))
	}
	for _, opt := range opts {
		if err := opt(d); err != nil {
			panic(fmt.Sprintf("saga: definition %q: %v", name, err))
		}
	}
	return &Definition[In]{d}
}

// Name is the definition's name.
func (d *Definition[In]) Name() string { return d.def.name }

// Version is the number of the definition's version.
func (d *Definition[In]) Version() int { return d.def.version }

// Validate tells all that is wrong with the definition and its steps, joined, each as an ErrInvalid.
func (d *Definition[In]) Validate() error { return d.def.validate() }

// Register makes the definition known to the database, so that sagas of it can start; every service that declares it may do so, whatever steps it serves. It does nothing where name and version are
// known with the same steps. The error is ErrChanged, a [ChangedError], where they are known with others: declare another Version. ErrInvalid holds all that is wrong.
func (d *Definition[In]) Register(ctx context.Context, on DB) error {
	s := d.def.seal()
	if s.err != nil {
		return s.err
	}
	row, err := db.New(on).RegisterSaga(ctx, db.RegisterSagaParams{Ns: d.def.namespace, Name: d.def.name, Version: int32(d.def.version), Digest: s.digest, Spec: s.spec})
	if err != nil {
		return fmt.Errorf("register %s, version %d: %w", d.def.name, d.def.version, wrap(err))
	}
	if row.ID == 0 {
		return &ChangedError{d.def.name, d.def.version, difference(s.spec, row.Theirs)}
	}
	return nil
}

// add declares a step. It panics where that comes too late.
func (d *definition) add(s *step) *step {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sealed != nil {
		panic(fmt.Sprintf("saga: step %q of %q: declared after the definition was used", s.name, d.name))
	}
	s.def = d
	d.steps = append(d.steps, s)
	return s
}

// seal ends the declaration of steps, and gives what was declared.
func (d *definition) seal() *sealed {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sealed == nil {
		d.sealed = newSealed(d)
	}
	return d.sealed
}
