package db

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// beginMax bounds the beginning of a Lazy whose connection is asked for before its first statement.
const beginMax = 5 * time.Second

var readCommitted = pgx.TxOptions{IsoLevel: pgx.ReadCommitted}

// Lazy is a READ COMMITTED transaction that begins with its first statement: with an Exec or a QueryRow that has arguments in one message, which saves a round trip; else before it. Where it cannot begin, every
// later statement is refused with pgx.ErrTxClosed. Not safe for concurrent use.
type Lazy struct {
	conn *pgx.Conn
	tx   pgx.Tx // nil: nothing was sent yet
	err  error  // why it could not begin
}

// NewLazy makes one on a connection that is in no transaction.
func NewLazy(conn *pgx.Conn) *Lazy { return &Lazy{conn: conn} }

// Began tells whether the transaction has begun, or why it could not.
func (t *Lazy) Began() (bool, error) { return t.tx != nil, t.err }

// begun is the transaction, or a closed one.
func (t *Lazy) begun(ctx context.Context) pgx.Tx {
	if t.tx == nil {
		t.tx, t.err = t.conn.BeginTx(ctx, readCommitted)
		if t.err != nil {
			t.tx = closedTx()
		}
	}
	return t.tx
}

// together tells whether the first statement may go with BEGIN: in a batch, where it is no list of statements, and has no options of pgx.
func (t *Lazy) together(args []any) bool {
	if t.tx != nil || len(args) == 0 {
		return false
	}
	switch args[0].(type) {
	case pgx.QueryExecMode, pgx.QueryResultFormats, pgx.QueryResultFormatsByOID:
		return false
	}
	return true
}

// first begins the transaction with its first statement, whose result is read by a function.
func (t *Lazy) first(ctx context.Context, read func(pgx.BatchResults) error, sql string, args ...any) error {
	b := &pgx.Batch{}
	b.BeginTx(readCommitted)
	b.Queue(sql, args...)
	res := t.conn.SendBatch(ctx, b)
	t.tx = res.Tx()
	_, err := res.Exec()
	if err == nil {
		err = read(res)
	}
	if fault := res.Close(); err == nil {
		err = fault
	}
	if err != nil && t.conn.PgConn().TxStatus() == 'I' { // the statement was refused before it was sent
		t.tx, t.err = closedTx(), err
	}
	return err
}

// closedTx is a transaction that refuses everything.
func closedTx() pgx.Tx {
	b := &pgx.Batch{}
	b.BeginTx(readCommitted)
	return pgx.FailedBatchResults(b, pgx.ErrTxClosed).Tx()
}

// Exec is pgx.Tx's.
func (t *Lazy) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	if !t.together(args) {
		return t.begun(ctx).Exec(ctx, sql, args...)
	}
	err = t.first(ctx, func(res pgx.BatchResults) (err error) {
		tag, err = res.Exec()
		return err
	}, sql, args...)
	return tag, err
}

// QueryRow is pgx.Tx's. A first one is sent when it is scanned.
func (t *Lazy) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if !t.together(args) {
		return t.begun(ctx).QueryRow(ctx, sql, args...)
	}
	return lazyRow(func(into ...any) error {
		return t.first(ctx, func(res pgx.BatchResults) error { return res.QueryRow().Scan(into...) }, sql, args...)
	})
}

type lazyRow func(into ...any) error

// Scan is pgx.Row's.
func (r lazyRow) Scan(into ...any) error { return r(into...) }

// Query is pgx.Tx's.
func (t *Lazy) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return t.begun(ctx).Query(ctx, sql, args...)
}

// SendBatch is pgx.Tx's.
func (t *Lazy) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return t.begun(ctx).SendBatch(ctx, b)
}

// CopyFrom is pgx.Tx's.
func (t *Lazy) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	return t.begun(ctx).CopyFrom(ctx, table, columns, rows)
}

// Prepare is pgx.Tx's.
func (t *Lazy) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	return t.begun(ctx).Prepare(ctx, name, sql)
}

// Begin sets a savepoint.
func (t *Lazy) Begin(ctx context.Context) (pgx.Tx, error) { return t.begun(ctx).Begin(ctx) }

// LargeObjects is pgx.Tx's.
func (t *Lazy) LargeObjects() pgx.LargeObjects {
	ctx, stop := context.WithTimeout(context.Background(), beginMax)
	defer stop()
	return t.begun(ctx).LargeObjects()
}

// Conn is the connection, on which the transaction has begun: what is sent there is part of it.
func (t *Lazy) Conn() *pgx.Conn {
	ctx, stop := context.WithTimeout(context.Background(), beginMax)
	defer stop()
	t.begun(ctx)
	return t.conn
}

// Commit commits, if it has begun.
func (t *Lazy) Commit(ctx context.Context) error {
	if t.tx == nil {
		t.tx = closedTx()
		return nil
	}
	return t.tx.Commit(ctx)
}

// Rollback rolls back, if it has begun.
func (t *Lazy) Rollback(ctx context.Context) error {
	if t.tx == nil {
		t.tx = closedTx()
		return nil
	}
	return t.tx.Rollback(ctx)
}
