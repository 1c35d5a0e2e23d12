package outbox

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/pawl-dev/pawl/db"
)

// retryParked tries parked events when they are due: those of a key in their order, several keys at once. A key that hangs keeps no other waiting.
func (r *relay) retryParked(ctx context.Context) {
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		busy  = map[int64]bool{}
	)
	defer group.Wait()
	for wait := time.Duration(0); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
			return
		case <-r.news:
		case <-time.After(wait):
		}
		if !r.waitUp(ctx) {
			return
		}
		due, err := r.q.ListDueParked(ctx, db.ListDueParkedParams{Ns: r.p.ns, SubscriptionID: r.p.id, Shard: r.p.shard, LimitKeys: int32(2 * r.s.Parallel)})
		if err == nil {
			wait, err = r.untilParked(ctx, len(due))
		}
		if err != nil {
			if ctx.Err() == nil {
				r.log.Warn("parked events not read, trying again", "err", err)
			}
			wait = errorPause
			continue
		}
		for _, d := range due {
			mu.Lock()
			if busy[d.ID] || len(busy) >= r.s.Parallel {
				mu.Unlock()
				continue
			}
			busy[d.ID] = true
			mu.Unlock()
			group.Go(func() {
				if r.s.SinkTx != nil {
					r.retryKeyTx(ctx, d.Key, d.ID)
				} else {
					r.retryKey(ctx, d.Key, d.ID)
				}
				mu.Lock()
				delete(busy, d.ID)
				mu.Unlock()
			})
		}
	}
}

// untilParked gives how long until parked events are looked at again, of which so many are due.
func (r *relay) untilParked(ctx context.Context, due int) (time.Duration, error) {
	if due > 0 {
		return parkedSoon, nil
	}
	next, err := r.q.NextParked(ctx, db.NextParkedParams{Ns: r.p.ns, SubscriptionID: r.p.id, Shard: r.p.shard})
	if wait := time.Duration(next+1) * time.Millisecond; next > 0 && wait < parkedEvery {
		return wait, err
	}
	return parkedEvery, err
}

// retryKey tries the parked events of a key from the first on; of the event alone if key is "".
func (r *relay) retryKey(ctx context.Context, key string, id int64) {
	if p, ok := r.retry(ctx, r.q, r.s.Sink, key, id, r.s.Batch); ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		left, err := r.settleParked(ctx, r.q, p)
		r.unblock(key, left, err)
	}
}

// retry hands up to so many parked events to the sink, and gives what is to be settled. Not ok: nothing is; they are due still, and looked at again.
func (r *relay) retry(ctx context.Context, q *db.Queries, sink Sink, key string, id int64, limit int) (p db.SettleParkedParams, ok bool) {
	rows, err := q.ReadParked(ctx, db.ReadParkedParams{
		Ns: r.p.ns, SubscriptionID: r.p.id, Shard: r.p.shard, Key: key, ID: id, LimitEvents: int32(min(parkedBatch, limit)), LimitBytes: parkedBytes,
	})
	if err != nil || len(rows) == 0 || rows[0].ID != id {
		return p, false
	}
	events := make([]Event, len(rows))
	for i, e := range rows {
		events[i] = Event{
			ID: e.EventID, Topic: e.Topic, Key: e.Key, Type: e.Type, Payload: e.Payload, ContentType: contentType(e.ContentType), Headers: headers(e.Headers), Seq: e.ID,
			CreatedAt: e.CreatedAt, Attempt: int(e.Attempt) + 1,
		}
	}
	accepted, err := r.send(ctx, sink, slices.Clone(events)) // a sink may do to its events what it likes
	failed := err != nil && ctx.Err() == nil && r.refused(ctx, events[accepted], err) == attempt
	if accepted == 0 && !failed {
		return p, false
	}
	p = db.SettleParkedParams{Ns: r.p.ns, SubscriptionID: r.p.id, Shard: r.p.shard, Key: key, Delivered: []int64{}, RetryMs: -1, Skip: r.s.Policy == Skip, Incarnation: r.since}
	for _, e := range events[:accepted] {
		p.Delivered = append(p.Delivered, e.Seq)
	}
	if failed {
		e := events[accepted]
		p.Failed, p.Attempt, p.Error = e.Seq, int32(e.Attempt), text(err)
		p.RetryMs, p.Dead = r.judge(ctx, e, err)
	}
	return p, true
}

// settleParked gives how many parked events are left in the way of the key. It does so also when ctx has ended meanwhile.
func (r *relay) settleParked(ctx context.Context, q *db.Queries, p db.SettleParkedParams) (left int64, err error) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer stop()
	return q.SettleParked(ctx, p)
}

// unblock lets a key go on of which nothing is left. Under mu, taken before that was settled.
func (r *relay) unblock(key string, left int64, err error) {
	if err != nil {
		r.log.Warn("parked events not settled, they are delivered again", "err", err)
		return
	}
	if key != "" && left == 0 {
		delete(r.blocked, key)
	}
	r.wake() // for those behind
}
