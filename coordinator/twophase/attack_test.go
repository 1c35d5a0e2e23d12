package twophase_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// with makes a manager of these participants.
func (b *bank) with(all ...twophase.Participant) *twophase.Manager {
	b.Helper()
	m, err := twophase.New(b.pool, twophase.Failing(twophase.Config{Logger: slog.New(slog.DiscardHandler)}, b.passed), all...)
	if err != nil {
		b.Fatal(err)
	}
	return m
}

// byHand finishes by hand what is prepared at a participant.
func (b *bank) byHand(where, what string) {
	b.Helper()
	var gid string
	if err := b.pools[where].QueryRow(b.Context(), "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()").Scan(&gid); err != nil {
		b.Fatal(err)
	}
	b.exec(where, what+" PREPARED '"+gid+"'")
}

// mixedAt checks that there is one doubt, that of a participant which did the opposite.
func (b *bank) mixedAt(m *twophase.Manager, name string) {
	b.Helper()
	doubts, err := m.Doubts(b.Context(), false, 10)
	if err != nil || len(doubts) != 1 || doubts[0].What != twophase.Mixed || doubts[0].Branch.Participant != name {
		b.Errorf("got doubts %+v, %v; want one that is mixed at %s", doubts, err, name)
	}
}

// What somebody committed by hand before its transaction was aborted is not told to be nowhere.
func TestCommit_abortedAndByHand(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	b.exec("west", "CREATE TABLE later (id int REFERENCES account DEFERRABLE INITIALLY DEFERRED)")
	b.at["prepared east"] = func() { b.byHand("east", "COMMIT") }
	m := b.manager()
	err := m.Run(t.Context(), func(ctx context.Context, tx *twophase.Tx) error {
		if err := b.transfer(map[string]int{"east": 1, "west": -1})(ctx, tx); err != nil {
			return err
		}
		west, _ := b.west.Tx(ctx, tx)
		_, err := west.Exec(ctx, "INSERT INTO later VALUES (99)")
		return err
	})
	var mixed *twophase.MixedError
	if !errors.As(err, &mixed) || errors.Is(err, twophase.ErrAborted) || len(mixed.Participants) != 1 || mixed.Participants[0] != "east" || mixed.Committed || !strings.Contains(err.Error(), "east") {
		t.Errorf("got %v, want that it is mixed at east", err)
	}
	b.mixedAt(m, "east")
	b.want(1, 0, 0)
}

// What is mixed stays unfinished until that is written down.
func TestRecover_mixedNotNoted(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	b.at["decided"] = func() { b.byHand("east", "ROLLBACK") }
	b.exec("own", "ALTER TABLE pawl.global_doubt ADD CONSTRAINT no CHECK (false)")
	m := b.manager()
	if err := m.Run(t.Context(), b.transfer(map[string]int{"east": 1, "west": -1})); err != nil {
		if mixed := (*twophase.MixedError)(nil); !errors.As(err, &mixed) {
			t.Error(err)
		}
	}
	b.exec("own", "UPDATE pawl.global_decision SET decided_at = decided_at - interval '1 min'")
	if _, err := m.Recover(t.Context(), twophase.KeepDefault); err == nil {
		t.Error("recover: got no error")
	}
	b.exec("own", "ALTER TABLE pawl.global_doubt DROP CONSTRAINT no")
	if _, err := m.Recover(t.Context(), twophase.KeepDefault); err != nil {
		t.Error(err)
	}
	b.mixedAt(m, "east")
}

// Two transactions that wait for each other at different participants, where no server sees it, end with their time.
func TestRun_deadlock(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	m := b.manager()
	ctx, stop := context.WithTimeout(t.Context(), patience/4)
	defer stop()
	both := make(chan struct{}, 2)
	ends := make(chan error, 2)
	for _, order := range [][2]string{{"east", "west"}, {"west", "east"}} {
		go func() {
			ends <- m.Run(ctx, func(ctx context.Context, tx *twophase.Tx) error {
				if err := b.add(ctx, tx, order[0], 1); err != nil {
					return err
				}
				both <- struct{}{}
				for len(both) < 2 && ctx.Err() == nil {
					_, _ = b.pool.Exec(ctx, "SELECT pg_sleep(0.01)")
				}
				return b.add(ctx, tx, order[1], -1)
			}, twophase.Timeout(time.Second))
		}()
	}
	for range 2 {
		if err := <-ends; err != nil && !errors.Is(err, twophase.ErrAborted) && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	}
	if ctx.Err() != nil {
		t.Error("they waited for ever")
	}
	b.want(b.amount("east")-opening, opening-b.amount("east"), 0)
}

