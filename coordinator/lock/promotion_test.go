package lock_test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/db/devpg"
	"github.com/pawl-dev/pawl/db/migrate"
)

// A standby that has not got the last grants is promoted: the sequence of tokens goes back, the tokens do not.
func TestPromotion(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	dir, err := os.MkdirTemp("", "pawl-promotion-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil { // the server's account, if that is another
		t.Fatal(err)
	}
	start := func(conf devpg.Config) (*devpg.Server, *pgxpool.Pool) {
		t.Helper()
		conf.Settings = maps.Clone(conf.Settings)
		server, err := devpg.Start(ctx, conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Kill() })
		pool, err := pgxpool.New(ctx, server.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return server, pool
	}
	stop := func(server *devpg.Server, pool *pgxpool.Pool) {
		t.Helper()
		pool.Close()
		if err := server.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	primary := devpg.Config{Dir: filepath.Join(dir, "primary"), Settings: map[string]string{"synchronous_commit": "local"}}
	server, pool := start(primary)
	if _, err := migrate.Up(ctx, server.URL("postgres")); err != nil {
		t.Fatal(err)
	}
	at := pool.Config().ConnConfig
	signal := filepath.Join(server.DataDir(), "standby.signal")
	stop(server, pool)
	if err := os.WriteFile(signal, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	standby := devpg.Config{Dir: filepath.Join(dir, "standby"), Template: server.DataDir(), Settings: map[string]string{
		"wal_retrieve_retry_interval": "100ms",
		"primary_conninfo":            "host=" + at.Host + " port=" + strconv.Itoa(int(at.Port)) + " user=" + at.User,
	}}
	second, secondPool := start(standby)
	if err := os.Remove(signal); err != nil {
		t.Fatal(err)
	}
	server, pool = start(primary)

	l, err := lock.Open(ctx, pool, lock.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(context.Background()) }) // its server is gone by then
	release(t, acquire(t, l, ctx, "x"))
	until(t, secondPool, "the standby to have the first grant", "SELECT count(*) > 0 FROM pawl.lock_state")
	stop(second, secondPool)
	var lost int64
	for range 100 {
		lease := acquire(t, l, ctx, "x")
		lost = lease.Token()
		release(t, lease)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}

	delete(standby.Settings, "primary_conninfo")
	_, secondPool = start(standby)
	if _, err := secondPool.Exec(ctx, "SELECT pg_promote()"); err != nil {
		t.Fatal(err)
	}
	// The holder was not seen to release. A sweep would end its session in time.
	if _, err := secondPool.Exec(ctx, "SELECT pawl.session_end(ns, id, 'test') FROM pawl.session"); err != nil {
		t.Fatal(err)
	}
	lease := acquire(t, open(t, secondPool, lock.Config{}), ctx, "x")
	if lease.Token() <= lost {
		t.Errorf("got token %d after %d, which the standby did not get", lease.Token(), lost)
	}
	const low = 1<<40 - 1
	if lease.Token()&low > lost&low {
		t.Errorf("the sequence of the standby went on at %d, after %d: nothing was lost, so nothing is proved", lease.Token()&low, lost&low)
	}
	release(t, lease)
}
