package job_test

import (
	"testing"
)

// ranges counts the ranges of all hot tables.
func (e *engine) ranges(db dbtx) int {
	e.Helper()
	return get[int](e, db, "SELECT count(*) FROM pawl.partition")
}

// useUp makes as if all ranges but the last few ids of the newest were used.
func (e *engine) useUp() {
	e.Helper()
	e.exec(e.pool, "SELECT setval('pawl.claim_id_seq', (SELECT max(range_to)::bigint - 3 FROM pawl.partition WHERE parent = 'claim'))")
}

// TestEnginePartitionAhead: ranges are made before they are needed, on any number of nodes at once, and then no more.
func TestEnginePartitionAhead(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	if got := get[int](e, e.pool, "SELECT pawl.partition_ahead()"); got != 0 {
		t.Errorf("with ranges ahead: got %d made, want none", got)
	}
	before := e.ranges(e.pool)
	e.useUp()
	first, _ := e.begin()
	if got := get[int](e, first, "SELECT pawl.partition_ahead()"); got < 2 {
		t.Errorf("with used ranges: got %d made, want one of claim and receipt at least", got)
	}
	if got := get[int](e, e.pool, "SELECT pawl.partition_ahead()"); got != 0 {
		t.Errorf("second node: got %d made, want none", got)
	}
	e.enqueueMany(e.pool, "q", 9) // does not wait
	e.commit(first)
	if got := e.ranges(e.pool); got < before+2 {
		t.Errorf("ranges: got %d, want %d and more", got, before+2)
	}
	var held []int64 // over the edge
	for c := e.claim(e.pool, s, q, 1); c.id != 0; c = e.claim(e.pool, s, q, 1) {
		e.finishAll(e.pool, c)
		held = append(held, c.jobs...)
	}
	if len(held) != 9 {
		t.Errorf("claimed over the edge of a range: got %v, want 9 jobs", held)
	}
	if got := e.state(e.pool, held[0]) + e.state(e.pool, held[8]); got != "succeeded 1succeeded 1" {
		t.Errorf("states: got %s, want succeeded", got)
	}
}

// TestEnginePartitionReader: neither an open reader nor an open writer keeps ranges from being made, nor are others kept waiting.
func TestEnginePartitionReader(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.queue("q")
	e.useUp()
	tx, _ := e.begin()
	e.exec(tx, "SELECT (SELECT count(*) FROM pawl.job) + (SELECT count(*) FROM pawl.ready) + (SELECT count(*) FROM pawl.claim) + (SELECT count(*) FROM pawl.receipt)")
	e.enqueue(tx, "q")
	if got := get[int](e, e.pool, "SELECT pawl.partition_ahead()"); got < 2 {
		t.Errorf("with a reader and a writer: got %d made, want two at least", got)
	}
	e.commit(tx)
}

// TestEnginePartitionLocked: behind a lock that does exclude it, it gives up soon and whole, enqueues go on meanwhile, and the next call does it.
func TestEnginePartitionLocked(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.queue("q")
	e.useUp()
	before := e.ranges(e.pool)
	tx, _ := e.begin()
	e.exec(tx, "LOCK TABLE pawl.receipt IN SHARE UPDATE EXCLUSIVE MODE") // as VACUUM has it
	maker := e.conn()
	done := e.async(func() error { _, err := maker.Exec(e.ctx, "SELECT pawl.partition_ahead()"); return err })
	e.awaitBlocked(maker.PgConn().PID())
	writer, _ := e.begin()
	e.exec(writer, "SET LOCAL statement_timeout = '1s'")
	e.enqueueMany(writer, "q", 10)
	e.commit(writer)
	if err := <-done; sqlState(err) != "55P03" {
		t.Errorf("behind the lock: got %v, want a lock timeout", err)
	}
	if got := e.ranges(e.pool); got != before {
		t.Errorf("ranges after it gave up: got %d, want %d", got, before)
	}
	e.commit(tx)
	if got := get[int](e, e.pool, "SELECT pawl.partition_ahead()"); got < 2 {
		t.Errorf("afterwards: got %d made, want two at least", got)
	}
}

// TestEnginePartitionRate: at a high rate, and after a jump beyond the last range, what is made covers two hours and whatever lies between.
func TestEnginePartitionRate(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.exec(e.pool, "UPDATE pawl.partition SET created_at = now() - interval '1000 s', position_at = 0")
	e.exec(e.pool, "SELECT setval('pawl.claim_id_seq', 150000000)") // 150,000 a second; beyond what there is
	e.exec(e.pool, "SELECT pawl.partition_ahead()")
	ahead := get[float64](e, e.pool, "SELECT max(range_to)::float8 FROM pawl.partition WHERE parent = 'claim'") - 150e6
	if want := 150e3 * 7200.0; ahead < want {
		t.Errorf("ids ahead: got %.0f, want %.0f, two hours at 150,000 a second", ahead, want)
	}
	gaps := get[int](e, e.pool, `SELECT count(*) FROM (SELECT range_from, lag(range_to) OVER (PARTITION BY parent ORDER BY range_from) AS before FROM pawl.partition) p
		WHERE range_from <> before`)
	if gaps != 0 {
		t.Errorf("gaps between ranges: got %d, want none", gaps)
	}
}
