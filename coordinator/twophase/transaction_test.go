package twophase_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

// What commits is committed at all, with as few prepares as there can be.
func TestRun(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	m := b.manager()
	for _, test := range []struct {
		name     string
		amounts  map[string]int
		prepares int
		decides  bool
	}{
		{"nothing", nil, 0, false},
		{"one", map[string]int{"east": -1}, 0, false},
		{"own", map[string]int{"own": -1}, 0, false},
		{"own and one", map[string]int{"own": -2, "west": 2}, 1, true},
		{"two", map[string]int{"east": -3, "west": 3}, 2, true},
		{"all", map[string]int{"east": -4, "west": 3, "own": 1}, 2, true},
	} {
		b.points = nil
		before := map[string]int{"east": b.amount("east"), "west": b.amount("west"), "own": b.amount("own")}
		decided := b.count("own", "SELECT count(*) FROM pawl.global_decision")
		if err := m.Run(t.Context(), b.transfer(test.amounts)); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		for name, was := range before {
			if got, want := b.amount(name), was+test.amounts[name]; got != want {
				t.Errorf("%s: %s: got %d, want %d", test.name, name, got, want)
			}
		}
		prepares := len(slices.DeleteFunc(slices.Clone(b.points), func(p string) bool { return p != "prepared east" && p != "prepared west" }))
		if prepares != test.prepares {
			t.Errorf("%s: got %d prepares, want %d", test.name, prepares, test.prepares)
		}
		if got := b.count("own", "SELECT count(*) FROM pawl.global_decision") - decided; got != map[bool]int{true: 1}[test.decides] {
			t.Errorf("%s: got %d decisions", test.name, got)
		}
	}
}

// Who only reads does not prepare; one that wrote commits at once.
func TestCommit_readers(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	m := b.manager()
	err := m.Run(t.Context(), func(ctx context.Context, tx *twophase.Tx) error {
		east, err := b.east.Tx(ctx, tx)
		if err != nil {
			return err
		}
		var n int
		if err := east.QueryRow(ctx, "SELECT amount FROM account").Scan(&n); err != nil {
			return err
		}
		return b.add(ctx, tx, "west", 5)
	})
	if err != nil || slices.Contains(b.points, "prepared west") || slices.Contains(b.points, "prepared east") {
		t.Errorf("got %v, passed %v", err, b.points)
	}
	b.want(0, 5, 0)
}

// What fails, wherever it does, leaves nothing anywhere.
func TestRun_error(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	b.exec("west", "CREATE TABLE later (id int REFERENCES account DEFERRABLE INITIALLY DEFERRED)")
	m := b.manager()
	own := errors.New("no")
	for name, work := range map[string]func(context.Context, *twophase.Tx) error{
		"the function's": func(ctx context.Context, tx *twophase.Tx) error {
			return errors.Join(b.transfer(map[string]int{"east": -1, "west": 1, "own": 1})(ctx, tx), own)
		},
		"a constraint": func(ctx context.Context, tx *twophase.Tx) error {
			return b.transfer(map[string]int{"east": -opening - 1, "west": opening + 1})(ctx, tx)
		},
		"a deferred constraint, at PREPARE": func(ctx context.Context, tx *twophase.Tx) error {
			if err := b.transfer(map[string]int{"east": -1, "west": 1, "own": 1})(ctx, tx); err != nil {
				return err
			}
			west, _ := b.west.Tx(ctx, tx)
			_, err := west.Exec(ctx, "INSERT INTO later VALUES (99)")
			return err
		},
		"a failed transaction, to which PREPARE answers ROLLBACK": func(ctx context.Context, tx *twophase.Tx) error {
			if err := b.transfer(map[string]int{"east": -1, "west": 1, "own": 1})(ctx, tx); err != nil {
				return err
			}
			west, _ := b.west.Tx(ctx, tx)
			_, _ = west.Exec(ctx, "SELECT 1/0") // and goes on as if nothing had been
			return nil
		},
		"a temporary table": func(ctx context.Context, tx *twophase.Tx) error {
			if err := b.transfer(map[string]int{"east": -1, "west": 1})(ctx, tx); err != nil {
				return err
			}
			west, _ := b.west.Tx(ctx, tx)
			_, err := west.Exec(ctx, "CREATE TEMP TABLE x (i int)")
			return err
		},
		"a failure of its own part": func(ctx context.Context, tx *twophase.Tx) error {
			if err := b.transfer(map[string]int{"east": -1, "west": 1})(ctx, tx); err != nil {
				return err
			}
			ours, _ := tx.Own(ctx)
			_, _ = ours.Exec(ctx, "SELECT 1/0")
			return nil
		},
	} {
		err := m.Run(t.Context(), work)
		if err == nil {
			t.Errorf("%s: got no error", name)
		}
		t.Logf("%s: %v", name, err)
		b.want(0, 0, 0)
	}
	func() {
		defer func() { _ = recover() }()
		_ = m.Run(t.Context(), func(ctx context.Context, tx *twophase.Tx) error {
			_ = b.transfer(map[string]int{"east": -1, "west": 1, "own": 1})(ctx, tx)
			panic("no")
		})
	}()
	b.want(0, 0, 0)
	if n := b.count("own", "SELECT count(*) FROM pawl.global_decision"); n != 0 {
		t.Errorf("got %d decisions, want none: nothing was in doubt", n)
	}
}

