package job_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
)

type note struct {
	Text string `json:"text"`
}

func notes(n int) iter.Seq[note] {
	return func(yield func(note) bool) {
		for i := range n {
			if !yield(note{fmt.Sprint(i)}) {
				return
			}
		}
	}
}

func TestEnqueueMany(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := context.Background()
	d := job.Define[note]("note", job.Queue("notes"))
	n, err := d.EnqueueMany(ctx, pool, notes(2500))
	if err != nil || n != 2500 {
		t.Fatalf("got %d, %v, want 2500", n, err)
	}
	queues, err := job.Queues(ctx, pool, 1, "", 10)
	if err != nil || len(queues) != 1 || queues[0].Name != "notes" || queues[0].Available != 2500 {
		t.Errorf("queues: got %+v, %v", queues, err)
	}
	keyed := job.Define[note]("keyed", job.Dedupe(func(n note) string { return n.Text }))
	twice := slices.Values(append(slices.Collect(notes(3)), slices.Collect(notes(5))...))
	if n, err := keyed.EnqueueMany(ctx, pool, twice); err != nil || n != 5 {
		t.Errorf("with keys: got %d, %v, want 5", n, err)
	}
	res, err := keyed.Enqueue(ctx, pool, note{"3"})
	if err != nil || !res.Duplicate {
		t.Errorf("duplicate: got %+v, %v", res, err)
	}
	jobs, _, err := job.List(ctx, pool, job.Filter{Kind: "keyed"})
	if err != nil || len(jobs) != 5 || jobs[1].ID != res.ID {
		t.Errorf("list: got %+v, %v, want 5 with the duplicate's id second", jobs, err)
	}
}

// Every kind of bad input gets an error that says what is wrong, and leaves nothing.
func TestEnqueue_bad(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := context.Background()
	d := job.Define[note]("note")
	long := strings.Repeat("x", 200)
	for name, c := range map[string]struct {
		enqueue func() error
		want    error
		says    string
	}{
		"payload": {func() error {
			_, err := d.Enqueue(ctx, pool, note{strings.Repeat("x", 1<<20)})
			return err
		}, job.ErrPayloadTooLarge, "exceed the 1048576 allowed in queue default"},
		"payload in a batch": {func() error {
			_, err := d.EnqueueMany(ctx, pool, slices.Values([]note{{"a"}, {strings.Repeat("x", 1<<20)}}))
			return err
		}, job.ErrPayloadTooLarge, "after 0 jobs"},
		"args that are not JSON": {func() error {
			_, err := job.Define[func()]("f").Enqueue(ctx, pool, func() {})
			return err
		}, job.ErrInvalid, "unsupported type"},
		"priority": {func() error {
			_, err := d.Enqueue(ctx, pool, note{}, job.Priority(5))
			return err
		}, job.ErrInvalid, "outside 1 (first) to 4 (last)"},
		"queue and attempts": {func() error {
			_, err := d.Enqueue(ctx, pool, note{}, job.Queue(long), job.MaxAttempts(0))
			return err
		}, job.ErrInvalid, "1 to 128 bytes"},
		"dedupe key": {func() error {
			_, err := job.Define[note]("k", job.Dedupe(func(note) string { return "" })).Enqueue(ctx, pool, note{})
			return err
		}, job.ErrInvalid, "dedupe_key_length"},
		"backoff": {func() error {
			_, err := d.Enqueue(ctx, pool, note{}, job.Backoff(time.Hour, time.Second))
			return err
		}, job.ErrInvalid, "longest backoff"},
	} {
		err := c.enqueue()
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: got %v, want %v that says %q", name, err, c.want, c.says)
		}
	}
	if jobs, _, err := job.List(ctx, pool, job.Filter{}); err != nil || len(jobs) != 0 {
		t.Errorf("left behind: %+v, %v", jobs, err)
	}
	if _, _, err := job.List(ctx, pool, job.Filter{Queue: "nowhere"}); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("list of no queue: got %v, want ErrNotFound", err)
	}
	if _, err := job.Get(ctx, pool, 1, 7); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("get: got %v, want ErrNotFound", err)
	}
	if _, err := job.Await[note](ctx, pool, 1, 7); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("await: got %v, want ErrNotFound", err)
	}
	if _, err := d.Enqueue(ctx, pool, note{}, job.Namespace(9)); !errors.Is(err, job.ErrInvalid) || !strings.Contains(err.Error(), "namespace 9") {
		t.Errorf("namespace: got %v", err)
	}
}

