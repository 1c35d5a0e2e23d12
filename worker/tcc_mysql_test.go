package worker_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/tcc"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// vault is a participant on MariaDB with one account.
type vault struct {
	*testing.T
	db *sql.DB
}

var deposit = tcc.Define[money]("deposit", tcc.Backoff(0, 0), tcc.MaxAttempts(1))

func newVault(t *testing.T) vault {
	t.Helper()
	db, err := sql.Open("mysql", dbtest.MariaDB(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	for _, statement := range []string{"CREATE TABLE account (free int NOT NULL, due int NOT NULL CHECK (due >= 0))", "INSERT INTO account VALUES (0, 0)"} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := barrier.SetupMySQL(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return vault{t, db}
}

func (v vault) count(query string) (n int) {
	v.Helper()
	if err := v.db.QueryRowContext(context.Background(), query).Scan(&n); err != nil {
		v.Fatal(err)
	}
	return n
}

// wants checks what the account holds: nothing is due.
func (v vault) wants(free int) {
	v.Helper()
	if f, d := v.count("SELECT free FROM account"), v.count("SELECT due FROM account"); f != free || d != 0 {
		v.Errorf("%d cents and %d due, want %d", f, d, free)
	}
}

func (v vault) settle(set string) func(context.Context, barrier.MySQLTx, *tcc.Call[money]) error {
	return func(ctx context.Context, tx barrier.MySQLTx, c *tcc.Call[money]) error {
		_, err := tx.ExecContext(ctx, "UPDATE account SET "+set, c.Args.Cents)
		return err
	}
}

func (v vault) try(cents int) func(context.Context, barrier.MySQLTx) error {
	return func(ctx context.Context, tx barrier.MySQLTx) error {
		if _, err := tx.ExecContext(ctx, "UPDATE account SET due = due + ?", cents); err != nil {
			return err
		}
		if cents > 1000 {
			return barrier.Refuse(errors.New("too much"))
		}
		return nil
	}
}

// A participant on MariaDB confirms and cancels once, and bears what may come: a cancel of what was refused, one that meets its try uncommitted, and a try after its cancel.
func TestTCC_mySQL(t *testing.T) {
	t.Parallel()
	pool, v := dbtest.New(t), newVault(t)
	w := newWorker(t, pool, quick())
	tcc.HandleMySQL(w, deposit, v.db, v.settle("free = free + due, due = due - ?"), v.settle("due = due - ?"))
	run(t, w)
	ctx := t.Context()
	begin := func() *tcc.Transaction {
		t.Helper()
		x, err := tcc.Begin(ctx, pool)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}

	confirmed := begin()
	if err := deposit.TryMySQL(ctx, confirmed, v.db, money{Cents: 300}, v.try(300)); err != nil {
		t.Fatal(err)
	}
	if v.count("SELECT due FROM account") != 300 {
		t.Error("nothing is due after the try")
	}
	if err := errors.Join(confirmed.Confirm(ctx), tcc.Await(ctx, pool, 1, confirmed.ID())); err != nil {
		t.Fatal(err)
	}
	v.wants(300)

	refused := begin()
	if err := deposit.TryMySQL(ctx, refused, v.db, money{Cents: 2000}, v.try(2000)); !errors.Is(err, tcc.ErrRefused) || !strings.Contains(err.Error(), "too much") {
		t.Errorf("refused: %v", err)
	}
	if err := refused.Cancel(ctx); err != nil {
		t.Error(err)
	}
	untilTCC(t, pool, refused.ID(), tcc.Cancelled)
	v.wants(300)

	met := begin()
	err := deposit.TryMySQL(ctx, met, v.db, money{Cents: 100}, func(ctx context.Context, tx barrier.MySQLTx) error {
		if err := errors.Join(v.try(100)(ctx, tx), met.Cancel(ctx)); err != nil {
			return err
		}
		until(t, "the cancel to wait", func() bool {
			return v.count("SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE 'INSERT INTO pawl_barrier%' AND time_ms > 20") == 1
		})
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	untilTCC(t, pool, met.ID(), tcc.Cancelled)
	v.wants(300)
	if n := v.count("SELECT count(*) FROM pawl_barrier WHERE op = 'cancel' AND reason = 'cancel'"); n != 2 {
		t.Errorf("%d cancels", n)
	}

	late := begin()
	err = deposit.Try(ctx, late, money{Cents: 100}, func(ctx context.Context, b barrier.Branch) error {
		if err := late.Cancel(ctx); err != nil {
			return err
		}
		untilTCC(t, pool, late.ID(), tcc.Cancelled)
		_, err := barrier.RunMySQL(ctx, v.db, b, func(context.Context, barrier.MySQLTx) (json.RawMessage, error) {
			t.Error("tried after it was cancelled")
			return nil, nil
		})
		return err
	})
	if !errors.Is(err, barrier.ErrTooLate) {
		t.Errorf("late: %v", err)
	}
	v.wants(300)
}