// The transactions that are lent cannot be ended, nor used after the end.
func TestTx_lent(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	tx, err := b.manager().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lent []pgx.Tx
	for _, get := range []func() (pgx.Tx, error){
		func() (pgx.Tx, error) { return b.east.Tx(t.Context(), tx) }, func() (pgx.Tx, error) { return b.west.Tx(t.Context(), tx) }, func() (pgx.Tx, error) { return tx.Own(t.Context()) },
	} {
		one, err := get()
		if err != nil {
			t.Fatal(err)
		}
		if err := one.Commit(t.Context()); err == nil {
			t.Error("commit: got no error")
		}
		if _, err := one.Exec(t.Context(), "UPDATE account SET amount = amount + 1"); err != nil {
			t.Error(err)
		}
		lent = append(lent, one)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, one := range lent {
		if _, err := one.Exec(t.Context(), "SELECT 1"); !errors.Is(err, pgx.ErrTxClosed) {
			t.Errorf("after the end: got %v, want ErrTxClosed", err)
		}
	}
	if err := tx.Commit(t.Context()); !errors.Is(err, twophase.ErrEnded) {
		t.Errorf("got %v, want ErrEnded", err)
	}
	if _, err := b.east.Tx(t.Context(), tx); !errors.Is(err, twophase.ErrEnded) {
		t.Errorf("got %v, want ErrEnded", err)
	}
	tx.Rollback(t.Context())
	b.want(1, 1, 1)
	if committed, err := b.manager().Outcome(t.Context(), tx.ID()); err != nil || !committed {
		t.Errorf("outcome: got %t, %v", committed, err)
	}
}

// A first statement that fails before the branch has begun is no statement that never was: the transaction cannot commit. A branch in which nothing was done is no branch.
func TestCommit_firstFails(t *testing.T) {
	t.Parallel()
	for _, names := range []string{"east", "east west", "own", "own west"} {
		t.Run(names, func(t *testing.T) {
			t.Parallel()
			b := newBank(t)
			first, others, _ := strings.Cut(names, " ")
			err := b.manager().Run(t.Context(), func(ctx context.Context, g *twophase.Tx) error {
				tx, err := b.tx(ctx, g, first)
				if err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, "UPDATE nowhere SET amount = $1", 1); err == nil {
					t.Error("the statement succeeded")
				}
				if others == "" {
					return nil
				}
				return b.add(ctx, g, others, 1)
			})
			if !errors.Is(err, twophase.ErrAborted) {
				t.Errorf("got %v, want ErrAborted", err)
			}
			b.want(0, 0, 0)
		})
	}
	b := newBank(t)
	err := b.manager().Run(t.Context(), func(ctx context.Context, g *twophase.Tx) error {
		for _, name := range []string{"east", "own"} {
			if _, err := b.tx(ctx, g, name); err != nil {
				return err
			}
		}
		return b.add(ctx, g, "west", 1)
	})
	if err != nil {
		t.Error(err)
	}
	b.want(0, 1, 0)
}

// A clock that is set ahead has transactions miss their deadlines only until one did.
func TestRun_clockSet(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	m := b.manager()
	for _, amounts := range []map[string]int{{"east": -5, "west": 5}, {"east": -1, "own": 1}} {
		move := b.transfer(amounts)
		if err := m.Run(t.Context(), move); err != nil {
			t.Fatalf("%v: %v", amounts, err)
		}
		twophase.Behind(m, time.Hour)
		if err := m.Run(t.Context(), move); !errors.Is(err, twophase.ErrAborted) {
			t.Errorf("%v, the first: got %v, want ErrAborted", amounts, err)
		}
		if err := m.Run(t.Context(), move); err != nil {
			t.Errorf("%v, the second: %v", amounts, err)
		}
	}
	b.want(-12, 10, 2)
}
