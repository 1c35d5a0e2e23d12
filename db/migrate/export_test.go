package migrate

import (
	"context"
	"io"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
)

// Files lets tests migrate with files of their own.
type Files struct {
	FS          fs.FS
	LockWaitMax time.Duration // 0: the default
}

func (f Files) migrator(databaseURL string) (migrator, error) {
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return migrator{}, err
	}
	m := newMigrator(config)
	m.files = f.FS
	if f.LockWaitMax != 0 {
		m.lockWaitMax = f.LockWaitMax
	}
	return m, nil
}

func (f Files) Up(ctx context.Context, databaseURL string) (Result, error) {
	m, err := f.migrator(databaseURL)
	if err != nil {
		return Result{}, err
	}
	return m.up(ctx)
}

func (f Files) Down(ctx context.Context, databaseURL string, to int64) (Result, error) {
	m, err := f.migrator(databaseURL)
	if err != nil {
		return Result{}, err
	}
	return m.down(ctx, to)
}

func (f Files) Status(ctx context.Context, databaseURL string) ([]Migration, error) {
	m, err := f.migrator(databaseURL)
	if err != nil {
		return nil, err
	}
	return m.status(ctx)
}

func (f Files) SQL(w io.Writer) error { return writeSQL(w, f.FS) }

const (
	LockKey   = lockKey
	LockRetry = lockRetry
)
