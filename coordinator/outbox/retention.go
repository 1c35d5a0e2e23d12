package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/pawl-dev/pawl/db"
)

// Holder says why the oldest range of events is kept.
type Holder string

// The holders.
const (
	HeldByNothing      Holder = ""             // the next sweep drops it
	HeldByIDs          Holder = "filling"      // not all its ids are drawn
	HeldByTransaction  Holder = "transaction"  // one that may still commit events to it
	HeldByAge          Holder = "age"          // it is not old enough
	HeldBySubscription Holder = "subscription" // one that has not passed it
	HeldByMove         Holder = "moved"        // the same, and its place means nothing until a rebase: the database was moved to another cluster
)

// Kept is what an operator sees of the events that are kept. Ranges are those of the whole database.
type Kept struct {
	OldestSeq int64         `json:"oldest_seq,string"`    // events from this number on are kept
	OldestAt  *time.Time    `json:"oldest_at,omitempty"`  // when the oldest of the namespace was published; nil: there is none
	Ranges    int           `json:"ranges"`               // in use
	Keep      time.Duration `json:"keep_ns"`              // how long they are kept at least
	Hold      time.Duration `json:"hold_ns"`              // how long a subscription may hold them
	By        Holder        `json:"held_by"`              // what keeps the oldest range
	Who       string        `json:"who,omitempty"`        // the transaction, or the subscriptions
	Since     *time.Time    `json:"since,omitempty"`      // when the transaction began, the range was complete (by age), or could have left
	LeavingAt *time.Time    `json:"leaving_at,omitempty"` // since when one is being dropped; an open transaction that has read it delays that
}

// Retention tells what events are kept, and what keeps the oldest of them.
func Retention(ctx context.Context, on DB, ns int16) (Kept, error) {
	r, err := db.New(on).ReadKept(ctx, ns)
	if err != nil {
		return Kept{}, fmt.Errorf("read retention: %w", wrap(err))
	}
	return Kept{r.OldestID, r.OldestAt, int(r.Ranges), r.Keep, r.Hold, Holder(r.Why), r.Who, r.Since, r.LeavingAt}, nil
}
