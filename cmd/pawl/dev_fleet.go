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

// fleet keeps a number of worker processes running: one that ends is replaced. Its processes die with this one: their standard input ends, and
// on Linux the kernel kills them. It is safe for concurrent use.
type fleet struct {
	command func(n int) (*exec.Cmd, error)
	live    *live
	cancel  context.CancelCauseFunc // given the reason when the fleet is given up
	starts  chan func()             // for the thread that all processes are started by
	ended   sync.WaitGroup          // of the processes

	mu       sync.Mutex
	running  []*process
	started  int
	kills    int
	crashes  int
	stopping bool
}

type process struct {
	n      int
	cmd    *exec.Cmd
	stdin  io.Closer
	killed bool
}

// startFleet starts size processes.
func startFleet(size int, command func(n int) (*exec.Cmd, error), l *live, cancel context.CancelCauseFunc) *fleet {
	f := &fleet{command: command, live: l, cancel: cancel, starts: make(chan func())}
	go func() {
		// Linux kills a child when the thread that made it ends, so this one lives as long as the fleet.
		runtime.LockOSThread()
		for start := range f.starts {
			start()
		}
	}()
	for range size {
		f.start()
	}
	return f
}

// start starts one process, and sees to it that it is replaced when it ends.
func (f *fleet) start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopping {
		return
	}
	f.started++
	p := &process{n: f.started}
	if err := f.launch(p); err != nil {
		f.cancel(fmt.Errorf("start worker process: %w", err))
		return
	}
	f.running = append(f.running, p)
	f.ended.Go(func() { f.await(p) })
}

func (f *fleet) launch(p *process) (err error) {
	if p.cmd, err = f.command(p.n); err != nil {
		return err
	}
	p.cmd.SysProcAttr = fleetAttr()
	lines := &prefixed{w: f.live, prefix: fmt.Sprintf("  worker %d: ", p.n)}
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
		f.cancel(fmt.Errorf("worker processes ended by themselves %d times, the last one with: %w", crashes, err))
	case crashed:
		f.live.say("Worker %d (pid %d) ended by itself: %v. Another takes its place.", p.n, p.cmd.Process.Pid, err)
		f.start()
	default:
		f.start()
	}
}

// kill kills one process at random. False: there was none.
func (f *fleet) kill() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	victims := slices.DeleteFunc(slices.Clone(f.running), func(p *process) bool { return p.killed })
	if len(victims) == 0 || f.stopping {
		return false
	}
	p := victims[rand.IntN(len(victims))]
	if err := p.cmd.Process.Kill(); err != nil {
		return false // it has just ended by itself
	}
	p.killed = true
	f.kills++
	f.live.say("  killed worker %d (pid %d)", p.n, p.cmd.Process.Pid)
	return true
}

// alive is how many processes run, killed how many were killed so far.
func (f *fleet) alive() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.running)
}

func (f *fleet) killed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kills
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
