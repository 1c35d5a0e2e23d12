package coordinator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db"
)

const (
	relayRest    = time.Second     // before this process stands for a shard again that it has lost or given up
	relayBalance = 5 * time.Second // how often it looks whether it has more than its share
	waitersMax   = 1000            // waiters of a shard that are looked at for that
	positionKeep = time.Hour       // how long positions of subscriptions are kept as history
	positionsMax = 1000            // positions removed in one transaction
	lockClose    = 5 * time.Second
)

// RelayLock is the name of the lock that the relay of a shard holds.
func RelayLock(subscription string, shard int) string {
	return fmt.Sprintf("pawl.outbox/%s/%d", subscription, shard)
}

// relay relays the configured subscriptions until ctx ends: each shard while this process holds its lock. It returns at once if there are none, and early with the error of
// a relay that cannot work.
func (c *Coordinator) relay(ctx context.Context) error {
	if len(c.conf.Subscriptions) == 0 {
		return nil
	}
	locks, err := lock.Open(ctx, c.pool, lock.Config{
		Namespace: c.conf.Namespace, Name: c.conf.Name, Version: c.conf.Version, TTL: c.conf.TTL, PollOnly: c.conf.PollOnly, Logger: c.conf.Logger,
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("coordinator: %w", err)
	}
	defer func() {
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), lockClose)
		defer stop()
		_ = locks.Close(ctx) // else its session runs out
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for _, s := range c.conf.Subscriptions {
		s.Namespace = c.conf.Namespace
		all := &shards{c: c, s: s, locks: locks, n: max(s.Shards, 1), held: map[int]context.CancelFunc{}}
		for shard := range all.n {
			group.Go(func() {
				if err := all.stand(ctx, shard); ctx.Err() == nil {
					cancel(fmt.Errorf("relay %s, shard %d: %w", s.Name, shard, err))
				}
			})
		}
		if all.n > 1 {
			group.Go(func() { all.balance(ctx) })
		}
	}
	group.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// shards are those of a subscription, of which this process relays some.
type shards struct {
	c     *Coordinator
	s     outbox.Subscription
	locks *lock.Locks
	n     int

	mu   sync.Mutex
	held map[int]context.CancelFunc // ends the relay of a shard
}

// stand relays a shard whenever this process has its lock, until ctx ends.
func (a *shards) stand(ctx context.Context, shard int) error {
	return a.locks.Campaign(ctx, RelayLock(a.s.Name, shard), relayRest, func(ctx context.Context, _ lock.Term) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		a.mu.Lock()
		a.held[shard] = cancel
		a.mu.Unlock()
		defer func() {
			a.mu.Lock()
			delete(a.held, shard)
			a.mu.Unlock()
		}()
		return outbox.Relay(ctx, a.c.pool, a.s, shard, a.c.conf.Logger)
	})
}

// balance gives up shards that this process has beyond its share: all processes that relay the subscription wait for each shard that they do not have.
func (a *shards) balance(ctx context.Context) {
	ticks := time.NewTicker(relayBalance)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		a.mu.Lock()
		held := slices.Collect(maps.Keys(a.held))
		a.mu.Unlock()
		if len(held) < 2 {
			continue
		}
		waiters, err := lock.Waiters(ctx, a.c.pool, a.c.conf.Namespace, RelayLock(a.s.Name, held[0]), waitersMax)
		if err != nil {
			continue // the next look will do
		}
		others := map[int64]bool{}
		for _, w := range waiters {
			others[w.Session] = true
		}
		share := (a.n + len(others)) / (len(others) + 1)
		if len(held) <= share {
			continue
		}
		a.c.conf.Logger.Info("shards given up to other processes", "subscription", a.s.Name, "shards", len(held)-share)
		a.mu.Lock()
		for _, shard := range held[share:] {
			if cancel, ok := a.held[shard]; ok {
				cancel()
			}
		}
		a.mu.Unlock()
	}
}

// keepOutbox stores how long events are kept, if the configuration says.
func (c *Coordinator) keepOutbox(ctx context.Context) error {
	if c.conf.OutboxKeep == 0 && c.conf.OutboxHold == 0 {
		return nil
	}
	p := db.KeepOutboxParams{Ns: c.conf.Namespace}
	if c.conf.OutboxKeep != 0 {
		p.Keep = &c.conf.OutboxKeep
	}
	if c.conf.OutboxHold != 0 {
		p.Hold = &c.conf.OutboxHold
	}
	if err := c.q.KeepOutbox(ctx, p); err != nil {
		return fmt.Errorf("coordinator: keep events: %w", wrap(err))
	}
	return nil
}

// sweepOutbox removes positions that newer ones have replaced.
func (c *Coordinator) sweepOutbox(ctx context.Context, r *Report) error {
	return removeAll(r, positionsMax, func() (int64, error) {
		return c.q.SweepOutbox(ctx, db.SweepOutboxParams{Ns: c.conf.Namespace, Keep: positionKeep, LimitRows: positionsMax})
	})
}
