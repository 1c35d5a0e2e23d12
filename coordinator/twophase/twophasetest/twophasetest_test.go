package twophasetest_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/coordinator/twophase/twophasetest"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// postgres is a Postgres with a table.
func postgres(t *testing.T) twophasetest.Target {
	url := dbtest.EmptyURL(t)
	connect := func() *pgxpool.Pool {
		pool, err := pgxpool.New(context.Background(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}
	own := connect()
	if _, err := own.Exec(t.Context(), "CREATE TABLE effect (key text)"); err != nil {
		t.Fatal(err)
	}
	return twophasetest.Target{
		Open: func(name string) twophase.Participant { return twophase.Postgres(name, connect()) },
		Write: func(ctx context.Context, b twophase.Branch, key string) error {
			_, err := b.(interface{ Tx() pgx.Tx }).Tx().Exec(ctx, "INSERT INTO effect VALUES ($1)", key)
			return err
		},
		Count: func(ctx context.Context, key string) (n int, err error) {
			err = own.QueryRow(ctx, "SELECT count(*) FROM effect WHERE key = $1", key).Scan(&n)
			return n, err
		},
		Foreign: func() {
			for i, name := range []string{"other", "pawl:other"} {
				id := fmt.Sprintf("%s:%d:%d", name, i, rand.Int64()) // unique on the server
				if _, err := own.Exec(t.Context(), "BEGIN; INSERT INTO effect VALUES (''); PREPARE TRANSACTION '"+id+"'"); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if _, err := own.Exec(context.Background(), "ROLLBACK PREPARED '"+id+"'"); err != nil {
						t.Error(err)
					}
				})
			}
		},
	}
}

// mariadb is a MariaDB with a table.
func mariadb(t *testing.T) twophasetest.Target {
	dsn := dbtest.MariaDB(t)
	connect := func() *sql.DB {
		db, err := sql.Open("mysql", dsn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		return db
	}
	own := connect()
	if _, err := own.ExecContext(t.Context(), "CREATE TABLE effect (id int AUTO_INCREMENT PRIMARY KEY, k varchar(100), KEY (k))"); err != nil {
		t.Fatal(err)
	}
	return twophasetest.Target{
		Open: func(name string) twophase.Participant { return twophase.MySQL(name, connect()) },
		Write: func(ctx context.Context, b twophase.Branch, key string) error {
			_, err := b.(interface{ Tx() twophase.MySQLTx }).Tx().ExecContext(ctx, "INSERT INTO effect (k) VALUES (?)", key)
			return err
		},
		Count: func(ctx context.Context, key string) (n int, err error) {
			err = own.QueryRowContext(ctx, "SELECT count(*) FROM effect WHERE k = ?", key).Scan(&n)
			return n, err
		},
		Foreign: func() {
			conn, err := own.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			id := "'1:other','" + dsn[len(dsn)-10:] + ":other',7" // of our form, but for the format
			for _, statement := range []string{"XA START " + id, "INSERT INTO effect (k) VALUES ('')", "XA END " + id, "XA PREPARE " + id} {
				if _, err := conn.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() {
				if _, err := own.ExecContext(context.Background(), "XA ROLLBACK "+id); err != nil {
					t.Error(err)
				}
			})
		},
	}
}

func TestConform_postgres(t *testing.T) {
	t.Parallel()
	twophasetest.Conform(t, postgres)
}

func TestConform_mariadb(t *testing.T) {
	t.Parallel()
	twophasetest.Conform(t, mariadb)
}
