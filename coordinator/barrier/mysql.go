package barrier

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-dev/pawl/db"
)

const (
	// Waits for whoever is at work on the branch: he has its row lock, new or old. As an update, not with IGNORE: that takes the row shared, of which two cannot both go on, and it hides errors.
	mysqlLockSQL = "INSERT INTO pawl_barrier (ns, gid, branch, op, reason, at) VALUES (?, ?, ?, 'lock', 'lock', UTC_TIMESTAMP(6)) ON DUPLICATE KEY UPDATE op = 'lock'"
	// What is committed, and whether the transaction's snapshot shows it: a locking read looks at the newest, and a plain one within it does not.
	mysqlLookSQL = `SELECT b.op, b.reason, b.result, EXISTS (
		SELECT 1 FROM pawl_barrier s WHERE s.ns = b.ns AND s.gid = b.gid AND s.branch = b.branch AND s.op = b.op AND s.reason = b.reason AND s.at = b.at)
		FROM pawl_barrier b FORCE INDEX (PRIMARY) WHERE b.ns = ? AND b.gid = ? AND b.branch = ? AND b.op IN (?, ?) FOR UPDATE`
	mysqlForgetSQL = "DELETE FROM pawl_barrier WHERE ns = ? AND gid = ? AND branch = ? AND op IN (?, ?) AND reason = 'refused'"
	mysqlRecordSQL = "INSERT INTO pawl_barrier (ns, gid, branch, op, reason, result, at) VALUES (?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6))"

	mysqlUndoMax = 5 * time.Second // how long a rollback, or the restoring of a setting, may take
)

// The server's numbers of errors.
const (
	mysqlDuplicate   = 1062 // of a key
	mysqlNoTable     = 1146
	mysqlLockTimeout = 1205 // undoes the statement, or with innodb_rollback_on_timeout the transaction
	mysqlDeadlock    = 1213 // undoes the transaction
	mysqlNoSavepoint = 1305
)

// mysqlPassing are errors that go away by themselves: a lock, a lack of resources, a limit of time, a server that stops or is a standby.
var mysqlPassing = []uint64{mysqlLockTimeout, mysqlDeadlock, 1021, 1037, 1038, 1040, 1041, 1053, 1114, 1203, 1226, 1290, 1317, 1836, 1927, 1969, 3024, 4031}

// MySQLTx is a transaction of MariaDB or MySQL that is lent to work, which cannot end it but by SQL. After its end it refuses with sql.ErrTxDone.
type MySQLTx = db.MySQLTx

// DoMySQL is Do for a service whose database is MariaDB (10.5 or newer) or MySQL (8.0 or newer), InnoDB with the table that SetupMySQL makes; in a transaction that the caller begins READ COMMITTED, and ends. Any driver will do
// whose errors have the server's number in a field Number or Code, as github.com/go-sql-driver/mysql's. [RunMySQL] begins and commits as well.
//
// As a transaction cannot be asked for its level there, its snapshot is looked at: one that is older than what was committed of the branch is ErrInvalid. It waits in whole seconds, for one at least, and no longer than
// innodb_lock_wait_timeout, which is as before afterwards, unless tx's context ends in between. Where several wait for one that is rolled back, the server may take them for a deadlock and give one of them up, and roll back its
// transaction: that one has ErrInFlight as well.
//
// A statement of work that fails undoes only itself, as ever in MySQL: work returns its error, or goes on without it. A statement that commits by itself, as those that change the schema do, is ErrEnded. Rows have to be closed.
// Five round trips before work, and two after it, and one more for each statement that the driver prepares first, of which there are three (interpolateParams=true spares them). A savepoint pawl_barrier_… is set meanwhile.
func DoMySQL(ctx context.Context, tx *sql.Tx, b Branch, work func(ctx context.Context) (json.RawMessage, error)) (Result, error) {
	return do(ctx, &mysql{on: tx}, b, work)
}

// RunMySQL is DoMySQL in a READ COMMITTED transaction of its own on a connection of on: work writes through tx, and what it wrote commits with the row. The error is as of DoMySQL; after any the same call may be made again, which tells
// what became of it: it is not known where the connection was lost during COMMIT.
func RunMySQL(ctx context.Context, on *sql.DB, b Branch, work func(ctx context.Context, tx MySQLTx) (json.RawMessage, error)) (Result, error) {
	return runMySQL(ctx, on, 0, b, work)
}

