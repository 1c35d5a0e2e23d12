package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/lock"
)

// benchLocksCmd is "pawl bench locks".
type benchLocksCmd struct {
	benchOptions

	PinSpan time.Duration `default:"60s" help:"How long a transaction is held open for pinned_ratio."`
}

// Help is the long help text.
func (*benchLocksCmd) Help() string {
	return "Figures: trips, pairs, processes, handover, busy, waiters, pinned."
}

// Run measures and prints.
func (c *benchLocksCmd) Run(a *app) error {
	b := &bench{a: a, pinSpan: c.PinSpan}
	return b.measure(c.benchOptions, lockFigures, lockTargets)
}

var lockFigures = []figure{
	{"trips", (*bench).lockTrips},
	{"pairs", (*bench).lockPairs},
	{"processes", (*bench).lockProcesses},
	{"handover", (*bench).lockHandover},
	{"busy", (*bench).lockBusy},
	{"waiters", (*bench).lockWaiters},
	{"pinned", (*bench).lockPinned},
}

var lockTargets = []target{
	{"round_trips_acquire", 1, true, "statements of an acquire"},
	{"round_trips_release", 1, true, "statements of a release"},
	{"uncontended_pairs_per_s", 0, false, "acquire and release, 16 goroutines of one process, a name each"},
	{"processes_pairs_per_s", 0, false, "the same from 16 processes"},
	{"commits_per_s", 0, false, "single-row commits, 16 connections"},
	{"vs_commit_limit", 0.7, false, "pairs of 16 processes, by these commits, taken in turn"},
	{"pair_ms", 0, false, "acquire and release, one client"},
	{"pair_vs_commit", 1.8, true, "the same, by one synchronous commit"},
	{"handover_p50_ms", 2, true, "release to the next waiter in another process having it, median"},
	{"handover_p99_ms", 7, true, "the same, 99 of 100"},
	{"busy_try_ms", 0.3, true, "a try of a held lock, median"},
	{"busy_try_wal_bytes", 0, true, "WAL of it"},
	{"waiters_1000_ok", 1, false, "1 if 1,000 waiters over 10 processes got one name strictly in order"},
	{"connections_per_process", 3, true, "database connections of each meanwhile"},
	{"hot_pairs_per_s", 0, false, "acquire and release of one name, 4 goroutines"},
	{"pinned_ratio", 0.7, false, "the same after a time under a transaction held open, by before"},
}

// benchLockerCmd is "pawl bench-locker", hidden: a process of "pawl bench locks". It does what it is told for as long as its standard input lasts.
type benchLockerCmd struct {
	Name  string        `help:"Lock."`
	Pairs time.Duration `help:"Acquire and release for so long, and tell how often."`
	Line  bool          `help:"For each line of input wait for the lock, tell when it came, and release it."`
}

// Run works until standard input ends.
func (c *benchLockerCmd) Run(a *app) error {
	conf, err := pgxpool.ParseConfig(a.databaseURL)
	if err != nil {
		return err
	}
	conf.ConnConfig.RuntimeParams["application_name"] = fmt.Sprintf("bench-locker-%d", os.Getpid())
	pool, err := pgxpool.NewWithConfig(a.ctx, conf)
	if err != nil {
		return err
	}
	defer pool.Close()
	l, err := lock.Open(a.ctx, pool, lock.Config{Name: "bench"})
	if err != nil {
		return err
	}
	defer func() { _ = l.Close(context.WithoutCancel(a.ctx)) }()
	var mu sync.Mutex
	out := json.NewEncoder(a.out)
	tell := func(e benchEvent) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(e)
	}
	if err := onePair(a.ctx, l, c.Name+"-warm"); err != nil {
		return err
	}
	tell(benchEvent{What: "ready"})
	in := json.NewDecoder(a.in)
	var wg sync.WaitGroup
	for {
		var number int64
		if err := in.Decode(&number); err != nil {
			wg.Wait()
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if !c.Line {
			n, began := int64(0), time.Now()
			for time.Since(began) < c.Pairs {
				if err := onePair(a.ctx, l, c.Name); err != nil {
					return err
				}
				n++
			}
			tell(benchEvent{What: "done", Job: n, Seconds: time.Since(began).Seconds()})
			continue
		}
		wg.Go(func() {
			lease, err := l.Acquire(a.ctx, c.Name)
			if err != nil {
				a.complain(err)
				return
			}
			tell(benchEvent{What: "got", Job: number, AtNS: time.Now().UnixNano()})
			at := time.Now().UnixNano()
			if err := lease.Release(a.ctx); err != nil {
				a.complain(err)
			}
			tell(benchEvent{What: "released", Job: number, AtNS: at})
		})
	}
}

