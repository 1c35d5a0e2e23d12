package barrier

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/migrations"
)

// parts are what the barrier needs of the schema pawl, each with the file that it is in.
var parts = []struct{ file, begin string }{
	{"00001_queue.sql", "CREATE SCHEMA IF NOT EXISTS pawl;"},
	{"00001_queue.sql", "CREATE TABLE pawl.namespace ("},
	{"00001_queue.sql", "INSERT INTO pawl.namespace "},
	{"00001_queue.sql", "CREATE FUNCTION pawl.namespace_create("},
	{"00007_ending.sql", "CREATE FUNCTION pawl.require_read_committed("},
	{"00009_sweep.sql", "CREATE FUNCTION pawl.sweep_key("},
	{"00011_idempotency.sql", "CREATE FUNCTION pawl.idempotency_bound("},
	{"00011_idempotency.sql", "CREATE FUNCTION pawl.idempotency_intact("},
	{"00015_barrier.sql", ""}, // all of it
}

// Setup makes what the barrier needs, in a participant's Postgres that has no Pawl of its own: schema pawl with the barrier, its namespaces and its functions, the same as there. Where there is a barrier it does nothing. It needs the right to create
// a schema. A database that was set up so is no place for "pawl migrate up" afterwards, which finds the schema in its way. Calls at the same time do not disturb each other. Nobody sweeps such a database: call Sweep now and then.
func Setup(ctx context.Context, pool *pgxpool.Pool) error {
	statements, err := Script()
	if err != nil {
		return fmt.Errorf("set up barrier: %w", err)
	}
	err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('pawl.barrier', 0))"); err != nil {
			return err
		}
		var there bool
		if err := tx.QueryRow(ctx, "SELECT to_regclass('pawl.barrier') IS NOT NULL").Scan(&there); err != nil || there {
			return err
		}
		_, err := tx.Exec(ctx, statements)
		return err
	})
	if err != nil {
		return fmt.Errorf("set up barrier: %w", err)
	}
	return nil
}

// Script is what Setup has Postgres do, where there is no barrier yet: SQL for psql, to be run in one transaction.
func Script() (string, error) {
	var out strings.Builder
	for _, p := range parts {
		text, err := fs.ReadFile(migrations.FS, p.file)
		if err != nil {
			return "", err
		}
		up, _, _ := strings.Cut(string(text), "-- +goose Down")
		if p.begin == "" {
			out.WriteString(up)
			continue
		}
		i := strings.Index(up, p.begin)
		if i < 0 {
			return "", fmt.Errorf("%s has no %q", p.file, p.begin)
		}
		end := ";\n"
		if head, _, _ := strings.Cut(up[i:], ";\n"); strings.Contains(head, "$$") {
			end = "$$;\n"
		}
		statement, _, _ := strings.Cut(up[i:], end)
		out.WriteString(statement + end)
	}
	return out.String(), nil
}

// Sweep removes rows that have been kept for Keep from a database that no coordinator sweeps, and tells how many. One at a time does so, the others find nothing to do. The error is ErrSchema or the database's.
func Sweep(ctx context.Context, pool *pgxpool.Pool, ns int16) (removed int64, err error) {
	for range sweepsMax {
		n, err := db.New(pool).SweepBarrier(ctx, db.SweepBarrierParams{Ns: max(ns, 1), Keep: Keep, LimitRows: sweepRowsMax})
		if db.IsUnmigrated(err) {
			err = fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
		}
		if err != nil {
			return removed, fmt.Errorf("sweep barrier: %w", err)
		}
		removed += max(n, 0)
		if n < sweepRowsMax {
			break
		}
	}
	return removed, nil
}

// SetupMySQL makes the table pawl_barrier in the default database of the connections of on, MariaDB 10.5 or MySQL 8.0 and newer, unless it is there. Calls at the same time do not disturb each other. Who calls branches needs the
// rights to select, insert, update and delete in it. There any number from 1 is a namespace. Nobody sweeps it: call SweepMySQL now and then.
//
// innodb_flush_log_at_trx_commit has to be 1, as by default, or a crash of the machine loses what callers were told is done.
func SetupMySQL(ctx context.Context, on *sql.DB) error {
	if _, err := on.ExecContext(ctx, ScriptMySQL); err != nil {
		return fmt.Errorf("set up barrier: %w", err)
	}
	return nil
}

// ScriptMySQL is what SetupMySQL has the server do. Ids are bytes, so that none of them are the same but for their letters' case or blanks at the end. The row lock of a branch is what its calls take, one after the other; the other rows are as in Postgres.
const ScriptMySQL = `CREATE TABLE IF NOT EXISTS pawl_barrier (
  ns     smallint        NOT NULL,
  gid    varbinary(1024) NOT NULL,
  branch varbinary(255)  NOT NULL,
  op     varchar(8)      CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  reason varchar(8)      CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  result mediumblob,
  at     datetime(6)     NOT NULL,
  PRIMARY KEY (ns, gid, branch, op),
  KEY pawl_barrier_at (ns, at),
  CONSTRAINT pawl_barrier_length CHECK (length(gid) BETWEEN 1 AND 1024 AND length(branch) BETWEEN 1 AND 255),
  CONSTRAINT pawl_barrier_op CHECK (op IN ('lock', 'action', 'undo', 'try', 'confirm', 'cancel')),
  CONSTRAINT pawl_barrier_reason CHECK (reason = op OR op = 'action' AND reason IN ('undo', 'refused') OR op = 'try' AND reason IN ('cancel', 'refused'))
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC`

// SweepMySQL is Sweep where SetupMySQL has made the table. Others may do so at the same time.
func SweepMySQL(ctx context.Context, on *sql.DB, ns int16) (removed int64, err error) {
	for range sweepsMax {
		n, err := sweepMySQL(ctx, on, max(ns, 1))
		if db.MySQLNumber(err) == mysqlDeadlock { // with a call of an old branch: again
			continue
		}
		if db.MySQLNumber(err) == mysqlNoTable {
			err = fmt.Errorf("%w (here: SetupMySQL or \"pawl migrate barrier\"; %w)", ErrSchema, err)
		}
		if err != nil {
			return removed, fmt.Errorf("sweep barrier: %w", err)
		}
		removed += n
		if n < sweepRowsMax {
			break
		}
	}
	return removed, nil
}

// sweepMySQL removes some. At READ COMMITTED it locks nothing but these.
func sweepMySQL(ctx context.Context, on *sql.DB, ns int16) (removed int64, err error) {
	tx, err := on.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	res, err := tx.ExecContext(ctx, "DELETE FROM pawl_barrier WHERE ns = ? AND at < UTC_TIMESTAMP(6) - INTERVAL ? SECOND ORDER BY at LIMIT ?", ns, int64(Keep/time.Second), sweepRowsMax)
	if err != nil {
		return 0, err
	}
	if removed, err = res.RowsAffected(); err != nil {
		return 0, err
	}
	return removed, tx.Commit()
}

const (
	sweepRowsMax = 500  // removed in one transaction
	sweepsMax    = 1000 // such transactions in one Sweep
)
