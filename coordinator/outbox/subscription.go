package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pawl-dev/pawl/db"
)

// Policy says what becomes of an event that has used up its attempts.
type Policy string

// The policies.
const (
	Block Policy = "block" // it is kept, and those of its key wait behind it until an operator replays or drops it
	Skip  Policy = "skip"  // it is kept for an operator, and its key goes on without it
	Stop  Policy = "stop"  // the subscription is paused
)

// Subscription is a consumer of events with a place of its own in the outbox. Name and a sink are required; services that use the same name share the place.
type Subscription struct {
	// Namespace is the number of the namespace. Default: 1, "default".
	Namespace int16
	// Name is the subscription's identity, 1 to 128 characters.
	Name string
	// Topics are those it reads. Default: all.
	Topics []string
	// Beginning starts a new subscription with the oldest event that is kept. Default: with what commits from its making on.
	Beginning bool
	// Shards is into how many parts, by key, it is divided, each with one relay at a time and a place of its own, 1 to 64. It is fixed when the subscription is made. Default: 1.
	Shards int
	// Sink is where events go, or SinkTx, if that is the same database.
	Sink   Sink
	SinkTx TxSink
	// Describe tells operators what the sink is, such as its host.
	Describe string
	// Parallel is how many calls of the sink a relay makes at once, by key, 1 to 1,024. Default: 8. Not used with SinkTx.
	Parallel int
	// Page is how many events a relay reads and settles at once, 1 to 10,000; fewer if they reach PageBytesMax. Default: 1,000.
	Page int
	// Batch is how many events the sink gets in one call, 1 to Page. Default: 100.
	Batch int
	// Timeout bounds one call of the sink. Default: 10 s.
	Timeout time.Duration
	// Attempts is after how many an event is given up, by Policy; those that find the receiver down do not count. Default: 20.
	Attempts int
	// Backoff and BackoffMax are the wait after the first failed attempt, doubled after each, and its bound. Defaults: 1 s, 1 h.
	Backoff, BackoffMax time.Duration
	// Policy of an event that has used up its attempts. Default: Block.
	Policy Policy
	// ParkedMax is how many events may be put aside in a shard before it reads no further. Default: 10,000.
	ParkedMax int
	// Poll and PollMax are how often the outbox is looked at: the first after an event, doubling up to the second while there is none. Defaults: 4 ms, 100 ms.
	Poll, PollMax time.Duration
	// Breaker is how long the receiver is left alone when it is found down, doubled each time up to BackoffMax or a minute, whichever is less. Default: 1 s.
	Breaker time.Duration
}

const breakerMax = time.Minute

func (s Subscription) withDefaults() Subscription {
	s.Namespace = max(s.Namespace, 1)
	for _, f := range []struct {
		field *int
		value int
	}{{&s.Shards, 1}, {&s.Parallel, 8}, {&s.Page, 1000}, {&s.Attempts, 20}, {&s.ParkedMax, 10_000}} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	if s.SinkTx != nil {
		s.Parallel = 1
	}
	if s.Batch == 0 {
		s.Batch = min(100, s.Page)
	}
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&s.Timeout, 10 * time.Second},
		{&s.Backoff, time.Second},
		{&s.BackoffMax, time.Hour},
		{&s.Poll, 4 * time.Millisecond},
		{&s.PollMax, 100 * time.Millisecond},
		{&s.Breaker, time.Second},
	} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	if s.Policy == "" {
		s.Policy = Block
	}
	return s
}

// Validate reports all faults at once; each is ErrInvalid.
func (s Subscription) Validate() error {
	s = s.withDefaults()
	var faults []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Errorf("%w: subscription %q: %s", ErrInvalid, s.Name, fmt.Sprintf(format, args...)))
		}
	}
	fault(s.Name == "" || len(s.Name) > 128, "Name has %d bytes, not 1 to 128", len(s.Name))
	fault(s.Sink == nil && s.SinkTx == nil, "Sink is missing")
	fault(s.Sink != nil && s.SinkTx != nil, "Sink and SinkTx exclude each other")
	fault(s.Shards < 1 || s.Shards > 64, "Shards %d is outside 1 to 64", s.Shards)
	fault(s.Parallel < 1 || s.Parallel > 1024, "Parallel %d is outside 1 to 1024", s.Parallel)
	fault(s.Page < 1 || s.Page > 10_000, "Page %d is outside 1 to 10000", s.Page)
	fault(s.Batch < 1 || s.Batch > s.Page, "Batch %d is outside 1 to Page, %d", s.Batch, s.Page)
	fault(s.Attempts < 1, "Attempts %d is less than 1", s.Attempts)
	fault(s.ParkedMax < 1, "ParkedMax %d is less than 1", s.ParkedMax)
	fault(s.Timeout < time.Millisecond, "Timeout %s is less than 1 ms", s.Timeout)
	fault(s.Backoff < time.Millisecond || s.BackoffMax < s.Backoff, "Backoff %s to BackoffMax %s: at least 1 ms, and the second no less than the first", s.Backoff, s.BackoffMax)
	fault(s.Poll < time.Millisecond || s.PollMax < s.Poll, "Poll %s to PollMax %s: at least 1 ms, and the second no less than the first", s.Poll, s.PollMax)
	fault(s.Breaker < time.Millisecond, "Breaker %s is less than 1 ms", s.Breaker)
	switch s.Policy {
	case Block, Skip, Stop:
	default:
		fault(true, "unknown Policy %q", s.Policy)
	}
	for _, topic := range s.Topics {
		fault(topic == "" || len(topic) > TopicBytesMax, "a topic has %d bytes, not 1 to %d", len(topic), TopicBytesMax)
	}
	return errors.Join(faults...)
}

// Create makes the subscription if there is none of its name, and gives it its topics and its description otherwise: its place stays. Relays do so when they start; call it
// earlier, in a migration or at deployment, to be sure that no event is missed. Sink may be missing here. The error is ErrInvalid or the database's.
func Create(ctx context.Context, on DB, s Subscription) (created bool, err error) {
	_, created, err = create(ctx, on, s.withDefaults())
	return created, err
}

func create(ctx context.Context, on DB, s Subscription) (id int32, created bool, err error) {
	topics := s.Topics
	if topics == nil {
		topics = []string{}
	}
	row, err := db.New(on).CreateSubscription(ctx, db.CreateSubscriptionParams{
		Ns: s.Namespace, Name: s.Name, Topics: topics, Shards: int16(s.Shards), Sink: s.Describe, Beginning: s.Beginning,
	})
	if err != nil {
		return 0, false, fmt.Errorf("subscription %s: %w", s.Name, wrap(err))
	}
	return row.ID, row.Created, nil
}
