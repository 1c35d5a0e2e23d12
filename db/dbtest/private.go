package dbtest

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db/devpg"
)

// PrivateDatabase is the migrated database on the server of [Private].
const PrivateDatabase = "pawl"

// Private returns a server of the test's own with the migrated database
// "pawl", for tests that kill it or need settings of their own. It goes when
// the test ends, as does any server started in its directory later; if the
// test failed, the directory stays. After Kill or Stop start it again with
// devpg.Start(ctx, server.Config()).
//
// Dir, Template and Temporary of cfg are ours to choose. Unless cfg says
// otherwise the server waits for its commits to be written, if not to the disk
// (see Durable): what was committed survives Kill.
func Private(tb testing.TB, cfg devpg.Config) *devpg.Server {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), setupMax)
	defer cancel()
	cfg.Temporary = true
	settings := map[string]string{"synchronous_commit": "on"}
	maps.Copy(settings, cfg.Settings)
	cfg.Settings = settings
	name, err := templateName()
	if err != nil {
		tb.Fatalf("dbtest: %v", err)
	}
	server, err := startFromTemplate(ctx, name, cfg)
	if err != nil {
		tb.Fatalf("dbtest: %v", err)
	}
	tb.Cleanup(func() { removePrivate(tb, server) })
	if err := createPrivate(ctx, server, name); err != nil {
		tb.Fatalf("dbtest: %v", err)
	}
	return server
}

func createPrivate(ctx context.Context, server *devpg.Server, template string) error {
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+quote(PrivateDatabase)+" TEMPLATE "+quote(template))
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}

func removePrivate(tb testing.TB, server *devpg.Server) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), cleanupMax)
	defer cancel()
	if tb.Failed() {
		tb.Logf("dbtest: the server is kept: %s%s", server.URL(PrivateDatabase), keepServer(server))
		if err := server.Stop(ctx); err != nil {
			tb.Errorf("dbtest: %v", err)
		}
		return
	}
	if err := devpg.Remove(ctx, server.Dir()); err != nil {
		tb.Errorf("dbtest: %v", err)
	}
	if err := server.Stop(ctx); err != nil { // it has ended; this ends its watchdog
		tb.Errorf("dbtest: %v", err)
	}
}
