package db

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// spareWait is how long a Spare waits for a connection of the pool.
const spareWait = 200 * time.Millisecond

// Spare is a pool for statements that what is at work on the pool may be waiting for: those that end transactions and release their locks. Where the pool is used up it connects, for one use, with the pool's settings.
// It is safe for concurrent use.
type Spare struct{ Pool *pgxpool.Pool }

// Conn gives a connection, and what gives it back.
func (s Spare) Conn(ctx context.Context) (*pgx.Conn, func(), error) {
	wait, stop := context.WithTimeout(ctx, spareWait)
	defer stop()
	pooled, err := s.Pool.Acquire(wait)
	switch {
	case err == nil:
		return pooled.Conn(), pooled.Release, nil
	case wait.Err() == nil || ctx.Err() != nil:
		return nil, nil, err
	}
	conf := s.Pool.Config()
	if conf.BeforeConnect != nil {
		if err := conf.BeforeConnect(ctx, conf.ConnConfig); err != nil {
			return nil, nil, err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, conf.ConnConfig)
	if err != nil {
		return nil, nil, err
	}
	done := sync.OnceFunc(func() {
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), rollbackMax)
		defer stop()
		_ = conn.Close(ctx)
	})
	if conf.AfterConnect != nil {
		if err := conf.AfterConnect(ctx, conn); err != nil {
			done()
			return nil, nil, err
		}
	}
	return conn, done, nil
}

// Exec is a pool's.
func (s Spare) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	conn, done, err := s.Conn(ctx)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	defer done()
	return conn.Exec(ctx, sql, args...)
}

// Query is a pool's.
func (s Spare) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	conn, done, err := s.Conn(ctx)
	if err != nil {
		return pgx.FailedBatchResults(&pgx.Batch{}, err).Query()
	}
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		done()
		return rows, err
	}
	return &spareRows{rows, sync.OnceFunc(done)}, nil
}

type spareRows struct {
	pgx.Rows
	done func()
}

// Next is pgx.Rows'.
func (r *spareRows) Next() bool {
	next := r.Rows.Next()
	if !next {
		r.done()
	}
	return next
}

// Close is pgx.Rows'.
func (r *spareRows) Close() {
	r.Rows.Close()
	r.done()
}

// QueryRow is a pool's. It is sent when it is scanned.
func (s Spare) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return lazyRow(func(into ...any) error {
		conn, done, err := s.Conn(ctx)
		if err != nil {
			return err
		}
		defer done()
		return conn.QueryRow(ctx, sql, args...).Scan(into...)
	})
}
