package coordinator_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// A coordinator loses its session while its sink hangs and heeds no context: another one takes over, and what the first comes out with then breaks nothing.
func TestAttackRelaySessionLost(t *testing.T) {
	t.Parallel()
	for _, accepts := range []bool{false, true} {
		t.Run(fmt.Sprint("accepts=", accepts), func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			var mu sync.Mutex
			var got []string
			news := make(chan struct{}, 1000)
			take := func(events []outbox.Event) {
				mu.Lock()
				defer mu.Unlock()
				for _, e := range events {
					got = append(got, string(e.Payload))
					news <- struct{}{}
				}
			}
			hold, holding, back := make(chan struct{}), make(chan struct{}), make(chan struct{})
			var first sync.Once
			hang := outbox.SinkFunc(func(_ context.Context, events []outbox.Event) (int, error) {
				hung := false
				first.Do(func() {
					hung = true
					close(holding)
					<-hold
				})
				if hung {
					defer close(back)
					if !accepts {
						return 0, errors.New("late")
					}
				}
				take(events)
				return len(events), nil
			})
			run := func(sink outbox.Sink) {
				c, err := coordinator.New(pool, coordinator.Config{Subscriptions: []outbox.Subscription{{Name: "s", Sink: sink, Beginning: true}}})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
				done := make(chan error, 1)
				go func() { done <- c.Run(ctx) }()
				t.Cleanup(func() {
					cancel()
					if err := <-done; err != nil {
						t.Errorf("run: %v", err)
					}
				})
			}
			publish := func(text string) {
				err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					return outbox.Publish(t.Context(), tx, outbox.Event{Topic: "t", Key: "k", Type: "t", Payload: []byte(text)})
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			run(hang)
			release := sync.OnceFunc(func() { close(hold) })
			t.Cleanup(release)
			publish("1")
			<-holding
			session := get[int64](t, pool, "SELECT min(id) FROM pawl.session WHERE ended_at IS NULL")
			run(outbox.SinkFunc(func(_ context.Context, events []outbox.Event) (int, error) { take(events); return len(events), nil }))
			exec(t, pool, "SELECT pawl.session_end('1', $1, 'test')", session)
			<-news // the second has it
			publish("2")
			<-news
			release()
			<-back
			var want []string
			for i := 1; i < 30; i++ {
				want = append(want, fmt.Sprint(i))
				if i > 2 {
					publish(fmt.Sprint(i))
				}
			}
			firsts := func() []string { // in the order in which each arrived first; the first relay goes on until it knows
				mu.Lock()
				defer mu.Unlock()
				var out []string
				for _, text := range got {
					if !slices.Contains(out, text) {
						out = append(out, text)
					}
				}
				return out
			}
			for len(firsts()) < len(want) {
				<-news
			}
			if !slices.Equal(firsts(), want) {
				t.Errorf("got %v", got)
			}
		})
	}
}
