// Package kafkasink delivers events of the outbox to Kafka, by franz-go. (It is not called kafka, so that it goes with its siblings.)
//
// # What is sent
//
// A record to the topic of the event's topic, or what Config says: its key is the event's (none without one), its value the payload as it is (never null: an event is no
// tombstone), its timestamp when it is sent. Its headers are the attributes of package cloudevent under "ce_", and content-type, as the Kafka binding of CloudEvents has it in
// binary mode, and the event's own. [Event] reads it all back.
//
// An event counts as accepted when all replicas in sync have it (acks=all; the topic's min.insync.replicas says how many that must be).
//
// # Order and speed
//
// Records of one key go to one partition, each when the one before is acknowledged: were they sent without waiting, a refused batch would be overtaken by the next one of its
// partition. Different keys, and events without one, are in flight at once, up to Config.InFlight in each call, and share batches with each other.
//
// A broker refuses a batch as a whole for one record in it. Each record of a refused batch is sent once more, alone, by a client of its own: what is refused then is refused for
// itself.
//
// # Duplicates
//
// The producer is idempotent: what it sends again by itself is stored once. What a relay sends again, after a crash or because Send ran out of time while a broker was at work, is
// stored again, with the same ce_id. Consumers note IDs: see idempotency.Once.
//
//	Situation                                          | Error                      | What to do
//	acknowledged by all replicas in sync               | none                       |
//	larger than the client or the topic takes          | outbox.Permanent           | raise kgo.ProducerBatchMaxBytes and max.message.bytes, or publish a reference
//	refused as invalid (a compacted topic takes no     | outbox.Permanent           | replay or drop it, by the subscription's Policy
//	record without a key, say); no name of a topic     |                            |
//	no broker or leader within Config.Timeout, no such | outbox.Unavailable         | the relay tries again; all events wait
//	topic, too few replicas, not allowed               |                            |
//	no acknowledgement while ctx lasts; refused for    | another                    | the relay tries again; the key waits
//	another reason                                     |                            |
//	a bad Config                                       | outbox.ErrInvalid, by New  | the text says what
//	a record that is no event                          | ErrMalformed, by Event     | it was produced by somebody else
//
// Tested by this package's tests against kfake, franz-go's broker in memory (three of them), with refused batches, leaders that move, brokers that hang, answer nonsense, lose
// acknowledgements, go and come back; not against Kafka itself.
package kafkasink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/cloudevent"
)

const (
	timeoutDefault  = 5 * time.Second
	inFlightDefault = 256
	inFlightMax     = 4096
	topicBytesMax   = 249
	metadataAge     = 250 * time.Millisecond // of what a client knows of its cluster, before it asks again for cause
)

// ErrMalformed: a record is no event.
var ErrMalformed = cloudevent.ErrMalformed

// Config says how events become records. Client is required.
type Config struct {
	// Client are options of the clients, such as kgo.SeedBrokers, kgo.DialTLSConfig and kgo.SASL. The sink sets RequiredAcks, RecordDeliveryTimeout and
	// AllowIdempotentProduceCancellation itself, and ProducerLinger to 0 and MetadataMinAge to 250 ms if they are not among these; DisableIdempotentWrite and TransactionalID
	// are refused. A partitioner of another kind than the default one, which goes by the
	// key and agrees with that of the Java client, may lose the order within a key.
	Client []kgo.Opt
	// Source is the CloudEvents source: a URI that names the outbox to receivers, with or without a host. Default: pawl.
	Source string
	// Topic returns the topic of an event. It is called by several goroutines at once. Default: the event's own.
	Topic func(outbox.Event) string
	// Timeout is how long a record waits for brokers that cannot be reached or do not acknowledge; keep it below Subscription.Timeout, so that such a wait counts as no attempt.
	// Default: 5 s.
	Timeout time.Duration
	// InFlight is how many events, of different keys, a call has on their way at once, 1 to 4,096. Default: 256.
	InFlight int
}

// Sink produces events to Kafka. It is safe for concurrent use.
type Sink struct {
	conf   Config
	client *kgo.Client
	alone  *kgo.Client   // whose batches hold one record, since turn lets one be sent at a time
	turn   chan struct{} // holds a token: whose turn it is to use alone

	forgetting atomic.Bool
	group      sync.WaitGroup // of forget
}

var _ outbox.Sink = (*Sink)(nil)

