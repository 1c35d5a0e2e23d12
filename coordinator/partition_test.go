package coordinator_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// shop is a database whose events are in ranges of ten ids, 1 to 9, 10 to 19 and so on, and are kept for no longer than they must. What goes wrong in it ends a scenario.
type shop struct {
	testing.TB
	ctx     context.Context
	pool    *pgxpool.Pool
	c       *coordinator.Coordinator
	writers []string // transactions of begin
}

// broken is how a scenario ends.
type broken struct{ error }

// prove runs a scenario, which must go well, and once more for each rule left out, where it must not: else it would prove nothing.
func prove(t *testing.T, scenario func(s *shop), rules ...without) {
	t.Helper()
	run := func(t *testing.T, r without) (err error) {
		s := &shop{TB: t, ctx: t.Context(), pool: dbtest.New(t), writers: []string{}}
		s.c = newCoordinator(t, s.pool)
		s.ranges(10, 20)
		s.keep("0", "30 days")
		s.exec("SELECT pawl.incarnate()") // else the first to look takes a transaction id
		if r.function != "" {
			s.change(r.function, r.from, r.to)
		}
		defer func() {
			b, ok := recover().(broken)
			if err = b.error; ok && r.function != "" {
				t.Log(err)
			}
		}()
		scenario(s)
		return nil
	}
	t.Run("rule", func(t *testing.T) {
		t.Parallel()
		if err := run(t, without{}); err != nil {
			t.Error(err)
		}
	})
	for _, r := range rules {
		t.Run("without "+r.rule, func(t *testing.T) {
			t.Parallel()
			if err := run(t, r); err == nil {
				t.Error("all went well without the rule: this test does not prove it")
			}
		})
	}
}

// without is a rule left out: in the text of function, from becomes to.
type without struct{ rule, function, from, to string }

// change replaces a part of a function's text.
func (s *shop) change(function, from, to string) {
	s.Helper()
	text := value[string](s, "SELECT pg_get_functiondef($1::regproc)", "pawl."+function)
	if !strings.Contains(text, from) {
		s.Fatalf("pawl.%s has no %q any more: say in this test what its rule is now", function, from)
	}
	s.exec(strings.ReplaceAll(text, from, to))
}

func (s *shop) must(err error) {
	if err != nil {
		panic(broken{err})
	}
}

func (s *shop) exec(sql string, args ...any) {
	if _, err := s.pool.Exec(s.ctx, sql, args...); err != nil {
		panic(broken{fmt.Errorf("%s: %w", sql, err)})
	}
}

func value[T any](s *shop, sql string, args ...any) (v T) {
	if err := s.pool.QueryRow(s.ctx, sql, args...).Scan(&v); err != nil {
		panic(broken{fmt.Errorf("%s: %w", sql, err)})
	}
	return v
}

// equal ends the scenario if two lists of numbers differ.
func (s *shop) equal(what string, got, want []int64) {
	if !slices.Equal(got, want) {
		panic(broken{fmt.Errorf("%s: got %v, want %v", what, got, want)})
	}
}

// ranges replaces those of the events by n of so many ids.
func (s *shop) ranges(ids, n int) {
	s.exec(fmt.Sprintf(`DO $$ DECLARE t text; v_low text := 'MINVALUE'; BEGIN
		FOR t IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'pawl.outbox_event'::regclass LOOP EXECUTE 'DROP TABLE ' || t; END LOOP;
		DELETE FROM pawl.partition WHERE parent = 'outbox_event';
		FOR i IN 0 .. %[2]d - 1 LOOP
			EXECUTE format('CREATE TABLE pawl.outbox_event_%%s PARTITION OF pawl.outbox_event FOR VALUES FROM (%%s) TO (%%s)', i * %[1]d, v_low, (i + 1) * %[1]d);
			INSERT INTO pawl.partition (parent, range_from, range_to, position_at, created_at) VALUES ('outbox_event', i * %[1]d, (i + 1) * %[1]d, 0, now());
			v_low := (i + 1) * %[1]d;
		END LOOP; END $$`, ids, n))
}

func (s *shop) keep(keep, hold string) {
	s.exec("SELECT pawl.outbox_keep(1::smallint, $1::text::interval, $2::text::interval)", keep, hold)
}

// publish publishes n events in a transaction.
func (s *shop) publish(n int) {
	s.must(pgx.BeginFunc(s.ctx, s.pool, func(tx pgx.Tx) error { return s.publishIn(tx, n) }))
}

