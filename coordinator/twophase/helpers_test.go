package twophase_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
)

const (
	patience = 60 * time.Second // bounds every wait; what is waited for comes much earlier
	opening  = 1000             // what is in each account at first
)

// bank is a coordinator's database and two participants, each with an account.
type bank struct {
	testing.TB
	pool       *pgxpool.Pool
	east, west *twophase.PostgresDB
	pools      map[string]*pgxpool.Pool

	mu     sync.Mutex
	points []string // that were passed
	at     map[string]func()
}

func newBank(tb testing.TB) *bank {
	b := &bank{TB: tb, pool: dbtest.New(tb), pools: map[string]*pgxpool.Pool{}, at: map[string]func(){}}
	b.pools["own"] = b.pool
	for _, name := range []string{"east", "west"} {
		pool, err := pgxpool.New(context.Background(), dbtest.EmptyURL(tb))
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(pool.Close)
		b.pools[name] = pool
	}
	b.east, b.west = twophase.Postgres("east", b.pools["east"]), twophase.Postgres("west", b.pools["west"])
	for _, p := range []*twophase.PostgresDB{b.east, b.west} {
		for range 2 {
			if err := p.Setup(context.Background()); err != nil {
				tb.Fatal(err)
			}
		}
	}
	for name := range b.pools {
		b.exec(name, "CREATE TABLE account (id int PRIMARY KEY, amount int NOT NULL CONSTRAINT account_amount CHECK (amount >= 0))")
		b.exec(name, "INSERT INTO account VALUES (1, $1)", opening)
	}
	return b
}

// manager makes another manager of the same transactions.
func (b *bank) manager() *twophase.Manager {
	b.Helper()
	m, err := twophase.New(b.pool, twophase.Failing(twophase.Config{Logger: slog.New(slog.DiscardHandler)}, b.passed), b.east, b.west)
	if err != nil {
		b.Fatal(err)
	}
	return m
}

func (b *bank) passed(point string) {
	b.mu.Lock()
	b.points = append(b.points, point)
	f := b.at[point]
	b.mu.Unlock()
	if f != nil {
		f()
	}
}

func (b *bank) exec(name, sql string, args ...any) {
	b.Helper()
	if _, err := b.pools[name].Exec(context.Background(), sql, args...); err != nil {
		b.Fatalf("%s: %s: %v", name, sql, err)
	}
}

func (b *bank) amount(name string) (n int) {
	b.Helper()
	if err := b.pools[name].QueryRow(context.Background(), "SELECT amount FROM account").Scan(&n); err != nil {
		b.Fatal(err)
	}
	return n
}

// want checks what is in the accounts beside what was at first, and that nothing is left prepared.
func (b *bank) want(east, west, own int) {
	b.Helper()
	if e, w, o := b.amount("east")-opening, b.amount("west")-opening, b.amount("own")-opening; e != east || w != west || o != own {
		b.Errorf("got %+d, %+d and %+d, want %+d, %+d and %+d", e, w, o, east, west, own)
	}
	for name, pool := range b.pools {
		var n int
		if err := pool.QueryRow(context.Background(), "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()").Scan(&n); err != nil || n != 0 {
			b.Errorf("%s: got %d prepared transactions, %v", name, n, err)
		}
	}
}

// tx is the transaction at a participant, "own" for the coordinator's database's.
func (b *bank) tx(ctx context.Context, t *twophase.Tx, name string) (pgx.Tx, error) {
	switch name {
	case "own":
		return t.Own(ctx)
	case "east":
		return b.east.Tx(ctx, t)
	default:
		return b.west.Tx(ctx, t)
	}
}

// add changes an account.
func (b *bank) add(ctx context.Context, t *twophase.Tx, name string, n int) error {
	tx, err := b.tx(ctx, t, name)
	if err == nil {
		_, err = tx.Exec(ctx, "UPDATE account SET amount = amount + $1 WHERE id = 1", n)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// transfer is a transaction that moves amounts.
func (b *bank) transfer(amounts map[string]int) func(context.Context, *twophase.Tx) error {
	return func(ctx context.Context, t *twophase.Tx) error {
		for _, name := range []string{"east", "west", "own"} {
			if n, ok := amounts[name]; ok {
				if err := b.add(ctx, t, name, n); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// patient runs work for as long as ctx says, not its transaction's time, which is short so that it is overdue soon.
func patient(ctx context.Context, work func(context.Context, *twophase.Tx) error) func(context.Context, *twophase.Tx) error {
	return func(_ context.Context, t *twophase.Tx) error { return work(ctx, t) }
}

func (b *bank) count(name, sql string, args ...any) (n int) {
	b.Helper()
	if err := b.pools[name].QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		b.Fatalf("%s: %s: %v", name, sql, err)
	}
	return n
}

// recover makes a pass, and checks what it did.
func (b *bank) recover(m *twophase.Manager, committed, rolledBack, doubts int) {
	b.Helper()
	r, err := m.Recover(b.Context(), twophase.KeepDefault)
	if err != nil {
		b.Errorf("recover: %v", err)
	}
	if r.Committed != committed || r.RolledBack != rolledBack || r.Doubts != doubts {
		b.Errorf("recover: got %+v, want %d committed, %d rolled back, %d doubts", r, committed, rolledBack, doubts)
	}
}
