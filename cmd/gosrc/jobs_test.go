package gosrc_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/gosrc"
	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

const ns = 1

// newPool is a database with the example's tables.
func newPool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := dbtest.New(t)
	if err := gosrc.Create(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	return pool
}

// work runs a coordinator and a worker until the test ends.
func work(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	w, err := worker.New(pool, worker.Config{Queues: map[string]int{gosrc.QueueParse: 4, gosrc.QueueParseTest: 2}})
	if err != nil {
		t.Fatal(err)
	}
	gosrc.Register(w)
	c, err := coordinator.New(pool, coordinator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- w.Run(ctx) }()
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// until looks again and again until what is waited for has come.
func until(t *testing.T, what string, come func() (bool, error)) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for {
		ok, err := come()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("%s: still waiting", what)
		}
	}
}

func finished(t *testing.T, pool *pgxpool.Pool, run int64) {
	t.Helper()
	until(t, "end of the run", func() (bool, error) {
		p, err := gosrc.ReadProgress(t.Context(), pool, run)
		return p.Finished, err
	})
}

func start(t *testing.T, pool *pgxpool.Pool, root string) int64 {
	t.Helper()
	paths, err := gosrc.List(root)
	if err != nil {
		t.Fatal(err)
	}
	run, err := gosrc.Start(t.Context(), pool, ns, root, paths)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func same(t *testing.T, pool *pgxpool.Pool, run int64, want gosrc.Totals) {
	t.Helper()
	got, err := gosrc.ReadTotals(t.Context(), pool, run)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range gosrc.Diff(got, want) {
		t.Error(line)
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	root := writeTree(t, tree)
	work(t, pool)
	for range 2 { // the second keeps what the first wrote
		run := start(t, pool, root)
		finished(t, pool, run)
		same(t, pool, run, treeTotals)
		p, err := gosrc.ReadProgress(t.Context(), pool, run)
		if want := (gosrc.Progress{Files: 7, Done: 7, Finished: true}); err != nil || p != want {
			t.Errorf("got %+v, %v, want %+v", p, err, want)
		}
		a, err := gosrc.ReadAttempts(t.Context(), pool, ns, run)
		if err != nil || a.Total != 7 || a.Lost != 0 || a.Failed != 0 || a.Sessions != 0 || a.Example != 0 || a.Elapsed <= 0 {
			t.Errorf("got %+v, %v, want 7 attempts and no trouble", a, err)
		}
	}
	same(t, pool, 1, treeTotals)
}

// A file that has gone when its job runs counts as bad, and does not keep the run from its end.
func TestRun_fileGone(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	run, err := gosrc.Start(t.Context(), pool, ns, t.TempDir(), []string{"a/gone.go"})
	if err != nil {
		t.Fatal(err)
	}
	work(t, pool)
	finished(t, pool, run)
	same(t, pool, run, gosrc.Totals{"a": {Files: 1, Bad: 1}})
}

func TestStart_atomic(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := gosrc.Start(ctx, pool, ns, "/", []string{"a.go"}); err == nil {
		t.Error("started although the context had ended")
	}
	if _, err := gosrc.Start(t.Context(), pool, ns, "/", nil); err == nil {
		t.Error("started without files")
	}
	if _, err := gosrc.Start(t.Context(), pool, 99, "/", []string{"a.go"}); err == nil {
		t.Error("started in a namespace that is not there")
	}
	var runs, jobs int
	if err := pool.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM gosrc.run), (SELECT count(*) FROM pawl.job)").Scan(&runs, &jobs); err != nil || runs+jobs != 0 {
		t.Errorf("%d runs and %d jobs are left of starts that failed (%v)", runs, jobs, err)
	}
}

// While a queue is paused the join snoozes; it writes the totals once the last file is there.
func TestJoin_waits(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	root := writeTree(t, tree)
	run := start(t, pool, root)
	if err := job.PauseQueue(t.Context(), pool, ns, gosrc.QueueParseTest); err != nil {
		t.Fatal(err)
	}
	work(t, pool)
	joins, _, err := job.List(t.Context(), pool, job.Filter{Kind: gosrc.JoinRun.Kind()})
	if err != nil || len(joins) != 1 {
		t.Fatalf("joins %+v, %v, want one", joins, err)
	}
	until(t, "second snooze of the join", func() (bool, error) {
		story, err := job.Get(t.Context(), pool, ns, joins[0].ID)
		if err != nil {
			return false, err
		}
		snoozed := 0
		for _, a := range story.Attempts {
			if a.Outcome == job.Snoozed {
				snoozed++
			}
		}
		return snoozed >= 2, nil
	})
	p, err := gosrc.ReadProgress(t.Context(), pool, run)
	if want := (gosrc.Progress{Files: 7, Done: 5}); err != nil || p != want {
		t.Errorf("got %+v, %v, want %+v", p, err, want)
	}
	missing, err := gosrc.Missing(t.Context(), pool, ns, run, 10)
	if err != nil || len(missing) != 2 {
		t.Errorf("missing %v, %v, want two", missing, err)
	}
	if left, err := gosrc.Unfinished(t.Context(), pool, run+1); err != nil || left != 2 {
		t.Errorf("%d files left, %v, want 2", left, err)
	}
	if err := job.ResumeQueue(t.Context(), pool, ns, gosrc.QueueParseTest); err != nil {
		t.Fatal(err)
	}
	finished(t, pool, run)
	same(t, pool, run, treeTotals)
}

// newRun makes a run of so many files, of which none is there.
func newRun(t *testing.T, pool *pgxpool.Pool, files int) int64 {
	t.Helper()
	var run int64
	if err := pool.QueryRow(t.Context(), "INSERT INTO gosrc.run (root, files) VALUES ('/', $1) RETURNING id", files).Scan(&run); err != nil {
		t.Fatal(err)
	}
	return run
}

