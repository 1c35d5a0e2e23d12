package migrate

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

const (
	// lockKey is the advisory lock of all migrators of a database: "pawl" and
	// "migr" in ASCII.
	lockKey int64 = 0x7061776c6d696772

	// lockRetry is the pause between two attempts to take the lock. A
	// blocking attempt would hold a snapshot meanwhile, for which a
	// CREATE INDEX CONCURRENTLY of the lock's holder would wait for ever.
	lockRetry = 50 * time.Millisecond

	// lockWaitMax bounds the wait for the lock: as long as another may take
	// for its migrations.
	lockWaitMax = 5 * time.Minute

	// unlockMax bounds the release of the lock.
	unlockMax = 5 * time.Second
)

// locker is the session locker goose asks for.
type locker struct{ waitMax time.Duration }

// SessionLock waits for the lock and makes sure the schema exists, which goose
// needs for its table.
func (l locker) SessionLock(ctx context.Context, conn *sql.Conn) error {
	if err := lock(ctx, conn, l.waitMax); err != nil {
		return err
	}
	// Looked up first, for CREATE SCHEMA IF NOT EXISTS wants the right to
	// create schemas even if it has nothing to do.
	var has bool
	err := conn.QueryRowContext(ctx, "SELECT pg_catalog.to_regnamespace('pawl') IS NOT NULL").Scan(&has)
	if err == nil && !has {
		_, err = conn.ExecContext(ctx, "CREATE SCHEMA pawl")
	}
	if err != nil {
		unlock(ctx, conn)
		return fmt.Errorf("schema pawl: %w", err)
	}
	return nil
}

// SessionUnlock frees the lock.
func (locker) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	unlock(ctx, conn)
	return nil
}

func lock(ctx context.Context, conn *sql.Conn, waitMax time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, waitMax, ErrBusy)
	defer cancel()
	ticker := time.NewTicker(lockRetry)
	defer ticker.Stop()
	for {
		var held bool
		err := conn.QueryRowContext(ctx, "SELECT pg_catalog.pg_try_advisory_lock($1)", lockKey).Scan(&held)
		if ctx.Err() != nil { // the lock, if it is ours, ends with the session
			return fmt.Errorf("lock: %w", context.Cause(ctx))
		}
		if err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		if held {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock: %w", context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// unlock frees the lock. If it cannot, the connection is broken, and with the
// session ends the lock.
func unlock(ctx context.Context, conn *sql.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockMax)
	defer cancel()
	_, _ = conn.ExecContext(ctx, "SELECT pg_catalog.pg_advisory_unlock($1)", lockKey)
}
