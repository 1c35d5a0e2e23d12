package job_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// enqueueKey enqueues one job with a dedupe key. window "" is none.
func (e *engine) enqueueKey(db dbtx, queue, key, window string) (id int64, duplicate bool, err error) {
	err = db.QueryRow(e.ctx, `SELECT * FROM pawl.enqueue_unique(1::smallint, $1, 'test', '{}', $2, nullif($3, '')::interval)`,
		queue, key, window).Scan(&id, &duplicate)
	return id, duplicate, err
}

// enqueueKeys enqueues one batch, a job for each key ("" for none).
func (e *engine) enqueueKeys(db dbtx, queue string, keys []string, window string) (ids []int64, duplicates []bool, err error) {
	err = db.QueryRow(e.ctx, `SELECT ids, duplicates FROM pawl.enqueue_many(1::smallint, $1, 'test', array_fill('{}'::json, ARRAY[cardinality($2::text[])]),
		p_dedupe_keys => ARRAY(SELECT nullif(k, '') FROM unnest($2::text[]) WITH ORDINALITY t(k, i) ORDER BY i), p_dedupe_window => nullif($3, '')::interval)`,
		queue, keys, window).Scan(&ids, &duplicates)
	return ids, duplicates, err
}

// TestEngineEnqueueFails: an enqueue that fails in the middle leaves no lock behind on its connection, on which all others would wait.
func TestEngineEnqueueFails(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.queue("q")
	role := fmt.Sprintf("pawl_engine_%d", get[int](e, e.pool, "SELECT oid::int FROM pg_database WHERE datname = current_database()"))
	e.exec(e.pool, "CREATE ROLE "+role+"; GRANT USAGE ON SCHEMA pawl TO "+role+"; GRANT ALL ON ALL TABLES IN SCHEMA pawl TO "+role)
	calls := map[string]string{
		"enqueue":      "SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}')",
		"enqueue_many": "SELECT * FROM pawl.enqueue_many(1::smallint, 'q', 'test', ARRAY['{}','{}']::json[])",
	}
	for name, call := range calls {
		for how, before := range map[string]string{"read only": "SET TRANSACTION READ ONLY", "without privileges": "SET LOCAL ROLE " + role} {
			conn := e.conn() // stays open, as in a pool
			tx, err := conn.Begin(e.ctx)
			if err != nil {
				t.Fatal(err)
			}
			e.exec(tx, before)
			if _, err := tx.Exec(e.ctx, call); err == nil {
				t.Errorf("%s %s: got no error", name, how)
			}
			if err := tx.Rollback(e.ctx); err != nil {
				t.Fatal(err)
			}
			held := get[int](e, e.pool, "SELECT count(*) FROM pg_locks WHERE pid = $1 AND locktype = 'advisory'", int32(conn.PgConn().PID()))
			if held != 0 {
				t.Errorf("%s %s: got %d advisory locks left on the connection, want none", name, how, held)
				e.exec(conn, "SELECT pg_advisory_unlock_all()")
			}
		}
	}
	e.exec(e.pool, "DROP OWNED BY "+role+"; DROP ROLE "+role)
}

