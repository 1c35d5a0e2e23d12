package kafkasink_test

import (
	"context"
	"fmt"
	"log"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/kafkasink"
)

func Example() {
	ctx := context.Background()
	cluster, err := kfake.NewCluster(kfake.SeedTopics(3, "shop.order"))
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()

	sink, err := kafkasink.New(kafkasink.Config{
		Client: []kgo.Opt{kgo.SeedBrokers(cluster.ListenAddrs()...)},
		Source: "https://shop.example",
		Topic:  func(e outbox.Event) string { return "shop." + e.Topic },
	})
	if err != nil {
		log.Fatal(err)
	}
	defer sink.Close()

	// coordinator.Config{Subscriptions: []outbox.Subscription{{Name: "kafka", Sink: sink}}} has it called; here it is called by hand.
	paid := outbox.Event{ID: "0199b0a0-0000-7000-8000-000000000001", Topic: "order", Key: "42", Type: "order.paid", Payload: []byte(`{"cents":1999}`)}
	if _, err := sink.Send(ctx, []outbox.Event{paid}); err != nil {
		log.Fatal(err)
	}

	// A consumer. What it does with the event, and idempotency.Once before, is one transaction.
	consumer, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ConsumerGroup("mail"), kgo.ConsumeTopics("shop.order"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	for _, r := range consumer.PollRecords(ctx, 1).Records() {
		e, err := kafkasink.Event(r)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s of order %s: %s\n", r.Topic, e.Type, e.Key, e.Payload)
	}
	// Output: shop.order: order.paid of order 42: {"cents":1999}
}
