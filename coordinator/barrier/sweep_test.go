package barrier_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
)

func sweep(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	return count(t, pool, "SELECT pawl.sweep_barrier(1::smallint, $1, 10)", barrier.Keep)
}

// fromFront has the next sweep begin from the front, as it does once an hour: these tests move rows to a time that it has been past.
func fromFront(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, "UPDATE pawl.barrier_floor SET whole_at = now() - interval '61 min'")
}

// The sweep removes what is older than Keep, the oldest first and so many at a time, in its own namespace.
func TestSweep(t *testing.T) {
	t.Parallel()
	pool := open(t)
	exec(t, pool, "SELECT pawl.namespace_create('other')")
	for i := range 12 {
		for ns := range int16(2) {
			b := barrier.Branch{Namespace: ns + 1, ID: fmt.Sprint(i), Branch: "b", Op: barrier.Action}
			if _, err := do(t, pool, b); err != nil {
				t.Fatal(err)
			}
		}
	}
	exec(t, pool, "UPDATE pawl.barrier SET at = now() - interval '89 days'")
	if n := sweep(t, pool); n != 0 {
		t.Errorf("%d fresh rows removed", n)
	}
	exec(t, pool, "UPDATE pawl.barrier SET at = now() - interval '91 days' - gid::int * interval '1 s'")
	fromFront(t, pool)
	if n := sweep(t, pool); n != 10 {
		t.Errorf("%d rows removed, want 10", n)
	}
	if n := count(t, pool, "SELECT sum(gid::int) FROM pawl.barrier WHERE ns = 1"); n != 0+1 {
		t.Errorf("others than the oldest were removed")
	}
	fromFront(t, pool)
	if n := sweep(t, pool); n != 2 {
		t.Errorf("%d rows removed, want 2", n)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.barrier WHERE ns = 2"); n != 12 {
		t.Errorf("%d of another namespace are left", n)
	}
}

// What a sweep has removed, but an open transaction keeps from being vacuumed, the next one does not read again.
func TestSweepFloor(t *testing.T) {
	t.Parallel()
	pool := open(t)
	old := func(n, days int) {
		t.Helper()
		exec(t, pool, `INSERT INTO pawl.barrier (ns, gid, branch, op, reason, at)
			SELECT 1, gen_random_uuid()::text, 'b', 'action', 'action', clock_timestamp() - $2 * interval '1 day' FROM generate_series(1, $1)`, n, days)
	}
	// entries tells how many entries of the index a sweep read, and what it removed.
	entries := func() (read, removed int) {
		t.Helper()
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			sofar := func() int {
				return count(t, tx, "SELECT pg_stat_get_xact_tuples_returned('pawl.barrier_at'::regclass)")
			}
			before := sofar()
			removed = count(t, tx, "SELECT pawl.sweep_barrier(1::smallint, $1, 1000)", barrier.Keep)
			read = sofar() - before
			return nil
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
	exec(t, gate, "SELECT count(*) FROM pawl.barrier")
	old(2500, 91)
	for i, want := range []int{1000, 1000, 500, 0} {
		read, removed := entries()
		if removed != want || read > want+100 {
			t.Errorf("pass %d: %d removed, want %d, of %d entries read", i, removed, want, read)
		}
	}
	// What is committed after its time waits for the hour.
	old(3, 92)
	if read, removed := entries(); removed != 0 || read > 10 {
		t.Errorf("late: %d removed, of %d entries read", removed, read)
	}
	fromFront(t, pool)
	if _, removed := entries(); removed != 3 {
		t.Errorf("once an hour: %d removed, want 3", removed)
	}
}

// Half of what stands for a null compensation is removed: it is null all the same when it comes again.
func TestSweepHalf(t *testing.T) {
	t.Parallel()
	pool := open(t)
	for i, want := range []barrier.Outcome{barrier.Null, barrier.Null, barrier.Duplicate} {
		if out, err := do(t, pool, branch(barrier.Undo)); err != nil || out.Outcome != want {
			t.Errorf("%d: %s, %v; want %s", i, out.Outcome, err, want)
		}
		if i == 0 {
			exec(t, pool, "DELETE FROM pawl.barrier WHERE op = 'undo'")
		}
	}
	if got := effects(t, pool); got != "" {
		t.Errorf("effects %q", got)
	}
}

// Two sweeps do not run at once.
func TestSweepConcurrent(t *testing.T) {
	t.Parallel()
	pool := open(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	exec(t, tx, "SELECT pawl.sweep_barrier(1::smallint, '90 days', 10)")
	if n := count(t, pool, "SELECT coalesce(pawl.sweep_barrier(1::smallint, '90 days', 10), -1)"); n != -1 {
		t.Errorf("another ran: %d", n)
	}
}
