package lock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
)

// DB is a pool, a connection or a transaction.
type DB = db.DBTX

// InTx locks names (of namespace 1) until the transaction ends, waiting for whoever has one of them. They are taken in the order of their hashes, so that two that name the
// same never wait for each other in one call. Two names may share a hash, in 2^64, and then wait for each other. ctx or lock_timeout bounds the wait.
func InTx(ctx context.Context, tx pgx.Tx, names ...string) error {
	if err := checkNames(names); err != nil {
		return err
	}
	if err := db.New(tx).LockInTx(ctx, db.LockInTxParams{Ns: 1, Names: names}); err != nil {
		return fmt.Errorf("lock %q in a transaction: %w", names, wrap(err))
	}
	return nil
}

// TryInTx is InTx without waiting. False: another has one of them; those it got meanwhile stay locked until the transaction ends.
func TryInTx(ctx context.Context, tx pgx.Tx, names ...string) (bool, error) {
	if err := checkNames(names); err != nil {
		return false, err
	}
	taken, err := db.New(tx).TryLockInTx(ctx, db.TryLockInTxParams{Ns: 1, Names: names})
	if err != nil {
		return false, fmt.Errorf("lock %q in a transaction: %w", names, wrap(err))
	}
	return taken, nil
}

func checkNames(names []string) error {
	for _, name := range names {
		if _, err := newRequest(name, nil); err != nil {
			return err
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("%w: no name is given", ErrInvalid)
	}
	return nil
}

// keepalive is how often an OnConn asks whether its connection lives, and how long it may take to answer.
const keepalive = 2 * time.Second

// ConnLock is an advisory lock on a connection of its own.
type ConnLock struct {
	conn *pgx.Conn
	ctx  context.Context
	stop context.CancelCauseFunc
	done chan struct{}
	once sync.Once
}

// OnConn locks names on a connection of its own until Release, or until that connection is lost: a lost connection is a lost lock, and Context ends with ErrLost. It is asked
// every 2 s whether it lives. There is no fencing token. The error is ErrPooler if the connection does not keep its session.
func OnConn(ctx context.Context, pool *pgxpool.Pool, names ...string) (*ConnLock, error) {
	if err := checkNames(names); err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("lock on a connection: %w", err)
	}
	if err := lockConn(ctx, conn, names); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("lock %q on a connection: %w", names, err)
	}
	l := &ConnLock{conn: conn, done: make(chan struct{})}
	l.ctx, l.stop = context.WithCancelCause(ctx)
	go l.watch()
	return l, nil
}

// lockConn probes whether the connection keeps its session, then locks.
func lockConn(ctx context.Context, conn *pgx.Conn, names []string) error {
	// A setting of the session is there again in a transaction of another backend only if there is none between us; so is the backend's number.
	var first, second int
	var kept bool
	if err := conn.QueryRow(ctx, "SELECT pg_backend_pid() FROM set_config('pawl.probe', 'kept', false)").Scan(&first); err != nil {
		return err
	}
	if uint32(first) != conn.PgConn().PID() {
		return ErrPooler
	}
	if err := conn.QueryRow(ctx, "SELECT pg_backend_pid(), current_setting('pawl.probe', true) IS NOT DISTINCT FROM 'kept'").Scan(&second, &kept); err != nil {
		return err
	}
	if first != second || !kept {
		return ErrPooler
	}
	_, err := conn.Exec(ctx, `SELECT pg_advisory_lock(k) FROM (SELECT DISTINCT hashtextextended(n, (7040::bigint << 16) + 1) AS k FROM unnest($1::text[]) n ORDER BY k) o`, names)
	return wrap(err)
}

// Context ends with the lock: its cause is ErrLost or ErrReleased.
func (l *ConnLock) Context() context.Context { return l.ctx }

func (l *ConnLock) watch() {
	defer close(l.done)
	for pause(l.ctx, keepalive) {
		ctx, stop := context.WithTimeout(l.ctx, keepalive)
		_, err := l.conn.Exec(ctx, "SELECT")
		stop()
		if err != nil {
			l.stop(fmt.Errorf("%w: %w", ErrLost, err))
		}
	}
}

// Release gives the lock back. The error is ErrReleased the second time, ErrLost if it had been lost by then.
func (l *ConnLock) Release(ctx context.Context) error {
	err := ErrReleased
	l.once.Do(func() {
		l.stop(ErrReleased)
		<-l.done
		err = nil
		if cause := context.Cause(l.ctx); errors.Is(cause, ErrLost) {
			err = cause
		}
		err = errors.Join(err, l.conn.Close(ctx))
	})
	return err
}