// runMySQL is RunMySQL. idle bounds how long the connection may stand idle meanwhile; 0 leaves that as it is.
func runMySQL(ctx context.Context, on *sql.DB, idle time.Duration, b Branch, work func(ctx context.Context, tx MySQLTx) (json.RawMessage, error)) (out Result, err error) {
	if err := b.validate(); err != nil {
		return Result{}, err
	}
	conn, err := on.Conn(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", errAway, err)
	}
	begin, end := []string{"SET TRANSACTION ISOLATION LEVEL READ COMMITTED", "START TRANSACTION"}, []string(nil)
	if idle > 0 {
		seconds := (idle + time.Second - 1) / time.Second
		begin = append(begin, fmt.Sprintf("SET @pawl_idle = @@wait_timeout, wait_timeout = LEAST(@@wait_timeout, %d)", seconds))
		end = append(end, "SET wait_timeout = @pawl_idle")
	}
	committed := false
	defer func() {
		if err != nil && !errors.Is(err, errUnknown) && db.MySQLLost(conn) {
			err = fmt.Errorf("%w: %w", errAway, err)
		}
		if !committed {
			end = append([]string{"ROLLBACK"}, end...)
		}
		if undoMySQL(ctx, conn, end) != nil {
			db.DropMySQL(conn)
		}
		_ = conn.Close() // back to the pool, if it was not dropped
	}()
	for _, statement := range begin {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return Result{}, fmt.Errorf("begin: %w", err)
		}
	}
	out, err = do(ctx, &mysql{on: conn}, b, func(ctx context.Context) (json.RawMessage, error) {
		lent := db.LendMySQL(conn)
		defer lent.Reclaim()
		return work(ctx, lent)
	})
	if err != nil {
		return Result{}, err
	}
	switch _, err := conn.ExecContext(ctx, "COMMIT"); {
	case err == nil:
		committed = true
		return out, nil
	case !errors.Is(err, driver.ErrBadConn) && db.MySQLLost(conn):
		return Result{}, fmt.Errorf("%w: %w", errUnknown, err)
	default: // it was not sent, or the server says no
		return Result{}, fmt.Errorf("commit: %w", err)
	}
}

