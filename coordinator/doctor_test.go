package coordinator_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// examine runs the doctor and returns its findings by check.
func examine(t *testing.T, c *coordinator.Coordinator) map[string]coordinator.Finding {
	t.Helper()
	found, err := c.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]coordinator.Finding{}
	for _, f := range found {
		if _, twice := all[f.Check]; twice || f.Check == "" || f.Message == "" {
			t.Errorf("finding %+v: nameless, empty or given twice", f)
		}
		if (f.Level == coordinator.LevelOK) != (f.Remedy == "") {
			t.Errorf("finding %+v: a remedy belongs to what is not ok", f)
		}
		all[f.Check] = f
	}
	return all
}

// expect checks one finding.
func expect(t *testing.T, found map[string]coordinator.Finding, check string, level coordinator.Level, says ...string) {
	t.Helper()
	f, ok := found[check]
	if !ok {
		t.Errorf("check %q has no finding in %+v", check, found)
		return
	}
	if f.Level != level {
		t.Errorf("%s: level %s, want %s: %+v", check, f.Level, level, f)
	}
	for _, s := range says {
		if !strings.Contains(f.Message+" "+f.Remedy, s) {
			t.Errorf("%s: %q is missing in %+v", check, s, f)
		}
	}
}

func newPatient(t *testing.T) (*pgxpool.Pool, *coordinator.Coordinator) {
	t.Helper()
	pool := dbtest.New(t)
	return pool, newCoordinator(t, pool)
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	_, c := newPatient(t)
	found := examine(t, c)
	expect(t, found, "sweeps", coordinator.LevelBad, "none ever ran", "pawl serve")
	expect(t, found, "cluster", coordinator.LevelOK)
	expect(t, found, "connection", coordinator.LevelOK, "direct")
	expect(t, found, "sessions", coordinator.LevelOK, "0 alive")
	expect(t, found, "partitions", coordinator.LevelOK)
	expect(t, found, "events", coordinator.LevelOK, "from number 1 on")
	expect(t, found, "notifications", coordinator.LevelOK)
	expect(t, found, "dead rows", coordinator.LevelOK)
	expect(t, found, "transaction ids", coordinator.LevelOK)
	for _, check := range []string{"server", "clock", "transactions", "idle transactions", "prepared transactions", "replication slots"} {
		if _, ok := found[check]; !ok {
			t.Errorf("no finding of %q", check)
		}
	}
}

