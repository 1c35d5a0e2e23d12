package watermillsink_test

import (
	"context"
	"fmt"
	"log"

	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/watermillsink"
)

func Example() {
	ctx := context.Background()
	pubsub := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: 1}, nil)
	defer pubsub.Close()
	messages, err := pubsub.Subscribe(ctx, "order")
	if err != nil {
		log.Fatal(err)
	}

	sink, err := watermillsink.New(pubsub, watermillsink.Config{Source: "https://shop.example"})
	if err != nil {
		log.Fatal(err)
	}

	// coordinator.Config{Subscriptions: []outbox.Subscription{{Name: "watermill", Sink: sink}}} has it called; here it is called by hand.
	paid := outbox.Event{ID: "0199b0a0-0000-7000-8000-000000000001", Topic: "order", Key: "42", Type: "order.paid", Payload: []byte(`{"cents":1999}`)}
	if _, err := sink.Send(ctx, []outbox.Event{paid}); err != nil {
		log.Fatal(err)
	}

	m := <-messages
	e, err := watermillsink.Event(m)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s of order %s: %s\n", e.Type, e.Key, e.Payload)
	m.Ack()
	// Output: order.paid of order 42: {"cents":1999}
}
