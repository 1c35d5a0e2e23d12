package main

import (
	"context"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/db/migrate"
)

// serveCmd is "pawl serve".
type serveCmd struct {
	Migrate  bool `help:"Apply pending migrations first."`
	PollOnly bool `help:"Do without LISTEN, as behind PgBouncer in transaction mode."`
	participantFlags
}

// Help is the long help text.
func (*serveCmd) Help() string {
	return `Starts due jobs, rescues the jobs of crashed workers, and makes room in the tables ahead of need, until it is interrupted. Run two or more for safety, anywhere: each sweep is done by one of them. It keeps nothing of its own.

With participants it also settles there what crashed global transactions have left prepared, within seconds of their deadlines. Each participant should be known to two coordinators at least: "pawl tx participants" tells.`
}

// Run coordinates until the first interrupt.
func (c *serveCmd) Run(a *app) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	if c.Migrate {
		result, err := migrate.UpPool(a.ctx, pool)
		for _, s := range result.Steps {
			a.log.Info("migrated", "name", s.Name, "took", s.Duration)
		}
		if err != nil {
			return err
		}
	} else if err := a.checkSchema(); err != nil {
		return err
	}
	global, closeAll, err := c.manager(a, pool)
	if err != nil {
		return err
	}
	defer closeAll()
	coord, err := coordinator.New(pool, coordinator.Config{Namespace: a.namespace, PollOnly: c.PollOnly, Global: global, Logger: a.log})
	if err != nil {
		return err
	}
	told := make(chan struct{})
	context.AfterFunc(a.ctx, func() {
		a.log.Info("coordinator stops when its sweeps are done; interrupt again to stop at once")
		close(told)
	})
	if err := coord.Run(a.ctx); err != nil {
		return err
	}
	<-told
	a.log.Info("coordinator stopped")
	return nil
}
