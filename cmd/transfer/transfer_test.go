package transfer_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pawl-dev/pawl/cmd/transfer"
	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
)

const patience = 20 * time.Second // bounds every wait; what is waited for comes much earlier

// The claims, in their order.
const (
	sums = iota
	whole
	accounts
	recorded
	left
)

// banks are those of a test, and what to ask them.
type banks struct {
	*testing.T
	own   *pgxpool.Pool
	pools []*pgxpool.Pool // of east and west
	south *sql.DB         // nil: there is none
}

func newBanks(t *testing.T) *banks {
	t.Helper()
	b := &banks{T: t, own: dbtest.New(t)}
	for range 2 {
		pool, err := pgxpool.New(context.Background(), dbtest.EmptyURL(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		b.pools = append(b.pools, pool)
	}
	return b
}

// addSouth adds a MariaDB, or skips the test.
func (b *banks) addSouth() {
	b.Helper()
	server := dbtest.PrivateMariaDB(b.T)
	open := func(database string) *sql.DB {
		db, err := sql.Open("mysql", server.DSN(database))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = db.Close() })
		return db
	}
	b.exec(open("mysql"), "CREATE DATABASE transfer")
	b.south = open("transfer")
}

func (b *banks) open() *transfer.Banks {
	b.Helper()
	all := []transfer.Bank{transfer.Postgres("east", b.pools[0]), transfer.Postgres("west", b.pools[1])}
	if b.south != nil {
		all = append(all, transfer.MySQL("south", b.south))
	}
	opened, err := transfer.Open(b.own, 1, "test", slog.New(slog.DiscardHandler), all...)
	if err != nil {
		b.Fatal(err)
	}
	return opened
}

// db is a Postgres as package database/sql has it.
func (b *banks) db(pool *pgxpool.Pool) *sql.DB {
	db := stdlib.OpenDBFromPool(pool)
	b.Cleanup(func() { _ = db.Close() })
	return db
}

func (b *banks) exec(at *sql.DB, statements ...string) {
	b.Helper()
	for _, statement := range statements {
		if _, err := at.ExecContext(b.Context(), statement); err != nil {
			b.Fatalf("%s: %v", statement, err)
		}
	}
}

// run makes a run of transfers.
func (b *banks) run(at *transfer.Banks, wanted int) (run int64) {
	b.Helper()
	run, err := transfer.Create(b.Context(), at)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		if err := transfer.Sweep(ctx, at, 10*time.Millisecond); err != nil {
			b.Error(err)
		}
	})
	if err := transfer.Move(b.Context(), at, run, wanted); err != nil {
		b.Fatal(err)
	}
	stop()
	sweeper.Wait()
	return run
}

// right checks that a run is proved right.
func (b *banks) right(at *transfer.Banks, run int64, wanted int) (transfer.Figures, []transfer.Claim) {
	b.Helper()
	f, claims, err := transfer.Prove(b.Context(), at, run)
	if err != nil {
		b.Fatal(err)
	}
	if f.Transfers < wanted || f.Recorded == 0 || f.Recorded == f.Transfers || f.Cents <= 0 || f.Example == "" || len(f.ExampleAt) != 2 {
		b.Errorf("got %+v", f)
	}
	for i, c := range claims {
		if c.Count == 0 || len(c.Differences) != 0 {
			b.Errorf("claim %d: got %+v", i, c)
		}
	}
	if done, err := transfer.Done(b.Context(), at, run); err != nil || done != f.Transfers {
		b.Errorf("got %d transfers done, %v, want %d", done, err, f.Transfers)
	}
	return f, claims
}

// tamper is to make something wrong of what a run left.
type tamper struct {
	name     string
	do, undo func()
	claims   []int // that find it, and no others
}

