package lock_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// A critical section: one process at a time pays an invoice, and one that lost the lock on the way cannot commit.
func Example() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		locks, err := lock.Open(ctx, pool, lock.Config{})
		if err != nil {
			log.Fatal(err)
		}
		defer locks.Close(ctx)
		if _, err := pool.Exec(ctx, "CREATE TABLE invoice (id int, paid boolean)"); err != nil {
			log.Fatal(err)
		}

		err = locks.Do(ctx, "invoice:42", func(ctx context.Context, l *lock.Lease) error {
			// … call the bank, which may take a while …
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				if err := l.Assert(ctx, tx); err != nil { // still ours, and so until the commit
					return err
				}
				_, err := tx.Exec(ctx, "INSERT INTO invoice VALUES (42, true)")
				return err
			})
		}, lock.Wait(5*time.Second))
		fmt.Println(err)
		// Output: <nil>
	})
}

// One process leads at a time. The term is a fencing token: what an old leader still sends can be told by it.
func ExampleLocks_Campaign() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx, resign := context.WithCancel(context.Background())
		locks, err := lock.Open(ctx, pool, lock.Config{})
		if err != nil {
			log.Fatal(err)
		}
		defer locks.Close(context.WithoutCancel(ctx))

		err = locks.Campaign(ctx, "leader", time.Second, func(ctx context.Context, term lock.Term) error {
			fmt.Println("elected:", term.Number > 0)
			resign() // a real one works until ctx ends
			<-ctx.Done()
			return nil
		})
		fmt.Println(err)
		// Output:
		// elected: true
		// context canceled
	})
}

// At most three at a time, in the whole cluster.
func ExampleSemaphore() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		locks, err := lock.Open(ctx, pool, lock.Config{})
		if err != nil {
			log.Fatal(err)
		}
		defer locks.Close(ctx)
		for range 4 {
			_, err := locks.TryAcquire(ctx, "bank-api", lock.Semaphore(3))
			fmt.Println(err == nil)
		}
		// Output:
		// true
		// true
		// true
		// false
	})
}

// A cron job in every process that runs once in the cluster: a lock is not once a tick, so the tick is written down under it.
func ExampleInTx() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		if _, err := pool.Exec(ctx, "CREATE TABLE report (day date PRIMARY KEY)"); err != nil {
			log.Fatal(err)
		}
		nightly := func(day string) error { // by cron, in every process
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				mine, err := lock.TryInTx(ctx, tx, "nightly report")
				if err != nil || !mine {
					return err // another is at it
				}
				tag, err := tx.Exec(ctx, "INSERT INTO report VALUES ($1) ON CONFLICT DO NOTHING", day)
				if err == nil && tag.RowsAffected() == 1 {
					fmt.Println("reported", day)
				}
				return err
			})
		}
		for range 2 {
			if err := nightly("2026-11-23"); err != nil {
				log.Fatal(err)
			}
		}
		// Output: reported 2026-11-23
	})
}
