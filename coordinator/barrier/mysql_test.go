package barrier_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// run calls a branch that has its effect.
func runMySQL(ctx context.Context, on *sql.DB, b barrier.Branch) (barrier.Result, error) {
	return barrier.RunMySQL(ctx, on, b, func(ctx context.Context, tx barrier.MySQLTx) (json.RawMessage, error) {
		return mysqlTx{on: tx}.effect(ctx, b)
	})
}

// one gives a pool of one connection to the service's database.
func (s onMariaDB) one(t *testing.T) onMariaDB {
	t.Helper()
	s.SetMaxOpenConns(1)
	return s
}

// A table is made once, however often and by however many; without it all say so.
func TestSetupMySQL(t *testing.T) {
	t.Parallel()
	s := openMySQL(t)
	if _, err := has(t, s, branch(barrier.Try)); !errors.Is(err, barrier.ErrSchema) || !strings.Contains(err.Error(), "SetupMySQL") {
		t.Errorf("before: %v", err)
	}
	if _, err := barrier.SweepMySQL(t.Context(), s.DB, 0); !errors.Is(err, barrier.ErrSchema) {
		t.Errorf("sweep before: %v", err)
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if err := barrier.SetupMySQL(t.Context(), s.DB); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if out, err := has(t, s, branch(barrier.Try)); err != nil || out.Outcome != barrier.Done {
		t.Errorf("%+v, %v", out, err)
	}
	if err := barrier.SetupMySQL(t.Context(), s.DB); err != nil || s.rows(t) != 1 {
		t.Errorf("again: %v, %d rows", err, s.rows(t))
	}
}

// The sweep removes what is older than Keep, in its own namespace.
func TestSweepMySQL(t *testing.T) {
	t.Parallel()
	s := openMariaDB(t).(onMariaDB)
	s.exec(t, `INSERT INTO pawl_barrier (ns, gid, branch, op, reason, at) SELECT 1 + seq % 2, seq, 'b', 'action', 'action', UTC_TIMESTAMP(6) - INTERVAL IF(seq <= 2400, 91, 89) DAY FROM seq_1_to_2410`)
	if n, err := barrier.SweepMySQL(t.Context(), s.DB, 0); n != 1200 || err != nil {
		t.Errorf("%d removed, %v", n, err)
	}
	if a, b := s.count(t, "SELECT count(*) FROM pawl_barrier WHERE ns = 1"), s.count(t, "SELECT count(*) FROM pawl_barrier WHERE ns = 2"); a != 5 || b != 1205 {
		t.Errorf("%d and %d are left", a, b)
	}
	// Of a null compensation the halves may go by themselves, and the row that calls take.
	for i, remove := range []string{"op = 'undo'", "op = 'lock'", "op = 'action'", ""} {
		want := []barrier.Outcome{barrier.Null, barrier.Null, barrier.Duplicate, barrier.Duplicate}[i]
		if out, err := has(t, s, branch(barrier.Undo)); err != nil || out.Outcome != want {
			t.Errorf("%d: %s, %v; want %s", i, out.Outcome, err, want)
		}
		if remove != "" {
			s.exec(t, "DELETE FROM pawl_barrier WHERE gid = 'checkout:4711' AND "+remove)
		}
	}
	if got := s.effects(t); got != "" {
		t.Errorf("effects %q", got)
	}
}

// Who waits for another transaction gives up before its context ends, after WaitMax, or when innodb_lock_wait_timeout says so, which is as before afterwards.
func TestDoMySQLLockTimeout(t *testing.T) {
	t.Parallel()
	s := openMariaDB(t).(onMariaDB)
	holder, err := s.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.rollback(t.Context()) }()
	if _, err := holder.do(t.Context(), branch(barrier.Action), func(ctx context.Context) (json.RawMessage, error) { return nil, nil }); err != nil {
		t.Fatal(err)
	}
	conn, err := s.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// undo gives the error, and the timeout in its transaction and after it. One of a second ends before the server takes the statement to be too long.
	undo := func(ctx context.Context, seconds int) (out barrier.Result, after [2]int, err error) {
		if _, err := conn.ExecContext(ctx, fmt.Sprint("SET innodb_lock_wait_timeout = ", seconds, ", max_statement_time = ", max(2*(2-seconds), 0))); err != nil {
			t.Error(err)
		}
		tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
		if err != nil {
			t.Error(err)
			return out, after, err
		}
		out, err = barrier.DoMySQL(ctx, tx, branch(barrier.Undo), func(ctx context.Context) (json.RawMessage, error) { return nil, nil })
		fault := tx.QueryRowContext(ctx, "SELECT @@innodb_lock_wait_timeout").Scan(&after[0])
		fault = errors.Join(fault, tx.Rollback(), conn.QueryRowContext(t.Context(), "SELECT @@innodb_lock_wait_timeout").Scan(&after[1]))
		if fault != nil {
			t.Error(fault)
		}
		return out, after, err
	}
	for what, c := range map[string]struct{ within, seconds int }{"a context that is about to end": {2, 50}, "WaitMax": {60, 50}, "a shorter setting": {60, 1}} {
		if testing.Short() && what == "WaitMax" {
			continue // 3 s
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Duration(c.within)*time.Second)
		if _, after, err := undo(ctx, c.seconds); !errors.Is(err, barrier.ErrInFlight) || after != [2]int{c.seconds, c.seconds} {
			t.Errorf("%s: %v, and innodb_lock_wait_timeout is %d", what, err, after)
		}
		stop()
	}
	var group sync.WaitGroup
	group.Go(func() {
		if out, after, err := undo(t.Context(), 49); err != nil || out.Outcome != barrier.Null || after != [2]int{49, 49} {
			t.Errorf("got %+v, %v, and innodb_lock_wait_timeout is %d", out, err, after)
		}
	})
	s.untilWaiting(t, 1)
	if err := holder.rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	group.Wait()
}

