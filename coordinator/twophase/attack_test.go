package twophase_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// overdue names a branch of a transaction that began here and whose deadline has passed.
func (b *bank) overdue() twophase.BranchID {
	b.Helper()
	id := twophase.BranchID{Namespace: 1, ID: uuid.Must(uuid.NewV7()), Deadline: time.Unix(1, 0)}
	if err := b.pool.QueryRow(b.Context(), "SELECT home FROM pawl.global_here()").Scan(&id.Home); err != nil {
		b.Fatal(err)
	}
	return id
}

// leave leaves a branch prepared that added n at a participant.
func (b *bank) leave(id twophase.BranchID, p *twophase.PostgresDB, n int) {
	b.Helper()
	b.leaveDone(id, p, "UPDATE account SET amount = amount + $1 WHERE id = 1", n)
}

// leaveDone leaves a branch prepared that did something.
func (b *bank) leaveDone(id twophase.BranchID, p *twophase.PostgresDB, sql string, args ...any) {
	b.Helper()
	id.Participant = p.Name()
	one, err := p.Begin(b.Context(), id)
	if err != nil {
		b.Fatal(err)
	}
	defer one.Close(b.Context())
	if _, err := one.(interface{ Tx() pgx.Tx }).Tx().Exec(b.Context(), sql, args...); err != nil {
		b.Fatal(err)
	}
	if _, err := one.Prepare(b.Context()); err != nil {
		b.Fatal(err)
	}
}

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
		ends <- b.with(east, b.west).Run(ctx, patient(ctx, func(ctx context.Context, tx *twophase.Tx) error {
			err := through.add(ctx, tx, "east", 1)
			proxy.Commit.Store(dbtest.HoldReply)
			return err
		}), twophase.Timeout(time.Second))
	}()
	select {
	case err := <-ends:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("it waits for ever")
	}
	proxy.CutAll() // else the pool waits for a last word
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

// A database that was restored stays so when its log is as far as it was: nothing is presumed then either.
func TestRecover_restoredAndGrown(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	m := b.manager()
	b.recover(m, 0, 0, 0)
	id := b.overdue()
	b.leave(id, b.east, 7)
	b.exec("east", "UPDATE pawl_branch.home SET lsn = lsn + 200000")
	b.recover(m, 0, 0, 1)
	var grown bool
	for !grown && t.Context().Err() == nil {
		b.exec("own", "CREATE TABLE IF NOT EXISTS grows (text text); INSERT INTO grows SELECT repeat('x', 1000) FROM generate_series(1, 100)")
		var lsn int64
		if err := b.pool.QueryRow(t.Context(), "SELECT lsn - '0/0' FROM pawl.global_here()").Scan(&lsn); err != nil {
			t.Fatal(err)
		}
		grown = b.count("east", "SELECT count(*) FROM pawl_branch.home WHERE lsn > $1", lsn) == 0
	}
	for _, m := range []*twophase.Manager{m, b.manager()} {
		b.recover(m, 0, 0, 1)
	}
	if err := m.Resolve(t.Context(), id.ID.String(), true, "Ada", "it was committed elsewhere"); err != nil {
		t.Fatal(err)
	}
	b.recover(m, 1, 0, 0)
	b.want(7, 0, 0)
	if n := b.count("own", "SELECT incarnation FROM pawl.global_home"); n != 1 {
		t.Errorf("got incarnation %d, want 1: it was restored once", n)
	}
	again := b.overdue() // begun since
	b.leave(again, b.east, 1)
	b.recover(m, 0, 1, 0)
}

// A pass that began before a restore, or a fail-over, presumes nothing behind it.
func TestRecover_restoredMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	b.leave(b.overdue(), b.east, 7)
	east := &asked{Participant: b.east, prepared: func() {
		if _, err := b.manager().Restored(t.Context()); err != nil {
			t.Error(err)
		}
	}}
	b.recover(b.with(east), 0, 0, 1)
	b.recover(b.manager(), 0, 0, 1)
	if n := b.count("own", "SELECT count(*) FROM pawl.global_decision"); n != 0 {
		t.Errorf("got %d decisions, want none", n)
	}
	b.byHand("east", "ROLLBACK")
}

