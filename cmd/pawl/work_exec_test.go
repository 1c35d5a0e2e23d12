//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/worker"
)

// shell is a command that runs a script.
func shell(script string) command { return command{Argv: []string{"/bin/sh", "-c", script}} }

func execute(ctx context.Context, c command, args string) (any, job.Ending) {
	got, err := commands{"x": c}.handle(ctx, &job.Job[json.RawMessage]{ID: 7, Attempt: 2, Args: json.RawMessage(args)})
	return got, job.EndingOf(err)
}

func TestExecOutcomes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		script, args string
		want         job.Outcome
		result       string // as JSON
		says         string
	}{
		{"cat", `{"name": "x", "input": "hello\n"}`, job.Succeeded, `"hello"`, ""},
		{"cat", `{"name": "x", "input": {"a": [1]}}`, job.Succeeded, `{"a":[1]}`, ""},
		{"cat", `{"name": "x"}`, job.Succeeded, `{}`, ""}, // none
		{"true", `{"name": "x", "input": "not read"}`, job.Succeeded, `{}`, ""},
		{"printf '\\377'", `{"name": "x"}`, job.Succeeded, "\"\uFFFD\"", ""},
		{"echo oh no >&2; exit 3", `{"name": "x"}`, job.Failed, "null", "exit code 3: oh no"},
		{"exit 1", `{"name": "x"}`, job.Failed, "null", "exit code 1"},
		{"echo never >&2; exit 65", `{"name": "x"}`, job.Discarded, "null", "exit code 65, give up: never"},
		{"kill -9 $$", `{"name": "x"}`, job.Failed, "null", "killed"},
		{"true", `{"name": "y"}`, job.Failed, "null", `names no command "y"`},
		{"true", `{}`, job.Failed, "null", `names no command ""`},
		{"true", `{"name": 1}`, job.Discarded, "null", "name: a string is wanted, not number"},
		{"true", `{"name": "x", "argv": ["rm"]}`, job.Discarded, "null", `unknown field "argv"`},
		{"true", `[]`, job.Discarded, "null", "an object is wanted"},
	} {
		got, e := execute(t.Context(), shell(c.script), c.args)
		result, err := json.Marshal(got)
		if err != nil || string(result) != c.result || e.Outcome != c.want || e.Err != nil && !strings.Contains(e.Err.Error(), c.says) {
			t.Errorf("%s with %s: %s %v, result %s; want %s %q, %s", c.script, c.args, e.Outcome, e.Err, result, c.want, c.says, c.result)
		}
	}
	if got, _ := execute(t.Context(), shell("true"), `{"name": "x"}`); got != any(worker.None{}) {
		t.Errorf("no output gives the result %v", got)
	}
	if _, e := execute(t.Context(), command{Argv: []string{"/no/such/command"}}, `{"name": "x"}`); e.Outcome != job.Failed || !errors.Is(e.Err, os.ErrNotExist) {
		t.Errorf("a command that is not there: %+v", e)
	}
}

func TestExecEnvironment(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := shell(`echo "$PAWL_JOB_ID $PAWL_ATTEMPT $MINE $(pwd) ${PAWL_DATABASE_URL-none}"; env | wc -l`)
	c.Env, c.Dir = map[string]string{"MINE": "yours"}, dir
	got, e := execute(t.Context(), c, `{"name": "x"}`)
	if text, _ := got.(string); e.Outcome != job.Succeeded || !strings.HasPrefix(text, "7 2 yours "+dir+" none\n") {
		t.Errorf("got %q, %+v", got, e)
	}
}

func TestExecBounds(t *testing.T) {
	t.Parallel()
	got, e := execute(t.Context(), shell("head -c 200000 /dev/zero | tr '\\0' x"), `{"name": "x"}`)
	if text, _ := got.(string); e.Outcome != job.Succeeded || !strings.HasSuffix(text, " … (134464 bytes more)") || len(text) > commandOutputMax+100 {
		t.Errorf("got %d bytes, %+v", len(text), e)
	}
	_, e = execute(t.Context(), shell("head -c 200000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1"), `{"name": "x"}`)
	if text := e.Err.Error(); !strings.HasSuffix(text, "xthe end") || len(text) > commandErrorMax+100 {
		t.Errorf("got %d bytes: %.100s", len(text), text)
	}
}

// When its time is over a command ends with all its children, also those that ignore the first signal.
func TestExecKillsGroup(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, script string }{
		{"all heed", `exec 3>"$FIFO"; echo ready >&3; sleep 1000 & wait`},
		{"a child ignores it", `exec 3>"$FIFO"; (trap "" TERM; echo ready >&3; while :; do sleep 1000; done) & wait`},
	} {
		fifo := filepath.Join(t.TempDir(), "fifo")
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := shell(c.script)
		cmd.Env = map[string]string{"FIFO": fifo}
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan job.Ending, 1)
		go func() {
			_, e := execute(ctx, cmd, `{"name": "x"}`)
			ended <- e
		}()
		f, err := os.Open(fifo) // when the writer has opened it as well
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(f)
		if line, err := r.ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("%s: %q, %v", c.name, line, err)
		}
		cancel(job.ErrCancelled)
		if e := <-ended; e.Outcome != job.Failed || !errors.Is(e.Err, job.ErrCancelled) {
			t.Errorf("%s: %+v", c.name, e)
		}
		// The end of the file comes when nobody has it open for writing any more.
		if _, err := io.ReadAll(r); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		_ = f.Close()
	}
}

func TestExecTimeout(t *testing.T) {
	t.Parallel()
	c := shell("exec sleep 1000")
	c.Timeout = jsonDuration(20 * time.Millisecond)
	if _, e := execute(t.Context(), c, `{"name": "x"}`); e.Outcome != job.Failed || !strings.Contains(e.Err.Error(), "not done within 20ms") {
		t.Errorf("got %+v", e)
	}
}

// A worker runs a command from end to end. Postgres takes whatever the command says as its result.
func TestWorkExec(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	config := filepath.Join(t.TempDir(), "work.json")
	err := os.WriteFile(config, []byte(`{"commands": {
		"echo": {"argv": ["/bin/cat"], "timeout": "10s"},
		"zero": {"argv": ["/bin/sh", "-c", "echo '{\"a\": \"\\\\u0000 \\\\ud800\"}'"]},
		"bytes": {"argv": ["/bin/sh", "-c", "printf '\"\\000\\377'"]}}}`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	start(t, url, "work", "--config", config)
	for args, want := range map[string]string{
		`{"name": "echo", "input": {"a": 1}}`: `{"a":1}`,
		`{"name": "zero"}`:                    `{"a":"\u0000 \ud800"}`,
		`{"name": "bytes"}`:                   `"\"\u0000` + "\uFFFD\"",
		`{"name": "echo"}`:                    ``,
	} {
		id := enqueue(t, url, "pawl.exec", args)
		if got := await(t, pool, id); got != job.StateSucceeded {
			t.Errorf("%s: %s", args, must(t, exitOK, url, "job", "show", id64(id)))
			continue
		}
		if got := compact(show(t, url, id).Result); got != want {
			t.Errorf("%s: result %s, want %s", args, got, want)
		}
	}
}
