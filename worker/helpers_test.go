package worker_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/worker"
)

type greeting struct {
	Name string `json:"name"`
}

// patience bounds every wait of these tests; what is waited for comes much earlier.
const patience = 60 * time.Second

type testLog struct{ tb testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.tb.Log(string(p))
	return len(p), nil
}

func quick() worker.Config {
	return worker.Config{Queues: map[string]int{"default": 10}, Name: "test"}
}

// run starts a worker and returns a function that stops it and waits for it. The test's end calls it too.
func run(tb testing.TB, w *worker.Worker) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				tb.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			tb.Error("Run does not return")
		}
	}
	tb.Cleanup(stop)
	return stop
}

func newWorker(tb testing.TB, pool *pgxpool.Pool, conf worker.Config) *worker.Worker {
	tb.Helper()
	if conf.Logger == nil && testing.Verbose() {
		conf.Logger = slog.New(slog.NewTextHandler(testLog{tb}, nil))
	}
	w, err := worker.New(pool, conf)
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

// sweep runs a coordinator for as long as the test.
func sweep(tb testing.TB, pool *pgxpool.Pool) {
	tb.Helper()
	c, err := coordinator.New(pool, coordinator.Config{Specs: map[string]string{coordinator.SweepSessions: "@every 1s"}})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("coordinator: %v", err)
		}
	})
}

// until polls for a condition that no signal announces.
func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			tb.Fatalf("waited in vain for: %s", what)
		}
	}
}

// receive waits for a value.
func receive[T any](tb testing.TB, what string, ch <-chan T) T {
	tb.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		tb.Fatalf("waited in vain for: %s", what)
		panic("unreachable")
	}
}

func enqueue[A any](tb testing.TB, on job.DB, d *job.Definition[A], args A, opts ...job.Option) int64 {
	tb.Helper()
	res, err := d.Enqueue(context.Background(), on, args, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return res.ID
}

func story(tb testing.TB, on job.DB, id int64) *job.Story {
	tb.Helper()
	s, err := job.Get(context.Background(), on, 1, id)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func untilState(tb testing.TB, on job.DB, id int64, want job.State) *job.Story {
	tb.Helper()
	var s *job.Story
	until(tb, "job "+string(want), func() bool {
		s = story(tb, on, id)
		return s.State == want
	})
	return s
}

func exec(tb testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	tb.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

func count(tb testing.TB, pool *pgxpool.Pool, sql string, args ...any) (n int) {
	tb.Helper()
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	return n
}

var errTest = errors.New("no luck")
