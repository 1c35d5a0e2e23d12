package twophase_test

import (
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

// silent is a participant whose server takes connections and never says a word.
func (b *bank) silent(name string) *twophase.PostgresDB {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = listener.Close() })
	pool, err := pgxpool.New(b.Context(), "postgres://nobody@"+listener.Addr().String()+"/nothing?sslmode=disable")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	return twophase.Postgres(name, pool)
}

// A participant that does not answer costs a pass its share of time once, however many transactions wait for it, and the others are settled.
func TestRecover_silent(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	b.crash("decided", "east", "west")
	b.exec("own", `INSERT INTO pawl.global_decision (ns, id, decided_at, committed, branch, participants, decided_by)
		SELECT ns, gen_random_uuid(), decided_at - interval '1 min', true, replace(branch, replace(id::text, '-', ''), replace(gen_random_uuid()::text, '-', '')), '{west}', decided_by
		FROM pawl.global_decision CROSS JOIN generate_series(1, 20)`)
	m, err := twophase.New(b.pool, twophase.Config{Logger: slog.New(slog.DiscardHandler)}, b.east, b.silent("west"))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r, err := m.Recover(t.Context(), twophase.KeepDefault)
	if took := time.Since(began); took > 9*time.Second { // its share is 4 s
		t.Errorf("the pass took %s", took)
	}
	var unsettled *twophase.UnsettledError
	if !errors.As(err, &unsettled) || len(unsettled.Errors) != 1 || unsettled.Errors["west"] == nil || r.Committed != 1 {
		t.Errorf("got %+v, %v, want east committed and west not settled", r, err)
	}
	seen, err := m.Participants(t.Context(), 10)
	if err != nil || len(seen) != 2 || seen[0].Error != "" || seen[0].Prepared != 1 || seen[1].Error == "" || !seen[1].SeenAt.IsZero() {
		t.Errorf("got %+v, %v", seen, err)
	}
	b.settled(b.manager())
	b.want(7, 7, 0)
}

// While a participant is down for longer than anything is kept, the witnesses of the others are: what they have committed is not taken for lost.
func TestRecover_downForLong(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	b.crash("decided", "east", "west")
	gone, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/nothing?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	without := func() *twophase.Manager {
		m, err := twophase.New(b.pool, twophase.Config{Logger: slog.New(slog.DiscardHandler)}, b.east, twophase.Postgres("west", gone))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	pass := func(m *twophase.Manager) twophase.Recovery {
		r, err := m.Recover(t.Context(), twophase.KeepDefault)
		var unsettled *twophase.UnsettledError
		if !errors.As(err, &unsettled) || len(unsettled.Errors) != 1 || unsettled.Errors["west"] == nil {
			t.Errorf("got %v, want that west is not settled", err)
		}
		return r
	}
	if r := pass(without()); r.Committed != 1 {
		t.Errorf("got %+v, want east committed", r)
	}
	b.exec("own", "UPDATE pawl.global_decision SET decided_at = decided_at - interval '30 h'")
	b.exec("east", "UPDATE pawl_branch.witness SET at = at - interval '30 h'")
	m := without()
	for range 3 {
		if r := pass(m); r.Committed != 0 || r.Doubts != 0 || r.Ended != 0 {
			t.Errorf("got %+v, want nothing done, and no doubts", r)
		}
	}
	b.settled(b.manager())
	b.want(7, 7, 0)
	all := b.manager()
	for range 3 { // it is noted that all is done, the decision goes, and then the witnesses
		if _, err := all.Recover(t.Context(), twophase.KeepDefault); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.count("own", "SELECT count(*) FROM pawl.global_decision") + b.count("east", "SELECT count(*) FROM pawl_branch.witness"); n != 0 {
		t.Errorf("got %d decisions and witnesses", n)
	}
	if n := b.count("own", "SELECT count(*) FROM pawl.global_doubt"); n != 0 {
		t.Errorf("got %d doubts", n)
	}
}
