package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/gosrc"
	"github.com/pawl-dev/pawl/worker"
)

const (
	// The slots of a worker process. Parsing takes processor time, waiting for a commit does not: a few more than there are processors.
	devSlotsParse     = 4
	devSlotsParseTest = 2
	// devOrphanMax is how long a worker process may go on whose parent has gone, or told it to stop.
	devOrphanMax = devStopMax + 5*time.Second
)

// devWorkerCmd is "pawl dev-worker", hidden: the worker process of "pawl dev". It stops when its standard input ends, which the parent
// holds open as long as it lives.
type devWorkerCmd struct {
	Name string        `default:"pawl dev worker" help:"Name of the session."`
	TTL  time.Duration `name:"ttl" default:"15s" help:"Ttl of the session."`

	// use adds middleware, for tests.
	use []worker.Middleware
}

// Run works until standard input ends.
func (c *devWorkerCmd) Run(a *app) error {
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, a.in)
		time.AfterFunc(devOrphanMax, func() { os.Exit(exitFailed) })
		cancel()
	}()
	config, err := pgxpool.ParseConfig(a.databaseURL)
	if err != nil {
		return err
	}
	config.MaxConns = devSlotsParse + devSlotsParseTest + 4
	config.ConnConfig.RuntimeParams["application_name"] = c.Name
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := a.findNamespace(ctx, pool); err != nil {
		return err
	}
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
}

// ownCommand runs this program again.
func ownCommand(args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return exec.Command(self, args...), nil
}

// workerCommand is the command of the n-th worker process. The URL goes by the environment: others see arguments.
func (d *dev) workerCommand(n int) (*exec.Cmd, error) {
	ttl := devTTL
	if d.Kill {
		ttl = devKillTTL
	}
	cmd, err := d.command("dev-worker", fmt.Sprintf("--name=pawl dev worker %d", n), "--ttl="+ttl.String(),
		fmt.Sprintf("--namespace=%d", d.app.namespace), "--log-level="+strings.ToLower(d.live.level(d.app.log).String()))
	if err != nil {
		return nil, err
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "PAWL_DATABASE_URL="+d.app.databaseURL)
	return cmd, nil
}
