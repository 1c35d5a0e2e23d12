package twophase

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
)

const rollbackMax = 5 * time.Second // how long the rollback of a branch may take, until its connection is closed

// PostgresDB is a participant that is a PostgreSQL database.
type PostgresDB struct {
	name  string
	pool  *pgxpool.Pool
	spare db.Spare // for what ends branches: all of the pool may wait for their locks
}

// Postgres makes a participant of a database. Its max_prepared_transactions must be above 0, and all who prepare and recover must be of one role, or the latter a superuser. Recovery
// connects beside the pool where that is used up.
func Postgres(name string, pool *pgxpool.Pool) *PostgresDB {
	return &PostgresDB{name, pool, db.Spare{Pool: pool}}
}

// Tx gives the transaction's branch here, which begins with its first statement, in one message with it; READ COMMITTED. The global transaction ends it. It may not use temporary or foreign tables, LISTEN, NOTIFY, WITH HOLD
// cursors or exported snapshots, which Postgres does not prepare: where a branch has changed nothing else, it counts as one that has only read, and that is undone without a word. Not safe for concurrent use; branches at different participants may be used at the same time.
func (p *PostgresDB) Tx(ctx context.Context, t *Tx) (pgx.Tx, error) {
	b, err := t.enlist(ctx, p)
	if err != nil {
		return nil, err
	}
	return b.(*postgresBranch).lent, nil
}

// Name is the participant's name.
func (p *PostgresDB) Name() string { return p.name }

// Kind is "postgres".
func (p *PostgresDB) Kind() string { return "postgres" }

// Address is host, port and database.
func (p *PostgresDB) Address() string {
	c := p.pool.Config().ConnConfig
	return fmt.Sprintf("%s:%d/%s", c.Host, c.Port, c.Database)
}

// The witnesses: what a committed branch leaves behind, or (fence) what keeps one from being committed. And homes: how far the logs of coordinators' databases were seen to be.
const postgresSetup = `
CREATE SCHEMA IF NOT EXISTS pawl_branch;
CREATE TABLE IF NOT EXISTS pawl_branch.witness (branch text PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), fence boolean NOT NULL DEFAULT false);
CREATE INDEX IF NOT EXISTS witness_at ON pawl_branch.witness (at);
CREATE TABLE IF NOT EXISTS pawl_branch.home (home text PRIMARY KEY, lsn bigint NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());`

// Setup makes schema pawl_branch with its tables, if they are not there. It waits for no branch.
func (p *PostgresDB) Setup(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('pawl_branch', 0))"); err != nil { // IF NOT EXISTS races
			return err
		}
		var there bool // IF NOT EXISTS would wait, for an index, until no branch is prepared, and have those that begin wait behind
		if err := tx.QueryRow(ctx, "SELECT to_regclass('pawl_branch.witness_at') IS NOT NULL AND to_regclass('pawl_branch.home') IS NOT NULL").Scan(&there); err != nil || there {
			return err
		}
		_, err := tx.Exec(ctx, postgresSetup)
		return err
	})
	return p.wrap("set up", err)
}

func (p *PostgresDB) wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case db.IsUnmigrated(err) && strings.Contains(db.Message(err), "pawl_branch"):
		err = fmt.Errorf("%w: run Setup, or \"pawl tx setup\", on it once (%s)", ErrNotSetUp, db.Message(err))
	case db.Code(err) == "55000" && strings.Contains(db.Message(err), "max_prepared_transactions"), db.Code(err) == "53200" && strings.Contains(db.Message(err), "prepared"):
		err = fmt.Errorf("%w: %s", ErrCannotPrepare, db.Message(err))
	}
	return fmt.Errorf("participant %s: %s: %w", p.name, what, err)
}

// Begin begins a branch: its transaction begins with its first statement.
func (p *PostgresDB) Begin(ctx context.Context, id BranchID) (Branch, error) {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return nil, p.wrap("begin", err)
	}
	tx := db.NewLazy(conn.Conn())
	return &postgresBranch{tx: tx, lent: &postgresTx{Tx: db.Lend(tx)}, p: p, conn: conn, id: id}, nil
}

