package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"time"
)

// fleetCrashesMax is how many processes of a fleet may end by themselves before it is given up.
const fleetCrashesMax = 20

// role is what some processes of a fleet have in common.
type role struct {
	name    string
	size    int                            // how many processes run
	command func(n int) (*exec.Cmd, error) // of the n-th one, from 1

	started, kills int
}

// fleet keeps a number of processes of each role running: one that ends is replaced. Its processes die with this one: their standard input ends, and
// on Linux the kernel kills them. It is safe for concurrent use.
type fleet struct {
	live   *live
	cancel context.CancelCauseFunc // given the reason when the fleet is given up
	starts chan func()             // for the thread that all processes are started by
	ended  sync.WaitGroup          // of the processes

	mu       sync.Mutex
	roles    []*role
	running  []*process
	crashes  int
	stopping bool
}

type process struct {
	role   *role
	n      int
	cmd    *exec.Cmd
	stdin  io.Closer
	killed bool
}

func (p *process) String() string {
	return fmt.Sprintf("%s %d (pid %d)", p.role.name, p.n, p.cmd.Process.Pid)
}

// startFleet starts the processes of all roles.
func startFleet(l *live, cancel context.CancelCauseFunc, roles ...role) *fleet {
	f := &fleet{live: l, cancel: cancel, starts: make(chan func())}
	go func() {
		// Linux kills a child when the thread that made it ends, so this one lives as long as the fleet.
		runtime.LockOSThread()
		for start := range f.starts {
			start()
		}
	}()
	for _, r := range roles {
		f.roles = append(f.roles, &r)
		for range r.size {
			f.start(&r)
		}
	}
	return f
}

// start starts one process of a role, and sees to it that it is replaced when it ends.
func (f *fleet) start(r *role) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopping {
		return
	}
	r.started++
	p := &process{role: r, n: r.started}
	if err := f.launch(p); err != nil {
		f.cancel(fmt.Errorf("start %s process: %w", r.name, err))
		return
	}
	f.running = append(f.running, p)
	f.ended.Go(func() { f.await(p) })
}

func (f *fleet) launch(p *process) (err error) {
	if p.cmd, err = p.role.command(p.n); err != nil {
		return err
	}
	p.cmd.SysProcAttr = fleetAttr()
	lines := &prefixed{w: f.live, prefix: fmt.Sprintf("  %s %d: ", p.role.name, p.n)}
	p.cmd.Stdout, p.cmd.Stderr = lines, lines
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	done := make(chan struct{})
	f.starts <- func() { err = p.cmd.Start(); close(done) }
	<-done
	return err
}

// await waits for the end of a process and replaces it.
func (f *fleet) await(p *process) {
	err := p.cmd.Wait()
	f.mu.Lock()
	f.running = slices.DeleteFunc(f.running, func(q *process) bool { return p == q })
	stopping, crashed := f.stopping, !f.stopping && !p.killed
	if crashed {
		f.crashes++
	}
	crashes := f.crashes
	f.mu.Unlock()
	switch {
	case stopping:
	case crashes > fleetCrashesMax:
		f.cancel(fmt.Errorf("processes ended by themselves %d times, the last one, %s, with: %w", crashes, p, err))
	case crashed:
		f.live.say("  %s ended by itself: %v. Another takes its place.", p, err)
		f.start(p.role)
	default:
		f.start(p.role)
	}
}

// kill kills one process at random, of those roles that were killed least. False: there was none.
func (f *fleet) kill() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	victims := slices.DeleteFunc(slices.Clone(f.running), func(p *process) bool { return p.killed })
	if len(victims) == 0 || f.stopping {
		return false
	}
	least := victims[0].role.kills
	for _, p := range victims {
		least = min(least, p.role.kills)
	}
	victims = slices.DeleteFunc(victims, func(p *process) bool { return p.role.kills > least })
	p := victims[rand.IntN(len(victims))]
	if err := p.cmd.Process.Kill(); err != nil {
		return false // it has just ended by itself
	}
	p.killed = true
	p.role.kills++
	f.live.say("  killed %s", p)
	return true
}

// alive is how many processes run.
func (f *fleet) alive() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.running)
}

// killed is how many processes were killed so far, of the roles named or of all.
func (f *fleet) killed(names ...string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.roles {
		if len(names) == 0 || slices.Contains(names, r.name) {
			n += r.kills
		}
	}
	return n
}

// stop ends all processes: it lets them finish what they do for as long as patience, and kills those that have not. It returns how many that were.
func (f *fleet) stop(patience time.Duration) (left int) {
	f.mu.Lock()
	f.stopping = true
	for _, p := range f.running {
		_ = p.stdin.Close() // ended already: nothing to be told
	}
	f.mu.Unlock()
	ended := make(chan struct{})
	go func() { f.ended.Wait(); close(ended) }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		f.mu.Lock()
		left = len(f.running)
		for _, p := range f.running {
			_ = p.cmd.Process.Kill()
		}
		f.mu.Unlock()
		<-ended
	}
	close(f.starts)
	return left
}
