package coordinator_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/outbox"
)

const (
	stormWriters = 8
	stormRounds  = 80 // transactions of each, of 2.5 events in the mean
)

// weather is a storm of writers, consumers and sweeps over tiny ranges.
type weather struct {
	*shop
	over, swept atomic.Bool
	mu          sync.Mutex
	committed   map[string]bool            // payloads
	ending      map[string]bool            // those whose transaction was about to end, or has
	early       map[string]bool            // those of them that the late subscription need not get
	got         map[string]map[string]bool // by subscription
	errs        []error
}

func (w *weather) fault(err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.errs = append(w.errs, err)
	}
}

func (w *weather) receive(subscription string, events []outbox.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		w.got[subscription][string(e.Payload)] = true
	}
}

// TestRetentionStorm: whatever writers, relays and operators do, no event leaves before every subscription has it, and in the end all full ranges have left.
func TestRetentionStorm(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	prove(t, storm, without{"subscriptions", "outbox_holders", "WHERE h.moved OR NOT h.passed", "WHERE h.moved"})
}

func storm(s *shop) {
	w := &weather{shop: s, committed: map[string]bool{}, ending: map[string]bool{}, got: map[string]map[string]bool{"relay": {}, "exact": {}, "late": {}}}
	s.ranges(50, 50)
	s.exec("CREATE TABLE effect (subscription text, payload text)")
	for _, sub := range []outbox.Subscription{{Name: "relay"}, {Name: "exact", Shards: 3}} {
		_, err := outbox.Create(s.ctx, s.pool, sub)
		s.must(err)
	}
	var writing, consuming, sweeping sync.WaitGroup
	defer func() {
		w.over.Store(true)
		w.swept.Store(true)
		writing.Wait()
		consuming.Wait()
		sweeping.Wait()
	}()
	for i := range stormWriters {
		writing.Go(func() { w.fault(w.write(i)) })
	}
	consuming.Go(w.relay)
	for shard := range 3 {
		consuming.Go(func() { w.consume("exact", shard) })
	}
	consuming.Go(func() {
		w.fault(w.arrive())
		w.consume("late", 0)
	})
	consuming.Go(w.rewind)
	for range 2 {
		sweeping.Go(w.sweep)
	}
	writing.Wait()
	left := value[int](s, "SELECT pawl.outbox_oldest()")
	w.over.Store(true)
	consuming.Wait()
	s.must(errors.Join(w.errs...))
	for _, shard := range []struct {
		of string
		n  int
	}{{"relay", 0}, {"exact", 0}, {"exact", 1}, {"exact", 2}, {"late", 0}} {
		for empty := 0; empty < 3; empty++ { // a batch may end with an empty page
			n, err := w.page(shard.of, shard.n, nil)
			s.must(err)
			if n > 0 {
				empty = 0
			}
		}
	}
	w.judge()
	until(s, "all full ranges to leave", func() bool {
		for _, shard := range []int{0, 1, 2} {
			_, err := w.page("exact", shard, nil)
			w.fault(err)
		}
		for _, name := range []string{"relay", "late"} {
			_, err := w.page(name, 0, nil)
			w.fault(err)
		}
		return value[bool](s, "SELECT pawl.outbox_oldest() + 50 > pawl.outbox_last() AND NOT EXISTS (SELECT FROM pawl.partition WHERE leaving_at IS NOT NULL)")
	})
	w.swept.Store(true)
	sweeping.Wait()
	s.must(errors.Join(w.errs...))
	s.Logf("%d events of %d ids; %d had left when the writers ended", len(w.committed), value[int](s, "SELECT pawl.outbox_last()"), left-1)
}

// judge compares what was committed with what came.
func (w *weather) judge() {
	parked, err := w.pool.Query(w.ctx, "SELECT convert_from(payload, 'UTF8') FROM pawl.parked_event")
	w.must(err)
	kept, err := pgx.CollectRows(parked, pgx.RowTo[string])
	w.must(err)
	for _, p := range kept {
		w.got["relay"][p] = true
	}
	rows, err := w.pool.Query(w.ctx, "SELECT subscription || ' ' || payload FROM effect ORDER BY 1")
	w.must(err)
	effects, err := pgx.CollectRows(rows, pgx.RowTo[string])
	w.must(err)
	if !slices.Equal(effects, slices.Compact(slices.Clone(effects))) {
		w.must(errors.New("an event had its effect twice"))
	}
	lost := map[string][]string{}
	for payload := range w.committed {
		for _, name := range []string{"exact", "late"} {
			if _, found := slices.BinarySearch(effects, name+" "+payload); !found && (name == "exact" || !w.early[payload]) {
				lost[name] = append(lost[name], payload)
			}
		}
		if !w.got["relay"][payload] {
			lost["relay"] = append(lost["relay"], payload)
		}
	}
	if len(lost) > 0 {
		w.must(fmt.Errorf("events lost of %d: %v", len(w.committed), lost))
	}
}

