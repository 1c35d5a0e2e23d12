package worker_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/tcc"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

type Seats struct {
	Flight string `json:"flight"`
	Number int    `json:"number"`
}

// What those who book and the airlines agree on.
var HoldSeats = tcc.Define[Seats]("airline.hold", tcc.Queue("airline"))

// A journey of two flights is booked as a whole, or not at all: seats are held first, and then all of them taken or all given back. The airline's database could be another.
func Example_tcc() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx, cancel := context.WithCancel(context.Background())
		if _, err := pool.Exec(ctx, "CREATE TABLE flight AS SELECT * FROM (VALUES ('LHR', 9, 0, 0), ('JFK', 2, 0, 0)) f(name, free, held, taken)"); err != nil {
			log.Fatal(err)
		}

		// At the airline: how to confirm and to cancel. Each is done once, and only for seats that are held.
		w, err := worker.New(pool, worker.Config{Queues: map[string]int{"airline": 10}})
		if err != nil {
			log.Fatal(err)
		}
		tcc.HandleTx(w, HoldSeats, func(ctx context.Context, tx pgx.Tx, c *tcc.Call[Seats]) error {
			_, err := tx.Exec(ctx, "UPDATE flight SET held = held - $2, taken = taken + $2 WHERE name = $1", c.Args.Flight, c.Args.Number)
			return err
		}, func(ctx context.Context, tx pgx.Tx, c *tcc.Call[Seats]) error {
			_, err := tx.Exec(ctx, "UPDATE flight SET held = held - $2, free = free + $2 WHERE name = $1", c.Args.Flight, c.Args.Number)
			return err
		})
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()

		// At the travel agent's.
		book := func(journey string, flights ...Seats) error {
			t, err := tcc.Begin(ctx, pool, tcc.ID(journey), tcc.Timeout(30*time.Second))
			if err != nil {
				return err
			}
			for _, f := range flights {
				err := HoldSeats.TryTx(ctx, t, pool, f, func(ctx context.Context, tx pgx.Tx) error {
					tag, err := tx.Exec(ctx, "UPDATE flight SET free = free - $2, held = held + $2 WHERE name = $1 AND free >= $2", f.Flight, f.Number)
					if err == nil && tag.RowsAffected() == 0 {
						err = barrier.Refuse(errors.New("no seats to " + f.Flight))
					}
					return err
				})
				if err != nil {
					return errors.Join(err, t.Cancel(ctx))
				}
			}
			return t.Confirm(ctx) // once this has returned, seats are taken whatever crashes
		}
		fmt.Println("1:", book("journey:1", Seats{"LHR", 2}, Seats{"JFK", 2}))
		fmt.Println("2:", errors.Is(book("journey:2", Seats{"LHR", 1}, Seats{"JFK", 1}), tcc.ErrRefused))

		for _, journey := range []string{"journey:1", "journey:2"} {
			err := tcc.Await(ctx, pool, 1, journey)
			fmt.Println(journey, err == nil, errors.Is(err, tcc.ErrCancelled))
		}
		rows, _ := pool.Query(ctx, "SELECT format('%s: %s free, %s held, %s taken', name, free, held, taken) FROM flight ORDER BY name DESC")
		flights, err := pgx.CollectRows(rows, pgx.RowTo[string])
		fmt.Println(flights, err)
		cancel()
		if err := <-done; err != nil {
			log.Fatal(err)
		}
	})
	// Output:
	// 1: <nil>
	// 2: true
	// journey:1 true false
	// journey:2 false true
	// [LHR: 7 free, 0 held, 2 taken JFK: 0 free, 0 held, 2 taken] <nil>
}
