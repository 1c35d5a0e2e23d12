package idempotency_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
)

func sweep(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	return count(t, pool, "SELECT pawl.sweep_idempotency(1::smallint, $1, 1000)", idempotency.AbandonedKeep)
}

// fromFront has the next sweep begin from the front, as it does once an hour: these tests move rows to a time that it has been past.
func fromFront(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, "UPDATE pawl.idempotency_floor SET whole_at = now() - interval '61 min'")
}

// The sweep removes what has expired, but no key that a transaction is at work on.
func TestSweep(t *testing.T) {
	t.Parallel()
	pool := open(t)
	expire := func() {
		t.Helper()
		exec(t, pool, "UPDATE pawl.idempotency_key SET expires_at = now() - interval '1 s'")
		fromFront(t, pool)
	}
	if _, _, err := idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{}, effect); err != nil {
		t.Fatal(err)
	}
	expire()
	_, _, err := idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		if n := sweep(t, pool); n != 0 {
			t.Errorf("%d keys in progress removed", n)
		}
		return effect(ctx, tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := sweep(t, pool); n != 0 {
		t.Errorf("%d fresh keys removed", n)
	}
	expire()
	if n := sweep(t, pool); n != 1 {
		t.Errorf("%d expired keys removed, want 1", n)
	}
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := idempotency.Once(t.Context(), tx, 1, "mail", "m1")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := sweep(t, pool); n != 0 {
		t.Errorf("%d fresh messages removed", n)
	}
	exec(t, pool, "UPDATE pawl.inbox SET expires_at = now() - interval '1 s'")
	fromFront(t, pool)
	if n := sweep(t, pool); n != 1 {
		t.Errorf("%d expired messages removed, want 1", n)
	}
}

// The points of a phased request go with its answer. While it has none, nothing of it expires: only what nobody has taken up for AbandonedKeep goes.
func TestSweepPhases(t *testing.T) {
	t.Parallel()
	pool := open(t)
	left := func() [2]int {
		t.Helper()
		return [2]int{count(t, pool, "SELECT count(*) FROM pawl.idempotency_claim"), count(t, pool, "SELECT count(*) FROM pawl.idempotency_point")}
	}
	for _, finish := range []bool{true, false} {
		if err := phases(t, pool, "a", "one", "two", "fail"); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		exec(t, pool, "UPDATE pawl.idempotency_claim SET created_at = now() - interval '89 days', until = now() - interval '89 days'")
		if n := sweep(t, pool); n != 0 || left() != [2]int{1, 2} {
			t.Fatalf("%d removed of a request in progress, left %v", n, left())
		}
		found, err := idempotency.List(t.Context(), pool, 1, 10)
		if err != nil || len(found) != 1 || found[0].Key != key || found[0].Progress.Claims != 1 || found[0].Points[0].Name != "two" {
			t.Errorf("listed %+v, %v", found, err)
		}
		if finish {
			if err := phases(t, pool, "a", "one", "two"); err != nil || left() != [2]int{0, 2} {
				t.Fatalf("%v, left %v", err, left())
			}
			exec(t, pool, "UPDATE pawl.idempotency_key SET expires_at = now() - interval '1 s'")
		} else {
			exec(t, pool, "UPDATE pawl.idempotency_claim SET created_at = now() - interval '91 days'") // and taken up 89 days ago
			if n := sweep(t, pool); n != 0 || left() != [2]int{1, 2} {
				t.Fatalf("%d removed of a request that was taken up, left %v", n, left())
			}
			exec(t, pool, "UPDATE pawl.idempotency_claim SET until = now() - interval '91 days'")
		}
		fromFront(t, pool)
		if n := sweep(t, pool); n != 1 || left() != [2]int{0, 0} {
			t.Errorf("%d removed, want 1; left %v", n, left())
		}
	}
}

// What a sweep has removed, but an open transaction keeps from being vacuumed, the next one does not read again.
func TestSweepFloor(t *testing.T) {
	t.Parallel()
	pool := open(t)
	expired := func(n, agoS int) {
		t.Helper()
		exec(t, pool, `INSERT INTO pawl.idempotency_key (ns, key, scope, fingerprint, status, body, created_at, expires_at)
			SELECT 1, gen_random_uuid()::text, 's', '', 200, '', now(), clock_timestamp() - $2 * interval '1 s' FROM generate_series(1, $1)`, n, agoS)
		exec(t, pool, `INSERT INTO pawl.inbox (ns, consumer, message_id, expires_at)
			SELECT 1, 'c', gen_random_uuid()::text, clock_timestamp() - $2 * interval '1 s' FROM generate_series(1, $1)`, n, agoS)
	}
	// entries tells how many entries of the indexes of expiry a sweep read, and what it removed.
	entries := func() (read, removed int) {
		t.Helper()
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			sofar := func() (n int, err error) { // by this backend, since it last reported
				err = tx.QueryRow(t.Context(), `SELECT pg_stat_get_xact_tuples_returned('pawl.idempotency_key_expires'::regclass) +
					pg_stat_get_xact_tuples_returned('pawl.inbox_expires'::regclass)`).Scan(&n)
				return n, err
			}
			before, err := sofar()
			if err != nil {
				return err
			}
			if err := tx.QueryRow(t.Context(), "SELECT pawl.sweep_idempotency(1::smallint, '90 days', 1000)").Scan(&removed); err != nil {
				return err
			}
			after, err := sofar()
			read = after - before
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return read, removed
	}
	gate, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Rollback(t.Context())
	if _, err := gate.Exec(t.Context(), "SELECT count(*) FROM pawl.idempotency_key"); err != nil {
		t.Fatal(err)
	}
	expired(2500, 10)
	for i, want := range []int{2000, 2000, 1000, 0} {
		read, removed := entries()
		if removed != want || read > want+100 {
			t.Errorf("pass %d: %d removed, want %d, of %d entries read", i, removed, want, read)
		}
	}
	// What is committed after its time waits for the hour.
	expired(3, 3600)
	if read, removed := entries(); removed != 0 || read > 10 {
		t.Errorf("late: %d removed, of %d entries read", removed, read)
	}
	fromFront(t, pool)
	if _, removed := entries(); removed != 6 {
		t.Errorf("once an hour: %d removed, want 6", removed)
	}
	expired(2, 0)
	if _, removed := entries(); removed != 4 {
		t.Errorf("after that: %d removed, want 4", removed)
	}
}

// Two sweeps do not run at once, and one skips what is locked.
func TestSweepConcurrent(t *testing.T) {
	t.Parallel()
	pool := open(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), "SELECT pawl.sweep_idempotency(1::smallint, '90 days', 10)"); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, "SELECT coalesce(pawl.sweep_idempotency(1::smallint, '90 days', 10), -1)"); n != -1 {
		t.Errorf("another ran: %d", n)
	}
}
