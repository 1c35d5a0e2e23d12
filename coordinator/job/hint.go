package job

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

// HintInterval is how often, at most, enqueues of one definition in one process send a hint: NOTIFY serialises the commits that carry one.
const HintInterval = 20 * time.Millisecond

// HintDue is the payload of the hint that something was scheduled.
const HintDue = "due"

// Hinter spaces hints by HintInterval. The zero value is ready. It is safe for concurrent use.
type Hinter struct{ last atomic.Int64 }

// Allow tells whether a hint may be sent now; if so, the next may be an interval later.
func (h *Hinter) Allow() bool {
	now, last := session.Monotonic(), h.last.Load()
	return (last == 0 || now-last >= int64(HintInterval)) && h.last.CompareAndSwap(last, now)
}

// enqueued sends a hint after an enqueue that committed by itself. One that fails is only a later start.
func (h *Hinter) enqueued(ctx context.Context, on DB, o *options) {
	if _, ok := on.(*pgxpool.Pool); !ok || !h.Allow() {
		return // not committed, or not ours to commit; or just done
	}
	payload := "n" + o.queue
	if o.runAt != nil {
		payload = HintDue
	}
	_ = db.New(on).SendHint(ctx, db.SendHintParams{Channel: session.Channel(o.namespace), Payload: payload})
}

// Hint wakes the workers of a queue. In a transaction it is sent by the commit, which then waits for every other commit that sends one.
func Hint(ctx context.Context, on DB, ns int16, queue string) error {
	return db.New(on).SendHint(ctx, db.SendHintParams{Channel: session.Channel(ns), Payload: "n" + queue})
}

func hintSession(ctx context.Context, on DB, ns int16, id int64) {
	_ = db.New(on).SendHint(ctx, db.SendHintParams{Channel: session.Channel(ns), Payload: session.Hint(id)})
}
