package twophase_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// Money moves from an account in one database to one in another: in both, or in neither.
func Example() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		bank := branch(ctx, pool, "bank")
		shop := branch(ctx, pool, "shop")

		east, west := twophase.Postgres("east", bank), twophase.Postgres("west", shop)
		global, err := twophase.New(pool, twophase.Config{}, east, west)
		if err != nil {
			log.Fatal(err)
		}
		if err := global.Setup(ctx); err != nil { // once, as "pawl tx setup" does
			log.Fatal(err)
		}

		transfer := func(cents int) error {
			return global.Run(ctx, func(ctx context.Context, t *twophase.Tx) error {
				from, err := east.Tx(ctx, t)
				if err != nil {
					return err
				}
				tag, err := from.Exec(ctx, "UPDATE account SET cents = cents - $1 WHERE cents >= $1", cents)
				if err == nil && tag.RowsAffected() == 0 {
					err = errors.New("not enough money")
				}
				if err != nil {
					return err // all is rolled back
				}
				to, err := west.Tx(ctx, t)
				if err != nil {
					return err
				}
				_, err = to.Exec(ctx, "UPDATE account SET cents = cents + $1", cents)
				return err
			})
		}
		fmt.Println(transfer(300), transfer(5000))

		for _, db := range []*pgxpool.Pool{bank, shop} {
			var cents int
			if err := db.QueryRow(ctx, "SELECT cents FROM account").Scan(&cents); err != nil {
				log.Fatal(err)
			}
			fmt.Println(cents)
		}
		bank.Close()
		shop.Close()
		for _, name := range []string{"bank", "shop"} {
			_, _ = pool.Exec(ctx, "DROP DATABASE "+pgx.Identifier{pool.Config().ConnConfig.Database + name}.Sanitize())
		}
	})
	// Output:
	// <nil> not enough money
	// 700
	// 1300
}

// branch makes another database on the server of pool, with an account.
func branch(ctx context.Context, pool *pgxpool.Pool, name string) *pgxpool.Pool {
	config := pool.Config()
	config.ConnConfig.Database += name
	if _, err := pool.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{config.ConnConfig.Database}.Sanitize()); err != nil {
		log.Fatal(err)
	}
	other, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := other.Exec(ctx, "CREATE TABLE account AS SELECT 1000 AS cents"); err != nil {
		log.Fatal(err)
	}
	return other
}
