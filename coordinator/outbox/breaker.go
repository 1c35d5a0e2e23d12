package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

// refusal is how often an event found the receiver down, and what that had accepted at the last time.
type refusal struct {
	times    int
	accepted int64
}

// verdict is what becomes of an event that was not accepted.
type verdict int

const (
	attempt  verdict = iota // it failed
	leave                   // it is left where it is: the receiver as a whole is down
	putAside                // it is put aside uncounted, so that others are tried
)

// refused tells whether err is of the receiver as a whole, and then leaves that alone for a while. It is not if others were accepted since the same event was refused before; to
// find that out, one that is refused again and again gives way to others.
func (r *relay) refused(ctx context.Context, e Event, err error) verdict {
	if errors.Is(err, ErrGone) {
		r.stop(ctx, "the receiver is gone: "+text(err))
		return leave
	}
	after, down := IsUnavailable(err)
	if !down {
		return attempt
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before, again := r.refusals[e.Seq]
	if again && r.accepted > before.accepted {
		delete(r.refusals, e.Seq)
		return attempt
	}
	r.refusals[e.Seq] = refusal{before.times + 1, r.accepted}
	r.rest(max(min(after, r.askedMax()), min(max(2*r.down, r.s.Breaker), breakerMax, max(r.s.BackoffMax, r.s.Breaker))), err)
	if before.times+1 == refusalsMax && r.s.SinkTx == nil {
		return putAside
	}
	return leave
}

// failed counts an attempt that failed, and tells whether so many have failed one after another that the receiver is left alone for a while.
func (r *relay) failed(err error) bool {
	if IsPermanent(err) || r.s.SinkTx != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failures++; r.failures <= failuresMax {
		return false
	}
	r.rest(r.s.Breaker, err)
	return true
}

// rest leaves the receiver alone. Under mu.
func (r *relay) rest(wait time.Duration, err error) {
	if now := session.Monotonic(); r.until <= now { // else others of the same moment have said so
		r.down, r.until = wait, now+int64(wait)
		r.log.Warn("receiver is down, waiting", "wait", wait, "err", err)
	}
}

// stop pauses the subscription.
func (r *relay) stop(ctx context.Context, why string) {
	r.log.Error("subscription paused", "why", why)
	if _, err := r.q.PauseSubscription(ctx, db.PauseSubscriptionParams{Ns: r.s.Namespace, Name: r.s.Name, Why: why}); err != nil {
		r.log.Warn("subscription not paused, trying again", "err", err)
	}
	r.mu.Lock()
	r.down, r.until = r.s.Breaker, session.Monotonic()+int64(r.s.Breaker)
	r.mu.Unlock()
}

// judge says when an event is tried again (in ms; -1: not), or that it is given up.
func (r *relay) judge(ctx context.Context, e Event, err error) (retryMS int64, dead bool) {
	if IsPermanent(err) || e.Attempt >= r.s.Attempts {
		if r.s.Policy == Stop {
			r.stop(ctx, fmt.Sprintf("event %s was given up: %s", e.ID, text(err)))
		}
		r.log.Error("event given up", "event", e.ID, "attempt", e.Attempt, "err", err)
		return -1, true
	}
	wait := r.s.BackoffMax
	if shift := e.Attempt - 1; shift < 32 && r.s.Backoff<<shift < wait && r.s.Backoff<<shift > 0 {
		wait = r.s.Backoff << shift
	}
	if after, ok := IsRetryAfter(err); ok {
		wait = max(wait, min(after, r.askedMax()))
	}
	r.log.Warn("event failed, its key waits", "event", e.ID, "attempt", e.Attempt, "wait", wait, "err", err)
	return wait.Milliseconds(), false
}

// askedMax bounds the waits that a receiver asks for.
func (r *relay) askedMax() time.Duration { return max(r.s.BackoffMax, askedMax) }

func (r *relay) isDown() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.down > 0
}

// waitUp waits while the receiver is left alone. False: ctx ended.
func (r *relay) waitUp(ctx context.Context) bool {
	for ctx.Err() == nil {
		r.mu.Lock()
		left := r.until - session.Monotonic()
		r.mu.Unlock()
		if left <= 0 {
			if !r.isDown() {
				return true
			}
			if s, err := r.q.ReadSubscription(ctx, db.ReadSubscriptionParams{Ns: r.s.Namespace, Name: r.s.Name}); err == nil && !s.Paused {
				return true
			}
			left = int64(pausedEvery)
		}
		pause(ctx, time.Duration(left))
	}
	return false
}
