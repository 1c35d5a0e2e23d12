package lock_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// TestStories acts out testdata. A line is a step and, behind the arrow, what comes of it. Steps:
//
//	PROCESS/OWNER acquires|tries LOCK [shared | semaphore N | hold TIME | delay TIME]
//	PROCESS/OWNER on LOCK          what became of a wait
//	PROCESS/OWNER gives up LOCK    its wait is cancelled
//	PROCESS/OWNER releases LOCK
//	PROCESS/OWNER loses LOCK       the lease's context ends
//	PROCESS/OWNER asserts LOCK     in a transaction that stays open until
//	PROCESS/OWNER commits
//	PROCESS dies                   its session is ended, it asks no more
//	operator forces LOCK
//	operator sweeps                again and again, until the end
//
// Nobody looks again at what he waits for, but in a story that begins with "# Polled.". Tokens are numbered in their order.
func TestStories(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(bounded(t))
			defer stop()
			s := &story{t: t, ctx: ctx, pool: dbtest.New(t), processes: map[string]*lock.Locks{}, actors: map[string]*actor{}, tokens: map[string][]int64{}}
			s.poll = time.Hour
			if strings.HasPrefix(string(text), "# Polled.") {
				s.poll = 10 * time.Millisecond
			}
			for i, line := range strings.Split(string(text), "\n") {
				if line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				step, want, _ := strings.Cut(line, "→")
				want = strings.TrimSpace(want)
				if got := s.act(strings.Fields(step), want); got != want {
					t.Fatalf("%s:%d: %s: got %q, want %q", file, i+1, strings.TrimSpace(step), got, want)
				}
			}
		})
	}
}

type story struct {
	t         *testing.T
	ctx       context.Context
	pool      *pgxpool.Pool
	poll      time.Duration
	processes map[string]*lock.Locks
	actors    map[string]*actor
	tokens    map[string][]int64 // of each lock, in the order in which they were seen
}

// actor is an owner in a process.
type actor struct {
	name   string
	locks  *lock.Locks
	ctx    context.Context
	die    context.CancelFunc
	waits  map[string]*wait
	leases map[string][]*lock.Lease // held, and the last one that was
	tx     pgx.Tx
}

type wait struct {
	quit context.CancelFunc
	done chan struct{}
	got  *lock.Lease
	err  error
}

func (s *story) act(step []string, want string) string {
	s.t.Helper()
	who, verb, rest := step[0], step[1], step[2:]
	switch {
	case who == "operator" && verb == "sweeps":
		go func() {
			for s.ctx.Err() == nil {
				_, _ = s.pool.Exec(s.ctx, "SELECT pawl.sweep_locks(1::smallint, $1, 1000, '1 hour') FROM pg_sleep(0.02)", int64(math.MinInt64))
			}
		}()
		return ""
	case who == "operator":
		n, err := lock.Force(s.ctx, s.pool, 1, rest[0], "a story")
		if err != nil {
			return outcome(err)
		}
		return fmt.Sprint("taken from ", n)
	case verb == "dies":
		if _, err := s.pool.Exec(s.ctx, "SELECT pawl.session_end(1::smallint, $1, 'a story')", s.processes[who].SessionID()); err != nil {
			s.t.Fatal(err)
		}
		for _, a := range s.actors {
			if a.locks == s.processes[who] {
				a.die()
			}
		}
		return ""
	}
	a := s.actor(who)
	switch verb {
	case "acquires", "tries":
		return s.acquire(a, verb, rest[0], rest[1:])
	case "on":
		return s.waited(a, rest[0], want == "waits")
	case "gives":
		a.waits[rest[1]].quit()
		return s.waited(a, rest[1], false)
	case "releases":
		ls := a.leases[rest[0]]
		if len(ls) > 1 {
			a.leases[rest[0]] = ls[:len(ls)-1]
		}
		if err := ls[len(ls)-1].Release(s.ctx); err != nil {
			return outcome(err)
		}
		return "released"
	case "loses":
		lease := a.lease(rest[0])
		<-lease.Context().Done()
		return outcome(context.Cause(lease.Context()))
	case "asserts":
		tx, err := s.pool.Begin(s.ctx)
		if err != nil {
			s.t.Fatal(err)
		}
		if err := a.lease(rest[0]).Assert(s.ctx, tx); err != nil {
			_ = tx.Rollback(s.ctx)
			return outcome(err)
		}
		a.tx = tx
		return "held"
	case "commits":
		if err := a.tx.Commit(s.ctx); err != nil {
			return err.Error()
		}
		return "committed"
	}
	s.t.Fatalf("no step is called %s", verb)
	return ""
}

