package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/pawl-dev/pawl/coordinator/lock"
)

// lockRunCmd is "pawl lock run", flock for a cluster.
type lockRunCmd struct {
	Name     string         `arg:"" help:"Lock."`
	Command  []string       `arg:"" passthrough:"" help:"Command and its arguments, behind --."`
	Nonblock bool           `short:"n" help:"Fail rather than wait if another holds the lock."`
	Wait     *time.Duration `short:"w" placeholder:"TIME" help:"Fail if the lock is not free within this time."`
	Shared   bool           `short:"s" help:"Hold the lock together with other shared holders."`
	Conflict int            `short:"E" name:"conflict-exit-code" default:"1" help:"Exit code when the lock is held by another, 0 to 255. Default: ${default}."`
	Grace    time.Duration  `default:"5s" help:"How long the command has from SIGTERM to SIGKILL when the lock is lost."`
	TTL      time.Duration  `default:"15s" help:"How long the lock stays ours after the last sign of life."`
	PollOnly bool           `help:"Do without LISTEN, as behind a pooler in transaction mode."`
}

// The exit codes of the command's own failures, as of flock and of shells.
const (
	exitLockLost    = 75  // EX_TEMPFAIL: the lock was lost, the command was ended
	exitCannotRun   = 126 // found, and not to be run
	exitNoCommand   = 127
	exitSignalledBy = 128 // and the signal's number
)

// Help is the long help text.
func (*lockRunCmd) Help() string {
	return `Waits for the lock, runs the command, releases the lock, and ends with the command's exit code. PAWL_LOCK_TOKEN in its environment is the fencing token, which
rises with every grant: hand it to what can refuse older ones.

When the lock is lost (the database was away for longer than --ttl, or an operator took it) the command and its children get SIGTERM, after --grace SIGKILL, and
the exit code is 75. At a terminal the command alone gets them, since it stays in the terminal's foreground group. Other exit codes of its own: --conflict-exit-code if another holds the lock, 126 if the command cannot be run, 127 if there is none, 128 + n if
signal n ended it.`
}

// Run runs the command.
func (c *lockRunCmd) Run(a *app) error {
	if len(c.Command) > 0 && c.Command[0] == "--" {
		c.Command = c.Command[1:]
	}
	if len(c.Command) == 0 {
		return usageError{"no command is given, behind --"}
	}
	if c.Conflict < 0 || c.Conflict > 255 {
		return usagef("--conflict-exit-code %d is outside 0 to 255", c.Conflict)
	}
	path, err := exec.LookPath(c.Command[0])
	if err != nil {
		code := exitNoCommand
		if errors.Is(err, os.ErrPermission) {
			code = exitCannotRun
		}
		return codeError{code, fmt.Errorf("command %s: %w", c.Command[0], err)}
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	locks, err := lock.Open(a.ctx, pool, lock.Config{Namespace: a.namespace, Name: "pawl lock run", TTL: c.TTL, PollOnly: c.PollOnly})
	if err != nil {
		return err
	}
	defer func() { _ = locks.Close(context.WithoutCancel(a.ctx)) }()
	var opts []lock.Option
	if c.Shared {
		opts = append(opts, lock.Shared())
	}
	switch {
	case c.Nonblock:
		opts = append(opts, lock.Wait(0))
	case c.Wait != nil:
		opts = append(opts, lock.Wait(*c.Wait))
	}
	lease, err := locks.Acquire(a.ctx, c.Name, opts...)
	if errors.Is(err, lock.ErrHeld) || errors.Is(err, lock.ErrTimeout) {
		return codeError{c.Conflict, err}
	}
	if err != nil {
		return err
	}
	code, err := c.run(a, lease, path)
	rctx, stop := context.WithTimeout(context.WithoutCancel(a.ctx), c.Grace)
	defer stop()
	if released := lease.Release(rctx); released != nil && err == nil && code == 0 {
		return codeError{exitLockLost, released} // it ended at the same time
	}
	if err == nil && code != 0 {
		return codeError{code: code}
	}
	return err
}

// run runs the command under the lease, and gives its exit code.
func (c *lockRunCmd) run(a *app, lease *lock.Lease, path string) (int, error) {
	cmd := exec.CommandContext(lease.Context(), path, c.Command[1:]...) // it ends, too, when we are interrupted
	cmd.Args[0] = c.Command[0]
	cmd.WaitDelay = c.Grace
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	cmd.Env = append(os.Environ(), "PAWL_LOCK_TOKEN="+strconv.FormatInt(lease.Token(), 10))
	in, ok := a.in.(*os.File)
	atTerminal := ok && term.IsTerminal(int(in.Fd()))
	if atTerminal { // whose keys reach only the group in front
		ourGroup(cmd)
	} else {
		ownGroup(cmd)
	}
	err := cmd.Run()
	if cmd.Process == nil {
		return 0, codeError{exitCannotRun, fmt.Errorf("command %s: %w", c.Command[0], err)}
	}
	if lease.Context().Err() == nil {
		return commandCode(err)
	}
	if !atTerminal {
		endGroup(cmd) // also those that did not heed the first signal
	}
	if a.ctx.Err() != nil {
		return commandCode(err)
	}
	return 0, codeError{exitLockLost, fmt.Errorf("the command was ended: %w", context.Cause(lease.Context()))}
}

// commandCode translates how a command ended.
func commandCode(err error) (int, error) {
	var exit *exec.ExitError
	if err == nil || !errors.As(err, &exit) {
		return 0, err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return exitSignalledBy + int(ws.Signal()), nil
	}
	return exit.ExitCode(), nil
}
