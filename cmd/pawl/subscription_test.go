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
		{[]string{"outbox", "lag"}, exitOK, []string{"mail", "smtp.example", "Events are kept from number 1 on, published", "for 168h at least", "1 range in use. The oldest is not full yet."}},
		{[]string{"outbox", "lag", "--json"}, exitOK, []string{`"held_by": "filling"`, `"oldest_seq": "1"`}},
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

// What a subscription has missed is shown, and accepted before it goes on; one that nobody needs is removed.
func TestSubscriptionMissed(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "mail"}); err != nil {
		t.Fatal(err)
	}
	mustExec(t, pool, "UPDATE pawl.subscription SET missed = 3, missed_from = 5, missed_to = 9, paused_at = now(), paused_why = 'events were dropped before it had them'")
	mentions(t, must(t, exitOK, url, "subscription", "list"), "paused", "dropped before it had them (3 events, number 5 to 9; see resume --accept-gap)")
	refused(t, exitFailed, url, []string{"subscription", "resume", "mail"}, "3 events, number 5 to 9", "--accept-gap")
	mentions(t, must(t, exitOK, url, "subscription", "list"), "paused")
	mentions(t, must(t, exitOK, url, "subscription", "resume", "mail", "--accept-gap"), "is resumed, with the oldest event kept")
	mentions(t, must(t, exitOK, url, "subscription", "list"), "moved")
	refused(t, exitUsage, url, []string{"subscription", "remove", "mail"}, "--yes")
	mentions(t, must(t, exitOK, url, "subscription", "remove", "mail", "--yes"), "is removed")
	refused(t, exitNotFound, url, []string{"subscription", "remove", "mail", "--yes"}, "mail")
}

// The oldest range says what holds it, until a sweep drops it, which tells so.
func TestSweepDropped(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "mail"}); err != nil {
		t.Fatal(err)
	}
	mustExec(t, pool, "SELECT setval('pawl.outbox_event_id', 2000001)")
	sweepUntil := func(by outbox.Holder) (out string) {
		t.Helper()
		for kept := (outbox.Kept{By: "?"}); kept.By != by; { // other tests' transactions hold it too
			out += must(t, exitOK, url, "sweep", "partitions")
			var err error
			if kept, err = outbox.Retention(t.Context(), pool, 1); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	sweepUntil(outbox.HeldByAge)
	mentions(t, must(t, exitOK, url, "outbox", "lag"), "Events are kept from number 1 on", "2 ranges in use. The oldest is complete since")
	mustExec(t, pool, "UPDATE pawl.partition SET over_at = over_at - interval '8 days' WHERE over_at IS NOT NULL")
	mentions(t, must(t, exitOK, url, "outbox", "lag"), "The oldest could have left 24h00m ago, but not all of it was delivered by mail; it leaves in 22d nevertheless")
	must(t, exitOK, url, "subscription", "remove", "mail", "--yes")
	mentions(t, must(t, exitOK, url, "outbox", "lag"), "leaves with the next sweep")
	mentions(t, sweepUntil(outbox.HeldByIDs), "dropped outbox_event from 0 to 2000000")
	mentions(t, must(t, exitOK, url, "subscription", "list"), "Events are kept from number 2000001 on")
}
