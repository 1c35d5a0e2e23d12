package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/pawl-dev/pawl/db"
)

// Status is what an operator sees of a subscription.
type Status struct {
	Name      string     `json:"name"`
	Topics    []string   `json:"topics,omitempty"` // none: all
	Shards    int        `json:"shards"`
	Sink      string     `json:"sink"`
	CreatedAt time.Time  `json:"created_at"`
	PausedAt  *time.Time `json:"paused_at,omitempty"`
	PausedWhy string     `json:"paused_why,omitempty"`
	Missed    int64      `json:"missed"` // events dropped before it had them: it is paused until that is accepted
	// MissedFrom and MissedTo are the numbers of the first and the last of them.
	MissedFrom int64 `json:"missed_from,string,omitempty"`
	MissedTo   int64 `json:"missed_to,string,omitempty"`

	Events  int64     `json:"events"`   // delivered or put aside since it was made
	MovedAt time.Time `json:"moved_at"` // when its position moved last
	Lag     int64     `json:"lag"`      // events published, of all topics, beyond the shard that is farthest behind
	LagAge  float64   `json:"lag_s"`    // how long ago the first of them was published, in seconds
	Parked  int64     `json:"parked"`   // put aside, to be tried again
	Dead    int64     `json:"dead"`     // given up
}