// Settle ends a prepared branch.
func (p *PostgresDB) Settle(ctx context.Context, id BranchID, commit bool) error {
	conn, done, err := p.spare.Conn(ctx)
	if err != nil {
		return p.wrap("settle", err)
	}
	defer done()
	return p.settle(ctx, conn, id, commit)
}

func (p *PostgresDB) settle(ctx context.Context, conn *pgx.Conn, id BranchID, commit bool) error {
	what := "ROLLBACK"
	if commit {
		what = "COMMIT"
	}
	_, err := conn.PgConn().Exec(ctx, what+" PREPARED '"+id.String()+"'").ReadAll()
	switch {
	case db.Code(err) == "42704":
		return ErrAbsent
	case db.Code(err) == "55000": // here it says nothing else, in whatever language
		return ErrBusy
	}
	return p.wrap("settle", err)
}

// Witnessed looks for the witness.
func (p *PostgresDB) Witnessed(ctx context.Context, id BranchID) (committed bool, err error) {
	err = p.spare.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pawl_branch.witness WHERE branch = $1 AND NOT fence)", id.String()).Scan(&committed)
	return committed, p.wrap("witness", err)
}

// Fence takes the witness's place, where it is free: it waits for a transaction that has written it and not ended.
func (p *PostgresDB) Fence(ctx context.Context, id BranchID) (committed bool, err error) {
	_, err = p.spare.Exec(ctx, "INSERT INTO pawl_branch.witness (branch, fence) VALUES ($1, true) ON CONFLICT DO NOTHING", id.String())
	if err != nil {
		return false, p.wrap("fence", err)
	}
	return p.Witnessed(ctx, id)
}

// Prepared lists the prepared branches of this database.
func (p *PostgresDB) Prepared(ctx context.Context) ([]Prepared, error) {
	rows, err := p.spare.Query(ctx, "SELECT gid, prepared, owner::text FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, $1) ORDER BY prepared", prefix)
	if err != nil {
		return nil, p.wrap("list", err)
	}
	defer rows.Close()
	var all []Prepared
	for rows.Next() {
		var name string
		var one Prepared
		if err := rows.Scan(&name, &one.At, &one.Owner); err != nil {
			return nil, p.wrap("list", err)
		}
		if one.Branch, err = ParseBranchID(name); err == nil && one.Branch.Participant == p.name {
			all = append(all, one)
		}
	}
	return all, p.wrap("list", rows.Err())
}

// See raises a home's farthest.
func (p *PostgresDB) See(ctx context.Context, home string, lsn int64) (farthest int64, err error) {
	err = p.spare.QueryRow(ctx, `INSERT INTO pawl_branch.home AS h (home, lsn) VALUES ($1, $2)
		ON CONFLICT (home) DO UPDATE SET lsn = greatest(h.lsn, excluded.lsn), at = excluded.at RETURNING lsn`, home, lsn).Scan(&farthest)
	return farthest, p.wrap("see", err)
}

// Old lists old witnesses.
func (p *PostgresDB) Old(ctx context.Context, begins string, age time.Duration, limit int) ([]string, error) {
	rows, err := p.spare.Query(ctx, "SELECT branch FROM pawl_branch.witness WHERE at < clock_timestamp() - $1::interval AND starts_with(branch, $2) ORDER BY at LIMIT $3", age, begins, limit)
	if err != nil {
		return nil, p.wrap("list witnesses", err)
	}
	branches, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return branches, p.wrap("list witnesses", err)
}

// Forget removes witnesses.
func (p *PostgresDB) Forget(ctx context.Context, branches []string) (removed int, err error) {
	tag, err := p.spare.Exec(ctx, "DELETE FROM pawl_branch.witness WHERE branch = ANY ($1)", branches)
	return int(tag.RowsAffected()), p.wrap("forget", err)
}

// postgresTx is the transaction that is lent for a branch.
type postgresTx struct {
	*db.Tx
	wrote atomic.Bool // for certain
}

// Exec is pgx.Tx's.
func (t *postgresTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	tag, err := t.Tx.Exec(ctx, sql, args...)
	if tag.RowsAffected() > 0 && (tag.Insert() || tag.Update() || tag.Delete()) {
		t.wrote.Store(true)
	}
	return tag, err
}

