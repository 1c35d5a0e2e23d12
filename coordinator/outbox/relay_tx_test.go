package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// writer is a TxSink that writes each event down, and does to some what its test says.
type writer struct {
	mu    sync.Mutex
	tries map[string]int
	bad   func(ctx context.Context, tx pgx.Tx, e outbox.Event, try int) error
}

func (w *writer) SendTx(ctx context.Context, tx pgx.Tx, events []outbox.Event) error {
	for _, e := range events {
		if _, err := tx.Exec(ctx, "INSERT INTO effect (key, n) VALUES ($1, $2)", e.Key, string(e.Payload)); err != nil {
			return err
		}
		w.mu.Lock()
		if len(events) == 1 {
			w.tries[e.Key+string(e.Payload)]++
		}
		try := w.tries[e.Key+string(e.Payload)]
		w.mu.Unlock()
		if w.bad != nil {
			if err := w.bad(ctx, tx, e, try); err != nil {
				return err
			}
		}
	}
	return nil
}

// What a TxSink writes happens once for each event, in order, whatever it does to its transaction; the events of other keys go on.
func TestTxSink(t *testing.T) {
	t.Parallel()
	oh := errors.New("oh")
	for name, bad := range map[string]func(context.Context, pgx.Tx, outbox.Event, int) error{
		"good":  nil,
		"error": func(context.Context, pgx.Tx, outbox.Event, int) error { return oh },
		"panic": func(context.Context, pgx.Tx, outbox.Event, int) error { panic("oh") },
		"sql": func(ctx context.Context, tx pgx.Tx, _ outbox.Event, _ int) error {
			_, _ = tx.Exec(ctx, "SELECT 1 / 0") // and says nothing of it
			return nil
		},
		"ends": func(ctx context.Context, tx pgx.Tx, _ outbox.Event, _ int) error { return tx.Commit(ctx) },
		"hangs": func(ctx context.Context, tx pgx.Tx, _ outbox.Event, _ int) error {
			_, err := tx.Exec(ctx, "SELECT pg_sleep(1000)")
			return err
		},
		"loses": func(ctx context.Context, tx pgx.Tx, _ outbox.Event, _ int) error {
			_, err := tx.Exec(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
			return err
		},
		"commit": func(ctx context.Context, tx pgx.Tx, _ outbox.Event, _ int) error {
			_, err := tx.Exec(ctx, "INSERT INTO late VALUES (1), (1)") // a constraint that is checked at COMMIT
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			exec(t, pool, `CREATE TABLE effect (id bigint GENERATED ALWAYS AS IDENTITY, key text, n int); CREATE TABLE late (n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED)`)
			w := &writer{tries: map[string]int{}}
			if bad != nil {
				w.bad = func(ctx context.Context, tx pgx.Tx, e outbox.Event, try int) error {
					if e.Key == "k1" && string(e.Payload) == "3" && try < 3 {
						return bad(ctx, tx, e, try)
					}
					return nil
				}
			}
			s := fast("tx", nil)
			s.Sink, s.SinkTx, s.Batch = nil, w, 4
			if name == "hangs" {
				s.Timeout = 1e8
			}
			if _, err := outbox.Create(t.Context(), pool, s); err != nil {
				t.Fatal(err)
			}
			for n := range 10 {
				for k := range 5 {
					publish(t, pool, event(fmt.Sprint("k", k), fmt.Sprint(n)))
				}
			}
			start(t, pool, s)
			until(t, pool, "SELECT count(*) = 50 FROM effect")
			until(t, pool, "SELECT count(*) = 0 FROM pawl.parked_event")
			if n := scan[int](t, pool, "SELECT count(DISTINCT (key, n)) FROM effect"); n != 50 {
				t.Errorf("%d events had an effect", n)
			}
			if n := scan[int](t, pool, "SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY id) AS before FROM effect) e WHERE n < before"); n != 0 {
				t.Errorf("%d effects out of order", n)
			}
		})
	}
}

// Two relays of a TxSink at once, whose connections are cut meanwhile: still once for each event.
func TestTxSinkTwice(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "CREATE TABLE effect (id bigint GENERATED ALWAYS AS IDENTITY, key text, n int)")
	s := fast("twice", nil)
	s.Sink, s.SinkTx, s.Page, s.Batch = nil, &writer{tries: map[string]int{}}, 10, 5
	start(t, pool, s)
	start(t, pool, s)
	for n := range 100 {
		publish(t, pool, event(fmt.Sprint("k", n%7), fmt.Sprint(n)))
		if n%25 == 0 {
			exec(t, pool, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
		}
	}
	until(t, pool, "SELECT count(*) >= 100 FROM effect")
	if n := scan[int](t, pool, "SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY id) AS before FROM effect) e WHERE n <= before"); n != 0 {
		t.Errorf("%d effects twice or out of order", n)
	}
}

// A TxSink that is down is left alone with no transaction open and no attempt counted; after each commit it is told.
func TestTxSinkDown(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	w := &hinting{asked: make(chan bool, 100), told: make(chan bool, 100)}
	w.down = true
	s := fast("down", nil)
	s.Sink, s.SinkTx = nil, w
	start(t, pool, s)
	publish(t, pool, event("k", "1"))
	for range 3 {
		<-w.asked
	}
	if n := scan[int](t, pool, "SELECT count(*) FROM pawl.parked_event"); n != 0 {
		t.Errorf("%d events parked", n)
	}
	w.mu.Lock()
	w.down = false
	w.mu.Unlock()
	<-w.told
}