// A transaction that does not see what it has waited for is refused; at READ COMMITTED it sees it, whatever it has read before.
func TestDoMySQLSnapshot(t *testing.T) {
	t.Parallel()
	s := openMariaDB(t).(onMariaDB)
	for i, c := range []struct {
		level  sql.IsolationLevel
		before bool // it has read before the other was committed
		want   error
	}{
		{sql.LevelReadCommitted, true, nil},
		{sql.LevelRepeatableRead, true, barrier.ErrInvalid},
		{sql.LevelRepeatableRead, false, nil},
	} {
		b := barrier.Branch{ID: fmt.Sprint(i), Branch: "b", Op: barrier.Try}
		tx, err := s.BeginTx(t.Context(), &sql.TxOptions{Isolation: c.level})
		if err != nil {
			t.Fatal(err)
		}
		if c.before {
			var n int
			if err := tx.QueryRowContext(t.Context(), "SELECT count(*) FROM effect").Scan(&n); err != nil {
				t.Error(err)
			}
		}
		if _, err := has(t, s, b); err != nil {
			t.Error(err)
		}
		b.Op = barrier.Cancel
		out, err := barrier.DoMySQL(t.Context(), tx, b, func(ctx context.Context) (json.RawMessage, error) {
			var n int
			err := tx.QueryRowContext(ctx, "SELECT count(*) FROM effect WHERE saga = ?", b.ID).Scan(&n)
			if n != 1 {
				t.Errorf("%d: the cancel finds %d tries", i, n)
			}
			return nil, err
		})
		if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), "READ COMMITTED") || err == nil && out.Outcome != barrier.Done {
			t.Errorf("%d: %+v, %v", i, out, err)
		}
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}

// Work that ends the transaction, by what it says or by what that implies, is found out; the branch was not done.
func TestDoMySQLEnded(t *testing.T) {
	t.Parallel()
	s := openMariaDB(t).(onMariaDB)
	for i, statement := range []string{"COMMIT", "START TRANSACTION", "CREATE TABLE implies_commit (n int)", "ALTER TABLE effect COMMENT 'x'", "COMMIT AND CHAIN"} {
		b := barrier.Branch{ID: fmt.Sprint(i), Branch: "b", Op: barrier.Action}
		for _, refuses := range []bool{false, true} {
			_, err := callIn(t.Context(), s, b, func(ctx context.Context, tx transaction) (json.RawMessage, error) {
				_, err := tx.effect(ctx, b)
				if err == nil {
					err = tx.exec(ctx, statement)
				}
				if err == nil && refuses {
					err = barrier.Refuse(errors.New("no"))
				}
				return nil, err
			})
			if statement[:6] == "CREATE" && refuses {
				continue // it is there
			}
			if !errors.Is(err, barrier.ErrEnded) {
				t.Errorf("%s: %v", statement, err)
			}
		}
	}
	if n := s.rows(t); n != 0 {
		t.Errorf("%d rows", n)
	}
}

