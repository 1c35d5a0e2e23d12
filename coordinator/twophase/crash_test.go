package twophase_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// The tests here run transactions in processes of their own: this test binary again, told by the environment what to do.
const (
	envURLs    = "PAWL_TEST_TWOPHASE_URLS"    // the coordinator's database, east and west
	envAmounts = "PAWL_TEST_TWOPHASE_AMOUNTS" // what to add to which
	envPoint   = "PAWL_TEST_TWOPHASE_POINT"   // where the process kills itself
)

func TestMain(m *testing.M) {
	if urls := os.Getenv(envURLs); urls != "" {
		if err := child(strings.Fields(urls), strings.Fields(os.Getenv(envAmounts)), os.Getenv(envPoint)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(urls, names []string, point string) error {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	var pools []*pgxpool.Pool
	for _, url := range urls {
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			return err
		}
		pools = append(pools, pool)
	}
	b := &bank{pool: pools[0], east: twophase.Postgres("east", pools[1]), west: twophase.Postgres("west", pools[2]), at: map[string]func(){
		point: func() {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // it is on its way
		},
	}}
	m, err := twophase.New(b.pool, twophase.Failing(twophase.Config{Logger: slog.New(slog.DiscardHandler)}, b.passed), b.east, b.west)
	if err != nil {
		return err
	}
	amounts := map[string]int{}
	for _, name := range names {
		amounts[name] = 7
	}
	return m.Run(ctx, patient(ctx, b.transfer(amounts)), twophase.Timeout(time.Second))
}

// crash runs a transaction that adds 7 to each of names in a process that kills itself at a point.
func (b *bank) crash(point string, names ...string) {
	b.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(b.Context(), exe)
	urls := []string{b.pools["own"].Config().ConnString(), b.pools["east"].Config().ConnString(), b.pools["west"].Config().ConnString()}
	cmd.Env = append(os.Environ(), envURLs+"="+strings.Join(urls, " "), envAmounts+"="+strings.Join(names, " "), envPoint+"="+point)
	cmd.Stderr = os.Stderr
	err = cmd.Run()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		b.Fatalf("at %q: the process was not killed there: %v", point, err)
	}
}

// settled recovers until nothing is prepared.
func (b *bank) settled(m *twophase.Manager) {
	b.Helper()
	ctx, stop := context.WithTimeout(b.Context(), patience)
	defer stop()
	for {
		if _, err := m.Recover(ctx, twophase.KeepDefault); err != nil {
			b.Fatalf("recover: %v", err)
		}
		left := 0
		for _, name := range []string{"east", "west"} {
			left += b.count(name, "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()")
		}
		if left == 0 {
			return
		}
	}
}

// A coordinator that dies before the commit point has done nothing, and one that dies behind it everything, wherever it dies. Nothing is left prepared.
func TestCrash(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	t.Parallel()
	for _, test := range []struct {
		names, point string
		committed    bool
	}{
		{"east west", "prepared east", false},
		{"east west", "prepared west", false},
		{"east west", "voted", false},
		{"east west", "deciding", false},
		{"east west", "decided", true},
		{"east west", "committed east", true},
		{"east west", "committed west", true},
		{"east own", "prepared east", false},
		{"east own", "voted", false},
		{"east own", "decided", true},
		{"east own", "committed east", true},
		{"east west own", "voted", false},
		{"east west own", "decided", true},
	} {
		t.Run(test.names+" at "+test.point, func(t *testing.T) {
			t.Parallel()
			b := newBank(t)
			b.crash(test.point, strings.Fields(test.names)...)
			b.settled(b.manager())
			want := map[string]int{}
			if test.committed {
				for _, name := range strings.Fields(test.names) {
					want[name] = 7
				}
			}
			b.want(want["east"], want["west"], want["own"])
			b.recover(b.manager(), 0, 0, 0)
			if n := b.count("own", "SELECT count(*) FROM pawl.global_doubt"); n != 0 {
				t.Errorf("got %d doubts", n)
			}
		})
	}
}

// Before its deadline nobody aborts a transaction that is prepared and undecided.
func TestRecover_deadline(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	b.at["voted"] = func() { b.recover(b.manager(), 0, 0, 0) }
	if err := b.manager().Run(t.Context(), b.transfer(map[string]int{"east": 1, "west": 1})); err != nil {
		t.Error(err)
	}
	b.want(1, 1, 0)
}

// Recovery, of several managers at once, races with a coordinator that is slow to decide: one of them is first, and all agree.
func TestRecover_race(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	committed, aborted := 0, 0
	for i := range 6 {
		m := b.manager()
		b.at["voted"] = func() {
			if i%2 == 0 { // well past the deadline: it is aborted by recovery, or by the decision itself
				b.settledOrDue(t.Context())
			}
		}
		done := make(chan error)
		for range 2 {
			go func() {
				for t.Context().Err() == nil {
					if _, err := b.manager().Recover(t.Context(), twophase.KeepDefault); err != nil {
						done <- err
						return
					}
					select {
					case done <- nil:
						return
					default:
					}
				}
			}()
		}
		err := m.Run(t.Context(), patient(t.Context(), b.transfer(map[string]int{"east": 1, "west": -1})), twophase.Timeout(time.Second))
		switch {
		case err == nil:
			committed++
		case errors.Is(err, twophase.ErrAborted):
			aborted++
		default:
			t.Errorf("got %v", err)
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("recover: %v", err)
			}
		}
		b.settled(b.manager())
		b.want(committed, -committed, 0)
	}
	if committed == 0 || aborted == 0 {
		t.Errorf("got %d committed, %d aborted, want some of each", committed, aborted)
	}
}