// TestEngineEnqueueBounds: arguments outside their bounds are refused, and say which.
func TestEngineEnqueueBounds(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.queue("q")
	e.exec(e.pool, "UPDATE pawl.queue SET payload_bytes_max = 100")
	for name, test := range map[string]struct{ sql, want string }{
		"payload":            {`SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', to_json(repeat('x', 99)))`, "PW002"},
		"payload of a batch": {`SELECT * FROM pawl.enqueue_many(1::smallint, 'q', 'test', ARRAY['{}'::json, to_json(repeat('x', 99))])`, "PW002"},
		"payload that fits":  {`SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', to_json(repeat('x', 98)))`, ""},
		"empty batch":        {`SELECT * FROM pawl.enqueue_many(1::smallint, 'q', 'test', '{}')`, "22023"},
		"batch too long":     {`SELECT * FROM pawl.enqueue_many(1::smallint, 'q', 'test', array_fill('1'::json, ARRAY[1001]))`, "22023"},
		"number of keys":     {`SELECT * FROM pawl.enqueue_many(1::smallint, 'q', 'test', '{1,2}', p_dedupe_keys => '{a}')`, "22023"},
		"kind":               {`SELECT * FROM pawl.enqueue(1::smallint, 'q', '', '{}')`, "22023"},
		"no args":            {`SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', NULL)`, "22023"},
		"one without args":   {`SELECT * FROM pawl.enqueue_many(1::smallint, 'q', 'test', ARRAY['{}', NULL]::json[])`, "22023"},
		"attempts":           {`SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}', p_max_attempts => 1001::smallint)`, "22023"},
		"no attempts":        {`SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}', p_max_attempts => NULL)`, "22023"},
		"timeout":            {`SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}', p_timeout_ms => 0)`, "22023"},
		"backoff":            {`SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}', p_backoff_ms => 2, p_backoff_ms_max => 1)`, "22023"},
		"attempts of many":   {`SELECT * FROM pawl.enqueue_many(1::smallint, 'q', 'test', '{1}', p_max_attempts => 0::smallint)`, "22023"},
		"no key":             {`SELECT * FROM pawl.enqueue_unique(1::smallint, 'q', 'test', '{}', NULL)`, "22023"},
		"priority":           {`SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}', p_priority => 5::smallint)`, "22023"},
		"queue's name":       {`SELECT * FROM pawl.enqueue(1::smallint, '', 'test', '{}')`, "22023"},
		"namespace":          {`SELECT * FROM pawl.enqueue(7::smallint, 'q', 'test', '{}')`, "22023"},
	} {
		_, err := e.pool.Exec(e.ctx, test.sql)
		if got := sqlState(err); got != test.want {
			t.Errorf("%s: got SQLSTATE %q (%v), want %q", name, got, err, test.want)
		}
	}
}

