package worker_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

type Email struct {
	MessageID string `json:"message_id"`
	To        string `json:"to"`
}

// What the enqueuing service and the worker agree on.
var SendEmail = job.Define[Email]("email.send",
	job.Queue("mail"), job.MaxAttempts(10), job.Timeout(30*time.Second),
	job.Dedupe(func(e Email) string { return e.MessageID }))

// A service enqueues in the transaction of its own rows; a worker runs the job once that has committed.
func Example() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()

		// In a service.
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "CREATE TABLE signup (email text)"); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "INSERT INTO signup VALUES ('ada@example.com')"); err != nil {
				return err
			}
			_, err := SendEmail.Enqueue(ctx, tx, Email{MessageID: "welcome:1", To: "ada@example.com"})
			return err
		})
		if err != nil {
			log.Fatal(err)
		}

		// In a worker.
		w, err := worker.New(pool, worker.Config{Queues: map[string]int{"mail": 50}})
		if err != nil {
			log.Fatal(err)
		}
		worker.Handle(w, SendEmail, func(ctx context.Context, j *job.Job[Email]) error {
			fmt.Println("to", j.Args.To)
			cancel()
			return nil
		})
		if err := w.Run(ctx); err != nil { // until ctx is cancelled, then drains
			log.Fatal(err)
		}
	})
	// Output: to ada@example.com
}

type Charge struct {
	Account int `json:"account"`
	Cents   int `json:"cents"`
}

type Receipt struct {
	Balance int `json:"balance"`
}

var ChargeAccount = job.Define[Charge]("account.charge")

// The handler's writes, its result and the job's success commit together: the effect happens once, however often the code runs.
func ExampleHandleTx() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx, cancel := context.WithCancel(context.Background())
		if _, err := pool.Exec(ctx, "CREATE TABLE account AS SELECT 1 AS id, 1000 AS cents"); err != nil {
			log.Fatal(err)
		}
		w, err := worker.New(pool, worker.Config{Queues: map[string]int{"default": 5}})
		if err != nil {
			log.Fatal(err)
		}
		worker.HandleTx(w, ChargeAccount, func(ctx context.Context, tx pgx.Tx, j *job.Job[Charge]) (Receipt, error) {
			var r Receipt
			err := tx.QueryRow(ctx, "UPDATE account SET cents = cents - $2 WHERE id = $1 AND cents >= $2 RETURNING cents",
				j.Args.Account, j.Args.Cents).Scan(&r.Balance)
			if errors.Is(err, pgx.ErrNoRows) {
				return r, job.Discard(errors.New("not enough money"))
			}
			return r, err
		})
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()

		charge, err := ChargeAccount.Enqueue(ctx, pool, Charge{Account: 1, Cents: 250})
		if err != nil {
			log.Fatal(err)
		}
		receipt, err := job.Await[Receipt](ctx, pool, 1, charge.ID)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("left:", receipt.Balance)
		cancel()
		if err := <-done; err != nil {
			log.Fatal(err)
		}
	})
	// Output: left: 750
}

// A coordinator puts right what crashed and starts what is due. Run one or more, in any process.
func Example_coordinator() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		c, err := coordinator.New(pool, coordinator.Config{})
		if err != nil {
			log.Fatal(err)
		}
		if err := c.Run(ctx); err != nil { // until ctx is cancelled
			log.Fatal(err)
		}
		fmt.Println("stopped")
	})
	// Output: stopped
}
