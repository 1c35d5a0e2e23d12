package coordinator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	osexec "os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// What a process that transfers works on, and at which statement to a participant it kills itself, before that is sent.
const (
	envTransfer = "PAWL_TEST_TRANSFER_URLS"
	envKill     = "PAWL_TEST_TRANSFER_KILL"
)

// transfer moves 5 from east to west, unless it kills itself.
func transfer(urls []string, at string) error {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	var pools []*pgxpool.Pool
	for _, url := range urls {
		conf, err := pgxpool.ParseConfig(url)
		if err != nil {
			return err
		}
		dial := conf.ConnConfig.DialFunc
		conf.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			return &deadly{conn, at}, err
		}
		pool, err := pgxpool.NewWithConfig(ctx, conf)
		if err != nil {
			return err
		}
		pools = append(pools, pool)
	}
	east, west := twophase.Postgres("east", pools[1]), twophase.Postgres("west", pools[2])
	m, err := twophase.New(pools[0], twophase.Config{}, east, west)
	if err != nil {
		return err
	}
	return m.Run(ctx, func(_ context.Context, t *twophase.Tx) error { // for as long as it takes
		for p, n := range map[*twophase.PostgresDB]int{east: -5, west: 5} {
			tx, err := p.Tx(ctx, t)
			if err == nil {
				_, err = tx.Exec(ctx, "UPDATE account SET amount = amount + $1", n)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}, twophase.Timeout(time.Second))
}

// deadly is a connection that kills the process before it sends a text.
type deadly struct {
	net.Conn
	text string
}

func (d *deadly) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(d.text)) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // it is on its way
	}
	return d.Conn.Write(p)
}

// accounts are a coordinator's database and two participants, each with an account of 100.
type accounts struct {
	own        *pgxpool.Pool
	pools      map[string]*pgxpool.Pool
	east, west *twophase.PostgresDB
}

