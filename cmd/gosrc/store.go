package gosrc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
)

// DB is what the reading functions take: a pool, a connection or a transaction.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// The example's own tables. They have nothing to do with Pawl's: a user of Pawl has tables like these. No unique key guards file, import and totals.
const schema = `
CREATE SCHEMA IF NOT EXISTS gosrc;

CREATE TABLE IF NOT EXISTS gosrc.run (
  id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  root        text        NOT NULL,
  files       int         NOT NULL,
  started_at  timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz
);

CREATE TABLE IF NOT EXISTS gosrc.file (
  run_id   bigint      NOT NULL,
  path     text        NOT NULL,
  dir      text        NOT NULL,
  bad      boolean     NOT NULL,
  lines    int         NOT NULL,
  funcs    int         NOT NULL,
  methods  int         NOT NULL,
  types    int         NOT NULL,
  consts   int         NOT NULL,
  vars     int         NOT NULL,
  imports  int         NOT NULL,
  job_id   bigint      NOT NULL,
  attempt  int         NOT NULL,
  at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS file_run ON gosrc.file (run_id, dir, path);

CREATE TABLE IF NOT EXISTS gosrc.import (
  run_id   bigint NOT NULL,
  dir      text   NOT NULL,
  path     text   NOT NULL,
  imported text   NOT NULL
);
CREATE INDEX IF NOT EXISTS import_run ON gosrc.import (run_id, dir, imported);

CREATE TABLE IF NOT EXISTS gosrc.totals (
  run_id   bigint NOT NULL,
  dir      text   NOT NULL,
  files    bigint NOT NULL,
  bad      bigint NOT NULL,
  lines    bigint NOT NULL,
  funcs    bigint NOT NULL,
  methods  bigint NOT NULL,
  types    bigint NOT NULL,
  consts   bigint NOT NULL,
  vars     bigint NOT NULL,
  imports  bigint NOT NULL,
  imported bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS totals_run ON gosrc.totals (run_id, lines);
`

// Create makes the schema gosrc and its tables where they are missing. Several processes may do so at once.
func Create(ctx context.Context, pool *pgxpool.Pool) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('gosrc', 0))"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, schema)
		return err
	})
	if err != nil {
		return fmt.Errorf("create tables of gosrc: %w", err)
	}
	return nil
}

// Start begins a run over the files at paths below root: the run, a job for each file and the join exist together or not at all. It returns the run.
func Start(ctx context.Context, pool *pgxpool.Pool, ns int16, root string, paths []string) (run int64, err error) {
	if len(paths) == 0 {
		return 0, errors.New("start run: no files")
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, "INSERT INTO gosrc.run (root, files) VALUES ($1, $2) RETURNING id", root, len(paths)).Scan(&run)
		if err != nil {
			return err
		}
		code, tests := split(run, root, paths)
		if _, err := ParseFile.EnqueueMany(ctx, tx, code, job.Namespace(ns)); err != nil {
			return err
		}
		if _, err := ParseFile.EnqueueMany(ctx, tx, tests, job.Namespace(ns), job.Queue(QueueParseTest)); err != nil {
			return err
		}
		_, err = JoinRun.Enqueue(ctx, tx, Join{Run: run}, job.Namespace(ns))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("start run: %w", err)
	}
	for _, queue := range []string{QueueParse, QueueParseTest} {
		_ = job.Hint(ctx, pool, ns, queue) // without it the workers look a little later
	}
	return run, nil
}

// Progress is how far a run is.
type Progress struct {
	Files    int // in all
	Done     int
	Finished bool // the totals are there
}

// ReadProgress tells how far a run is.
func ReadProgress(ctx context.Context, on DB, run int64) (Progress, error) {
	var p Progress
	err := on.QueryRow(ctx, `
		SELECT r.files, (SELECT count(*) FROM gosrc.file f WHERE f.run_id = r.id), r.finished_at IS NOT NULL
		FROM gosrc.run r
		WHERE r.id = $1`, run).Scan(&p.Files, &p.Done, &p.Finished)
	if err != nil {
		return p, fmt.Errorf("progress of run %d: %w", run, err)
	}
	return p, nil
}

// Unfinished returns how many files of earlier runs are not counted yet: those runs were cut off. Runs that were given up do not count.
func Unfinished(ctx context.Context, on DB, before int64) (files int, err error) {
	err = on.QueryRow(ctx, `
		SELECT coalesce(sum(r.files - (SELECT count(*) FROM gosrc.file f WHERE f.run_id = r.id)), 0)
		FROM gosrc.run r
		WHERE r.id < $1 AND r.finished_at IS NULL AND r.started_at > now() - $2::interval`, before, joinAgeMax).Scan(&files)
	if err != nil {
		return 0, fmt.Errorf("unfinished runs: %w", err)
	}
	return files, nil
}

