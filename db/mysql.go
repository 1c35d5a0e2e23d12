package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"reflect"
	"sync"
)

// MySQLTx is what a function can do in a transaction of MariaDB or MySQL that is lent to it: all but end it.
type MySQLTx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// MySQLNumber is the number of an error that MariaDB or MySQL sent, 0 of any other. Drivers have no method for it, but a field.
func MySQLNumber(err error) uint64 {
	for err != nil {
		if v := reflect.Indirect(reflect.ValueOf(err)); v.Kind() == reflect.Struct {
			for _, name := range []string{"Number", "Code"} {
				if f := v.FieldByName(name); f.IsValid() && f.CanUint() {
					return f.Uint()
				}
			}
		}
		switch inner := err.(type) { //nolint:errorlint // this walks the chain
		case interface{ Unwrap() error }:
			err = inner.Unwrap()
		case interface{ Unwrap() []error }:
			for _, one := range inner.Unwrap() {
				if number := MySQLNumber(one); number != 0 {
					return number
				}
			}
			return 0
		default:
			return 0
		}
	}
	return 0
}

// DropMySQL closes the connection to the server, which rolls back what it has open.
func DropMySQL(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}

// MySQLLost tells that the connection is of no more use: it was lost, or closed because a context ended while it was waited for an answer.
func MySQLLost(conn *sql.Conn) bool {
	valid := true
	err := conn.Raw(func(c any) error {
		if v, ok := c.(driver.Validator); ok {
			valid = v.IsValid()
		}
		return nil
	})
	return err != nil || !valid
}

// LentMySQL is a transaction on a connection that is lent to a function.
type LentMySQL struct {
	conn *sql.Conn

	mu    sync.Mutex
	used  bool
	ended bool
	stops []context.CancelFunc // of queries, whose rows may be open
}

// LendMySQL is a transaction, begun on conn, for a function, which cannot end it but by SQL. After Reclaim it refuses with sql.ErrTxDone.
func LendMySQL(conn *sql.Conn) *LentMySQL { return &LentMySQL{conn: conn} }

// Used tells whether a statement was sent.
func (t *LentMySQL) Used() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used
}

// use tells whether a statement may be sent. Its context ends with the loan.
func (t *LentMySQL) use(ctx context.Context, rows bool) (context.Context, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return nil, sql.ErrTxDone
	}
	t.used = true
	if rows {
		var stop context.CancelFunc
		ctx, stop = context.WithCancel(ctx)
		t.stops = append(t.stops, stop)
	}
	return ctx, nil
}

// Reclaim takes the transaction back from the function. Rows that are open it closes, which closes the connection: else nothing more could be said on it.
func (t *LentMySQL) Reclaim() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	for _, stop := range t.stops {
		stop()
	}
	t.stops = nil
}

// ExecContext is sql.Conn's.
func (t *LentMySQL) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	ctx, err := t.use(ctx, false)
	if err != nil {
		return nil, err
	}
	return t.conn.ExecContext(ctx, query, args...)
}

// QueryContext is sql.Conn's.
func (t *LentMySQL) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	ctx, err := t.use(ctx, true)
	if err != nil {
		return nil, err
	}
	return t.conn.QueryContext(ctx, query, args...)
}

// QueryRowContext is sql.Conn's.
func (t *LentMySQL) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	own, err := t.use(ctx, true)
	if err != nil {
		none := sql.OpenDB(refuser{err})
		defer none.Close()
		return none.QueryRowContext(ctx, query) // whose error is err: a Row is made by a database only
	}
	return t.conn.QueryRowContext(own, query, args...)
}

// PrepareContext is sql.Conn's.
func (t *LentMySQL) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	ctx, err := t.use(ctx, false)
	if err != nil {
		return nil, err
	}
	return t.conn.PrepareContext(ctx, query)
}

// refuser is a database that cannot be connected to.
type refuser struct{ err error }

func (r refuser) Connect(context.Context) (driver.Conn, error) { return nil, r.err }
func (r refuser) Driver() driver.Driver                        { return nil }
