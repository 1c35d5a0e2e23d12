package watermillsink_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/sinktest"
	"github.com/pawl-dev/pawl/coordinator/outbox/watermillsink"
)

const patience = 30 * time.Second

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	t.Cleanup(stop)
	return ctx
}

// receiver keeps what a gochannel brings, before the publisher goes on.
type receiver struct {
	message.Publisher

	mu     sync.Mutex
	got    []*message.Message
	fault  sinktest.Fault
	id     string
	met    chan struct{}
	mended chan struct{}
	once   *sync.Once
}

func newReceiver(t *testing.T, topic string) *receiver {
	t.Helper()
	channel := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, nil)
	messages, err := channel.Subscribe(context.Background(), topic)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{Publisher: channel}
	var group sync.WaitGroup
	group.Go(func() {
		for m := range messages {
			r.mu.Lock()
			r.got = append(r.got, m)
			r.mu.Unlock()
			m.Ack()
		}
	})
	t.Cleanup(func() {
		_ = channel.Close()
		group.Wait()
	})
	return r
}

func (r *receiver) messages() []*message.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func (r *receiver) events() ([]outbox.Event, error) {
	var out []outbox.Event
	for _, m := range r.messages() {
		e, err := watermillsink.Event(m)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

func (r *receiver) breakAt(f sinktest.Fault, id string) <-chan struct{} {
	if f == sinktest.Garble {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault, r.id, r.met, r.mended, r.once = f, id, make(chan struct{}), make(chan struct{}), &sync.Once{}
	return r.met
}

func (r *receiver) mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.id = ""
	close(r.mended)
}

// Publish ignores the message's context, as many do.
func (r *receiver) Publish(topic string, messages ...*message.Message) error {
	r.mu.Lock()
	fault, met, mended := r.fault, func() {}, r.mended
	if messages[0].UUID != r.id {
		fault = ""
	} else {
		met = func() { r.once.Do(func() { close(r.met) }) }
	}
	r.mu.Unlock()
	switch fault {
	case sinktest.Refuse:
		met()
		return errors.New("refused")
	case sinktest.Hang:
		met()
		<-mended
	case sinktest.Lose:
		if err := r.Publisher.Publish(topic, messages...); err != nil {
			return err
		}
		met()
		return errors.New("the answer was lost")
	}
	return r.Publisher.Publish(topic, messages...)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(t *testing.T) sinktest.Target {
		r := newReceiver(t, "order")
		s, err := watermillsink.New(r, watermillsink.Config{})
		if err != nil {
			t.Fatal(err)
		}
		return sinktest.Target{Sink: s, Received: r.events, Break: r.breakAt, Mend: r.mend}
	})
}

func event(n int, key string) outbox.Event {
	return outbox.Event{ID: fmt.Sprint(n), Topic: "order", Key: key, Type: "order.paid", Payload: fmt.Append(nil, n), ContentType: "application/json"}
}

func TestSend_message(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, "shop.order")
	s, err := watermillsink.New(r, watermillsink.Config{Source: "shop", Topic: func(e outbox.Event) string { return "shop." + e.Topic }})
	if err != nil {
		t.Fatal(err)
	}
	e := event(1, "k")
	e.Headers = map[string]string{"traceparent": "00-1", "ce_id": "own"}
	if n, err := s.Send(within(t), []outbox.Event{e}); n != 1 {
		t.Fatal(err)
	}
	m := r.messages()[0]
	want := map[string]string{
		"ce_specversion": "1.0", "ce_id": "1", "ce_source": "shop", "ce_type": "order.paid", "ce_subject": "k", "ce_pawltopic": "order", "content-type": "application/json",
		"traceparent": "00-1", "ce_pawlheaders": `{"ce_id":"own"}`,
	}
	if m.UUID != "1" || string(m.Payload) != "1" || !maps.Equal(m.Metadata, want) {
		t.Errorf("%s, %s, %v; want %v", m.UUID, m.Payload, m.Metadata, want)
	}
	if _, err := watermillsink.Event(message.NewMessage("1", nil)); !errors.Is(err, watermillsink.ErrMalformed) {
		t.Errorf("%v, want ErrMalformed", err)
	}
}

type publisher func(m *message.Message) error

func (p publisher) Publish(_ string, messages ...*message.Message) error { return p(messages[0]) }
func (publisher) Close() error                                           { return nil }

// What a publisher returns reaches the relay, and its panic does not end the process.
func TestSend_errors(t *testing.T) {
	t.Parallel()
	returned := make(chan struct{})
	for name, c := range map[string]struct {
		publish func(*message.Message) error
		is      func(error) bool
	}{
		"permanent":   {func(*message.Message) error { return outbox.Permanent(errors.New("no")) }, outbox.IsPermanent},
		"unavailable": {func(*message.Message) error { return outbox.Unavailable(errors.New("no")) }, func(err error) bool { _, ok := outbox.IsUnavailable(err); return ok }},
		"panic":       {func(*message.Message) error { panic("oops") }, func(err error) bool { return strings.Contains(err.Error(), "panicked: oops") }},
		"its context": {func(m *message.Message) error { <-m.Context().Done(); close(returned); return m.Context().Err() }, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
	} {
		s, err := watermillsink.New(publisher(c.publish), watermillsink.Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithTimeout(within(t), 200*time.Millisecond)
		if n, err := s.Send(ctx, []outbox.Event{event(1, "a")}); n != 0 || err == nil || !c.is(err) {
			t.Errorf("%s: %d accepted, %v", name, n, err)
		}
		stop()
	}
	select {
	case <-returned:
	case <-within(t).Done():
		t.Error("the publisher does not learn that ctx has ended")
	}
}

// Publishes that were left behind do not pile up.
func TestSend_leftBehind(t *testing.T) {
	t.Parallel()
	const places = 3
	var (
		mu      sync.Mutex
		running int
		proceed = make(chan struct{})
	)
	s, err := watermillsink.New(publisher(func(*message.Message) error {
		mu.Lock()
		if running++; running > places {
			t.Errorf("%d are running", running)
		}
		mu.Unlock()
		<-proceed
		mu.Lock()
		running--
		mu.Unlock()
		return nil
	}), watermillsink.Config{InFlight: places})
	if err != nil {
		t.Fatal(err)
	}
	for i := range places + 2 {
		ctx, stop := context.WithTimeout(within(t), 50*time.Millisecond)
		n, err := s.Send(ctx, []outbox.Event{event(i, "a")})
		stop()
		if _, down := outbox.IsUnavailable(err); n != 0 || err == nil || down != (i >= places) {
			t.Errorf("call %d: %d accepted, %v", i, n, err)
		}
	}
	close(proceed)
	if n, err := s.Send(within(t), []outbox.Event{event(9, "a"), event(10, "b")}); n != 2 {
		t.Errorf("%d accepted, %v", n, err)
	}
}

func TestNew_faults(t *testing.T) {
	t.Parallel()
	good := publisher(func(*message.Message) error { return nil })
	for _, conf := range []watermillsink.Config{{InFlight: -1}, {InFlight: 5000}} {
		if _, err := watermillsink.New(good, conf); !errors.Is(err, outbox.ErrInvalid) {
			t.Errorf("%+v: %v", conf, err)
		}
	}
	if _, err := watermillsink.New(nil, watermillsink.Config{}); !errors.Is(err, outbox.ErrInvalid) {
		t.Errorf("no publisher: %v", err)
	}
}
