package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/worker"
)

const (
	commandTimeoutDefault = time.Minute
	commandOutputMax      = 64 << 10 // of standard output, in bytes
	commandErrorMax       = 4 << 10  // the end of standard error, in bytes
	commandEndMax         = 5 * time.Second
	exitDataErr           = 65 // EX_DATAERR of sysexits.h: another attempt would fail as well
)

// command is what a job may have run, as this worker's configuration names it.
type command struct {
	Argv    []string          `json:"argv"`
	Timeout jsonDuration      `json:"timeout"` // "": 1 minute
	Env     map[string]string `json:"env"`
	Dir     string            `json:"dir"` // "": the worker's
}

// commands are those of the configuration, by name.
type commands map[string]command

// execArgs are the args of pawl.exec.
type execArgs struct {
	Name  string          `json:"name"`
	Input json.RawMessage `json:"input"`
}

// readCommands reads the configuration. The error lists all faults.
func readCommands(file string) (commands, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, usagef("--config: %v", err)
	}
	var config struct {
		Commands commands `json:"commands"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&config); err != nil {
		return nil, usagef("--config %s: %s", file, strings.TrimPrefix(err.Error(), "json: "))
	}
	if d.More() {
		return nil, usagef("--config %s: there is something behind the JSON object", file)
	}
	var faults []string
	for name, c := range config.Commands {
		switch {
		case len(c.Argv) == 0:
			faults = append(faults, fmt.Sprintf("command %q: argv is missing", name))
		case !filepath.IsAbs(c.Argv[0]):
			faults = append(faults, fmt.Sprintf("command %q: argv begins with %q, which is not an absolute path", name, c.Argv[0]))
		}
		if c.Dir != "" && !filepath.IsAbs(c.Dir) {
			faults = append(faults, fmt.Sprintf("command %q: dir %q is not an absolute path", name, c.Dir))
		}
	}
	if len(faults) > 0 {
		slices.Sort(faults)
		return nil, usagef("--config %s: %s", file, strings.Join(faults, "; "))
	}
	return config.Commands, nil
}

// handle runs one command.
func (all commands) handle(ctx context.Context, j *job.Job[json.RawMessage]) (any, error) {
	var args execArgs
	if err := decodeArgs(j.Args, &args); err != nil {
		return nil, err
	}
	c, ok := all[args.Name]
	if !ok {
		return nil, fmt.Errorf("this worker's configuration names no command %q", cut(args.Name, 100)) // another's may
	}
	timeout := commandTimeoutDefault
	if c.Timeout > 0 {
		timeout = time.Duration(c.Timeout)
	}
	ctx, stop := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done within %s", timeout))
	defer stop()
	return c.run(ctx, j.ID, j.Attempt, args)
}

func (c command) run(ctx context.Context, id int64, attempt int, args execArgs) (any, error) {
	stdout, stderr := &head{most: commandOutputMax}, &tail{most: commandErrorMax}
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.Dir, cmd.Env = c.Dir, c.environ(id, attempt)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(inputOf(args.Input)), stdout, stderr
	cmd.WaitDelay = commandEndMax
	ownGroup(cmd)
	err := cmd.Run()
	if ctx.Err() != nil || errors.Is(err, exec.ErrWaitDelay) {
		endGroup(cmd) // also those that did not heed the first signal
	}
	var exited *exec.ExitError
	switch {
	case err == nil:
		return stdout.result(), nil
	case ctx.Err() != nil:
		return nil, stderr.explain(fmt.Errorf("command %s was ended: %w", args.Name, context.Cause(ctx)))
	case errors.As(err, &exited) && exited.ExitCode() == exitDataErr:
		return nil, job.Discard(stderr.explain(fmt.Errorf("command %s: exit code %d, give up", args.Name, exitDataErr)))
	case errors.As(err, &exited) && exited.ExitCode() > 0:
		return nil, stderr.explain(fmt.Errorf("command %s: exit code %d", args.Name, exited.ExitCode()))
	case errors.Is(err, exec.ErrWaitDelay):
		return nil, fmt.Errorf("command %s left children behind that keep its output open; they were killed", args.Name)
	default: // killed by a signal, or not to be started
		return nil, stderr.explain(fmt.Errorf("command %s: %w", args.Name, err))
	}
}

// environ is all that a command gets: nothing of the worker's secrets.
func (c command) environ(id int64, attempt int) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	env = append(env, "PAWL_JOB_ID="+strconv.FormatInt(id, 10), "PAWL_ATTEMPT="+strconv.Itoa(attempt))
	for name, v := range c.Env {
		env = append(env, name+"="+v)
	}
	return env
}

// inputOf is what a command reads: a string as it is, anything else as JSON, nothing for nothing.
func inputOf(raw json.RawMessage) []byte {
	var text string
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return nil
	case json.Unmarshal(raw, &text) == nil:
		return []byte(text)
	default:
		return raw
	}
}

// head keeps the beginning of what is written to it.
type head struct {
	most    int
	kept    []byte
	written int
}

func (h *head) Write(p []byte) (int, error) {
	h.written += len(p)
	h.kept = append(h.kept, p[:min(len(p), h.most-len(h.kept))]...)
	return len(p), nil
}

// result is what was kept, and how much was not.
func (h *head) result() any {
	if h.written > len(h.kept) {
		out := wholeRunes(h.kept)
		return fmt.Sprintf("%s … (%d bytes more)", strings.ToValidUTF8(string(out), "\uFFFD"), h.written-len(out))
	}
	out := bytes.TrimRight(h.kept, "\n")
	if len(out) == 0 {
		return worker.None{}
	}
	return asResult(out)
}

// tail keeps the end of what is written to it.
type tail struct {
	most int
	kept []byte
	cut  bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p[max(len(p)-t.most, 0):]...)
	if n := len(t.kept) - t.most; n > 0 || len(p) > t.most {
		t.kept, t.cut = append(t.kept[:0], t.kept[max(n, 0):]...), true
	}
	return len(p), nil
}

// explain adds what was kept to an error.
func (t *tail) explain(err error) error {
	text := strings.TrimSpace(strings.ToValidUTF8(string(t.kept), "\uFFFD"))
	switch {
	case text == "":
		return err
	case t.cut:
		return fmt.Errorf("%w: … %s", err, text)
	default:
		return fmt.Errorf("%w: %s", err, text)
	}
}
