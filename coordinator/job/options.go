package job

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"
)

// Option is a property of a definition, or of one enqueue that overrides it.
type Option func(*options) error

type options struct {
	namespace    int16
	queue        string
	priority     int16
	runAt        *time.Time
	maxAttempts  int16
	timeoutMs    *int32
	backoffMs    *int32
	backoffMsMax *int32
	headers      json.RawMessage
	header       map[string]string
	dedupeKey    any // func(A) string
	dedupeWindow *time.Duration
}

// PriorityDefault leaves room on both sides.
const PriorityDefault = 2

// AttemptsDefault is how often a job is tried unless MaxAttempts says otherwise.
const AttemptsDefault = 25

func defaults() options {
	return options{namespace: 1, queue: QueueDefault, priority: PriorityDefault, maxAttempts: AttemptsDefault}
}

func (o *options) apply(opts []Option) error {
	var faults []error
	for _, opt := range opts {
		faults = append(faults, opt(o))
	}
	return errors.Join(faults...)
}

// Queue names the queue, 1 to 128 characters, created on first use. Default: "default".
func Queue(name string) Option {
	return func(o *options) error {
		if name == "" || len(name) > 128 {
			return fmt.Errorf("a queue's name has 1 to 128 bytes, not %d", len(name))
		}
		o.queue = name
		return nil
	}
}

// Namespace sets the number of the namespace. Default: 1, "default".
func Namespace(ns int16) Option {
	return func(o *options) error {
		o.namespace = ns
		return nil
	}
}

// Priority orders the lines of a queue: 1 goes first, 4 last, and a later one waits while an earlier one has jobs. Default: 2.
func Priority(p int) Option {
	return func(o *options) error {
		if p < 1 || p > 4 {
			return fmt.Errorf("priority %d is outside 1 (first) to 4 (last)", p)
		}
		o.priority = int16(p)
		return nil
	}
}

// RunAt keeps the job back until t, by the database's clock.
func RunAt(t time.Time) Option {
	return func(o *options) error {
		o.runAt = &t
		return nil
	}
}

// MaxAttempts is how often a job is tried, 1 to 1,000, before it is discarded. Default: 25.
func MaxAttempts(n int) Option {
	return func(o *options) error {
		if n < 1 || n > 1000 {
			return fmt.Errorf("max attempts of %d is outside 1 to 1,000", n)
		}
		o.maxAttempts = int16(n)
		return nil
	}
}

// Timeout cancels the handler's context after d, from 1 ms. Default: the worker's.
func Timeout(d time.Duration) Option {
	return func(o *options) error {
		ms, err := millis("timeout", d, time.Millisecond)
		o.timeoutMs = ms
		return err
	}
}

// Backoff is how long a failed attempt waits: base after the first, doubled after each, at most longest, ± 20 %. Default: 1 s, 1 h.
func Backoff(base, longest time.Duration) Option {
	return func(o *options) error {
		first, err := millis("backoff", base, 0)
		last, err2 := millis("longest backoff", longest, base)
		o.backoffMs, o.backoffMsMax = first, last
		return errors.Join(err, err2)
	}
}

// Dedupe allows one unfinished job of the kind with the same key (1 to 512 characters): a second enqueue gets the first one's id.
func Dedupe[A any](key func(A) string) Option {
	return func(o *options) error {
		o.dedupeKey = key
		return nil
	}
}

// DedupeFor makes the dedupe keys last for d from the enqueue, whatever the job does, rather than until it is finished.
func DedupeFor(d time.Duration) Option {
	return func(o *options) error {
		if d <= 0 {
			return fmt.Errorf("dedupe window of %s is not positive", d)
		}
		o.dedupeWindow = &d
		return nil
	}
}

// Header adds a header, such as a trace context, that the handler finds in Job.Headers.
func Header(key, value string) Option {
	return func(o *options) error {
		h := maps.Clone(o.header)
		if h == nil {
			h = map[string]string{}
		}
		h[key] = value
		b, err := json.Marshal(h)
		o.header, o.headers = h, b
		return err
	}
}

func millis(what string, d, least time.Duration) (*int32, error) {
	ms := d.Milliseconds()
	if d < least || ms > 1<<31-1 {
		return nil, fmt.Errorf("%s of %s is outside %s to 24 days", what, d, least)
	}
	n := int32(ms)
	return &n, nil
}
