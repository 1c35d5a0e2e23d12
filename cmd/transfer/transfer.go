// Package transfer is an example of transactions over databases that may be killed at any moment, as may be those who run them. "pawl dev --example transfer" runs it:
//
//	movers ──┬──▶ east, Postgres: accounts, entries
//	         ├──▶ west, Postgres: accounts, entries
//	         ├──▶ south, MariaDB, where one is installed: accounts, entries
//	         └──▶ the coordinator's database: decisions, and a record of most transfers
//	sweepers ──▶ all of them: what was left prepared
//
// [Move] moves money between accounts at two of the banks, each a server of its own, in a global transaction: both change, or none. Most transfers are also recorded in the coordinator's
// database, in the transaction that decides them. [Prove] looks into the tables afterwards. Nothing but package twophase keeps a transfer from being half done.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

const (
	// Accounts is how many accounts each bank has, and Opening what is in each at first, in cents.
	Accounts = 100
	Opening  = 100_000

	// Timeout is that of a transfer.
	Timeout = 5 * time.Second

	inFlight      = 4                      // transfers of a mover at the same time
	centsMax      = 500                    // of a transfer
	recordedOf    = 4                      // all but one of so many transfers are recorded
	countEvery    = 20                     // transfers of a mover after which it looks whether there are enough
	retry         = 100 * time.Millisecond // after a transfer that failed
	unfinishedMax = 100                    // transactions looked at, whether they are ended
)

// Banks are the databases.
type Banks struct {
	own     *pgxpool.Pool // the coordinator's
	all     []Bank
	Manager *twophase.Manager
}

// Open makes one of at least two banks, whose transactions are decided in the database of own.
func Open(own *pgxpool.Pool, namespace int16, name string, log *slog.Logger, banks ...Bank) (*Banks, error) {
	if len(banks) < 2 {
		return nil, fmt.Errorf("transfer: two banks are needed, not %d", len(banks))
	}
	var participants []twophase.Participant
	for _, bank := range banks {
		participants = append(participants, bank.participant())
	}
	m, err := twophase.New(own, twophase.Config{Namespace: namespace, Name: name, Logger: log}, participants...)
	return &Banks{own: own, all: banks, Manager: m}, err
}

// Create makes the tables, if they are not there, and begins a run, whose number it returns.
func Create(ctx context.Context, b *Banks) (run int64, err error) {
	if err := b.Manager.Setup(ctx); err != nil {
		return 0, err
	}
	for _, bank := range b.all {
		if err := bank.create(ctx); err != nil {
			return 0, at(bank, err)
		}
	}
	_, err = b.own.Exec(ctx, `
		CREATE SCHEMA IF NOT EXISTS transfer;
		CREATE TABLE IF NOT EXISTS transfer.run (id bigint GENERATED ALWAYS AS IDENTITY, began_at timestamptz NOT NULL DEFAULT clock_timestamp());
		CREATE TABLE IF NOT EXISTS transfer.record (run_id bigint NOT NULL, transfer text NOT NULL, cents bigint NOT NULL)`)
	if err == nil {
		err = b.own.QueryRow(ctx, "INSERT INTO transfer.run DEFAULT VALUES RETURNING id").Scan(&run)
	}
	return run, err
}

// at says at which bank an error was.
func at(bank Bank, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("bank %s: %w", bank.participant().Name(), err)
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
	cents := 1 + rand.IntN(centsMax)
	pair := rand.Perm(len(b.all))[:2]
	from := pair[0]
	slices.Sort(pair) // one order for all, so that no two wait for each other, each at another bank
	return b.Manager.Run(ctx, func(ctx context.Context, g *twophase.Tx) error {
		for i, n := range pair {
			bank, peer, account, delta := b.all[n], b.all[pair[1-i]].participant().Name(), 1+rand.IntN(Accounts), cents
			if n == from {
				delta = -cents
			}
			if err := bank.exec(ctx, g, "UPDATE transfer.account SET cents = cents + ? WHERE id = ?", delta, account); err != nil {
				return err
			}
			if err := bank.exec(ctx, g, "INSERT INTO transfer.entry (run_id, transfer, account, cents, peer) VALUES (?, ?, ?, ?, ?)", run, g.ID(), account, delta, peer); err != nil {
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

// Done is how many transfers of a run are committed at the bank that was given to.
func Done(ctx context.Context, b *Banks, run int64) (done int, err error) {
	for _, bank := range b.all {
		var n int
		if err := bank.read(ctx, "SELECT count(*) FROM transfer.entry WHERE run_id = ? AND cents > 0", []any{run}, []any{&n}, func() error { done += n; return nil }); err != nil {
			return 0, at(bank, err)
		}
	}
	return done, nil
}

// Prepared counts the branches that are prepared and not settled.
func (b *Banks) Prepared(ctx context.Context) (n int, err error) {
	for _, bank := range b.all {
		prepared, err := bank.participant().Prepared(ctx)
		if err != nil {
			return 0, err
		}
		n += len(prepared)
	}
	return n, nil
}

// Unfinished tells whether there are transactions that are committed, and not known to be so everywhere. Those of an earlier run with a bank that is not here now wait for that, and are not counted.
func (b *Banks) Unfinished(ctx context.Context) (bool, error) {
	decided, err := b.Manager.List(ctx, "", true, unfinishedMax)
	return slices.ContainsFunc(decided, func(d twophase.Decided) bool {
		return !slices.ContainsFunc(d.Participants, func(name string) bool { return !b.has(name) })
	}), err
}

func (b *Banks) has(name string) bool {
	return slices.ContainsFunc(b.all, func(bank Bank) bool { return bank.participant().Name() == name })
}
