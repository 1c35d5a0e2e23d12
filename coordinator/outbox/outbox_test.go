package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// receiver is a sink that remembers what it accepted, and fails as its test says.
type receiver struct {
	mu   sync.Mutex
	got  []outbox.Event
	news chan struct{}
	fail func(ctx context.Context, e outbox.Event) error
}

func newReceiver() *receiver { return &receiver{news: make(chan struct{}, 1)} }

func (r *receiver) Send(ctx context.Context, events []outbox.Event) (int, error) {
	for i, e := range events {
		r.mu.Lock()
		fail := r.fail
		r.mu.Unlock()
		if fail != nil {
			if err := fail(ctx, e); err != nil {
				return i, err
			}
		}
		r.mu.Lock()
		r.got = append(r.got, e)
		r.mu.Unlock()
		select {
		case r.news <- struct{}{}:
		default:
		}
	}
	return len(events), nil
}

func (r *receiver) events() []outbox.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func (r *receiver) failing(f func(ctx context.Context, e outbox.Event) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = f
}

// wait waits until done says so of what was accepted.
func (r *receiver) wait(t *testing.T, done func([]outbox.Event) bool) []outbox.Event {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		if got := r.events(); done(got) {
			return got
		}
		select {
		case <-r.news:
		case <-timeout:
			t.Fatalf("not delivered in time; got %d events: %s", len(r.events()), texts(r.events()))
		}
	}
}

func (r *receiver) waitN(t *testing.T, n int) []outbox.Event {
	t.Helper()
	return r.wait(t, func(got []outbox.Event) bool { return len(got) >= n })
}

func texts(events []outbox.Event) string {
	var out []string
	for _, e := range events[:min(len(events), 100)] {
		out = append(out, e.Key+":"+string(e.Payload))
	}
	return strings.Join(out, " ")
}

// start runs a relay until the test or the function it returns ends it.
func start(t *testing.T, pool *pgxpool.Pool, s outbox.Subscription) (stop func()) {
	t.Helper()
	if _, err := outbox.Create(t.Context(), pool, s); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- outbox.Relay(ctx, pool, s, 0, nil) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("relay: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func event(key, text string) outbox.Event {
	return outbox.Event{Topic: "order", Key: key, Type: "order.changed", Payload: []byte(text)}
}

func publish(t *testing.T, pool *pgxpool.Pool, events ...outbox.Event) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return outbox.Publish(t.Context(), tx, events...) })
	if err != nil {
		t.Fatal(err)
	}
}