func (w *weather) write(n int) error {
	dice := rand.New(rand.NewPCG(uint64(n), 7))
	for round := range stormRounds {
		var payloads []string
		gid := fmt.Sprintf("storm %s %d %d", w.Name(), n, round)
		prepare, commit := dice.IntN(10) == 0, dice.IntN(8) != 0
		conn, err := w.pool.Acquire(w.ctx)
		if err != nil {
			return err
		}
		run := func(sql string, args ...any) {
			if err == nil {
				_, err = conn.Exec(w.ctx, sql, args...)
			}
		}
		run("BEGIN")
		if dice.IntN(3) == 0 {
			run("SELECT pg_current_xact_id(), pg_sleep($1)", dice.Float64()*0.02)
		}
		for i := range 1 + dice.IntN(4) {
			payload := fmt.Sprintf("%d-%d-%d", n, round, i)
			run("SELECT pawl.publish_event(1::smallint, 'order', $1, 't', convert_to($2, 'UTF8'), NULL, NULL, NULL)", fmt.Sprint("k", dice.IntN(10)), payload)
			payloads = append(payloads, payload)
		}
		switch dice.IntN(40) {
		case 0:
			run("SELECT pg_sleep(0.5)")
		case 1, 2, 3, 4, 5, 6, 7, 8:
			run("SELECT pg_sleep($1)", dice.Float64()*0.03)
		}
		w.mu.Lock()
		for _, p := range payloads {
			w.ending[p] = true
		}
		w.mu.Unlock()
		switch {
		case prepare:
			run("PREPARE TRANSACTION '" + gid + "'")
			run("SELECT pg_sleep($1)", dice.Float64()*0.2)
			if commit {
				run("COMMIT PREPARED '" + gid + "'")
			} else {
				run("ROLLBACK PREPARED '" + gid + "'")
			}
		case commit:
			run("COMMIT")
		default:
			run("ROLLBACK")
		}
		conn.Release()
		if err != nil {
			return err
		}
		if commit {
			w.mu.Lock()
			for _, p := range payloads {
				w.committed[p] = true
			}
			w.mu.Unlock()
		}
	}
	return nil
}

// relay relays, in turns that end anywhere, to a sink that fails now and then.
func (w *weather) relay() {
	dice := rand.New(rand.NewPCG(1, 8))
	var mu sync.Mutex
	s := outbox.Subscription{
		Name: "relay", Page: 20, Batch: 5, Parallel: 2, Attempts: 100, Backoff: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond, Breaker: 10 * time.Millisecond,
		Sink: outbox.SinkFunc(func(_ context.Context, events []outbox.Event) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			if dice.IntN(30) == 0 {
				return 0, errors.New("now and then")
			}
			w.receive("relay", events)
			return len(events), nil
		}),
	}
	for !w.over.Load() {
		ctx, stop := context.WithTimeout(w.ctx, 700*time.Millisecond)
		w.fault(outbox.Relay(ctx, w.pool, s, 0, nil))
		stop()
	}
}

func (w *weather) consume(name string, shard int) {
	dice := rand.New(rand.NewPCG(uint64(shard), 9))
	for !w.over.Load() {
		_, err := w.page(name, shard, dice)
		w.fault(err)
		if _, err := w.pool.Exec(w.ctx, "SELECT pg_sleep(0.01)"); err != nil {
			w.fault(err)
			return
		}
	}
}

var errUndone = errors.New("undone")

// page consumes a page; what comes to "relay" is received as its sink does, what comes to others has its effect in the database, if it is not undone.
func (w *weather) page(name string, shard int, dice *rand.Rand) (int, error) {
	n, err := outbox.ConsumeTx(w.ctx, w.pool, 1, name, shard, 5, func(ctx context.Context, tx pgx.Tx, events []outbox.Event) error {
		if name == "relay" {
			w.receive(name, events)
			return nil
		}
		for _, e := range events {
			if _, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1, convert_from($2, 'UTF8'))", name, e.Payload); err != nil {
				return err
			}
		}
		if dice != nil && dice.IntN(10) == 0 {
			return errUndone
		}
		return nil
	})
	if errors.Is(err, errUndone) {
		return n, nil
	}
	return n, err
}

// arrive makes a subscription in the middle, in a transaction that stays open for a while.
func (w *weather) arrive() error {
	return pgx.BeginFunc(w.ctx, w.pool, func(tx pgx.Tx) error {
		if _, err := w.pool.Exec(w.ctx, "SELECT pg_sleep(0.5)"); err != nil {
			return err
		}
		if _, err := outbox.Create(w.ctx, tx, outbox.Subscription{Name: "late"}); err != nil {
			return err
		}
		w.mu.Lock()
		w.early = maps.Clone(w.ending)
		w.mu.Unlock()
		_, err := tx.Exec(w.ctx, "SELECT pg_sleep(0.3)")
		return err
	})
}

// rewind moves the relay's position back now and then.
func (w *weather) rewind() {
	for !w.over.Load() {
		for _, sql := range []string{"SELECT pg_sleep(1.3)", "SELECT pawl.subscription_rewind(1::smallint, 'relay', greatest(pawl.outbox_last() - 60, 1))"} {
			_, err := w.pool.Exec(w.ctx, sql)
			w.fault(err)
		}
	}
}

func (w *weather) sweep() {
	c := newCoordinator(w, w.pool)
	for !w.swept.Load() {
		_, err := c.Sweep(w.ctx, coordinator.SweepPartitions)
		w.fault(err)
	}
}
