package outbox

import "time"

// The limits of an event.
const (
	TopicBytesMax   = 255
	KeyBytesMax     = 1024
	TypeBytesMax    = 255
	PayloadBytesMax = 1 << 20 // by default; payload_bytes_max of the namespace's row in pawl.outbox
)

// Event says that something happened. Topic and Type are required when it is published; the rest may be left out.
type Event struct {
	// ID is the event's UUID, which a receiver may use to recognise what it has seen. Default: a new one of version 7.
	ID string
	// Topic is what subscriptions choose by, such as "order".
	Topic string
	// Key is what order is kept within, such as the id of the order. Events without a key have no order.
	Key string
	// Type says what happened, such as "order.paid".
	Type string
	// Payload is the event's body.
	Payload []byte
	// ContentType of the payload. Default: application/json.
	ContentType string
	// Headers go along with the event, such as the context of a trace.
	Headers map[string]string

	// Seq is the event's number in its outbox. Set on delivery, as is all below.
	Seq int64
	// CreatedAt is when the transaction that published it began, by Postgres.
	CreatedAt time.Time
	// Attempt counts how often the event has been handed to the sink, from 1; after a crash of the relay some of these are not counted.
	Attempt int
}
