package sagatest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/coordinator/saga/sagatest"
	"github.com/pawl-dev/pawl/db/dbtest"
)

type trip struct {
	City string `json:"city"`
}

// A payment is refused after the process died right behind the reservation: it is reserved once, and given back.
func Example() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		t := exampleTB{} // in a test: its t
		ctx := context.Background()
		if _, err := pool.Exec(ctx, "CREATE TABLE room (booking text PRIMARY KEY, city text)"); err != nil {
			log.Fatal(err)
		}

		book := saga.Define[trip]("book")
		reserve := saga.Step[string](book, "reserve")
		pay := saga.Step[saga.None](book, "pay", saga.After(reserve), saga.Pivot())
		if err := book.Register(ctx, pool); err != nil {
			log.Fatal(err)
		}
		b := sagatest.New(t, pool)
		saga.HandleTx(b, reserve, func(ctx context.Context, tx pgx.Tx, c *saga.Call[trip]) (string, error) {
			_, err := tx.Exec(ctx, "INSERT INTO room VALUES ($1, $2)", c.Saga, c.Input.City)
			return "room in " + c.Input.City, err
		}, func(ctx context.Context, tx pgx.Tx, c *saga.Call[trip], _ *string) error {
			_, err := tx.Exec(ctx, "DELETE FROM room WHERE booking = $1", c.Saga)
			return err
		})
		saga.Handle(b, pay, func(context.Context, *saga.Call[trip]) (saga.None, error) { return saga.None{}, nil }, nil)

		s, err := book.Start(ctx, pool, trip{"Rome"}, saga.ID("booking:1"))
		if err != nil {
			log.Fatal(err)
		}
		b.CrashAt("reserve", sagatest.AfterAction)
		b.RefuseAt("pay", errors.New("card refused"))
		b.Run(ctx)
		fmt.Println(b.History(s.ID))
		// Output:
		// started → running
		// succeeded reserve: "room in Rome"
		// refused pay: card refused → compensating
		// undone reserve → compensated
	})
}

// exampleTB is a test where there is none.
type exampleTB struct{ testing.TB }

func (exampleTB) Helper()                           {}
func (exampleTB) Cleanup(func())                    {}
func (exampleTB) Fatalf(format string, args ...any) { log.Fatalf(format, args...) }
func (exampleTB) Errorf(format string, args ...any) { log.Fatalf(format, args...) }
