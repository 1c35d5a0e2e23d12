// Package dbtest gives a test a database of its own, on a real Postgres.
//
//	pool := dbtest.New(t)
//
// The first call in a test binary starts a private server (see package devpg)
// which ends with the binary, however that ends. Its data directory is a copy
// of one that was initialised and migrated by the first run ever, named by a
// hash of the migrations; each test then gets a database cloned from a
// template in it. A failed test keeps its database and logs where it is.
//
// If PAWL_TEST_DATABASE_URL is set, the databases are made on that server
// instead, as the role in the URL, which must be allowed to create databases.
// Those of a run that was killed stay there; they are called pawl_test_…
//
// Without fsync and with synchronous_commit off that server is made for speed.
// For a server to be killed, see [Private].
//
// All functions are safe for concurrent use and fail the test, by Fatal, if
// they cannot do what they say. The goroutine that waits for the server lives
// as long as the binary; tell goleak to ignore any that runs
// github.com/pawl-dev/pawl/db/devpg.(*postmaster).run.
package dbtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// poolConnsMax is the size of a test's pool. It is more than a test should
	// need, so that one that holds connections does not wait for itself.
	poolConnsMax = 20

	// setupMax bounds the making of a server or a database, cleanupMax their
	// removal.
	setupMax   = 2 * time.Minute
	cleanupMax = 30 * time.Second

	// closeMax bounds the wait for connections a test did not give back.
	closeMax = 10 * time.Second
)

// New returns a pool on a fresh, migrated database. Pool and database go when
// the test ends; if it failed, the database stays.
func New(tb testing.TB) *pgxpool.Pool {
	tb.Helper()
	config, err := pgxpool.ParseConfig(NewURL(tb))
	if err != nil {
		tb.Fatalf("dbtest: %v", err)
	}
	config.MaxConns = poolConnsMax
	ctx, cancel := context.WithTimeout(context.Background(), setupMax)
	defer cancel()
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		tb.Fatalf("dbtest: %v", err)
	}
	tb.Cleanup(func() { closePool(tb, pool) })
	if err := pool.Ping(ctx); err != nil {
		tb.Fatalf("dbtest: %v", err)
	}
	return pool
}

// NewURL returns the URL of a fresh, migrated database, which goes as that of
// New does. Connections that are left open are ended.
func NewURL(tb testing.TB) string {
	tb.Helper()
	return newDatabase(tb, true)
}

// EmptyURL returns the URL of a fresh database in which nothing was migrated.
func EmptyURL(tb testing.TB) string {
	tb.Helper()
	return newDatabase(tb, false)
}

// closePool closes the pool, which waits until all its connections are given
// back: a test that keeps one would hang here.
func closePool(tb testing.TB, pool *pgxpool.Pool) {
	tb.Helper()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		pool.Close()
	}()
	timer := time.NewTimer(closeMax)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
		tb.Errorf("dbtest: the test has not given back %d connections of its pool", pool.Stat().AcquiredConns())
	}
}

// create makes a database on the server of this test binary.
func create(ctx context.Context, migrated bool) (*cluster, string, error) {
	c, err := current(ctx)
	if err != nil {
		return nil, "", err
	}
	name, err := c.create(ctx, migrated)
	return c, name, err
}

func newDatabase(tb testing.TB, migrated bool) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), setupMax)
	defer cancel()
	c, name, err := create(ctx, migrated)
	if errors.Is(err, errEnded) { // a test has killed it, and gets another
		c, name, err = create(ctx, migrated)
	}
	if err != nil {
		tb.Fatalf("dbtest: %v", err)
	}
	databaseURL := c.url(name)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupMax)
		defer cancel()
		if tb.Failed() {
			tb.Logf("dbtest: the database is kept: %s%s", databaseURL, c.keep())
			return
		}
		if err := c.drop(ctx, name); err != nil {
			tb.Errorf("dbtest: %v", err)
		}
	})
	return databaseURL
}