func TestDoctor_Sweeps(t *testing.T) {
	t.Parallel()
	pool, c := newPatient(t)
	for _, name := range coordinator.SweepNames() {
		if _, err := c.Sweep(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, examine(t, c), "sweeps", coordinator.LevelOK, "all of them ran")

	exec(t, pool, "UPDATE pawl.sweep SET ran_at = now() - interval '40 s' WHERE name IN ('sessions', 'dedupe')")
	expect(t, examine(t, c), "sweeps", coordinator.LevelOK) // of 3 × 5 s + 30 s

	exec(t, pool, "UPDATE pawl.sweep SET ran_at = now() - interval '60 s' WHERE name IN ('sessions', 'dedupe')")
	exec(t, pool, "UPDATE pawl.sweep SET error = 'out of order' WHERE name = 'due'")
	exec(t, pool, "DELETE FROM pawl.sweep WHERE name = 'partitions'")
	exec(t, pool, "UPDATE pawl.sweep SET runs = 1000 WHERE name = 'sessions'")
	found := examine(t, c)
	expect(t, found, "sweep sessions", coordinator.LevelBad, "last ran 60 s ago", "pawl serve")
	expect(t, found, "sweep due", coordinator.LevelBad, "out of order")
	expect(t, found, "sweep partitions", coordinator.LevelWarn, "never ran")
	if f, ok := found["sweep dedupe"]; ok {
		t.Errorf("a sweep of every minute is late after one: %+v", f)
	}

	slow, err := coordinator.New(pool, coordinator.Config{Specs: map[string]string{coordinator.SweepSessions: "@every 1h"}})
	if err != nil {
		t.Fatal(err)
	}
	if f, ok := examine(t, slow)["sweep sessions"]; ok {
		t.Errorf("a sweep of every hour is late after a minute: %+v", f)
	}
}

func TestDoctor_Cluster(t *testing.T) {
	t.Parallel()
	pool, c := newPatient(t)
	for _, queue := range []string{"a", "b"} {
		if _, err := job.Define[int]("x", job.Queue(queue)).Enqueue(t.Context(), pool, 1); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, pool, "UPDATE pawl.line SET cluster = 1 WHERE queue_id = (SELECT id FROM pawl.queue WHERE name = 'a')")
	if lines, away, err := c.Moved(t.Context()); lines != 2 || away != 1 || err != nil {
		t.Errorf("Moved: %d, %d, %v; want 2, 1", lines, away, err)
	}
	expect(t, examine(t, c), "cluster", coordinator.LevelBad, "1 of 2 lines", "pawl doctor --rebase")
	if n, err := c.Rebase(t.Context()); n != 1 || err != nil {
		t.Errorf("Rebase: %d, %v", n, err)
	}
	expect(t, examine(t, c), "cluster", coordinator.LevelOK)
}

func TestDoctor_Sessions(t *testing.T) {
	t.Parallel()
	pool, c := newPatient(t)
	var ids []int64
	for range 3 {
		s, err := session.Start(t.Context(), pool, session.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close(context.WithoutCancel(t.Context())) })
		ids = append(ids, s.ID())
	}
	expect(t, examine(t, c), "sessions", coordinator.LevelOK, "3 alive")
	exec(t, pool, "UPDATE pawl.session SET expires_at = now() - interval '45 s' WHERE id = $1", ids[0])
	expect(t, examine(t, c), "sessions", coordinator.LevelWarn, "2 alive", "1 expired", "45 s", "pawl sweep sessions")
	exec(t, pool, "UPDATE pawl.session SET ended_at = now() - interval '10 min' WHERE id = $1", ids[1])
	expect(t, examine(t, c), "sessions", coordinator.LevelBad, "1 alive", "1 expired", "1 ended and not rescued", "10 min")
}

func TestDoctor_Partitions(t *testing.T) {
	t.Parallel()
	pool, c := newPatient(t)
	exec(t, pool, "DELETE FROM pawl.partition p WHERE p.parent = 'claim' AND p.range_from > 0")
	exec(t, pool, "DELETE FROM pawl.partition p WHERE p.parent = 'job' AND p.range_from > 0")
	if _, err := job.Define[int]("x").Enqueue(t.Context(), pool, 1); err != nil {
		t.Fatal(err)
	}
	found := examine(t, c)
	expect(t, found, "partitions of job", coordinator.LevelWarn, "of the last range used", "pawl sweep partitions")
	exec(t, pool, "UPDATE pawl.partition SET range_to = 1500 WHERE parent = 'job'")
	expect(t, examine(t, c), "partitions of job", coordinator.LevelBad, "past it inserts fail")
	exec(t, pool, "UPDATE pawl.partition SET range_to = 1000 WHERE parent = 'job'")
	expect(t, examine(t, c), "partitions of job", coordinator.LevelBad, "no room left")
}

