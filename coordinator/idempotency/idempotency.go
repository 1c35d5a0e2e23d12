package idempotency

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
)

var (
	// ErrInFlight: another is at work on the key.
	ErrInFlight = errors.New("idempotency: a request with this key is in flight")
	// ErrMismatch: the key was used for another request.
	ErrMismatch = errors.New("idempotency: the key was used for another request")
	// ErrUnknown: the connection was lost during COMMIT. The effect happened or did not; asking again with the same key finds out.
	ErrUnknown = errors.New("idempotency: outcome unknown, the connection was lost during COMMIT")
	// ErrLost: the claim ran out and another has taken it over, or this process could not renew it and must suppose so. It is also the cause with which the context ends.
	ErrLost = errors.New("idempotency: the claim on the key was lost")
	// ErrPoint: a phased request stands at a point that the code does not come by. The error names both.
	ErrPoint = errors.New("idempotency: unknown recovery point")
	// ErrEnded: the function sent COMMIT or ROLLBACK as SQL. What it committed stays; no answer was stored.
	ErrEnded = errors.New("idempotency: the function ended its transaction itself")
	// ErrInvalid: a key, scope, consumer, name, answer or option is outside what is documented.
	ErrInvalid = errors.New("idempotency: invalid")
	// ErrSchema: the database lacks Pawl's schema or has an older one.
	ErrSchema = session.ErrSchema
)

// The limits of what is stored.
const (
	ScopeBytesMax       = 1024
	KeyBytesMax         = 255
	FingerprintBytesMax = 255
	BodyBytesMax        = 1 << 20  // of an answer, unless Options say otherwise
	BodyBytesMost       = 64 << 20 // what Options may say
	HeaderBytesMax      = 64 << 10 // of all headers of an answer together, as JSON
)

// Key names a request. Scope tells whose key it is and for what, such as the authenticated client and the route: without it one client could be answered with what
// another was.
type Key struct {
	Scope string
	Key   string
}

// Response is what is stored and replayed.
type Response struct {
	Status  int
	Headers map[string][]string
	Body    []byte
}

// Options of Do and Phases. Their zero value works.
type Options struct {
	// Namespace is the number of the namespace. Default: 1, "default".
	Namespace int16
	// TTL is how long an answer is kept. Default: 24 h.
	TTL time.Duration
	// Wait is how long to wait for another request with the same key. No connection is held meanwhile: the key is looked at every few milliseconds, later every 100.
	// Default: not at all.
	Wait time.Duration
	// Idle is how long a function may leave its transaction idle; then Postgres ends it, so that a process that was frozen or cut off does not hold the key for ever.
	// An idle_in_transaction_session_timeout of the role or database takes precedence. Default: 1 min.
	Idle time.Duration
	// Lease is how long after the last that was heard of a process its phased request may be taken over by another. The process renews it three times as often for
	// as long as the request runs, so that only a dead, frozen or cut off one loses it. Default: 15 s.
	Lease time.Duration
	// BodyBytesMax bounds the body of an answer; a larger one is ErrInvalid. Default: the constant of that name, 1 MiB. At most BodyBytesMost.
	BodyBytesMax int

	fail func(point string) // of tests
}

const (
	ttlDefault   = 24 * time.Hour
	idleDefault  = time.Minute
	leaseDefault = 15 * time.Second
	leaseMin     = 100 * time.Millisecond
)

func (o Options) withDefaults() Options {
	o.Namespace = max(o.Namespace, 1)
	if o.TTL == 0 {
		o.TTL = ttlDefault
	}
	if o.Idle == 0 {
		o.Idle = idleDefault
	}
	if o.Lease == 0 {
		o.Lease = leaseDefault
	}
	if o.BodyBytesMax == 0 {
		o.BodyBytesMax = BodyBytesMax
	}
	if o.fail == nil {
		o.fail = func(string) {}
	}
	return o
}