// A participant that does not answer to COMMIT does not keep Commit for ever.
func TestCommit_silent(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	proxy, pool := dbtest.NewProxy(t, b.pools["east"], 4)
	proxy.Take("COMMIT")
	east := twophase.Postgres("east", pool)
	through := &bank{TB: t, pool: b.pool, east: east, west: b.west}
	ctx, stop := context.WithTimeout(t.Context(), patience/4)
	defer stop()
	ends := make(chan error, 1)
	go func() {
		ends <- b.with(east, b.west).Run(ctx, func(ctx context.Context, tx *twophase.Tx) error {
			err := through.add(ctx, tx, "east", 1)
			proxy.Commit.Store(dbtest.HoldReply)
			return err
		}, twophase.Timeout(time.Second))
	}()
	select {
	case err := <-ends:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("it waits for ever")
		proxy.CutAll()
	}
	b.want(1, 0, 0)
}

// A branch that begins when its transaction has ended is given to nobody, and keeps no connection.
func TestTx_beginsTooLate(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	east := &late{Participant: b.east, begins: make(chan struct{}), goOn: make(chan struct{})}
	tx, err := b.with(east).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		one, err := twophase.Enlist(t.Context(), tx, east)
		got <- err
		if one != nil {
			one.Close(t.Context())
		}
	}()
	<-east.begins
	tx.Rollback(t.Context())
	close(east.goOn)
	if err := <-got; !errors.Is(err, twophase.ErrEnded) {
		t.Errorf("got %v, want ErrEnded", err)
	}
	if n := b.pools["east"].Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections are kept", n)
	}
}

// late is a participant whose branches begin when they are told to.
type late struct {
	twophase.Participant
	begins, goOn chan struct{}
}

func (p *late) Begin(ctx context.Context, id twophase.BranchID) (twophase.Branch, error) {
	close(p.begins)
	<-p.goOn
	return p.Participant.Begin(ctx, id)
}

// Under load, where one decision always waits for another, none is the child of that before it: contexts would grow for ever.
func TestDecide_contexts(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	conf := b.pool.Config()
	tracer := &depths{}
	conf.ConnConfig.Tracer = tracer
	var err error
	if b.pool, err = pgxpool.NewWithConfig(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	defer b.pool.Close()
	const turns = 4
	m := b.manager()
	ends := make(chan error, turns)
	begin := func(n int) {
		ends <- m.Run(t.Context(), func(ctx context.Context, tx *twophase.Tx) error {
			east, err := b.east.Tx(ctx, tx)
			if err != nil {
				return err
			}
			west, err := b.west.Tx(ctx, tx)
			if err != nil {
				return err
			}
			_, err1 := east.Exec(ctx, "INSERT INTO account VALUES ($1, 1)", 1+n)
			_, err2 := west.Exec(ctx, "INSERT INTO account VALUES ($1, 1)", 1+n)
			return errors.Join(err1, err2)
		})
	}
	begun := 1
	b.at["deciding"] = func() { // turns come one after the other
		if begun++; begun <= turns {
			go begin(begun)
			for twophase.Waiting(m) == 0 && t.Context().Err() == nil {
				b.exec("east", "SELECT pg_sleep(0.001)")
			}
		}
	}
	go begin(begun)
	for range turns {
		if err := <-ends; err != nil {
			t.Error(err)
		}
	}
	if got := tracer.all; len(got) != turns || got[turns-1] != got[1] {
		t.Errorf("the decisions' contexts have %v parents", got)
	}
}

// depths notes how many parents the contexts of decisions have.
type depths struct{ all []int }

func (d *depths) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "INTO pawl.global_decision") {
		d.all = append(d.all, strings.Count(fmt.Sprint(ctx), "WithoutCancel"))
	}
	return ctx
}

func (*depths) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