// found checks that the claims find what is wrong, and that nothing is once all is undone.
func (b *banks) found(at *transfer.Banks, run int64, all []tamper) {
	b.Helper()
	for _, one := range all {
		one.do()
		_, claims, err := transfer.Prove(b.Context(), at, run)
		if err != nil {
			b.Fatalf("%s: %v", one.name, err)
		}
		var found []int
		for i, c := range claims {
			if len(c.Differences) > 0 {
				found = append(found, i)
			}
		}
		if !slices.Equal(found, one.claims) {
			b.Errorf("%s: claims %v found it, want %v: %+v", one.name, found, one.claims, claims)
		}
		one.undo()
	}
	b.right(at, run, 1)
}

// ways are those to tamper with a bank, of whatever kind. The transfer is one there that is recorded.
func (b *banks) ways(at *sql.DB, p twophase.Participant, id string) []tamper {
	say := func(statements ...string) func() { return func() { b.Helper(); b.exec(at, statements...) } }
	const keep = "CREATE TABLE transfer.kept AS SELECT * FROM transfer.entry"
	restore := say("DELETE FROM transfer.entry", "INSERT INTO transfer.entry SELECT * FROM transfer.kept", "DROP TABLE transfer.kept")
	this := " WHERE transfer = '" + id + "'"
	branch := twophase.BranchID{Namespace: 1, Home: "home", ID: uuid.New(), Deadline: time.Unix(4e9, 0), Participant: p.Name()}
	return []tamper{
		{"a cent too many", say("UPDATE transfer.account SET cents = cents + 1 WHERE id = 7"), say("UPDATE transfer.account SET cents = cents - 1 WHERE id = 7"), []int{sums, accounts}},
		{"half a transfer", say(keep, "DELETE FROM transfer.entry"+this), restore, []int{whole, accounts, recorded}},
		{"a transfer made twice", say(keep, "INSERT INTO transfer.entry SELECT * FROM transfer.kept"+this), restore, []int{whole, accounts, recorded}},
		{"half of another", say(keep, "UPDATE transfer.entry SET transfer = 'x'"+this), restore, []int{whole, recorded}},
		{"a cent less at one side", say(keep, "UPDATE transfer.entry SET cents = cents - 1"+this), restore, []int{whole, accounts, recorded}},
		{"with a bank that is none", say(keep, "UPDATE transfer.entry SET peer = 'nowhere'"+this), restore, []int{sums, whole, recorded}},
		{"a branch left", func() { b.prepare(p, branch); b.begins() }, func() { b.rollBack(p, branch) }, []int{left}},
	}
}

