package twophase_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// lossy makes connections to a MariaDB that are lost at the next statement that begins so, before or behind it.
type lossy struct {
	statement string
	behind    bool
	armed     atomic.Bool
}

type lossyConn struct {
	net.Conn
	l *lossy
}

func (l *lossy) open(tb testing.TB, dsn string) *sql.DB {
	conf, err := mysql.ParseDSN(dsn)
	if err != nil {
		tb.Fatal(err)
	}
	conf.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return &lossyConn{conn, l}, err
	}
	connector, err := mysql.NewConnector(conf)
	if err != nil {
		tb.Fatal(err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(1) // the place of one that is lost is free
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

func (c *lossyConn) Write(b []byte) (int, error) {
	if len(b) < 5 || !bytes.HasPrefix(b[5:], []byte(c.l.statement)) || !c.l.armed.CompareAndSwap(true, false) {
		return c.Conn.Write(b)
	}
	if c.l.behind {
		if _, err := c.Conn.Write(b); err != nil {
			return 0, err
		}
		_, _ = c.Conn.Read(make([]byte, 1)) // it is done
	}
	_ = c.Close()
	return len(b), nil // nobody has noticed
}

func (c *lossyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, net.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

// Replies of a MariaDB that are lost, and statements that never come: what Commit says is true, and all agree.
func TestMySQL_lostReplies(t *testing.T) {
	if testing.Short() {
		t.Skip("many banks")
	}
	t.Parallel()
	for _, statement := range []string{"INSERT INTO pawl_branch_witness", "XA END", "XA PREPARE", "XA COMMIT", "XA ROLLBACK", "one"} {
		for _, behind := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, behind it %t", statement, behind), func(t *testing.T) {
				t.Parallel()
				s := newSouth(t, dbtest.MariaDB(t))
				one := statement == "one"
				l := &lossy{statement: statement, behind: behind}
				if one {
					l.statement = "XA COMMIT"
				}
				through := twophase.MySQL(s.p.Name(), l.open(t, s.dsn))
				m := s.with(s.east, through)
				no := errors.New("no")
				err := m.Run(t.Context(), patient(t.Context(), func(ctx context.Context, tx *twophase.Tx) error {
					conn, err := through.Conn(ctx, tx)
					if err == nil {
						_, err = conn.ExecContext(ctx, "UPDATE account SET amount = amount + 1 WHERE id = 1")
					}
					if err == nil && !one {
						err = s.add(ctx, tx, "east", -1)
					}
					l.armed.Store(true)
					if err == nil && statement == "XA ROLLBACK" {
						err = no
					}
					return err
				}), twophase.Timeout(2*time.Second))
				if l.armed.Load() {
					t.Error("nothing was lost")
				}
				ctx, stop := context.WithTimeout(t.Context(), patience)
				defer stop()
				for left := 1; left > 0; {
					if _, err := m.Recover(ctx, twophase.KeepDefault); err != nil {
						t.Fatal(err)
					}
					all, err := s.p.Prepared(ctx)
					if err != nil {
						t.Fatal(err)
					}
					left = len(all) + s.count("east", "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()")
				}
				switch {
				case err == nil && one:
					s.wants(0, 1)
				case err == nil:
					s.wants(-1, 1)
				case errors.Is(err, twophase.ErrAborted) || errors.Is(err, no):
					s.wants(0, 0)
				default:
					t.Errorf("got %v", err)
				}
				if n := s.count("own", "SELECT count(*) FROM pawl.global_doubt"); n != 0 {
					t.Errorf("got %d doubts", n)
				}
			})
		}
	}
}

// One pass rolls back all that was left undecided at a MariaDB and elsewhere, though nobody may look at the witness of what is prepared.
func TestMySQL_presumed(t *testing.T) {
	t.Parallel()
	s := newSouth(t, dbtest.MariaDB(t))
	const n = 3
	for i := range n {
		id := s.overdue()
		s.leaveDone(id, s.east, "INSERT INTO account VALUES ($1, 0)", i+2)
		id.Participant = s.p.Name()
		b, err := s.p.Begin(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.(interface{ Tx() twophase.MySQLTx }).Tx().ExecContext(t.Context(), "INSERT INTO account VALUES (?, 0)", i+3); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.Close(t.Context())
	}
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	rolledBack := 0
	for passes := 1; rolledBack < 2*n && ctx.Err() == nil; passes++ {
		r, err := s.manager().Recover(ctx, twophase.KeepDefault)
		if err != nil {
			t.Errorf("pass %d: %v", passes, err)
		}
		rolledBack += r.RolledBack // the server may not have noticed yet that the connections have ended
	}
	s.wants(0, 0)
}
