package barrier_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// service is a service's database with a table of effects, and a barrier.
type service interface {
	// begin begins a READ COMMITTED transaction.
	begin(ctx context.Context) (transaction, error)
	// handler is one whose work is the tests'.
	handler(conf barrier.HTTP, work serviceWork) http.Handler
	exec(t testing.TB, sql string)
	count(t testing.TB, sql string) int
	// otherNamespace makes namespace 2.
	otherNamespace(t testing.TB)
	// rows counts those of the barrier.
	rows(t testing.TB) int
	// passing are two statements that the server answers with errors which pass.
	passing() [2]string
	// effects lists the ops that had an effect, in their order.
	effects(t testing.TB) string
	// untilWaiting waits until n transactions of the database wait for a lock.
	untilWaiting(t testing.TB, n int)
}

// transaction is one of a service's.
type transaction interface {
	do(ctx context.Context, b barrier.Branch, work func(context.Context) (json.RawMessage, error)) (barrier.Result, error)
	effect(ctx context.Context, b barrier.Branch) (json.RawMessage, error)
	exec(ctx context.Context, sql string) error
	// cut cuts the connection, and gives the error of who uses it then.
	cut(ctx context.Context) error
	commit(ctx context.Context) error
	rollback(ctx context.Context) error
}

// serviceWork is what a service does of a call. The transaction is the handler's: it has no do, commit and rollback.
type serviceWork func(ctx context.Context, tx transaction, b barrier.Branch, body []byte) (json.RawMessage, error)

// services opens one on each kind of server that a service may have.
var services = map[string]func(testing.TB) service{"postgres": openPostgres, "mariadb": openMariaDB}

// onEach runs a test on each kind of server.
func onEach(t *testing.T, test func(t *testing.T, open func(testing.TB) service)) {
	t.Helper()
	t.Parallel()
	for name, open := range services {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open)
		})
	}
}

// call calls a branch in a transaction of its own.
func callIn(ctx context.Context, s service, b barrier.Branch, work func(context.Context, transaction) (json.RawMessage, error)) (out barrier.Result, err error) {
	tx, err := s.begin(ctx)
	if err != nil {
		return barrier.Result{}, err
	}
	defer tx.rollback(ctx) // unless it was committed
	out, err = tx.do(ctx, b, func(ctx context.Context) (json.RawMessage, error) { return work(ctx, tx) })
	if err != nil {
		return out, err
	}
	return out, tx.commit(ctx)
}

// has calls a branch that has its effect.
func has(t testing.TB, s service, b barrier.Branch) (barrier.Result, error) {
	return callIn(t.Context(), s, b, func(ctx context.Context, tx transaction) (json.RawMessage, error) { return tx.effect(ctx, b) })
}

// answer is what an effect answers: the how many-th it is.
func answer(n int) json.RawMessage { return fmt.Appendf(nil, `{"id" : %d}`, n) }

type onPostgres struct{ *pgxpool.Pool }

func openPostgres(t testing.TB) service { return onPostgres{open(t)} }

func (s onPostgres) begin(ctx context.Context) (transaction, error) {
	tx, err := s.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	return postgresTx{tx}, err
}

func (s onPostgres) handler(conf barrier.HTTP, work serviceWork) http.Handler {
	return conf.Handler(s.Pool, func(ctx context.Context, tx pgx.Tx, b barrier.Branch, body []byte) (json.RawMessage, error) {
		return work(ctx, postgresTx{tx}, b, body)
	})
}

func (s onPostgres) exec(t testing.TB, sql string)      { t.Helper(); exec(t, s.Pool, sql) }
func (s onPostgres) count(t testing.TB, sql string) int { t.Helper(); return count(t, s.Pool, sql) }
func (s onPostgres) otherNamespace(t testing.TB)        { s.exec(t, "SELECT pawl.namespace_create('other')") }

func (s onPostgres) rows(t testing.TB) int            { return s.count(t, "SELECT count(*) FROM pawl.barrier") }
func (s onPostgres) effects(t testing.TB) string      { return effects(t, s.Pool) }
func (s onPostgres) untilWaiting(t testing.TB, n int) { t.Helper(); untilWaiting(t, s.Pool, n) }

func (s onPostgres) passing() [2]string {
	return [2]string{"DO $$ BEGIN RAISE serialization_failure; END $$", "SELECT pg_terminate_backend(pg_backend_pid())"}
}

type postgresTx struct{ tx pgx.Tx }

func (p postgresTx) do(ctx context.Context, b barrier.Branch, work func(context.Context) (json.RawMessage, error)) (barrier.Result, error) {
	return barrier.Do(ctx, p.tx, b, work)
}

