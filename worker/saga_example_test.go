package worker_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

type Order struct {
	ID    string `json:"id"`
	Item  string `json:"item"`
	Cents int    `json:"cents"`
}

type Parcel struct {
	Number int `json:"number"`
}

// What the shop and the services agree on, in a package that all of them import: the steps, and what each needs.
var (
	Checkout = saga.Define[Order]("checkout", saga.Deadline(10*time.Minute))
	Reserve  = saga.Step[saga.None](Checkout, "reserve", saga.Queue("inventory"))
	Pay      = saga.Step[saga.None](Checkout, "pay", saga.Queue("payments"), saga.After(Reserve), saga.Pivot()) // behind it, there is no way back
	Ship     = saga.Step[Parcel](Checkout, "ship", saga.Queue("shipping"), saga.After(Pay))
)

// A shop, an inventory, payments and shipping, which would be services of their own: each order comes about as a whole, or what was done for it is undone.
func Example_saga() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx, cancel := context.WithCancel(context.Background())
		for _, sql := range []string{
			"CREATE TABLE ordered (id text)", "CREATE TABLE stock AS SELECT 'book' AS item, 10 AS pieces", "CREATE TABLE account AS SELECT 5000 AS cents",
		} {
			if _, err := pool.Exec(ctx, sql); err != nil {
				log.Fatal(err)
			}
		}
		w, err := worker.New(pool, worker.Config{Queues: map[string]int{"inventory": 10, "payments": 10, "shipping": 10}})
		if err != nil {
			log.Fatal(err)
		}

		// In the inventory: how to reserve, and how to undo that.
		saga.HandleTx(w, Reserve, func(ctx context.Context, tx pgx.Tx, c *saga.Call[Order]) (saga.None, error) {
			tag, err := tx.Exec(ctx, "UPDATE stock SET pieces = pieces - 1 WHERE item = $1 AND pieces > 0", c.Input.Item)
			if err == nil && tag.RowsAffected() == 0 {
				err = saga.Fail(errors.New("out of stock")) // nothing was done
			}
			return saga.None{}, err
		}, func(ctx context.Context, tx pgx.Tx, c *saga.Call[Order], out *saga.None) error {
			if out == nil {
				return nil // no attempt has committed, and none ever will
			}
			_, err := tx.Exec(ctx, "UPDATE stock SET pieces = pieces + 1 WHERE item = $1", c.Input.Item)
			return err
		})

		// In payments.
		saga.HandleTx(w, Pay, func(ctx context.Context, tx pgx.Tx, c *saga.Call[Order]) (saga.None, error) {
			tag, err := tx.Exec(ctx, "UPDATE account SET cents = cents - $1 WHERE cents >= $1", c.Input.Cents)
			if err == nil && tag.RowsAffected() == 0 {
				err = saga.Fail(errors.New("not enough money"))
			}
			return saga.None{}, err
		}, nil)

		// In shipping. What happens elsewhere may happen again after a crash: c.Key() is the same each time.
		saga.Handle(w, Ship, func(ctx context.Context, c *saga.Call[Order]) (Parcel, error) {
			return Parcel{Number: len(c.Key())}, nil
		}, nil)

		// All of them, when they start.
		if err := Checkout.Register(ctx, pool); err != nil {
			log.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()

		for _, order := range []Order{{"4711", "book", 1999}, {"4712", "book", 9900}} {
			// In the shop, in the transaction of its own rows.
			err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, "INSERT INTO ordered VALUES ($1)", order.ID); err != nil {
					return err
				}
				_, err := Checkout.Start(ctx, tx, order, saga.ID("checkout:"+order.ID))
				return err
			})
			if err != nil {
				log.Fatal(err)
			}

			// Who wants to know waits, holding no connection.
			ended, err := Checkout.Await(ctx, pool, "checkout:"+order.ID)
			if errors.Is(err, saga.ErrCompensated) {
				fmt.Println(err)
				continue
			} else if err != nil {
				log.Fatal(err)
			}
			parcel, err := Ship.From(ended)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println(ended.ID, "is in parcel", parcel.Number)
		}
		var pieces, cents int
		if err := pool.QueryRow(ctx, "SELECT pieces, cents FROM stock, account").Scan(&pieces, &cents); err != nil {
			log.Fatal(err)
		}
		fmt.Println("left:", pieces, "books and", cents, "cents")
		cancel()
		if err := <-done; err != nil {
			log.Fatal(err)
		}
	})
	// Output:
	// checkout:4711 is in parcel 18
	// saga checkout:4712: compensated, since step "pay" failed: not enough money
	// left: 9 books and 3001 cents
}

type Recipient struct {
	Email string `json:"email"`
}

// A step that is split into units, which any free worker does; the next step gets what all of them came to.
func Example_sagaEach() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx, cancel := context.WithCancel(context.Background())
		newsletter := saga.Define[[]string]("newsletter")
		send := saga.Each[Recipient, int](newsletter, "send", saga.ReadOnly()) // what is sent stays sent
		count := saga.Step[int](newsletter, "count", saga.After(send), saga.ReadOnly())

		w, err := worker.New(pool, worker.Config{Queues: map[string]int{"default": 10}})
		if err != nil {
			log.Fatal(err)
		}
		saga.HandleEach(w, send, func(ctx context.Context, c *saga.Call[[]string]) (units []Recipient, err error) {
			for _, email := range c.Input {
				units = append(units, Recipient{email})
			}
			return units, nil
		}, func(ctx context.Context, c *saga.Call[[]string], r Recipient) (int, error) {
			return len(r.Email), nil
		}, nil)
		saga.Handle(w, count, func(ctx context.Context, c *saga.Call[[]string]) (sum int, err error) {
			lengths, err := send.Outputs(ctx, c)
			for _, n := range lengths {
				sum += n
			}
			return sum, err
		}, nil)
		if err := newsletter.Register(ctx, pool); err != nil {
			log.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()

		started, err := newsletter.Start(ctx, pool, []string{"ada@example.com", "grace@example.com"})
		if err != nil {
			log.Fatal(err)
		}
		ended, err := newsletter.Await(ctx, pool, started.ID)
		if err != nil {
			log.Fatal(err)
		}
		sum, err := count.From(ended)
		fmt.Println(sum, err)
		cancel()
		if err := <-done; err != nil {
			log.Fatal(err)
		}
	})
	// Output: 32 <nil>
}
