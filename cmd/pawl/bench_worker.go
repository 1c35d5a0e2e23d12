package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/worker"
)

// benchArgs are the args of the jobs measured: the size of those that the peers are measured with.
type benchArgs struct {
	Num int    `json:"num"`
	At  int64  `json:"at"`
	Pad string `json:"pad"`
}

var (
	benchPad  = strings.Repeat("x", 64)
	benchNoop = job.Define[benchArgs]("bench.noop")
	benchHang = job.Define[benchArgs]("bench.hang")
)

// benchWorkerCmd is "pawl bench-worker", hidden: a worker process of "pawl bench jobs". It tells what happens in lines of JSON, and stops when its
// standard input ends.
type benchWorkerCmd struct {
	Queue   []string      `help:"Queues."`
	Slots   int           `default:"100"`
	Jobs    int64         `help:"Tell when so many have succeeded."`
	Starts  bool          `help:"Tell each start of a handler."`
	Tick    time.Duration `help:"Tell so often how many statements were sent."`
	Profile string        `name:"cpuprofile"`
}

// benchEvent is a line of a worker process.
type benchEvent struct {
	What    string  `json:"what"` // ready, start, tick, done or ended
	Job     int64   `json:"job,omitempty"`
	AtNS    int64   `json:"at_ns,omitempty"` // the machine's clock
	Seconds float64 `json:"seconds,omitempty"`
	RSSMB   float64 `json:"rss_mb,omitempty"`
	Queries int64   `json:"queries"`
}

// queryCounter counts the statements that a process sends.
type queryCounter struct{ n atomic.Int64 }

func (c *queryCounter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (*queryCounter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// Run works until standard input ends.
func (c *benchWorkerCmd) Run(a *app) error {
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, a.in)
		cancel()
	}()
	conf, err := pgxpool.ParseConfig(a.databaseURL)
	if err != nil {
		return err
	}
	conf.MaxConns = 8
	counter := &queryCounter{}
	if c.Jobs == 0 { // it costs a little; the drain is measured without
		conf.ConnConfig.Tracer = counter
	}
	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		return err
	}
	defer pool.Close()
	var mu sync.Mutex
	out := json.NewEncoder(a.out)
	tell := func(e benchEvent) {
		mu.Lock()
		defer mu.Unlock()
		e.Queries = counter.n.Load()
		_ = out.Encode(e) // the parent is gone: so are we, soon
	}
	queues := map[string]int{}
	for _, q := range c.Queue {
		queues[q] = c.Slots
	}
	w, err := worker.New(pool, worker.Config{Queues: queues, Name: "bench", Logger: a.log})
	if err != nil {
		return err
	}
	worker.Handle(w, benchNoop, func(_ context.Context, j *job.Job[benchArgs]) error {
		if c.Starts {
			tell(benchEvent{What: "start", Job: j.ID, AtNS: time.Now().UnixNano()})
		}
		return nil
	})
	worker.Handle(w, benchHang, func(ctx context.Context, j *job.Job[benchArgs]) error {
		tell(benchEvent{What: "start", Job: j.ID, AtNS: time.Now().UnixNano()})
		<-ctx.Done()
		return context.Cause(ctx)
	})
	profiled, err := profileTo(c.Profile)
	if err != nil {
		return err
	}
	defer profiled()
	if c.Jobs > 0 {
		go c.watch(ctx, w, tell)
	}
	if c.Tick > 0 {
		go func() {
			for t := time.NewTicker(c.Tick); ctx.Err() == nil; <-t.C {
				tell(benchEvent{What: "tick"})
			}
		}()
	}
	tell(benchEvent{What: "ready"})
	if err := w.Run(ctx); err != nil {
		return err
	}
	tell(benchEvent{What: "ended", RSSMB: peakRSS()})
	return nil
}

// watch tells when all jobs have their receipts.
func (c *benchWorkerCmd) watch(ctx context.Context, w *worker.Worker, tell func(benchEvent)) {
	began := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for w.Stats().Succeeded < c.Jobs {
		select {
		case <-ctx.Done():
			tell(benchEvent{What: "done", Job: w.Stats().Succeeded, Seconds: time.Since(began).Seconds(), RSSMB: peakRSS()})
			return
		case <-tick.C:
		}
	}
	tell(benchEvent{What: "done", Job: c.Jobs, Seconds: time.Since(began).Seconds(), RSSMB: peakRSS()})
}

// peakRSS is the most memory that this process had, in MB; 0 where the system does not tell.
func peakRSS() float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseFloat(strings.Fields(kb)[0], 64)
			return n / 1024
		}
	}
	return 0
}

// benchProcess is a worker process as the parent sees it.
type benchProcess struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	events chan benchEvent // closed when the process has ended
}

// worker starts a worker process and waits until it is about to work.
func (b *bench) worker(ctx context.Context, args ...string) (*benchProcess, error) {
	return b.process(ctx, "bench-worker", args...)
}

// process starts a process of a hidden command and waits until it is ready.
func (b *bench) process(ctx context.Context, command string, args ...string) (*benchProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{command, "--log-level=error"}, args...)...)
	cmd.Env = append(os.Environ(), "PAWL_DATABASE_URL="+b.url)
	cmd.Stderr = b.a.err
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &benchProcess{cmd: cmd, stdin: stdin, events: make(chan benchEvent, 100_000)}
	go func() {
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var e benchEvent
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				p.events <- e
			}
		}
		_ = cmd.Wait()
		close(p.events)
	}()
	if _, err := p.wait(ctx, "ready"); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// wait gives the next event of a kind.
func (p *benchProcess) wait(ctx context.Context, what string) (benchEvent, error) {
	for {
		select {
		case <-ctx.Done():
			return benchEvent{}, context.Cause(ctx)
		case e, ok := <-p.events:
			if !ok {
				return e, fmt.Errorf("%w, waiting for %q", errBenchEnded, what)
			}
			if e.What == what {
				return e, nil
			}
		}
	}
}

// stop ends the process and gives the events that were not read, its last word with them.
func (p *benchProcess) stop() (rest []benchEvent) {
	_ = p.stdin.Close()
	for e := range p.events {
		rest = append(rest, e)
	}
	return rest
}

// profileTo writes the processor profile of this process to a file until stop; "" writes none.
func profileTo(name string) (stop func(), err error) {
	if name == "" {
		return func() {}, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	return pprof.StopCPUProfile, pprof.StartCPUProfile(f)
}
