package outbox

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

const (
	failuresMax  = 10          // deliveries that fail one after another, with none that succeeds, before the receiver counts as down
	parkedEvery  = time.Second // how often parked events are looked at when none is known
	parkedSoon   = 50 * time.Millisecond
	parkedBatch  = 100             // events of a parked key tried at once
	pausedEvery  = time.Second     // how often a relay at work looks whether it is paused
	settleEvery  = time.Second     // how often, at most, a position moves on over events of others,
	settleIDs    = 1000            // or after so many
	errorPause   = time.Second     // after an error of the database
	stopTimeout  = 5 * time.Second // bounds what is still written after ctx has ended
	errorTextMax = 2000            // bytes of an error kept with a parked event
)

// relay hands one shard's events to the sink. Its loop reads, delivers and settles page by page; another goroutine tries parked events again.
type relay struct {
	s    Subscription
	p    place
	pool *pgxpool.Pool
	q    *db.Queries
	log  *slog.Logger
	seed maphash.Seed

	mu       sync.Mutex          // held over a change of parked events and of blocked, so that both agree
	blocked  map[string]struct{} // keys with parked events: later ones wait behind them
	known    bool                // parked events are known of
	failures int                 // deliveries that failed since the last that succeeded
	down     time.Duration       // how long the receiver is left alone this time; 0: it is not down
	until    int64               // until when, by the monotonic clock
}

// Relay hands the events of one shard (from 0) of a subscription to its sink until ctx ends, and then returns nil. Only one relay of a shard should run at a time: a lock
// sees to that (coordinator.Run takes it). Two of them lose nothing and keep what each has settled, but deliver twice. The subscription is made if there is none. No
// transaction is open while the sink is called. Errors of the database are logged and waited out; returned are ErrInvalid, ErrSchema and ErrMoved.
//
// A relay that dies leaves its page unsettled: the next one delivers it again.
func Relay(ctx context.Context, pool *pgxpool.Pool, s Subscription, shard int, log *slog.Logger) error {
	s = s.withDefaults()
	if err := s.Validate(); err != nil {
		return err
	}
	if shard < 0 || shard >= s.Shards {
		return fmt.Errorf("%w: subscription %s: there is no shard %d of %d", ErrInvalid, s.Name, shard, s.Shards)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &relay{s: s, pool: pool, q: db.New(pool), log: log.With("subscription", s.Name, "shard", shard), seed: maphash.MakeSeed()}
	id, _, err := create(ctx, pool, s)
	if err != nil {
		return stopped(ctx, err)
	}
	r.p = place{s.Namespace, id, int16(shard), s.Shards}
	for ctx.Err() == nil {
		err := r.run(ctx)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, ErrLost):
			r.log.Info("position was moved, reading it again")
		case errors.Is(err, ErrMoved), errors.Is(err, ErrSchema), errors.Is(err, ErrInvalid):
			return err
		default:
			r.log.Warn("relay failed, trying again", "err", err)
			pause(ctx, errorPause)
		}
	}
	return nil
}