func newAccounts(t *testing.T) *accounts {
	t.Helper()
	a := &accounts{own: dbtest.New(t), pools: map[string]*pgxpool.Pool{}}
	for _, name := range []string{"east", "west"} {
		pool, err := pgxpool.New(t.Context(), dbtest.EmptyURL(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		a.pools[name] = pool
		exec(t, pool, "CREATE TABLE account AS SELECT 100 AS amount")
	}
	a.east, a.west = twophase.Postgres("east", a.pools["east"]), twophase.Postgres("west", a.pools["west"])
	for _, p := range []*twophase.PostgresDB{a.east, a.west} {
		if err := p.Setup(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // what is prepared keeps a database from being dropped
		for _, pool := range a.pools {
			for _, gid := range get[[]string](t, pool, "SELECT array(SELECT gid FROM pg_prepared_xacts WHERE database = current_database())") {
				exec(t, pool, "ROLLBACK PREPARED '"+gid+"'")
			}
		}
	})
	return a
}

// crash transfers in a process that kills itself at a statement.
func (a *accounts) crash(t *testing.T, at string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := osexec.CommandContext(t.Context(), exe)
	urls := []string{a.own.Config().ConnString(), a.pools["east"].Config().ConnString(), a.pools["west"].Config().ConnString()}
	cmd.Env, cmd.Stderr = append(os.Environ(), envTransfer+"="+strings.Join(urls, " "), envKill+"="+at), os.Stderr
	err = cmd.Run()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the process was not killed at %q: %v", at, err)
	}
}

func (a *accounts) prepared(t *testing.T, name string) int {
	t.Helper()
	return get[int](t, a.pools[name], "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()")
}

func (a *accounts) coordinator(t *testing.T, log io.Writer, participants ...twophase.Participant) *coordinator.Coordinator {
	t.Helper()
	m, err := twophase.New(a.own, twophase.Config{Logger: slog.New(slog.DiscardHandler)}, participants...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := coordinator.New(a.own, coordinator.Config{Global: m, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What a coordinator that was killed has left prepared, the others settle within 12 s of its deadline, though they began to run before: committed behind its commit point, else rolled back.
func TestInDoubt(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes, and waits for deadlines")
	}
	t.Parallel()
	for at, want := range map[string]int{"COMMIT PREPARED": 95, "INTO pawl.global_decision": 100} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			a := newAccounts(t)
			ctx, stop := context.WithCancel(t.Context())
			var nodes sync.WaitGroup
			for range 2 {
				c := a.coordinator(t, io.Discard, a.east, a.west)
				nodes.Go(func() {
					if err := c.Run(ctx); err != nil {
						t.Error(err)
					}
				})
			}
			defer nodes.Wait()
			defer stop()
			until(t, "a first sweep", func() bool {
				return get[bool](t, a.own, "SELECT EXISTS (SELECT FROM pawl.sweep WHERE name = 'in-doubt')")
			})
			a.crash(t, at)
			var deadline time.Time
			if gids := get[[]string](t, a.pools["east"], "SELECT array(SELECT gid FROM pg_prepared_xacts WHERE database = current_database())"); len(gids) == 1 {
				id, err := twophase.ParseBranchID(gids[0])
				if err != nil {
					t.Fatal(err)
				}
				deadline = id.Deadline
			} else {
				deadline = get[time.Time](t, a.own, "SELECT clock_timestamp()") // settled by now
			}
			until(t, "all is settled", func() bool { return a.prepared(t, "east")+a.prepared(t, "west") == 0 })
			if late := get[time.Time](t, a.own, "SELECT clock_timestamp()").Sub(deadline); late > 12*time.Second {
				t.Errorf("settled %s after the deadline", late)
			} else {
				t.Logf("settled %s after the deadline", late)
			}
			if east, west := get[int](t, a.pools["east"], "SELECT amount FROM account"), get[int](t, a.pools["west"], "SELECT amount FROM account"); east != want || west != 200-want {
				t.Errorf("got %d and %d, want %d and %d", east, west, want, 200-want)
			}
		})
	}
}

// A participant that takes connections and says nothing does not make another's crashed transactions wait for longer.
func TestInDoubt_silent(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes, and waits for deadlines")
	}
	t.Parallel()
	a := newAccounts(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	pool, err := pgxpool.New(t.Context(), "postgres://nobody@"+listener.Addr().String()+"/nothing?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	c := a.coordinator(t, io.Discard, a.east, twophase.Postgres("west", pool))
	ctx, stop := context.WithCancel(t.Context())
	var node sync.WaitGroup
	defer node.Wait()
	defer stop()
	node.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	passes := func() int64 {
		return get[int64](t, a.own, "SELECT coalesce((SELECT runs FROM pawl.sweep WHERE name = 'in-doubt'), 0)")
	}
	until(t, "two passes", func() bool { return passes() >= 2 }) // none is about to begin for the first time
	a.crash(t, "COMMIT PREPARED")
	died := get[time.Time](t, a.own, "SELECT clock_timestamp()")
	until(t, "east is settled", func() bool { return a.prepared(t, "east") == 0 })
	if late := get[time.Time](t, a.own, "SELECT clock_timestamp()").Sub(died); late > 12*time.Second {
		t.Errorf("settled after %s", late)
	} else {
		t.Logf("settled after %s", late)
	}
}

// A participant that cannot be reached holds up no other. It is told once, as is its return.
func TestInDoubt_unreached(t *testing.T) {
	t.Parallel()
	a := newAccounts(t)
	a.crash(t, "COMMIT PREPARED")
	conf := a.pools["west"].Config()
	var mu sync.Mutex
	down := true
	dial := conf.ConnConfig.DialFunc
	conf.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if down {
			return nil, errors.New("no route to west")
		}
		return dial(ctx, network, addr)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	log := &lines{}
	c := a.coordinator(t, log, a.east, twophase.Postgres("west", pool))
	for range 3 {
		if _, err := c.Sweep(t.Context(), coordinator.SweepInDoubt); err == nil || !strings.Contains(err.Error(), "no route to west") {
			t.Errorf("got %v, want that west cannot be reached", err)
		}
	}
	if east, west := a.prepared(t, "east"), a.prepared(t, "west"); east != 0 || west != 1 {
		t.Errorf("got %d and %d prepared, want 0 and 1", east, west)
	}
	statuses, err := c.Statuses(t.Context())
	i := slices.IndexFunc(statuses, func(s coordinator.Status) bool { return s.Name == coordinator.SweepInDoubt })
	if err != nil || i < 0 || !strings.Contains(statuses[i].Error, "no route to west") || statuses[i].DidTotal != 1 {
		t.Errorf("got %+v, %v", statuses, err)
	}
	found := examine(t, c)
	expect(t, found, "recovery at west", coordinator.LevelBad, "no route to west")
	expect(t, found, "participant west", coordinator.LevelBad, "cannot be asked", "no route to west")
	expect(t, found, "participant east", coordinator.LevelOK, "PostgreSQL")
	mu.Lock()
	down = false
	mu.Unlock()
	if r := sweep(t, c, coordinator.SweepInDoubt); r.Did == 0 {
		t.Errorf("got %+v", r)
	}
	if n := a.prepared(t, "west"); n != 0 {
		t.Errorf("got %d prepared", n)
	}
	if n := log.count("hinders their recovery, which goes on"); n != 1 {
		t.Errorf("told %d times that west is hindered, want once:\n%s", n, log)
	}
	if n := log.count("hinders their recovery no more"); n != 1 {
		t.Errorf("told %d times that west is back, want once:\n%s", n, log)
	}
}

// lines are what is logged.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) count(text string) int { return strings.Count(l.String(), text) }

// A rebase forbids to presume anything of transactions from before: what is prepared and undecided waits for a person, and the doctor says so.
func TestRebaseGlobal(t *testing.T) {
	t.Parallel()
	a := newAccounts(t)
	a.crash(t, "INTO pawl.global_decision")
	c := a.coordinator(t, io.Discard, a.east, a.west)
	exec(t, a.own, "SELECT pawl.enqueue('1', 'default', 'k', '{}')")
	exec(t, a.own, "UPDATE pawl.line SET cluster = cluster + 1")
	if n, err := c.Rebase(t.Context()); n != 1 || err != nil {
		t.Fatalf("rebase: %d, %v", n, err)
	}
	exec(t, a.own, "SELECT pg_sleep(2.1)") // past the deadline
	sweep(t, c, coordinator.SweepInDoubt)
	if east, west := a.prepared(t, "east"), a.prepared(t, "west"); east != 1 || west != 1 {
		t.Errorf("got %d and %d prepared, want both", east, west)
	}
	expect(t, examine(t, c), "global transactions", coordinator.LevelBad, "2 branches need a person", "pawl tx list")
	if n, err := c.Rebase(t.Context()); n != 0 || err != nil {
		t.Errorf("rebase: %d, %v", n, err)
	}
	if n := get[int](t, a.own, "SELECT incarnation FROM pawl.global_home"); n != 1 {
		t.Errorf("got incarnation %d, want 1: there was nothing to rebase", n)
	}
}

func TestDoctor_global(t *testing.T) {
	t.Parallel()
	a := newAccounts(t)
	c := a.coordinator(t, io.Discard, a.east, a.west)
	sweep(t, c, coordinator.SweepInDoubt)
	found := examine(t, c)
	for _, check := range []string{"global transactions", "participant east", "prepares of east", "rights at east", "prepared at east", "participant west"} {
		expect(t, found, check, coordinator.LevelOK)
	}
	t.Run("not set up", func(t *testing.T) {
		exec(t, a.pools["east"], "DROP SCHEMA pawl_branch CASCADE")
		expect(t, examine(t, c), "rights at east", coordinator.LevelBad, "pawl_branch", "pawl tx setup")
		if err := a.east.Setup(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("rights", func(t *testing.T) {
		role := fmt.Sprintf("pawl_test_doctor_%d", os.Getpid())
		exec(t, a.own, "CREATE ROLE "+role)
		t.Cleanup(func() { exec(t, a.own, "DROP ROLE "+role) })
		a.crash(t, "COMMIT PREPARED")
		conf := a.pools["east"].Config()
		conf.ConnConfig.RuntimeParams["role"] = role
		pool, err := pgxpool.NewWithConfig(t.Context(), conf)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		found := examine(t, a.coordinator(t, io.Discard, twophase.Postgres("east", pool)))
		expect(t, found, "rights at east", coordinator.LevelBad, role, "INSERT on witness", "UPDATE on home", "GRANT")
		expect(t, found, "prepared at east", coordinator.LevelBad, "1 were prepared by other roles", role)
	})
	t.Run("not settled", func(t *testing.T) {
		exec(t, a.own, "UPDATE pawl.global_participant SET tried_at = tried_at - interval '10 min', seen_at = seen_at - interval '10 min'")
		found := examine(t, c)
		expect(t, found, "recovery at east", coordinator.LevelWarn, "no coordinator was at it for 10 min", "pawl serve --participant")
		var id string
		ago := func(d string) {
			id = strings.ReplaceAll(get[string](t, a.own, "SELECT lpad(to_hex((extract(epoch FROM clock_timestamp() - $1::interval) * 1000)::bigint), 12, '0') || '7000800000000000000a'", d), "-", "")
			exec(t, a.own, "UPDATE pawl.global_decision SET id = $1::uuid, decided_at = clock_timestamp() - $2::interval", id, d)
		}
		ago("30 s")
		expect(t, examine(t, c), "global transactions", coordinator.LevelOK)
		ago("2 min")
		expect(t, examine(t, c), "global transactions", coordinator.LevelWarn, "up to 2 min", "pawl tx list")
		ago("1 hour")
		expect(t, examine(t, c), "global transactions", coordinator.LevelBad, "up to 60 min")
	})
	t.Run("foreign", func(t *testing.T) {
		exec(t, a.pools["west"], "BEGIN; CREATE TABLE x (); PREPARE TRANSACTION 'theirs'")
		expect(t, examine(t, c), "others' prepared at west", coordinator.LevelOK)
	})
}
