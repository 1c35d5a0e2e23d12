package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/db/devpg"
)

// tracer calls after each query whose text holds of, once.
type tracer struct {
	of    string
	after func()
	once  sync.Once
}

type tracedKey struct{}

func (x *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, tracedKey{}, strings.Contains(q.SQL, x.of))
}

func (x *tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if ctx.Value(tracedKey{}) == true {
		x.once.Do(x.after)
	}
}

// traced is another pool to the same database, which calls after the first query whose text holds of.
func traced(t *testing.T, pool *pgxpool.Pool, of string, after func()) *pgxpool.Pool {
	t.Helper()
	conf := pool.Config()
	conf.ConnConfig.Tracer = &tracer{of: of, after: after}
	out, err := pgxpool.NewWithConfig(context.Background(), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(out.Close)
	return out
}

// firsts are the payloads of a key in the order in which each arrived first.
func firsts(got []outbox.Event, key string) []string {
	var out []string
	for _, e := range got {
		if e.Key == key && !slices.Contains(out, string(e.Payload)) {
			out = append(out, string(e.Payload))
		}
	}
	return out
}

func has(got []outbox.Event, key, text string) bool {
	return slices.ContainsFunc(got, func(e outbox.Event) bool { return e.Key == key && string(e.Payload) == text })
}

// Snapshots that a relay took before a crash name transactions that the server forgets and numbers again: a batch that was open over the crash must not be settled.
func TestAttackCrashReusesXIDs(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, devpg.Config{Settings: map[string]string{"wal_writer_delay": "10s", "bgwriter_delay": "10s"}})
	pool, err := pgxpool.New(context.Background(), server.URL(dbtest.PrivateDatabase))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	r := newReceiver()
	calls, hold := make(chan struct{}, 1000), make(chan struct{})
	r.failing(func(_ context.Context, e outbox.Event) error {
		if string(e.Payload) == "1" {
			calls <- struct{}{}
			<-hold
		}
		return nil
	})
	s := fast("crash", r)
	start(t, pool, s)
	release := sync.OnceFunc(func() { close(hold) })
	t.Cleanup(release)
	publish(t, pool, event("k", "0"))
	r.waitN(t, 1)
	until(t, pool, "SELECT max(events) = 1 FROM pawl.subscription_batch")
	exec(t, pool, "SELECT pawl.subscription_pause(1::smallint, 'crash', 'test')")
	exec(t, pool, "SELECT pg_sleep(2.2)")                                     // until the relay knows
	publish(t, pool, event("k", "1"))                                         // flushed, with all before it
	conn, err := pgx.Connect(t.Context(), server.URL(dbtest.PrivateDatabase)) // what it does is not
	if err != nil {
		t.Fatal(err)
	}
	exec(t, conn, "SET synchronous_commit = off")
	var lost int64
	for range 5 { // a page of the log that is full would be written
		exec(t, conn, "BEGIN")
		lost = scan[int64](t, conn, "SELECT pg_current_xact_id()::text::bigint")
		exec(t, conn, "ROLLBACK")
	}
	exec(t, conn, "SELECT pawl.subscription_pause(1::smallint, 'crash', NULL)")
	<-calls
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err = devpg.Start(context.Background(), server.Config()); err != nil {
		t.Fatal(err)
	}
	after, err := pgxpool.New(context.Background(), server.URL(dbtest.PrivateDatabase))
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	exec(t, after, "SELECT pawl.subscription_pause(1::smallint, 'crash', NULL)") // undone by the crash
	if next := scan[int64](t, after, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"); next > lost {
		t.Fatalf("the next transaction is %d, after %d: nothing was lost, so nothing is proved", next, lost)
	}
	publish(t, after, event("k", "2"))
	exec(t, after, "SELECT pg_sleep(2.5)") // for pools replace connections that have been idle for a second without a word
	r.failing(nil)
	release()
	publish(t, after, event("k", "3"))
	r.wait(t, func(got []outbox.Event) bool { return has(got, "k", "1") })
	for range 100 { // beyond what was lost
		exec(t, after, "SELECT pg_current_xact_id()")
	}
	publish(t, after, event("k", "4"))
	got := r.wait(t, func(got []outbox.Event) bool { return has(got, "k", "4") })
	if order := strings.Join(firsts(got, "k"), " "); order != "0 1 2 3 4" {
		t.Errorf("got %s", order)
	}
}

