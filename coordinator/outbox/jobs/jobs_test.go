package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/jobs"
	"github.com/pawl-dev/pawl/db/dbtest"
)

type mail struct {
	Order string `json:"order"`
	Event string `json:"event"`
}

var sendMail = job.Define[mail]("mail.send", job.Queue("mail"))

// toMail is no job for events of type "dull", and cannot read those that are not JSON.
func toMail(e outbox.Event) (mail, error) {
	if e.Type == "dull" {
		return mail{}, jobs.ErrSkip
	}
	var payload any
	if err := json.Unmarshal(e.Payload, &payload); err != nil {
		return mail{}, err
	}
	return mail{Order: e.Key, Event: e.ID}, nil
}

func publish(t *testing.T, pool *pgxpool.Pool, events ...outbox.Event) {
	t.Helper()
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return outbox.Publish(t.Context(), tx, events...) }); err != nil {
		t.Fatal(err)
	}
}

func relay(t *testing.T, pool *pgxpool.Pool, s outbox.Subscription) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- outbox.Relay(ctx, pool, s, 0, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("relay: %v", err)
		}
	})
}

func until(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	for range 6000 {
		var done bool
		if err := pool.QueryRow(t.Context(), "SELECT ("+sql+") FROM pg_sleep(0.01)").Scan(&done); err != nil {
			t.Fatal(err)
		}
		if done {
			return
		}
	}
	t.Fatalf("never true: %s", sql)
}

// One job for each event however often the relay's connections are cut, with the event's headers, in the order of a key; what cannot be read holds up its key alone.
func TestSink(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := outbox.Subscription{
		Name: "mail", SinkTx: jobs.Sink(sendMail, toMail, job.Header("from", "outbox")), Beginning: true, Page: 20, Batch: 10,
		Backoff: 10 * time.Millisecond, BackoffMax: 20 * time.Millisecond, Attempts: 2,
	}
	relay(t, pool, s)
	relay(t, pool, s)
	for i := range 200 {
		publish(t, pool, outbox.Event{Topic: "order", Key: fmt.Sprint(i % 7), Type: "order.paid", Payload: []byte(`{}`), Headers: map[string]string{"trace": fmt.Sprint(i / 50)}},
			outbox.Event{Topic: "order", Key: "dull", Type: "dull"})
		if i == 100 {
			publish(t, pool, outbox.Event{Topic: "order", Key: "bad", Type: "order.paid", Payload: []byte("{")})
		}
		if i%50 == 0 {
			if _, err := pool.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); err != nil {
				t.Fatal(err)
			}
		}
	}
	until(t, pool, "SELECT count(*) >= 200 FROM pawl.job")
	until(t, pool, "SELECT count(*) = 1 AND bool_and(key = 'bad' AND attempt = 2) FROM pawl.parked_event WHERE dead_at IS NOT NULL")
	var total, events, headers, disordered int
	err := pool.QueryRow(t.Context(), `SELECT count(*), count(DISTINCT args->>'event'), count(*) FILTER (WHERE headers->>'trace' IS NOT NULL AND headers->>'from' = 'outbox'),
			count(*) FILTER (WHERE args->>'event' < before)
		FROM (SELECT *, lag(args->>'event') OVER (PARTITION BY args->>'order' ORDER BY id) AS before FROM pawl.job) j`).Scan(&total, &events, &headers, &disordered)
	if err != nil {
		t.Fatal(err)
	}
	if total != 200 || events != 200 || headers != 200 || disordered != 0 {
		t.Errorf("%d jobs of %d events, %d with the headers, %d out of order", total, events, headers, disordered)
	}
}

// A job that is refused is not lost: the event waits.
func TestSinkRefused(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	large := func(outbox.Event) ([]byte, error) { return make([]byte, 2<<20), nil }
	relay(t, pool, outbox.Subscription{Name: "large", SinkTx: jobs.Sink(job.Define[[]byte]("large"), large), Beginning: true})
	publish(t, pool, outbox.Event{Topic: "order", Key: "1", Type: "order.paid"})
	until(t, pool, "SELECT count(*) = 1 AND bool_and(error LIKE '%payload too large%') FROM pawl.parked_event")
}

func ExampleSink() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx, stop := context.WithCancel(context.Background())
		enqueue := jobs.Sink(sendMail, func(e outbox.Event) (mail, error) {
			if e.Type != "order.paid" {
				return mail{}, jobs.ErrSkip
			}
			return mail{Order: e.Key, Event: e.ID}, nil
		})
		subscription := outbox.Subscription{Name: "mail", Topics: []string{"order"}, SinkTx: enqueue, Beginning: true}

		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			return outbox.Publish(ctx, tx, outbox.Event{Topic: "order", Key: "42", Type: "order.paid"})
		})
		if err != nil {
			log.Fatal(err)
		}
		go func() { // coordinator.Run does it for the subscriptions in its configuration
			if err := outbox.Relay(ctx, pool, subscription, 0, nil); err != nil {
				log.Fatal(err)
			}
		}()

		var order string
		for {
			err := pool.QueryRow(ctx, "SELECT args->>'order' FROM pawl.job WHERE kind = 'mail.send'").Scan(&order)
			if err == nil {
				break
			}
			if !errors.Is(err, pgx.ErrNoRows) {
				log.Fatal(err)
			}
		}
		fmt.Println("a job for order", order)
		stop()
		// Output: a job for order 42
	})
}
