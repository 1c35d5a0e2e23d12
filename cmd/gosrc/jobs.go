package gosrc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/worker"
)

// How long the join waits before it looks again: about as long as the rest will take, within these bounds.
const (
	joinWaitMin = 100 * time.Millisecond
	joinWaitMax = 5 * time.Second
)

// joinAgeMax is how old a run can get that never becomes complete, since a job of it was cancelled or discarded, before its join gives up.
const joinAgeMax = 24 * time.Hour

// Register gives a worker the handlers of the example.
func Register(w *worker.Worker) {
	worker.HandleTx(w, ParseFile, parse)
	worker.HandleTx(w, JoinRun, join)
}

// split makes the jobs of a run: the files that are not tests, and the tests.
func split(run int64, root string, paths []string) (code, tests iter.Seq[File]) {
	of := func(test bool) iter.Seq[File] {
		return func(yield func(File) bool) {
			for _, path := range paths {
				if strings.HasSuffix(path, "_test.go") == test && !yield(File{Run: run, Root: root, Path: path}) {
					return
				}
			}
		}
	}
	return of(false), of(true)
}

// parse counts one file and writes what it found in tx, which commits with the job's success. A file that has gone since is bad.
func parse(ctx context.Context, tx pgx.Tx, j *job.Job[File]) (worker.None, error) {
	var s Source
	text, err := os.ReadFile(filepath.Join(j.Args.Root, filepath.FromSlash(j.Args.Path)))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.Bad = true
	case err != nil:
		return worker.None{}, err
	default:
		s = Count(text)
	}
	dir := dirOf(j.Args.Path)
	b := &pgx.Batch{}
	b.Queue(`
		INSERT INTO gosrc.file (run_id, path, dir, bad, lines, funcs, methods, types, consts, vars, imports, job_id, attempt)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		j.Args.Run, j.Args.Path, dir, s.Bad, s.Lines, s.Funcs, s.Methods, s.Types, s.Consts, s.Vars, s.Imports, j.ID, j.Attempt)
	if len(s.Imported) > 0 {
		b.Queue(`
			INSERT INTO gosrc.import (run_id, dir, path, imported)
			SELECT $1::bigint, $2::text, $3::text, i FROM unnest($4::text[]) i`, j.Args.Run, dir, j.Args.Path, s.Imported)
	}
	return worker.None{}, tx.SendBatch(ctx, b).Close()
}

// join writes the totals of a run in tx if all its files are there, else it snoozes. See the package's comment.
func join(ctx context.Context, tx pgx.Tx, j *job.Job[Join]) (worker.None, error) {
	var (
		files, done int
		age         time.Duration
	)
	err := tx.QueryRow(ctx, `
		SELECT r.files, (SELECT count(*) FROM gosrc.file f WHERE f.run_id = r.id), clock_timestamp() - r.started_at
		FROM gosrc.run r
		WHERE r.id = $1`, j.Args.Run).Scan(&files, &done, &age)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return worker.None{}, job.Discard(fmt.Errorf("run %d is not there", j.Args.Run))
	case err != nil:
		return worker.None{}, err
	case done < files && age > joinAgeMax:
		return worker.None{}, job.Discard(fmt.Errorf("run %d has %d of %d files after %s", j.Args.Run, done, files, age))
	case done < files:
		return worker.None{}, job.Snooze(joinWait(age, done, files))
	}
	b := &pgx.Batch{}
	// One pass over both tables, without a join: on tables that were empty a moment ago the planner would choose a bad one.
	b.Queue(`
		INSERT INTO gosrc.totals (run_id, dir, files, bad, lines, funcs, methods, types, consts, vars, imports, imported)
		SELECT $1::bigint, x.dir, sum(x.files), sum(x.bad), sum(x.lines), sum(x.funcs), sum(x.methods), sum(x.types), sum(x.consts), sum(x.vars),
		  sum(x.imports), sum(x.imported)
		FROM (
		  SELECT f.dir, 1 AS files, f.bad::int, f.lines, f.funcs, f.methods, f.types, f.consts, f.vars, f.imports, 0 AS imported
		  FROM gosrc.file f
		  WHERE f.run_id = $1
		  UNION ALL
		  SELECT DISTINCT ON (i.dir, i.imported) i.dir, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1
		  FROM gosrc.import i
		  WHERE i.run_id = $1) x
		GROUP BY x.dir`, j.Args.Run)
	b.Queue("UPDATE gosrc.run SET finished_at = clock_timestamp() WHERE id = $1", j.Args.Run)
	return worker.None{}, tx.SendBatch(ctx, b).Close()
}

// joinWait is about how long the rest of a run will take, if it goes on as it did.
func joinWait(age time.Duration, done, files int) time.Duration {
	left := float64(age) * float64(files-done) / float64(max(done, 1))
	return time.Duration(min(max(left, float64(joinWaitMin)), float64(joinWaitMax)))
}
