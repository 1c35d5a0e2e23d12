package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/worker"
)

const (
	benchSagasWarmUp  = 200 // sagas that do not count
	benchSagasAlone   = 300 // one after another
	benchSagasWaiting = 100_000
	benchSagaUnits    = 10_000
	benchSagaSpan     = 5 * time.Second
	benchSagaMax      = 2 * time.Minute
)

// benchSagaCmd is "pawl bench saga".
type benchSagaCmd struct {
	benchOptions

	HTTP    bool   `name:"http" help:"Measure sagas over HTTP branches too."`
	Pin     bool   `help:"Measure sagas_per_s also with a transaction open throughout, which has written."`
	Profile string `name:"cpuprofile" help:"Write this process's processor profile to this file." type:"path"`
}

// Help is the long help text.
func (*benchSagaCmd) Help() string {
	return "Figures: sagas, alone, steps, each, waiting; with --http also http; with --pin also pinned. Client and worker are one process."
}

// Run measures and prints.
func (c *benchSagaCmd) Run(a *app) error {
	figures := []figure{{"sagas", (*bench).sagas}, {"alone", (*bench).sagasAlone}, {"steps", (*bench).sagaSteps}, {"each", (*bench).sagaEach}, {"waiting", (*bench).sagasWaiting}}
	if c.HTTP {
		figures = append(figures, figure{"http", (*bench).sagasHTTP})
	}
	if c.Pin {
		figures = append(figures, figure{"pinned", (*bench).sagasPinned})
	}
	stop, err := profileTo(c.Profile)
	if err != nil {
		return err
	}
	defer stop()
	return (&bench{a: a}).measure(c.benchOptions, figures, sagaTargets)
}

var sagaTargets = []target{
	{"sagas_per_s", 2500, false, "sagas of 2 no-op steps, from start to result, 64 in flight"},
	{"sagas_p50_ms", 0, false, "what one of these took, median"},
	{"sagas_p99_ms", 0, false, "the same, 99 of 100"},
	{"pinned_sagas_per_s", 0, false, "the same sagas while a transaction that has written stays open"},
	{"await_p50_ms", 6, true, "a saga of 2 no-op steps alone, from start to result, median"},
	{"await_p99_ms", 0, false, "the same, 99 of 100"},
	{"commits_per_saga", 3, true, "synchronous commits of such a saga"},
	{"steps_per_s", 10_000, false, "steps of sagas of 10 no-op steps, 256 in flight"},
	{"each_10000_s", 2, true, "a saga that splits into 10,000 no-op units and joins"},
	{"waiting_rss_mb", 10, true, "growth of the process with 100,000 sagas that wait for a signal"},
	{"http_sagas_per_s", 1500, false, "sagas of 2 no-op HTTP branches, from start to result, 16 in flight"},
	{"http_p50_ms", 0, false, "what one of these took, median"},
	{"http_p99_ms", 0, false, "the same, 99 of 100"},
	{"http_alone_p50_ms", 0, false, "such a saga alone, median"},
}

type benchInput struct {
	Num int    `json:"num"`
	Pad string `json:"pad"`
}

// chain is a saga of steps one after another.
type chain struct {
	def   *saga.Definition[benchInput]
	steps []*saga.StepOf[benchInput, saga.None]
}

func newChain(queue string, n int) chain {
	c := chain{def: saga.Define[benchInput](queue)}
	for i := range n {
		opts := []saga.StepOption{saga.Queue(queue)}
		if i > 0 {
			opts = append(opts, saga.After(c.steps[i-1]))
		}
		c.steps = append(c.steps, saga.Step[saga.None](c.def, fmt.Sprintf("step%d", i+1), opts...))
	}
	return c
}

func noStep(context.Context, *saga.Call[benchInput]) (saga.None, error) { return saga.None{}, nil }
func noUndo(context.Context, *saga.Call[benchInput], *saga.None) error  { return nil }

