package twophase_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// south is a MariaDB with an account, beside a bank.
type south struct {
	*bank
	db  *sql.DB
	dsn string
	p   *twophase.MySQLDB
}

func newSouth(t *testing.T, dsn string) *south {
	t.Helper()
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s := &south{bank: newBank(t), db: db, dsn: dsn, p: twophase.MySQL("south-"+rand.Text()[:8], db)} // servers list all branches, also other tests'
	s.ask("CREATE TABLE account (id int PRIMARY KEY, amount int NOT NULL, CHECK (amount >= 0))")
	s.ask("INSERT INTO account VALUES (1, 1000), (2, 1000)")
	if err := s.p.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *south) manager() *twophase.Manager {
	s.Helper()
	m, err := twophase.New(s.pool, twophase.Failing(twophase.Config{Logger: slog.New(slog.DiscardHandler)}, s.passed), s.east, s.p)
	if err != nil {
		s.Fatal(err)
	}
	return m
}

func (s *south) ask(statement string) {
	s.Helper()
	if _, err := s.db.ExecContext(context.Background(), statement); err != nil {
		s.Fatalf("%s: %v", statement, err)
	}
}

// wants checks what was added to the accounts.
func (s *south) wants(east, south int) {
	s.Helper()
	var n int
	if err := s.db.QueryRowContext(context.Background(), "SELECT amount - 1000 FROM account WHERE id = 1").Scan(&n); err != nil {
		s.Fatal(err)
	}
	if e := s.amount("east") - opening; e != east || n != south {
		s.Errorf("got %+d and %+d, want %+d and %+d", e, n, east, south)
	}
	if left, err := s.p.Prepared(context.Background()); err != nil || len(left) != 0 {
		s.Errorf("got %v prepared, %v", left, err)
	}
}

// transfer moves n from east to south, and does more there.
func (s *south) transfer(n int, more func(context.Context, twophase.MySQLTx) error) func(context.Context, *twophase.Tx) error {
	return func(ctx context.Context, t *twophase.Tx) error {
		if err := s.add(ctx, t, "east", -n); err != nil {
			return err
		}
		tx, err := s.p.Conn(ctx, t)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "UPDATE account SET amount = amount + ? WHERE id = 1", n); err != nil || more == nil {
			return err
		}
		return more(ctx, tx)
	}
}

