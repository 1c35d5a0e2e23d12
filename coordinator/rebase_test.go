package coordinator_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// A database that has only an outbox is found to have been moved too, by its cluster or since a position is in the future, and is refused until it is rebased.
func TestRebaseOutbox(t *testing.T) {
	t.Parallel()
	for name, move := range map[string]string{
		"another cluster": "UPDATE pawl.outbox SET cluster = cluster + 1",
		"a clone":         "UPDATE pawl.subscription_batch SET seen_xid = (seen_xid::text::bigint + 1000000)::text::xid8",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			c, err := coordinator.New(pool, coordinator.Config{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "a"}); err != nil {
				t.Fatal(err)
			}
			consume := func() error {
				_, err := outbox.ConsumeTx(t.Context(), pool, 1, "a", 0, 10, func(context.Context, pgx.Tx, []outbox.Event) error { return nil })
				return err
			}
			away := func() int {
				_, n, err := c.Moved(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			if n, err := away(), consume(); n != 0 || err != nil {
				t.Fatalf("at home: %d away, %v", n, err)
			}
			if _, err := pool.Exec(t.Context(), move); err != nil {
				t.Fatal(err)
			}
			if n, err := away(), consume(); n != 1 || !errors.Is(err, outbox.ErrMoved) {
				t.Errorf("moved: %d away, %v", n, err)
			}
			if n, err := c.Rebase(t.Context()); n != 1 || err != nil {
				t.Errorf("rebase: %d, %v", n, err)
			}
			if n, err := away(), consume(); n != 0 || err != nil {
				t.Errorf("rebased: %d away, %v", n, err)
			}
		})
	}
}
