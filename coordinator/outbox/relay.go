package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

const (
	failuresMax  = 10          // attempts that fail one after another, with none that succeeds, before the receiver is left alone between them
	parkedEvery  = time.Second // how often parked events are looked at when none is known
	parkedSoon   = 50 * time.Millisecond
	parkedBatch  = 100             // events of a parked key tried at once,
	parkedBytes  = 1 << 20         // or as many as reach this
	pausedEvery  = time.Second     // how often a relay at work looks whether it is paused
	settleEvery  = time.Second     // how often, at most, a position moves on over events of others,
	settleIDs    = 1000            // or after so many
	errorPause   = time.Second     // after an error of the database
	stopTimeout  = 5 * time.Second // bounds what is still written after ctx has ended
	refusalsMax  = 5               // how often an event finds the receiver down before it is put aside, so that others are tried
	errorTextMax = 2000            // bytes of an error kept with a parked event
	askedMax     = time.Hour       // the longest wait that a receiver may ask for, if BackoffMax is not longer
)

// PageBytesMax ends a page early, after the event that reaches it, so that large ones do not add up.
const PageBytesMax = 16 << 20

// relay hands one shard's events to the sink. Its loop reads, delivers and settles page by page; another goroutine tries parked events again.
type relay struct {
	s    Subscription
	p    place
	pool *pgxpool.Pool
	q    *db.Queries
	log  *slog.Logger
	seed maphash.Seed

	page  int    // events read at once: Page, or as many large ones as fit, or 1 after a transaction of a TxSink was lost
	blame *blame // of the event that is next

	news  chan struct{} // events were parked, or a key can go on
	since int64         // position.since of this run

	mu       sync.Mutex          // held over a change of parked events and of blocked, so that both agree
	blocked  map[string]struct{} // keys with parked events: later ones wait behind them
	known    bool                // parked events are known of
	failures int                 // attempts that failed since the last that succeeded
	accepted int64               // events that the receiver has accepted
	refusals map[int64]refusal   // of events that found it down, by number
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
	r := &relay{s: s, p: place{s.Namespace, 0, int16(shard), s.Shards}, pool: pool, q: db.New(pool), log: log.With("subscription", s.Name, "shard", shard), seed: maphash.MakeSeed(), page: s.Page, news: make(chan struct{}, 1)}
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

// run relays from the position in the database on, until an error.
func (r *relay) run(ctx context.Context) error {
	if r.p.id == 0 {
		id, _, err := create(ctx, r.pool, r.s)
		if err != nil {
			return err
		}
		r.p.id = id
	}
	if err := r.q.Incarnate(ctx); err != nil {
		return fmt.Errorf("begin incarnation: %w", wrap(err))
	}
	at, err := r.p.read(ctx, r.q)
	if err != nil {
		return err
	}
	if err := r.loadBlocked(ctx); err != nil { // after the position: what another relay parks from here on moves that, and is found out
		return err
	}
	r.since = at.since
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
		turn := r.turn
		if r.s.SinkTx != nil {
			turn = r.turnTx
		}
		got, err := turn(ctx, &at, topics, session.Monotonic()-movedAt < int64(settleEvery))
		if err != nil {
			return err
		}
		if got.moved {
			movedAt, settled = session.Monotonic(), at.floor
		}
		if got.events > 0 {
			wait = r.s.Poll
		}
		if got.last {
			pause(ctx, wait)
			wait = min(2*wait, r.s.PollMax)
		}
	}
	return context.Cause(ctx)
}

// turned is what became of a turn.
type turned struct {
	events int
	last   bool // of the batch
	moved  bool // the position was appended
}

// turn reads a page of the open batch, delivers and settles it. lazy: a position that has moved over events of others only need not be kept.
func (r *relay) turn(ctx context.Context, at *position, topics []string, lazy bool) (turned, error) {
	return r.turnOn(ctx, r.pool, r.s.Sink, at, topics, lazy)
}

func (r *relay) turnOn(ctx context.Context, on DB, sink Sink, at *position, topics []string, lazy bool) (turned, error) {
	events, last, err := r.p.page(ctx, on, *at, topics, r.page)
	if err != nil {
		return turned{}, err
	}
	aside, err := r.deliver(ctx, sink, events)
	if err != nil {
		return turned{}, err
	}
	got := turned{events: len(events), last: last}
	if !last && len(events) < r.page {
		r.page = len(events) // they are large: more would be read in vain
	} else {
		r.page = min(2*r.page, r.s.Page)
	}
	idle := last && len(events) == 0 && at.batch.epoch == at.epoch
	switch {
	case idle && at.batch.ceiling-at.mark < settleIDs && lazy:
		*at = at.skip() // events of others, which are soon read over again
		return got, nil
	case last:
		*at = at.next()
	default:
		at.batch.done = events[len(events)-1].Seq
	}
	got.moved = true
	return got, r.settle(ctx, db.New(on), at, len(events), aside)
}

// settle settles a page, also when ctx has ended meanwhile: what was delivered need not be delivered again.
func (r *relay) settle(ctx context.Context, q *db.Queries, at *position, events int, aside parks) error {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.p.settle(ctx, q, at, events, aside, r.s.Policy == Skip, r.s.SinkTx != nil); err != nil {
		return err
	}
	r.block(aside)
	return nil
}

