package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
)

// migrateBarrierCmd is "pawl migrate barrier".
type migrateBarrierCmd struct {
	URL    string `arg:"" env:"PAWL_BARRIER_URL" help:"The service's database, such as postgres://shop@db/shop or mysql://shop@db/shop (MariaDB as well). Others see a command line: keep a password in the environment."`
	DryRun bool   `help:"Print the SQL, and change nothing. The database is not asked."`
}

// Help is the long help text.
func (*migrateBarrierCmd) Help() string {
	return `Makes what package coordinator/barrier needs in the database of a service that has no Pawl of its own: in Postgres the schema pawl with the barrier alone, in MariaDB (10.5 or newer) and MySQL (8.0 or newer) the table pawl_barrier. Where it is there nothing is done. A Postgres that was set up so cannot be migrated by "pawl migrate up" afterwards; one that was migrated has a barrier already. Nobody removes its old rows: have the service call barrier.Sweep or barrier.SweepMySQL now and then.`
}

// Run sets a barrier up.
func (c *migrateBarrierCmd) Run(a *app) error {
	ctx, stop := context.WithTimeout(a.ctx, connectMax)
	defer stop()
	scheme, _, _ := strings.Cut(c.URL, "://")
	switch scheme {
	case "postgres", "postgresql":
		pool, err := participantPool(a, "the service", c.URL)
		if err != nil {
			return err
		}
		defer pool.Close()
		return c.postgres(ctx, a, pool)
	case "mysql", "mariadb":
		on, err := participantMySQL("the service", c.URL)
		if err != nil {
			return err
		}
		defer on.Close()
		return c.mysql(ctx, a, on)
	default:
		return usagef("the URL of the service's database must begin with postgres:// or mysql://")
	}
}

func (c *migrateBarrierCmd) postgres(ctx context.Context, a *app, pool *pgxpool.Pool) error {
	if c.DryRun {
		script, err := barrier.Script()
		if err != nil {
			return err
		}
		return a.script("BEGIN;\n" + script + "COMMIT;\n")
	}
	if err := pool.Ping(ctx); err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	if err := barrier.Setup(ctx, pool); err != nil {
		return err
	}
	return a.barrierThere("postgres", "schema pawl")
}

func (c *migrateBarrierCmd) mysql(ctx context.Context, a *app, on *sql.DB) error {
	if c.DryRun {
		return a.script(barrier.ScriptMySQL + ";\n")
	}
	if err := on.PingContext(ctx); err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	if err := barrier.SetupMySQL(ctx, on); err != nil {
		return err
	}
	return a.barrierThere("mysql", "table pawl_barrier")
}

func (a *app) script(text string) error {
	_, err := fmt.Fprint(a.out, text)
	return err
}

func (a *app) barrierThere(kind, what string) error {
	if a.json {
		return a.printJSON(map[string]string{"kind": kind})
	}
	fmt.Fprintf(a.out, "the barrier is there: %s\n", what)
	return nil
}