func (s *shop) publishIn(tx pgx.Tx, n int) error {
	for range n {
		if err := outbox.Publish(s.ctx, tx, outbox.Event{Topic: "order", Key: "k", Type: "t"}); err != nil {
			return err
		}
	}
	return nil
}

// begin begins a transaction, which is rolled back in the end unless it was ended before.
func (s *shop) begin() pgx.Tx {
	tx, err := s.pool.Begin(s.ctx)
	s.must(err)
	s.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(s.ctx)) })
	return tx
}

// write begins one that has published n events.
func (s *shop) write(n int) pgx.Tx {
	tx := s.begin()
	var xid string
	s.must(tx.QueryRow(s.ctx, "SELECT pg_current_xact_id()::text").Scan(&xid))
	s.writers = append(s.writers, xid)
	s.must(s.publishIn(tx, n))
	return tx
}

func (s *shop) subscribe(name string) {
	_, err := outbox.Create(s.ctx, s.pool, outbox.Subscription{Name: name})
	s.must(err)
}

// take consumes one page of at most limit events, and gives their numbers.
func (s *shop) take(name string, limit int) (got []int64) {
	_, err := outbox.ConsumeTx(s.ctx, s.pool, 1, name, 0, limit, func(_ context.Context, _ pgx.Tx, events []outbox.Event) error {
		for _, e := range events {
			got = append(got, e.Seq)
		}
		return nil
	})
	s.must(err)
	// Transactions of other tests, which share the server, run now and not then; and a position that has moved over nothing is appended a second after the one before.
	s.exec(`UPDATE pawl.subscription_batch b SET at = b.at - interval '1 s', late = ARRAY(SELECT l FROM unnest(b.late) l WHERE l = ANY (($1::text[])::xid8[])),
		to_late = CASE WHEN b.done IS NOT NULL THEN ARRAY(SELECT l FROM unnest(b.to_late) l WHERE l = ANY (($1::text[])::xid8[])) END`, s.writers)
	return got
}

// drain consumes all there is.
func (s *shop) drain(name string) (got []int64) {
	for page := s.take(name, 100); len(page) > 0; page = s.take(name, 100) {
		got = append(got, page...)
	}
	return got
}

// dropped sweeps and gives the first ids of the ranges dropped.
func (s *shop) dropped() (from []int64) {
	r, err := s.c.Sweep(s.ctx, coordinator.SweepPartitions)
	s.must(err)
	for _, d := range r.Dropped {
		from = append(from, d.From)
	}
	return from
}

// over waits until no transaction of the server runs that ran when a sweep found the newest full range: those of other tests count as well.
func (s *shop) over() {
	s.Helper()
	until(s, "transactions to end", func() bool {
		return value[bool](s, `SELECT pg_snapshot_xmin(pg_current_snapshot()) >= coalesce(max(full_xid::text::bigint), 0)::text::xid8 OR max(full_xid::text::bigint) > 1e9 -- see move
			FROM pawl.partition WHERE parent = 'outbox_event'`)
	})
}

// waits: no sweep drops anything while a writer runs; stays: none does although none runs; goes: the given ranges are dropped, and no other.
func (s *shop) waits(when string) {
	s.equal(when+", ranges dropped", append(s.dropped(), s.dropped()...), nil)
}

func (s *shop) stays(when string) { s.Helper(); s.goes(when) }

func (s *shop) goes(when string, want ...int64) {
	s.Helper()
	got := s.dropped()
	s.over()
	got = append(got, s.dropped()...)
	s.equal(when+", ranges dropped", append(got, s.dropped()...), want)
}

// sequence is the numbers from one to another.
func sequence(from, to int64) (all []int64) {
	for i := from; i <= to; i++ {
		all = append(all, i)
	}
	return all
}

// A range leaves when it is full, everyone has passed it, and it is old enough; with it goes what is known of it.
func TestRetention(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.subscribe("a")
		s.subscribe("b")
		s.publish(7)
		s.stays("while ids are left")
		s.publish(1)
		s.drain("a")
		s.drain("b")
		s.stays("while an id is left")
		s.publish(3)
		s.drain("a")
		s.stays("while b is behind")
		s.keep("1 day", "30 days")
		s.drain("b")
		s.stays("before a day is over")
		s.exec("UPDATE pawl.partition SET over_at = over_at - interval '1 day'")
		s.goes("after a day", 0)
		s.stays("the next, which has ids left")
		s.equal("events left", []int64{value[int64](s, "SELECT count(*) FROM pawl.outbox_event")}, []int64{2})
		if value[bool](s, "SELECT to_regclass('pawl.outbox_event_0') IS NOT NULL OR EXISTS (SELECT FROM pawl.partition WHERE parent = 'outbox_event' AND range_from = 0)") {
			s.must(errors.New("something is left of the range"))
		}
	},
		without{"full", "outbox_leave", "p.range_to - 1 <= v_last", "p.range_from <= v_last"},
		without{"age", "outbox_leave", "SELECT max(o.keep)", "SELECT min(o.keep) - max(o.keep)"},
		without{"subscriptions", "outbox_holders", "WHERE h.moved OR NOT h.passed", "WHERE h.moved"},
	)
}