// A transaction that the server gave up for a deadlock, of which work says nothing, is not taken for done.
func TestRunMySQLDeadlock(t *testing.T) {
	t.Parallel()
	s := openMariaDB(t).(onMariaDB)
	s.exec(t, "INSERT INTO effect (id) VALUES (1), (2), (3), (4)")
	other, err := s.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.rollback(t.Context())
	if err := other.exec(t.Context(), "UPDATE effect SET step = 'x' WHERE id <> 1"); err != nil { // it is the larger one, which goes on
		t.Fatal(err)
	}
	var group sync.WaitGroup
	_, err = barrier.RunMySQL(t.Context(), s.DB, branch(barrier.Action), func(ctx context.Context, tx barrier.MySQLTx) (json.RawMessage, error) {
		if _, err := tx.ExecContext(ctx, "UPDATE effect SET step = 'y' WHERE id = 1"); err != nil {
			t.Error(err)
		}
		group.Go(func() {
			if err := other.exec(ctx, "UPDATE effect SET step = 'x' WHERE id = 1"); err != nil {
				t.Error(err)
			}
		})
		until(t, "the other to wait", func() bool {
			return s.count(t, "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE 'UPDATE%' AND time_ms > 20") == 1
		})
		if _, err := tx.ExecContext(ctx, "UPDATE effect SET step = 'y' WHERE id = 2"); err == nil {
			t.Error("no deadlock")
		}
		return nil, nil
	})
	group.Wait()
	if !errors.Is(err, barrier.ErrEnded) || s.rows(t) != 0 {
		t.Errorf("%v, %d rows", err, s.rows(t))
	}
}

// When what several wait for is rolled back the server may take some of them for a deadlock: they are in flight. Whatever happens, work is done once.
func TestRunMySQLRolledBack(t *testing.T) {
	t.Parallel()
	s := openMariaDB(t).(onMariaDB)
	for round := range 5 {
		b := barrier.Branch{ID: fmt.Sprint(round), Branch: "b", Op: barrier.Action}
		holder, err := s.begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := holder.do(t.Context(), b, func(ctx context.Context) (json.RawMessage, error) { return holder.effect(ctx, b) }); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		var done atomic.Int32
		for range 4 {
			group.Go(func() {
				out, err := runMySQL(t.Context(), s.DB, b)
				if err != nil && !errors.Is(err, barrier.ErrInFlight) {
					t.Error(err)
				}
				if out.Outcome == barrier.Done {
					done.Add(1)
				}
			})
		}
		s.untilWaiting(t, 4)
		if err := holder.rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		group.Wait()
		if done.Load() != 1 {
			t.Errorf("round %d: done %d times", round, done.Load())
		}
	}
	if n := s.count(t, "SELECT count(*) FROM effect"); n != 5 {
		t.Errorf("%d effects", n)
	}
}

// Work sees what others have committed since it began.
func TestRunMySQLReadCommitted(t *testing.T) {
	t.Parallel()
	s := openMariaDB(t).(onMariaDB)
	_, err := barrier.RunMySQL(t.Context(), s.DB, branch(barrier.Action), func(ctx context.Context, tx barrier.MySQLTx) (json.RawMessage, error) {
		for want := range 2 {
			var n int
			if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM effect").Scan(&n); err != nil || n != want {
				t.Errorf("%d effects, %v; want %d", n, err, want)
			}
			s.exec(t, "INSERT INTO effect (op) VALUES ('other')")
		}
		return nil, nil
	})
	if err != nil {
		t.Error(err)
	}
}

