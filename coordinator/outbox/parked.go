package outbox

import (
	"context"
	"sync"

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
	for ctx.Err() == nil {
		r.mu.Lock()
		wait := parkedEvery
		if r.known {
			wait = parkedSoon
		}
		r.mu.Unlock()
		pause(ctx, wait)
		if ctx.Err() != nil || !r.waitUp(ctx) {
			return
		}
		due, err := r.q.ListDueParked(ctx, db.ListDueParkedParams{Ns: r.p.ns, SubscriptionID: r.p.id, Shard: r.p.shard, LimitKeys: int32(2 * r.s.Parallel)})
		if err != nil {
			if ctx.Err() == nil {
				r.log.Warn("parked events not read, trying again", "err", err)
				pause(ctx, errorPause)
			}
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
				r.retryKey(ctx, d.Key, d.ID)
				mu.Lock()
				delete(busy, d.ID)
				mu.Unlock()
			})
		}
	}
}

// retryKey tries the parked events of a key from the first on; of the event alone if key is "".
func (r *relay) retryKey(ctx context.Context, key string, id int64) {
	rows, err := r.q.ReadParked(ctx, db.ReadParkedParams{Ns: r.p.ns, SubscriptionID: r.p.id, Shard: r.p.shard, Key: key, ID: id, LimitEvents: parkedBatch})
	if err != nil || len(rows) == 0 || rows[0].ID != id {
		return // it is due still, and looked at again
	}
	events := make([]Event, len(rows))
	for i, e := range rows {
		events[i] = Event{
			ID: e.EventID, Topic: e.Topic, Key: e.Key, Type: e.Type, Payload: e.Payload, ContentType: contentType(e.ContentType), Headers: headers(e.Headers), Seq: e.ID,
			CreatedAt: e.CreatedAt, Attempt: int(e.Attempt) + 1,
		}
	}
	accepted, err := r.send(ctx, events[:min(len(events), r.s.Batch)])
	if accepted == 0 && (ctx.Err() != nil || err != nil && r.refused(ctx, err, false)) {
		return
	}
	p := db.SettleParkedParams{Ns: r.p.ns, SubscriptionID: r.p.id, Shard: r.p.shard, Key: key, Delivered: []int64{}, RetryMs: -1, Skip: r.s.Policy == Skip}
	for _, e := range events[:accepted] {
		p.Delivered = append(p.Delivered, e.Seq)
	}
	if err != nil && ctx.Err() == nil && !r.refused(ctx, err, false) {
		failed := events[accepted]
		p.Failed, p.Attempt, p.Error = failed.Seq, int32(failed.Attempt), text(err)
		p.RetryMs, p.Dead = r.judge(ctx, failed, err)
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	left, err := r.q.SettleParked(ctx, p)
	if err != nil {
		r.log.Warn("parked events not settled, they are delivered again", "err", err)
		return
	}
	if key != "" && left == 0 {
		delete(r.blocked, key)
	}
}