func exec(t *testing.T, on outbox.DB, sql string, args ...any) {
	t.Helper()
	if _, err := on.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func scan[T any](t *testing.T, on outbox.DB, sql string, args ...any) T {
	t.Helper()
	var out T
	if err := on.QueryRow(t.Context(), sql, args...).Scan(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// until asks the database until it says true.
func until(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		if scan[bool](t, pool, sql, args...) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never true: %s", sql)
		}
		exec(t, pool, "SELECT pg_sleep(0.01)")
	}
}

func fast(name string, sink outbox.Sink) outbox.Subscription {
	return outbox.Subscription{Name: name, Sink: sink, Backoff: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond, Breaker: 10 * time.Millisecond, Beginning: true}
}

// All of an event arrives, by Go and by SQL, and what is rolled back does not.
func TestPublish(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	start(t, pool, fast("all", r))
	id := "0190a8f6-1c3b-7cc2-9d5e-0123456789ab"
	want := outbox.Event{
		ID: id, Topic: "order", Key: "a'\"\\ ü", Type: "order.paid", Payload: []byte{0, 1, 255}, ContentType: "application/x", Headers: map[string]string{"trace": "1,\"}"},
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.Publish(t.Context(), tx, event("x", "rolled back")); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish(t, pool, want)
	exec(t, pool, `SELECT pawl.publish(1::smallint, 'stock', 'k', 'stock.changed', '{"n": 1}', '{"h": 7}')`)
	got := r.waitN(t, 2)
	if got[0].Topic != "order" { // of two keys
		slices.Reverse(got)
	}
	e := got[0]
	if e.ID != id || e.Topic != want.Topic || e.Key != want.Key || e.Type != want.Type || string(e.Payload) != string(want.Payload) || e.ContentType != want.ContentType ||
		e.Headers["trace"] != want.Headers["trace"] || e.Attempt != 1 || e.Seq == 0 || e.CreatedAt.IsZero() {
		t.Errorf("got %+v, want %+v", e, want)
	}
	if e := got[1]; len(e.ID) != 36 || e.ID[14] != '7' || string(e.Payload) != `{"n": 1}` || e.ContentType != "application/json" || e.Headers["h"] != "7" {
		t.Errorf("by SQL: got %+v", e)
	}
}

func TestPublishInvalid(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "SELECT pawl.outbox_create(1::smallint); UPDATE pawl.outbox SET payload_bytes_max = 10")
	for name, c := range map[string]struct {
		event outbox.Event
		want  error
	}{
		"no topic": {outbox.Event{Type: "t"}, outbox.ErrInvalid},
		"no type":  {outbox.Event{Topic: "t"}, outbox.ErrInvalid},
		"long key": {event(strings.Repeat("k", outbox.KeyBytesMax+1), ""), outbox.ErrInvalid},
		"bad id":   {outbox.Event{ID: "7", Topic: "t", Type: "t"}, outbox.ErrInvalid},
		"payload":  {event("k", "0123456789a"), outbox.ErrPayloadTooLarge},
	} {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return outbox.Publish(t.Context(), tx, event("k", "good"), c.event) })
		if !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	if n := scan[int](t, pool, "SELECT count(*) FROM pawl.outbox_event"); n != 0 {
		t.Errorf("%d events of refused batches are there", n)
	}
}

// history checks that what arrived of each key is what was committed, in the order of the commits.
func history(t *testing.T, pool *pgxpool.Pool, got []outbox.Event) (inversions, missing int) {
	t.Helper()
	rows, err := pool.Query(t.Context(), "SELECT key, array_agg(n::text ORDER BY n) FROM counted GROUP BY key")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	arrived := map[string][]string{}
	seen := map[string]bool{}
	for _, e := range got {
		if !seen[e.ID] { // once more is allowed, in another place is not
			arrived[e.Key] = append(arrived[e.Key], string(e.Payload))
		}
		seen[e.ID] = true
	}
	for rows.Next() {
		var key string
		var want []string
		if err := rows.Scan(&key, &want); err != nil {
			t.Fatal(err)
		}
		missing += len(want) - len(arrived[key])
		last := -1
		for _, n := range arrived[key] {
			at := slices.Index(want, n)
			if at < last {
				inversions++
			}
			last = max(at, last)
		}
	}
	return inversions, missing
}

// storm has writers publish: each counts a key's row up, which locks it, with its transaction's id often taken long before, savepoints, rollbacks and pauses.
func storm(t *testing.T, pool *pgxpool.Pool, writers, rounds int) {
	t.Helper()
	exec(t, pool, "CREATE TABLE counter (key text PRIMARY KEY, n int NOT NULL); CREATE TABLE counted (key text, n int); INSERT INTO counter SELECT 'k' || i, 0 FROM generate_series(0, 4) i")
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(w), 1))
			for range rounds {
				if err := write(t.Context(), pool, dice); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
}

var errRolledBack = errors.New("rolled back")

// count counts a key up, which locks its row, and publishes it.
func count(ctx context.Context, tx pgx.Tx, key string) error {
	var n int
	if err := tx.QueryRow(ctx, "UPDATE counter SET n = n + 1 WHERE key = $1 RETURNING n", key).Scan(&n); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "INSERT INTO counted VALUES ($1, $2)", key, n); err != nil {
		return err
	}
	return outbox.Publish(ctx, tx, event(key, fmt.Sprint(n)))
}