func onePair(ctx context.Context, l *lock.Locks, name string) error {
	lease, err := l.Acquire(ctx, name)
	if err != nil {
		return err
	}
	return lease.Release(ctx)
}

// locks opens Locks on the database measured.
func (b *bench) locks(ctx context.Context) (*lock.Locks, func(), error) {
	l, err := lock.Open(ctx, b.pool, lock.Config{Name: "bench"})
	if err != nil {
		return nil, nil, err
	}
	return l, func() { _ = l.Close(context.WithoutCancel(ctx)) }, nil
}

func (b *bench) lockTrips(ctx context.Context) error {
	l, stop, err := b.locks(ctx)
	if err != nil {
		return err
	}
	defer stop()
	before := l.RoundTrips()
	lease, err := l.Acquire(ctx, b.queue())
	if err != nil {
		return err
	}
	between := l.RoundTrips()
	if err := lease.Release(ctx); err != nil {
		return err
	}
	b.set("round_trips_acquire", float64(between-before))
	b.set("round_trips_release", float64(l.RoundTrips()-between))
	return nil
}

// commits measures single-row commits into the bare table over n connections.
func (b *bench) commits(ctx context.Context, n int) (float64, error) {
	return rate(ctx, n, func(ctx context.Context, _ int) error {
		_, err := b.pool.Exec(ctx, "INSERT INTO pawl_bench_bare (kind) VALUES ('x')")
		return err
	})
}

// lockPairs measures one process, with 16 goroutines and with one.
func (b *bench) lockPairs(ctx context.Context) error {
	l, stop, err := b.locks(ctx)
	if err != nil {
		return err
	}
	defer stop()
	drop, err := b.bareTable(ctx)
	if err != nil {
		return err
	}
	defer drop()
	name := b.queue()
	pair := func(ctx context.Context, g int) error { return onePair(ctx, l, fmt.Sprintf("%s-%d", name, g)) }
	var many, ratios, ones []float64
	for turn := range benchTurns + 1 { // the first, of cold connections, does not count
		n, err := rate(ctx, 16, pair)
		if err != nil {
			return err
		}
		commit, err := b.commits(ctx, 1)
		if err != nil {
			return err
		}
		one, err := rate(ctx, 1, pair)
		if err != nil {
			return err
		}
		if turn > 0 {
			many, ratios, ones = append(many, n), append(ratios, commit/one), append(ones, 1000/one)
		}
	}
	b.set("uncontended_pairs_per_s", median(many))
	b.set("pair_ms", median(ones))
	b.set("pair_vs_commit", median(ratios))
	return nil
}

// lockProcesses measures 16 processes with a name each, in turn with as many connections that commit a row each.
func (b *bench) lockProcesses(ctx context.Context) error {
	drop, err := b.bareTable(ctx)
	if err != nil {
		return err
	}
	defer drop()
	name := b.queue()
	var ps []*benchProcess
	for i := range 16 {
		p, err := b.process(ctx, "bench-locker", fmt.Sprintf("--name=%s-%d", name, i), fmt.Sprintf("--pairs=%s", benchSpan))
		if err != nil {
			return err
		}
		defer p.stop()
		ps = append(ps, p)
	}
	var pairs, commits, ratios []float64
	for turn := range benchTurns + 1 {
		for _, p := range ps {
			if _, err := io.WriteString(p.stdin, "1\n"); err != nil {
				return err
			}
		}
		sum := 0.0
		for _, p := range ps {
			e, err := p.wait(ctx, "done")
			if err != nil {
				return err
			}
			sum += float64(e.Job) / e.Seconds
		}
		commit, err := b.commits(ctx, 16)
		if err != nil {
			return err
		}
		if turn > 0 {
			pairs, commits, ratios = append(pairs, sum), append(commits, commit), append(ratios, sum/commit)
		}
	}
	b.set("processes_pairs_per_s", median(pairs))
	b.set("commits_per_s", median(commits))
	b.set("vs_commit_limit", median(ratios))
	return nil
}

