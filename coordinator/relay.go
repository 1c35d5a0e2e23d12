package coordinator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db"
)

const (
	relayRest    = time.Second // before this process stands for a shard again that it has lost
	positionKeep = time.Hour   // how long positions of subscriptions are kept as history
	positionsMax = 1000        // positions removed in one transaction
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
		for shard := range max(s.Shards, 1) {
			group.Go(func() {
				err := locks.Campaign(ctx, RelayLock(s.Name, shard), relayRest, func(ctx context.Context, _ lock.Term) error {
					return outbox.Relay(ctx, c.pool, s, shard, c.conf.Logger)
				})
				if ctx.Err() == nil {
					cancel(fmt.Errorf("relay %s, shard %d: %w", s.Name, shard, err))
				}
			})
		}
	}
	group.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// sweepOutbox removes positions that newer ones have replaced.
func (c *Coordinator) sweepOutbox(ctx context.Context, r *Report) error {
	for range passesMax {
		n, err := c.q.SweepOutbox(ctx, db.SweepOutboxParams{Ns: c.conf.Namespace, Keep: positionKeep, LimitRows: positionsMax})
		if err != nil {
			return err
		}
		if n < 0 {
			r.Skipped = true
			return nil
		}
		r.Did += n
		if n < positionsMax {
			return nil
		}
	}
	return nil
}