// prepare leaves a branch prepared that has written to the tables.
func (b *banks) prepare(p twophase.Participant, id twophase.BranchID) {
	b.Helper()
	branch, err := p.Begin(b.Context(), id)
	if err != nil {
		b.Fatal(err)
	}
	defer branch.Close(b.Context())
	for _, statement := range []string{"UPDATE transfer.account SET cents = 0", "INSERT INTO transfer.entry (run_id, transfer, account, cents, peer) VALUES (0, '', 0, 0, '')"} {
		switch branch := branch.(type) {
		case interface{ Tx() pgx.Tx }:
			_, err = branch.Tx().Exec(b.Context(), statement)
		case interface{ Tx() twophase.MySQLTx }:
			_, err = branch.Tx().ExecContext(b.Context(), statement)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if _, err := branch.Prepare(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// begins checks that another run begins, whatever an earlier one has left.
func (b *banks) begins() {
	b.Helper()
	ctx, stop := context.WithTimeout(b.Context(), patience)
	defer stop()
	if _, err := transfer.Create(ctx, b.open()); err != nil {
		b.Errorf("another run: %v", err)
	}
}

// rollBack waits until MariaDB has ended the connection that prepared.
func (b *banks) rollBack(p twophase.Participant, id twophase.BranchID) {
	b.Helper()
	ctx, stop := context.WithTimeout(b.Context(), patience)
	defer stop()
	err := p.Settle(ctx, id, false)
	for errors.Is(err, twophase.ErrBusy) {
		err = p.Settle(ctx, id, false)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// A run is proved right, and each way to tamper with what it left is found.
func TestProve(t *testing.T) {
	t.Parallel()
	const wanted = 60
	b := newBanks(t)
	at := b.open()
	run := b.run(at, wanted)
	f, claims := b.right(at, run, wanted)
	if got := claims[sums]; got.Count != 2 || strings.Contains(got.Text, "earlier") {
		t.Errorf("got %+v", got)
	}
	own := b.db(b.own)
	b.found(at, run, append(b.ways(b.db(b.pools[1]), twophase.Postgres("west", b.pools[1]), f.Example),
		tamper{
			"a record of nothing", func() { b.exec(own, "INSERT INTO transfer.record SELECT id, 'nothing', 1 FROM transfer.run") },
			func() { b.exec(own, "DELETE FROM transfer.record WHERE transfer = 'nothing'") },
			[]int{recorded},
		},
		tamper{
			"another sum on record", func() { b.exec(own, "UPDATE transfer.record SET cents = cents + 1") },
			func() { b.exec(own, "UPDATE transfer.record SET cents = cents - 1") },
			[]int{recorded},
		}))
}

// A MariaDB is a third bank, in the same transfers, and the proof looks at it as at the others. A later run without it is proved right too.
func TestProve_mariaDB(t *testing.T) {
	if testing.Short() {
		t.Skip("initialises a MariaDB")
	}
	t.Parallel()
	const wanted = 90
	b := newBanks(t)
	b.addSouth()
	at := b.open()
	run := b.run(at, wanted)
	f, claims := b.right(at, run, wanted)
	if claims[sums].Count != 3 || claims[accounts].Count != 3*transfer.Accounts || claims[left].Count != 3 {
		t.Errorf("got %+v, want that three banks are looked at", claims)
	}
	if n := f.Between; len(n) != 3 || n["east and west"]*n["east and south"]*n["west and south"] == 0 || n["east and west"]+n["east and south"]+n["west and south"] != f.Transfers {
		t.Errorf("got %v of %d transfers, want some between any two banks", n, f.Transfers)
	}
	rows, err := b.own.Query(t.Context(), "SELECT transfer FROM transfer.record")
	if err != nil {
		t.Fatal(err)
	}
	records, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	id := b.ask(b.south, "SELECT max(transfer) FROM transfer.entry WHERE transfer IN ('"+strings.Join(records, "', '")+"')")
	b.found(at, run, b.ways(b.south, twophase.MySQL("south", b.south), id))

	b.exec(b.db(b.own), "TRUNCATE pawl.global_end", "UPDATE pawl.global_decision SET decided_at = decided_at - interval '1 minute'") // as if all who decided had died before they noted the end
	b.south = nil
	at = b.open()
	for _, want := range []bool{true, false} {
		if got, err := at.Unfinished(t.Context()); err != nil || got != want {
			t.Errorf("without south: got unfinished %t, %v, want %t", got, err, want)
		}
		if _, err := at.Manager.Recover(t.Context(), twophase.KeepDefault); err != nil {
			t.Fatal(err)
		}
	}
	if waiting, err := at.Manager.List(t.Context(), "", true, 1); err != nil || len(waiting) != 1 {
		t.Errorf("got %v, %v, want transactions that wait for south", waiting, err)
	}
	run = b.run(at, wanted)
	if _, claims := b.right(at, run, wanted); claims[sums].Count != 2 || !strings.Contains(claims[sums].Text, "earlier runs have moved to south") {
		t.Errorf("got %+v, want what went to south and came from it", claims[sums])
	}
}

// ask gives the one value of a query.
func (b *banks) ask(at *sql.DB, query string) (answer string) {
	b.Helper()
	if err := at.QueryRowContext(b.Context(), query).Scan(&answer); err != nil {
		b.Fatalf("%s: %v", query, err)
	}
	return answer
}