func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// run relays from the position in the database on, until an error.
func (r *relay) run(ctx context.Context) error {
	if err := r.loadBlocked(ctx); err != nil {
		return err
	}
	at, err := r.p.read(ctx, r.q)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var retries sync.WaitGroup
	retries.Go(func() { r.retryParked(ctx) })
	defer retries.Wait()
	defer cancel()
	var (
		topics   = r.s.Topics
		wait     = r.s.Poll
		lookedAt = session.Monotonic()
		movedAt  = session.Monotonic()
		settled  = at.floor // in the database, where operators see it
	)
	for ctx.Err() == nil {
		if at.batch == nil {
			var paused, empty bool
			topics, paused, empty, err = r.p.open(ctx, r.q, &at)
			if err != nil {
				return err
			}
			lookedAt = session.Monotonic()
			if paused {
				at.batch = nil
				pause(ctx, pausedEvery)
				continue
			}
			if empty && (at.floor == settled || session.Monotonic()-movedAt < int64(settleEvery)) {
				at = at.skip()
				pause(ctx, wait)
				wait = min(2*wait, r.s.PollMax)
				continue
			}
		} else if session.Monotonic()-lookedAt > int64(pausedEvery) {
			s, err := r.q.ReadSubscription(ctx, db.ReadSubscriptionParams{Ns: r.s.Namespace, Name: r.s.Name})
			if err != nil {
				return fmt.Errorf("look at subscription: %w", wrap(err))
			}
			if s.Paused {
				pause(ctx, pausedEvery)
				continue
			}
			lookedAt = session.Monotonic()
		}
		if full, err := r.full(ctx); err != nil || full {
			if err != nil {
				return err
			}
			pause(ctx, pausedEvery)
			continue
		}
		events, err := r.p.page(ctx, r.q, at, topics, r.s.Page)
		if err != nil {
			return err
		}
		aside, ok := r.deliver(ctx, events)
		if !ok {
			return context.Cause(ctx)
		}
		last := len(events) < r.s.Page
		idle := last && len(events) == 0 && at.batch.epoch == at.epoch
		switch {
		case idle && at.batch.ceiling-at.mark < settleIDs && session.Monotonic()-movedAt < int64(settleEvery):
			at = at.skip() // events of others, which are soon read over again
		case last:
			at = at.next()
			fallthrough
		default:
			if !last {
				at.batch.done = events[len(events)-1].Seq
			}
			if err := r.settle(ctx, &at, len(events), aside); err != nil {
				return err
			}
			movedAt, settled = session.Monotonic(), at.floor
		}
		if len(events) > 0 {
			wait = r.s.Poll
		}
		if last {
			pause(ctx, wait)
			wait = min(2*wait, r.s.PollMax)
		}
	}
	return context.Cause(ctx)
}

// settle settles a page, also when ctx has ended meanwhile: what was delivered need not be delivered again.
func (r *relay) settle(ctx context.Context, at *position, events int, aside parks) error {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.p.settle(ctx, r.q, at, events, aside, r.s.Policy == Skip); err != nil {
		return err
	}
	if len(aside.ids) > 0 {
		r.known = true
	}
	return nil
}

func (r *relay) loadBlocked(ctx context.Context) error {
	keys, err := r.q.ListParkedKeys(ctx, db.ListParkedKeysParams{Ns: r.p.ns, SubscriptionID: r.p.id, Shard: r.p.shard, LimitKeys: 1 << 30})
	if err != nil {
		return fmt.Errorf("read parked keys: %w", wrap(err))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocked = map[string]struct{}{}
	for _, key := range keys {
		r.blocked[key] = struct{}{}
	}
	r.known = true
	return nil
}

// full tells whether as many events are parked as may be.
func (r *relay) full(ctx context.Context) (bool, error) {
	r.mu.Lock()
	known := r.known
	r.mu.Unlock()
	if !known {
		return false, nil
	}
	n, err := r.q.CountParked(ctx, db.CountParkedParams{Ns: r.p.ns, SubscriptionID: r.p.id, Shard: r.p.shard, LimitEvents: int32(r.s.ParkedMax)})
	if err != nil {
		return false, fmt.Errorf("count parked events: %w", wrap(err))
	}
	if n >= int64(r.s.ParkedMax) {
		r.log.Error("too many events are parked, none is read", "parked", n)
		return true, nil
	}
	if n == 0 {
		r.mu.Lock()
		r.known = len(r.blocked) > 0
		r.mu.Unlock()
	}
	return false, nil
}

// deliver hands a page to the sink, key by key in order, several keys at once, until each event is delivered or put aside. ok is false when ctx ended before.
func (r *relay) deliver(ctx context.Context, events []Event) (aside parks, ok bool) {
	lanes := r.lanes(events, &aside)
	var mu sync.Mutex // of aside
	for len(lanes) > 0 {
		if !r.waitUp(ctx) {
			return aside, false
		}
		try := lanes
		if r.isDown() {
			try = lanes[:1] // one tells whether it is up again
		}
		var group sync.WaitGroup
		for i := range try {
			group.Go(func() { try[i] = r.lane(ctx, try[i], &aside, &mu) })
		}
		group.Wait()
		if ctx.Err() != nil {
			left := slices.ContainsFunc(lanes, func(l []Event) bool { return len(l) > 0 })
			return aside, !left
		}
		lanes = slices.DeleteFunc(lanes, func(l []Event) bool { return len(l) == 0 })
	}
	return aside, true
}

// lanes divides a page by key. Events of keys that wait are put aside.
func (r *relay) lanes(events []Event, aside *parks) [][]Event {
	out := make([][]Event, r.s.Parallel)
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, e := range events {
		n := i
		if e.Key != "" {
			if _, waits := r.blocked[e.Key]; waits {
				aside.add(e.Seq, 0, -1, false, "")
				continue
			}
			n = int(maphash.String(r.seed, e.Key) % uint64(r.s.Parallel))
		}
		out[n%r.s.Parallel] = append(out[n%r.s.Parallel], e)
	}
	return slices.DeleteFunc(out, func(l []Event) bool { return len(l) == 0 })
}

// lane delivers events one call after the other and returns those that are left because the receiver is down or ctx ended.
func (r *relay) lane(ctx context.Context, events []Event, aside *parks, mu *sync.Mutex) []Event {
	for len(events) > 0 && ctx.Err() == nil {
		n := min(len(events), r.s.Batch)
		accepted, err := r.send(ctx, events[:n])
		events = events[accepted:]
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return events
		}
		if r.refused(ctx, err, true) {
			return events
		}
		failed := events[0]
		retry, dead := r.judge(ctx, failed, err)
		mu.Lock()
		aside.add(failed.Seq, failed.Attempt, retry, dead, text(err))
		rest := events[1:]
		if failed.Key != "" && (!dead || r.s.Policy != Skip) {
			r.mu.Lock()
			r.blocked[failed.Key] = struct{}{}
			r.mu.Unlock()
			others := make([]Event, 0, len(rest))
			for _, e := range rest {
				if e.Key == failed.Key {
					aside.add(e.Seq, 0, -1, false, "")
				} else {
					others = append(others, e)
				}
			}
			rest = others
		}
		mu.Unlock()
		events = rest
	}
	return events
}