// asked is a participant that does something first when it is asked.
type asked struct {
	twophase.Participant
	prepared  func()
	witnessed func(context.Context)
	settles   atomic.Int32
}

func (p *asked) Prepared(ctx context.Context) ([]twophase.Prepared, error) {
	all, err := p.Participant.Prepared(ctx)
	if p.prepared != nil {
		p.prepared()
	}
	return all, err
}

func (p *asked) Settle(ctx context.Context, id twophase.BranchID, commit bool) error {
	p.settles.Add(1)
	return p.Participant.Settle(ctx, id, commit)
}

func (p *asked) Witnessed(ctx context.Context, id twophase.BranchID) (bool, error) {
	if p.witnessed != nil {
		p.witnessed(ctx)
	}
	return p.Participant.Witnessed(ctx, id)
}

// Of a transaction that may still be decided there is nothing for a person to see, wherever it began.
func TestRecover_otherHomeAtWork(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	id := b.overdue()
	id.Deadline = time.Unix(4e9, 0)
	b.leave(id, b.east, 7)
	if _, err := b.manager().Restored(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.recover(b.manager(), 0, 0, 0)
	b.byHand("east", "ROLLBACK")
}

// How far the log is counts on disk only: a crash of the server, which loses the rest, is no restore.
func TestHome_onDisk(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	conn, err := b.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for range 20 { // a writer of the log may be at it
		var said, flushed int64
		if _, err := conn.Exec(t.Context(), "SET synchronous_commit = off; CREATE TABLE IF NOT EXISTS lost (i int); INSERT INTO lost VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(t.Context(), "SELECT h.lsn - '0/0', pg_current_wal_flush_lsn() - '0/0' FROM pawl.global_here() h").Scan(&said, &flushed); err != nil || said > flushed {
			t.Fatalf("got %d, of which %d is on disk; %v", said, flushed, err)
		}
	}
}

// Of one that is being decided this very moment, recovery goes on to the next.
func TestRecover_deciding(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	first, second := b.overdue(), b.overdue()
	b.leave(first, b.east, 0)
	b.leaveDone(second, b.east, "INSERT INTO account VALUES (2, 0)")
	own, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Rollback(t.Context()) }()
	if _, err := own.Exec(t.Context(), "SELECT pawl.global_abort(1::smallint, ARRAY[$1]::uuid[], 'who', 'why')", first.ID.String()); err != nil {
		t.Fatal(err)
	}
	b.recover(b.manager(), 0, 1, 0)
	if err := own.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.recover(b.manager(), 0, 1, 0)
	b.want(0, 0, 0)
}

// A participant that does not say whether it has committed what is aborted keeps nobody else from rolling back.
func TestRecover_witnessSilent(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	const n = 3
	for i := range n {
		b.leaveDone(b.overdue(), b.east, "INSERT INTO account VALUES ($1, 0)", i+2)
	}
	west := &asked{Participant: b.west, witnessed: func(ctx context.Context) { <-ctx.Done() }}
	b.recover(b.with(b.east, west), 0, n, 0)
}

// What is decided later than it says, as when a standby kept its COMMIT waiting, is done with all the same.
func TestRecover_decidedLate(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	m := b.manager()
	b.recover(m, 0, 0, 0)
	id := b.overdue()
	b.leave(id, b.east, 7)
	id.Participant = ""
	b.exec("own", `INSERT INTO pawl.global_decision (ns, id, decided_at, committed, branch, participants, decided_by)
		VALUES (1, $1, clock_timestamp() - interval '10 min', true, $2, '{east}', 'a standby kept it')`, id.ID.String(), id.String())
	b.recover(m, 1, 0, 0)
	if n := b.count("own", "SELECT count(*) FROM pawl.global_end"); n != 1 {
		t.Errorf("got %d ends, want 1", n)
	}
}

