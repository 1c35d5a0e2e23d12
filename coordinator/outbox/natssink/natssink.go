// Package natssink delivers events of the outbox to NATS JetStream. (It is not called nats, since who uses it imports that package too.)
//
// # What is sent
//
// A message to the subject outbox.TOPIC, or what Config says: the payload as it is, and as headers the attributes of package cloudevent under "ce-" and percent-encoded, as the
// NATS binding of CloudEvents has it in binary mode; Nats-Msg-Id, the event's ID; and the event's own headers, where they can stand as they are and do not begin with ce- or
// Nats-, which would steer the stream. [Event] reads it all back.
//
// An event counts as accepted when the stream has acknowledged it. A stream on disk acknowledges before fsync unless the server's sync_interval is "always": a machine that loses
// power can take back what a stream without replicas has acknowledged.
//
// # Order and speed
//
// Events of one key are published one after the other, each when the one before is acknowledged: else a refused one would be overtaken by the next. Different keys, and events
// without one, are in flight at once, up to Config.InFlight in each call.
//
// # Duplicates
//
// A stream drops a message whose Nats-Msg-Id it has seen within its duplicate window (2 minutes by default; raise it above what a relay may take to come back), on whatever subject
// it came. So what a relay delivers again is stored once within that window, and consumers note IDs for the rest: see idempotency.Once. And so two subscriptions that deliver
// the same events must not do so into one stream: the second would be dropped.
//
//	Situation                                               | Error                     | What to do
//	acknowledged, or dropped as a duplicate                 | none                      |
//	larger than the server or the stream takes              | outbox.Permanent          | raise max_payload, or publish a reference
//	Config.Subject returns what is no subject               | outbox.Permanent          | mend it
//	not connected; no stream listens to the subject, or its | outbox.Unavailable        | the relay tries again; all events wait
//	leader is missing; the stream is full, sealed, not      |                           |
//	Config.Stream, or out of memory or disk                 |                           |
//	no acknowledgement in time, or one that makes no sense  | another                   | the relay tries again; the key waits
//	a bad Config                                            | outbox.ErrInvalid, by New | the text says what
//	a message that is no event                              | ErrMalformed, by Event    | it was published by somebody else
//
// Tested against nats-server 2.15 by this package's tests: with a restart of the server between and during calls, a duplicate window that is over, streams that are full, and
// a front that refuses, answers nonsense, hangs and loses acknowledgements.
package natssink

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/cloudevent"
)

const (
	prefixDefault   = "outbox"
	inFlightDefault = 64
	inFlightMax     = 4096
)

// ErrMalformed: a message is no event.
var ErrMalformed = cloudevent.ErrMalformed

// Config says how events become messages. Its zero value works.
type Config struct {
	// Source is the CloudEvents source: a URI that names the outbox to receivers, with or without a host. Default: pawl.
	Source string
	// Prefix is what subjects begin with: PREFIX.TOPIC, where dots of a topic divide it further, and what a subject may not hold is percent-encoded. Default: outbox.
	Prefix string
	// Subject returns the subject of an event, in place of Prefix and topic. It is called by several goroutines at once.
	Subject func(outbox.Event) string
	// Stream is the stream that must acknowledge. Default: any that listens to the subject.
	Stream string
	// InFlight is how many events, of different keys, a call has on their way at once, 1 to 4,096. Default: 64.
	InFlight int
}

// Sink publishes events to JetStream. It is safe for concurrent use.
type Sink struct {
	js   jetstream.JetStream
	conf Config
}

var _ outbox.Sink = (*Sink)(nil)

