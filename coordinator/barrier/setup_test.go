package barrier_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// In an empty database the barrier is the same as with all of Pawl, however often and by however many it is set up; and it works.
func TestSetup(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), dbtest.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	exec(t, pool, "CREATE TABLE effect (id bigint GENERATED ALWAYS AS IDENTITY, saga text, step text, op text)")
	if _, err := do(t, pool, branch(barrier.Try)); err == nil {
		t.Error("there is a barrier before it is set up")
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := barrier.Setup(t.Context(), pool); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var outcomes []string
	for _, op := range []barrier.Op{barrier.Try, barrier.Try, barrier.Cancel, barrier.Cancel} {
		out, err := do(t, pool, branch(op))
		if err != nil {
			t.Fatal(err)
		}
		outcomes = append(outcomes, string(out.Outcome))
	}
	if got := strings.Join(outcomes, " "); got != "done duplicate done duplicate" || effects(t, pool) != "try cancel" {
		t.Errorf("%s, %s", got, effects(t, pool))
	}
	if w := call(barrier.Handler(pool, work), barrier.Branch{ID: "other", Branch: "b", Op: barrier.Cancel}, ""); w.Code != 200 {
		t.Errorf("over HTTP: %d %s", w.Code, w.Body)
	}
	exec(t, pool, "UPDATE pawl.barrier SET at = at - interval '91 days' WHERE gid = 'other'")
	if n, err := barrier.Sweep(t.Context(), pool, 1); n != 2 || err != nil {
		t.Errorf("%d removed, %v", n, err)
	}
	exec(t, pool, "SELECT pawl.namespace_create('other')")

	// The same as where Pawl is, and nothing else.
	whole := dbtest.New(t)
	const all = `SELECT array_agg(d) FROM (
		SELECT pg_get_functiondef(p.oid) AS d FROM pg_proc p WHERE p.pronamespace = 'pawl'::regnamespace
		UNION ALL SELECT format('%s.%s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
			WHERE c.relnamespace = 'pawl'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
		UNION ALL SELECT format('%s %s', c.conrelid::regclass, pg_get_constraintdef(c.oid)) FROM pg_constraint c WHERE c.connamespace = 'pawl'::regnamespace
		UNION ALL SELECT i.indexdef FROM pg_indexes i WHERE i.schemaname = 'pawl') x`
	read := func(on *pgxpool.Pool) (out []string) {
		if err := on.QueryRow(context.Background(), all).Scan(&out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	theirs := read(whole)
	for _, part := range read(pool) {
		if !slices.Contains(theirs, part) {
			t.Errorf("is otherwise where all of Pawl is: %s", part)
		}
	}
	if err := barrier.Setup(t.Context(), whole); err != nil {
		t.Errorf("where there is one: %v", err)
	}
}