func (p postgresTx) effect(ctx context.Context, b barrier.Branch) (json.RawMessage, error) {
	return effect(p.tx, b)(ctx)
}

func (p postgresTx) exec(ctx context.Context, sql string) error {
	_, err := p.tx.Exec(ctx, sql)
	return err
}

func (p postgresTx) cut(ctx context.Context) error {
	if err := p.tx.Conn().PgConn().Conn().Close(); err != nil {
		return err
	}
	return p.exec(ctx, "SELECT 1")
}

func (p postgresTx) commit(ctx context.Context) error   { return p.tx.Commit(ctx) }
func (p postgresTx) rollback(ctx context.Context) error { return p.tx.Rollback(ctx) }

type onMariaDB struct{ *sql.DB }

func openMariaDB(t testing.TB) service {
	t.Helper()
	s := openMySQL(t)
	if err := barrier.SetupMySQL(t.Context(), s.DB); err != nil {
		t.Fatal(err)
	}
	return s
}

const effectTable = "CREATE TABLE effect (id bigint AUTO_INCREMENT PRIMARY KEY, saga varbinary(1024), step varbinary(255), op varchar(10))"

// openMySQL gives a database without a barrier.
func openMySQL(t testing.TB) onMariaDB {
	t.Helper()
	pool, err := sql.Open("mysql", dbtest.MariaDB(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	pool.SetMaxOpenConns(30) // the server is shared
	s := onMariaDB{pool}
	s.exec(t, effectTable)
	return s
}

func (s onMariaDB) begin(ctx context.Context) (transaction, error) {
	tx, err := s.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	return mysqlTx{tx, tx}, err
}

func (s onMariaDB) handler(conf barrier.HTTP, work serviceWork) http.Handler {
	return conf.HandlerMySQL(s.DB, func(ctx context.Context, tx barrier.MySQLTx, b barrier.Branch, body []byte) (json.RawMessage, error) {
		return work(ctx, mysqlTx{on: tx}, b, body)
	})
}

func (s onMariaDB) exec(t testing.TB, sql string) {
	t.Helper()
	if _, err := s.ExecContext(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (s onMariaDB) count(t testing.TB, sql string) (n int) {
	t.Helper()
	if err := s.QueryRowContext(context.Background(), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (s onMariaDB) otherNamespace(testing.TB) {} // any number is one

func (s onMariaDB) rows(t testing.TB) int {
	return s.count(t, "SELECT count(*) FROM pawl_barrier WHERE op <> 'lock'")
}

func (s onMariaDB) effects(t testing.TB) (all string) {
	t.Helper()
	if err := s.QueryRowContext(t.Context(), "SELECT coalesce(group_concat(op ORDER BY id SEPARATOR ' '), '') FROM effect").Scan(&all); err != nil {
		t.Fatal(err)
	}
	return all
}

func (s onMariaDB) passing() [2]string {
	return [2]string{"SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213", "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290"}
}

// untilWaiting does not look at the server's list of transactions, which is never fresh for who looks often.
func (s onMariaDB) untilWaiting(t testing.TB, n int) {
	t.Helper()
	until(t, "somebody to wait", func() bool {
		return s.count(t, "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE 'INSERT INTO pawl_barrier%' AND time_ms > 20") == n
	})
}

type mysqlTx struct {
	tx *sql.Tx // nil: the handler's
	on barrier.MySQLTx
}

func (m mysqlTx) do(ctx context.Context, b barrier.Branch, work func(context.Context) (json.RawMessage, error)) (barrier.Result, error) {
	return barrier.DoMySQL(ctx, m.tx, b, work)
}

func (m mysqlTx) effect(ctx context.Context, b barrier.Branch) (json.RawMessage, error) {
	if _, err := m.on.ExecContext(ctx, "INSERT INTO effect (saga, step, op) VALUES (?, ?, ?)", []byte(b.ID), []byte(b.Branch), string(b.Op)); err != nil {
		return nil, err
	}
	var n int
	err := m.on.QueryRowContext(ctx, "SELECT count(*) FROM effect").Scan(&n)
	return answer(n), err
}

func (m mysqlTx) exec(ctx context.Context, sql string) error {
	_, err := m.on.ExecContext(ctx, sql)
	return err
}

func (m mysqlTx) cut(ctx context.Context) error {
	var id string
	if err := m.on.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		return err
	}
	return m.exec(ctx, "KILL "+id)
}

func (m mysqlTx) commit(context.Context) error   { return m.tx.Commit() }
func (m mysqlTx) rollback(context.Context) error { return m.tx.Rollback() }