// List tells of up to limit subscriptions, by name.
func List(ctx context.Context, on DB, ns int16, limit int) ([]Status, error) {
	rows, err := db.New(on).ListSubscriptions(ctx, db.ListSubscriptionsParams{Ns: ns, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("list subscriptions: %w", wrap(err))
	}
	out := make([]Status, len(rows))
	for i, r := range rows {
		out[i] = Status{
			Name: r.Name, Topics: r.Topics, Shards: int(r.Shards), Sink: r.Sink, CreatedAt: r.CreatedAt, PausedAt: r.PausedAt, PausedWhy: r.PausedWhy, Events: r.Events,
			Missed: r.Missed, MissedFrom: r.MissedFrom, MissedTo: r.MissedTo, MovedAt: r.MovedAt, Lag: r.Lag, LagAge: r.LagS, Parked: r.Parked, Dead: r.Dead,
		}
	}
	return out, nil
}

// Filter chooses events. Empty fields choose all.
type Filter struct {
	ID, Topic, Key string
}

// Events returns up to limit events that are kept, newest first. The error is ErrInvalid for an ID that is no UUID.
func Events(ctx context.Context, on DB, ns int16, f Filter, limit int) ([]Event, error) {
	rows, err := db.New(on).ListEvents(ctx, db.ListEventsParams{Ns: ns, Topic: f.Topic, Key: f.Key, EventID: f.ID, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("list events: %w", wrap(err))
	}
	out := make([]Event, len(rows))
	for i, r := range rows {
		out[i] = Event{
			ID: r.EventID, Topic: r.Topic, Key: r.Key, Type: r.Type, Payload: r.Payload, ContentType: contentType(r.ContentType), Headers: headers(r.Headers), Seq: r.ID,
			CreatedAt: r.CreatedAt,
		}
	}
	return out, nil
}

// ParkedEvent is an event that a subscription has put aside.
type ParkedEvent struct {
	ID       string     `json:"id"`
	Topic    string     `json:"topic"`
	Key      string     `json:"key"`
	Type     string     `json:"type"`
	ParkedAt time.Time  `json:"parked_at"`
	Attempt  int        `json:"attempt"`            // made so far; 0: it waits behind one of its key
	RetryAt  *time.Time `json:"retry_at,omitempty"` // when it is tried again
	DeadAt   *time.Time `json:"dead_at,omitempty"`  // when it was given up
	Error    string     `json:"error,omitempty"`
}

// Parked returns up to limit events that a subscription has put aside, in their order.
func Parked(ctx context.Context, on DB, ns int16, subscription string, limit int) ([]ParkedEvent, error) {
	rows, err := db.New(on).ListParked(ctx, db.ListParkedParams{Ns: ns, Name: subscription, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("list parked events: %w", wrap(err))
	}
	out := make([]ParkedEvent, len(rows))
	for i, r := range rows {
		out[i] = ParkedEvent{r.EventID, r.Topic, r.Key, r.Type, r.ParkedAt, int(r.Attempt), r.RetryAt, r.DeadAt, r.Error}
	}
	return out, nil
}

// Pause stops the delivery of a subscription, for a reason that operators see; relays notice within a second. The error is ErrNotFound.
func Pause(ctx context.Context, on DB, ns int16, subscription, why string) error {
	if why == "" {
		why = "by an operator"
	}
	return pauseSubscription(ctx, on, ns, subscription, why, false)
}

// Resume ends the pause of a subscription. The error is ErrNotFound, or ErrGap if events were dropped before it had them.
func Resume(ctx context.Context, on DB, ns int16, subscription string) error {
	return pauseSubscription(ctx, on, ns, subscription, "", false)
}

// AcceptGap is Resume also for a subscription that has missed events: it goes on with the oldest one kept, and they are not counted any more. The error is ErrNotFound.
func AcceptGap(ctx context.Context, on DB, ns int16, subscription string) error {
	return pauseSubscription(ctx, on, ns, subscription, "", true)
}

func pauseSubscription(ctx context.Context, on DB, ns int16, subscription, why string, acceptGap bool) error {
	found, err := db.New(on).PauseSubscription(ctx, db.PauseSubscriptionParams{Ns: ns, Name: subscription, Why: why, AcceptGap: acceptGap})
	if err != nil {
		return fmt.Errorf("subscription %s: %w", subscription, wrap(err))
	}
	if !found {
		return fmt.Errorf("%w: %s", ErrNotFound, subscription)
	}
	return nil
}

// Remove removes a subscription that nobody needs any more, with what it has parked: it holds no events. A relay that is still configured for it makes it anew when it starts. The
// error is ErrNotFound.
func Remove(ctx context.Context, on DB, ns int16, subscription string) error {
	found, err := db.New(on).RemoveSubscription(ctx, db.RemoveSubscriptionParams{Ns: ns, Name: subscription})
	if err != nil {
		return fmt.Errorf("remove %s: %w", subscription, wrap(err))
	}
	if !found {
		return fmt.Errorf("%w: %s", ErrNotFound, subscription)
	}
	return nil
}

// Rewind has a subscription deliver again what is kept of the events published since a time, and what follows; among the newest, some that are older may come again too. Events
// already parked stay so. It returns the number of the first event, 0 if there was none and nothing has changed. The error is ErrNotFound.
func Rewind(ctx context.Context, on DB, ns int16, subscription string, since time.Time) (first int64, err error) {
	q := db.New(on)
	first, err = q.FirstEventSince(ctx, db.FirstEventSinceParams{Ns: ns, Since: since})
	if err != nil {
		return 0, fmt.Errorf("rewind %s: %w", subscription, wrap(err))
	}
	if first == 0 {
		if _, err := q.ReadSubscription(ctx, db.ReadSubscriptionParams{Ns: ns, Name: subscription}); err != nil {
			return 0, fmt.Errorf("%w: %s", ErrNotFound, subscription)
		}
		return 0, nil
	}
	shards, err := q.RewindSubscription(ctx, db.RewindSubscriptionParams{Ns: ns, Name: subscription, ID: first})
	if err != nil {
		return 0, fmt.Errorf("rewind %s: %w", subscription, wrap(err))
	}
	if shards == 0 {
		return 0, fmt.Errorf("%w: %s", ErrNotFound, subscription)
	}
	return first, nil
}

// Replay has parked events tried now, those given up with all their attempts anew: of one key, or of all (nil). It returns how many are tried at once; what waits
// behind them follows. The error is ErrNotFound.
func Replay(ctx context.Context, on DB, ns int16, subscription string, key *string) (int64, error) {
	return replay(ctx, on, ns, subscription, key, false)
}

// Drop removes parked events that were given up, of one key or of all (nil); what waits behind them goes on. It returns how many. The error is ErrNotFound.
func Drop(ctx context.Context, on DB, ns int16, subscription string, key *string) (int64, error) {
	return replay(ctx, on, ns, subscription, key, true)
}

func replay(ctx context.Context, on DB, ns int16, subscription string, key *string, drop bool) (int64, error) {
	n, err := db.New(on).ReplaySubscription(ctx, db.ReplaySubscriptionParams{Ns: ns, Name: subscription, Key: key, DropDead: drop})
	if err != nil {
		return 0, fmt.Errorf("replay %s: %w", subscription, wrap(err))
	}
	if n < 0 {
		return 0, fmt.Errorf("%w: %s", ErrNotFound, subscription)
	}
	return n, nil
}