// line lets processes wait for one name, one wait after the other, in turn over the processes; then the lock is released. It gives when each got and released it.
func (b *bench) line(ctx context.Context, processes, waits int) (got, released []benchEvent, conns float64, err error) {
	l, stop, err := b.locks(ctx)
	if err != nil {
		return nil, nil, 0, err
	}
	defer stop()
	name := b.queue()
	lease, err := l.Acquire(ctx, name)
	if err != nil {
		return nil, nil, 0, err
	}
	var ps []*benchProcess
	for range processes {
		p, err := b.process(ctx, "bench-locker", "--line", "--name="+name)
		if err != nil {
			return nil, nil, 0, err
		}
		defer p.stop()
		ps = append(ps, p)
	}
	for i := range waits {
		if _, err := fmt.Fprintln(ps[i%processes].stdin, i); err != nil {
			return nil, nil, 0, err
		}
		for n := 0; n <= i; { // the order is that of asking
			if err := b.pool.QueryRow(ctx, "SELECT count(*) FROM pawl.lock_waiter WHERE name = $1", name).Scan(&n); err != nil {
				return nil, nil, 0, err
			}
		}
	}
	conns, err = b.number(ctx, "SELECT coalesce(max(n), 0)::float8 FROM (SELECT count(*) AS n FROM pg_stat_activity WHERE application_name LIKE 'bench-locker-%' GROUP BY application_name) c")
	if err != nil {
		return nil, nil, 0, err
	}
	if err := lease.Release(ctx); err != nil {
		return nil, nil, 0, err
	}
	for i := range waits {
		g, err := ps[i%processes].wait(ctx, "got")
		if err != nil {
			return nil, nil, 0, err
		}
		got = append(got, g)
	}
	for _, p := range ps {
		for _, e := range p.stop() {
			switch e.What {
			case "got":
				got = append(got, e)
			case "released":
				released = append(released, e)
			}
		}
	}
	return got, released, conns, nil
}

func (b *bench) lockHandover(ctx context.Context) error {
	var waits []float64
	for range 10 {
		got, released, _, err := b.line(ctx, 4, 21)
		if err != nil {
			return err
		}
		at := map[int64]int64{}
		for _, e := range released {
			at[e.Job] = e.AtNS
		}
		for _, e := range got {
			if before, ok := at[e.Job-1]; ok {
				waits = append(waits, float64(e.AtNS-before)/1e6)
			}
		}
	}
	b.set("handover_p50_ms", percentile(waits, 50))
	b.set("handover_p99_ms", percentile(waits, 99))
	return nil
}

func (b *bench) lockBusy(ctx context.Context) error {
	l, stop, err := b.locks(ctx)
	if err != nil {
		return err
	}
	defer stop()
	other, stopOther, err := b.locks(ctx)
	if err != nil {
		return err
	}
	defer stopOther()
	name := b.queue()
	lease, err := l.Acquire(ctx, name)
	if err != nil {
		return err
	}
	const tries = 200
	var took, wal []float64
	for range 10 {
		before, err := b.number(ctx, sqlWAL)
		if err != nil {
			return err
		}
		for range tries {
			began := time.Now()
			if _, err := other.TryAcquire(ctx, name); !errors.Is(err, lock.ErrHeld) {
				return fmt.Errorf("a try of a held lock: %w", err)
			}
			took = append(took, float64(time.Since(began).Microseconds())/1000)
		}
		after, err := b.number(ctx, sqlWAL)
		if err != nil {
			return err
		}
		wal = append(wal, (after-before)/tries)
	}
	b.set("busy_try_ms", percentile(took[len(took)/2:], 50))
	b.set("busy_try_wal_bytes", slices.Min(wal)) // heartbeats write some too, now and then
	return lease.Release(ctx)
}

func (b *bench) lockWaiters(ctx context.Context) error {
	got, _, conns, err := b.line(ctx, 10, 1000)
	if err != nil {
		return err
	}
	slices.SortFunc(got, func(x, y benchEvent) int { return int(x.AtNS - y.AtNS) })
	ok := 0.0
	if len(got) == 1000 && slices.IsSortedFunc(got, func(x, y benchEvent) int { return int(x.Job - y.Job) }) {
		ok = 1
	}
	b.set("waiters_1000_ok", ok)
	b.set("connections_per_process", conns)
	return nil
}

// lockPinned measures one hot name before and after a time under a transaction held open, with the sweeps at work.
func (b *bench) lockPinned(ctx context.Context) error {
	stopSweeps, err := b.coordinate(ctx)
	if err != nil {
		return err
	}
	defer stopSweeps()
	l, stop, err := b.locks(ctx)
	if err != nil {
		return err
	}
	defer stop()
	name := b.queue()
	hot := func() (float64, error) {
		return rate(ctx, 4, func(ctx context.Context, _ int) error { return onePair(ctx, l, name) })
	}
	if _, err := hot(); err != nil { // warm
		return err
	}
	before, err := hot()
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pawl.queue; SELECT pg_current_xact_id()"); err != nil {
		return err
	}
	var after float64
	for began := time.Now(); time.Since(began) < b.pinSpan; {
		if after, err = hot(); err != nil {
			return err
		}
	}
	b.set("hot_pairs_per_s", before)
	b.set("pinned_ratio", after/before)
	return nil
}
