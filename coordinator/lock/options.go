package lock

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// The bounds of what is asked for.
const (
	NameBytesMax  = 512
	OwnerBytesMax = 256
	PermitsMax    = 10_000
	HoldMax       = 7 * 24 * time.Hour
	DelayMax      = time.Hour
)

// request is what an Acquire asks for.
type request struct {
	mode    string
	permits int32
	wait    time.Duration // negative: for as long as it takes; 0: not at all
	hold    time.Duration // 0: for as long as the session lives
	delay   time.Duration
	owner   string // "": that of the context
}

// Option changes what an Acquire asks for.
type Option func(*request) error

// Wait bounds the time that Acquire waits; then it returns ErrTimeout. Without it Acquire waits until its context ends.
func Wait(d time.Duration) Option {
	return func(r *request) error {
		if d < 0 {
			return fmt.Errorf("wait of %s is negative", d)
		}
		r.wait = d
		return nil
	}
}

// Shared asks for the lock together with other shared holders. Who waits for it alone keeps new ones out.
func Shared() Option {
	return func(r *request) error {
		r.mode = "shared"
		return nil
	}
}

// Semaphore asks for one of n permits. Everyone who uses the name should give the same n.
func Semaphore(n int) Option {
	return func(r *request) error {
		if n < 1 || n > PermitsMax {
			return fmt.Errorf("a semaphore of %d permits is outside 1 to %d", n, PermitsMax)
		}
		r.mode, r.permits = "semaphore", int32(n)
		return nil
	}
}

// Owner names an owner that may span processes, such as "workflow:42": the lock is granted to it again wherever it asks, each time under a token of its own. Where it
// holds the lock in two modes, others find it held exclusively. Without it the owner is that of the context, else a new one.
func Owner(name string) Option {
	return func(r *request) error {
		if name == "" || len(name) > OwnerBytesMax || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
			return fmt.Errorf("an owner's name has 1 to %d bytes of UTF-8, not %d", OwnerBytesMax, len(name))
		}
		r.owner = name
		return nil
	}
}

// MaxHold ends the grant after d, at most HoldMax, though its session lives on. The lease's context is cancelled before, with cause ErrExpired.
func MaxHold(d time.Duration) Option {
	return func(r *request) error {
		if d < 10*time.Millisecond || d > HoldMax {
			return fmt.Errorf("a maximum hold of %s is outside 10 ms to %s", d, HoldMax)
		}
		r.hold = d
		return nil
	}
}

// DelayAfterLoss keeps the lock from everyone for d, at most DelayMax, when this holder is lost rather than releases it: for what it may still have on its way to
// resources that check no token. Default: none.
func DelayAfterLoss(d time.Duration) Option {
	return func(r *request) error {
		if d < 0 || d > DelayMax {
			return fmt.Errorf("a delay of %s is outside 0 to %s", d, DelayMax)
		}
		r.delay = d
		return nil
	}
}

func newRequest(name string, opts []Option) (request, error) {
	r := request{mode: "exclusive", permits: 1, wait: -1}
	if name == "" || len(name) > NameBytesMax || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return r, fmt.Errorf("%w: a lock's name has 1 to %d bytes of UTF-8, not %d", ErrInvalid, NameBytesMax, len(name))
	}
	for _, opt := range opts {
		if err := opt(&r); err != nil {
			return r, fmt.Errorf("%w: lock %s: %w", ErrInvalid, name, err)
		}
	}
	return r, nil
}