// TestEngineIDs: ids are one's own, and a batch's are one block, however many enqueue.
func TestEngineIDs(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.queue("q")
	const writers, rounds = 8, 60
	var mu sync.Mutex
	want, seen := 0, map[int64]bool{}
	var wg sync.WaitGroup
	for w := range writers {
		conn := e.conn()
		wg.Go(func() {
			for i := range rounds {
				n := 1 + (i+w)%2*99
				var first int64
				var err error
				if n == 1 {
					err = conn.QueryRow(e.ctx, "SELECT pawl.enqueue(1::smallint, 'q', 'test', '{}')").Scan(&first)
				} else {
					err = conn.QueryRow(e.ctx, "SELECT first_id FROM pawl.enqueue_many(1::smallint, 'q', 'test', array_fill('{}'::json, ARRAY[$1::int]))", n).Scan(&first)
				}
				if err != nil {
					t.Errorf("enqueue: %v", err)
					return
				}
				mu.Lock()
				want += n
				for id := first; id < first+int64(n); id++ {
					seen[id] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != want {
		t.Errorf("ids: got %d different ones, want %d", len(seen), want)
	}
	if got := get[int](e, e.pool, "SELECT count(*) FROM pawl.job"); got != want {
		t.Errorf("jobs: got %d, want %d", got, want)
	}
}

// TestEngineDedupeAtOnce: of 16 that enqueue the same keys at once, one enqueues, and all are told its id.
func TestEngineDedupeAtOnce(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		const writers, keys = 16, 20
		e.queue("q")
		ids := make([][]int64, writers)
		errs := make([]error, writers)
		var wg sync.WaitGroup
		for w := range writers {
			conn := e.conn()
			wg.Go(func() {
				for k := range keys {
					id, _, err := e.enqueueKey(conn, "q", fmt.Sprint("key", k), "")
					errs[w] = errors.Join(errs[w], err)
					ids[w] = append(ids[w], id)
				}
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		for w := range writers {
			if !slices.Equal(ids[w], ids[0]) {
				return fmt.Errorf("ids: got %v and %v, want the same", ids[0], ids[w])
			}
		}
		if got := get[int](e, e.pool, "SELECT count(*) FROM pawl.job"); got != keys {
			return fmt.Errorf("jobs: got %d, want %d", got, keys)
		}
		return nil
	}, without{"the look at the unfinished job", "dedupe_take", "v_old IS NULL AND NOT pawl.job_finished(p_ns, v_job)", "false"})
}

// TestEngineDedupeFreed: a key is free again when its job is finished, in whatever way, and not before.
func TestEngineDedupeFreed(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	id, duplicate, err := e.enqueueKey(e.pool, "q", "a", "")
	if duplicate || err != nil {
		t.Fatalf("first: got %d, %v, %v, want no duplicate", id, duplicate, err)
	}
	var none int64
	ends := []struct {
		name string
		end  func()
	}{
		{"succeeded", func() { e.finishAll(e.pool, e.claim(e.pool, s, q, 1)) }},
		{"discarded", func() { e.settle(e.pool, e.claim(e.pool, s, q, 1), 0, "discarded", nil) }},
		{"cancelled by its handler", func() { e.settle(e.pool, e.claim(e.pool, s, q, 1), 0, "cancelled", nil) }},
		{"cancelled while it waited", func() { e.exec(e.pool, "SELECT pawl.job_cancel(1::smallint, $1, 'test')", id) }},
		{"succeeded after a retry", func() {
			e.settle(e.pool, e.claim(e.pool, s, q, 1), 0, "failed", &none)
			if got, _, _ := e.enqueueKey(e.pool, "q", "a", ""); got != id {
				t.Errorf("while it waits for its retry: got id %d, want %d", got, id)
			}
			e.finishAll(e.pool, e.claim(e.pool, s, q, 1))
		}},
	}
	for _, test := range ends {
		again, duplicate, err := e.enqueueKey(e.pool, "q", "a", "")
		if again != id || !duplicate || err != nil {
			t.Errorf("before it is %s: got %d, %v, %v, want a duplicate of %d", test.name, again, duplicate, err, id)
		}
		test.end()
		next, duplicate, err := e.enqueueKey(e.pool, "q", "a", "")
		if next == id || duplicate || err != nil {
			t.Errorf("after it is %s: got %d, %v, %v, want a new job", test.name, next, duplicate, err)
		}
		id = next
	}
}

// TestEngineDedupeWindow: a key with a window is free when that is over, and not when its job is.
func TestEngineDedupeWindow(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	id, _, _ := e.enqueueKey(e.pool, "q", "a", "1 hour")
	e.finishAll(e.pool, e.claim(e.pool, s, q, 1))
	if got, duplicate, err := e.enqueueKey(e.pool, "q", "a", "1 hour"); got != id || !duplicate || err != nil {
		t.Errorf("within the window: got %d, %v, %v, want a duplicate of %d", got, duplicate, err, id)
	}
	e.exec(e.pool, "UPDATE pawl.dedupe SET until = clock_timestamp()")
	if got, duplicate, err := e.enqueueKey(e.pool, "q", "a", "1 hour"); got == id || duplicate || err != nil {
		t.Errorf("after the window: got %d, %v, %v, want a new job", got, duplicate, err)
	}
}

// TestEngineDedupeBatch: a key that a batch has twice enqueues one job, in the order of the batch.
func TestEngineDedupeBatch(t *testing.T) {
	t.Parallel()
	for _, window := range []string{"", "1 hour"} {
		e := newEngine(t)
		old, _, _ := e.enqueueKey(e.pool, "q", "c", window)
		ids, duplicates, err := e.enqueueKeys(e.pool, "q", []string{"b", "c", "", "a", "b", "", "c", "b"}, window)
		if err != nil {
			t.Fatal(err)
		}
		if want := []bool{false, true, false, false, true, false, true, true}; !slices.Equal(duplicates, want) {
			t.Errorf("window %q: duplicates: got %v, want %v", window, duplicates, want)
		}
		if ids[4] != ids[0] || ids[7] != ids[0] || ids[1] != old || ids[6] != old {
			t.Errorf("window %q: ids: got %v, want 0, 4 and 7 the same, 1 and 6 %d", window, ids, old)
		}
		if got := e.drain(e.pool, e.session(), e.queue("q"), 3); !slices.Equal(got, []int64{old, ids[0], ids[2], ids[3], ids[5]}) {
			t.Errorf("window %q: claimed: got %v of %v", window, got, ids)
		}
	}
}

// TestEngineDedupeOrder: two batches with the same keys in opposite order wait for each other once, and do not deadlock.
func TestEngineDedupeOrder(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		// Each call pauses between its keys, so that two meet.
		e.change("dedupe_take", "FOR i IN 1 .. 5 LOOP", "PERFORM pg_sleep(0.05); FOR i IN 1 .. 5 LOOP")
		e.queue("q")
		var done []<-chan error
		for _, keys := range [][]string{{"a", "b", "c", "d"}, {"d", "c", "b", "a"}} {
			conn := e.conn()
			done = append(done, e.async(func() error { _, _, err := e.enqueueKeys(conn, "q", keys, ""); return err }))
		}
		return errors.Join(<-done[0], <-done[1])
	})
}

// TestEngineEnqueueRolledBack: an enqueue that is rolled back, whole or to a savepoint, leaves nothing, its key included.
func TestEngineEnqueueRolledBack(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	tx, _ := e.begin()
	a, _, _ := e.enqueueKey(tx, "q", "a", "")
	savepoint, err := tx.Begin(e.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.enqueueKey(savepoint, "q", "b", ""); err != nil {
		t.Fatal(err)
	}
	e.exec(savepoint, "SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}', p_run_at => now() + interval '1 hour')")
	if err := savepoint.Rollback(e.ctx); err != nil {
		t.Fatal(err)
	}
	whole, _ := e.begin()
	if _, _, err := e.enqueueKey(whole, "q", "c", ""); err != nil {
		t.Fatal(err)
	}
	if err := whole.Rollback(e.ctx); err != nil {
		t.Fatal(err)
	}
	e.commit(tx)
	if got, want := e.drain(e.pool, s, q, 10), []int64{a}; !slices.Equal(got, want) {
		t.Errorf("claimed: got %v, want %v", got, want)
	}
	if got, want := all[string](e, e.pool, "SELECT key FROM pawl.dedupe"), []string{"a"}; !slices.Equal(got, want) {
		t.Errorf("keys: got %v, want %v", got, want)
	}
	if got := get[int](e, e.pool, "SELECT (SELECT count(*) FROM pawl.job) + (SELECT count(*) FROM pawl.scheduled)"); got != 1 {
		t.Errorf("jobs and scheduled: got %d, want 1", got)
	}
}

// TestEngineDedupeSweep: the sweep removes the keys of finished jobs and past windows, and no others.
func TestEngineDedupeSweep(t *testing.T) {
	t.Parallel()
	prove(t, func(e *engine) error {
		q, s := e.queue("q"), e.session()
		for _, key := range []string{"done", "open"} {
			if _, _, err := e.enqueueKey(e.pool, "q", key, ""); err != nil {
				return err
			}
		}
		e.finishAll(e.pool, e.claim(e.pool, s, q, 1))
		for _, key := range []string{"past", "window"} {
			if _, _, err := e.enqueueKey(e.pool, "q", key, "1 hour"); err != nil {
				return err
			}
		}
		e.exec(e.pool, "UPDATE pawl.dedupe SET until = now() WHERE key = 'past'")
		taken, _ := e.begin() // an enqueue that takes the finished job's key is in flight: its key stays
		if _, _, err := e.enqueueKey(taken, "q", "done", ""); err != nil {
			return err
		}
		var removed int
		var kind, key *string
		for round := 0; round == 0 || key != nil; round++ {
			var n int
			err := e.pool.QueryRow(e.ctx, "SELECT * FROM pawl.sweep_dedupe(1::smallint, $1, $2, 1)", kind, key).Scan(&n, &kind, &key)
			if err != nil || round > 10 {
				return fmt.Errorf("round %d: %v", round, err)
			}
			removed += n
		}
		e.commit(taken)
		got := all[string](e, e.pool, "SELECT key FROM pawl.dedupe ORDER BY key")
		if want := []string{"done", "open", "window"}; removed != 1 || !slices.Equal(got, want) {
			return fmt.Errorf("got %d removed and %v left, want 1 and %v", removed, got, want)
		}
		return nil
	}, without{"whether the job is finished", "sweep_dedupe", "AND pawl.job_finished(p_ns, x.job_id)", ""},
		without{"whether the window is over", "sweep_dedupe", "x.until < clock_timestamp()", "x.until IS NOT NULL"})
}

// TestEngineFirstUse: two that use a queue for the first time wait for each other and agree, and no id of a queue is wasted.
func TestEngineFirstUse(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	first, _ := e.begin()
	e.enqueue(first, "new")
	_, err := e.second(first, func(conn *pgx.Conn) error {
		_, err := conn.Exec(e.ctx, "SELECT * FROM pawl.enqueue(1::smallint, 'new', 'test', '{}', p_priority => 3::smallint)")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		e.enqueue(e.pool, "new")
	}
	if got := e.queue("next"); got != e.queue("new")+2 && got != e.queue("new")+1 {
		t.Errorf("id of the next queue: got %d after %d", got, e.queue("new"))
	}
	if got := get[int](e, e.pool, "SELECT count(*) FROM pawl.line l JOIN pawl.queue q ON q.id = l.queue_id WHERE q.name = 'new'"); got != 2 {
		t.Errorf("lines of the queue: got %d, want 2", got)
	}
}
