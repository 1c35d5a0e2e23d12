package main

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

// An operator looks at events and subscriptions, and steers them.
func TestSubscription(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	var err error
	s := outbox.Subscription{Name: "mail", Topics: []string{"order"}, Describe: "smtp.example", Attempts: 1, Sink: outbox.SinkFunc(
		func(context.Context, []outbox.Event) (int, error) {
			return 0, outbox.Permanent(context.DeadlineExceeded)
		})}
	if _, err := outbox.Create(t.Context(), pool, s); err != nil {
		t.Fatal(err)
	}
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return outbox.Publish(t.Context(), tx, outbox.Event{ID: "0190a8f6-1c3b-7cc2-9d5e-0123456789ab", Topic: "order", Key: "7", Type: "order.paid", Payload: []byte(`{"n":1}`)})
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- outbox.Relay(ctx, pool, s, 0, nil) }()
	for parked := []outbox.ParkedEvent(nil); len(parked) == 0; {
		if parked, err = outbox.Parked(t.Context(), pool, 1, "mail", 10); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"outbox", "list"}, exitOK, []string{"0190a8f6-1c3b-7cc2-9d5e-0123456789ab", "order.paid", `{"n":1}`}},
		{[]string{"outbox", "list", "--json"}, exitOK, []string{`"n"`, `"topic": "order"`}},
		{[]string{"outbox", "show", "0190a8f6-1c3b-7cc2-9d5e-0123456789ab"}, exitOK, []string{"key        7", "7 bytes of application/json"}},
		{[]string{"outbox", "show", "0190a8f6-1c3b-7cc2-9d5e-0123456789ac"}, exitNotFound, []string{"is not kept"}},
		{[]string{"outbox", "show", "seven"}, exitUsage, []string{"seven"}},
		{[]string{"outbox", "lag"}, exitOK, []string{"mail", "smtp.example"}},
		{[]string{"subscription", "pause", "mail", "--reason", "too loud"}, exitOK, []string{"is paused"}},
		{[]string{"subscription", "list"}, exitOK, []string{"too loud"}},
		{[]string{"subscription", "resume", "mail"}, exitOK, []string{"is resumed"}},
		{[]string{"subscription", "pause", "none"}, exitNotFound, []string{"none"}},
		{[]string{"subscription", "parked", "mail"}, exitOK, []string{"given up", "deadline exceeded"}},
		{[]string{"subscription", "replay", "mail"}, exitOK, []string{"1 parked event is tried now"}},
		{[]string{"subscription", "replay", "mail", "--drop"}, exitOK, []string{"0 events that were given up are removed"}},
		{[]string{"subscription", "rewind", "mail", "--ago", "1h"}, exitOK, []string{"delivers again from event number"}},
		{[]string{"subscription", "rewind", "mail", "--ago", "0s"}, exitOK, []string{"stays where it is"}},
	} {
		if c.code != exitOK {
			refused(t, c.code, url, c.args, c.want...)
			continue
		}
		mentions(t, must(t, c.code, url, c.args...), c.want...)
	}
}