// Who was committed long after he was prepared, as where a person had to decide, is asked again until all are: his witness is old at once, and stays.
func TestRecover_resolvedLate(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	m := b.manager()
	b.recover(m, 0, 0, 0)
	id := b.overdue()
	for _, p := range []*twophase.PostgresDB{b.east, b.west} {
		b.exec(p.Name(), "ALTER TABLE pawl_branch.witness ALTER at SET DEFAULT clock_timestamp() - interval '30 h'")
		b.leave(id, p, 7)
	}
	if _, err := m.Restored(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.recover(m, 0, 0, 2)
	if err := m.Resolve(t.Context(), id.ID.String(), true, "Ada", "on Monday"); err != nil {
		t.Fatal(err)
	}
	b.recover(m, 2, 0, 0)
	b.exec("own", "UPDATE pawl.global_decision SET decided_at = decided_at - interval '10 s'")
	b.recover(m, 0, 0, 0)
	b.want(7, 7, 0)
	b.recover(m, 0, 0, 0) // all are done now
	if n := b.count("east", "SELECT count(*) FROM pawl_branch.witness") + b.count("west", "SELECT count(*) FROM pawl_branch.witness"); n != 0 {
		t.Errorf("got %d witnesses, want none", n)
	}
}

// The witnesses of other coordinators, and of other namespaces, which may need them longer, are theirs, until they are very old.
func TestRecover_othersWitnesses(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	theirs := b.overdue()
	theirs.Participant = "east"
	own := theirs
	own.ID = uuid.New()
	elsewhere := theirs
	elsewhere.Home = "00000000000000aa.1.0"
	theirs.Namespace = 12
	for _, id := range []twophase.BranchID{own, theirs, elsewhere} {
		b.exec("east", "INSERT INTO pawl_branch.witness (branch, at) VALUES ($1, clock_timestamp() - interval '30 h')", id.String())
		id.ID = uuid.New()
		b.exec("east", "INSERT INTO pawl_branch.witness (branch, at) VALUES ($1, clock_timestamp() - interval '91 days')", id.String())
	}
	m := b.manager()
	b.recover(m, 0, 0, 0)
	b.recover(m, 0, 0, 0)
	if n := b.count("east", "SELECT count(*) FROM pawl_branch.witness"); n != 2 {
		t.Errorf("got %d witnesses, want the two of others that are not very old", n)
	}
}

// What another node has finished and forgotten while this one was on its way to it is not taken for lost.
func TestRecover_forgottenMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	id := b.overdue()
	id.Participant = ""
	b.exec("own", `INSERT INTO pawl.global_decision (ns, id, decided_at, committed, branch, participants, decided_by)
		VALUES (1, $1, clock_timestamp() - interval '30 h', true, $2, '{east}', 'who')`, id.ID.String(), id.String())
	east := &asked{Participant: b.east, witnessed: func(context.Context) {
		b.exec("own", "SELECT pawl.global_ended(1::smallint, ARRAY[$1]::uuid[])", id.ID.String())
	}}
	b.recover(b.with(east), 0, 0, 0)
	if n := b.count("own", "SELECT count(*) FROM pawl.global_doubt"); n != 0 {
		t.Errorf("got %d doubts", n)
	}
}

// A function that ends a branch in SQL gets an error, and the others nothing.
func TestCommit_endedWithin(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	m := b.manager()
	for _, names := range []string{"east", "own", "east west", "east own", "west east own"} {
		for _, wrote := range []bool{false, true} {
			where := strings.Fields(names)[0]
			err := m.Run(t.Context(), func(ctx context.Context, tx *twophase.Tx) error {
				for _, name := range strings.Fields(names) {
					n := 1
					if name == where && !wrote {
						n = 0
					}
					if err := b.add(ctx, tx, name, n); err != nil {
						return err
					}
				}
				get := map[string]func(context.Context, *twophase.Tx) (pgx.Tx, error){
					"east": b.east.Tx, "west": b.west.Tx, "own": func(ctx context.Context, tx *twophase.Tx) (pgx.Tx, error) { return tx.Own(ctx) },
				}
				one, err := get[where](ctx, tx)
				if err != nil {
					return err
				}
				_, err = one.Exec(ctx, "ROLLBACK")
				return err
			})
			if !errors.Is(err, twophase.ErrAborted) || !errors.Is(err, twophase.ErrEnded) {
				t.Errorf("%s, wrote %t: got %v, want ErrAborted and ErrEnded", names, wrote, err)
			}
			b.want(0, 0, 0)
		}
	}
}

