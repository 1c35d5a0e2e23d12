package outbox

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
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