// The newest range stays even if it is full: those to come follow it.
func TestRetentionNewest(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.change("partition_ahead", "LOOP\n    CONTINUE WHEN", "LOOP\n    CONTINUE WHEN v_parent = 'outbox_event' OR")
		s.ranges(10, 2)
		s.publish(19)
		s.goes("without ranges ahead", 0)
	}, without{"the newest", "outbox_leave", "p.range_from >= r.range_to", "true"})
}

// Without subscriptions a range waits for its writers alone, those that are prepared among them.
func TestRetentionWriter(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		gid := "'late " + s.Name() + "'"
		late := s.write(1)
		s.publish(20)
		s.waits("while a writer runs")
		kept, err := outbox.Retention(s.ctx, s.pool, 1)
		s.must(err)
		if kept.By != outbox.HeldByTransaction {
			s.must(fmt.Errorf("kept: got %+v, want it to be held by a transaction", kept))
		}
		_, err = late.Exec(s.ctx, "PREPARE TRANSACTION "+gid)
		s.must(err)
		s.Cleanup(func() { _, _ = s.pool.Exec(context.WithoutCancel(s.ctx), "ROLLBACK PREPARED "+gid) })
		s.waits("while it is prepared")
		s.exec("COMMIT PREPARED " + gid)
		if _, err := s.begin().Exec(s.ctx, "SELECT pg_current_xact_id()"); err != nil {
			s.must(err)
		}
		s.goes("when it is over, and another runs", 0, 10)
	}, without{"writers", "outbox_leave", "p.full_xid <= v_xid", "p.full_xid IS NOT NULL"})
}

// A prepared transaction that holds a range is named.
func TestRetentionHeldByPrepared(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		gid := "held " + s.Name()
		tx := s.write(1)
		s.publish(20)
		if _, err := tx.Exec(s.ctx, "PREPARE TRANSACTION '"+gid+"'"); err != nil {
			s.must(err)
		}
		s.Cleanup(func() { _, _ = s.pool.Exec(context.WithoutCancel(s.ctx), "ROLLBACK PREPARED '"+gid+"'") })
		until(s, "others to end", func() bool {
			s.waits("while one is prepared")
			kept, err := outbox.Retention(s.ctx, s.pool, 1)
			s.must(err)
			return kept.By == outbox.HeldByTransaction && kept.Who == "prepared transaction "+gid && kept.Since != nil
		})
	})
}

// A subscription that has seen what came after still holds the range of a transaction that was running then.
func TestRetentionLate(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.subscribe("a")
		late := s.write(1)
		s.publish(20)
		s.equal("before the late one", s.drain("a"), sequence(2, 21))
		s.waits("while it runs")
		s.must(late.Commit(s.ctx))
		s.stays("when it has committed")
		s.equal("the late one", s.drain("a"), []int64{1})
		s.goes("when it was delivered", 0, 10)
	}, without{"late ones", "position_passed", "unnest(b.late) l WHERE l < p_xid", "unnest(b.late) l WHERE false"})
}

// While a batch is open, what is not settled of it holds its range, and what is settled does not.
func TestRetentionBatch(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.subscribe("a")
		s.publish(25)
		s.stays("before anything is delivered")
		s.equal("first page", s.take("a", 5), sequence(1, 5))
		s.stays("in the middle of the range")
		s.equal("second page", s.take("a", 5), sequence(6, 10))
		s.goes("behind the first range", 0)
		s.equal("the rest", s.drain("a"), sequence(11, 25))
		s.goes("when all is delivered", 10)
	},
		without{"done", "position_passed", "b.done >= p_to - 1 AND", "b.done > 0 AND"},
		without{"the open batch", "position_passed", "OR b.done >= p_to - 1 AND", "OR false AND"},
	)
}

