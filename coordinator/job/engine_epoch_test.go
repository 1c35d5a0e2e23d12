package job_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db/devpg"
	"github.com/pawl-dev/pawl/db/migrate"
)

// newCluster starts a server of an identity of its own, with lower xids than the tests' server will have, and gives a pool on a migrated database for each name.
// (dbtest.Private is a copy of a template: it has the identity of all the others.)
func newCluster(t *testing.T, names ...string) []*pgxpool.Pool {
	t.Helper()
	dir, err := os.MkdirTemp("", "pawl-epoch-*")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	server, err := devpg.Start(t.Context(), devpg.Config{Dir: filepath.Join(dir, "pg"), Temporary: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	var pools []*pgxpool.Pool
	for _, name := range names {
		admin, err := pgx.Connect(t.Context(), server.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
			t.Fatal(err)
		}
		if err := admin.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := migrate.Up(t.Context(), server.URL(name)); err != nil {
			t.Fatal(err)
		}
		pool, err := pgxpool.New(t.Context(), server.URL(name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		pools = append(pools, pool)
	}
	return pools
}

// copyAll copies all tables of Pawl into an empty database, as a dump and restore does: rows and sequences, no xids.
func copyAll(ctx context.Context, from, to *pgxpool.Pool) error {
	source, err := from.Acquire(ctx)
	if err != nil {
		return err
	}
	defer source.Release()
	target, err := to.Acquire(ctx)
	if err != nil {
		return err
	}
	defer target.Release()
	tx, err := source.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	rows, err := tx.Query(ctx, `SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'pawl'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
		AND c.relname NOT IN ('partition', 'migration') ORDER BY c.relname NOT IN ('namespace', 'queue', 'session'), c.relname`)
	if err != nil {
		return err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if _, err := target.Exec(ctx, "DELETE FROM pawl.namespace; DELETE FROM pawl.global_home"); err != nil {
		return err
	}
	for _, table := range tables {
		var data bytes.Buffer
		if _, err := tx.Conn().PgConn().CopyTo(ctx, &data, "COPY (SELECT * FROM pawl."+table+") TO STDOUT"); err != nil {
			return fmt.Errorf("copy %s out: %w", table, err)
		}
		if _, err := target.Conn().PgConn().CopyFrom(ctx, &data, "COPY pawl."+table+" FROM STDIN"); err != nil {
			return fmt.Errorf("copy %s in: %w", table, err)
		}
	}
	rows, err = tx.Query(ctx, "SELECT format('SELECT setval(''pawl.%I'', %s)', sequencename, coalesce(last_value, 1)) FROM pg_sequences WHERE schemaname = 'pawl'")
	if err != nil {
		return err
	}
	sets, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	_, err = target.Exec(ctx, strings.Join(sets, ";"))
	return err
}

// burn uses up xids.
func (e *engine) burn(xids int) {
	e.Helper()
	e.exec(e.pool, fmt.Sprintf("DO $$ BEGIN FOR i IN 1 .. %d LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$", xids))
}

// backlog puts a database into all the states that a move must survive: batches half taken, a straggler half taken and one that is still open, jobs running,
// retrying, scheduled, cancelled and finished, a line never claimed from. open is what is not finished, ended what is.
func (e *engine) backlog() (open, ended []int64) {
	e.Helper()
	e.burn(20_000)
	q, s := e.queue("q"), e.session()
	e.enqueueMany(e.pool, "q", 5)
	late, _ := e.begin()
	for range 4 {
		e.enqueueMany(late, "q", 3)
	}
	never, _ := e.begin() // will not have committed
	e.enqueue(never, "q")
	e.enqueueMany(e.pool, "q", 20)
	first := e.claim(e.pool, s, q, 8) // a batch and part of the next, past the straggler
	e.commit(late)
	second := e.claim(e.pool, s, q, 4) // one of its rows and part of the next
	if second.jobs[0] != first.jobs[4]+1024-4 {
		e.Fatalf("second claim: got %v after %v, want jobs of the straggler", second.jobs, first.jobs)
	}
	e.finish(e.pool, first, "{[0,3)}")
	e.settle(e.pool, first, 3, "failed", nil)
	e.settle(e.pool, first, 4, "discarded", nil)
	e.settle(e.pool, second, 3, "returned", nil)
	waiting := e.enqueueMany(e.pool, "q", 6)
	e.cancel(e.pool, waiting+2)
	e.exec(e.pool, "SELECT pawl.enqueue(1::smallint, 'q', 'test', '{}', p_run_at => now() + interval '1 hour') FROM generate_series(1, 2)")
	e.enqueueMany(e.pool, "never claimed", 3)
	e.exec(e.pool, "UPDATE pawl.session SET expires_at = now() - interval '1 hour'")
	unfinished := "SELECT j.id FROM pawl.job j CROSS JOIN LATERAL pawl.job_state(1::smallint, j.id) s WHERE (s.state IN ('succeeded', 'discarded', 'cancelled')) = $1 ORDER BY j.id"
	return all[int64](e, e.pool, unfinished, false), all[int64](e, e.pool, unfinished, true)
}

// TestEngineMove: a database with a backlog is copied into a cluster of lower xids. Until the rebase it refuses; after it nothing is lost and nothing runs twice,
// also when it is moved once more in the middle.
func TestEngineMove(t *testing.T) {
	t.Parallel()
	source := newEngine(t)
	open, ended := source.backlog()
	for i, pool := range newCluster(t, "a", "b", "c") {
		rules := []without{
			{},
			{"counting the epoch up", "rebase", "SET epoch = x.epoch + 1,", "SET"},
			{"the stragglers of the base", "rebase", "base_late_xid = l.late_xid,", "base_late_xid = NULL,"},
		}
		name := "rule"
		if i > 0 {
			name = "without " + rules[i].rule
		}
		t.Run(name, func(t *testing.T) {
			e := &engine{TB: t, ctx: t.Context(), pool: pool, changed: map[string]string{}}
			if err := copyAll(e.ctx, source.pool, e.pool); err != nil {
				t.Fatal(err)
			}
			if i > 0 {
				e.change(rules[i].function, rules[i].from, rules[i].to)
			}
			err := e.settleIn(open, ended)
			if i == 0 && err != nil {
				t.Error(err)
			}
			if i > 0 && err == nil {
				t.Error("all went well without the rule: this test does not prove it")
			}
		})
	}
}

// settleIn checks and rebases a copy, works it off, and says what is wrong with what became of the jobs.
func (e *engine) settleIn(open, ended []int64) error {
	s := e.session()
	queues := all[int32](e, e.pool, "SELECT id FROM pawl.queue ORDER BY name DESC") // q, never claimed
	if _, err := e.tryClaim(e.pool, s, queues[0], 10); sqlState(err) != "PW003" {
		return fmt.Errorf("claim before the rebase: got %v, want PW003", err)
	}
	for _, call := range []string{"enqueue(1::smallint, 'q', 'test', '{}')", "enqueue_many(1::smallint, 'q', 'test', '{1,2}')"} {
		if _, err := e.pool.Exec(e.ctx, "SELECT pawl."+call); sqlState(err) != "PW003" {
			return fmt.Errorf("%s before the rebase: got %v, want PW003", call, err)
		}
	}
	if n := get[int](e, e.pool, "SELECT pawl.rebase(1::smallint)"); n != 2 {
		return fmt.Errorf("lines rebased: got %d, want 2", n)
	}
	if n := get[int](e, e.pool, "SELECT pawl.rebase(1::smallint)"); n != 0 {
		return fmt.Errorf("lines rebased again: got %d, want 0", n)
	}
	var fresh, got []int64
	for round := range 3 {
		fresh = append(fresh, e.enqueue(e.pool, "q"))
		first := e.enqueueMany(e.pool, "never claimed", 2)
		fresh = append(fresh, first, first+1)
		for _, q := range queues {
			for range 3 { // some, so that the next move is in the middle
				c := e.claim(e.pool, s, q, 2)
				got = append(got, c.jobs...)
				if c.id != 0 {
					e.finishAll(e.pool, c)
				}
			}
		}
		if round < 2 { // and once more
			e.exec(e.pool, "UPDATE pawl.line SET cluster = 1")
			if n := get[int](e, e.pool, "SELECT pawl.rebase(1::smallint)"); n != 2 {
				return fmt.Errorf("lines rebased in round %d: got %d, want 2", round, n)
			}
		}
	}
	e.die(s - 1) // that of the source
	e.exec(e.pool, "UPDATE pawl.scheduled SET run_at = now()")
	e.exec(e.pool, "SELECT pawl.sweep_due(1::smallint, NULL, 100)")
	for _, q := range queues {
		for c := e.claim(e.pool, s, q, 7); c.id != 0; c = e.claim(e.pool, s, q, 7) {
			got = append(got, c.jobs...)
			e.finishAll(e.pool, c)
		}
	}
	want := slices.Concat(open, fresh)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return fmt.Errorf("claimed after the move: got %d jobs, want %d; got %v, want %v", len(got), len(want), got, want)
	}
	for _, id := range got {
		if state := e.state(e.pool, id); !strings.HasPrefix(state, "succeeded") {
			return fmt.Errorf("state of job %d: got %s, want succeeded", id, state)
		}
	}
	for _, id := range ended {
		if state := e.state(e.pool, id); !strings.HasSuffix(state, " 1") || strings.HasPrefix(state, "available") {
			return fmt.Errorf("state of job %d, which was finished before the move: got %s", id, state)
		}
	}
	return nil
}

// TestEngineMoveUnseen: a copy into a cluster of the same identity (one that was cloned on disk, as snapshots of managed databases are) with lower xids is seen by its
// cursors: they come from the future. It must be refused as well, not skip what is enqueued; the rebase heals it.
func TestEngineMoveUnseen(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	q, s := e.queue("q"), e.session()
	e.enqueue(e.pool, "q")
	e.claim(e.pool, s, q, 1)
	// As if the cluster had been 1,000,000 xids further when the copy was made.
	e.exec(e.pool, "UPDATE pawl.claim SET cursor_xid = (cursor_xid::text::bigint + 1000000)::text::xid8")
	job := e.enqueue(e.pool, "q")
	c, err := e.tryClaim(e.pool, s, q, 1)
	if sqlState(err) != "PW003" {
		t.Errorf("claim behind a cursor from the future: got %v, %v, want PW003: job %d would be skipped for ever", c.jobs, err, job)
	}
	if n := get[int](e, e.pool, "SELECT pawl.rebase(1::smallint)"); n != 1 {
		t.Errorf("lines rebased: got %d, want 1", n)
	}
	again := e.enqueue(e.pool, "q")
	if got := e.drain(e.pool, s, q, 10); !slices.Contains(got, again) {
		t.Errorf("claimed after the rebase: got %v, want %d among them", got, again)
	}
}

// TestEngineMoveHigher: in a cluster whose xids are beyond every range that came with the copy the rebase makes ranges first.
func TestEngineMoveHigher(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.enqueue(e.pool, "q")
	e.exec(e.pool, "UPDATE pawl.line SET cluster = 1")
	// As if the ranges had been made for a cluster that is far behind this one: this one's xids have none.
	e.exec(e.pool, `DO $$ DECLARE t text; BEGIN
		FOR t IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'pawl.ready'::regclass LOOP EXECUTE 'ALTER TABLE pawl.ready DETACH PARTITION ' || t || '; DROP TABLE ' || t; END LOOP;
		DELETE FROM pawl.partition WHERE parent = 'ready' AND range_from > 0;
		UPDATE pawl.partition SET range_to = 10 WHERE parent = 'ready';
		CREATE TABLE pawl.ready_0 PARTITION OF pawl.ready FOR VALUES FROM (MINVALUE) TO ('10'); END $$`)
	e.exec(e.pool, "SELECT pawl.rebase(1::smallint)")
	if _, err := e.pool.Exec(e.ctx, "SELECT * FROM pawl.enqueue(1::smallint, 'q', 'test', '{}')"); err != nil {
		t.Errorf("enqueue after the rebase: %v", err)
	}
}
