package webhook_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/webhook"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// A relay and a receiver that fails in every way it can: all events arrive, those of a key in order, and what is given up is what the receiver never wanted.
func TestRelay(t *testing.T) {
	t.Parallel()
	const (
		keys   = 10
		rounds = 20
	)
	pool := dbtest.New(t)
	ctx, stop := context.WithCancel(within(t))
	var (
		mu    sync.Mutex
		calls int
		got   = map[string][]string{} // by key, the payloads
		seen  = map[string]bool{}
		left  = keys * rounds
	)
	handler, err := webhook.Handler(webhook.Receiver{Secrets: []string{secretA}, Handle: func(_ context.Context, e outbox.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if e.Type == "order.unwanted" {
			return outbox.Permanent(errors.New("not that"))
		}
		switch calls++; calls % 23 {
		case 3:
			return errors.New("oops")
		case 7:
			return outbox.RetryAfter(errors.New("soon"), time.Millisecond)
		case 11:
			return outbox.Unavailable(errors.New("down"))
		case 15:
			panic("oops")
		}
		if !seen[e.ID] {
			seen[e.ID] = true
			got[e.Key] = append(got[e.Key], string(e.Payload))
			if left--; left == 0 {
				stop()
			}
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = quiet
	server.Start()
	t.Cleanup(server.Close)
	subscription := outbox.Subscription{
		Name: "hook", Sink: sink(t, webhook.Config{URL: server.URL, Secrets: []string{secretA}}), Batch: 10, Policy: outbox.Skip,
		Backoff: time.Millisecond, BackoffMax: 10 * time.Millisecond, Breaker: time.Millisecond,
	}
	if _, err := outbox.Create(ctx, pool, subscription); err != nil {
		t.Fatal(err)
	}
	for r := range rounds {
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			var events []outbox.Event
			for k := range keys {
				events = append(events, outbox.Event{Topic: "order", Key: fmt.Sprint(k), Type: "order.paid", Payload: fmt.Append(nil, r)})
			}
			events = append(events, outbox.Event{Topic: "order", Key: fmt.Sprint(r % keys), Type: "order.unwanted", Payload: []byte("{}")})
			return outbox.Publish(ctx, tx, events...)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := outbox.Relay(ctx, pool, subscription, 0, nil); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if left > 0 {
		t.Errorf("%d events have not arrived", left)
	}
	for key, payloads := range got {
		for i, p := range payloads {
			if p != fmt.Sprint(i) {
				t.Errorf("key %s: %v", key, payloads)
				break
			}
		}
	}
}

func BenchmarkSend(b *testing.B) {
	handler, err := webhook.Handler(webhook.Receiver{Secrets: []string{secretA}, Handle: func(context.Context, outbox.Event) error { return nil }})
	if err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	s := must(webhook.New(webhook.Config{URL: server.URL, Secrets: []string{secretA}, AllowPrivate: true}))
	n := 0
	for b.Loop() {
		if _, err := s.Send(b.Context(), events[:1]); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}