// Namespaces know nothing of each other's queues and jobs.
func TestNamespace(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := context.Background()
	var ns, again int16
	err := pool.QueryRow(ctx, "SELECT pawl.namespace_create('billing'), pawl.namespace_create('billing')").Scan(&ns, &again)
	if err != nil || ns == 1 || ns != again {
		t.Fatalf("got %d and %d, %v", ns, again, err)
	}
	keyed := job.Define[note]("note", job.Dedupe(func(n note) string { return n.Text }))
	for _, opts := range [][]job.Option{nil, {job.Namespace(ns)}} {
		if res, err := keyed.Enqueue(ctx, pool, note{"x"}, opts...); err != nil || res.Duplicate {
			t.Errorf("got %+v, %v", res, err)
		}
	}
	for _, ns := range []int16{1, ns} {
		jobs, _, err := job.List(ctx, pool, job.Filter{Namespace: ns})
		if err != nil || len(jobs) != 1 {
			t.Errorf("namespace %d: got %+v, %v, want one job", ns, jobs, err)
		}
	}
}

func TestSchemaMissing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dbtest.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(ctx) })
	_, err = job.Define[note]("note").Enqueue(ctx, conn, note{})
	if !errors.Is(err, job.ErrSchema) || !strings.Contains(err.Error(), "pawl migrate up") {
		t.Errorf("got %v, want ErrSchema with its remedy", err)
	}
}

func TestEnqueueSQL(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := context.Background()
	var id int64
	var duplicate bool
	err := pool.QueryRow(ctx, `SELECT id, duplicate FROM pawl.enqueue_unique('1', 'mail', 'email.send', '{"to": "ada@example.com"}', 'key', p_priority => '3')`).Scan(&id, &duplicate)
	if err != nil || id == 0 || duplicate {
		t.Fatalf("got %d, %v, %v", id, duplicate, err)
	}
	s, err := job.Get(ctx, pool, 1, id)
	if err != nil || s.Queue != "mail" || s.Kind != "email.send" || s.Priority != 3 || s.State != job.StateAvailable {
		t.Errorf("got %+v, %v", s, err)
	}
	if _, err := pool.Exec(ctx, `SELECT pawl.enqueue('1', 'mail', 'email.send', '{"to": ')`); err == nil || !strings.Contains(err.Error(), "json") {
		t.Errorf("bad JSON: got %v", err)
	}
}

func TestDefine(t *testing.T) {
	t.Parallel()
	for name, define := range map[string]func(){
		"name":   func() { job.Define[note]("") },
		"option": func() { job.Define[note]("x", job.Priority(0)) },
		"dedupe": func() { job.Define[note]("x", job.Dedupe(func(int) string { return "" })) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			define()
		}()
	}
}

func TestAwait(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	res, err := job.Define[note]("note").Enqueue(context.Background(), pool, note{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer stop()
	if _, err := job.Await[note](ctx, pool, 1, res.ID); !errors.Is(err, job.ErrUnfinished) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want ErrUnfinished by the deadline", err)
	}
	if _, err := job.CancelByID(context.Background(), pool, 1, res.ID, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := job.Await[note](context.Background(), pool, 1, res.ID); !errors.Is(err, job.ErrCancelled) {
		t.Errorf("got %v, want ErrCancelled", err)
	}
}
