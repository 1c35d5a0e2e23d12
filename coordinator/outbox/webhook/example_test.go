package webhook_test

import (
	"context"
	"fmt"
	"log"
	"net/http/httptest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/webhook"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// A consumer whose effects are in a database of its own: each event has its effect once, however often it is delivered.
func ExampleHandler() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		if _, err := pool.Exec(ctx, "CREATE TABLE mail (order_id text, text text)"); err != nil {
			log.Fatal(err)
		}
		secrets := []string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}

		handler, err := webhook.Handler(webhook.Receiver{Secrets: secrets, Handle: func(ctx context.Context, e outbox.Event) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				if first, err := idempotency.Once(ctx, tx, 1, "mail", e.ID); err != nil || !first {
					return err
				}
				_, err := tx.Exec(ctx, "INSERT INTO mail VALUES ($1, $2)", e.Key, e.Type)
				return err
			})
		}})
		if err != nil {
			log.Fatal(err)
		}
		server := httptest.NewServer(handler)
		defer server.Close()

		// The other side: coordinator.Config{Subscriptions: …} has this sink called.
		sink, err := webhook.New(webhook.Config{URL: server.URL, Source: "https://shop.example", Secrets: secrets, AllowPrivate: true})
		if err != nil {
			log.Fatal(err)
		}
		paid := outbox.Event{ID: "0199b0a0-0000-7000-8000-000000000001", Topic: "order", Key: "42", Type: "order.paid", Payload: []byte(`{"cents":1999}`)}
		for range 3 { // a relay that dies before it has noted that an event was accepted sends it again
			if _, err := sink.Send(ctx, []outbox.Event{paid}); err != nil {
				log.Fatal(err)
			}
		}

		var mails int
		if err := pool.QueryRow(ctx, "SELECT count(*) FROM mail WHERE order_id = '42'").Scan(&mails); err != nil {
			log.Fatal(err)
		}
		fmt.Println(mails, "mail")
		// Output: 1 mail
	})
}
