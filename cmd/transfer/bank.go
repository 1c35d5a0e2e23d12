package transfer

import (
	"context"
	"database/sql"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

// Bank is a database that has accounts. In statements for it, whatever its kind, a question mark stands for each argument.
type Bank interface {
	participant() twophase.Participant
	// create makes the tables, if they are not there.
	create(ctx context.Context) error
	// exec executes a statement in a global transaction.
	exec(ctx context.Context, g *twophase.Tx, statement string, args ...any) error
	// read scans each row of what is committed, and calls row.
	read(ctx context.Context, query string, args, scan []any, row func() error) error
}

// Postgres is a bank in a Postgres, under the participant's name.
func Postgres(name string, pool *pgxpool.Pool) Bank {
	return &postgresBank{twophase.Postgres(name, pool), pool}
}

// MySQL is a bank in a MariaDB or MySQL, whose connections have the default database transfer.
func MySQL(name string, db *sql.DB) Bank { return &mysqlBank{twophase.MySQL(name, db), db} }

type postgresBank struct {
	at   *twophase.PostgresDB
	pool *pgxpool.Pool
}

func (b *postgresBank) participant() twophase.Participant { return b.at }

func (b *postgresBank) create(ctx context.Context) error {
	return pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
		var there bool // what an earlier run left prepared would keep CREATE INDEX waiting
		if err := tx.QueryRow(ctx, "SELECT to_regclass('transfer.account') IS NOT NULL").Scan(&there); err != nil || there {
			return err
		}
		if _, err := tx.Exec(ctx, `
			CREATE SCHEMA IF NOT EXISTS transfer;
			CREATE TABLE transfer.account (id int PRIMARY KEY, cents bigint NOT NULL CHECK (cents >= 0));
			CREATE TABLE transfer.entry (run_id bigint NOT NULL, transfer text NOT NULL, account int NOT NULL, cents bigint NOT NULL, peer text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
			CREATE INDEX entry_run ON transfer.entry (run_id)`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO transfer.account SELECT i, $1 FROM generate_series(1, $2) i", Opening, Accounts)
		return err
	})
}

func (b *postgresBank) exec(ctx context.Context, g *twophase.Tx, statement string, args ...any) error {
	tx, err := b.at.Tx(ctx, g)
	if err == nil {
		_, err = tx.Exec(ctx, numbered(statement), args...)
	}
	return err
}

func (b *postgresBank) read(ctx context.Context, query string, args, scan []any, row func() error) error {
	rows, err := b.pool.Query(ctx, numbered(query), args...)
	if err == nil {
		_, err = pgx.ForEachRow(rows, scan, row)
	}
	return err
}

// numbered puts $1, $2, … in place of question marks.
func numbered(statement string) string {
	parts := strings.Split(statement, "?")
	for i := range parts[1:] {
		parts[i] += "$" + strconv.Itoa(i+1)
	}
	return strings.Join(parts, "")
}

type mysqlBank struct {
	at *twophase.MySQLDB
	db *sql.DB
}

func (b *mysqlBank) participant() twophase.Participant { return b.at }

func (b *mysqlBank) create(ctx context.Context) error {
	for _, statement := range []string{
		"CREATE TABLE IF NOT EXISTS transfer.account (id int PRIMARY KEY, cents bigint NOT NULL CHECK (cents >= 0)) ENGINE = InnoDB",
		`CREATE TABLE IF NOT EXISTS transfer.entry (run_id bigint NOT NULL, transfer varchar(64) NOT NULL, account int NOT NULL, cents bigint NOT NULL, peer varchar(64) NOT NULL,
			at timestamp(6) NOT NULL DEFAULT current_timestamp(6), KEY entry_run (run_id)) ENGINE = InnoDB`,
	} {
		if _, err := b.db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	var accounts int // of those that an earlier run left prepared, INSERT would wait for the end
	if err := b.db.QueryRowContext(ctx, "SELECT count(*) FROM transfer.account").Scan(&accounts); err != nil || accounts > 0 {
		return err
	}
	_, err := b.db.ExecContext(ctx, "INSERT IGNORE INTO transfer.account WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i, ? FROM n", Accounts, Opening)
	return err
}

func (b *mysqlBank) exec(ctx context.Context, g *twophase.Tx, statement string, args ...any) error {
	tx, err := b.at.Conn(ctx, g)
	if err == nil {
		_, err = tx.ExecContext(ctx, statement, args...)
	}
	return err
}

func (b *mysqlBank) read(ctx context.Context, query string, args, scan []any, row func() error) error {
	rows, err := b.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(scan...); err != nil {
			return err
		}
		if err := row(); err != nil {
			return err
		}
	}
	return rows.Err()
}
