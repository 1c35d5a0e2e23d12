package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db/devpg"
	"github.com/pawl-dev/pawl/db/migrate"
)

type benchCmd struct {
	Jobs     benchJobsCmd     `cmd:"" help:"Measure the job engine."`
	Locks    benchLocksCmd    `cmd:"" help:"Measure locks."`
	Outbox   benchOutboxCmd   `cmd:"" help:"Measure the outbox."`
	Saga     benchSagaCmd     `cmd:"" help:"Measure sagas."`
	Twophase benchTwophaseCmd `cmd:"" help:"Measure global transactions."`
}

// benchOptions are what all benches have in common.
type benchOptions struct {
	Migrate bool     `help:"Apply pending migrations to the database of --database-url first. The private one has them."`
	Repeat  int      `default:"1" help:"Measure each figure that often and report the median."`
	Only    []string `help:"Measure only these figures."`
}

// benchJobsCmd is "pawl bench jobs".
type benchJobsCmd struct {
	benchOptions

	Jobs      int    `default:"200000" help:"Jobs to insert and drain; with --pin and --pin-writer 500,000 unless another number is given."`
	Batch     int    `default:"1000" help:"Jobs in one enqueue of the insert figure, 1 to 1,000."`
	Workers   int    `default:"1" help:"Worker processes of the drain."`
	Pin       bool   `xor:"pin" help:"Measure the drain also with a repeatable-read transaction open throughout."`
	PinWriter bool   `xor:"pin" help:"The same with a transaction that has also written."`
	Profile   string `name:"cpuprofile" help:"Write the drain worker's processor profile to this file." type:"path"`
}

// Help is the long help text.
func (*benchJobsCmd) Help() string {
	return "Figures: insert (with work, WAL and dead rows), single, contended, pickup, idle, due, rss, rescue."
}

// figure is one measurement: it adds its keys to the results.
type figure struct {
	name string
	run  func(b *bench, ctx context.Context) error
}

var jobFigures = []figure{
	{"insert", (*bench).drain},
	{"single", (*bench).single},
	{"contended", (*bench).contended},
	{"pickup", (*bench).pickup},
	{"idle", (*bench).idle},
	{"due", (*bench).due},
	{"rss", (*bench).rss},
	{"rescue", (*bench).rescue},
}

// bench is a run of "pawl bench".
type bench struct {
	c       *benchJobsCmd // of "bench jobs"
	a       *app
	url     string
	pool    *pgxpool.Pool
	got     map[string][]float64
	pinSpan time.Duration // of "bench locks"
	events  int           // of "bench outbox"
	queues  int           // used so far: each figure takes queues of its own
}

// benchReport is what is printed.
type benchReport struct {
	Build    build                 `json:"build"`
	Machine  map[string]any        `json:"machine"`
	Settings map[string]string     `json:"settings"`
	Figures  map[string]float64    `json:"figures"`          // medians
	Ranges   map[string][2]float64 `json:"ranges,omitempty"` // lowest and highest, with --repeat
}

// Run measures and prints.
func (c *benchJobsCmd) Run(a *app) error {
	if c.Jobs < 1000 || c.Batch < 1 || c.Batch > 1000 || c.Workers < 1 || c.Workers > 64 {
		return usageError{"--jobs from 1,000, --batch from 1 to 1,000 and --workers from 1 to 64 are measured"}
	}
	return (&bench{c: c, a: a}).measure(c.benchOptions, jobFigures, jobTargets)
}

// measure measures figures and prints them beside what they must reach.
func (b *bench) measure(c benchOptions, figures []figure, targets []target) error {
	if c.Repeat < 1 {
		return usageError{"--repeat is 1 or more"}
	}
	for _, name := range c.Only {
		if !slices.ContainsFunc(figures, func(f figure) bool { return f.name == name }) {
			return usageError{fmt.Sprintf("there is no figure %q", name)}
		}
	}
	a := b.a
	url, stop, err := benchServer(a)
	if err != nil {
		return err
	}
	defer stop()
	if a.databaseURL == "" || c.Migrate {
		if _, err := migrate.Up(a.ctx, url); err != nil {
			return err
		}
	}
	conf, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	conf.MaxConns = 24
	b.pool, err = pgxpool.NewWithConfig(a.ctx, conf)
	if err != nil {
		return err
	}
	defer b.pool.Close()
	b.url, b.got = url, map[string][]float64{}
	for range c.Repeat {
		for _, f := range figures {
			if len(c.Only) > 0 && !slices.Contains(c.Only, f.name) {
				continue
			}
			_, _ = fmt.Fprintf(a.err, "measuring %s …\n", f.name)
			if err := f.run(b, a.ctx); err != nil {
				return fmt.Errorf("bench %s: %w", f.name, err)
			}
		}
	}
	return b.report(targets)
}

// benchServer gives the database to measure on: the one that was named, or a private server with fsync on that goes with the run.
func benchServer(a *app) (url string, stop func(), err error) {
	if a.databaseURL != "" {
		return a.databaseURL, func() {}, nil
	}
	dir, err := devpg.DefaultDir("bench")
	if err != nil {
		return "", nil, err
	}
	dir = filepath.Join(dir, fmt.Sprint(os.Getpid()))
	server, err := devpg.Start(a.ctx, devpg.Config{
		Dir: dir, Durable: true, Temporary: true, Settings: map[string]string{"shared_buffers": "1GB", "max_connections": "200", "max_wal_size": "4GB"},
	})
	if err != nil {
		return "", nil, err
	}
	stop = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), 30*time.Second)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			a.log.Warn("private server not stopped", "err", err)
		}
	}
	return server.URL("postgres"), stop, nil
}

