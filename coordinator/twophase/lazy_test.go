package twophase_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// newLazy gives a transaction that has not begun, its connection, and a count of the rows of table effect that others see.
func newLazy(t *testing.T) (*db.Lazy, *pgx.Conn, func() int) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), dbtest.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := pool.Exec(t.Context(), "CREATE TABLE effect (n int PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Release)
	return db.NewLazy(conn.Conn()), conn.Conn(), func() (n int) {
		if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM effect").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// Whatever the first statement is, it is part of the transaction, and so is what follows it.
func TestLazy(t *testing.T) {
	t.Parallel()
	const insert = "INSERT INTO effect VALUES ($1)"
	exec := func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, insert, 1)
		return err
	}
	for name, first := range map[string]func(ctx context.Context, tx pgx.Tx) error{
		"Exec": exec,
		"Exec of two statements": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "SELECT 1; INSERT INTO effect VALUES (1)")
			return err
		},
		"Exec with a mode": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, insert, pgx.QueryExecModeSimpleProtocol, 1)
			return err
		},
		"Exec with named arguments": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO effect VALUES (@n)", pgx.NamedArgs{"n": 1})
			return err
		},
		"QueryRow": func(ctx context.Context, tx pgx.Tx) error {
			var n int
			err := tx.QueryRow(ctx, insert+" RETURNING n", 1).Scan(&n)
			if err == nil && n != 1 {
				return errors.New("another row")
			}
			return err
		},
		"QueryRow of no row": func(ctx context.Context, tx pgx.Tx) error {
			if err := tx.QueryRow(ctx, "SELECT n FROM effect WHERE n = $1", 7).Scan(new(int)); !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			return exec(ctx, tx)
		},
		"Query": func(ctx context.Context, tx pgx.Tx) error {
			rows, _ := tx.Query(ctx, insert+" RETURNING n", 1)
			_, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
			return err
		},
		"SendBatch": func(ctx context.Context, tx pgx.Tx) error {
			b := &pgx.Batch{}
			b.Queue(insert, 1)
			return tx.SendBatch(ctx, b).Close()
		},
		"CopyFrom": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"effect"}, []string{"n"}, pgx.CopyFromRows([][]any{{1}}))
			return err
		},
		"Prepare": func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Prepare(ctx, "insert", insert); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "insert", 1)
			return err
		},
		"Begin": func(ctx context.Context, tx pgx.Tx) error {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return exec(ctx, tx) })
		},
		"LargeObjects": func(ctx context.Context, tx pgx.Tx) error {
			objects := tx.LargeObjects()
			if _, err := objects.Create(ctx, 0); err != nil {
				return err
			}
			return exec(ctx, tx)
		},
		"Conn": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Conn().Exec(ctx, insert, 1)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tx, conn, count := newLazy(t)
			if began, err := tx.Began(); began || err != nil || conn.PgConn().TxStatus() != 'I' {
				t.Errorf("begun before its first statement: %t, %v", began, err)
			}
			if err := first(t.Context(), tx); err != nil {
				t.Fatal(err)
			}
			if began, err := tx.Began(); !began || err != nil || conn.PgConn().TxStatus() != 'T' {
				t.Errorf("not begun: %t, %v", began, err)
			}
			if _, err := tx.Exec(t.Context(), insert, 2); err != nil {
				t.Error(err)
			}
			if n := count(); n != 0 {
				t.Errorf("%d rows are seen before the commit", n)
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Error(err)
			}
			if n := count(); n != 2 {
				t.Errorf("%d rows are seen after it, want 2", n)
			}
			if _, err := tx.Exec(t.Context(), insert, 3); !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("after it: got %v, want ErrTxClosed", err)
			}
		})
	}
}

// A first statement that fails leaves a transaction that cannot be gone on with: it has failed, or refuses everything, and never commits.
func TestLazy_fails(t *testing.T) {
	t.Parallel()
	ended, end := context.WithCancel(t.Context())
	end()
	for name, first := range map[string]func(ctx context.Context, tx pgx.Tx) error{
		"the statement": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO effect VALUES (1 / $1)", 0)
			return err
		},
		"its parse": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO nowhere VALUES ($1)", 0)
			return err
		},
		"a row's": func(ctx context.Context, tx pgx.Tx) error {
			return tx.QueryRow(ctx, "SELECT nothing FROM effect WHERE n = $1", 0).Scan(new(int))
		},
		"its context": func(_ context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ended, "INSERT INTO effect VALUES ($1)", 0)
			return err
		},
		"the beginning": func(_ context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(ended, "SELECT 1")
			rows.Close()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tx, conn, count := newLazy(t)
			if err := first(t.Context(), tx); err == nil {
				t.Fatal("it succeeded")
			}
			if _, err := tx.Exec(t.Context(), "INSERT INTO effect VALUES ($1)", 1); err == nil {
				t.Error("a later statement succeeded")
			}
			if began, err := tx.Began(); err == nil && (!began || conn.PgConn().TxStatus() != 'E') {
				t.Errorf("begun %t, in state %c", began, conn.PgConn().TxStatus())
			}
			if err := tx.Commit(t.Context()); err == nil {
				t.Error("the commit succeeded")
			}
			if n := count(); n != 0 {
				t.Errorf("%d rows are seen", n)
			}
		})
	}
}

// One that never began has nothing to end.
func TestLazy_never(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*db.Lazy, context.Context) error{"Commit": (*db.Lazy).Commit, "Rollback": (*db.Lazy).Rollback} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tx, conn, _ := newLazy(t)
			if err := end(tx, t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := tx.Exec(t.Context(), "INSERT INTO effect VALUES ($1)", 1); !errors.Is(err, pgx.ErrTxClosed) || conn.PgConn().TxStatus() != 'I' {
				t.Errorf("after it: got %v, want ErrTxClosed", err)
			}
		})
	}
}
