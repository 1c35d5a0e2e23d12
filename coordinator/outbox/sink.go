package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Sink takes events to where they are wanted. Send is called by several goroutines at once, never with the same key in two of them.
//
// Send delivers events in their order and tells how many of them, from the front, the receiver has durably accepted; err says why the next one was not, and is nil
// if and only if accepted is len(events). It must not deliver an event whose predecessor of the same key it has not delivered. What is not accepted is sent again,
// and so is what was accepted if the relay dies before that is noted: the receiver must recognise an event's ID. It must return soon after ctx ends.
//
// How the relay takes err:
//
//	Permanent(err)     the event will never be accepted: no further attempts are made
//	RetryAfter(err, d) an attempt failed; the next one is made no earlier than after d
//	Unavailable(err)   the receiver as a whole is down: the breaker opens, and no attempt is counted; of an event that is refused so while others are accepted, one is
//	ErrGone            the receiver wants nothing more: the subscription is paused
//	any other          an attempt failed; the next one is made after the subscription's backoff
//
// A wait that the receiver asks for is kept to an hour, or to BackoffMax if that is longer.
type Sink interface {
	Send(ctx context.Context, events []Event) (accepted int, err error)
}

// SinkFunc is a function that is a Sink.
type SinkFunc func(ctx context.Context, events []Event) (accepted int, err error)

// Send calls f.
func (f SinkFunc) Send(ctx context.Context, events []Event) (int, error) { return f(ctx, events) }

// TxSink takes events to where they are wanted in the same database. What SendTx writes in tx commits with the position of the subscription: its effects happen exactly once
// for each event. It gets events of any keys in their order, one call at a time in a shard. An error undoes what the call wrote; the events then come one by one, and one that
// fails alone is put aside with those of its key, as with a Sink. It must not end tx, and had better not call the network: its transaction is open.
//
// A TxSink that has the method Committed(context.Context, *pgxpool.Pool) is called there after each commit, such as to send hints.
type TxSink interface {
	SendTx(ctx context.Context, tx pgx.Tx, events []Event) error
}

// TxSinkFunc is a function that is a TxSink.
type TxSinkFunc func(ctx context.Context, tx pgx.Tx, events []Event) error

// SendTx calls f.
func (f TxSinkFunc) SendTx(ctx context.Context, tx pgx.Tx, events []Event) error {
	return f(ctx, tx, events)
}

// ErrGone is what a sink returns when its receiver wants nothing more, for ever.
var ErrGone = errors.New("outbox: the receiver is gone")

// permanentError, unavailableError and retryError carry what a sink knows of a failure.
type (
	permanentError   struct{ err error }
	unavailableError struct {
		err   error
		after time.Duration
	}
	retryError struct {
		err   error
		after time.Duration
	}
)

func (e *permanentError) Error() string   { return e.err.Error() }
func (e *permanentError) Unwrap() error   { return e.err }
func (e *unavailableError) Error() string { return e.err.Error() }
func (e *unavailableError) Unwrap() error { return e.err }
func (e *retryError) Error() string       { return fmt.Sprintf("%v (retry after %s)", e.err, e.after) }
func (e *retryError) Unwrap() error       { return e.err }

// Permanent says that an event will never be accepted, whatever is tried.
func Permanent(err error) error { return &permanentError{err} }

// Unavailable says that the receiver as a whole is down, for at least a time if one is given.
func Unavailable(err error, after ...time.Duration) error {
	e := &unavailableError{err: err}
	if len(after) > 0 {
		e.after = after[0]
	}
	return e
}

// RetryAfter says that the next attempt is to be made no earlier than after d.
func RetryAfter(err error, d time.Duration) error { return &retryError{err, d} }

// IsPermanent tells whether err is one of Permanent.
func IsPermanent(err error) bool { var e *permanentError; return errors.As(err, &e) }

// IsUnavailable tells whether err is one of Unavailable, and for how long the receiver asked to be left alone, 0 if it did not say.
func IsUnavailable(err error) (after time.Duration, ok bool) {
	var e *unavailableError
	if !errors.As(err, &e) {
		return 0, false
	}
	return e.after, true
}

// IsRetryAfter tells whether err is one of RetryAfter, and after how long.
func IsRetryAfter(err error) (after time.Duration, ok bool) {
	var e *retryError
	if !errors.As(err, &e) {
		return 0, false
	}
	return e.after, true
}
