package main

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/devpg"
	"github.com/pawl-dev/pawl/db/migrate"
)

// openDatabase starts the private server unless a database was given, and brings the schema up to date.
func (d *dev) openDatabase(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			d.closeDatabase()
		}
	}()
	url := d.app.databaseURL
	if url == "" {
		if url, err = d.startServer(ctx); err != nil {
			return err
		}
		d.app.databaseURL = url
	} else {
		d.live.say("Using the database given.")
	}
	migrated, err := migrate.Up(ctx, url)
	if err != nil {
		return err
	}
	if n := len(migrated.Steps); n > 0 {
		d.live.say("Migrated: %d migrations.", n)
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "pawl dev"
	}
	if d.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	return d.app.findNamespace(ctx, d.pool)
}

// startServer starts the private server, or adopts the one that another "pawl dev" started there, and returns the URL of the database in it.
func (d *dev) startServer(ctx context.Context) (string, error) {
	var err error
	if d.dir = d.Dir; d.dir == "" {
		if d.dir, err = devpg.DefaultDir(devName); err != nil {
			return "", err
		}
	}
	d.server, err = devpg.Start(ctx, devpg.Config{Dir: d.dir, Durable: true, Logger: d.live.logger(d.app.log)})
	if err != nil {
		return "", err
	}
	shared := ""
	if d.server.Adopted() {
		shared = ", which another process started and will stop"
	}
	d.live.say("PostgreSQL %s in %s%s.", d.server.Version(), d.dir, shared)
	return d.server.URL(devDatabase), ensureDatabase(ctx, d.server)
}

// ensureDatabase makes the database of the private server if it is not there.
func ensureDatabase(ctx context.Context, server *devpg.Server) error {
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var there bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", devDatabase).Scan(&there); err != nil || there {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{devDatabase}.Sanitize())
	if db.Code(err) == "42P04" || db.Code(err) == "23505" { // another was quicker
		return nil
	}
	return err
}

func (d *dev) closeDatabase() {
	if d.pool != nil {
		d.pool.Close()
	}
	if d.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.app.ctx), devStopMax)
	defer cancel()
	if err := d.server.Stop(ctx); err != nil {
		d.live.say("The private Postgres did not stop: %v", err)
	}
}