// A transaction over a Postgres and a MariaDB commits at both, or nowhere.
func TestMySQL(t *testing.T) {
	t.Parallel()
	s := newSouth(t, dbtest.MariaDB(t))
	m := s.manager()
	if err := m.Run(t.Context(), s.transfer(3, nil)); err != nil {
		t.Fatal(err)
	}
	s.wants(-3, 3)
	err := m.Run(t.Context(), func(ctx context.Context, tx *twophase.Tx) error { // alone
		conn, err := s.p.Conn(ctx, tx)
		if err == nil {
			_, err = conn.ExecContext(ctx, "UPDATE account SET amount = amount + 1 WHERE id = 1")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	s.wants(-3, 4)
	no := errors.New("no")
	for name, more := range map[string]func(context.Context, twophase.MySQLTx) error{
		"the function's error": func(context.Context, twophase.MySQLTx) error { return no },
		"COMMIT, which the server refuses": func(ctx context.Context, tx twophase.MySQLTx) error {
			_, err := tx.ExecContext(ctx, "COMMIT")
			return err
		},
		"a connection that is lost": func(ctx context.Context, tx twophase.MySQLTx) error {
			var id string
			if err := tx.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&id); err != nil {
				return err
			}
			s.ask("KILL " + id)
			return nil // nobody has noticed
		},
		"a deadlock, of which the function says nothing": func(ctx context.Context, tx twophase.MySQLTx) error {
			other, err := s.db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer other.Rollback()
			if _, err := other.ExecContext(ctx, "INSERT INTO account SELECT seq, 1 FROM seq_10_to_200"); err != nil { // it has done more, and is not the victim
				return err
			}
			if _, err := other.ExecContext(ctx, "UPDATE account SET amount = 5 WHERE id = 2"); err != nil {
				return err
			}
			waits := make(chan error, 1)
			go func() {
				_, err := other.ExecContext(ctx, "UPDATE account SET amount = 5 WHERE id = 1")
				waits <- err
			}()
			_, err = tx.ExecContext(ctx, "UPDATE account SET amount = 6 WHERE id = 2") // one of both waits first
			if err == nil || !strings.Contains(err.Error(), "1213") {
				t.Errorf("got %v, want a deadlock", err)
			}
			return <-waits
		},
	} {
		err := m.Run(t.Context(), s.transfer(5, more))
		if err == nil {
			t.Errorf("%s: got no error", name)
		}
		t.Logf("%s: %v", name, err)
		s.wants(-3, 4)
	}
	if err := m.Run(t.Context(), s.transfer(1, nil)); err != nil { // what was given back is of use
		t.Error(err)
	}
	s.wants(-4, 5)
}

// What is lent is refused after the end, also where rows were left open.
func TestMySQL_lent(t *testing.T) {
	t.Parallel()
	s := newSouth(t, dbtest.MariaDB(t))
	var lent twophase.MySQLTx
	m := s.manager()
	err := m.Run(t.Context(), s.transfer(1, func(ctx context.Context, tx twophase.MySQLTx) error {
		lent = tx
		_, err := tx.QueryContext(ctx, "SELECT seq FROM seq_1_to_1000000")
		return err
	}))
	if err == nil || !errors.Is(err, twophase.ErrAborted) {
		t.Errorf("with open rows: got %v, want ErrAborted", err)
	}
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	for left := []twophase.Prepared{{}}; len(left) > 0; { // the connection may have been lost as late as at XA PREPARE
		if _, err := m.Recover(ctx, twophase.KeepDefault); err != nil {
			t.Fatal(err)
		}
		if left, err = s.p.Prepared(ctx); err != nil {
			t.Fatal(err)
		}
	}
	s.wants(0, 0)
	_, err1 := lent.ExecContext(t.Context(), "SELECT 1")
	_, err2 := lent.QueryContext(t.Context(), "SELECT 1")
	_, err3 := lent.PrepareContext(t.Context(), "SELECT 1")
	var n int
	for i, err := range []error{err1, err2, err3, lent.QueryRowContext(t.Context(), "SELECT 1").Scan(&n)} {
		if !errors.Is(err, sql.ErrTxDone) {
			t.Errorf("%d: got %v, want ErrTxDone", i, err)
		}
	}
}

// What a killed coordinator left at a MariaDB that was killed as well is settled when that is there again.
func TestMySQL_killed(t *testing.T) {
	t.Parallel()
	server := dbtest.PrivateMariaDB(t)
	s := newSouth(t, server.DSN(dbtest.PrivateDatabase))
	for _, commit := range []bool{true, false} {
		id := twophase.BranchID{Namespace: 1, Home: "00.1.0", ID: uuid.New(), Deadline: time.Unix(4e9, 0), Participant: s.p.Name()}
		b, err := s.p.Begin(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.(interface{ Tx() twophase.MySQLTx }).Tx().ExecContext(t.Context(), "UPDATE account SET amount = amount + 7 WHERE id = 1"); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := s.p.Settle(t.Context(), id, commit); err == nil || errors.Is(err, twophase.ErrAbsent) || errors.Is(err, twophase.ErrBusy) {
			t.Errorf("while it is down: got %v, want another error", err)
		}
		b.Close(t.Context())
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if all, err := s.p.Prepared(t.Context()); err != nil || len(all) != 1 || all[0].Branch.String() != id.String() {
			t.Errorf("Prepared: got %v, %v", all, err)
		}
		// Connections of others have the numbers of those before.
		for range 10 {
			conn, err := s.db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.PingContext(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.p.Settle(t.Context(), id, commit); err != nil {
			t.Errorf("commit %t: %v", commit, err)
		}
		s.wants(0, 7)
	}
}

// A branch that an idle connection keeps is taken from it, also one that was prepared as soon as the server was there.
func TestMySQL_hangs(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes 5 s")
	}
	t.Parallel()
	for name, first := range map[string]string{
		"later":   "SELECT 1",
		"at once": "SET timestamp = (SELECT unix_timestamp() - variable_value + 0.2 FROM information_schema.global_status WHERE variable_name = 'UPTIME')",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testHangs(t, first)
		})
	}
}

func testHangs(t *testing.T, first string) {
	s := newSouth(t, dbtest.MariaDB(t))
	id := twophase.BranchID{Namespace: 1, Home: "00.1.0", ID: uuid.New(), Deadline: time.Unix(4e9, 0), Participant: s.p.Name()}
	b, err := s.p.Begin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{first, "UPDATE account SET amount = amount + 7 WHERE id = 1"} {
		if _, err := b.(interface{ Tx() twophase.MySQLTx }).Tx().ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	busy := 0
	for err = s.p.Settle(ctx, id, true); errors.Is(err, twophase.ErrBusy) && ctx.Err() == nil; err = s.p.Settle(ctx, id, true) {
		busy++
		<-ticker.C
	}
	if err != nil || busy == 0 {
		t.Errorf("got %v after ErrBusy %d times", err, busy)
	}
	s.wants(0, 7)
	b.Close(t.Context())
}

func TestMySQL_errors(t *testing.T) {
	t.Parallel()
	dsn := dbtest.MariaDB(t)
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	p := twophase.MySQL("p", db)
	id := twophase.BranchID{Namespace: 1, Home: "00.1.0", ID: uuid.New(), Deadline: time.Unix(4e9, 0), Participant: "p"}
	b, err := p.Begin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if readOnly, err := b.ReadOnly(t.Context()); err != nil || !readOnly {
		t.Errorf("of a branch that was asked nothing: got read-only %t, %v", readOnly, err)
	}
	if unknown, err := b.Prepare(t.Context()); unknown || !errors.Is(err, twophase.ErrNotSetUp) {
		t.Errorf("got unknown %t, %v; want ErrNotSetUp", unknown, err)
	}
	b.Close(t.Context())
	for _, home := range []string{"'", strings.Repeat("0", 60), "a b"} {
		id.Home = home
		if _, err := p.Begin(t.Context(), id); !errors.Is(err, twophase.ErrInvalid) {
			t.Errorf("home %q: got %v, want ErrInvalid", home, err)
		}
		if err := p.Settle(t.Context(), id, true); !errors.Is(err, twophase.ErrInvalid) {
			t.Errorf("home %q: got %v, want ErrInvalid", home, err)
		}
	}
	if !strings.Contains(p.Address(), "/pawl_test_") {
		t.Errorf("got address %q", p.Address())
	}
	none, err := sql.Open("mysql", dsn[:strings.LastIndex(dsn, "/")+1])
	if err != nil {
		t.Fatal(err)
	}
	defer none.Close()
	if err := twophase.MySQL("p", none).Setup(t.Context()); !errors.Is(err, twophase.ErrInvalid) {
		t.Errorf("without a database: got %v, want ErrInvalid", err)
	}
}

// Only servers that keep what was prepared will do.
func TestMySQL_versions(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{
		"10.11.19-MariaDB-0+deb12u1": true, "10.5.1-MariaDB": true, "11.4.2-MariaDB": true, "10.4.9-MariaDB": false, "5.5.5-MariaDB": false, "8.0.36": true, "9.1.0": true, "5.7.44-log": false, "?": false,
	} {
		if got := twophase.MySQLKeeps(version); got != want {
			t.Errorf("%s: got %t, want %t", version, got, want)
		}
	}
}

// What is settled right when the connection that prepared it ends is settled indeed: MariaDB says so of what it then forgets.
func TestMySQL_handover(t *testing.T) {
	t.Parallel()
	dsn := dbtest.PrivateMariaDB(t).DSN(dbtest.PrivateDatabase)
	s := newSouth(t, dsn)
	other, err := sql.Open("mysql", dsn) // whose connection is there when it is needed
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	elsewhere := twophase.MySQL(s.p.Name(), other)
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	for n := range 200 {
		id := twophase.BranchID{Namespace: 1, Home: "00.1.0", ID: uuid.New(), Deadline: time.Unix(4e9, 0), Participant: s.p.Name()}
		b, err := s.p.Begin(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.(interface{ Tx() twophase.MySQLTx }).Tx().ExecContext(ctx, "INSERT INTO account VALUES (?, 1)", n+10); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Prepare(ctx); err != nil {
			t.Fatal(err)
		}
		b.Close(ctx)
		for err = elsewhere.Settle(ctx, id, true); errors.Is(err, twophase.ErrBusy) && ctx.Err() == nil; {
			err = elsewhere.Settle(ctx, id, true)
		}
		var there int
		if err == nil {
			err = other.QueryRowContext(ctx, "SELECT COUNT(*) FROM account WHERE id = ?", n+10).Scan(&there)
		}
		if err != nil || there != 1 {
			t.Fatalf("round %d: got %v, and what was written is there %d times", n, err, there)
		}
	}
}