// serving registers a definition and calls do while a worker of its queue runs, with the handlers that register gives it.
func (b *bench) serving(ctx context.Context, def *saga.Definition[benchInput], queue string, slots int, register func(*worker.Worker), do func(w *worker.Worker) error) error {
	if err := def.Register(ctx, b.pool); err != nil {
		return err
	}
	w, err := worker.New(b.pool, worker.Config{Queues: map[string]int{queue: slots}, Namespace: b.a.namespace, Name: "bench", Logger: b.a.log})
	if err != nil {
		return err
	}
	register(w)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	err = do(w)
	cancel()
	return errors.Join(err, <-done)
}

// startToResult starts a saga and awaits it.
func startToResult(ctx context.Context, pool *pgxpool.Pool, def *saga.Definition[benchInput]) error {
	s, err := def.Start(ctx, pool, benchInput{Pad: benchPad})
	if err == nil {
		_, err = def.Await(ctx, pool, s.ID)
	}
	return err
}

// flight starts and awaits sagas, n at a time for a span, after some that do not count. It gives how long each took, and the rate.
func flight(ctx context.Context, pool *pgxpool.Pool, def *saga.Definition[benchInput], n int, span time.Duration) (took []float64, perS float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, benchSagaMax)
	defer cancel()
	var (
		mu     sync.Mutex
		group  sync.WaitGroup
		warm   atomic.Int64
		fault  error
		began  time.Time
		last   time.Time
		paused = make(chan struct{})
	)
	for range n {
		group.Go(func() {
			for {
				at := time.Now()
				if err := startToResult(ctx, pool, def); err != nil {
					mu.Lock()
					fault = err
					mu.Unlock()
					cancel()
					return
				}
				now := time.Now()
				if k := warm.Add(1); k <= benchSagasWarmUp {
					if k == benchSagasWarmUp {
						began = now
						close(paused)
					}
					continue
				}
				<-paused
				if now.Sub(began) > span {
					return
				}
				mu.Lock()
				took = append(took, now.Sub(at).Seconds()*1000)
				last = now
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if fault != nil {
		return nil, 0, fault
	}
	return took, float64(len(took)) / last.Sub(began).Seconds(), nil
}

// chained calls do with a chain of n steps of its own, which a worker does.
func (b *bench) chained(ctx context.Context, n, slots int, do func(c chain, w *worker.Worker) error) error {
	queue := b.queue()
	c := newChain(queue, n)
	return b.serving(ctx, c.def, queue, slots, func(w *worker.Worker) {
		for _, s := range c.steps {
			saga.Handle(w, s, noStep, noUndo)
		}
	}, func(w *worker.Worker) error { return do(c, w) })
}

func (b *bench) sagas(ctx context.Context) error {
	return b.chained(ctx, 2, 64, func(c chain, _ *worker.Worker) error {
		took, perS, err := flight(ctx, b.pool, c.def, 64, benchSagaSpan)
		b.set("sagas_per_s", perS)
		b.set("sagas_p50_ms", median(took))
		b.set("sagas_p99_ms", percentile(took, 99))
		return err
	})
}

func (b *bench) sagasPinned(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()"); err != nil {
		return err
	}
	return b.chained(ctx, 2, 64, func(c chain, _ *worker.Worker) error {
		_, perS, err := flight(ctx, b.pool, c.def, 64, 4*benchSagaSpan)
		b.set("pinned_sagas_per_s", perS)
		return err
	})
}

// sagasAlone measures sagas one after another, and counts their commits: the start's, and the worker's that end attempts.
func (b *bench) sagasAlone(ctx context.Context) error {
	return b.chained(ctx, 2, 64, func(c chain, w *worker.Worker) error {
		var took []float64
		var before int64
		for i := range benchSagasWarmUp + benchSagasAlone {
			if i == benchSagasWarmUp {
				before = w.Stats().Flushes
			}
			at := time.Now()
			if err := startToResult(ctx, b.pool, c.def); err != nil {
				return err
			}
			if i >= benchSagasWarmUp {
				took = append(took, time.Since(at).Seconds()*1000)
			}
		}
		b.set("await_p50_ms", median(took))
		b.set("await_p99_ms", percentile(took, 99))
		b.set("commits_per_saga", 1+float64(w.Stats().Flushes-before)/benchSagasAlone)
		return nil
	})
}

func (b *bench) sagaSteps(ctx context.Context) error {
	return b.chained(ctx, 10, 256, func(c chain, _ *worker.Worker) error {
		_, perS, err := flight(ctx, b.pool, c.def, 256, 2*benchSagaSpan)
		b.set("steps_per_s", perS*10)
		return err
	})
}

func (b *bench) sagaEach(ctx context.Context) error {
	queue := b.queue()
	def := saga.Define[benchInput](queue)
	each := saga.Each[int, saga.None](def, "each", saga.Queue(queue), saga.ReadOnly())
	return b.serving(ctx, def, queue, 100, func(w *worker.Worker) {
		saga.HandleEach(w, each, func(context.Context, *saga.Call[benchInput]) ([]int, error) { return make([]int, benchSagaUnits), nil },
			func(context.Context, *saga.Call[benchInput], int) (saga.None, error) { return saga.None{}, nil }, nil)
	}, func(*worker.Worker) error {
		var took []float64
		for range 3 {
			at := time.Now()
			if err := startToResult(ctx, b.pool, def); err != nil {
				return err
			}
			took = append(took, time.Since(at).Seconds())
		}
		b.set("each_10000_s", median(took))
		return nil
	})
}

// sagasWaiting measures what this process, whose worker serves them, grows by sagas that wait.
func (b *bench) sagasWaiting(ctx context.Context) error {
	queue := b.queue()
	def := saga.Define[benchInput](queue)
	approve := saga.Signal[saga.None](def, "approve")
	step := saga.Step[saga.None](def, "step", saga.Queue(queue), saga.After(approve))
	start := func(from, n int) error {
		_, err := def.StartMany(ctx, b.pool, func(yield func(string, benchInput) bool) {
			for i := range n {
				if !yield(fmt.Sprintf("%s/%d", queue, from+i), benchInput{Num: i}) {
					return
				}
			}
		})
		return err
	}
	return b.serving(ctx, def, queue, 64, func(w *worker.Worker) { saga.Handle(w, step, noStep, noUndo) }, func(*worker.Worker) error {
		if err := start(0, 5000); err != nil { // what the process needs for its work alone
			return err
		}
		before, err := rssMB()
		if err != nil {
			return err
		}
		if err := start(5000, benchSagasWaiting); err != nil {
			return err
		}
		after, err := rssMB()
		b.set("waiting_rss_mb", after-before)
		return err
	})
}

// rssMB is the memory of this process, after it gave back what it can.
func rssMB() (float64, error) {
	runtime.GC()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		return 0, err
	}
	return float64(resident*int64(os.Getpagesize())) / (1 << 20), nil
}

func (b *bench) sagasHTTP(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})}
	go func() { _ = server.Serve(l) }()
	defer func() { _ = server.Close() }()
	queue := b.queue()
	c := newChain(queue, 2)
	return b.serving(ctx, c.def, queue, 64, func(w *worker.Worker) {
		for _, s := range c.steps {
			saga.HandleHTTP(w, s, saga.Branch{URL: "http://" + l.Addr().String(), Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
		}
	}, func(*worker.Worker) error {
		alone, _, err := flight(ctx, b.pool, c.def, 1, benchSagaSpan/2)
		if err != nil {
			return err
		}
		b.set("http_alone_p50_ms", median(alone))
		took, perS, err := flight(ctx, b.pool, c.def, 16, benchSagaSpan)
		b.set("http_sagas_per_s", perS)
		b.set("http_p50_ms", median(took))
		b.set("http_p99_ms", percentile(took, 99))
		return err
	})
}
