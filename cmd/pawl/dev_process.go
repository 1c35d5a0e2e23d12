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
)

// devOrphanMax is how long a process of "pawl dev" may go on whose parent has gone, or told it to stop.
const devOrphanMax = devStopMax + 5*time.Second

// runDevProcess is what the processes of "pawl dev" have in common: run works on a pool of its own, and is stopped when standard input ends, which the
// parent holds open as long as it lives.
func (a *app) runDevProcess(name string, conns int32, run func(context.Context, *pgxpool.Pool) error) error {
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
	config.MaxConns = conns
	config.ConnConfig.RuntimeParams["application_name"] = name
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := a.findNamespace(ctx, pool); err != nil {
		return err
	}
	return run(ctx, pool)
}

// processCommand is the command of a process. The URL goes by the environment: others see arguments.
func (d *dev) processCommand(args ...string) (*exec.Cmd, error) {
	cmd, err := d.command(append(args, fmt.Sprintf("--namespace=%d", d.app.namespace), "--log-level="+strings.ToLower(d.live.level(d.app.log).String()))...)
	if err != nil {
		return nil, err
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "PAWL_DATABASE_URL="+d.app.databaseURL)
	return cmd, nil
}

// ownCommand runs this program again.
func ownCommand(args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return exec.Command(self, args...), nil
}
