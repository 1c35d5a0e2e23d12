package coordinator_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/db/devpg"
)

// envLocker is the database for a process that takes locks.
const envLocker = "PAWL_TEST_LOCKER_URL"

func TestMain(m *testing.M) {
	if url := os.Getenv(envLocker); url != "" {
		if err := locker(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if urls := os.Getenv(envTransfer); urls != "" {
		if err := transfer(strings.Fields(urls), os.Getenv(envKill)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// The history is made by processes*goroutines clients on these many names.
const (
	historyProcesses  = 4
	historyGoroutines = 4
	historyNames      = 10
)

// event is an operation that a client saw the end of.
type event struct {
	Op     string // acquire, assert, release, lost
	Name   string
	Token  int64
	Call   int64 // ns
	Return int64
}

// locker takes locks until its standard input ends, and writes each operation to its standard output as it ends.
func locker(url string) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	conf, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	conf.ConnConfig.RuntimeParams["application_name"] = "locker"
	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		return err
	}
	defer pool.Close()
	var l *lock.Locks
	for l == nil { // the server may just be down
		if l, err = lock.Open(ctx, pool, lock.Config{Name: "locker", TTL: time.Second, PollInterval: 50 * time.Millisecond}); err != nil && ctx.Err() != nil {
			return nil
		}
	}
	var wg sync.WaitGroup
	for range historyGoroutines {
		wg.Go(func() {
			for ctx.Err() == nil {
				lockOnce(ctx, pool, l, fmt.Sprintf("history-%d", rand.N(historyNames)))
			}
		})
	}
	wg.Wait()
	return l.Close(context.Background())
}

func lockOnce(ctx context.Context, pool *pgxpool.Pool, l *lock.Locks, name string) {
	tell := func(op string, token, call int64) {
		line, _ := json.Marshal(event{op, name, token, call, time.Now().UnixNano()})
		_, _ = os.Stdout.Write(append(line, '\n')) // one write: a line is there whole or not at all
	}
	opts := []lock.Option{lock.Wait(2 * time.Second)}
	if rand.N(5) == 0 {
		opts = []lock.Option{lock.Wait(0)}
	}
	call := time.Now().UnixNano()
	lease, err := l.Acquire(ctx, name, opts...)
	if err != nil {
		return
	}
	tell("acquire", lease.Token(), call)
	if rand.N(4) == 0 {
		call = time.Now().UnixNano()
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if err := lease.Assert(ctx, tx); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO fenced (name, token) VALUES ($1, $2)", name, lease.Token())
			return err
		})
		if err == nil {
			tell("assert", lease.Token(), call)
		}
	}
	rctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	call = time.Now().UnixNano()
	switch err := lease.Release(rctx); {
	case err == nil:
		tell("release", lease.Token(), call)
	case errors.Is(err, lock.ErrLost):
		tell("lost", lease.Token(), call)
	}
}

// history collects what the processes tell.
type history struct {
	tb     testing.TB
	mu     sync.Mutex
	grown  *sync.Cond
	events []event
	procs  []*lockerProcess
}

type lockerProcess struct {
	cmd    *osexec.Cmd
	in     io.Closer
	killed atomic.Bool
	done   chan struct{}
}

func (p *lockerProcess) kill() {
	p.killed.Store(true)
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (h *history) start(url string) *lockerProcess {
	cmd := osexec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), envLocker+"="+url)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		h.tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.tb.Fatal(err)
	}
	p := &lockerProcess{cmd: cmd, in: in, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var e event
			if json.Unmarshal(lines.Bytes(), &e) != nil {
				continue // the last one of a process that was killed
			}
			h.mu.Lock()
			h.events = append(h.events, e)
			h.mu.Unlock()
			h.grown.Broadcast()
		}
		if err := cmd.Wait(); err != nil && !p.killed.Load() {
			h.tb.Errorf("a process that took locks: %v", err)
		}
	}()
	h.tb.Cleanup(p.kill)
	return p
}

// await waits until there are n events.
func (h *history) await(n int) {
	late := time.AfterFunc(5*time.Minute, func() { panic(fmt.Sprintf("the history does not grow to %d", n)) })
	defer late.Stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.events) < n {
		h.grown.Wait()
	}
}

// lockState is the model: who holds a lock, and the newest token.
type lockState struct{ holder, newest int64 }

type lockInput struct {
	op    string
	token int64
}

var lockModel = porcupine.Model{
	Init: func() any { return lockState{} },
	Step: func(state, input, _ any) (bool, any) {
		s, in := state.(lockState), input.(lockInput)
		switch in.op {
		case "acquire":
			return s.holder == 0 && in.token > s.newest, lockState{in.token, in.token}
		case "assert":
			return s.holder == in.token, s
		default: // the end of a hold
			return s.holder == in.token, lockState{0, s.newest}
		}
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprint(input) },
}

// operations gives the history of each name. Each grant ends once: when its release says so; at a time unknown, and maybe never, if it was lost, its process died or its
// release had no reply.
func operations(events []event) map[string][]porcupine.Operation {
	ends := map[string]event{}
	key := func(e event) string { return fmt.Sprint(e.Name, e.Token) }
	for _, e := range events {
		if e.Op == "release" {
			ends[key(e)] = e
		}
	}
	ops := map[string][]porcupine.Operation{}
	add := func(e event, op string) {
		ops[e.Name] = append(ops[e.Name], porcupine.Operation{ClientId: len(ops[e.Name]), Input: lockInput{op, e.Token}, Call: e.Call, Return: e.Return})
	}
	for _, e := range events {
		switch e.Op {
		case "assert":
			add(e, "assert")
		case "acquire":
			add(e, "acquire")
			end, ok := ends[key(e)]
			if !ok {
				end = event{Name: e.Name, Token: e.Token, Call: e.Call, Return: math.MaxInt64}
			}
			add(end, "end")
		}
	}
	return ops
}