// settledOrDue waits until the server's clock is past the deadlines of now.
func (b *bank) settledOrDue(ctx context.Context) {
	_, _ = b.pool.Exec(ctx, "SELECT pg_sleep(2.1)")
}

// Replies that are lost, of each statement that matters, and statements that never come: what Commit says is true, and all agree.
func TestCommit_lostReplies(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ names, where, statement string }{
		{"own", "own", "COMMIT"},
		{"east", "east", "COMMIT"},
		{"east west", "east", "PREPARE TRANSACTION"},
		{"east west", "own", "INTO pawl.global_decision"},
		{"east west", "east", "COMMIT PREPARED"},
		{"east own", "east", "PREPARE TRANSACTION"},
		{"east own", "own", "COMMIT"},
		{"east own", "east", "COMMIT PREPARED"},
	} {
		for what, how := range map[int32]string{dbtest.DropCommit: "does not come", dbtest.DropReply: "its reply is lost"} {
			t.Run(fmt.Sprint(test.names, ": ", test.statement, " at ", test.where, " ", how), func(t *testing.T) {
				t.Parallel()
				testLost(t, test.names, test.where, test.statement, what, 4)
			})
		}
	}
}

// Where all connections of a pool are lost at once, as when its server starts again, their places are free for who asks what became of it.
func TestCommit_lostPool(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ names, where, statement string }{
		{"east", "east", "COMMIT"}, {"east west", "east", "PREPARE TRANSACTION"}, {"east west", "east", "COMMIT PREPARED"}, {"east own", "own", "COMMIT"},
	} {
		t.Run(test.names+": "+test.statement, func(t *testing.T) {
			t.Parallel()
			testLost(t, test.names, test.where, test.statement, dbtest.DropReply, 1)
		})
	}
}

func testLost(t *testing.T, names, where, statement string, what, conns int32) {
	b := newBank(t)
	proxy, pool := dbtest.NewProxy(t, b.pools[where], conns)
	proxy.Take(statement)
	own, east := b.pool, b.east
	if where == "own" {
		own = pool
	} else {
		east = twophase.Postgres("east", pool)
	}
	m, err := twophase.New(own, twophase.Config{Logger: slog.New(slog.DiscardHandler)}, east, b.west)
	if err != nil {
		t.Fatal(err)
	}
	through := &bank{TB: t, pool: b.pool, east: east, west: b.west}
	amounts := map[string]int{}
	for _, name := range strings.Fields(names) {
		amounts[name] = 1
	}
	var id string
	err = m.Run(t.Context(), patient(t.Context(), func(ctx context.Context, tx *twophase.Tx) error {
		id = tx.ID()
		err := through.transfer(amounts)(ctx, tx)
		proxy.Commit.Store(what)
		return err
	}), twophase.Timeout(time.Second))
	if conns == 1 && strings.HasSuffix(statement, "COMMIT") && err != nil {
		t.Errorf("got %v, want it committed", err)
	}
	if proxy.Commit.Load() != dbtest.PassCommit {
		t.Error("nothing was lost")
	}
	b.settled(b.manager())
	want := map[string]int{}
	if err == nil {
		want = amounts
	} else if !errors.Is(err, twophase.ErrAborted) && (names != "own" || !errors.Is(err, twophase.ErrUnknown)) {
		t.Errorf("%s: got %v", id, err)
	}
	if errors.Is(err, twophase.ErrUnknown) {
		want["own"] = b.amount("own") - opening
	}
	b.want(want["east"], want["west"], want["own"])
}