func (s *story) actor(who string) *actor {
	a := s.actors[who]
	if a == nil {
		process, name, _ := strings.Cut(who, "/")
		if s.processes[process] == nil {
			s.processes[process] = open(s.t, s.pool, lock.Config{Name: process, PollInterval: s.poll})
		}
		a = &actor{name: name, locks: s.processes[process], waits: map[string]*wait{}, leases: map[string][]*lock.Lease{}}
		a.ctx, a.die = context.WithCancel(s.ctx)
		s.t.Cleanup(a.die)
		s.actors[who] = a
	}
	return a
}

func (a *actor) lease(name string) *lock.Lease { return a.leases[name][len(a.leases[name])-1] }

func (s *story) acquire(a *actor, verb, name string, how []string) string {
	s.t.Helper()
	opts := []lock.Option{lock.Owner(a.name)}
	if verb == "tries" {
		opts = append(opts, lock.Wait(0))
	}
	for len(how) > 0 {
		var span time.Duration
		var err error
		switch how[0] {
		case "shared":
			opts, how = append(opts, lock.Shared()), how[1:]
			continue
		case "semaphore":
			var n int
			n, err = strconv.Atoi(how[1])
			opts = append(opts, lock.Semaphore(n))
		case "hold":
			span, err = time.ParseDuration(how[1])
			opts = append(opts, lock.MaxHold(span))
		case "delay":
			span, err = time.ParseDuration(how[1])
			opts = append(opts, lock.DelayAfterLoss(span))
		default:
			err = fmt.Errorf("no such way to acquire: %v", how)
		}
		if err != nil {
			s.t.Fatal(err)
		}
		how = how[2:]
	}
	w := &wait{done: make(chan struct{})}
	var ctx context.Context
	ctx, w.quit = context.WithCancel(a.ctx)
	s.t.Cleanup(w.quit)
	a.waits[name] = w
	go func() {
		defer close(w.done)
		w.got, w.err = a.locks.Acquire(ctx, name, opts...)
	}()
	for !s.waiting(a, name) {
		select {
		case <-w.done:
			return s.waited(a, name, false)
		default:
		}
	}
	return "waits"
}

// waiting tells whether the owner waits for the lock, after whatever was done to it before.
func (s *story) waiting(a *actor, name string) (yes bool) {
	err := s.pool.QueryRow(s.ctx, `SELECT EXISTS (SELECT FROM pawl.lock_waiter w WHERE w.name = $1 AND w.owner = $2 AND w.session_id = $3
		AND w.id > coalesce((SELECT s.served FROM pawl.lock_state s WHERE s.name = w.name ORDER BY s.id DESC LIMIT 1), 0))`, name, a.name, a.locks.SessionID()).Scan(&yes)
	if err != nil {
		s.t.Fatal(err)
	}
	return yes
}

// waited tells what became of a wait, once it is over.
func (s *story) waited(a *actor, name string, still bool) string {
	if still && s.waiting(a, name) {
		return "waits"
	}
	w := a.waits[name]
	<-w.done
	if w.err != nil {
		return outcome(w.err)
	}
	a.leases[name] = append(a.leases[name], w.got)
	again := ""
	if slices.Contains(s.tokens[name], w.got.Token()) {
		again = " again"
	} else {
		s.tokens[name] = append(s.tokens[name], w.got.Token())
		slices.Sort(s.tokens[name])
	}
	return fmt.Sprint("token ", slices.Index(s.tokens[name], w.got.Token())+1, again)
}

func outcome(err error) string {
	var ring *lock.DeadlockError
	if errors.As(err, &ring) {
		return "deadlock: " + ring.Ring
	}
	for text, one := range map[string]error{
		"held": lock.ErrHeld, "lost": lock.ErrLost, "forced": lock.ErrForced, "expired": lock.ErrExpired, "released before": lock.ErrReleased,
		"asserted": lock.ErrAsserted, "cancelled": context.Canceled,
	} {
		if errors.Is(err, one) {
			return text
		}
	}
	return err.Error()
}
