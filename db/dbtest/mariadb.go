package dbtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	_ "github.com/go-sql-driver/mysql" // the driver

	"github.com/pawl-dev/pawl/db/devmaria"
)

// maria is the MariaDB of this test binary, which ends with it.
var maria struct {
	sync.Mutex
	server *devmaria.Server
}

// MariaDB returns the data source name, for driver "mysql", of a fresh database on a MariaDB that the first call in a test binary starts, and which ends with the binary. The database goes when the test ends,
// unless it failed. Where no MariaDB is installed the test is skipped, or fails if the environment has CI=true.
func MariaDB(tb testing.TB) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), setupMax)
	defer cancel()
	maria.Lock()
	defer maria.Unlock()
	if maria.server == nil {
		maria.server = startMaria(ctx, tb)
	}
	server, name := maria.server, "pawl_test_"+strings.ToLower(rand.Text()[:10])
	if err := askMaria(ctx, server, "CREATE DATABASE "+name); err != nil {
		tb.Fatalf("dbtest: %v", err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupMax)
		defer cancel()
		if tb.Failed() {
			return
		}
		if err := askMaria(ctx, server, "SET STATEMENT lock_wait_timeout = 10 FOR DROP DATABASE "+name); err != nil {
			tb.Errorf("dbtest: %v: did the test leave a prepared branch?", err)
		}
	})
	return server.DSN(name)
}

// PrivateMariaDB returns a MariaDB of the test's own with an empty database "pawl", for tests that kill it, or that want settings, such as "--log-bin". It goes when the test ends. Without one installed it does as [MariaDB].
func PrivateMariaDB(tb testing.TB, settings ...string) *devmaria.Server {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), setupMax)
	defer cancel()
	server := startMaria(ctx, tb, settings...)
	tb.Cleanup(func() {
		err := errors.Join(server.Kill(), server.Stop(context.Background()))
		if err != nil {
			tb.Errorf("dbtest: %v", err)
		}
	})
	if err := askMaria(ctx, server, "CREATE DATABASE "+PrivateDatabase); err != nil {
		tb.Fatalf("dbtest: %v", err)
	}
	return server
}

func startMaria(ctx context.Context, tb testing.TB, settings ...string) *devmaria.Server {
	tb.Helper()
	server, err := devmaria.Start(ctx, "", settings...)
	switch {
	case errors.Is(err, devmaria.ErrNotInstalled) && os.Getenv("CI") != "true":
		tb.Skipf("dbtest: %v", err)
	case err != nil:
		tb.Fatalf("dbtest: %v", err)
	}
	return server
}

func askMaria(ctx context.Context, server *devmaria.Server, statement string) error {
	db, err := sql.Open("mysql", server.DSN("mysql"))
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, statement)
	return errors.Join(err, db.Close())
}