// Missing returns the first jobs, at most limit, whose files are not counted yet.
func Missing(ctx context.Context, on DB, ns int16, run int64, limit int) ([]int64, error) {
	rows, err := on.Query(ctx, `
		SELECT j.id
		FROM pawl.job j
		WHERE j.ns = $1 AND j.kind = $2 AND (j.args ->> 'run')::bigint = $3
		  AND j.id NOT IN (SELECT f.job_id FROM gosrc.file f WHERE f.run_id = $3)
		ORDER BY j.id
		LIMIT $4`, ns, ParseFile.Kind(), run, limit)
	if err != nil {
		return nil, fmt.Errorf("missing files of run %d: %w", run, err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("missing files of run %d: %w", run, err)
	}
	return ids, nil
}

// ReadTotals returns what the join of a run wrote. A package that is there twice is an error.
func ReadTotals(ctx context.Context, on DB, run int64) (Totals, error) {
	rows, err := on.Query(ctx, `
		SELECT t.dir, t.files, t.bad, t.lines, t.funcs, t.methods, t.types, t.consts, t.vars, t.imports, t.imported
		FROM gosrc.totals t
		WHERE t.run_id = $1
		ORDER BY t.dir
		LIMIT 1000000`, run)
	if err != nil {
		return nil, fmt.Errorf("totals of run %d: %w", run, err)
	}
	totals := Totals{}
	var (
		dir string
		p   Package
	)
	_, err = pgx.ForEachRow(rows, []any{
		&dir, &p.Files, &p.Bad, &p.Lines, &p.Funcs, &p.Methods, &p.Types, &p.Consts, &p.Vars, &p.Imports, &p.Imported,
	}, func() error {
		if _, ok := totals[dir]; ok {
			return fmt.Errorf("package %s was totalled twice", dir)
		}
		totals[dir] = p
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("totals of run %d: %w", run, err)
	}
	return totals, nil
}

// Attempts is what it took to count the files of a run.
type Attempts struct {
	Total  int // attempts of jobs that count a file
	Lost   int // of them were lost with the session of the process that had them, and ran again
	Failed int // of them ended with an error, and ran again
	// Sessions is how many sessions expired while the run lasted.
	Sessions int
	// Example is the job with most attempts, of those that were lost; 0 if none was.
	Example     int64
	ExamplePath string
	Elapsed     time.Duration // from the enqueue to the totals, by the database's clock
}

// ReadAttempts tells what a finished run took.
func ReadAttempts(ctx context.Context, on DB, ns int16, run int64) (Attempts, error) {
	var a Attempts
	err := on.QueryRow(ctx, `
		SELECT coalesce(r.finished_at, clock_timestamp()) - r.started_at,
		  (SELECT coalesce(sum(f.attempt), 0) FROM gosrc.file f WHERE f.run_id = r.id),
		  (SELECT count(*) FROM pawl.session s WHERE s.ns = $1 AND s.ended_why = 'expired' AND s.started_at >= r.started_at)
		FROM gosrc.run r
		WHERE r.id = $2`, ns, run).Scan(&a.Elapsed, &a.Total, &a.Sessions)
	if err != nil {
		return a, fmt.Errorf("attempts of run %d: %w", run, err)
	}
	if err := a.readLost(ctx, on, ns, run); err != nil {
		return a, fmt.Errorf("lost attempts of run %d: %w", run, err)
	}
	return a, nil
}

// readLost tells the attempts that were lost from those that failed. What both tables have is put together here: the planner knows nothing of tables
// that were filled a moment ago.
func (a *Attempts) readLost(ctx context.Context, on DB, ns int16, run int64) error {
	rows, err := on.Query(ctx, `
		SELECT f.job_id, f.path, f.attempt
		FROM gosrc.file f
		WHERE f.run_id = $1 AND f.attempt > 1
		ORDER BY f.attempt DESC, f.job_id
		LIMIT 1000000`, run)
	if err != nil {
		return err
	}
	type again struct {
		JobID   int64
		Path    string
		Attempt int
	}
	files, err := pgx.CollectRows(rows, pgx.RowToStructByPos[again])
	if err != nil {
		return err
	}
	rows, err = on.Query(ctx, `
		SELECT j.job_id
		FROM pawl.receipt c
		CROSS JOIN LATERAL unnest(c.jobs) s
		CROSS JOIN LATERAL generate_series(lower(s), upper(s) - 1) o
		CROSS JOIN LATERAL pawl.claim_job(c.ns, c.claim_id, o) j
		WHERE c.ns = $1 AND c.outcome = 'lost' AND c.at >= (SELECT r.started_at FROM gosrc.run r WHERE r.id = $2)
		ORDER BY j.job_id
		LIMIT 1000000`, ns, run)
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return err
	}
	lost := map[int64]int{}
	for _, id := range ids {
		lost[id]++
	}
	for _, f := range files {
		a.Lost += lost[f.JobID]
		a.Failed += f.Attempt - 1 - lost[f.JobID]
		if a.Example == 0 && lost[f.JobID] > 0 {
			a.Example, a.ExamplePath = f.JobID, f.Path
		}
	}
	return nil
}