func write(ctx context.Context, pool *pgxpool.Pool, dice *rand.Rand) error {
	key := fmt.Sprintf("k%d", dice.IntN(5))
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if dice.IntN(3) == 0 { // the id first, the lock much later
			if _, err := tx.Exec(ctx, "SELECT pg_current_xact_id(), pg_sleep($1)", dice.Float64()*0.02); err != nil {
				return err
			}
		}
		count := func(tx pgx.Tx) error {
			if err := count(ctx, tx, key); err != nil {
				return err
			}
			if dice.IntN(10) == 0 {
				return errRolledBack
			}
			return nil
		}
		if dice.IntN(3) == 0 {
			if err := pgx.BeginFunc(ctx, tx, count); err != nil {
				return err
			}
		}
		if err := count(tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "SELECT pg_sleep($1)", dice.Float64()*0.005)
		return err
	})
	if errors.Is(err, errRolledBack) {
		return nil
	}
	return err
}

// Nothing is lost and each key keeps the order of its commits, while the relay is stopped and started again and a second one races with it.
func TestOrder(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	s := fast("order", r)
	s.Page, s.Batch = 7, 3
	if _, err := outbox.Create(t.Context(), pool, s); err != nil {
		t.Fatal(err)
	}
	written := make(chan struct{})
	go func() { defer close(written); storm(t, pool, 10, 40) }()
	for over := false; !over; {
		stop := start(t, pool, s)
		select {
		case <-written:
			over = true
		default:
			exec(t, pool, "SELECT pg_sleep(0.05)")
		}
		stop()
	}
	start(t, pool, s)
	n := scan[int](t, pool, "SELECT count(*) FROM counted")
	got := r.wait(t, func(got []outbox.Event) bool {
		ids := map[string]bool{}
		for _, e := range got {
			ids[e.ID] = true
		}
		return len(ids) >= n
	})
	if inversions, missing := history(t, pool, got); inversions != 0 || missing != 0 {
		t.Errorf("%d inversions, %d missing of %d", inversions, missing, n)
	}
}

// What others do fails the same test: everything below the oldest running transaction, in the order of transaction ids.
func TestOrderOfTransactionIDs(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	storm(t, pool, 10, 40)
	rows, err := pool.Query(t.Context(), "SELECT key, convert_from(payload, 'UTF8'), event_id::text FROM pawl.outbox_event ORDER BY xid, id")
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (outbox.Event, error) {
		var e outbox.Event
		var payload string
		err := row.Scan(&e.Key, &payload, &e.ID)
		e.Payload = []byte(payload)
		return e, err
	})
	if err != nil {
		t.Fatal(err)
	}
	inversions, _ := history(t, pool, got)
	if inversions == 0 {
		t.Error("no inversions: the storm does not show what it should")
	}
	t.Logf("%d inversions in %d events", inversions, len(got))
}

// Two relays at once lose nothing: each position goes on from the newest.
func TestTwoRelays(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	s := fast("two", r)
	s.Page, s.Batch = 10, 5
	start(t, pool, s)
	start(t, pool, s)
	for i := range 200 {
		publish(t, pool, event(fmt.Sprint("k", i%7), fmt.Sprint(i)))
	}
	r.wait(t, func(got []outbox.Event) bool {
		ids := map[string]bool{}
		for _, e := range got {
			ids[e.ID] = true
		}
		return len(ids) == 200
	})
	until(t, pool, "SELECT max(events) >= 200 FROM pawl.subscription_batch")
}

// An event that fails puts its key aside, in order, and no other; an operator gets it going again after it was given up.
func TestParked(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	r.failing(func(_ context.Context, e outbox.Event) error {
		if e.Key == "bad" && string(e.Payload) == "1" {
			return errors.New("cannot")
		}
		return nil
	})
	s := fast("parked", r)
	s.Attempts = 3
	start(t, pool, s)
	for i := range 5 {
		publish(t, pool, event("bad", fmt.Sprint(i)), event("good", fmt.Sprint(i)))
	}
	r.waitN(t, 6)
	until(t, pool, "SELECT count(*) = 4 AND count(*) FILTER (WHERE dead_at IS NOT NULL AND attempt = 3 AND error = 'cannot') = 1 FROM pawl.parked_event")
	publish(t, pool, event("bad", "5"), event("good", "5"))
	r.waitN(t, 7)
	until(t, pool, "SELECT count(*) = 5 FROM pawl.parked_event")
	r.failing(nil)
	if n := scan[int](t, pool, "SELECT pawl.subscription_replay(1::smallint, 'parked', NULL, false)"); n != 1 {
		t.Errorf("%d events replayed, want 1", n)
	}
	got := r.waitN(t, 12)
	until(t, pool, "SELECT count(*) = 0 FROM pawl.parked_event")
	publish(t, pool, event("bad", "6"))
	got = append(got[:12:12], r.waitN(t, 13)[12:]...)
	for _, key := range []string{"bad", "good"} {
		own := slices.DeleteFunc(slices.Clone(got), func(e outbox.Event) bool { return e.Key != key })
		if !slices.IsSortedFunc(own, func(a, b outbox.Event) int { return strings.Compare(string(a.Payload), string(b.Payload)) }) {
			t.Errorf("key %s: %s", key, texts(own))
		}
	}
}

