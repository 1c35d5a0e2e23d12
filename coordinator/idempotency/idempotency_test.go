package idempotency_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/db/dbtest"
)

var key = idempotency.Key{Scope: "client 7 POST /orders", Key: "k"}

func open(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := dbtest.New(t)
	if _, err := pool.Exec(t.Context(), "CREATE TABLE effect (n int)"); err != nil {
		t.Fatal(err)
	}
	return pool
}

func effect(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
	_, err := tx.Exec(ctx, "INSERT INTO effect VALUES (1)")
	return idempotency.Response{Status: 201, Headers: map[string][]string{"Location": {"/orders/1"}}, Body: []byte("made")}, err
}

// patience bounds every wait of these tests; what is waited for comes much earlier.
const patience = time.Minute

// until polls for a condition that no signal announces.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func count(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) (n int) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Of concurrent duplicates one runs; the others are refused, or wait and replay.
func TestDo(t *testing.T) {
	t.Parallel()
	for name, wait := range map[string]time.Duration{"refuse": 0, "wait": time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := open(t)
			var ran, replayed, refused atomic.Int32
			var group sync.WaitGroup
			for range 30 {
				group.Go(func() {
					out, again, err := idempotency.Do(t.Context(), pool, key, []byte("f"), idempotency.Options{Wait: wait}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
						ran.Add(1)
						if _, err := tx.Exec(ctx, "SELECT pg_sleep(0.05)"); err != nil {
							return idempotency.Response{}, err
						}
						return effect(ctx, tx)
					})
					switch {
					case errors.Is(err, idempotency.ErrInFlight):
						refused.Add(1)
					case err != nil:
						t.Error(err)
					case out.Status != 201 || string(out.Body) != "made" || out.Headers["Location"][0] != "/orders/1":
						t.Errorf("got %+v", out)
					case again:
						replayed.Add(1)
					}
				})
			}
			group.Wait()
			if ran.Load() != 1 || count(t, pool, "SELECT count(*) FROM effect") != 1 || replayed.Load()+refused.Load() != 29 {
				t.Errorf("%d ran, %d replayed, %d refused", ran.Load(), replayed.Load(), refused.Load())
			}
			if wait > 0 && refused.Load() > 0 {
				t.Errorf("%d were refused", refused.Load())
			}
		})
	}
}

// Another payload is refused before anything is replayed; an error leaves the key free; an expired answer is none.
func TestDoAgain(t *testing.T) {
	t.Parallel()
	pool := open(t)
	do := func(fingerprint string, fn func(context.Context, pgx.Tx) (idempotency.Response, error)) (bool, error) {
		_, replayed, err := idempotency.Do(t.Context(), pool, key, []byte(fingerprint), idempotency.Options{}, fn)
		return replayed, err
	}
	oh := errors.New("oh")
	if _, err := do("a", func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		out, _ := effect(ctx, tx)
		return out, oh
	}); !errors.Is(err, oh) {
		t.Errorf("got %v", err)
	}
	if replayed, err := do("a", effect); err != nil || replayed {
		t.Errorf("after an error: replayed %t, %v", replayed, err)
	}
	if _, err := do("b", effect); !errors.Is(err, idempotency.ErrMismatch) {
		t.Errorf("other payload: %v", err)
	}
	if replayed, err := do("a", effect); err != nil || !replayed {
		t.Errorf("again: replayed %t, %v", replayed, err)
	}
	if _, err := pool.Exec(t.Context(), "UPDATE pawl.idempotency_key SET expires_at = now() - interval '1 s'"); err != nil {
		t.Fatal(err)
	}
	if replayed, err := do("b", effect); err != nil || replayed {
		t.Errorf("expired: replayed %t, %v", replayed, err)
	}
	if n := count(t, pool, "SELECT count(*) FROM effect"); n != 2 {
		t.Errorf("%d effects, want 2", n)
	}
	if _, err := do("b", nil); err != nil {
		t.Error(err)
	}
	_, _, err := idempotency.Do(t.Context(), pool, idempotency.Key{}, nil, idempotency.Options{}, effect)
	if !errors.Is(err, idempotency.ErrInvalid) {
		t.Errorf("no key: %v", err)
	}
}

// Two transactions with one message: the second waits, and sees it unless the first is rolled back.
func TestOnce(t *testing.T) {
	t.Parallel()
	pool := open(t)
	for _, commits := range []bool{false, true} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if first, err := idempotency.Once(t.Context(), tx, 1, "mail", "m1"); err != nil || !first {
			t.Fatalf("first: %t, %v", first, err)
		}
		other := make(chan bool, 1)
		go func() {
			_ = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				first, err := idempotency.Once(t.Context(), tx, 1, "mail", "m1")
				if err != nil {
					t.Error(err)
				}
				other <- first
				return errors.New("rolled back")
			})
		}()
		for count(t, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 0 {
			continue
		}
		if commits {
			err = tx.Commit(t.Context())
		} else {
			err = tx.Rollback(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		if first := <-other; first == commits {
			t.Errorf("committed %t: the other was first: %t", commits, first)
		}
	}
}