func TestDoctor_Events(t *testing.T) {
	t.Parallel()
	pool, c := newPatient(t)
	if _, err := outbox.Create(t.Context(), pool, outbox.Subscription{Name: "mail"}); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, "SELECT setval('pawl.outbox_event_id', 2000001)")
	until(t, "the range to be complete", func() bool {
		sweep(t, c, coordinator.SweepPartitions)
		return get[bool](t, pool, "SELECT over_at IS NOT NULL FROM pawl.partition WHERE parent = 'outbox_event' AND range_from = 0")
	})
	expect(t, examine(t, c), "events", coordinator.LevelOK)
	older := func(by string) {
		exec(t, pool, "UPDATE pawl.partition SET over_at = over_at - $1::text::interval WHERE over_at IS NOT NULL", by)
	}
	older("7 days 2 hours")
	expect(t, examine(t, c), "events", coordinator.LevelWarn, "2 h ago", "but for mail", "in 23 days it leaves nevertheless", "pawl subscription remove")
	older("21 days")
	expect(t, examine(t, c), "events", coordinator.LevelBad, "in 46 h it leaves nevertheless")
	exec(t, pool, "UPDATE pawl.outbox SET cluster = 1")
	expect(t, examine(t, c), "events", coordinator.LevelBad, "pawl doctor --rebase")
	exec(t, pool, "UPDATE pawl.outbox SET cluster = pawl.cluster()")
	exec(t, pool, "UPDATE pawl.subscription SET missed = 7, missed_from = 1, missed_to = 9, paused_at = now()")
	expect(t, examine(t, c), "events of mail", coordinator.LevelBad, "7 of them, number 1 to 9", "--accept-gap")
	expect(t, examine(t, c), "events", coordinator.LevelOK)
	exec(t, pool, "UPDATE pawl.partition SET leaving_at = now() - interval '2 h' WHERE over_at IS NOT NULL")
	expect(t, examine(t, c), "events", coordinator.LevelWarn, "being dropped since 2 h")
}

func TestDoctor_Transactions(t *testing.T) {
	t.Parallel()
	pool, c := newPatient(t)
	config := pool.Config().ConnConfig.Copy()
	config.RuntimeParams["application_name"] = "forgetful"
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), "BEGIN"); err != nil {
		t.Fatal(err)
	}
	found := examine(t, c)
	if f := found["transactions"]; f.Level != coordinator.LevelOK || f.Value <= 0 {
		t.Errorf("got %+v", f)
	}
	if f := found["idle transactions"]; f.Level != coordinator.LevelOK || f.Value <= 0 || !strings.Contains(f.Message, "pid ") {
		t.Errorf("got %+v", f)
	}
}

func TestDoctor_Prepared(t *testing.T) {
	t.Parallel()
	pool, c := newPatient(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, sql := range []string{"BEGIN", "SELECT pg_current_xact_id()", "PREPARE TRANSACTION 'doctor'"} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _, _ = conn.Exec(context.WithoutCancel(t.Context()), "ROLLBACK PREPARED 'doctor'") }()
	f := examine(t, c)["prepared transactions"]
	if f.Level != coordinator.LevelOK || !strings.Contains(f.Message, "the oldest for") {
		t.Errorf("got %+v", f)
	}
}

// A role that sees little gets findings that say so, rather than an error.
func TestDoctor_Role(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "DO $$ BEGIN CREATE ROLE pawl_doctor_test LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
	exec(t, pool, "GRANT USAGE ON SCHEMA pawl TO pawl_doctor_test")
	exec(t, pool, "GRANT SELECT ON ALL TABLES IN SCHEMA pawl TO pawl_doctor_test")
	t.Cleanup(func() {
		_, _ = pool.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY pawl_doctor_test; DROP ROLE pawl_doctor_test")
	})
	config := pool.Config().Copy()
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET ROLE pawl_doctor_test")
		return err
	}
	limited, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer limited.Close()
	c, err := coordinator.New(limited, coordinator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	found := examine(t, c)
	expect(t, found, "transactions", coordinator.LevelWarn, "pg_monitor")
	expect(t, found, "partitions", coordinator.LevelWarn, "could not be checked", "permission denied")
}

func TestDoctor_ErrSchema(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), dbtest.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	c, err := coordinator.New(pool, coordinator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	found, err := c.Doctor(t.Context())
	if !errors.Is(err, coordinator.ErrSchema) || len(found) == 0 {
		t.Errorf("got %d findings, %v; want those before the schema, and ErrSchema", len(found), err)
	}
	if _, _, err := c.Moved(t.Context()); !errors.Is(err, coordinator.ErrSchema) {
		t.Errorf("Moved: %v", err)
	}
}

func TestDoctor_Unreachable(t *testing.T) {
	t.Parallel()
	pool, c := newPatient(t)
	pool.Close()
	if _, err := c.Doctor(t.Context()); err == nil {
		t.Error("no error without a database")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := c.Doctor(ctx); err == nil {
		t.Error("no error without time")
	}
}