// send calls the sink, and keeps it to its word.
func (r *relay) send(ctx context.Context, events []Event) (accepted int, err error) {
	sctx, stop := context.WithTimeout(ctx, r.s.Timeout)
	defer stop()
	defer func() {
		if p := recover(); p != nil {
			accepted, err = 0, fmt.Errorf("outbox: the sink panicked: %v", p)
		}
	}()
	accepted, err = r.s.Sink.Send(sctx, events)
	if accepted < 0 || accepted > len(events) || err == nil && accepted < len(events) {
		return 0, fmt.Errorf("outbox: the sink says that it accepted %d of %d events: %w", accepted, len(events), errors.Join(err, errors.New("its count is wrong")))
	}
	if accepted == len(events) {
		err = nil
	}
	if accepted > 0 {
		r.mu.Lock()
		if r.down > 0 {
			r.log.Info("receiver is up again")
		}
		r.failures, r.down = 0, 0
		r.mu.Unlock()
	}
	return accepted, err
}

// refused tells whether err means the receiver as a whole, and leaves that alone for a while. first: of an event not parked, whose failures count towards that.
func (r *relay) refused(ctx context.Context, err error, first bool) bool {
	if errors.Is(err, ErrGone) {
		r.stop(ctx, "the receiver is gone: "+text(err))
		return true
	}
	after, down := IsUnavailable(err)
	r.mu.Lock()
	defer r.mu.Unlock()
	if first && !IsPermanent(err) {
		r.failures++
		down = down || r.failures > failuresMax
	}
	if !down {
		return false
	}
	if now := session.Monotonic(); r.until <= now { // else others of the same moment have said so
		r.down = min(max(2*r.down, r.s.Breaker), breakerMax, max(r.s.BackoffMax, r.s.Breaker))
		r.until = now + int64(max(r.down, after))
		r.log.Warn("receiver is down, waiting", "wait", max(r.down, after), "err", err)
	}
	return true
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
		wait = max(wait, after)
	}
	r.log.Warn("event failed, its key waits", "event", e.ID, "attempt", e.Attempt, "wait", wait, "err", err)
	return wait.Milliseconds(), false
}

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
			s, err := r.q.ReadSubscription(ctx, db.ReadSubscriptionParams{Ns: r.s.Namespace, Name: r.s.Name})
			if !r.isDown() || err == nil && !s.Paused {
				return true
			}
			left = int64(pausedEvery)
		}
		pause(ctx, time.Duration(left))
	}
	return false
}

func text(err error) string {
	out := err.Error()
	return out[:min(len(out), errorTextMax)]
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
