package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
)

// argsBytesMax is the most that a queue can be set to take.
const argsBytesMax = 64 << 20

// jobEnqueueCmd is "pawl job enqueue".
type jobEnqueueCmd struct {
	Kind        string            `required:"" placeholder:"KIND" help:"Kind of the job, as its worker knows it: pawl.http and pawl.exec for \"pawl work\"."`
	Queue       string            `default:"default" placeholder:"NAME" help:"Queue, made on first use. Default: ${default}."`
	Args        string            `default:"{}" placeholder:"JSON" help:"Arguments: JSON, @FILE, or - for standard input. Default: ${default}."`
	Priority    int               `default:"2" placeholder:"N" help:"1 goes first, 4 last. Default: ${default}."`
	RunAt       string            `placeholder:"TIME" help:"Not before this time: 2027-01-31T15:04:05Z, or +90s, +5m, +24h from now."`
	MaxAttempts int               `default:"25" placeholder:"N" help:"How often the job is tried before it is discarded, 1 to 1,000. Default: ${default}."`
	Timeout     time.Duration     `placeholder:"DURATION" help:"How long an attempt may take. Default: the worker's."`
	Backoff     time.Duration     `default:"1s" placeholder:"DURATION" help:"Wait after the first failed attempt; it doubles with each. Default: ${default}."`
	BackoffMax  time.Duration     `default:"1h" placeholder:"DURATION" help:"Longest wait between attempts. Default: ${default}."`
	DedupeKey   string            `placeholder:"KEY" help:"Enqueue nothing while an unfinished job of this kind has the same key."`
	DedupeFor   time.Duration     `placeholder:"DURATION" help:"With --dedupe-key: for this long, whatever the job does, rather than until it is finished."`
	Header      map[string]string `placeholder:"KEY=VALUE" mapsep:"none" help:"Header for the worker, such as traceparent. Repeat for more."`
}

// Help is the long help text.
func (*jobEnqueueCmd) Help() string {
	return `Prints the job's id. Nobody checks the kind: a job of a kind that no worker knows waits until one does.

Examples:

    pawl job enqueue --kind pawl.http --args '{"url": "https://example.com/hook", "body": {"n": 1}}'

    pawl job enqueue --kind pawl.exec --args '{"name": "thumbnail", "input": "…"}' --run-at +5m`
}

// Run enqueues one job.
func (c *jobEnqueueCmd) Run(a *app) error {
	if n := len(c.Kind); n == 0 || n > 128 {
		return usagef("--kind has 1 to 128 bytes, not %d", n)
	}
	args, err := readJSON("--args", c.Args, a.in)
	if err != nil {
		return err
	}
	at, in, err := parseRunAt(c.RunAt)
	if err != nil {
		return err
	}
	if c.DedupeFor != 0 && c.DedupeKey == "" {
		return usagef("--dedupe-for needs --dedupe-key")
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	opts := c.options(a.namespace)
	if in > 0 { // from the database's now, which is the clock that counts
		now, err := a.now(a.ctx, pool)
		if err != nil {
			return err
		}
		at = now.Add(in)
	}
	if !at.IsZero() {
		opts = append(opts, job.RunAt(at))
	}
	got, err := job.Define[json.RawMessage](c.Kind).Enqueue(a.ctx, pool, args, opts...)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(struct {
			ID        int64  `json:"id,string"`
			Duplicate bool   `json:"duplicate"` // the id is that of the job that was there
			Queue     string `json:"queue"`
			Kind      string `json:"kind"`
		}{got.ID, got.Duplicate, c.Queue, c.Kind})
	}
	if got.Duplicate {
		fmt.Fprintf(a.out, "nothing enqueued: job %d has this dedupe key\n", got.ID)
		return nil
	}
	fmt.Fprintf(a.out, "job %d enqueued in queue %s\n", got.ID, plain(c.Queue))
	return nil
}

func (c *jobEnqueueCmd) options(ns int16) []job.Option {
	opts := []job.Option{
		job.Namespace(ns), job.Queue(c.Queue), job.Priority(c.Priority), job.MaxAttempts(c.MaxAttempts), job.Backoff(c.Backoff, c.BackoffMax),
	}
	if c.Timeout != 0 {
		opts = append(opts, job.Timeout(c.Timeout))
	}
	if c.DedupeKey != "" {
		opts = append(opts, job.Dedupe(func(json.RawMessage) string { return c.DedupeKey }))
	}
	if c.DedupeFor != 0 {
		opts = append(opts, job.DedupeFor(c.DedupeFor))
	}
	for k, v := range c.Header {
		opts = append(opts, job.Header(k, v))
	}
	return opts
}

// readJSON reads the value of a flag from where it is, JSON, @FILE or - for standard input, and checks that it is JSON.
func readJSON(flag, value string, in io.Reader) (json.RawMessage, error) {
	text, where := []byte(value), flag
	file, named := strings.CutPrefix(value, "@")
	var err error
	switch {
	case named:
		where = file
		f, oerr := os.Open(file)
		if oerr != nil {
			return nil, usagef("%s: %v", flag, oerr)
		}
		defer f.Close()
		text, err = io.ReadAll(io.LimitReader(f, argsBytesMax+1))
	case value == "-":
		where = "standard input"
		text, err = io.ReadAll(io.LimitReader(in, argsBytesMax+1))
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", where, err)
	}
	if len(text) > argsBytesMax {
		return nil, usagef("%s has more than the %d MiB that any queue takes", where, argsBytesMax>>20)
	}
	var args json.RawMessage
	var syntax *json.SyntaxError
	if err := json.Unmarshal(text, &args); errors.As(err, &syntax) {
		return nil, usagef("%s is not JSON: %v, at byte %d", where, err, syntax.Offset)
	} else if err != nil {
		return nil, usagef("%s is not JSON: %v", where, err)
	}
	return args, nil
}

// parseRunAt reads a time, or a duration from now.
func parseRunAt(s string) (at time.Time, in time.Duration, err error) {
	if s == "" {
		return at, 0, nil
	}
	if after, ok := strings.CutPrefix(s, "+"); ok {
		if in, err = time.ParseDuration(after); err == nil && in > 0 {
			return at, in, nil
		}
	} else if at, err = time.Parse(time.RFC3339, s); err == nil {
		return at, 0, nil
	}
	return at, 0, usagef("--run-at %q is neither a time (2027-01-31T15:04:05Z) nor a duration from now (+90s, +5m, +24h)", s)
}