// What was running when a batch was opened holds its range as well, however far the batch is settled.
func TestRetentionLateOfBatch(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.subscribe("a")
		late := s.write(1)
		s.publish(24)
		s.waits("while a writer runs")
		s.equal("a page beyond the range", s.take("a", 12), sequence(2, 13))
		s.must(late.Commit(s.ctx))
		s.stays("when it has committed")
		s.equal("the rest", s.drain("a"), append(sequence(14, 25), 1))
		s.goes("when all is delivered", 0, 10)
	}, without{"late ones of the batch", "position_passed", "unnest(b.to_late) l WHERE l < p_xid", "unnest(b.to_late) l WHERE false"})
}

// A subscription that has not looked since a range was filled holds it; one that found it has no more to do does not, though it moves no further.
func TestRetentionIdle(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.subscribe("a")
		s.publish(4)
		s.drain("a")
		s.publish(5)
		s.stays("before it looks")
		s.equal("the rest", s.drain("a"), sequence(5, 9))
		s.take("a", 1) // its position's floor
		s.take("a", 1)
		before := value[int64](s, "SELECT max(id) FROM pawl.subscription_batch")
		s.exec("UPDATE pawl.partition SET full_xid = NULL, over_at = NULL") // as if it were found full only now
		s.goes("when it is idle", 0)
		s.equal("its position", []int64{value[int64](s, "SELECT max(id) FROM pawl.subscription_batch")}, []int64{before})
	},
		without{"seen", "position_passed", "b.seen_xid >= p_xid OR b.floor >= p_to - 1)", "true)"},
		without{"floor", "position_passed", "b.seen_xid >= p_xid OR b.floor >= p_to - 1)", "b.seen_xid >= p_xid)"},
	)
}

// A subscription that is being made in an open transaction holds what was running when it looked.
func TestRetentionNew(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		late := s.write(1)
		s.publish(20)
		s.waits("while a writer runs")
		making := s.begin()
		_, err := outbox.Create(s.ctx, making, outbox.Subscription{Name: "a"})
		s.must(err)
		s.must(late.Commit(s.ctx))
		s.stays("while a subscription is being made")
		s.must(making.Commit(s.ctx))
		s.stays("when it is made")
		s.equal("what was running when it looked", s.drain("a"), []int64{1})
		s.goes("when that was delivered", 0, 10)
	}, without{"its lock", "subscription_create", "pg_advisory_xact_lock_shared(pawl.retention_key())", "1"})
}

// A subscription that is being moved back in an open transaction holds what it will be owed.
func TestRetentionRewind(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.subscribe("a")
		s.publish(20)
		s.stays("before it has looked")
		s.drain("a")
		moving := s.begin()
		if _, err := moving.Exec(s.ctx, "SELECT pawl.subscription_rewind(1::smallint, 'a', 5)"); err != nil {
			s.must(err)
		}
		s.stays("while it is moved back")
		s.must(moving.Commit(s.ctx))
		s.stays("when it is moved back")
		if got := s.drain("a"); !slices.Contains(got, 5) {
			s.must(fmt.Errorf("event 5 did not come again, but %v", got))
		}
		s.goes("when that was delivered again", 0, 10)
	}, without{"its lock", "subscription_rewind", "pg_advisory_xact_lock_shared(pawl.retention_key())", "1"})
}

// A subscription made from the beginning, or moved back to what has left, begins with the oldest event kept, even while what has left is still attached.
func TestRetentionBeginning(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.subscribe("a")
		s.publish(25)
		s.stays("before it has looked")
		s.drain("a")
		if to := value[int64](s, "SELECT coalesce(range_to, 0) FROM pawl.outbox_leave()"); to != 10 {
			s.must(fmt.Errorf("the first range does not leave: %d", to))
		}
		_, err := outbox.Create(s.ctx, s.pool, outbox.Subscription{Name: "b", Beginning: true})
		s.must(err)
		s.equal("from the beginning", s.drain("b"), sequence(10, 25))
		s.exec("SELECT pawl.subscription_rewind(1::smallint, 'a', 5)")
		s.equal("moved back", s.drain("a"), sequence(10, 25))
		s.goes("in the end", 0, 10)
	},
		without{"the beginning", "subscription_create", "pawl.outbox_oldest() - 1", "0"},
		without{"the clamp", "subscription_rewind", "greatest(least(v_id, b.floor + 1), v_oldest) - 1", "least(p_id, b.floor + 1) - 1"},
	)
}