// What a participant has committed nobody rolls back at the others.
func TestResolve_committed(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	m := b.manager()
	id := b.overdue()
	b.leave(id, b.east, 7)
	b.byHand("east", "COMMIT") // as a decision had it that is lost
	b.leave(id, b.west, 7)
	if _, err := m.Restored(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.recover(m, 0, 0, 1)
	if err := m.Resolve(t.Context(), id.ID.String(), false, "Ada", "why"); !errors.Is(err, twophase.ErrDecided) || !strings.Contains(err.Error(), "east") {
		t.Errorf("got %v, want ErrDecided and east", err)
	}
	if err := m.Resolve(t.Context(), id.ID.String(), true, "Ada", "why"); err != nil {
		t.Error(err)
	}
	b.recover(m, 1, 0, 0)
	b.want(7, 7, 0)
}

// Of two who decide at the same time the second is told so.
func TestResolve_race(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	m := b.manager()
	id := b.overdue()
	b.leave(id, b.east, 7)
	if _, err := m.Restored(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.recover(m, 0, 0, 1)
	other, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Rollback(t.Context()) }()
	if _, err := other.Exec(t.Context(), "SELECT pawl.global_abort(1::smallint, ARRAY[$1]::uuid[], 'Bob', 'why')", id.ID.String()); err != nil {
		t.Fatal(err)
	}
	ends := make(chan error, 1)
	go func() { ends <- m.Resolve(t.Context(), id.ID.String(), true, "Ada", "why") }()
	for b.count("own", "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 0 && t.Context().Err() == nil {
		b.exec("own", "SELECT pg_sleep(0.002)")
	}
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ends; !errors.Is(err, twophase.ErrDecided) {
		t.Errorf("got %v, want ErrDecided", err)
	}
	b.recover(m, 0, 1, 0)
	b.want(0, 0, 0)
}

// Where the connection is lost while the server is still at the COMMIT that decides, what it comes to is waited for.
func TestOwn_committing(t *testing.T) {
	t.Parallel()
	for _, commits := range []bool{true, false} {
		t.Run(fmt.Sprint(commits), func(t *testing.T) {
			t.Parallel()
			b := newBank(t)
			b.exec("own", "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(7); IF (SELECT amount FROM account WHERE id = 2) = 0 THEN RAISE 'no'; END IF; RETURN NULL; END $$")
			b.exec("own", "CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()")
			b.exec("own", "INSERT INTO account VALUES (2, $1)", map[bool]int{true: 1}[commits])
			lock, err := b.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = lock.Rollback(t.Context()) }()
			if _, err := lock.Exec(t.Context(), "SELECT pg_advisory_xact_lock(7)"); err != nil {
				t.Fatal(err)
			}
			proxy, pool := dbtest.NewProxy(t, b.pool, 4)
			m, err := twophase.New(pool, twophase.Config{Logger: slog.New(slog.DiscardHandler)}, b.east, b.west)
			if err != nil {
				t.Fatal(err)
			}
			ends := make(chan error, 1)
			go func() {
				ends <- m.Run(t.Context(), func(ctx context.Context, tx *twophase.Tx) error {
					if err := b.add(ctx, tx, "east", 1); err != nil {
						return err
					}
					own, err := tx.Own(ctx)
					if err == nil {
						_, err = own.Exec(ctx, "UPDATE account SET amount = amount - 1 WHERE id = 1")
					}
					proxy.Commit.Store(dbtest.HoldReply)
					return err
				})
			}()
			waiting := func(n int) {
				for b.count("own", "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") != n && t.Context().Err() == nil {
					b.exec("own", "SELECT pg_sleep(0.002)")
				}
			}
			waiting(1)
			proxy.CutOld()
			waiting(2) // who asks, too
			if err := lock.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-ends; (err == nil) != commits || !commits && !errors.Is(err, twophase.ErrAborted) {
				t.Errorf("got %v, want committed %t", err, commits)
			}
			b.exec("own", "DELETE FROM account WHERE id = 2")
			n := map[bool]int{true: 1}[commits]
			b.want(n, 0, -n)
		})
	}
}

