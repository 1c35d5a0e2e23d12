package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/worker"
)

// The kinds of job that "pawl work" knows.
var (
	kindHTTP = job.Define[json.RawMessage]("pawl.http")
	kindExec = job.Define[json.RawMessage]("pawl.exec")
)

// slotsDefault is how many jobs of a queue run at a time if --queue names no number.
const slotsDefault = 10

// workCmd is "pawl work".
type workCmd struct {
	Queue        []string      `short:"q" placeholder:"NAME=SLOTS" sep:"none" help:"Queue to work on and how many of its jobs run here at a time. Repeat for more. Default: default=10."`
	Config       string        `short:"c" placeholder:"FILE" help:"Configuration with the commands that jobs may run, as above."`
	AllowPrivate bool          `help:"Let jobs call private, loopback and link-local addresses."`
	PollOnly     bool          `help:"Do not LISTEN for hints, as through a pooler in transaction mode."`
	Drain        time.Duration `default:"30s" placeholder:"DURATION" help:"How long running jobs get to finish after an interrupt; then they are cancelled and handed back. Default: ${default}."`
	Name         string        `default:"pawl work" placeholder:"NAME" help:"Name of this process in listings. Default: ${default}."`
}

// Help is the long help text.
func (*workCmd) Help() string {
	return `Runs jobs of two kinds until it is interrupted; then it finishes what runs and hands back the rest.

pawl.http calls a URL. Args: {"url": "https://…", "method": "POST", "headers": {…}, "body": any, "timeout": "30s"}; only url is required. 2xx is success; 408, 425, 429, 5xx and network errors are tried again, after Retry-After if the answer says so; anything else discards the job. Redirects are not followed and no proxy is used. A body that is a string is sent as it is, anything else as JSON. Each attempt sends the same Idempotency-Key. Up to 64 KiB of the answer are kept as the result.

pawl.exec runs a command of this worker's configuration. Args: {"name": "thumbnail", "input": any}: the job chooses the name and what the command reads on standard input (a string as it is, anything else as JSON), nothing else. Exit code 0 is success, with up to 64 KiB of standard output as the result, as JSON if it is JSON; 65 (EX_DATAERR) discards the job; other codes are failures, tried again, with the end of standard error. The command gets PATH, HOME, LANG, TZ and TMPDIR, PAWL_JOB_ID, PAWL_ATTEMPT and what "env" adds, and is ended with all its children when its time is over.

The configuration, in JSON; argv is required, its first element an absolute path, timeout is 1 minute unless set:

    {"commands": {
      "thumbnail": {"argv": ["/usr/bin/convert", "-", "-resize", "64x64", "png:-"],
                    "timeout": "30s", "env": {"LANG": "C"}, "dir": "/tmp"}}}`
}

// Run works until the first interrupt.
func (c *workCmd) Run(a *app) error {
	queues, err := parseQueues(c.Queue)
	if err != nil {
		return err
	}
	commands, err := readCommands(c.Config)
	if err != nil {
		return err
	}
	config, err := a.config()
	if err != nil {
		return err
	}
	if c.PollOnly {
		throughPooler(config)
	}
	pool, err := a.connect(a.ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := a.checkSchema(); err != nil {
		return err
	}
	version := readBuild().Version
	w, err := worker.New(pool, worker.Config{
		Queues: queues, Namespace: a.namespace, Name: c.Name, Version: version, PollOnly: c.PollOnly, Drain: c.Drain, Logger: a.log,
		Timeout: -1, // both kinds have timeouts of their own
	})
	if err != nil {
		return usageError{oneLine(err.Error())}
	}
	w.Use(logAttempts(a.log))
	worker.HandleResult(w, kindHTTP, newHTTPCaller(c.AllowPrivate, version).handle)
	worker.HandleResult(w, kindExec, commands.handle)
	a.log.Info("worker starts", "queues", queues, "commands", len(commands), "version", version)
	told := make(chan struct{})
	context.AfterFunc(a.ctx, func() {
		a.log.Info("worker stops when its running jobs are done; interrupt again to stop at once", "running", w.Stats().Running, "drain", c.Drain)
		close(told)
	})
	if err := w.Run(a.ctx); err != nil {
		return err
	}
	<-told
	s := w.Stats()
	a.log.Info("worker stopped", "succeeded", s.Succeeded, "failed", s.Failed, "lost", s.Lost, "unknown", s.Unknown)
	return nil
}

// parseQueues reads NAME=SLOTS.
func parseQueues(flags []string) (map[string]int, error) {
	if len(flags) == 0 {
		return map[string]int{job.QueueDefault: slotsDefault}, nil
	}
	queues := map[string]int{}
	for _, f := range flags {
		name, slots := f, slotsDefault
		if i := strings.LastIndexByte(f, '='); i >= 0 {
			n, err := strconv.Atoi(f[i+1:])
			if err != nil {
				return nil, usagef("--queue %q: %q is not a number of slots; write NAME=SLOTS, as mail=20", f, f[i+1:])
			}
			name, slots = f[:i], n
		}
		if _, twice := queues[name]; twice {
			return nil, usagef("--queue %q: queue %s is named twice", f, name)
		}
		queues[name] = slots
	}
	return queues, nil
}

// logAttempts logs each attempt without its args, result or error, which "pawl job show" has.
func logAttempts(log *slog.Logger) worker.Middleware {
	return func(next func(context.Context, *worker.Raw) error) func(context.Context, *worker.Raw) error {
		return func(ctx context.Context, j *worker.Raw) error {
			began := time.Now()
			err := next(ctx, j)
			attrs := []any{"job", j.ID, "kind", j.Kind, "queue", j.Queue, "attempt", j.Attempt, "took", time.Since(began).Round(time.Millisecond)}
			switch outcome := job.EndingOf(err).Outcome; {
			case err == nil:
				log.Info("job succeeded", attrs...)
			case errors.Is(context.Cause(ctx), worker.ErrStopping):
				log.Info("job interrupted", attrs...)
			default:
				log.Warn("job not done, see pawl job show", append(attrs, "outcome", outcome)...)
			}
			return err
		}
	}
}

// decodeArgs reads a job's args. What does not fit now never will: the error discards the job.
func decodeArgs(raw json.RawMessage, into any) error {
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong) && wrong.Field == "":
		return job.Discard(fmt.Errorf("args: an object is wanted, not %s", wrong.Value))
	case errors.As(err, &wrong):
		return job.Discard(fmt.Errorf("args: %s: %s is wanted, not %s", wrong.Field, jsonName(wrong.Type.Kind()), wrong.Value))
	case err != nil:
		return job.Discard(fmt.Errorf("args: %s", strings.TrimPrefix(err.Error(), "json: ")))
	}
	return nil
}

// jsonName is what JSON calls what Go calls otherwise.
func jsonName(k reflect.Kind) string {
	switch k {
	case reflect.Map, reflect.Struct:
		return "an object"
	default:
		return "a " + k.String()
	}
}

// jsonDuration is a duration that JSON writes as "30s".
type jsonDuration time.Duration

// UnmarshalJSON reads "30s" and the like.
func (d *jsonDuration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return errors.New(`a duration is written as "30s"`)
	}
	v, err := time.ParseDuration(s)
	if err != nil || v <= 0 {
		return errors.New(`"` + s + `" is not a duration above zero, such as "30s" or "5m"`)
	}
	*d = jsonDuration(v)
	return nil
}