// Subscriptions of every namespace count, and the longest time that one of them keeps events.
func TestRetentionNamespaces(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		other := value[int16](s, "SELECT pawl.namespace_create('other')")
		_, err := outbox.Create(s.ctx, s.pool, outbox.Subscription{Namespace: other, Name: "b"})
		s.must(err)
		s.publish(12)
		s.exec("UPDATE pawl.outbox SET keep = '0'")
		s.stays("while one of another namespace is behind")
		kept, err := outbox.Retention(s.ctx, s.pool, 1)
		s.must(err)
		if kept.By != outbox.HeldBySubscription || kept.Who != "other/b" {
			s.must(fmt.Errorf("kept: got %+v, want it to be held by other/b", kept))
		}
		for range 2 {
			s.exec("UPDATE pawl.subscription_batch SET at = at - interval '1 s'")
			_, err := outbox.ConsumeTx(s.ctx, s.pool, other, "b", 0, 10, func(context.Context, pgx.Tx, []outbox.Event) error { return nil })
			s.must(err)
		}
		s.exec("UPDATE pawl.subscription_batch SET late = '{}'")
		s.exec("UPDATE pawl.outbox SET keep = '7 days' WHERE ns = $1", other)
		s.stays("for 7 days in the other namespace")
		s.exec("UPDATE pawl.outbox SET keep = '0'")
		s.goes("when it has looked", 0)
	}, without{"the longest", "outbox_leave", "max(o.keep)", "min(o.keep)"})
}

// move makes as if the database had been dumped and restored, with positions and ranges of a cluster whose transaction ids differ by so many.
func (s *shop) move(by int64) {
	s.exec("UPDATE pawl.outbox SET cluster = cluster + 1")
	for _, column := range []string{"outbox_event xid", "partition full_xid", "subscription_batch seen_xid", "subscription_batch to_xid"} {
		table, column, _ := strings.Cut(column, " ")
		s.exec(fmt.Sprintf("UPDATE pawl.%[1]s SET %[2]s = greatest(%[2]s::text::bigint + $1::bigint, 3)::text::xid8 WHERE %[2]s IS NOT NULL", table, column), by)
	}
}

// In another cluster nothing leaves until a rebase, and what subscriptions were owed before it stays until they have it.
func TestRetentionMoved(t *testing.T) {
	t.Parallel()
	moved := func(by int64) func(*shop) {
		return func(s *shop) {
			s.subscribe("a")
			s.publish(25)
			s.stays("before anything is delivered")
			s.take("a", 12)
			s.goes("before the move", 0)
			s.move(by)
			s.exec("UPDATE pawl.partition SET over_at = NULL WHERE range_from = 10") // as if it had been dumped while a writer ran
			s.keep("0", "0")
			s.stays("before the rebase")
			s.keep("0", "30 days")
			s.exec("SELECT pawl.rebase(1::smallint)")
			s.publish(10)
			s.stays("after the rebase")
			s.equal("the rest", append(s.drain("a"), s.drain("a")...), sequence(13, 35)) // of the epoch before, then of this one
			for range 3 {
				s.take("a", 100)
			}
			s.goes("when all is delivered", 10, 20)
		}
	}
	t.Run("lower", func(t *testing.T) {
		prove(t, moved(-500), without{"home", "outbox_holders", "NOT pawl.is_home(o.cluster) OR", "false OR"})
	})
	t.Run("higher", func(t *testing.T) {
		prove(t, moved(2_000_000_000), without{"the epoch", "position_passed", "b.epoch = p_epoch AND", "true AND"},
			without{"the marks", "outbox_rebase", "SET full_xid = NULL, over_at = NULL", "SET full_xid = p.full_xid"})
	})
}

// A position from the future, as of a cluster of the same identity that was further, holds all until the rebase.
func TestRetentionFuture(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.subscribe("a")
		s.drain("a")
		s.move(2_000_000_000)
		s.exec("UPDATE pawl.outbox SET cluster = cluster - 1")
		s.keep("0", "0")
		s.publish(12)
		s.stays("before the rebase")
	}, without{"the future", "outbox_holders", "b.seen_xid > pg_snapshot_xmax(pg_current_snapshot())", "false"})
}

// passing publishes in a transaction of its own, which has a second for it: nobody that publishes waits for what leaves.
func (s *shop) passing() error {
	ctx, stop := context.WithTimeout(s.ctx, patience)
	defer stop()
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL statement_timeout = '1s'"); err != nil {
			return err
		}
		return s.publishIn(tx, 1)
	})
}

