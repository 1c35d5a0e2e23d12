package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// patience bounds everything that tests wait for.
const patience = time.Minute

// answer is what a command line came to.
type answer struct {
	code     int
	out, err string
}

// pawl runs a command line on a database.
func pawl(t *testing.T, url string, args ...string) answer {
	t.Helper()
	return pawlIn(t, url, strings.NewReader(""), args...)
}

// pawlIn is pawl with a standard input.
func pawlIn(t *testing.T, url string, in io.Reader, args ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, stderr bytes.Buffer
	code := run(ctx, append([]string{"--database-url", url}, args...), in, &out, &stderr)
	a := answer{code, out.String(), stderr.String()}
	if strings.Contains(a.err, "goroutine ") {
		t.Errorf("pawl %v: a stack trace on standard error:\n%s", args, a.err)
	}
	return a
}

// must runs a command line that is to end with a code, and returns what it wrote to standard output.
func must(t *testing.T, code int, url string, args ...string) string {
	t.Helper()
	a := pawl(t, url, args...)
	if a.code != code {
		t.Fatalf("pawl %v: exit code %d, want %d\n%s%s", args, a.code, code, a.out, a.err)
	}
	return a.out
}

// mustJSON is must with --json, and reads what was written.
func mustJSON[T any](t *testing.T, code int, url string, args ...string) (got T) {
	t.Helper()
	out := must(t, code, url, append([]string{"--json"}, args...)...)
	d := json.NewDecoder(strings.NewReader(out))
	if err := d.Decode(&got); err != nil {
		t.Fatalf("pawl %v: %v in %s", args, err, out)
	}
	if d.More() {
		t.Fatalf("pawl %v: more than one JSON document: %s", args, out)
	}
	return got
}

// refused runs a command line that is to fail with a code and one line on standard error that says all of want.
func refused(t *testing.T, code int, url string, args []string, want ...string) {
	t.Helper()
	check(t, pawl(t, url, args...), code, args, want...)
}

func check(t *testing.T, a answer, code int, args []string, want ...string) {
	t.Helper()
	if a.code != code {
		t.Errorf("pawl %v: exit code %d, want %d", args, a.code, code)
	}
	if n := strings.Count(a.err, "\n"); n != 1 || !strings.HasPrefix(a.err, "pawl: ") {
		t.Errorf("pawl %v: standard error has %d lines, want one of pawl's:\n%s", args, n, a.err)
	}
	for _, w := range want {
		if !strings.Contains(a.err, w) {
			t.Errorf("pawl %v: %q is missing in: %s", args, w, a.err)
		}
	}
}

// enqueue enqueues a job and returns its id.
func enqueue(t *testing.T, url, kind, args string, flags ...string) int64 {
	t.Helper()
	got := mustJSON[struct {
		ID int64 `json:"id,string"`
	}](t, exitOK, url, append([]string{"job", "enqueue", "--kind", kind, "--args", args}, flags...)...)
	return got.ID
}

// show returns a job's story.
func show(t *testing.T, url string, id int64) job.Story {
	t.Helper()
	return mustJSON[job.Story](t, exitOK, url, "job", "show", id64(id))
}

func id64(id int64) string { return strconv.FormatInt(id, 10) }

// await waits until a job is finished and tells its state.
func await(t *testing.T, pool *pgxpool.Pool, id int64) job.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := job.Await[json.RawMessage](ctx, pool, 1, id)
	switch {
	case err == nil:
		return job.StateSucceeded
	case errors.Is(err, job.ErrDiscarded):
		return job.StateDiscarded
	case errors.Is(err, job.ErrCancelled):
		return job.StateCancelled
	}
	t.Fatalf("await job %d: %v", id, err)
	return ""
}

// background is a command that runs until it is interrupted.
type background struct {
	interrupt context.CancelFunc
	code      chan int
	log       *logBuffer
}

// start runs a command in the background; the test's end interrupts it and waits.
func start(t *testing.T, url string, args ...string) *background {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b := &background{cancel, make(chan int, 1), &logBuffer{grown: make(chan struct{})}}
	go func() {
		b.code <- run(ctx, append([]string{"--database-url", url}, args...), strings.NewReader(""), io.Discard, b.log)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-b.code:
		case <-time.After(patience):
			t.Errorf("pawl %v does not end", args)
		}
	})
	return b
}

// stop interrupts the command and returns its exit code.
func (b *background) stop(t *testing.T) int {
	t.Helper()
	b.interrupt()
	return b.ended(t)
}

// ended waits until the command has ended and returns its exit code.
func (b *background) ended(t *testing.T) int {
	t.Helper()
	select {
	case code := <-b.code:
		b.code <- code // for the cleanup
		return code
	case <-time.After(patience):
		t.Fatal("the command does not end")
		return 0
	}
}

// logBuffer keeps what is logged.
type logBuffer struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	grown chan struct{} // closed by the next write
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.grown)
	l.grown = make(chan struct{})
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// await waits until something is logged.
func (l *logBuffer) await(t *testing.T, text string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		found, grown := strings.Contains(l.buf.String(), text), l.grown
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-grown:
		case <-timeout:
			t.Fatalf("%q is not logged:\n%s", text, l)
		}
	}
}

// openPool returns a database and its URL.
func openPool(t *testing.T) (*pgxpool.Pool, string) {
	t.Helper()
	pool := dbtest.New(t)
	return pool, pool.Config().ConnString()
}

func mustExec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func mentions(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
}

func poolOf(t *testing.T, url string) (*pgxpool.Pool, error) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err == nil {
		t.Cleanup(pool.Close)
	}
	return pool, err
}
