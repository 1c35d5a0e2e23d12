package session_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db/dbtest"
)

const patience = 60 * time.Second

func start(tb testing.TB, pool *pgxpool.Pool, conf session.Config) *session.Session {
	tb.Helper()
	s, err := session.Start(context.Background(), pool, conf)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func exec(tb testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	tb.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

func until(tb testing.TB, pool *pgxpool.Pool, what, sql string, args ...any) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for {
		var ok bool
		if err := pool.QueryRow(context.Background(), sql, args...).Scan(&ok); err != nil {
			tb.Fatalf("%s: %v", sql, err)
		}
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			tb.Fatalf("waited in vain for: %s", what)
		}
	}
}

func TestSession(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := start(t, pool, session.Config{TTL: time.Second, Name: "test"})
	var first time.Time
	if err := pool.QueryRow(context.Background(), "SELECT expires_at FROM pawl.session WHERE id = $1", s.ID()).Scan(&first); err != nil {
		t.Fatal(err)
	}
	until(t, pool, "a renewal", "SELECT expires_at > $2 FROM pawl.session WHERE id = $1", s.ID(), first)
	if s.Context().Err() != nil {
		t.Errorf("context: %v", context.Cause(s.Context()))
	}
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	until(t, pool, "its end", "SELECT ended_at IS NOT NULL AND ended_why = 'closed' FROM pawl.session WHERE id = $1", s.ID())
	if !errors.Is(context.Cause(s.Context()), context.Canceled) {
		t.Errorf("cause after Close: got %v, want Canceled", context.Cause(s.Context()))
	}
}

// waitLost waits until the session's context ends and wants ErrLost as its cause.
func waitLost(tb testing.TB, s *session.Session) {
	tb.Helper()
	select {
	case <-s.Context().Done():
	case <-time.After(patience):
		tb.Fatal("the session is not lost")
	}
	if !errors.Is(context.Cause(s.Context()), session.ErrLost) {
		tb.Errorf("cause: got %v, want ErrLost", context.Cause(s.Context()))
	}
}

func TestSession_endedByOthers(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := start(t, pool, session.Config{TTL: time.Second})
	exec(t, pool, "SELECT pawl.session_end('1', $1, 'test')", s.ID())
	waitLost(t, s)
}

// A process that may not renew stops before Postgres would call it dead.
func TestSession_unhealthy(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := start(t, pool, session.Config{TTL: time.Second, Healthy: func() bool { return false }})
	waitLost(t, s)
	var early bool
	if err := pool.QueryRow(context.Background(), "SELECT clock_timestamp() < expires_at FROM pawl.session WHERE id = $1", s.ID()).Scan(&early); err != nil {
		t.Fatal(err)
	}
	if !early {
		t.Error("the process held on longer than Postgres")
	}
}

// A broken connection is replaced, and the session goes on.
func TestSession_connectionLost(t *testing.T) {
	t.Parallel()
	for _, listen := range []bool{false, true} {
		pool := dbtest.New(t)
		s := start(t, pool, session.Config{TTL: 2 * time.Second, Listen: listen})
		exec(t, pool, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
		until(t, pool, "a renewal after it", "SELECT expires_at - ttl > started_at + interval '0.3 s' FROM pawl.session WHERE id = $1", s.ID())
		if s.Context().Err() != nil {
			t.Errorf("listen=%v: %v", listen, context.Cause(s.Context()))
		}
	}
}

func TestSession_hint(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	heard := make(chan string, 10)
	start(t, pool, session.Config{Listen: true, Heard: func(n session.News) { heard <- n.Hint }})
	exec(t, pool, "SELECT pg_notify($1, 'ndefault')", session.Channel(1))
	select {
	case got := <-heard:
		if got != "ndefault" {
			t.Errorf("got %q", got)
		}
	case <-time.After(patience):
		t.Error("no hint was heard")
	}
}

func TestStart_errors(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	if _, err := session.Start(context.Background(), pool, session.Config{TTL: time.Millisecond}); err == nil {
		t.Error("a ttl of 1 ms was accepted")
	}
	empty, err := pgxpool.New(context.Background(), dbtest.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(empty.Close)
	if _, err := session.Start(context.Background(), empty, session.Config{}); !errors.Is(err, session.ErrSchema) {
		t.Errorf("without schema: got %v, want ErrSchema", err)
	}
}