// With Skip the key goes on, with Stop the subscription is paused; Permanent is not tried twice.
func TestPolicies(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, policy := range []outbox.Policy{outbox.Skip, outbox.Stop} {
		r := newReceiver()
		r.failing(func(_ context.Context, e outbox.Event) error {
			if string(e.Payload) == "1" {
				return outbox.Permanent(errors.New("never"))
			}
			return nil
		})
		s := fast(string(policy), r)
		s.Policy, s.Topics = policy, []string{string(policy)}
		start(t, pool, s)
		for i := range 3 {
			publish(t, pool, outbox.Event{Topic: string(policy), Key: "k", Type: "t", Payload: []byte(fmt.Sprint(i))})
		}
		if policy == outbox.Skip {
			if got := texts(r.waitN(t, 2)); got != "k:0 k:2" {
				t.Errorf("skip: got %s", got)
			}
		} else {
			until(t, pool, "SELECT paused_at IS NOT NULL AND paused_why LIKE '%never' FROM pawl.subscription WHERE name = 'stop'")
		}
		until(t, pool, `SELECT count(*) = 1 FROM pawl.parked_event e JOIN pawl.subscription s ON s.id = e.subscription_id
			WHERE s.name = $1 AND e.dead_at IS NOT NULL AND e.attempt = 1`, string(policy))
	}
}

// A receiver that is down burns no attempt and parks nothing; one that says a wrong count, panics or hangs is a failed attempt.
func TestBadSinks(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail   func(context.Context, outbox.Event) error
		parked bool
	}{
		"down":  {func(context.Context, outbox.Event) error { return outbox.Unavailable(errors.New("503")) }, false},
		"panic": {func(context.Context, outbox.Event) error { panic("oh") }, true},
		"hang":  {func(ctx context.Context, _ outbox.Event) error { <-ctx.Done(); return ctx.Err() }, true},
		"retryAfter": {func(context.Context, outbox.Event) error {
			return outbox.RetryAfter(errors.New("429"), 20*time.Millisecond)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			r := newReceiver()
			called := make(chan struct{}, 100)
			r.failing(func(ctx context.Context, e outbox.Event) error {
				called <- struct{}{}
				return c.fail(ctx, e)
			})
			s := fast("bad", r)
			s.Timeout = 30 * time.Millisecond
			start(t, pool, s)
			publish(t, pool, event("k", "1"), event("k", "2"))
			for range 3 {
				<-called
			}
			r.failing(nil)
			got := r.waitN(t, 2)
			if texts(got) != "k:1 k:2" {
				t.Errorf("got %s", texts(got))
			}
			if again := got[0].Attempt > 1; again != c.parked {
				t.Errorf("attempt %d", got[0].Attempt)
			}
		})
	}
}

func TestGone(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	r.failing(func(context.Context, outbox.Event) error { return outbox.ErrGone })
	start(t, pool, fast("gone", r))
	publish(t, pool, event("k", "1"))
	until(t, pool, "SELECT paused_why LIKE 'the receiver is gone%' FROM pawl.subscription WHERE paused_at IS NOT NULL UNION ALL SELECT false LIMIT 1")
	r.failing(nil)
	exec(t, pool, "SELECT pawl.subscription_pause(1::smallint, 'gone', NULL)")
	r.waitN(t, 1)
}

