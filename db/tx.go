package db

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// rollbackMax bounds a rollback, also after the caller's context has ended. A connection that does not answer by then is closed, which rolls back as well.
const rollbackMax = 5 * time.Second

// ErrLent is what Commit and Rollback of a Tx return.
var ErrLent = errors.New("pawl: a transaction that was lent to a function is ended by its lender, after the function")

// Tx is a READ COMMITTED transaction that is lent to a function: all that a pgx.Tx is, but only its lender ends it. After its end it refuses with pgx.ErrTxClosed, so that a
// goroutine which the function left behind cannot reach the next user of the connection (Conn is as it is). Not safe for concurrent use.
type Tx struct {
	pgx.Tx
	ended  *atomic.Bool // for the function
	done   bool         // committed or rolled back
	nested bool         // a savepoint: the function's own to end
}

// Lend is a transaction, begun elsewhere, for a function that may not end it.
func Lend(tx pgx.Tx) *Tx { return &Tx{Tx: tx, ended: new(atomic.Bool)} }

// BeginTx begins a transaction and puts its first question, which has one row, in the same message. After an error nothing is open.
func BeginTx(ctx context.Context, conn *pgx.Conn, question string, args []any, into ...any) (*Tx, error) {
	b := &pgx.Batch{}
	b.BeginTx(readCommitted)
	b.Queue(question, args...)
	res := conn.SendBatch(ctx, b)
	t := &Tx{Tx: res.Tx(), ended: new(atomic.Bool)}
	_, err := res.Exec()
	if err == nil {
		err = res.QueryRow().Scan(into...)
	}
	if fault := res.Close(); err == nil {
		err = fault
	}
	if err != nil {
		t.Undo(ctx)
		return nil, err
	}
	return t, nil
}

// End sends the last statement and COMMIT in one message: a process that is frozen or cut off holds no lock between them. unknown: the connection was lost, and
// nobody knows whether the transaction was committed; after any other error it was not, and Undo is to follow.
func (t *Tx) End(ctx context.Context, statement string, args ...any) (unknown bool, err error) {
	t.ended.Store(true)
	b := &pgx.Batch{}
	b.Queue(statement, args...)
	b.Queue("COMMIT")
	res := t.Tx.SendBatch(ctx, b)
	_, err = res.Exec()
	var tag pgconn.CommandTag
	if err == nil {
		tag, err = res.Exec()
	}
	if fault := res.Close(); err == nil {
		err = fault
	}
	switch {
	case err != nil:
		return Unknown(t.Conn(), err), err
	case tag.String() != "COMMIT":
		return false, fmt.Errorf("%w: %s", pgx.ErrTxCommitRollback, tag)
	}
	t.done = true
	return false, nil
}

// Unknown tells of a statement that was to commit whether nobody knows if it did: the connection was lost on the way. An error that the server sent before it
// closed the connection, as when it shuts down, may have crossed the commit and settles nothing.
func Unknown(conn *pgx.Conn, err error) bool {
	return err != nil && conn.IsClosed() && !pgconn.SafeToRetry(err)
}

// Reclaim takes the transaction back from the function: to it, it has ended. Its lender ends it by other means.
func (t *Tx) Reclaim() { t.ended.Store(true) }

// Undo rolls back, unless End has committed.
func (t *Tx) Undo(ctx context.Context) {
	t.ended.Store(true)
	if t.done {
		return
	}
	t.done = true
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), rollbackMax)
	defer stop()
	if t.Conn().PgConn().TxStatus() != 'I' { // else the server has by itself
		_ = t.Tx.Rollback(ctx)
	}
}

// Commit refuses, but for a savepoint.
func (t *Tx) Commit(ctx context.Context) error {
	if !t.nested {
		return ErrLent
	}
	if t.ended.Load() {
		return pgx.ErrTxClosed
	}
	return t.Tx.Commit(ctx)
}

// Rollback refuses, but for a savepoint.
func (t *Tx) Rollback(ctx context.Context) error {
	if !t.nested {
		return ErrLent
	}
	if t.ended.Load() {
		return pgx.ErrTxClosed
	}
	return t.Tx.Rollback(ctx)
}

// Begin sets a savepoint.
func (t *Tx) Begin(ctx context.Context) (pgx.Tx, error) {
	if t.ended.Load() {
		return nil, pgx.ErrTxClosed
	}
	inner, err := t.Tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &Tx{Tx: inner, ended: t.ended, nested: true}, nil
}

// Exec is pgx.Tx's.
func (t *Tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if t.ended.Load() {
		return pgconn.CommandTag{}, pgx.ErrTxClosed
	}
	return t.Tx.Exec(ctx, sql, args...)
}

// Query is pgx.Tx's.
func (t *Tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if t.ended.Load() {
		return closed(&pgx.Batch{}).Query()
	}
	return t.Tx.Query(ctx, sql, args...)
}

// QueryRow is pgx.Tx's.
func (t *Tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if t.ended.Load() {
		return closed(&pgx.Batch{}).QueryRow()
	}
	return t.Tx.QueryRow(ctx, sql, args...)
}

// SendBatch is pgx.Tx's.
func (t *Tx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if t.ended.Load() {
		return closed(b)
	}
	return t.Tx.SendBatch(ctx, b)
}

// CopyFrom is pgx.Tx's.
func (t *Tx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	if t.ended.Load() {
		return 0, pgx.ErrTxClosed
	}
	return t.Tx.CopyFrom(ctx, table, columns, rows)
}

// Prepare is pgx.Tx's.
func (t *Tx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if t.ended.Load() {
		return nil, pgx.ErrTxClosed
	}
	return t.Tx.Prepare(ctx, name, sql)
}

func closed(b *pgx.Batch) pgx.BatchResults { return pgx.FailedBatchResults(b, pgx.ErrTxClosed) }
