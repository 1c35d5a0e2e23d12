package tcc

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"time"

	"github.com/pawl-dev/pawl/db"
)

// DB is what a call of this package runs on: a pgx.Tx for what must be atomic with your own rows, a *pgxpool.Pool or *pgx.Conn for what stands alone.
type DB = db.DBTX

const (
	// QueueDefault is the queue of kinds that name none.
	QueueDefault = "default"
	// PriorityDefault is the priority of kinds that name none.
	PriorityDefault = 2
	// AttemptsDefault is how often a branch is confirmed or cancelled, before it is stuck, where MaxAttempts does not say.
	AttemptsDefault = 25
)

var nameForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Kind is a kind of branch with args A: what an initiator, which tries, and a service, which confirms and cancels, agree on. It is safe for concurrent use.
type Kind[A any] struct {
	name string
	opts options
}

type options struct {
	queue        string
	priority     int
	maxAttempts  int
	timeoutMs    *int32
	backoffMs    *int32
	backoffMsMax *int32
}

// Option is a property of a kind.
type Option func(*options) error

// Define declares a kind of branch. The name, 1 to 64 letters, digits, dots, hyphens and underscores, is its identity: a renamed Go type changes nothing. It panics if the name or an option is invalid: both are
// written in code.
func Define[A any](name string, opts ...Option) *Kind[A] {
	k := &Kind[A]{name: name, opts: options{queue: QueueDefault, priority: PriorityDefault, maxAttempts: AttemptsDefault}}
	var faults []error
	if !nameForm.MatchString(name) {
		faults = append(faults, errors.New("a name has 1 to 64 letters, digits, dots, hyphens and underscores"))
	}
	for _, opt := range opts {
		faults = append(faults, opt(&k.opts))
	}
	if err := errors.Join(faults...); err != nil {
		panic(fmt.Sprintf("tcc: kind %q: %v", name, err))
	}
	return k
}

// Name is the kind's name.
func (k *Kind[A]) Name() string { return k.name }

// Queue names the queue of the jobs that confirm and cancel: that of the service which does it, 1 to 128 bytes. Default: "default".
func Queue(name string) Option {
	return func(o *options) error {
		if name == "" || len(name) > 128 {
			return fmt.Errorf("a queue's name has 1 to 128 bytes, not %d", len(name))
		}
		o.queue = name
		return nil
	}
}

// Priority orders these jobs within their queue as job.Priority does: 1 goes first, 4 last. Default: 2.
func Priority(p int) Option {
	return func(o *options) error {
		if p < 1 || p > 4 {
			return fmt.Errorf("priority %d is outside 1 (first) to 4 (last)", p)
		}
		o.priority = p
		return nil
	}
}

// MaxAttempts is how often a branch is confirmed or cancelled, 1 to 1,000, before it is stuck. Default: AttemptsDefault.
func MaxAttempts(n int) Option {
	return func(o *options) error {
		if n < 1 || n > 1000 {
			return fmt.Errorf("max attempts of %d is outside 1 to 1,000", n)
		}
		o.maxAttempts = n
		return nil
	}
}

// AttemptTimeout cancels the context of an attempt to confirm or to cancel after d, from 1 ms. Default: the worker's.
func AttemptTimeout(d time.Duration) Option {
	return func(o *options) (err error) {
		o.timeoutMs, err = millis("timeout", d, time.Millisecond)
		return err
	}
}

// Backoff is how long a failed attempt waits: base after the first, doubled after each, at most longest, ± 20 %. Default: 1 s, 1 h.
func Backoff(base, longest time.Duration) Option {
	return func(o *options) error {
		var err, err2 error
		o.backoffMs, err = millis("backoff", base, 0)
		o.backoffMsMax, err2 = millis("longest backoff", longest, base)
		return errors.Join(err, err2)
	}
}

func millis(what string, d, least time.Duration) (*int32, error) {
	ms := d.Milliseconds()
	if d < least || ms > math.MaxInt32 {
		return nil, fmt.Errorf("%s of %s is outside %s to 24 days", what, d, least)
	}
	n := int32(ms)
	return &n, nil
}