// An operator finishes branches by hand, in the way of what is decided or the other: the first is nothing, the second is mixed, and shown until somebody has dealt with it.
func TestRecover_byHand(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		point, what string
		mixed       bool
		east, west  int
	}{
		{"decided", "COMMIT", false, 7, 7},
		{"decided", "ROLLBACK", true, 0, 7},
		{"voted", "ROLLBACK", false, 0, 0},
		{"voted", "COMMIT", true, 7, 0},
	} {
		t.Run(test.what+" when "+test.point, func(t *testing.T) {
			t.Parallel()
			b := newBank(t)
			b.crash(test.point, "east", "west")
			b.byHand("east", test.what)
			m := b.manager()
			b.settled(m)
			for test.point == "decided" && b.count("own", "SELECT count(*) FROM pawl.global_end") == 0 { // past the time that its coordinator has
				b.exec("own", "UPDATE pawl.global_decision SET decided_at = decided_at - interval '1 min'")
				if _, err := b.manager().Recover(t.Context(), twophase.KeepDefault); err != nil {
					t.Fatal(err)
				}
			}
			b.want(test.east, test.west, 0)
			doubts, err := m.Doubts(t.Context(), false, 10)
			if err != nil {
				t.Fatal(err)
			}
			if !test.mixed {
				if len(doubts) != 0 {
					t.Errorf("got %+v, want no doubts", doubts)
				}
				return
			}
			if len(doubts) != 1 || doubts[0].What != twophase.Mixed || doubts[0].Branch.Participant != "east" || doubts[0].Detail == "" {
				t.Fatalf("got %+v, want one that is mixed at east", doubts)
			}
			id := doubts[0].Branch.ID.String()
			if err := m.Accept(t.Context(), id, "Ada", "booked by hand"); err != nil {
				t.Error(err)
			}
			if err := m.Accept(t.Context(), id, "Ada", "again"); !errors.Is(err, twophase.ErrNotFound) {
				t.Errorf("got %v, want ErrNotFound", err)
			}
			if doubts, err := m.Doubts(t.Context(), false, 10); err != nil || len(doubts) != 0 {
				t.Errorf("got %+v, %v, want no doubts", doubts, err)
			}
			if doubts, err := m.Doubts(t.Context(), true, 10); err != nil || len(doubts) != 1 || doubts[0].ResolvedBy != "Ada" || doubts[0].Reason != "booked by hand" {
				t.Errorf("got %+v, %v", doubts, err)
			}
		})
	}
}

// Of a transaction that began before the coordinator's database was restored nothing is presumed: a person decides.
func TestRecover_restored(t *testing.T) {
	t.Parallel()
	for name, restore := range map[string]func(*bank, *twophase.Manager){
		"another incarnation": func(b *bank, m *twophase.Manager) {
			if _, err := m.Restored(b.Context()); err != nil {
				b.Fatal(err)
			}
		},
		"an older log": func(b *bank, _ *twophase.Manager) {
			b.exec("east", "UPDATE pawl_branch.home SET lsn = lsn + (1::bigint << 40)")
			b.exec("west", "UPDATE pawl_branch.home SET lsn = lsn + (1::bigint << 40)")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBank(t)
			m := b.manager()
			b.recover(m, 0, 0, 0) // participants see how far the log is
			b.crash("voted", "east", "west")
			restore(b, m)
			b.settledOrDue(t.Context())
			b.recover(m, 0, 0, 2)
			doubts, err := m.Doubts(t.Context(), false, 10)
			if err != nil || len(doubts) != 2 || doubts[0].What != twophase.Undecided {
				t.Fatalf("got %+v, %v, want two that are undecided", doubts, err)
			}
			id := doubts[0].Branch.ID.String()
			if err := m.Resolve(t.Context(), id, true, "Ada", "the other side says that it was committed"); err != nil {
				t.Fatal(err)
			}
			if err := m.Resolve(t.Context(), id, false, "Bob", "no"); !errors.Is(err, twophase.ErrDecided) {
				t.Errorf("got %v, want ErrDecided", err)
			}
			b.recover(m, 2, 0, 0)
			b.want(7, 7, 0)
			if doubts, err := m.Doubts(t.Context(), true, 10); err != nil || len(doubts) != 0 {
				t.Errorf("got %+v, %v, want no doubts", doubts, err)
			}
		})
	}
}

// Slots that are used up, and a role that may not finish what another has prepared.
func TestRecover_refused(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	b.crash("decided", "east", "west")
	role := fmt.Sprintf("pawl_test_%d", os.Getpid())
	b.exec("east", "CREATE ROLE "+role+" LOGIN")
	t.Cleanup(func() {
		_, _ = b.pools["east"].Exec(context.Background(), "DROP OWNED BY "+role)
		_, _ = b.pools["east"].Exec(context.Background(), "DROP ROLE "+role)
	})
	b.exec("east", "GRANT USAGE ON SCHEMA pawl_branch TO "+role+"; GRANT ALL ON ALL TABLES IN SCHEMA pawl_branch TO "+role)
	conf := b.pools["east"].Config()
	conf.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET SESSION AUTHORIZATION "+role)
		return err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	other, err := twophase.New(b.pool, twophase.Config{Logger: slog.New(slog.DiscardHandler)}, twophase.Postgres("east", pool), b.west)
	if err != nil {
		t.Fatal(err)
	}
	r, err := other.Recover(t.Context(), twophase.KeepDefault)
	if err == nil || !strings.Contains(err.Error(), "permission denied") || r.Committed != 1 || r.Doubts != 1 {
		t.Errorf("got %+v, %v, want west committed and east refused", r, err)
	}
	if doubts, err := other.Doubts(t.Context(), false, 10); err != nil || len(doubts) != 1 || doubts[0].What != twophase.Unfinished || !strings.Contains(doubts[0].Detail, "permission denied") {
		t.Errorf("got %+v, %v", doubts, err)
	}
	b.settled(b.manager())
	b.want(7, 7, 0)
	if doubts, err := other.Doubts(t.Context(), true, 10); err != nil || len(doubts) != 0 {
		t.Errorf("got %+v, %v, want no doubts", doubts, err)
	}
}