// A key is drained between the reading and the settling of a page with a later event of it: that one is parked, and those after it wait behind it.
func TestAttackDrainedWhilePaging(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	var (
		mu       sync.Mutex
		fail     = true
		hold     = make(chan struct{})
		holding  = make(chan struct{})
		onceHold sync.Once
	)
	r.failing(func(_ context.Context, e outbox.Event) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case e.Key == "k" && string(e.Payload) == "1" && fail:
			return errors.New("not yet")
		case e.Key == "slow":
			mu.Unlock()
			onceHold.Do(func() { close(holding) })
			<-hold
			mu.Lock()
		case e.Key == "k" && string(e.Payload) == "2" && e.Attempt < 4: // it takes a while
			return errors.New("not yet")
		}
		return nil
	})
	s := fast("drained", r)
	s.Backoff, s.BackoffMax = 200*time.Millisecond, 400*time.Millisecond
	start(t, pool, s)
	publish(t, pool, event("k", "1"))
	until(t, pool, "SELECT count(*) = 1 FROM pawl.parked_event")
	publish(t, pool, event("slow", "1"), event("k", "2")) // k waits; the page is held up by slow
	<-holding
	mu.Lock()
	fail = false
	mu.Unlock()
	until(t, pool, "SELECT count(*) = 0 FROM pawl.parked_event") // k is drained, and its second event is about to be parked
	close(hold)
	until(t, pool, "SELECT count(*) = 1 FROM pawl.parked_event")
	publish(t, pool, event("k", "3"))
	got := r.wait(t, func(got []outbox.Event) bool { return has(got, "k", "2") && has(got, "k", "3") })
	if order := strings.Join(firsts(got, "k"), " "); order != "1 2 3" {
		t.Errorf("k came as %s", order)
	}
}

// What the old relay parks while the new one starts is known to that.
func TestAttackParkedWhileStarting(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	hold, holding := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.failing(func(_ context.Context, e outbox.Event) error {
		if e.Key == "k" && string(e.Payload) == "1" && e.Attempt < 5 {
			once.Do(func() { close(holding) })
			<-hold
			return errors.New("not yet")
		}
		return nil
	})
	s := fast("starting", r)
	s.Backoff, s.BackoffMax = 200*time.Millisecond, 400*time.Millisecond
	stop := start(t, pool, s)
	publish(t, pool, event("k", "1"))
	<-holding
	second := traced(t, pool, "-- name: ListParkedKeys", func() { // the new one has read which keys wait
		close(hold)
		until(t, pool, "SELECT count(*) = 1 FROM pawl.parked_event")
		publish(t, pool, event("k", "2"))
		stop()
	})
	start(t, second, s)
	got := r.wait(t, func(got []outbox.Event) bool { return has(got, "k", "1") && has(got, "k", "2") })
	if order := strings.Join(firsts(got, "k"), " "); order != "1 2" {
		t.Errorf("k came as %s", order)
	}
}

// The text of an error is kept, whatever bytes it has.
func TestAttackErrorText(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"nul": "oh\x00", "not UTF-8": "oh \xff", "cut": "a" + strings.Repeat("ü", 2000)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			r := newReceiver()
			calls := make(chan struct{}, 1000)
			r.failing(func(_ context.Context, e outbox.Event) error {
				if e.Key == "bad" {
					calls <- struct{}{}
					return errors.New(text)
				}
				return nil
			})
			s := fast("text", r)
			s.Attempts = 3
			start(t, pool, s)
			publish(t, pool, event("bad", "1"))
			for range 3 {
				<-calls
			}
			publish(t, pool, event("good", "1"))
			r.waitN(t, 1)
			until(t, pool, "SELECT count(*) = 1 FROM pawl.parked_event WHERE dead_at IS NOT NULL")
		})
	}
}

// Many poison events one after another do not stop the others for good.
func TestAttackPoisonStopsAll(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	var mu sync.Mutex
	calls := 0
	r.failing(func(_ context.Context, e outbox.Event) error {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if calls == 300 {
			r.mu.Lock()
			select {
			case r.news <- struct{}{}:
			default:
			}
			r.mu.Unlock()
		}
		if strings.HasPrefix(e.Key, "bad") {
			return errors.New("cannot")
		}
		return nil
	})
	s := fast("poison", r)
	s.Parallel, s.Attempts = 1, 3
	start(t, pool, s)
	var events []outbox.Event
	for i := range 40 {
		events = append(events, event(fmt.Sprint("bad", i), "1"))
	}
	publish(t, pool, append(events, event("good", "1"))...)
	r.wait(t, func(got []outbox.Event) bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) > 0 || calls >= 300
	})
	if len(r.events()) == 0 {
		n := scan[int](t, pool, "SELECT count(*) FROM pawl.parked_event")
		t.Errorf("after 300 calls the good event has not been tried; %d of 40 are parked", n)
	}
}

