package natssink_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/natssink"
)

func Example() {
	ctx := context.Background()
	url, stop := natsServer()
	defer stop()

	conn, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		log.Fatal(err)
	}
	stream, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "SHOP", Subjects: []string{"shop.>"}})
	if err != nil {
		log.Fatal(err)
	}
	sink, err := natssink.New(js, natssink.Config{Source: "https://shop.example", Prefix: "shop", Stream: "SHOP"})
	if err != nil {
		log.Fatal(err)
	}

	// coordinator.Config{Subscriptions: []outbox.Subscription{{Name: "nats", Sink: sink}}} has it called; here it is called by hand.
	paid := outbox.Event{ID: "0199b0a0-0000-7000-8000-000000000001", Topic: "order", Key: "42", Type: "order.paid", Payload: []byte(`{"cents":1999}`)}
	for range 2 { // the second is dropped as a duplicate
		if _, err := sink.Send(ctx, []outbox.Event{paid}); err != nil {
			log.Fatal(err)
		}
	}

	// A consumer. What it does with the event, and idempotency.Once before, is one transaction; then it acknowledges.
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "mail", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		log.Fatal(err)
	}
	messages, err := consumer.FetchNoWait(10)
	if err != nil {
		log.Fatal(err)
	}
	for m := range messages.Messages() {
		e, err := natssink.Event(m.Headers(), m.Data())
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s of order %s: %s\n", m.Subject(), e.Type, e.Key, e.Payload)
		if err := m.Ack(); err != nil {
			log.Fatal(err)
		}
	}
	// Output: shop.order: order.paid of order 42: {"cents":1999}
}

func natsServer() (url string, end func()) {
	dir, err := os.MkdirTemp("", "nats")
	if err != nil {
		log.Fatal(err)
	}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		log.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		log.Fatal("the server has not started")
	}
	return s.ClientURL(), func() {
		stop(s)
		_ = os.RemoveAll(dir)
	}
}