// An open transaction that has read events delays the drop of a range, and nothing else: publishing goes on all the while, also in ranges made meanwhile.
func TestRetentionReader(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.publish(25)
		reader := s.begin() // and then idle in its transaction
		if _, err := reader.Exec(s.ctx, "SELECT count(*) FROM pawl.outbox_event"); err != nil {
			s.must(err)
		}
		s.waits("at first")
		s.over()
		swept := make(chan error, 1)
		go func() {
			for range 3 {
				if _, err := s.c.Sweep(s.ctx, coordinator.SweepPartitions); err != nil {
					swept <- err
					return
				}
			}
			swept <- nil
		}()
		n := 0
		for over := false; !over; n++ {
			select {
			case err := <-swept:
				s.must(err)
				over = true
			default:
				s.must(s.passing())
			}
			if n == 100 {
				s.exec("SELECT pawl.partition_ahead()")
			}
		}
		s.equal("ranges detached", []int64{value[int64](s, "SELECT count(*) FROM pawl.partition WHERE leaving_at IS NOT NULL")}, []int64{1})
		s.equal("ranges half detached", []int64{value[int64](s, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending")}, []int64{1})
		kept, err := outbox.Retention(s.ctx, s.pool, 1)
		s.must(err)
		if kept.LeavingAt == nil {
			s.must(fmt.Errorf("kept: got %+v, want to be told that a range is leaving", kept))
		}
		s.must(reader.Commit(s.ctx))
		if got := s.dropped(); len(got) < 2 || got[0] != 0 || got[1] != 10 {
			s.must(fmt.Errorf("dropped when the reader is gone: %v, want 0 and 10 at least", got))
		}
	}, without{"CONCURRENTLY", "partition_leaving", "ELSE 'CONCURRENTLY' END", "ELSE '' END"})
}

// Wherever a sweep dies, the next one goes on: after the mark, with the detaching half done, after it, and when somebody has dropped the table.
func TestRetentionCrash(t *testing.T) {
	t.Parallel()
	mark := func(s *shop) {
		s.publish(25)
		until(s, "the mark", func() bool { return value[int64](s, "SELECT coalesce(range_to, 0) FROM pawl.outbox_leave()") == 10 })
	}
	detach := func(s *shop) { s.exec(value[string](s, "SELECT statement FROM pawl.partition_leaving()")) }
	for _, c := range []struct {
		after string
		do    func(s *shop)
	}{
		{"mark", mark},
		{"half", func(s *shop) {
			reader := s.begin()
			if _, err := reader.Exec(s.ctx, "SELECT count(*) FROM pawl.outbox_event"); err != nil {
				s.must(err)
			}
			mark(s)
			conn, err := s.pool.Acquire(s.ctx)
			s.must(err)
			defer conn.Release()
			_, err = conn.Exec(s.ctx, "SET lock_timeout = '10ms'")
			s.must(err)
			if _, err := conn.Exec(s.ctx, value[string](s, "SELECT statement FROM pawl.partition_leaving()")); err == nil {
				s.must(errors.New("it was detached under a reader"))
			}
			_, err = conn.Exec(s.ctx, "RESET lock_timeout")
			s.must(err)
			s.must(reader.Commit(s.ctx))
		}},
		{"detach", func(s *shop) { mark(s); detach(s) }},
		{"drop", func(s *shop) { mark(s); detach(s); s.exec("DROP TABLE pawl.outbox_event_0") }},
	} {
		t.Run(c.after, func(t *testing.T) {
			prove(t, func(s *shop) {
				c.do(s)
				s.must(s.passing())
				s.goes("after the crash", 0, 10)
				s.equal("what is left of them", []int64{value[int64](s, `SELECT count(*) FROM pawl.partition p FULL JOIN pg_class c ON c.relname = pawl.partition_name(p.parent, p.range_from)
					WHERE p.parent = 'outbox_event' AND p.range_from < 20 OR c.relname ~ '^outbox_event_(0|10)(_|$)'`)}, []int64{0})
			})
		})
	}
}

// Only what is detached is dropped, and of that only what is to leave: an operator may have taken a range to keep it.
func TestRetentionDrop(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.publish(25)
		until(s, "the mark", func() bool { return value[int64](s, "SELECT coalesce(range_to, 0) FROM pawl.outbox_leave()") == 10 })
		s.exec("ALTER TABLE pawl.outbox_event DETACH PARTITION pawl.outbox_event_10")
		for what, from := range map[string]int{"attached": 0, "not to leave": 10} {
			if value[bool](s, "SELECT pawl.partition_drop('outbox_event', $1)", from) {
				s.must(errors.New("a range was dropped that is " + what))
			}
		}
	},
		without{"the mark", "partition_drop", "AND p.leaving_at IS NOT NULL", ""},
		without{"its detaching", "partition_drop", "AND NOT EXISTS", "AND true OR NOT EXISTS"},
	)
}

