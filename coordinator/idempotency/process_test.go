package idempotency_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// The tests here run a request in a process of its own: this test binary again, told by the environment what to do.
const (
	envURL   = "PAWL_TEST_IDEMPOTENCY_URL"   // the database
	envBank  = "PAWL_TEST_IDEMPOTENCY_BANK"  // the bank
	envPoint = "PAWL_TEST_IDEMPOTENCY_POINT" // a failpoint
	envHow   = "PAWL_TEST_IDEMPOTENCY_HOW"   // KILL or STOP: the signal that the process sends itself there
)

func TestMain(m *testing.M) {
	if url := os.Getenv(envURL); url != "" {
		child(url)
		return
	}
	os.Exit(m.Run())
}

// child makes one request and prints what came of it.
func child(url string) {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		fmt.Println("failed:", err)
		return
	}
	defer pool.Close()
	woken := make(chan os.Signal, 1)
	signal.Notify(woken, syscall.SIGCONT)
	o := idempotency.WithFail(idempotency.Options{Idle: time.Second}, func(point string) {
		if point != os.Getenv(envPoint) {
			return
		}
		how := syscall.SIGKILL
		if os.Getenv(envHow) == "STOP" {
			how = syscall.SIGSTOP
		}
		_ = syscall.Kill(os.Getpid(), how)
		<-woken // the signal may reach another thread first
	})
	_, _, err = buy(ctx, pool, os.Getenv(envBank), o)
	switch {
	case errors.Is(err, idempotency.ErrLost):
		fmt.Println("lost")
	case errors.Is(err, idempotency.ErrUnknown):
		fmt.Println("unknown")
	default:
		fmt.Println("ended:", err)
	}
}

// start runs a child.
func start(t *testing.T, url, bankURL, point, how string) (cmd *osexec.Cmd, out *bytes.Buffer) {
	t.Helper()
	cmd, out = osexec.Command(os.Args[0], "-test.run=^$"), &bytes.Buffer{}
	cmd.Env = append(os.Environ(), envURL+"="+url, envBank+"="+bankURL, envPoint+"="+point, envHow+"="+how)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, out
}

func shopURL(t *testing.T) (*pgxpool.Pool, string) {
	t.Helper()
	url := dbtest.NewURL(t)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	openShop(t, pool)
	return pool, url
}

// A process is killed at each boundary. Its claim holds until it runs out; then the next request goes on from the newest point: one order, one charge.
func TestPhasesKilled(t *testing.T) {
	t.Parallel()
	for _, at := range buyPoints {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			pool, url := shopURL(t)
			b := newBank(t)
			cmd, out := start(t, url, b.url, at, "KILL")
			if err := cmd.Wait(); err == nil {
				t.Fatalf("the failpoint was not reached: %s", out)
			}
			if at == "order:called" || at == "paid:called" { // its transaction goes when the server finds out
				until(t, "its connection to go", func() bool {
					return count(t, pool, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())") == 0
				})
			}
			if at != "after-answer" {
				if _, _, err := buy(t.Context(), pool, b.url, idempotency.Options{}); !errors.Is(err, idempotency.ErrInFlight) {
					t.Errorf("while its claim holds: %v", err)
				}
				runOut(t, pool)
			}
			answer, replayed, err := buy(t.Context(), pool, b.url, idempotency.Options{})
			checkBought(t, pool, answer, err)
			if replayed != (at == "after-answer") {
				t.Errorf("replayed %t", replayed)
			}
			calls := 1
			if at == "charge:called" {
				calls = 2
			}
			b.check(t, calls)
		})
	}
}

// A process is frozen at each boundary, its claim runs out, another takes it over and finishes; then it wakes up, finds out, and has written nothing more. One that was frozen in
// the middle of a transaction holds the key until Postgres ends that.
func TestPhasesStopped(t *testing.T) {
	t.Parallel()
	for _, at := range buyPoints[:8] {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			pool, url := shopURL(t)
			b := newBank(t)
			cmd, out := start(t, url, b.url, at, "STOP")
			until(t, "the process to stop itself", func() bool {
				stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
				return err == nil && strings.Contains(string(stat[bytes.LastIndexByte(stat, ')'):]), " T ")
			})
			runOut(t, pool)
			answer, replayed, err := buy(t.Context(), pool, b.url, idempotency.Options{Wait: patience})
			checkBought(t, pool, answer, err)
			if replayed {
				t.Error("replayed")
			}
			if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			inTx := at == "order:called" || at == "paid:called" // and its connection is gone
			if got := strings.TrimSpace(out.String()); got == "ended: <nil>" || got != "lost" && !inTx {
				t.Errorf("it says %q", got)
			}
			answer, replayed, err = buy(t.Context(), pool, b.url, idempotency.Options{})
			checkBought(t, pool, answer, err)
			if !replayed {
				t.Error("not replayed")
			}
			calls := 1
			if at == "charge:called" {
				calls = 2
			}
			b.check(t, calls)
		})
	}
}
