// Package transfer is an example of transactions over databases that may be killed at any moment, as may be those who run them. "pawl dev --example transfer" runs it:
//
//	movers ──┬──▶ east: accounts, entries
//	         ├──▶ west: accounts, entries
//	         └──▶ the coordinator's database: decisions, and a record of most transfers
//	sweepers ──▶ all three: what was left prepared
//
// [Move] moves money between an account at one bank and one at the other, each a Postgres server of its own, in a global transaction: both change, or none. Most transfers are also recorded in the coordinator's
// database, in the transaction that decides them. [Prove] looks into the tables afterwards. Nothing but package twophase keeps a transfer from being half done.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

const (
	// Accounts is how many accounts each bank has, and Opening what is in each at first, in cents.
	Accounts = 100
	Opening  = 100_000

	// Timeout is that of a transfer.
	Timeout = 5 * time.Second

	inFlight   = 4                      // transfers of a mover at the same time
	centsMax   = 500                    // of a transfer
	recordedOf = 4                      // all but one of so many transfers are recorded
	countEvery = 20                     // transfers of a mover after which it looks whether there are enough
	retry      = 100 * time.Millisecond // after a transfer that failed
)

// Names are the banks' names.
var Names = []string{"east", "west"}

// Banks are the databases.
type Banks struct {
	Own     *pgxpool.Pool // the coordinator's
	Pools   []*pgxpool.Pool
	At      []*twophase.PostgresDB
	Manager *twophase.Manager
}

// Open makes pools of banks by their URLs, in the order of Names. Close ends them.
func Open(ctx context.Context, own *pgxpool.Pool, namespace int16, name string, urls ...string) (*Banks, error) {
	if len(urls) != len(Names) {
		return nil, fmt.Errorf("transfer: %d banks are needed, not %d", len(Names), len(urls))
	}
	b := &Banks{Own: own}
	var participants []twophase.Participant
	for i, url := range urls {
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			b.Close()
			return nil, err
		}
		p := twophase.Postgres(Names[i], pool)
		b.Pools, b.At, participants = append(b.Pools, pool), append(b.At, p), append(participants, p)
	}
	var err error
	b.Manager, err = twophase.New(own, twophase.Config{Namespace: namespace, Name: name}, participants...)
	return b, err
}

// Close ends the pools that Open made.
func (b *Banks) Close() {
	for _, pool := range b.Pools {
		pool.Close()
	}
}

// Create makes the tables, if they are not there, and begins a run, whose number it returns.
func Create(ctx context.Context, b *Banks) (run int64, err error) {
	if err := b.Manager.Setup(ctx); err != nil {
		return 0, err
	}
	for _, pool := range b.Pools {
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `
				CREATE SCHEMA IF NOT EXISTS transfer;
				CREATE TABLE IF NOT EXISTS transfer.account (id int PRIMARY KEY, cents bigint NOT NULL CHECK (cents >= 0));
				CREATE TABLE IF NOT EXISTS transfer.entry (run_id bigint NOT NULL, transfer text NOT NULL, account int NOT NULL, cents bigint NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
				CREATE INDEX IF NOT EXISTS entry_run ON transfer.entry (run_id)`); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO transfer.account SELECT i, $1 FROM generate_series(1, $2) i ON CONFLICT DO NOTHING", Opening, Accounts)
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	_, err = b.Own.Exec(ctx, `
		CREATE SCHEMA IF NOT EXISTS transfer;
		CREATE TABLE IF NOT EXISTS transfer.run (id bigint GENERATED ALWAYS AS IDENTITY, began_at timestamptz NOT NULL DEFAULT clock_timestamp());
		CREATE TABLE IF NOT EXISTS transfer.record (run_id bigint NOT NULL, transfer text NOT NULL, cents bigint NOT NULL)`)
	if err == nil {
		err = b.Own.QueryRow(ctx, "INSERT INTO transfer.run DEFAULT VALUES RETURNING id").Scan(&run)
	}
	return run, err
}

// Move makes transfers until the run has as many as wanted, or ctx ends.
func Move(ctx context.Context, b *Banks, run int64, wanted int) error {
	var group sync.WaitGroup
	for range inFlight {
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if n%countEvery == 0 {
					if done, err := Done(ctx, b, run); err == nil && done >= wanted {
						return
					}
				}
				if err := one(ctx, b, run); err != nil { // a bank may be down
					t := time.NewTimer(retry)
					select {
					case <-ctx.Done():
					case <-t.C:
					}
					t.Stop()
				}
			}
		})
	}
	group.Wait()
	return nil
}

// one makes a transfer.
func one(ctx context.Context, b *Banks, run int64) error {
	from := rand.IntN(len(b.At))
	cents := 1 + rand.IntN(centsMax)
	return b.Manager.Run(ctx, func(ctx context.Context, g *twophase.Tx) error {
		for i, p := range b.At {
			delta := cents
			if i == from {
				delta = -cents
			}
			tx, err := p.Tx(ctx, g)
			if err != nil {
				return err
			}
			account := 1 + rand.IntN(Accounts)
			if _, err := tx.Exec(ctx, "UPDATE transfer.account SET cents = cents + $1 WHERE id = $2", delta, account); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "INSERT INTO transfer.entry (run_id, transfer, account, cents) VALUES ($1, $2, $3, $4)", run, g.ID(), account, delta); err != nil {
				return err
			}
		}
		if rand.IntN(recordedOf) == 0 {
			return nil
		}
		own, err := g.Own(ctx)
		if err == nil {
			_, err = own.Exec(ctx, "INSERT INTO transfer.record (run_id, transfer, cents) VALUES ($1, $2, $3)", run, g.ID(), cents)
		}
		return err
	}, twophase.Timeout(Timeout))
}

// Sweep recovers every so often until ctx ends.
func Sweep(ctx context.Context, b *Banks, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if _, err := b.Manager.Recover(ctx, twophase.KeepDefault); errors.Is(err, twophase.ErrSchema) {
			return err
		} // else a bank may be down
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Done is how many transfers of a run are committed at the first bank.
func Done(ctx context.Context, b *Banks, run int64) (n int, err error) {
	err = b.Pools[0].QueryRow(ctx, "SELECT count(*) FROM transfer.entry WHERE run_id = $1", run).Scan(&n)
	return n, err
}

// Prepared counts the branches that are prepared and not settled.
func (b *Banks) Prepared(ctx context.Context) (n int, err error) {
	for _, p := range b.At {
		all, err := p.Prepared(ctx)
		if err != nil {
			return 0, err
		}
		n += len(all)
	}
	return n, nil
}