// validate reports all faults at once.
func (o Options) validate() error {
	var faults []error
	if o.TTL < 0 || o.Wait < 0 {
		faults = append(faults, fmt.Errorf("%w: TTL %s and Wait %s may not be below 0", ErrInvalid, o.TTL, o.Wait))
	}
	if o.Idle != 0 && (o.Idle < time.Millisecond || o.Idle > 24*time.Hour) {
		faults = append(faults, fmt.Errorf("%w: Idle %s is outside 1 ms to 24 h", ErrInvalid, o.Idle))
	}
	if o.Lease != 0 && (o.Lease < leaseMin || o.Lease > 24*time.Hour) {
		faults = append(faults, fmt.Errorf("%w: Lease %s is outside %s to 24 h", ErrInvalid, o.Lease, leaseMin))
	}
	if o.BodyBytesMax < 0 || o.BodyBytesMax > BodyBytesMost {
		faults = append(faults, fmt.Errorf("%w: BodyBytesMax %d is outside 0 to %d", ErrInvalid, o.BodyBytesMax, BodyBytesMost))
	}
	return errors.Join(faults...)
}

// request is a key at work.
type request struct {
	Options
	pool        *pgxpool.Pool
	key         Key
	fingerprint []byte
}

func newRequest(pool *pgxpool.Pool, key Key, fingerprint []byte, o Options) (request, error) {
	if fingerprint == nil {
		fingerprint = []byte{}
	}
	faults := []error{o.validate()}
	if len(key.Scope) > ScopeBytesMax || key.Key == "" || len(key.Key) > KeyBytesMax || len(fingerprint) > FingerprintBytesMax {
		faults = append(faults, fmt.Errorf("%w: a scope has up to %d bytes, not %d, a key 1 to %d, not %d, a fingerprint up to %d, not %d", ErrInvalid, ScopeBytesMax,
			len(key.Scope), KeyBytesMax, len(key.Key), FingerprintBytesMax, len(fingerprint)))
	}
	if !isText(key.Scope) || !isText(key.Key) {
		faults = append(faults, fmt.Errorf("%w: scope and key are UTF-8 without NUL", ErrInvalid))
	}
	return request{o.withDefaults(), pool, key, fingerprint}, errors.Join(faults...)
}

// isText tells what Postgres takes as text.
func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// Do runs fn in a transaction (READ COMMITTED) that also stores its answer under the key, and returns the answer once both are committed. If the key has an answer, that is
// returned with replayed true, in one round trip, and fn does not run. fingerprint tells requests apart, such as a hash of the payload: another than the stored one is
// ErrMismatch, before anything is replayed. Of concurrent calls with a key one runs fn; the others are ErrInFlight, or wait with Options.Wait.
//
// An error or a panic of fn rolls all back, and so does a crash anywhere before the commit: then the key is free again, and nothing need be waited for. A key whose
// answer has expired is like one never used. After ErrUnknown the transaction may still be about to commit: the key is in flight until the server has ended it, so fn never
// runs beside it. How durable the commit is, synchronous_commit of the connection says, as for any transaction.
//
// fn may not end tx, nor use it once it has returned. It should not call other services: see Phases. The error is fn's, ErrInFlight, ErrMismatch, ErrUnknown, ErrPoint (the
// key is a phased request's, which was not finished), ErrEnded, ErrInvalid, ErrSchema or the database's.
func Do(ctx context.Context, pool *pgxpool.Pool, key Key, fingerprint []byte, o Options, fn func(ctx context.Context, tx pgx.Tx) (Response, error)) (out Response, replayed bool, err error) {
	r, err := newRequest(pool, key, fingerprint, o)
	if err != nil {
		return out, false, err
	}
	var t *taken
	err = poll(ctx, r.Wait, func() error {
		out, replayed, t, err = r.take(ctx)
		return err
	})
	if err != nil || replayed {
		return out, replayed, err
	}
	defer t.release(ctx)
	if out, err = fn(ctx, t.tx); err != nil {
		return Response{}, false, err
	}
	if err := t.store(ctx, out); err != nil {
		return Response{}, false, err
	}
	return out, false, nil
}

// How often a key is looked at by those who wait for it.
const (
	pollFirst = 5 * time.Millisecond
	pollMost  = 100 * time.Millisecond
)

// poll tries until the key is not in flight, for as long as wait.
func poll(ctx context.Context, wait time.Duration, try func() error) error {
	err := try()
	if wait <= 0 || !errors.Is(err, ErrInFlight) {
		return err
	}
	over := time.NewTimer(wait)
	defer over.Stop()
	for pause := pollFirst; errors.Is(err, ErrInFlight); pause = min(pause*3/2, pollMost) {
		next := time.NewTimer(pause)
		select {
		case <-next.C:
			err = try()
		case <-over.C:
			next.Stop()
			return err
		case <-ctx.Done():
			next.Stop()
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
	}
	return err
}