// block has later events of the keys put aside wait behind them, also where a key was drained after its event had been read. Under mu.
func (r *relay) block(aside parks) {
	if len(aside.keys) > 0 {
		r.known = true
		r.wake()
	}
	for i, key := range aside.keys {
		if key != "" && (!aside.dead[i] || r.s.Policy != Skip) {
			r.blocked[key] = struct{}{}
		}
	}
}

// wake has parked events looked at now.
func (r *relay) wake() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

func (r *relay) loadBlocked(ctx context.Context) error {
	keys, err := r.q.ListParkedKeys(ctx, db.ListParkedKeysParams{Ns: r.p.ns, SubscriptionID: r.p.id, Shard: r.p.shard, LimitKeys: 1 << 30})
	if err != nil {
		return fmt.Errorf("read parked keys: %w", wrap(err))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocked, r.refusals = map[string]struct{}{}, map[int64]refusal{}
	for _, key := range keys {
		r.blocked[key] = struct{}{}
	}
	r.known = true // perhaps; full finds out
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

// errDown ends the turn of a TxSink that says it is down, for no transaction is to be open while it is left alone.
var errDown = errors.New("outbox: the receiver is down")

// deliver hands a page to the sink, key by key in order, several keys at once, until each event is delivered or put aside. The error is errDown, or why ctx ended before.
func (r *relay) deliver(ctx context.Context, sink Sink, events []Event) (aside parks, err error) {
	lanes := r.lanes(events, &aside)
	var mu sync.Mutex // of aside
	for len(lanes) > 0 {
		if r.s.SinkTx == nil && !r.waitUp(ctx) {
			return aside, context.Cause(ctx)
		}
		try := lanes
		if r.isDown() {
			try = lanes[:1] // one tells whether it is up again
		}
		var group sync.WaitGroup
		for i := range try {
			group.Go(func() { try[i] = r.lane(ctx, sink, try[i], &aside, &mu) })
		}
		group.Wait()
		lanes = slices.DeleteFunc(append(lanes[len(try):], try...), func(l []Event) bool { return len(l) == 0 }) // the next one tells the next time
		if len(lanes) > 0 && (ctx.Err() != nil || r.s.SinkTx != nil) {
			return aside, cmp.Or(context.Cause(ctx), errDown)
		}
	}
	return aside, nil
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
				aside.add(e, -1, false, "")
				continue
			}
			n = int(maphash.String(r.seed, e.Key) % uint64(r.s.Parallel))
		}
		out[n%r.s.Parallel] = append(out[n%r.s.Parallel], e)
	}
	return slices.DeleteFunc(out, func(l []Event) bool { return len(l) == 0 })
}

// lane delivers events one call after the other and returns those that are left because the receiver is down or ctx ended.
func (r *relay) lane(ctx context.Context, sink Sink, events []Event, aside *parks, mu *sync.Mutex) []Event {
	for len(events) > 0 && ctx.Err() == nil {
		n := min(len(events), r.s.Batch)
		accepted, err := r.send(ctx, sink, events[:n:n])
		events = events[accepted:]
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return events
		}
		failed := events[0]
		var (
			retry int64
			dead  bool
		)
		switch r.refused(ctx, failed, err) {
		case leave:
			return events
		case putAside:
			failed.Attempt--
		case attempt:
			retry, dead = r.judge(ctx, failed, err)
		}
		mu.Lock()
		aside.add(failed, retry, dead, text(err))
		rest := events[1:]
		if failed.Key != "" && (!dead || r.s.Policy != Skip) {
			rest = make([]Event, 0, len(rest))
			for _, e := range events[1:] {
				if e.Key == failed.Key {
					aside.add(e, -1, false, "")
				} else {
					rest = append(rest, e)
				}
			}
		}
		mu.Unlock()
		events = rest
		if r.failed(err) {
			return events
		}
	}
	return events
}

// send calls the sink, and keeps it to its word. One that has got through some of the events when its time is over has not failed: the rest follows.
func (r *relay) send(ctx context.Context, sink Sink, events []Event) (accepted int, err error) {
	sctx, stop := context.WithTimeout(ctx, r.s.Timeout)
	defer stop()
	late := time.AfterFunc(2*r.s.Timeout, func() {
		r.log.Error("the sink does not return, and holds up its subscription", "timeout", r.s.Timeout, "event", events[0].ID)
	})
	defer late.Stop()
	defer func() {
		if p := recover(); p != nil {
			accepted, err = 0, fmt.Errorf("outbox: the sink panicked: %v", p)
		}
	}()
	accepted, err = sink.Send(sctx, events)
	if accepted < 0 || accepted > len(events) || err == nil && accepted < len(events) {
		return 0, fmt.Errorf("outbox: the sink says that it accepted %d of %d events: %w", accepted, len(events), errors.Join(err, errors.New("its count is wrong")))
	}
	if accepted == len(events) || accepted > 0 && sctx.Err() != nil {
		err = nil
	}
	if accepted > 0 {
		r.mu.Lock()
		if r.down > 0 {
			r.log.Info("receiver is up again")
		}
		r.failures, r.down = 0, 0
		r.accepted += int64(accepted)
		for _, e := range events[:accepted] {
			delete(r.refusals, e.Seq)
		}
		r.mu.Unlock()
	}
	return accepted, err
}

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

// text is what is kept of an error: Postgres takes neither broken characters nor NUL.
func text(err error) string {
	out := err.Error()
	return strings.ReplaceAll(strings.ToValidUTF8(out[:min(len(out), errorTextMax)], "\uFFFD"), "\x00", "\uFFFD")
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