// Any number of nodes sweep at once, and each range is dropped once.
func TestRetentionNodes(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.publish(195)
		s.dropped()
		s.over()
		var (
			group sync.WaitGroup
			mu    sync.Mutex
			all   []int64
			errs  []error
		)
		for range 4 {
			c := newCoordinator(s, s.pool)
			group.Go(func() {
				for range 5 {
					r, err := c.Sweep(s.ctx, coordinator.SweepPartitions)
					mu.Lock()
					errs = append(errs, err)
					for _, d := range r.Dropped {
						all = append(all, d.From)
					}
					mu.Unlock()
				}
			})
		}
		group.Wait()
		s.must(errors.Join(errs...))
		all = append(all, s.dropped()...)
		slices.Sort(all)
		if !slices.Equal(all, slices.Compact(slices.Clone(all))) {
			s.must(fmt.Errorf("ranges dropped twice: %v", all))
		}
		s.equal("ranges left", []int64{value[int64](s, "SELECT pawl.outbox_oldest()")}, []int64{190})
	})
}

// A subscription that was given its time is paused, told what it misses and not asked again; it goes on with what is kept when an operator accepts that.
func TestRetentionForgotten(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		_, err := outbox.Create(s.ctx, s.pool, outbox.Subscription{Name: "other", Topics: []string{"stock"}})
		s.must(err)
		late := s.write(1)
		s.exec("SELECT pg_current_xact_id()") // a later one that is over: so it is late
		s.subscribe("a")
		s.publish(24)
		s.equal("at first", s.take("a", 5), sequence(2, 6))
		s.must(late.Commit(s.ctx))
		s.stays("while it is given time")
		s.exec("UPDATE pawl.partition SET over_at = over_at - interval '29 days' WHERE range_from = 0")
		s.stays("after 29 days")
		s.exec("UPDATE pawl.partition SET over_at = over_at - interval '1 day' WHERE range_from = 0")
		place := value[int64](s, "SELECT max(id) FROM pawl.subscription_batch")
		s.goes("after 30 days, with the next, which it does not hold any more, but the other does", 0)
		status := func(name string) outbox.Status {
			all, err := outbox.List(s.ctx, s.pool, 1, 10)
			s.must(err)
			return all[slices.IndexFunc(all, func(s outbox.Status) bool { return s.Name == name })]
		}
		if a := status("a"); a.Missed != 4 || a.MissedFrom != 1 || a.MissedTo != 9 || a.PausedAt == nil || a.PausedWhy == "" {
			s.must(fmt.Errorf("status: got %+v, want 4 missed from 1 to 9, 2 to 6 being delivered, and a pause", a))
		}
		if o := status("other"); o.Missed != 0 || o.PausedAt != nil {
			s.must(fmt.Errorf("status of one for which there was nothing: got %+v", o))
		}
		if _, err := outbox.ConsumeTx(s.ctx, s.pool, 1, "a", 0, 5, nil); !errors.Is(err, outbox.ErrPaused) {
			s.must(fmt.Errorf("consume: got %v, want ErrPaused", err))
		}
		_, err = s.pool.Exec(s.ctx, `SELECT pawl.outbox_settle(1::smallint, (SELECT id FROM pawl.subscription WHERE name = 'a'), 0::smallint, $1, 0::smallint, '0', '{}', 0, 0,
			NULL, NULL, NULL, NULL, NULL, NULL, NULL, 5, '{}', '{}', '{}', '{}', '{}', false, false, pawl.incarnate())`, place)
		if db.Code(err) != db.CodeLost {
			s.must(fmt.Errorf("a page that was being delivered is settled, as if all of it were there: got %v", err))
		}
		s.exec("UPDATE pawl.partition SET over_at = over_at - interval '30 days' WHERE range_from = 10")
		s.goes("the next, which it misses too", 10)
		if a := status("a"); a.Missed != 14 || a.MissedFrom != 1 || a.MissedTo != 19 {
			s.must(fmt.Errorf("status: got %+v, want 14 missed from 1 to 19", a))
		}
		if err := outbox.Resume(s.ctx, s.pool, 1, "a"); !errors.Is(err, outbox.ErrGap) || !strings.Contains(err.Error(), "14 events, number 1 to 19") {
			s.must(fmt.Errorf("resume: got %v, want ErrGap", err))
		}
		s.must(outbox.AcceptGap(s.ctx, s.pool, 1, "a"))
		s.publish(6)
		s.stays("it holds again")
		s.equal("what is kept", s.drain("a"), sequence(20, 31))
		if a := status("a"); a.Missed != 0 || a.PausedAt != nil {
			s.must(fmt.Errorf("status: got %+v, want none missed and no pause", a))
		}
	},
		without{"time", "outbox_holders", "p_over + o.hold <= clock_timestamp()", "true"},
		without{"the late", "subscription_miss", "e.xid = ANY (b.late) OR", ""},
		without{"what is settled", "subscription_miss", "e.id <= b.done", "false"},
		without{"topics", "subscription_miss", "e.topic = ANY (s.topics)", "true"},
		without{"the fence", "subscription_miss", "INSERT INTO pawl.subscription_batch", "IF v_n < 0 THEN RETURN 0; END IF; RETURN v_n; INSERT INTO pawl.subscription_batch"},
		without{"the refusal", "subscription_pause", "s.missed > 0 AND NOT p_accept", "false"},
	)
}

