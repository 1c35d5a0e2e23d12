package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
)

// ConsumeTx hands up to limit events of a shard (from 0) of a subscription, made before by Create, to handle, in the transaction that also moves the position: what handle
// writes to this database happens exactly once for each event. One that does nothing in it for a minute loses the transaction. It returns how many events there were, 0 when none is waiting. An error of handle undoes both, and the same
// events come again. One consumer of a shard works at a time, others wait. handle may publish events itself. The error is handle's, ErrNotFound, ErrPaused, ErrMoved or the
// database's.
func ConsumeTx(ctx context.Context, pool *pgxpool.Pool, ns int16, subscription string, shard, limit int, handle func(context.Context, pgx.Tx, []Event) error) (int, error) {
	n := 0
	err := beginFunc(ctx, pool, func(tx pgx.Tx) error {
		var err error
		n, err = consume(ctx, tx, max(ns, 1), subscription, shard, limit, handle)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("consume %s: %w", subscription, err)
	}
	return n, nil
}

// consumeIdleMax ends the transaction of a consumer that has frozen in it.
const consumeIdleMax = time.Minute

func beginFunc(ctx context.Context, pool *pgxpool.Pool, do func(pgx.Tx) error) error {
	begin := fmt.Sprintf("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = %d", consumeIdleMax.Milliseconds())
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{BeginQuery: begin}, do)
}

func consume(ctx context.Context, tx pgx.Tx, ns int16, subscription string, shard, limit int, handle func(context.Context, pgx.Tx, []Event) error) (int, error) {
	if limit < 1 || limit > 10_000 {
		return 0, fmt.Errorf("%w: limit %d is outside 1 to 10000", ErrInvalid, limit)
	}
	q := db.New(tx)
	s, err := q.ReadSubscription(ctx, db.ReadSubscriptionParams{Ns: ns, Name: subscription})
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, wrap(err)
	}
	if shard < 0 || shard >= int(s.Shards) {
		return 0, fmt.Errorf("%w: there is no shard %d of %d", ErrInvalid, shard, s.Shards)
	}
	p := place{ns, s.ID, int16(shard), int(s.Shards)}
	if err := q.LockSubscription(ctx, db.LockSubscriptionParams{SubscriptionID: p.id, Shard: p.shard}); err != nil {
		return 0, err
	}
	at, err := p.read(ctx, q) // a statement after the one that locked
	if err != nil {
		return 0, err
	}
	at.since = sinceThisTx
	for {
		// Before this transaction has an id, which no snapshot of its own lists: what holds nothing is passed over in memory.
		was := at.batch
		topics, paused, empty, err := p.open(ctx, q, &at)
		switch {
		case err != nil:
			return 0, err
		case paused:
			return 0, ErrPaused
		case was != nil:
			at.batch = was
		case empty:
			return 0, nil
		}
		events, last, err := p.page(ctx, tx, at, topics, limit)
		if err != nil {
			return 0, err
		}
		if len(events) == 0 && (was != nil || at.batch.epoch > at.epoch) {
			at = at.skip()
			continue
		}
		if len(events) > 0 {
			if err := handle(ctx, db.Lend(tx), events); err != nil {
				return 0, err
			}
		}
		if len(events) == 0 && at.batch.ceiling-at.mark < settleIDs && at.age < settleEvery {
			return 0, nil // events of others, which are soon read over again
		}
		if last {
			at = at.next()
		} else {
			at.batch.done = events[len(events)-1].Seq
		}
		return len(events), p.settle(ctx, q, &at, len(events), parks{}, false, true)
	}
}
