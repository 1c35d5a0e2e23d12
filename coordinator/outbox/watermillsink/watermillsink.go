// Package watermillsink delivers events of the outbox to whatever a watermill message.Publisher publishes to. (It is not called watermill, since who uses it imports that
// package too.)
//
// A message has the event's ID as its UUID, the payload as it is, and as metadata the attributes of package cloudevent under "ce_", content-type, and the event's own headers;
// [Event] reads it all back. A publisher that divides a topic should go by ce_subject, the event's key:
//
//	kafka.NewWithPartitioningMarshaler(func(_ string, m *message.Message) (string, error) { return m.Metadata.Get("ce_subject"), nil })
//
// An event counts as accepted when Publish has returned without an error, so the publisher must be synchronous: one that returns before the message is stored loses events.
// Events of one key are published one after the other, different keys, and events without one, up to Config.InFlight at once.
//
// A publisher that ignores the context of its message is left behind when ctx ends, and holds one of InFlight places until it returns; what it publishes then is a duplicate,
// with the same UUID. Consumers note UUIDs: see idempotency.Once.
//
//	Situation                            | Error                     | What to do
//	published                            | none                      |
//	the publisher returns an error       | that error, wrapped       | the relay takes it as outbox.Sink says; a publisher may return outbox.Permanent and its like
//	the publisher panics                 | another                   | the relay tries again; the key waits
//	ctx ends before Publish returns      | another                   | the relay tries again; the key waits
//	InFlight publishers were left behind | outbox.Unavailable        | mend the publisher; give it a timeout
//	a bad Config                         | outbox.ErrInvalid, by New | the text says what
//	a message that is no event           | ErrMalformed, by Event    | it was published by somebody else
//
// Tested by this package's tests with watermill's gochannel.
package watermillsink

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/cloudevent"
)

const (
	inFlightDefault = 16
	inFlightMax     = 4096
)

// ErrMalformed: a message is no event.
var ErrMalformed = cloudevent.ErrMalformed

// Config says how events become messages. Its zero value works.
type Config struct {
	// Source is the CloudEvents source: a URI that names the outbox to receivers, with or without a host. Default: pawl.
	Source string
	// Topic returns the topic that an event is published to. It is called by several goroutines at once. Default: the event's own.
	Topic func(outbox.Event) string
	// InFlight is how many messages are being published at once, by all calls together, 1 to 4,096. Default: 16.
	InFlight int
}

// Sink publishes events. It is safe for concurrent use.
type Sink struct {
	publisher message.Publisher
	conf      Config
	places    chan struct{} // one for each that is being published
}

var _ outbox.Sink = (*Sink)(nil)

// New makes a sink of a publisher, which it does not close. The error is outbox.ErrInvalid.
func New(publisher message.Publisher, conf Config) (*Sink, error) {
	if conf.Source == "" {
		conf.Source = cloudevent.SourceDefault
	}
	if conf.Topic == nil {
		conf.Topic = func(e outbox.Event) string { return e.Topic }
	}
	if conf.InFlight == 0 {
		conf.InFlight = inFlightDefault
	}
	if publisher == nil || conf.InFlight < 1 || conf.InFlight > inFlightMax {
		return nil, fmt.Errorf("%w: watermillsink: the publisher is missing, or InFlight %d is outside 1 to %d", outbox.ErrInvalid, conf.InFlight, inFlightMax)
	}
	return &Sink{publisher, conf, make(chan struct{}, conf.InFlight)}, nil
}

// Send publishes events as outbox.Each has it. The errors are those of the package documentation.
func (s *Sink) Send(ctx context.Context, events []outbox.Event) (accepted int, err error) {
	return outbox.Each(ctx, events, s.conf.InFlight, s.send)
}

func (s *Sink) send(ctx context.Context, e outbox.Event) error {
	topic := s.conf.Topic(e)
	select {
	case s.places <- struct{}{}:
	case <-ctx.Done():
		return outbox.Unavailable(fmt.Errorf("publish to %s: %d are being published already: %w", topic, s.conf.InFlight, ctx.Err()))
	}
	m := message.NewMessageWithContext(ctx, e.ID, e.Payload)
	m.Metadata = cloudevent.Headers(e, s.conf.Source)
	done := make(chan error, 1)
	go func() {
		defer func() { <-s.places }()
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("the publisher panicked: %v", p)
			}
		}()
		done <- s.publisher.Publish(topic, m)
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("publish to %s: %w", topic, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("publish to %s: %w", topic, ctx.Err())
	}
}

// Event returns the event in a message that a Sink has published. The error is ErrMalformed.
func Event(m *message.Message) (outbox.Event, error) {
	e, err := cloudevent.FromHeaders(m.Metadata)
	if err != nil {
		return outbox.Event{}, err
	}
	e.Payload = m.Payload
	return e, nil
}