// postgresBranch is a branch of a Postgres.
type postgresBranch struct {
	tx   *db.Lazy
	lent *postgresTx
	p    *PostgresDB
	conn *pgxpool.Conn
	id   BranchID
}

// Tx is the transaction that is lent for the branch.
func (b *postgresBranch) Tx() pgx.Tx { return b.lent }

// ReadOnly asks whether the transaction has an id, unless it is known to have written.
func (b *postgresBranch) ReadOnly(ctx context.Context) (readOnly bool, err error) {
	if began, err := intact(b.tx, b.conn); err != nil || !began {
		return true, b.p.wrap("vote", err)
	}
	if b.lent.wrote.Load() {
		return false, nil
	}
	err = b.tx.QueryRow(ctx, "SELECT pg_current_xact_id_if_assigned() IS NULL").Scan(&readOnly)
	return readOnly, b.p.wrap("vote", err)
}

// Prepare prepares.
func (b *postgresBranch) Prepare(ctx context.Context) (unknown bool, err error) {
	return b.end(ctx, "PREPARE TRANSACTION '"+b.id.String()+"'", "PREPARE TRANSACTION")
}

// Commit commits.
func (b *postgresBranch) Commit(ctx context.Context) (unknown bool, err error) {
	return b.end(ctx, "COMMIT", "COMMIT")
}

// witnessSQL is prepared on each connection: it is as long to plan as to do.
const (
	witnessName = "pawl_witness"
	witnessSQL  = "INSERT INTO pawl_branch.witness (branch) VALUES ($1)"
)

// end sends the witness and the statement that ends the transaction, whose tag must be its own, in one message. In a transaction that has failed Postgres answers ROLLBACK, and no error.
func (b *postgresBranch) end(ctx context.Context, statement, tag string) (unknown bool, err error) {
	b.lent.Reclaim()
	if began, err := intact(b.tx, b.conn); err != nil || !began { // there is nothing to commit
		return false, b.p.wrap("vote", err)
	}
	conn := b.conn.Conn()
	witness := strings.Replace(witnessSQL, "$1", "'"+b.id.String()+"'", 1)
	if conn.Config().DefaultQueryExecMode == pgx.QueryExecModeCacheStatement { // else the pool is told to prepare nothing, as behind PgBouncer
		if _, err := conn.Prepare(ctx, witnessName, witnessSQL); err != nil { // once a connection
			return false, b.p.wrap("vote", err)
		}
		witness = "EXECUTE " + witnessName + "('" + b.id.String() + "')"
	}
	results, err := conn.PgConn().Exec(ctx, witness+"; "+statement).ReadAll()
	got := ""
	if err == nil {
		got = results[len(results)-1].CommandTag.String()
	}
	switch {
	case err != nil:
		return conn.IsClosed(), b.p.wrap("vote", err) // it may have been lost before or behind the message: who asks finds out
	case got != tag:
		return false, b.p.wrap("vote", fmt.Errorf("%w: %s", pgx.ErrTxCommitRollback, got))
	}
	return false, nil
}

// intact tells whether a transaction has begun; why it could not, or ErrEnded if the function has ended it in SQL.
func intact(tx *db.Lazy, conn *pgxpool.Conn) (began bool, err error) {
	if began, err = tx.Began(); began && err == nil && conn.Conn().PgConn().TxStatus() == 'I' {
		err = fmt.Errorf("%w, by SQL of the function: what that has committed stays", ErrEnded)
	}
	return began, err
}

// Settle ends the prepared branch on the connection that prepared it.
func (b *postgresBranch) Settle(ctx context.Context, commit bool) error {
	return b.p.settle(ctx, b.conn.Conn(), b.id, commit)
}

// Close rolls back what is open.
func (b *postgresBranch) Close(ctx context.Context) {
	b.lent.Reclaim()
	if b.conn.Conn().PgConn().TxStatus() != 'I' {
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), rollbackMax)
		defer stop()
		_ = b.tx.Rollback(ctx)
	}
	b.conn.Release()
}