// An outbox in which nothing happens leaves no lag: the position comes to stand behind the last event.
func TestLagOfIdle(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	start(t, pool, fast("idle", r))
	for i := range 3 {
		publish(t, pool, event("k", fmt.Sprint(i)), event("k", fmt.Sprint(i)))
		r.waitN(t, 2*i+2)
	}
	for deadline := time.Now().Add(time.Minute); ; exec(t, pool, "SELECT pg_sleep(0.01)") {
		all, err := outbox.List(t.Context(), pool, 1, 10)
		if err != nil {
			t.Fatal(err)
		}
		if all[0].Lag == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the lag stays %d", all[0].Lag)
		}
	}
}

// A consumer in the database: its effect happens once for each event, however many consumers there are and however often they fail, and what it publishes itself is not missed.
func TestConsumeTx(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "CREATE TABLE effect (event text, key text, n int)")
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "own"}); err != nil {
		t.Fatal(err)
	}
	const events = 200
	for i := range events {
		publish(t, pool, event(fmt.Sprint("k", i%5), fmt.Sprint(i)))
	}
	var group sync.WaitGroup
	for w := range 4 {
		group.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(w), 2))
			for scan[int](t, pool, "SELECT count(*) FROM effect") < 2*events {
				_, err := outbox.ConsumeTx(t.Context(), pool, 1, "own", 0, 7, func(ctx context.Context, tx pgx.Tx, got []outbox.Event) error {
					for _, e := range got {
						if _, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1, $2, $3)", e.ID, e.Key, e.Seq); err != nil {
							return err
						}
						if e.Topic == "order" {
							if err := outbox.Publish(ctx, tx, outbox.Event{Topic: "echo", Key: e.Key, Type: "echo"}); err != nil {
								return err
							}
						}
					}
					if dice.IntN(4) == 0 {
						return errRolledBack
					}
					return nil
				})
				if err != nil && !errors.Is(err, errRolledBack) {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if n := scan[int](t, pool, "SELECT count(DISTINCT event) FROM effect"); n != 2*events {
		t.Errorf("%d events had an effect, want %d", n, 2*events)
	}
	if n := scan[int](t, pool, "SELECT count(*) FROM effect"); n != 2*events {
		t.Errorf("%d effects, want %d", n, 2*events)
	}
}