// New makes a sink, which connects when it has something to send. Close it when no relay uses it any more. The error is outbox.ErrInvalid.
func New(conf Config) (*Sink, error) {
	if conf.Source == "" {
		conf.Source = cloudevent.SourceDefault
	}
	if conf.Topic == nil {
		conf.Topic = func(e outbox.Event) string { return e.Topic }
	}
	if conf.Timeout == 0 {
		conf.Timeout = timeoutDefault
	}
	if conf.InFlight == 0 {
		conf.InFlight = inFlightDefault
	}
	if conf.InFlight < 1 || conf.InFlight > inFlightMax || conf.Timeout < time.Millisecond {
		return nil, fmt.Errorf("%w: kafkasink: InFlight %d is outside 1 to %d, or Timeout %s less than 1 ms", outbox.ErrInvalid, conf.InFlight, inFlightMax, conf.Timeout)
	}
	s := &Sink{conf: conf, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	// Nobody gains by a linger, since each key waits for its record; and a leader that has moved must be found within Timeout.
	opts := []kgo.Opt{kgo.ProducerLinger(0), kgo.MetadataMinAge(metadataAge)}
	opts = append(opts, conf.Client...)
	opts = append(opts, kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordDeliveryTimeout(conf.Timeout), kgo.AllowIdempotentProduceCancellation())
	for _, client := range []**kgo.Client{&s.client, &s.alone} {
		made, err := kgo.NewClient(opts...)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("%w: kafkasink: Client: %w", outbox.ErrInvalid, err)
		}
		*client = made
		if made.OptValue(kgo.DisableIdempotentWrite) == true {
			s.Close()
			return nil, fmt.Errorf("%w: kafkasink: Client: DisableIdempotentWrite: what the client sends again by itself would be stored twice", outbox.ErrInvalid)
		}
	}
	return s, nil
}

// Close closes the clients. What is being sent fails.
func (s *Sink) Close() {
	for _, client := range []*kgo.Client{s.client, s.alone} {
		if client != nil {
			client.Close()
		}
	}
	s.group.Wait()
}

// Send produces events as outbox.Each has it. The errors are those of the package documentation.
func (s *Sink) Send(ctx context.Context, events []outbox.Event) (accepted int, err error) {
	return outbox.Each(ctx, events, s.conf.InFlight, s.send)
}

func (s *Sink) send(ctx context.Context, e outbox.Event) error {
	topic := s.conf.Topic(e)
	if !isTopic(topic) {
		return outbox.Permanent(fmt.Errorf("kafkasink: event %s is for topic %.100q, which is no name of one", e.ID, topic))
	}
	err := s.produce(ctx, s.client, e, topic)
	if isAny(err, final) || isAny(err, doubtful) {
		select {
		case <-s.turn:
		case <-ctx.Done():
			return fmt.Errorf("produce to %s: %w, and no time to send it alone", topic, err)
		}
		err = s.produce(ctx, s.alone, e, topic)
		s.turn <- struct{}{}
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, kerr.UnknownTopicID) {
		s.forget(topic)
	}
	err = fmt.Errorf("produce to %s: %w", topic, err)
	switch {
	case isAny(err, final):
		return outbox.Permanent(err)
	case isAny(err, doubtful), isAny(err, ended):
		return err
	default:
		return outbox.Unavailable(err)
	}
}

// forget makes the clients forget a topic, which was deleted and perhaps made anew: they would go on with its old ID.
func (s *Sink) forget(topic string) {
	if !s.forgetting.CompareAndSwap(false, true) {
		return
	}
	s.group.Go(func() {
		s.client.PurgeTopicsFromClient(topic)
		s.alone.PurgeTopicsFromClient(topic)
		s.forgetting.Store(false)
	})
}

// produce sends a record and waits for its end, or for ctx's: then the client drops the record if it still can.
func (s *Sink) produce(ctx context.Context, client *kgo.Client, e outbox.Event, topic string) error {
	for {
		done := make(chan error, 1)
		client.Produce(ctx, s.record(e, topic), func(_ *kgo.Record, err error) { done <- err })
		select {
		case err := <-done:
			if isAny(err, ended) && ctx.Err() == nil {
				continue // the end of another call's ctx has failed all that waited for the same partition
			}
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// What a broker says of a batch for a record in it: that it will never be taken, or that something went wrong with it. All else is about the topic or the cluster.
var (
	final    = []error{kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.InvalidTimestamp, kerr.UnsupportedForMessageFormat}
	doubtful = []error{kerr.UnknownServerError, kerr.PolicyViolation, kerr.CorruptMessage}
	ended    = []error{context.Canceled, context.DeadlineExceeded}
)

func isAny(err error, of []error) bool {
	return slices.ContainsFunc(of, func(e error) bool { return errors.Is(err, e) })
}

// isTopic tells whether a topic can have this name.
func isTopic(s string) bool {
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	}
	return s != "" && s != "." && s != ".." && len(s) <= topicBytesMax && !strings.ContainsFunc(s, odd)
}

func (s *Sink) record(e outbox.Event, topic string) *kgo.Record {
	r := &kgo.Record{Topic: topic, Value: e.Payload, Headers: encode(e, s.conf.Source)}
	if r.Value == nil {
		r.Value = []byte{}
	}
	if e.Key != "" {
		r.Key = []byte(e.Key)
	}
	return r
}