// undoMySQL does, also after the caller's context has ended, what leaves a connection as it was.
func undoMySQL(ctx context.Context, on interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}, statements []string,
) error {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), mysqlUndoMax)
	defer stop()
	for _, statement := range statements {
		if _, err := on.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// mysql is the store of one call in a transaction of MariaDB or MySQL.
type mysql struct {
	on        MySQLTx
	savepoint string          // "": none is set
	rows      map[Op]mysqlRow // that the call found of itself and of what it compensates
}

type mysqlRow struct {
	reason string
	result json.RawMessage
}

const reasonRefused = "refused"

// origin is what an op compensates; "": nothing.
func (op Op) origin() Op { return map[Op]Op{Undo: Action, Cancel: Try}[op] }

func (m *mysql) enter(ctx context.Context, b Branch) (entry, error) {
	seconds := max(1, int(waitMax(ctx)/time.Second))
	_, err := m.on.ExecContext(ctx, "SET @pawl_wait = @@innodb_lock_wait_timeout, innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, "+strconv.Itoa(seconds)+")")
	if err == nil {
		_, err = m.on.ExecContext(ctx, mysqlLockSQL, b.namespace(), []byte(b.ID), []byte(b.Branch))
		if fault := undoMySQL(ctx, m.on, []string{"SET innodb_lock_wait_timeout = @pawl_wait"}); err == nil {
			err = fault
		}
	}
	if err == nil {
		err = m.look(ctx, b)
	}
	if err != nil {
		return entry{}, b.wrapMySQL("enter", err)
	}
	e, err := m.decide(b)
	if err == nil && e.what == stateRun {
		savepoint := "pawl_barrier_" + strings.ToLower(rand.Text()[:10]) // a call within the work sets its own
		if _, err := m.on.ExecContext(ctx, "SAVEPOINT "+savepoint); err != nil {
			return entry{}, b.wrapMySQL("enter", err)
		}
		m.savepoint = savepoint
	}
	return e, err
}

// look reads the rows of what is asked for and of what that compensates, in a statement after the one that locked.
func (m *mysql) look(ctx context.Context, b Branch) error {
	rows, err := m.on.QueryContext(ctx, mysqlLookSQL, b.namespace(), []byte(b.ID), []byte(b.Branch), string(b.Op), string(cmp.Or(b.Op.origin(), b.Op)))
	if err != nil {
		return err
	}
	defer rows.Close()
	m.rows = map[Op]mysqlRow{}
	for rows.Next() {
		var (
			op   Op
			row  mysqlRow
			seen bool
		)
		if err := rows.Scan(&op, &row.reason, (*[]byte)(&row.result), &seen); err != nil {
			return err
		}
		if !seen {
			return fmt.Errorf("%w: the transaction does not see what was committed of the branch: begin it READ COMMITTED", ErrInvalid)
		}
		m.rows[op] = row
	}
	return rows.Err()
}

// decide tells what the branch is to the call, by the rules of pawl.barrier_enter.
func (m *mysql) decide(b Branch) (entry, error) {
	own, there := m.rows[b.Op]
	e := entry{result: own.result}
	switch {
	case own.reason == string(b.Op):
		e.what = stateDuplicate
	case own.reason == reasonRefused:
		var r refused
		if err := json.Unmarshal(own.result, &r); err != nil {
			return entry{}, fmt.Errorf("%s: refusal: %w", b, err)
		}
		e.what = stateRefused
		if b.Job > r.Job || b.Job == r.Job && b.Attempt > r.Attempt {
			e.what = stateRun
		}
	case there:
		e.what = stateLate
	case b.Op.origin() == "", m.rows[b.Op.origin()].reason == string(b.Op.origin()):
		e.what = stateRun
	default:
		e.what = stateNull
	}
	return e, nil
}

func (m *mysql) leave(ctx context.Context, b Branch, _ entry, out Result) error {
	value, err := b.stored(out)
	if err != nil {
		return err
	}
	reason := string(b.Op)
	if out.Outcome == Refused {
		reason = reasonRefused
	}
	if m.savepoint != "" { // it is gone where the transaction has ended
		end := "RELEASE SAVEPOINT "
		if out.Outcome == Refused {
			end = "ROLLBACK TO SAVEPOINT "
		}
		if _, err := m.on.ExecContext(ctx, end+m.savepoint); err != nil {
			return b.wrapMySQL("leave", err)
		}
	}
	origin := b.Op.origin()
	if m.rows[b.Op].reason == reasonRefused || m.rows[origin].reason == reasonRefused {
		if _, err := m.on.ExecContext(ctx, mysqlForgetSQL, b.namespace(), []byte(b.ID), []byte(b.Branch), string(b.Op), string(cmp.Or(origin, b.Op))); err != nil {
			return b.wrapMySQL("leave", err)
		}
	}
	statement, args := mysqlRecordSQL, []any{b.namespace(), []byte(b.ID), []byte(b.Branch), string(b.Op), reason, []byte(value)}
	if r := m.rows[origin].reason; origin != "" && (r == "" || r == reasonRefused) { // bars what it compensates
		statement += ", (?, ?, ?, ?, ?, NULL, UTC_TIMESTAMP(6))"
		args = append(args, b.namespace(), []byte(b.ID), []byte(b.Branch), string(origin), reason)
	}
	if _, err := m.on.ExecContext(ctx, statement, args...); err != nil {
		return b.wrapMySQL("leave", err)
	}
	return nil
}

// wrapMySQL names errors of the database. step: enter or leave.
func (b Branch) wrapMySQL(step string, err error) error {
	switch number := db.MySQLNumber(err); {
	case (number == mysqlLockTimeout || number == mysqlDeadlock) && step == "enter":
		return fmt.Errorf("%s: %w", b, ErrInFlight)
	case number == mysqlNoSavepoint && step == "leave":
		return fmt.Errorf("%s: %w", b, ErrEnded)
	case number == mysqlDuplicate && step == "leave":
		return fmt.Errorf("%s was recorded within itself: %w", b, err)
	case number == mysqlNoTable:
		return fmt.Errorf("%w (here: SetupMySQL or \"pawl migrate barrier\"; %w)", ErrSchema, err)
	}
	return fmt.Errorf("%s %s: %w", step, b, err)
}