// One transaction at a time has a branch, from the call to its end, whatever it came to; also while the sweep takes away its rows, which are old for it.
func TestDoMySQLExclusive(t *testing.T) {
	t.Parallel()
	dsn := dbtest.MariaDB(t)
	now, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer now.Close()
	past, err := sql.Open("mysql", dsn+"?timestamp=946684800")
	if err != nil {
		t.Fatal(err)
	}
	defer past.Close()
	s := onMariaDB{past}
	if err := barrier.SetupMySQL(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	var inside, calls [3]atomic.Int32
	var group, sweeper sync.WaitGroup
	var swept int64
	over := make(chan struct{})
	sweeper.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			n, err := barrier.SweepMySQL(t.Context(), now, 1)
			if err != nil {
				t.Error(err)
			}
			swept += n
		}
	})
	for i := range 6 {
		group.Go(func() {
			for j := range 30 {
				which := (i + j) % 3
				b := barrier.Branch{ID: fmt.Sprint(which, " ", j/3), Branch: "b", Op: []barrier.Op{barrier.Try, barrier.Confirm, barrier.Cancel}[j%3]}
				tx, err := s.begin(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				_, err = tx.do(t.Context(), b, func(ctx context.Context) (json.RawMessage, error) { return nil, nil })
				switch {
				case err == nil, errors.Is(err, barrier.ErrTooLate):
					calls[which].Add(1)
					if n := inside[which].Add(1); n != 1 {
						t.Errorf("%s: %d at once", b, n)
					}
					inside[which].Add(-1)
				case !errors.Is(err, barrier.ErrInFlight):
					t.Error(err)
				}
				end := tx.commit
				if err != nil || (i+j)%4 == 0 {
					end = tx.rollback
				}
				if err := end(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	close(over)
	sweeper.Wait()
	if swept == 0 {
		t.Error("nothing was swept")
	}
	for which := range calls {
		if n := calls[which].Load(); n == 0 {
			t.Errorf("no call of %d got through", which)
		}
	}
}

// What is lent for work is refused after it, and rows that it left open are no commit.
func TestRunMySQLLent(t *testing.T) {
	t.Parallel()
	s := openMariaDB(t).(onMariaDB)
	var lent barrier.MySQLTx
	_, err := barrier.RunMySQL(t.Context(), s.DB, branch(barrier.Action), func(ctx context.Context, tx barrier.MySQLTx) (json.RawMessage, error) {
		lent = tx
		return mysqlTx{on: tx}.effect(ctx, branch(barrier.Action))
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lent.ExecContext(t.Context(), "DELETE FROM effect"); !errors.Is(err, sql.ErrTxDone) {
		t.Errorf("after the end: %v", err)
	}
	other := barrier.Branch{ID: "other", Branch: "b", Op: barrier.Action}
	_, err = barrier.RunMySQL(t.Context(), s.DB, other, func(ctx context.Context, tx barrier.MySQLTx) (json.RawMessage, error) {
		rows, err := tx.QueryContext(ctx, "SELECT seq FROM seq_1_to_100000")
		if err == nil && !rows.Next() {
			t.Error("no rows")
		}
		return nil, err
	})
	if out, fault := runMySQL(t.Context(), s.DB, other); err == nil || fault != nil || out.Outcome != barrier.Done {
		t.Errorf("open rows: %v; then %+v, %v", err, out, fault)
	}
	if n := s.count(t, "SELECT count(*) FROM effect"); n != 2 {
		t.Errorf("%d effects", n)
	}
}

// How the connection talks to the server makes no difference.
func TestDoMySQLConnection(t *testing.T) {
	t.Parallel()
	dsn := dbtest.MariaDB(t)
	for i, params := range []string{
		"interpolateParams=true", "charset=latin1", "interpolateParams=true&charset=latin1", "clientFoundRows=true&parseTime=true", "sql_mode=''", "interpolateParams=true&sql_mode='ANSI_QUOTES,NO_BACKSLASH_ESCAPES'",
		"sql_mode='ORACLE,EMPTY_STRING_IS_NULL'", "autocommit=0",
	} {
		on, err := sql.Open("mysql", dsn+"?"+params)
		if err != nil {
			t.Fatal(err)
		}
		defer on.Close()
		if err := barrier.SetupMySQL(t.Context(), on); err != nil {
			t.Fatal(err)
		}
		var outcomes []string
		for _, op := range []barrier.Op{barrier.Try, barrier.Try, barrier.Cancel, barrier.Cancel, barrier.Try} {
			b := barrier.Branch{Namespace: int16(i + 1), ID: "ü'\"\\", Branch: "日本🐎", Op: op}
			out, err := barrier.RunMySQL(t.Context(), on, b, func(ctx context.Context, tx barrier.MySQLTx) (json.RawMessage, error) {
				return json.RawMessage(`"ü🐎\n'` + "`" + `"`), nil
			})
			if err != nil || string(out.Value) != `"ü🐎\n'`+"`"+`"` {
				t.Errorf("%s, %s: %s, %v", params, op, out.Value, err)
			}
			outcomes = append(outcomes, string(out.Outcome))
		}
		if got := strings.Join(outcomes, " "); got != "done duplicate done duplicate duplicate" {
			t.Errorf("%s: %s", params, got)
		}
		var n int
		if err := on.QueryRowContext(t.Context(), "SELECT count(*) FROM pawl_barrier WHERE gid = X'C3BC27225C' AND branch = X'E697A5E69CACF09F908E' AND ns = ?", i+1).Scan(&n); err != nil || n != 3 {
			t.Errorf("%s: %d rows, %v", params, n, err)
		}
	}
}

// The handler bounds how long its connection is idle, which is as before afterwards.
func TestHandlerMySQLIdle(t *testing.T) {
	t.Parallel()
	s := openMariaDB(t).(onMariaDB).one(t)
	s.exec(t, "SET wait_timeout = 100")
	for i, c := range []struct {
		idle time.Duration
		want string
	}{{0, "60"}, {6500 * time.Millisecond, "7"}, {time.Hour, "100"}} {
		for _, body := range []string{"", "fail"} {
			h := barrier.HTTP{Idle: c.idle}.HandlerMySQL(s.DB, func(ctx context.Context, tx barrier.MySQLTx, _ barrier.Branch, body []byte) (out json.RawMessage, err error) {
				if err := tx.QueryRowContext(ctx, "SELECT @@wait_timeout").Scan((*[]byte)(&out)); err != nil || string(out) != c.want {
					t.Errorf("%d: %s, %v; want %s", i, out, err, c.want)
				}
				if string(body) == "fail" {
					err = errors.New("oh")
				}
				return out, err
			})
			call(h, barrier.Branch{ID: fmt.Sprint(i, body), Branch: "b", Op: barrier.Action}, body)
			if n := s.count(t, "SELECT @@wait_timeout"); n != 100 {
				t.Errorf("%d, %q: %d s afterwards", i, body, n)
			}
		}
	}
}

// cutter is a connection that is cut at one of its writes.
type cutter struct {
	net.Conn
	*cuts
}

type cuts struct {
	after atomic.Bool  // the server has it
	left  atomic.Int32 // writes until then; 0: it is not to be cut
	last  atomic.Value // what was written then
}

func (c cutter) Write(p []byte) (int, error) {
	if c.left.Load() == 0 || c.left.Add(-1) > 0 {
		return c.Conn.Write(p)
	}
	c.last.Store(bytes.Clone(p[min(5, len(p)):]))
	defer c.Close()
	if c.after.Load() {
		return c.Conn.Write(p)
	}
	return 0, net.ErrClosed
}

// A connection that is lost anywhere leaves the writes and the row, or neither; whoever calls next finds out which.
func TestRunMySQLCut(t *testing.T) {
	t.Parallel()
	dsn := dbtest.MariaDB(t)
	direct, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	s := onMariaDB{direct}
	s.exec(t, effectTable)
	if err := barrier.SetupMySQL(t.Context(), direct); err != nil {
		t.Fatal(err)
	}
	config, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	c := &cuts{}
	config.Logger = &mysql.NopLogger{}
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return cutter{conn, c}, err
	}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	through := sql.OpenDB(connector)
	defer through.Close()
	through.SetMaxOpenConns(1)
	for _, op := range []barrier.Op{barrier.Action, barrier.Undo, barrier.Try} {
		refuses := op == barrier.Try
		for _, after := range []bool{false, true} {
			for n := int32(1); ; n++ {
				b := barrier.Branch{ID: fmt.Sprint(op, after, n), Branch: "b", Op: op}
				if op == barrier.Undo {
					if _, err := has(t, s, barrier.Branch{ID: b.ID, Branch: "b", Op: barrier.Action}); err != nil {
						t.Fatal(err)
					}
				}
				work := func(ctx context.Context, tx barrier.MySQLTx) (json.RawMessage, error) {
					out, err := mysqlTx{on: tx}.effect(ctx, b)
					if err == nil && refuses {
						err = barrier.Refuse(errors.New("no"))
					}
					return out, err
				}
				if err := through.PingContext(t.Context()); err != nil {
					t.Fatal(err)
				}
				c.after.Store(after)
				c.left.Store(n)
				_, err := barrier.RunMySQL(t.Context(), through, b, work)
				if c.left.Swap(0) > 0 { // it is over before
					if n < 10 || err != nil {
						t.Errorf("%s: %d writes, %v", op, n, err)
					}
					break
				}
				last := string(c.last.Load().([]byte))
				committed := after && last == "COMMIT"
				if err == nil || strings.Contains(err.Error(), "unknown") != committed {
					t.Errorf("%s, write %d, %q: %v", op, n, last, err)
				}
				out, err := barrier.RunMySQL(t.Context(), direct, b, work)
				want := map[bool]barrier.Outcome{false: barrier.Done, true: barrier.Duplicate}[committed]
				if refuses {
					want = barrier.Refused
				}
				if err != nil || out.Outcome != want {
					t.Errorf("%s, write %d, %q: then %s, %v; want %s", op, n, last, out.Outcome, err, want)
				}
				effects := s.count(t, fmt.Sprintf("SELECT count(*) FROM effect WHERE saga = '%s' AND op = '%s'", b.ID, op))
				if effects != map[bool]int{false: 1, true: 0}[refuses] {
					t.Errorf("%s, write %d, %q: %d effects", op, n, last, effects)
				}
			}
		}
	}
}
