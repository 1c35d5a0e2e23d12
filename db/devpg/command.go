//go:build unix

package devpg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// commandWait bounds how long a cancelled command may take to end.
const commandWait = 5 * time.Second

// run runs a program of Postgres as the account and returns what it printed,
// errors included.
func (a account) run(ctx context.Context, dir, program string, args ...string) (string, error) {
	return output(ctx, func() *exec.Cmd {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = dir
		cmd.Env = environment()
		cmd.SysProcAttr = a.attr()
		return cmd
	})
}

// output returns what the command printed, errors included. A program that was
// written a moment ago may count as open for writing still, by a process that
// is just being started: then it is tried again.
func output(ctx context.Context, command func() *exec.Cmd) (text string, err error) {
	errPoll := poll(ctx, func() (bool, error) {
		cmd := command()
		cmd.WaitDelay = commandWait
		var out []byte
		out, err = cmd.CombinedOutput()
		text = strings.TrimSpace(string(out))
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", cmd.Path, err, text)
		}
		return !errors.Is(err, syscall.ETXTBSY), nil
	})
	return text, cmp.Or(err, errPoll)
}

// environment is ours without what would tell Postgres to use something else
// than it is told, and with messages in English.
func environment() []string {
	var env []string
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG") {
			continue
		}
		env = append(env, kv)
	}
	return append(env, "LC_ALL=C")
}