// set keeps a figure.
func (b *bench) set(key string, value float64) { b.got[key] = append(b.got[key], value) }

// median of what was measured of a figure.
func median(values []float64) float64 { return percentile(values, 50) }

func percentile(values []float64, p int) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}

// target is what a figure must reach, where that does not depend on another program.
type target struct {
	key   string
	bound float64
	most  bool // at most, else at least
	what  string
}

var jobTargets = []target{
	{"work_jobs_per_s", 0, false, "jobs a second that the workers drained, every fencing check on"},
	{"insert_jobs_per_s", 0, false, "jobs a second inserted in batches, 4 connections"},
	{"wal_bytes_per_job_worked", 20, true, "bytes of WAL a job drained"},
	{"dead_rows", 0, true, "dead rows in the hot tables after the drain"},
	{"pinned_work_jobs_per_s", 0, false, "drained under an open transaction"},
	{"pinned_vs_work", 0.9, false, "the same, by the drain without one"},
	{"single_enqueue_per_s", 0, false, "enqueues in transactions of their own, 16 goroutines"},
	{"bare_inserts_per_s", 0, false, "bare single-row inserts, 16 goroutines"},
	{"single_enqueue_vs_bare", 0.75, false, "the one by the other, taken in turn"},
	{"contended_claims_per_s_1", 0, false, "claims of one job, 1 connection"},
	{"contended_claims_per_s_8", 0, false, "claims of one job, 8 connections"},
	{"contended_claims_per_s", 2500, false, "claims of one job, 32 connections on one queue"},
	{"pickup_p50_ms", 2.5, true, "from the enqueue's reply to the handler in another process, 100 jobs/s, median"},
	{"pickup_p99_ms", 10, true, "the same, 99 of 100"},
	{"sent_to_start_p50_ms", 0, false, "the same from before the enqueue was sent, its commit included, median"},
	{"sent_to_start_p99_ms", 0, false, "the same, 99 of 100"},
	{"idle_queries_per_s", 5, true, "statements of an idle worker with 10 queues"},
	{"due_p50_ms", 25, true, "lateness of scheduled jobs, median"},
	{"due_p99_ms", 0, false, "the same, 99 of 100"},
	{"worker_rss_mb", 100, true, "memory of a worker with 1,000 slots, at its highest"},
	{"rescue_s", 21, true, "from SIGKILL of a worker to its job's next start, ttl 15 s"},
}

func (b *bench) report(targets []target) error {
	r := benchReport{Build: readBuild(), Machine: machine(), Settings: map[string]string{}, Figures: map[string]float64{}, Ranges: map[string][2]float64{}}
	for _, name := range []string{
		"server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size", "max_connections", "autovacuum",
	} {
		var v string
		if err := b.pool.QueryRow(b.a.ctx, "SELECT current_setting($1)", name).Scan(&v); err != nil {
			return err
		}
		r.Settings[name] = v
	}
	for key, values := range b.got {
		r.Figures[key] = median(values)
		if len(values) > 1 {
			r.Ranges[key] = [2]float64{slices.Min(values), slices.Max(values)}
		}
	}
	if b.a.json {
		return b.a.printJSON(r)
	}
	_, _ = fmt.Fprintf(b.a.out, "pawl %s; %v, %v cores, %v; PostgreSQL %s, fsync %s, synchronous_commit %s, shared_buffers %s\n\n",
		r.Build, r.Machine["processor"], r.Machine["cores"], r.Machine["go"], r.Settings["server_version"], r.Settings["fsync"], r.Settings["synchronous_commit"],
		r.Settings["shared_buffers"])
	t := b.a.table("FIGURE", "VALUE", "WANTED", "", "WHAT")
	for _, w := range targets {
		v, ok := r.Figures[w.key]
		if !ok {
			continue
		}
		wanted, verdict := "", ""
		if w.bound != 0 || w.most {
			wanted, verdict = fmt.Sprintf("≥ %g", w.bound), "ok"
			if w.most {
				wanted = fmt.Sprintf("≤ %g", w.bound)
			}
			if w.most && v > w.bound || !w.most && v < w.bound {
				verdict = "MISSED"
			}
		}
		text := figureText(v)
		if least, ok := r.Ranges[w.key]; ok {
			text += fmt.Sprintf(" (%s–%s)", figureText(least[0]), figureText(least[1]))
		}
		t.row(w.key, text, wanted, verdict, w.what)
	}
	return t.end()
}

func figureText(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func machine() map[string]any {
	m := map[string]any{"cores": runtime.NumCPU(), "os": runtime.GOOS + "/" + runtime.GOARCH, "go": runtime.Version(), "processor": "unknown processor"}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				m["processor"] = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	return m
}

var errBenchEnded = errors.New("the worker process ended early")

// queue names a queue that nobody used before.
func (b *bench) queue() string {
	b.queues++
	return fmt.Sprintf("bench-%d-%d", os.Getpid(), b.queues)
}

// bareTable makes the table of the bare inserts that some figures stand beside, and gives what drops it.
func (b *bench) bareTable(ctx context.Context) (drop func(), err error) {
	_, err = b.pool.Exec(ctx, "CREATE TABLE IF NOT EXISTS pawl_bench_bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, kind text, args json)")
	return func() { _, _ = b.pool.Exec(context.WithoutCancel(ctx), "DROP TABLE pawl_bench_bare") }, err
}
