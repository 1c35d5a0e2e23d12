package saga_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// Sagas that are started at once go together, and each is told its own.
func TestStart_gathered(t *testing.T) {
	t.Parallel()
	const starters, each = 32, 20
	pool := dbtest.New(t)
	d := simple(t, pool, saga.Deadline(time.Hour))
	storm := func(do func(n, i int)) {
		var group sync.WaitGroup
		for n := range starters {
			group.Go(func() {
				for i := range each {
					do(n, i)
				}
			})
		}
		group.Wait()
	}
	var firsts, conflicts, oversized atomic.Int64
	storm(func(n, i int) {
		own := fmt.Sprintf("own:%d:%d", n, i)
		if got, err := d.Start(t.Context(), pool, order{own}, saga.ID(own), saga.Header("n", own), saga.DeadlineIn(time.Duration(n+1)*time.Minute)); err != nil || got != (saga.Started{ID: own}) {
			t.Errorf("%s: got %+v, %v", own, got, err)
		}
		pair := fmt.Sprintf("pair:%d:%d", n/2, i)
		if got, err := d.Start(t.Context(), pool, order{pair}, saga.ID(pair)); err != nil {
			t.Errorf("%s: got %v", pair, err)
		} else if !got.Duplicate {
			firsts.Add(1)
		}
	})
	const good = starters * each * 3 / 2
	if got := count(t, pool, "SELECT count(DISTINCT xid) FROM pawl.job"); got > good/2 {
		t.Errorf("got %d transactions that started %d sagas, want fewer", got, good)
	}
	storm(func(n, i int) { // where one is refused, those with it are not
		rival := fmt.Sprintf("rival:%d:%d", n/2, i)
		if _, err := d.Start(t.Context(), pool, order{fmt.Sprintf("of %d", n)}, saga.ID(rival)); errors.Is(err, saga.ErrConflict) {
			conflicts.Add(1)
		} else if err != nil {
			t.Errorf("%s: got %v", rival, err)
		}
		if _, err := d.Start(t.Context(), pool, order{strings.Repeat("x", 300_000)}); errors.Is(err, saga.ErrPayloadTooLarge) {
			oversized.Add(1)
		} else {
			t.Errorf("an input that is too large: got %v", err)
		}
	})
	if firsts.Load() != starters/2*each || conflicts.Load() != starters/2*each || oversized.Load() != starters*each {
		t.Errorf("got %d firsts of pairs, %d conflicts, %d oversized; want %d, %d and %d", firsts.Load(), conflicts.Load(), oversized.Load(), starters/2*each, starters/2*each, starters*each)
	}
	const sagas = 2 * starters * each
	if got := count(t, pool, "SELECT count(*) FROM pawl.saga"); got != sagas {
		t.Errorf("got %d sagas, want %d", got, sagas)
	}
	if got := count(t, pool, `SELECT count(*) FROM pawl.saga WHERE key LIKE 'own:%' AND headers->>'n' = key AND input->>'item' = key
		AND deadline_at - started_at BETWEEN (split_part(key, ':', 2)::int + 1) * interval '1 min' - interval '10 s' AND (split_part(key, ':', 2)::int + 1) * interval '1 min' + interval '10 s'`); got != starters*each {
		t.Errorf("got %d sagas with their own input, header and deadline, want %d", got, starters*each)
	}
	if got := count(t, pool, "SELECT count(*) FROM pawl.saga WHERE key LIKE 'pair:%' AND headers IS NULL AND deadline_at - started_at BETWEEN '59 min' AND '61 min'"); got != starters/2*each {
		t.Errorf("got %d sagas without headers and with the definition's deadline, want %d", got, starters/2*each)
	}
}

// A start that waits for a transaction which has its id holds up no other.
func TestStart_blocked(t *testing.T) {
	t.Parallel()
	const starters, each = 16, 20
	pool := dbtest.New(t)
	d := simple(t, pool)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := d.Start(t.Context(), tx, order{"pen"}, saga.ID("blocked")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	given := make(chan error, 3)
	for range cap(given) {
		go func() {
			_, err := d.Start(ctx, pool, order{"pen"}, saga.ID("blocked"))
			given <- err
		}()
	}
	again := make(chan saga.Started, 1)
	go func() {
		got, err := d.Start(t.Context(), pool, order{"pen"}, saga.ID("blocked"))
		if err != nil {
			t.Errorf("blocked: got %v", err)
		}
		again <- got
	}()
	var group sync.WaitGroup
	for n := range starters {
		group.Go(func() {
			for i := range each {
				if _, err := d.Start(t.Context(), pool, order{"pen"}, saga.ID(fmt.Sprintf("free:%d:%d", n, i))); err != nil {
					t.Errorf("got %v", err)
				}
			}
		})
	}
	group.Wait()
	cancel()
	for range cap(given) {
		if err := <-given; !errors.Is(err, context.Canceled) {
			t.Errorf("given up: got %v, want context.Canceled", err)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-again; !got.Duplicate {
		t.Errorf("blocked: got %+v, want a duplicate", got)
	}
	if got, want := count(t, pool, "SELECT count(*) FROM pawl.saga"), starters*each+1; got != want {
		t.Errorf("got %d sagas, want %d", got, want)
	}
}
