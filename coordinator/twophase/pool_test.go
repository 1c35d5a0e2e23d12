package twophase_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

// narrow gives a pool of one connection to the same database.
func narrow(t *testing.T, wide *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	conf := wide.Config()
	conf.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func (b *bank) untilBlocked(name string) {
	b.Helper()
	for ctx := b.Context(); b.count(name, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 0; {
		if ctx.Err() != nil {
			b.Fatal(context.Cause(ctx))
		}
	}
}

// All connections of a participant's pool wait for the locks of a branch that is in doubt: recovery settles it all the same.
func TestRecover_poolUsedUp(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	b.crash("decided", "east", "west")
	east := twophase.Postgres("east", narrow(t, b.pools["east"]))
	m, err := twophase.New(b.pool, twophase.Config{Logger: slog.New(slog.DiscardHandler)}, east, b.west)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- m.Run(t.Context(), func(ctx context.Context, g *twophase.Tx) error {
			tx, err := east.Tx(ctx, g)
			if err == nil {
				_, err = tx.Exec(ctx, "UPDATE account SET amount = amount + $1", 1)
			}
			return err
		})
	}()
	b.untilBlocked("east")
	b.settled(m)
	if err := <-done; err != nil {
		t.Error(err)
	}
	b.want(8, 7, 0)
}

// All connections of the coordinator's pool wait for the locks of a branch whose decision is to be written: it is written all the same.
func TestCommit_poolUsedUp(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	own := narrow(t, b.pool)
	waiter, err := twophase.New(own, twophase.Config{Logger: slog.New(slog.DiscardHandler)}, b.east, b.west)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	b.at["voted"] = func() {
		go func() { done <- waiter.Run(t.Context(), b.transferInOrder("own", "east")) }()
		b.untilBlocked("east")
	}
	m, err := twophase.New(own, twophase.Failing(twophase.Config{Logger: slog.New(slog.DiscardHandler)}, b.passed), b.east, b.west)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Run(t.Context(), b.transferInOrder("east", "west")); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	b.want(2, 1, 1)
}

// transferInOrder adds 1 to each account.
func (b *bank) transferInOrder(names ...string) func(context.Context, *twophase.Tx) error {
	return func(ctx context.Context, g *twophase.Tx) error {
		for _, name := range names {
			if err := b.add(ctx, g, name, 1); err != nil {
				return err
			}
		}
		return nil
	}
}