// A consumer at work, who holds his position's lock, is neither waited for nor passed over.
func TestRetentionBusy(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.subscribe("a")
		s.publish(12)
		s.keep("0", "0")
		_, err := outbox.ConsumeTx(s.ctx, s.pool, 1, "a", 0, 100, func(context.Context, pgx.Tx, []outbox.Event) error {
			s.stays("while its events are handled")
			return nil
		})
		s.must(err)
		s.exec("UPDATE pawl.subscription_batch SET late = '{}'")
		s.take("a", 1)
		s.goes("when they are", 0)
		if n := value[int64](s, "SELECT missed FROM pawl.subscription"); n != 0 {
			s.must(fmt.Errorf("%d events were missed", n))
		}
	}, without{"its lock", "outbox_leave", "WHERE NOT pg_try_advisory_xact_lock(pawl.subscription_key", "WHERE NOT pg_try_advisory_xact_lock(- pawl.subscription_key"})
}

// What Config says is stored when a coordinator runs, and found by all.
func TestRetentionConfig(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	c, err := coordinator.New(pool, coordinator.Config{OutboxKeep: 48 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	until(t, "it to be stored", func() bool {
		kept, err := outbox.Retention(t.Context(), pool, 1)
		return err == nil && kept.Keep == 48*time.Hour && kept.Hold == 30*24*time.Hour
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	_, err = coordinator.New(pool, coordinator.Config{OutboxKeep: 2 * time.Hour, OutboxHold: time.Hour})
	if err == nil || !strings.Contains(err.Error(), "OutboxHold 1h") {
		t.Errorf("a hold shorter than the keep: got %v", err)
	}
}

// Ranges of events hold a day of the recent rate, two million ids at least; ten million and two hours of it are there ahead, in ranges that are no larger for a burst.
func TestRetentionSizes(t *testing.T) {
	t.Parallel()
	prove(t, func(s *shop) {
		s.ranges(10, 1)
		ahead := func(what string, moved string, last, ids, size int64) {
			s.exec("UPDATE pawl.partition SET created_at = created_at - $1::text::interval WHERE parent = 'outbox_event'", moved)
			s.exec("SELECT setval('pawl.outbox_event_id', $1)", last)
			s.dropped()
			if got := value[int64](s, "SELECT max(range_to)::bigint FROM pawl.partition WHERE parent = 'outbox_event'") - last; got < ids || got > ids+size+10 {
				s.must(fmt.Errorf("%s: %d ids ahead, want %d and at most a range more", what, got, ids))
			}
			if got := value[int64](s, "SELECT max(range_to - range_from)::bigint FROM pawl.partition WHERE parent = 'outbox_event'"); got < size-size/10 || got > size+size/10 {
				s.must(fmt.Errorf("%s: ranges of %d, want %d", what, got, size))
			}
		}
		ahead("at first", "0", 1, 10_000_000, 2_000_000)
		ahead("a burst", "0", 5_000_000, 10_000_000, 5_000_000)
		ahead("nine million in a day", "1 day", 14_000_000, 10_000_000, 9_000_000)
		ahead("nine million in an hour", "1 hour", 23_000_000, 18_000_000, 17_280_000)
	},
		without{"what lies ahead", "partition_ahead", "greatest(v_rate * 7200, c_ahead * v_unit)", "v_rate * 7200"},
		without{"the day", "partition_ahead", "v_at, '1 day'", "v_at, '1 s'"},
	)
}