// A coordinator in another database of the same server leaves alone what this one has prepared at a participant that they share.
func TestRecover_otherDatabase(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	b.recover(b.manager(), 0, 0, 0)
	id := b.overdue()
	b.leave(id, b.east, 7)
	id.Participant = ""
	b.exec("own", `INSERT INTO pawl.global_decision (ns, id, decided_at, committed, branch, participants, decided_by)
		VALUES (1, $1, clock_timestamp(), true, $2, '{east}', 'who')`, id.ID.String(), id.String())
	other, err := twophase.New(dbtest.New(t), twophase.Config{Logger: slog.New(slog.DiscardHandler)}, b.east, b.west)
	if err != nil {
		t.Fatal(err)
	}
	b.recover(other, 0, 0, 0)
	b.recover(b.manager(), 1, 0, 0)
	b.want(7, 0, 0)
}

// While a participant is down, the others are not asked in every pass about all that waits for it.
func TestRecover_waiting(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	const n = 5
	for range n {
		id := b.overdue()
		id.Participant = "east"
		b.exec("east", "INSERT INTO pawl_branch.witness (branch) VALUES ($1)", id.String())
		id.Participant = ""
		b.exec("own", `INSERT INTO pawl.global_decision (ns, id, decided_at, committed, branch, participants, decided_by)
			VALUES (1, $1, clock_timestamp() - interval '10 s', true, $2, '{east,west}', 'who')`, id.ID.String(), id.String())
	}
	gone, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/nothing?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	east := &asked{Participant: b.east}
	m := b.with(east, twophase.Postgres("west", gone))
	for range 3 {
		if r, err := m.Recover(t.Context(), twophase.KeepDefault); err == nil || r.Ended != 0 {
			t.Errorf("got %+v, %v", r, err)
		}
		if got := east.settles.Load(); got != n {
			t.Errorf("east was asked %d times, want %d", got, n)
		}
	}
}

// What was committed by hand before its transaction was aborted is found with what is left of that, whoever aborted it.
func TestRecover_abortedAndByHand(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	m := b.manager()
	id := b.overdue()
	b.leave(id, b.east, 1)
	b.leave(id, b.west, -1)
	b.byHand("east", "COMMIT")
	b.exec("own", "SELECT pawl.global_abort(1::smallint, ARRAY[$1]::uuid[], 'who', 'rolled back')", id.ID.String())
	b.recover(m, 0, 1, 1)
	b.mixedAt(m, "east")
	b.want(1, 0, 0)
}

// A pool that is told to prepare nothing, since a pooler in transaction mode is behind it, has nothing prepared.
func TestPostgres_pooler(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	for mode, want := range map[pgx.QueryExecMode]int{pgx.QueryExecModeCacheStatement: 1, pgx.QueryExecModeCacheDescribe: 0, pgx.QueryExecModeExec: 0} {
		conf := b.pools["east"].Config()
		conf.ConnConfig.DefaultQueryExecMode, conf.MaxConns = mode, 1
		pool, err := pgxpool.NewWithConfig(t.Context(), conf)
		if err != nil {
			t.Fatal(err)
		}
		through := &bank{TB: t, pool: b.pool, east: twophase.Postgres("east", pool), west: b.west}
		if err := b.with(through.east, b.west).Run(t.Context(), through.transfer(map[string]int{"east": 1, "west": -1})); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
		var n int
		if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'pawl%'").Scan(&n); err != nil || n != want {
			t.Errorf("%s: got %d prepared, %v; want %d", mode, n, err, want)
		}
		pool.Close()
	}
	b.want(3, -3, 0)
}