// Shards divide the keys among them; each event comes once.
func TestShards(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "shards", Shards: 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "shards", Shards: 4}); !errors.Is(err, outbox.ErrInvalid) {
		t.Errorf("other shards: got %v", err)
	}
	for i := range 60 {
		publish(t, pool, event(fmt.Sprint("k", i%20), ""))
	}
	sum, of := 0, map[string]int{}
	for shard := range 3 {
		n, err := outbox.ConsumeTx(t.Context(), pool, 1, "shards", shard, 1000, func(_ context.Context, _ pgx.Tx, got []outbox.Event) error {
			for _, e := range got {
				if other, ok := of[e.Key]; ok && other != shard {
					t.Errorf("key %s is in shards %d and %d", e.Key, other, shard)
				}
				of[e.Key] = shard
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 || n == 60 {
			t.Errorf("shard %d has %d events", shard, n)
		}
		sum += n
	}
	if sum != 60 {
		t.Errorf("%d events in all shards", sum)
	}
}

// A rewound subscription delivers again from an event on, also what was running when it was rewound.
func TestRewind(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	r := newReceiver()
	start(t, pool, fast("rewind", r))
	late, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback(context.Background())
	if err := outbox.Publish(t.Context(), late, event("late", "0")); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		publish(t, pool, event("k", fmt.Sprint(i)))
	}
	from := r.waitN(t, 5)[3].Seq
	if n := scan[int](t, pool, "SELECT pawl.subscription_rewind(1::smallint, 'rewind', $1)", from); n != 1 {
		t.Fatalf("%d shards", n)
	}
	publish(t, pool, event("k", "5")) // so that the relay settles, and finds out
	r.wait(t, func(got []outbox.Event) bool {
		n := 0
		for _, e := range got {
			if string(e.Payload) == "3" {
				n++
			}
		}
		return n == 2
	})
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := r.wait(t, func(got []outbox.Event) bool {
		return slices.ContainsFunc(got, func(e outbox.Event) bool { return e.Key == "late" })
	})
	if n := len(got); n > 14 {
		t.Errorf("%d deliveries of 7 events", n)
	}
}

// In another cluster everything is refused until a rebase, after which nothing is lost: neither what was published before nor what is published then.
func TestMoved(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "moved"}); err != nil {
		t.Fatal(err)
	}
	take := func() string {
		var out []string
		for {
			n, err := outbox.ConsumeTx(t.Context(), pool, 1, "moved", 0, 2, func(_ context.Context, _ pgx.Tx, got []outbox.Event) error {
				for _, e := range got {
					out = append(out, string(e.Payload))
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 && len(out) > 0 || n == 0 && scan[bool](t, pool, "SELECT b.epoch = o.epoch FROM pawl.outbox o CROSS JOIN pawl.subscription_batch b ORDER BY b.id DESC LIMIT 1") {
				return strings.Join(out, " ")
			}
		}
	}
	publish(t, pool, event("k", "1"))
	if got := take(); got != "1" {
		t.Errorf("before: got %q", got)
	}
	publish(t, pool, event("k", "2"), event("k", "3"), event("k", "4"))
	// As a dump restored into a cluster whose transaction ids are lower: those of the rows are in its future.
	exec(t, pool, "UPDATE pawl.outbox SET cluster = cluster + 1")
	exec(t, pool, "UPDATE pawl.outbox_event SET xid = (xid::text::bigint + 1000000)::text::xid8")
	exec(t, pool, "UPDATE pawl.subscription_batch SET seen_xid = (seen_xid::text::bigint + 1000000)::text::xid8")
	exec(t, pool, "UPDATE pawl.outbox_event SET xid = '3' WHERE payload = '1'")
	if _, err := outbox.ConsumeTx(t.Context(), pool, 1, "moved", 0, 2, nil); !errors.Is(err, outbox.ErrMoved) {
		t.Errorf("consume: got %v, want ErrMoved", err)
	}
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return outbox.Publish(t.Context(), tx, event("k", "5")) })
	if !errors.Is(err, outbox.ErrMoved) {
		t.Errorf("publish: got %v, want ErrMoved", err)
	}
	exec(t, pool, "SELECT pawl.rebase(1::smallint)")
	publish(t, pool, event("k", "5"))
	if got := take(); got != "2 3 4 5" {
		t.Errorf("after: got %q", got)
	}
}

// Large events come in small pages, whatever Page says.
func TestLargeEvents(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	large := make([]byte, outbox.PayloadBytesMax)
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "large"}); err != nil {
		t.Fatal(err)
	}
	const all = 2*(outbox.PageBytesMax/outbox.PayloadBytesMax) + 3
	for range all {
		publish(t, pool, outbox.Event{Topic: "order", Type: "large", Payload: large})
	}
	sum := 0
	for sum < all {
		n, err := outbox.ConsumeTx(t.Context(), pool, 1, "large", 0, 1000, func(_ context.Context, _ pgx.Tx, got []outbox.Event) error {
			bytes := 0
			for _, e := range got {
				bytes += len(e.Payload)
			}
			if bytes > outbox.PageBytesMax+outbox.PayloadBytesMax || len(got) < min(all-sum, 15) {
				t.Errorf("%d bytes in a page of %d events", bytes, len(got))
			}
			return nil
		})
		if err != nil || n == 0 {
			t.Fatalf("after %d events: %d, %v", sum, n, err)
		}
		sum += n
	}
	r := newReceiver()
	s := fast("relayed", r)
	start(t, pool, s)
	r.waitN(t, all)
	until(t, pool, "SELECT max(events) = $1 FROM pawl.subscription_batch b JOIN pawl.subscription s ON s.id = b.subscription_id WHERE s.name = 'relayed'", all)
	if n := len(r.events()); n != all {
		t.Errorf("%d deliveries of %d events", n, all)
	}
}