// A sink that appends to the slice that it was given does not change what is delivered.
func TestAttackSinkAppends(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	s := fast("appends", outbox.SinkFunc(func(ctx context.Context, events []outbox.Event) (int, error) {
		n, err := r.Send(ctx, events)
		_ = append(events, event("end of batch", ""))
		return n, err
	}))
	s.Batch, s.Parallel = 1, 1
	start(t, pool, s)
	publish(t, pool, event("a", "1"), event("b", "2"), event("c", "3"))
	if got := texts(r.waitN(t, 3)); got != "a:1 b:2 c:3" {
		t.Errorf("got %s", got)
	}
}

// A paused subscription tries no parked events either.
func TestAttackPausedParked(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	r.failing(func(context.Context, outbox.Event) error { return errors.New("not yet") })
	s := fast("paused", r)
	s.Attempts = 1000
	start(t, pool, s)
	publish(t, pool, event("k", "1"))
	until(t, pool, "SELECT count(*) = 1 FROM pawl.parked_event")
	exec(t, pool, "SELECT pawl.subscription_pause(1::smallint, 'paused', 'test')")
	exec(t, pool, "SELECT pg_sleep(2.2)") // it looks once a second
	at := scan[int](t, pool, "SELECT attempt FROM pawl.parked_event")
	exec(t, pool, "SELECT pg_sleep(1)")
	if now := scan[int](t, pool, "SELECT attempt FROM pawl.parked_event"); now != at {
		t.Errorf("paused, and tried %d times more", now-at)
	}
}

// What the transaction that makes a subscription publishes itself is delivered.
func TestAttackCreateAndPublish(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	exec(t, tx, "SELECT pg_current_xact_id()")
	exec(t, pool, "SELECT pg_current_xact_id()") // another one, which ends
	if _, err := outbox.Create(t.Context(), tx, outbox.Subscription{Name: "new"}); err != nil {
		t.Fatal(err)
	}
	if err := outbox.Publish(t.Context(), tx, event("k", "1")); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish(t, pool, event("k", "2"))
	if got := take(t, pool, "new"); got != "1 2" {
		t.Errorf("got %q", got)
	}
}

// take consumes all that waits and returns the payloads.
func take(t *testing.T, pool *pgxpool.Pool, name string) string {
	t.Helper()
	var out []string
	for {
		n, err := outbox.ConsumeTx(t.Context(), pool, 1, name, 0, 100, func(_ context.Context, _ pgx.Tx, got []outbox.Event) error {
			for _, e := range got {
				out = append(out, string(e.Payload))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return strings.Join(out, " ")
		}
	}
}

// Rewound while a key is parked: what comes again comes in its order, the parked ones where they belong.
func TestAttackRewindParked(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	r.failing(func(_ context.Context, e outbox.Event) error {
		if string(e.Payload) == "3" {
			return errors.New("not yet")
		}
		return nil
	})
	s := fast("rewound", r)
	s.Backoff, s.BackoffMax = 50*time.Millisecond, 50*time.Millisecond
	start(t, pool, s)
	for i := range 5 {
		publish(t, pool, event("k", fmt.Sprint(i)))
	}
	until(t, pool, "SELECT count(*) = 2 FROM pawl.parked_event")
	first := r.waitN(t, 3)[0].Seq
	n := len(r.events())
	exec(t, pool, "SELECT pawl.subscription_rewind(1::smallint, 'rewound', $1)", first)
	publish(t, pool, event("k", "5"))
	until(t, pool, "SELECT max(events) >= 10 FROM pawl.subscription_batch")
	r.failing(nil)
	until(t, pool, "SELECT count(*) = 0 FROM pawl.parked_event")
	got := r.events()[n:]
	if order := strings.Join(firsts(got, "k"), " "); order != "0 1 2 3 4 5" {
		t.Errorf("after the rewind: %s", texts(got))
	}
}

// rebased makes the outbox look moved, and takes it home.
func rebased(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, "UPDATE pawl.outbox SET cluster = cluster + 1")
	exec(t, pool, "SELECT pawl.rebase(1::smallint)")
}

// settled consumes until the position is in the newest epoch and nothing is left.
func settled(t *testing.T, pool *pgxpool.Pool, name string) string {
	t.Helper()
	var out []string
	for range 10 {
		if text := take(t, pool, name); text != "" {
			out = append(out, text)
		}
	}
	return strings.Join(out, " ")
}

// A rewind to a number of which no event is kept goes back to the next one, also to one of an earlier epoch.
func TestAttackRewindToGap(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "gap"}); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.Publish(t.Context(), tx, event("k", "rolled back")); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish(t, pool, event("k", "1"))
	rebased(t, pool)
	publish(t, pool, event("k", "2"))
	if got := settled(t, pool, "gap"); got != "1 2" {
		t.Fatalf("got %q", got)
	}
	exec(t, pool, "SELECT pawl.subscription_rewind(1::smallint, 'gap', 1)")
	if got := settled(t, pool, "gap"); got != "1 2" {
		t.Errorf("after the rewind: got %q", got)
	}
}