func addFile(t *testing.T, on gosrc.DB, run int64, path string) {
	t.Helper()
	_, err := on.Exec(t.Context(), `
		INSERT INTO gosrc.file (run_id, path, dir, bad, lines, funcs, methods, types, consts, vars, imports, job_id, attempt)
		VALUES ($1, $2, 'p', false, 1, 0, 0, 0, 0, 0, 0, 0, 1)`, run, path)
	if err != nil {
		t.Fatal(err)
	}
}

func begin(t *testing.T, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

// joinIn runs the join's handler in a transaction.
func joinIn(t *testing.T, tx pgx.Tx, run int64) job.Ending {
	t.Helper()
	_, err := gosrc.JoinHandler(t.Context(), tx, &job.Job[gosrc.Join]{Args: gosrc.Join{Run: run}})
	return job.EndingOf(err)
}

// Two files are the last ones and do not see each other. Whoever looks meanwhile leaves, and who looks after both have committed does not.
func TestJoin_lastTwo(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	run := newRun(t, pool, 2)
	first, second := begin(t, pool), begin(t, pool)
	addFile(t, first, run, "p/1.go")
	addFile(t, second, run, "p/2.go")
	for name, tx := range map[string]pgx.Tx{"first": first, "second": second, "another": begin(t, pool)} {
		if e := joinIn(t, tx, run); e.Outcome != job.Snoozed {
			t.Errorf("join that sees what %s sees: got %s, want snoozed", name, e.Outcome)
		}
	}
	for _, tx := range []pgx.Tx{first, second} {
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	crashed := begin(t, pool)
	if e := joinIn(t, crashed, run); e.Outcome != job.Succeeded {
		t.Fatalf("got %s (%v), want succeeded", e.Outcome, e.Err)
	}
	if err := crashed.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, pool, run, gosrc.Totals{}) // nothing is left of it
	again := begin(t, pool)
	if e := joinIn(t, again, run); e.Outcome != job.Succeeded {
		t.Fatalf("got %s (%v), want succeeded", e.Outcome, e.Err)
	}
	if err := again.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, pool, run, gosrc.Totals{"p": {Files: 2, Counts: gosrc.Counts{Lines: 2}}})
}

func TestJoin_givesUp(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	if e := joinIn(t, begin(t, pool), 99); e.Outcome != job.Discarded {
		t.Errorf("run that is not there: got %s, want discarded", e.Outcome)
	}
	run := newRun(t, pool, 1)
	if _, err := pool.Exec(t.Context(), "UPDATE gosrc.run SET started_at = started_at - interval '2 days'"); err != nil {
		t.Fatal(err)
	}
	if e := joinIn(t, begin(t, pool), run); e.Outcome != job.Discarded {
		t.Errorf("run of the day before yesterday: got %s, want discarded", e.Outcome)
	}
	if left, err := gosrc.Unfinished(t.Context(), pool, run+1); err != nil || left != 0 {
		t.Errorf("%d files left, %v, want none: the run was given up", left, err)
	}
}

// What was counted twice is seen: no key of the tables hides it.
func TestTotals_seeDoubles(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	run := newRun(t, pool, 1)
	addFile(t, pool, run, "p/1.go")
	addFile(t, pool, run, "p/1.go")
	for range 2 {
		tx := begin(t, pool)
		if e := joinIn(t, tx, run); e.Outcome != job.Succeeded {
			t.Fatalf("got %s (%v), want succeeded", e.Outcome, e.Err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := gosrc.ReadTotals(t.Context(), pool, run)
		if err != nil {
			return // totalled twice: as it should be
		}
		want := gosrc.Totals{"p": {Files: 2, Counts: gosrc.Counts{Lines: 2}}}
		if lines := gosrc.Diff(got, want); lines != nil {
			t.Fatalf("the double does not show: %q", lines)
		}
	}
	t.Error("totals that were written twice were read without an error")
}

func TestJoinWait(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		age         time.Duration
		done, files int
		want        time.Duration
	}{
		{time.Second, 0, 7711, gosrc.JoinWaitMax},
		{10 * time.Second, 7000, 7700, time.Second},
		{10 * time.Second, 7699, 7700, gosrc.JoinWaitMin},
		{24 * time.Hour, 0, 1_000_000_000, gosrc.JoinWaitMax},
	} {
		if got := gosrc.JoinWait(tc.age, tc.done, tc.files); got != tc.want {
			t.Errorf("%d of %d files after %s: got %s, want %s", tc.done, tc.files, tc.age, got, tc.want)
		}
	}
}

// Several processes may make the tables at the same time.
func TestCreate(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	const many = 8
	made := make(chan error, many)
	for range many {
		go func() { made <- gosrc.Create(context.Background(), pool) }()
	}
	var err error
	for range many {
		err = errors.Join(err, <-made)
	}
	if err != nil {
		t.Error(err)
	}
}

// A namespace of its own has jobs of its own.
func TestRun_namespace(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	if _, err := pool.Exec(t.Context(), "INSERT INTO pawl.namespace (ns, name) VALUES (7, 'seven')"); err != nil {
		t.Fatal(err)
	}
	if _, err := gosrc.Start(t.Context(), pool, 7, t.TempDir(), []string{"a.go", "a_test.go"}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		ns   int16
		want int
	}{{ns, 0}, {7, 3}} {
		jobs, _, err := job.List(t.Context(), pool, job.Filter{Namespace: tc.ns})
		if err != nil || len(jobs) != tc.want {
			t.Errorf("namespace %d: %d jobs, %v, want %d", tc.ns, len(jobs), err, tc.want)
		}
	}
}
