package coordinator_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// Two coordinators share the shards of a subscription, each event comes once; when one ends, the other goes on with all of them.
func TestRelays(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	var mu sync.Mutex
	times := map[string]int{}
	news := make(chan struct{}, 1000)
	s := outbox.Subscription{Name: "both", Shards: 5, Sink: outbox.SinkFunc(func(_ context.Context, events []outbox.Event) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range events {
			times[string(e.Payload)]++
			news <- struct{}{}
		}
		return len(events), nil
	})}
	if _, err := outbox.Create(t.Context(), pool, s); err != nil {
		t.Fatal(err)
	}
	stops := make([]func(), 2)
	for i := range stops {
		c, err := coordinator.New(pool, coordinator.Config{Name: "relay", Version: "v7", TTL: 7 * time.Second, Subscriptions: []outbox.Subscription{s}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		stops[i] = sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
		t.Cleanup(stops[i])
	}
	publish := func(from int) {
		for i := range 50 {
			err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				return outbox.Publish(t.Context(), tx, outbox.Event{Topic: "t", Key: fmt.Sprint(i), Type: "t", Payload: fmt.Append(nil, from+i)})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for range 50 {
			<-news
		}
	}
	publish(0)
	var others bool // sessions that are not as configured
	if err := pool.QueryRow(t.Context(), "SELECT bool_or(name <> 'relay' OR version <> 'v7' OR ttl <> interval '7 s') FROM pawl.session").Scan(&others); err != nil || others {
		t.Errorf("there is a session with another name, version or ttl: %t, %v", others, err)
	}
	for shared := false; !shared; { // neither has more than its share
		infos, err := lock.List(t.Context(), pool, 1, "", 100)
		if err != nil {
			t.Fatal(err)
		}
		held := map[int64]int{}
		for _, info := range infos {
			for _, h := range info.Holders {
				held[h.Session]++
			}
		}
		shares := slices.Sorted(maps.Values(held))
		if shared = slices.Equal(shares, []int{2, 3}); !shared {
			if _, err := pool.Exec(t.Context(), "SELECT pg_sleep(0.1)"); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(50)
	stops[0]()
	publish(100)
	mu.Lock()
	defer mu.Unlock()
	for text, n := range times {
		if n != 1 {
			t.Errorf("event %s came %d times", text, n)
		}
	}
}

func TestRelayConfig(t *testing.T) {
	t.Parallel()
	_, err := coordinator.New(dbtest.New(t), coordinator.Config{TTL: time.Millisecond, Subscriptions: []outbox.Subscription{{Name: "none"}, {Name: "none", Shards: 100}}})
	for _, want := range []string{"Sink is missing", "Shards 100", "two subscriptions", "TTL of 1ms"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
}