type hinting struct {
	mu          sync.Mutex
	down        bool
	asked, told chan bool
}

func (h *hinting) SendTx(context.Context, pgx.Tx, []outbox.Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked <- true
	if h.down {
		return outbox.Unavailable(errors.New("down"))
	}
	return nil
}

func (h *hinting) Committed(context.Context, *pgxpool.Pool) { h.told <- true }

// An event whose transaction is lost each time is given up after its attempts, with nothing of it left; only its key waits.
func TestTxSinkDead(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "CREATE TABLE effect (id bigint GENERATED ALWAYS AS IDENTITY, key text, n int)")
	w := &writer{tries: map[string]int{}}
	w.bad = func(ctx context.Context, tx pgx.Tx, e outbox.Event, _ int) error {
		if e.Key == "k1" && string(e.Payload) == "1" {
			_, err := tx.Exec(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
			return err
		}
		return nil
	}
	s := fast("dead", nil)
	s.Sink, s.SinkTx, s.Attempts = nil, w, 3
	start(t, pool, s)
	for n := range 4 {
		publish(t, pool, event("k1", fmt.Sprint(n)), event("k2", fmt.Sprint(n)))
	}
	until(t, pool, "SELECT count(*) = 1 AND bool_and(attempt = 3) FROM pawl.parked_event WHERE dead_at IS NOT NULL")
	until(t, pool, "SELECT count(*) = 4 FROM effect WHERE key = 'k2'")
	until(t, pool, "SELECT count(*) = 3 FROM pawl.parked_event")
	if n := scan[int](t, pool, "SELECT count(*) FROM effect WHERE key = 'k1'"); n != 1 {
		t.Errorf("%d effects of the key that waits, want 1", n)
	}
	if n := w.tries["k11"]; n > 5 { // alone, and once for the page and each retry before that
		t.Errorf("%d tries", n)
	}
}

// A storm of failures of every kind, two relays, and an operator who pauses, resumes and replays: each event has its effect once, in the order of its key.
func TestTxSinkStorm(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "CREATE TABLE effect (id bigint GENERATED ALWAYS AS IDENTITY, key text, n int); CREATE TABLE late (n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED)")
	var mu sync.Mutex
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 4))
	roll := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return dice.IntN(n)
	}
	calm := false
	s := fast("storm", nil)
	s.Page, s.Batch, s.Attempts, s.Timeout = 20, 5, 2, time.Second
	s.Sink, s.SinkTx = nil, outbox.TxSinkFunc(func(ctx context.Context, tx pgx.Tx, events []outbox.Event) error {
		for _, e := range events {
			if _, err := tx.Exec(ctx, "INSERT INTO effect (key, n) VALUES ($1, $2)", e.Key, string(e.Payload)); err != nil {
				return err
			}
		}
		mu.Lock()
		over := calm
		mu.Unlock()
		if over {
			return nil
		}
		switch roll(40) {
		case 0, 1, 2:
			return errors.New("oh")
		case 3:
			panic("oh")
		case 4:
			_, _ = tx.Exec(ctx, "SELECT 1 / 0")
		case 5:
			_, err := tx.Exec(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
			return err
		case 6:
			_, err := tx.Exec(ctx, "INSERT INTO late VALUES (1), (1)")
			return err
		case 7:
			return outbox.Unavailable(errors.New("down"))
		case 8:
			return outbox.Permanent(errors.New("never"))
		}
		return nil
	})
	start(t, pool, s)
	start(t, pool, s)
	const keys, rounds = 6, 60
	for n := range rounds {
		for k := range keys {
			publish(t, pool, event(fmt.Sprint("k", k), fmt.Sprint(n)))
		}
		switch roll(6) {
		case 0:
			exec(t, pool, "SELECT pawl.subscription_pause(1::smallint, 'storm', 'test'), pg_sleep(0.02), pawl.subscription_pause(1::smallint, 'storm', NULL)")
		case 1:
			exec(t, pool, "SELECT pawl.subscription_replay(1::smallint, 'storm', NULL, false)")
		}
	}
	mu.Lock()
	calm = true
	mu.Unlock()
	for deadline := time.Now().Add(time.Minute); scan[int](t, pool, "SELECT count(*) FROM effect") < keys*rounds; exec(t, pool, "SELECT pg_sleep(0.05), pawl.subscription_replay(1::smallint, 'storm', NULL, false)") {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d effects", scan[int](t, pool, "SELECT count(*) FROM effect"), keys*rounds)
		}
	}
	until(t, pool, "SELECT count(*) = 0 FROM pawl.parked_event")
	if n := scan[int](t, pool, "SELECT count(*) - count(DISTINCT (key, n)) FROM effect"); n != 0 {
		t.Errorf("%d effects happened twice", n)
	}
	if n := scan[int](t, pool, "SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY id) AS before FROM effect) e WHERE n <= before"); n != 0 {
		t.Errorf("%d effects out of order", n)
	}
}