// TestLockHistory has processes take locks while they are killed and stopped, their connections cut and the server crashed. What they saw must be possible if one
// at a time held each lock, under tokens that rise, and what was written under Assert is in the order of tokens.
func TestLockHistory(t *testing.T) {
	t.Parallel()
	operationsMin := 100_000
	if testing.Short() {
		operationsMin = 5_000
	}
	server := dbtest.Private(t, devpg.Config{})
	url := server.URL(dbtest.PrivateDatabase)
	pool, err := pgxpool.New(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ctx := context.Background()
	if _, err := pool.Exec(ctx, "CREATE TABLE fenced (seq bigint GENERATED ALWAYS AS IDENTITY, name text, token bigint)"); err != nil {
		t.Fatal(err)
	}
	c, err := coordinator.New(pool, coordinator.Config{Specs: map[string]string{coordinator.SweepSessions: "@every 1s", coordinator.SweepLocks: "@every 1s"}})
	if err != nil {
		t.Fatal(err)
	}
	sweeping, stopSweeps := context.WithCancel(ctx)
	defer stopSweeps()
	go func() { _ = c.Run(sweeping) }()

	h := &history{tb: t}
	h.grown = sync.NewCond(&h.mu)
	for range historyProcesses {
		h.procs = append(h.procs, h.start(url))
	}
	var wg sync.WaitGroup
	const blows = 24
	for i := range blows {
		h.await(operationsMin * (i + 1) / (blows + 1))
		p := rand.N(historyProcesses)
		switch victim := h.procs[p]; {
		case i%12 == 5: // the server crashes
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			if server, err = devpg.Start(ctx, server.Config()); err != nil {
				t.Fatal(err)
			}
		case i%3 == 0:
			victim.kill()
			h.procs[p] = h.start(url)
		case i%3 == 1: // stopped until its session is over
			_ = victim.cmd.Process.Signal(syscall.SIGSTOP)
			wg.Go(func() {
				defer func() { _ = victim.cmd.Process.Signal(syscall.SIGCONT) }()
				for {
					var open bool
					err := pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pawl.session, pg_sleep(0.02) WHERE pid = $1 AND ended_at IS NULL)", victim.cmd.Process.Pid).Scan(&open)
					if err == nil && !open {
						return
					}
				}
			})
		default:
			_, _ = pool.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'locker' AND random() < 0.5")
		}
	}
	h.await(operationsMin)
	wg.Wait()
	for _, p := range h.procs {
		_ = p.in.Close()
		<-p.done
	}

	lost := 0
	for name, ops := range operations(h.events) {
		for _, op := range ops {
			if op.Return == math.MaxInt64 {
				lost++
			}
		}
		if got := porcupine.CheckOperationsTimeout(lockModel, ops, 2*time.Minute); got != porcupine.Ok {
			t.Errorf("the history of %s, %d operations: %v", name, len(ops), got)
		}
	}
	t.Logf("%d operations, %d grants without an end that was seen", len(h.events), lost)
	if lost == 0 {
		t.Error("no process lost a lock")
	}
	var disorder int
	err = pool.QueryRow(ctx, "SELECT count(*) FROM (SELECT token, lag(token) OVER (PARTITION BY name ORDER BY seq) AS before FROM fenced) f WHERE token < before").Scan(&disorder)
	if err != nil || disorder > 0 {
		t.Errorf("%d writes under an older token came after those under a newer one, %v", disorder, err)
	}
}

// The model refuses what must not be.
func TestLockModel(t *testing.T) {
	t.Parallel()
	grant := func(token, call, end int64) event { return event{"acquire", "x", token, call, end} }
	release := func(token, call, end int64) event { return event{"release", "x", token, call, end} }
	for name, c := range map[string]struct {
		events []event
		want   porcupine.CheckResult
	}{
		"one after the other":          {[]event{grant(1, 0, 1), release(1, 2, 3), grant(2, 4, 5)}, porcupine.Ok},
		"hand-over before the reply":   {[]event{grant(1, 0, 1), grant(2, 2, 4), release(1, 3, 5)}, porcupine.Ok},
		"a hold without an end":        {[]event{grant(1, 0, 1), grant(2, 4, 5)}, porcupine.Ok},
		"two holders":                  {[]event{grant(1, 0, 1), grant(2, 2, 3), release(1, 4, 5)}, porcupine.Illegal},
		"a token that falls":           {[]event{grant(2, 0, 1), release(2, 2, 3), grant(1, 4, 5)}, porcupine.Illegal},
		"a token given twice":          {[]event{grant(1, 0, 1), grant(1, 4, 5)}, porcupine.Illegal},
		"asserted while it is held":    {[]event{grant(1, 0, 1), {"assert", "x", 1, 2, 3}, grant(2, 4, 5)}, porcupine.Ok},
		"asserted after it was lost":   {[]event{grant(1, 0, 1), grant(2, 2, 3), {"assert", "x", 1, 4, 5}}, porcupine.Illegal},
		"asserted after it was gone":   {[]event{grant(1, 0, 1), release(1, 2, 3), {"assert", "x", 1, 4, 5}}, porcupine.Illegal},
		"asserted as it was released":  {[]event{grant(1, 0, 1), release(1, 2, 6), {"assert", "x", 1, 4, 5}}, porcupine.Ok},
		"taken before it was released": {[]event{grant(1, 0, 1), grant(2, 2, 3), release(1, 4, 6), release(2, 7, 8)}, porcupine.Illegal},
	} {
		if got := porcupine.CheckOperationsTimeout(lockModel, operations(c.events)["x"], time.Minute); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
