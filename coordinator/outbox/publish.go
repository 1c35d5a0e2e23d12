package outbox

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
)

// PublishMax is how many events go in one round trip.
const PublishMax = 1000

// Outbox publishes the events of one namespace. Its zero value is the outbox of namespace 1, "default". It is safe for concurrent use.
type Outbox struct {
	// Namespace is the number of the namespace. Default: 1, "default".
	Namespace int16
}

func (o Outbox) ns() int16 { return max(o.Namespace, 1) }

// Publish publishes events in the caller's transaction, in the order given: they exist when it commits, and leave nothing if it does not. Events of one key are delivered
// in the order of the commits if their writers hold a lock on it before they publish, as those do that update the row it stands for; Ordered takes one for others.
// An event is as durable as its transaction: with synchronous_commit off, or a fail-over to an asynchronous standby, it may be delivered and its transaction be undone.
// The error is ErrInvalid, ErrPayloadTooLarge or ErrMoved, or the database's; the transaction is aborted then.
func (o Outbox) Publish(ctx context.Context, tx pgx.Tx, events ...Event) error {
	for len(events) > 0 {
		n := min(len(events), PublishMax)
		if err := o.publish(ctx, tx, events[:n]); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		events = events[n:]
	}
	return nil
}

func (o Outbox) publish(ctx context.Context, tx pgx.Tx, events []Event) error {
	p := db.PublishEventsParams{Ns: o.ns()}
	for _, e := range events {
		headers := ""
		if len(e.Headers) > 0 {
			text, err := json.Marshal(e.Headers)
			if err != nil {
				return fmt.Errorf("%w: headers: %w", ErrInvalid, err)
			}
			headers = string(text)
		}
		if e.Payload == nil {
			e.Payload = []byte{}
		}
		if e.ID == "" { // Postgres takes a sixth of the whole call for it
			id, err := uuid.NewV7()
			if err != nil {
				return err
			}
			e.ID = id.String()
		}
		if len(events) == 1 {
			return wrap(db.New(tx).PublishEvent(ctx, db.PublishEventParams{
				Ns: p.Ns, Topic: e.Topic, Key: e.Key, Type: e.Type, Payload: e.Payload, ContentType: e.ContentType, Headers: headers, EventID: e.ID,
			}))
		}
		p.Topics = append(p.Topics, e.Topic)
		p.Keys = append(p.Keys, e.Key)
		p.Types = append(p.Types, e.Type)
		p.Payloads = append(p.Payloads, e.Payload)
		p.ContentTypes = append(p.ContentTypes, e.ContentType)
		p.Headers = append(p.Headers, headers)
		p.EventIds = append(p.EventIds, e.ID)
	}
	return wrap(db.New(tx).PublishEvents(ctx, p))
}

// Ordered keeps others that call it for the same keys waiting until the caller's transaction (READ COMMITTED) ends, so that what it publishes of them is delivered in the
// order of the commits. Call it once, before publishing, with all keys: they are locked in one order, so that no two transactions wait for each other.
func (o Outbox) Ordered(ctx context.Context, tx pgx.Tx, keys ...string) error {
	if err := db.New(tx).OrderKeys(ctx, db.OrderKeysParams{Ns: o.ns(), Keys: keys}); err != nil {
		return fmt.Errorf("order keys: %w", wrap(err))
	}
	return nil
}

// Publish publishes events in the default namespace; see Outbox.Publish.
func Publish(ctx context.Context, tx pgx.Tx, events ...Event) error {
	return Outbox{}.Publish(ctx, tx, events...)
}

// Ordered orders keys in the default namespace; see Outbox.Ordered.
func Ordered(ctx context.Context, tx pgx.Tx, keys ...string) error {
	return Outbox{}.Ordered(ctx, tx, keys...)
}
