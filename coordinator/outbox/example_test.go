package outbox_test

import (
	"context"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db/dbtest"
)

func ExamplePublish() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx, stop := context.WithCancel(context.Background())
		mail := outbox.Subscription{
			Name: "mail", Topics: []string{"order"},
			Sink: outbox.SinkFunc(func(_ context.Context, events []outbox.Event) (int, error) {
				for _, e := range events {
					fmt.Printf("%s of order %s: %s\n", e.Type, e.Key, e.Payload)
				}
				stop()
				return len(events), nil
			}),
		}
		if _, err := outbox.Create(ctx, pool, mail); err != nil {
			log.Fatal(err)
		}

		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			// … write the order …
			return outbox.Publish(ctx, tx, outbox.Event{Topic: "order", Key: "42", Type: "order.paid", Payload: []byte(`{"cents":1999}`)})
		})
		if err != nil {
			log.Fatal(err)
		}

		if err := outbox.Relay(ctx, pool, mail, 0, nil); err != nil { // coordinator.Run does it for the subscriptions in its configuration
			log.Fatal(err)
		}
		// Output: order.paid of order 42: {"cents":1999}
	})
}
