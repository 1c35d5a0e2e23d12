package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/gosrc"
	"github.com/pawl-dev/pawl/worker"
)

const (
	// The slots of a worker process. Parsing takes processor time, waiting for a commit does not: a few more than there are processors.
	devSlotsParse     = 4
	devSlotsParseTest = 2
)

// devWorkerCmd is "pawl dev-worker", hidden: a worker process of the example gosrc.
type devWorkerCmd struct {
	Name string        `default:"pawl dev worker" help:"Name of the session."`
	TTL  time.Duration `name:"ttl" default:"15s" help:"Ttl of the session."`

	// use adds middleware, for tests.
	use []worker.Middleware
}

// Run works until standard input ends.
func (c *devWorkerCmd) Run(a *app) error {
	return a.runDevProcess(c.Name, devSlotsParse+devSlotsParseTest+4, func(ctx context.Context, pool *pgxpool.Pool) error {
		w, err := worker.New(pool, worker.Config{
			Queues: map[string]int{gosrc.QueueParse: devSlotsParse, gosrc.QueueParseTest: devSlotsParseTest}, Namespace: a.namespace, Name: c.Name,
			Version: readBuild().Version, TTL: c.TTL, Drain: devStopMax / 2, Logger: a.log,
		})
		if err != nil {
			return err
		}
		w.Use(c.use...)
		gosrc.Register(w)
		return w.Run(ctx)
	})
}

// workerCommand is the command of the n-th worker process.
func (d *dev) workerCommand(n int) (*exec.Cmd, error) {
	return d.processCommand("dev-worker", fmt.Sprintf("--name=pawl dev worker %d", n), "--ttl="+d.ttl().String())
}