// A rewind to an event that is ahead skips nothing, as within an epoch.
func TestAttackRewindAhead(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "ahead"}); err != nil {
		t.Fatal(err)
	}
	publish(t, pool, event("k", "1"))
	rebased(t, pool)
	publish(t, pool, event("k", "2"))
	exec(t, pool, "SELECT pawl.subscription_rewind(1::smallint, 'ahead', (SELECT max(id) FROM pawl.outbox_event))")
	if got := settled(t, pool, "ahead"); got != "1 2" {
		t.Errorf("got %q", got)
	}
}

// 0 means that none is waiting, also right after a batch that ended with a full page.
func TestAttackConsumeNone(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "none"}); err != nil {
		t.Fatal(err)
	}
	publish(t, pool, event("k", "1"), event("k", "2"))
	consume := func() int {
		n, err := outbox.ConsumeTx(t.Context(), pool, 1, "none", 0, 2, func(context.Context, pgx.Tx, []outbox.Event) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := consume(); n != 2 {
		t.Errorf("got %d", n)
	}
	publish(t, pool, event("k", "3"))
	if n := consume(); n != 1 {
		t.Errorf("got %d while one is waiting", n)
	}
}

// Savepoints (more than a snapshot lists), prepared transactions that are committed much later, with ids drawn long before: all arrive, once each, and after what they waited for.
func TestAttackLateTransactions(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, name := range []string{"late", "late2"} {
		if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	nested, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer nested.Rollback(context.Background())
	for i := range 100 {
		inner, err := nested.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := outbox.Publish(t.Context(), inner, event("n", fmt.Sprint("n", i))); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			err = inner.Commit(t.Context())
		} else {
			err = inner.Rollback(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	name := scan[string](t, pool, "SELECT current_database()")
	prepared, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exec(t, prepared, "BEGIN")
	exec(t, prepared, "SELECT pawl.publish(1::smallint, 'order', 'p', 't', '1')")
	exec(t, prepared, "PREPARE TRANSACTION '"+name+"'")
	prepared.Release()
	var got []string
	for i := range 20 { // the position moves far beyond both
		publish(t, pool, event("k", fmt.Sprint("k", i)))
		for range 3 {
			if text := take(t, pool, "late"); text != "" {
				got = append(got, text)
			}
		}
	}
	if n := len(strings.Fields(strings.Join(got, " "))); n != 20 {
		t.Errorf("got %d events of 20: %v", n, got)
	}
	exec(t, pool, "COMMIT PREPARED '"+name+"'")
	if err := nested.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"late", "late2"} {
		text := take(t, pool, name)
		want := 51
		if name == "late2" {
			want = 71
		}
		if n := len(strings.Fields(text)); n != want || !strings.Contains(text, "n0 n2 n4") {
			t.Errorf("%s: got %d events: %s", name, n, text)
		}
		if text := take(t, pool, name); text != "" {
			t.Errorf("%s: again %s", name, text)
		}
	}
}

// As many events as may be are parked at once: settling them ends within its time.
func TestAttackParkMany(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	const many = 10_000
	exec(t, pool, "SELECT pawl.outbox_create(1::smallint)")
	for range many / 1000 {
		exec(t, pool, "SELECT pawl.publish_many(1::smallint, array_agg('t'::text), array_agg(gen_random_uuid()::text), array_agg('t'::text), array_agg('x'::bytea), array_fill(NULL::text, '{1000}'), array_fill(NULL::json, '{1000}'), array_fill(NULL::uuid, '{1000}')) FROM generate_series(1, 1000)")
	}
	r := newReceiver()
	r.failing(func(context.Context, outbox.Event) error { return outbox.Permanent(errors.New("never")) })
	s := fast("many", r)
	s.Page, s.ParkedMax = many, 2*many
	began := time.Now()
	start(t, pool, s)
	for !scan[bool](t, pool, "SELECT max(events) >= $1 FROM pawl.subscription_batch", many) {
		if time.Since(began) > 40*time.Second {
			t.Fatalf("not settled after %s", time.Since(began))
		}
		exec(t, pool, "SELECT pg_sleep(0.1)")
	}
	t.Logf("settled after %s", time.Since(began))
}

// A page reads about as many rows as it gives, however many were published by one late transaction, and whatever was planned and counted before.
func TestAttackPageReads(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	read := func(seen, late string, floor, done int) (rows, reads int) {
		exec(t, conn, "BEGIN")
		defer exec(t, conn, "COMMIT")
		sql := `SELECT count(*) FROM pawl.outbox_page(1::smallint, NULL, 1, 0, 0::smallint, $1::text::xid8, ('{' || $2::text || '}')::xid8[], $3::bigint, '99999999', '{}', 100000, $4::bigint, 100)`
		const count = "SELECT coalesce(sum(idx_tup_fetch + seq_tup_read), 0)::int FROM pg_stat_xact_user_tables WHERE relname LIKE 'outbox_event%'"
		before := scan[int](t, conn, count)
		rows = scan[int](t, conn, sql, seen, late, floor, done)
		return rows, scan[int](t, conn, count) - before
	}
	for range 6 { // the plan is one for an empty table
		read("0", "", 0, 0)
	}
	exec(t, pool, `INSERT INTO pawl.outbox_event (id, xid, created_at, event_id, key_hash, ns, epoch, topic, key, type, payload)
		SELECT nextval('pawl.outbox_event_id'), '100000', now(), gen_random_uuid(), hashtext(i::text), 1, 0, 't', i::text, 't', 'x' FROM generate_series(1, 100000) i`)
	for _, counted := range []bool{false, true} {
		if counted {
			exec(t, pool, "VACUUM ANALYZE pawl.outbox_event")
		}
		for _, c := range []struct {
			what, seen, late string
			floor, done      int
			rows             int
		}{
			{"new, at the front", "100000", "", 0, 0, 100},
			{"new, at the end", "100000", "", 0, 99_900, 100},
			{"late, at the front", "100001", "100000", 100_000, 0, 100},
			{"late, at the end", "100001", "100000", 100_000, 99_900, 100},
			{"late, all above the floor", "100001", "100000", 0, 0, 100},
			{"ten late ones without events", "100020", "100001,100002,100003,100004,100005,100006,100007,100008,100009,100010", 100_000, 0, 0},
		} {
			if rows, reads := read(c.seen, c.late, c.floor, c.done); rows != c.rows || reads > 1000 {
				t.Errorf("%s, counted %t: %d rows of %d read", c.what, counted, rows, reads)
			}
		}
	}
}

// Large payloads do not fill the memory: a page has a bound of bytes, too.
func TestAttackMemory(t *testing.T) {
	pool := dbtest.New(t)
	const events, bound = 200, 100 << 20
	for range events {
		exec(t, pool, `SELECT pawl.publish(1::smallint, 't', gen_random_uuid()::text, 't', ('"' || repeat('x', 1000000) || '"')::json)`)
	}
	var most atomic.Uint64
	n := make(chan struct{}, events)
	s := fast("memory", outbox.SinkFunc(func(_ context.Context, got []outbox.Event) (int, error) {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		most.Store(max(most.Load(), m.HeapAlloc))
		for range got {
			n <- struct{}{}
		}
		return len(got), nil
	}))
	start(t, pool, s)
	for range events {
		<-n
	}
	if most.Load() > bound {
		t.Errorf("%d MB were in use at %d events of 1 MB", most.Load()>>20, events)
	}
}

// asked counts queries.
type asked struct{ n atomic.Int64 }

func (a *asked) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	a.n.Add(1)
	return ctx
}

func (a *asked) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A relay with nothing to do asks for events every PollMax and for little else: when it has started, and when it keeps one that was given up.
func TestAttackIdle(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	conf := pool.Config()
	var a asked
	conf.ConnConfig.Tracer = &a
	own, err := pgxpool.NewWithConfig(context.Background(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	r := newReceiver()
	r.failing(func(context.Context, outbox.Event) error { return outbox.Permanent(errors.New("never")) })
	stop := start(t, own, fast("idle", r))
	defer stop()
	idle := func(what string) {
		exec(t, pool, "SELECT pg_sleep(1)")
		a.n.Store(0)
		exec(t, pool, "SELECT pg_sleep(2)")
		if n := a.n.Load(); n > 40 { // 20 times for events
			t.Errorf("%s: %d queries in 2 s", what, n)
		}
	}
	idle("started")
	publish(t, pool, event("k", "1"))
	until(t, pool, "SELECT count(*) = 1 FROM pawl.parked_event WHERE dead_at IS NOT NULL")
	idle("with one given up")
}

// Over crashes of Postgres under load, with prepared transactions among the writers: nothing is lost, each key keeps its order, and a consumer in the database has each effect once.
func TestAttackCrashes(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, devpg.Config{Settings: map[string]string{"wal_writer_delay": "10s"}})
	open := func() *pgxpool.Pool {
		pool, err := pgxpool.New(context.Background(), server.URL(dbtest.PrivateDatabase))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}
	pool := open()
	exec(t, pool, "CREATE TABLE counter (key text PRIMARY KEY, n int NOT NULL); CREATE TABLE counted (key text, n int); INSERT INTO counter SELECT 'k' || i, 0 FROM generate_series(0, 4) i")
	exec(t, pool, "CREATE TABLE effect (event text, key text, payload text, at bigint GENERATED ALWAYS AS IDENTITY)")
	r := newReceiver()
	s := fast("crashes", r)
	s.Page, s.Batch = 20, 5
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "own"}); err != nil {
		t.Fatal(err)
	}
	start(t, pool, s)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	defer cancel()
	var group sync.WaitGroup
	for w := range 6 {
		own := open()
		group.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(w), 7))
			for i := 0; ctx.Err() == nil; i++ {
				if dice.IntN(5) > 0 {
					_ = write(ctx, own, dice)
					continue
				}
				conn, err := own.Acquire(ctx)
				if err != nil {
					continue
				}
				key := fmt.Sprintf("k%d", dice.IntN(5))
				for _, sql := range []string{
					"BEGIN", fmt.Sprintf("WITH c AS (UPDATE counter SET n = n + 1 WHERE key = '%s' RETURNING n) INSERT INTO counted SELECT '%s', n FROM c", key, key),
					fmt.Sprintf("SELECT pawl.publish_event(1::smallint, 'order', '%s', 't', (SELECT convert_to(n::text, 'UTF8') FROM counter WHERE key = '%s'), NULL, NULL, NULL)", key, key),
					fmt.Sprintf("PREPARE TRANSACTION 'p%d.%d'", w, i), fmt.Sprintf("SELECT pg_sleep(%f)", dice.Float64()*0.02), fmt.Sprintf("COMMIT PREPARED 'p%d.%d'", w, i),
				} {
					if _, err = conn.Exec(ctx, sql); err != nil {
						break
					}
				}
				conn.Release()
			}
		})
	}
	consumer := open()
	consume := func(ctx context.Context, pool *pgxpool.Pool) (int, error) {
		return outbox.ConsumeTx(ctx, pool, 1, "own", 0, 13, func(ctx context.Context, tx pgx.Tx, got []outbox.Event) error {
			for _, e := range got {
				if _, err := tx.Exec(ctx, "INSERT INTO effect (event, key, payload) VALUES ($1, $2, $3)", e.ID, e.Key, string(e.Payload)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() {
		for ctx.Err() == nil {
			_, _ = consume(ctx, consumer)
		}
	})
	for range 4 {
		n := len(r.events())
		r.waitN(t, n+150)
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := devpg.Start(context.Background(), server.Config()); err != nil {
			t.Fatal(err)
		}
		after := open()
		rows, err := after.Query(t.Context(), "SELECT gid FROM pg_prepared_xacts")
		if err != nil {
			t.Fatal(err)
		}
		gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, gid := range gids { // they hold their keys; some are of writers that have come back, and end them
			if _, err := after.Exec(t.Context(), "COMMIT PREPARED '"+gid+"'"); err != nil && db.Code(err) != "42704" {
				t.Fatal(err)
			}
		}
	}
	cancel()
	group.Wait()
	after := open()
	rows, err := after.Query(t.Context(), "SELECT gid FROM pg_prepared_xacts")
	if err != nil {
		t.Fatal(err)
	}
	gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, gid := range gids {
		exec(t, after, "COMMIT PREPARED '"+gid+"'")
	}
	n := scan[int](t, after, "SELECT count(*) FROM counted")
	got := r.wait(t, func(got []outbox.Event) bool {
		ids := map[string]bool{}
		for _, e := range got {
			ids[e.ID] = true
		}
		return len(ids) >= n
	})
	if inversions, missing := history(t, after, got); inversions != 0 || missing != 0 {
		t.Errorf("relayed: %d inversions, %d missing of %d", inversions, missing, n)
	}
	for left := 3; left > 0; {
		did, err := consume(t.Context(), after)
		if err != nil {
			t.Fatal(err)
		}
		if did == 0 {
			left--
		}
	}
	effects, err := after.Query(t.Context(), "SELECT event, key, payload FROM effect ORDER BY at")
	if err != nil {
		t.Fatal(err)
	}
	own, err := pgx.CollectRows(effects, func(row pgx.CollectableRow) (outbox.Event, error) {
		var e outbox.Event
		var payload string
		err := row.Scan(&e.ID, &e.Key, &payload)
		e.Payload = []byte(payload)
		return e, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if inversions, missing := history(t, after, own); inversions != 0 || missing != 0 || len(own) != n {
		t.Errorf("consumed: %d inversions, %d missing, %d effects of %d", inversions, missing, len(own), n)
	}
	t.Logf("%d events", n)
}

// A receiver that refuses at random, also after it has taken an event, or panics, or hangs; relays that come and go: each key arrives whole, first arrivals in its order.
func TestAttackParkedStorm(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	var mu sync.Mutex
	dice := rand.New(rand.NewPCG(3, 3))
	roll := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return dice.IntN(n)
	}
	s := fast("storm", outbox.SinkFunc(func(ctx context.Context, events []outbox.Event) (int, error) {
		switch cut := roll(len(events) + 1); roll(8) {
		case 0: // some are taken
			n, _ := r.Send(ctx, events[:cut])
			if n == len(events) {
				return n, nil
			}
			return n, errors.New("some")
		case 1: // all are taken, the reply is lost
			_, _ = r.Send(ctx, events)
			return 0, errors.New("lost")
		case 2:
			_, _ = r.Send(ctx, events[:cut])
			panic("oh")
		case 3:
			<-ctx.Done()
			return 0, ctx.Err()
		case 4:
			return 0, outbox.Unavailable(errors.New("down"), time.Millisecond)
		default:
			return r.Send(ctx, events)
		}
	}))
	s.Timeout, s.Attempts, s.Page, s.Batch, s.Parallel = 20*time.Millisecond, 10_000, 20, 4, 4
	s.Backoff, s.BackoffMax, s.Breaker = 2*time.Millisecond, 50*time.Millisecond, 2*time.Millisecond
	if _, err := outbox.Create(t.Context(), pool, s); err != nil {
		t.Fatal(err)
	}
	written := make(chan struct{})
	go func() { defer close(written); storm(t, pool, 5, 80) }()
	arrived := func() int {
		ids := map[string]bool{}
		for _, e := range r.events() {
			ids[e.ID] = true
		}
		return len(ids)
	}
	stop := start(t, pool, s)
	for over := false; !over; {
		exec(t, pool, "SELECT pg_sleep(0.7)")
		select {
		case <-written:
			over = arrived() >= scan[int](t, pool, "SELECT count(*) FROM counted")
		default:
		}
		next := start(t, pool, s) // while the old one still runs
		stop()
		stop = next
	}
	until(t, pool, "SELECT count(*) = 0 FROM pawl.parked_event")
	if inversions, missing := history(t, pool, r.events()); inversions != 0 || missing != 0 {
		t.Errorf("%d inversions, %d missing", inversions, missing)
	}
}

// A sink that is slow but takes one event after another, as far as it gets in its time, parks none.
func TestAttackSlowSink(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	r.failing(func(ctx context.Context, _ outbox.Event) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
			return nil
		}
	})
	s := fast("slow", r)
	s.Timeout, s.Parallel = 110*time.Millisecond, 1
	start(t, pool, s)
	var events []outbox.Event
	for i := range 30 {
		events = append(events, event(fmt.Sprint("k", i), ""))
	}
	publish(t, pool, events...)
	r.waitN(t, 30)
	for _, e := range r.events() {
		if e.Attempt > 1 {
			t.Errorf("%s was tried %d times", e.Key, e.Attempt)
		}
	}
}

// A subscription that begins with what commits from now on reads nothing of what was published before.
func TestAttackCreateReads(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "SELECT pawl.outbox_create(1::smallint)")
	exec(t, pool, `INSERT INTO pawl.outbox_event (id, xid, created_at, event_id, key_hash, ns, epoch, topic, key, type, payload)
		SELECT nextval('pawl.outbox_event_id'), pg_current_xact_id(), now(), gen_random_uuid(), hashtext(i::text), 1, 0, 't', i::text, 't', 'x' FROM generate_series(1, 50000) i`)
	own, err := pgxpool.New(t.Context(), pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	const count = "SELECT coalesce(sum(idx_tup_fetch + seq_tup_read), 0)::int FROM pg_stat_user_tables WHERE relname LIKE 'outbox_event%'"
	if _, err := outbox.Create(t.Context(), own, outbox.Subscription{Name: "new"}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := take(t, own, "new"); got != "" {
			t.Errorf("got %q", got)
		}
	}
	own.Close() // its statistics come when it ends
	until(t, pool, "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'")
	if n := scan[int](t, pool, count); n > 1000 {
		t.Errorf("%d rows read", n)
	}
}

// One event whose receiver always says that it is down, while it takes all others, does not stop those.
func TestAttackOneUnavailable(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	calls := make(chan struct{}, 10_000)
	r.failing(func(_ context.Context, e outbox.Event) error {
		if e.Key == "bad" {
			calls <- struct{}{}
			return outbox.Unavailable(errors.New("503"))
		}
		return nil
	})
	s := fast("one", r)
	s.Breaker, s.BackoffMax, s.Backoff = time.Millisecond, 10*time.Millisecond, time.Millisecond
	start(t, pool, s)
	publish(t, pool, event("bad", "1"), event("good", "1"))
	r.waitN(t, 1)
	publish(t, pool, event("good", "2"))
	for range 200 {
		select {
		case <-r.news:
			if has(r.events(), "good", "2") {
				return
			}
		case <-calls:
		}
	}
	if !has(r.events(), "good", "2") {
		t.Error("after 200 tries of the bad event, good events wait")
	}
}

// A consumer that is called often, while only events of others come, does not append a position each time.
func TestAttackConsumePositions(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "few", Topics: []string{"stock"}}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 50 {
		publish(t, pool, event("k", ""))
		if got := take(t, pool, "few"); got != "" {
			t.Errorf("got %q", got)
		}
	}
	if n, most := scan[int](t, pool, "SELECT count(*) FROM pawl.subscription_batch"), int(time.Since(began)/time.Second)+3; n > most {
		t.Errorf("%d positions, at most %d are said to be appended", n, most)
	}
}

// The sweep of positions reads about as many as it removes.
func TestAttackSweepReads(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, name := range []string{"a", "b", "c"} {
		if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, pool, `INSERT INTO pawl.subscription_batch (ns, subscription_id, shard, at, epoch, seen_xid, late, floor, mark, events)
		SELECT 1, s.id, 0, now() - CASE WHEN s.name = 'c' THEN interval '2 h' ELSE '0 s' END, 0, '3', '{}', 0, 0, 0 FROM pawl.subscription s, generate_series(1, 20000) i`)
	exec(t, pool, "VACUUM ANALYZE pawl.subscription_batch")
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	const count = "SELECT coalesce(sum(idx_tup_fetch + seq_tup_read), 0)::int FROM pg_stat_xact_user_tables WHERE relname = 'subscription_batch'"
	exec(t, conn, "BEGIN")
	before := scan[int](t, conn, count)
	if n := scan[int](t, conn, "SELECT pawl.sweep_outbox(1::smallint, '1 h', 1000)"); n != 999 { // the first is young
		t.Errorf("%d removed", n)
	}
	if n := scan[int](t, conn, count) - before; n > 10_000 {
		t.Errorf("%d positions read to remove 1000", n)
	}
	exec(t, conn, "COMMIT")
}