// New makes a sink that publishes by js; it closes nothing. The connection should reconnect for ever (nats.MaxReconnects(-1)), else a sink is of no use once it has given up.
// The error is outbox.ErrInvalid and lists every fault.
func New(js jetstream.JetStream, conf Config) (*Sink, error) {
	if conf.Source == "" {
		conf.Source = cloudevent.SourceDefault
	}
	if conf.Prefix == "" {
		conf.Prefix = prefixDefault
	}
	if conf.InFlight == 0 {
		conf.InFlight = inFlightDefault
	}
	var faults []error
	if js == nil {
		faults = append(faults, fmt.Errorf("%w: natssink: the JetStream is missing", outbox.ErrInvalid))
	}
	if !isSubject(conf.Prefix) {
		faults = append(faults, fmt.Errorf("%w: natssink: Prefix %q is no subject", outbox.ErrInvalid, conf.Prefix))
	}
	if conf.InFlight < 1 || conf.InFlight > inFlightMax {
		faults = append(faults, fmt.Errorf("%w: natssink: InFlight %d is outside 1 to %d", outbox.ErrInvalid, conf.InFlight, inFlightMax))
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return &Sink{js, conf}, nil
}

// Send publishes events as outbox.Each has it. The errors are those of the package documentation.
func (s *Sink) Send(ctx context.Context, events []outbox.Event) (accepted int, err error) {
	return outbox.Each(ctx, events, s.conf.InFlight, s.publish)
}

func (s *Sink) publish(ctx context.Context, e outbox.Event) error {
	m, err := s.message(e)
	if err != nil {
		return outbox.Permanent(err)
	}
	if conn := s.js.Conn(); !conn.IsConnected() { // it would keep the message, to send it when nobody waits for it any more
		return outbox.Unavailable(fmt.Errorf("nats: not connected: %s", conn.Status()))
	}
	if _, err = s.js.PublishMsg(ctx, m); err == nil {
		return nil
	}
	err = fmt.Errorf("publish to %s: %w", m.Subject, err)
	var refused *jetstream.APIError
	switch {
	case errors.Is(err, nats.ErrMaxPayload), errors.As(err, &refused) && (refused.ErrorCode == errMessageTooLarge || refused.ErrorCode == errHeaderTooLarge):
		return outbox.Permanent(err)
	case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded), errors.Is(err, jetstream.ErrInvalidJSAck):
		return err
	default:
		return outbox.Unavailable(err)
	}
}

// What a stream says of a message; all else is about the stream.
const (
	errMessageTooLarge = jetstream.JSErrCodeStreamMessageExceedsMaximum
	errHeaderTooLarge  = jetstream.ErrorCode(10097)
)

func (s *Sink) message(e outbox.Event) (*nats.Msg, error) {
	subject := ""
	if s.conf.Subject != nil {
		if subject = s.conf.Subject(e); !isSubject(subject) {
			return nil, fmt.Errorf("natssink: Config.Subject returns %.100q for event %s, which is no subject", subject, e.ID)
		}
	} else {
		subject = s.conf.Prefix + "." + tokens(e.Topic)
	}
	m := &nats.Msg{Subject: subject, Data: e.Payload, Header: encode(e, s.conf.Source)}
	m.Header.Set(jetstream.MsgIDHeader, e.ID)
	if s.conf.Stream != "" {
		m.Header.Set(jetstream.ExpectedStreamHeader, s.conf.Stream)
	}
	return m, nil
}

// isSubject tells whether something can be published to s.
func isSubject(s string) bool {
	for token := range strings.SplitSeq(s, ".") {
		if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r < 0x80 && isOdd(byte(r)) }) {
			return false
		}
	}
	return true
}

// isOdd tells whether a token of a subject may not hold b.
func isOdd(b byte) bool { return b <= ' ' || b == 0x7f || b == '*' || b == '>' }

// tokens makes a topic part of a subject: different ones of different topics.
func tokens(topic string) string {
	all := strings.Split(topic, ".")
	for i, token := range all {
		if all[i] = percent(token, func(b byte) bool { return isOdd(b) || b == '%' }); token == "" {
			all[i] = "%"
		}
	}
	return strings.Join(all, ".")
}
