package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/job"
)

const (
	jobsDefault   = 200_000          // --jobs
	jobsPinned    = 500_000          // the same with --pin and --pin-writer
	benchSpan     = 2 * time.Second  // of one turn of a rate
	benchTurns    = 3                // of rates that are taken in turn
	pickupRate    = 100              // jobs a second
	pickupSpan    = 10 * time.Second // for how long
	dueJobs       = 200
	benchWaitMax  = 2 * time.Minute // for anything
	contendedJobs = 60_000
	statsSpan     = 1500 * time.Millisecond
)

// insert enqueues n jobs in batches over 4 connections and tells how long it took.
func (b *bench) insert(ctx context.Context, queue string, n int) (time.Duration, error) {
	var (
		left  atomic.Int64
		wg    sync.WaitGroup
		fault atomic.Pointer[error]
	)
	left.Store(int64(n))
	began := time.Now()
	for range 4 {
		wg.Go(func() {
			for {
				size := min(int64(b.c.Batch), left.Add(-int64(b.c.Batch))+int64(b.c.Batch))
				if size <= 0 {
					return
				}
				if _, err := benchNoop.EnqueueMany(ctx, b.pool, someArgs(int(size)), job.Queue(queue)); err != nil {
					fault.Store(&err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := fault.Load(); err != nil {
		return 0, *err
	}
	return time.Since(began), nil
}

func someArgs(n int) iter.Seq[benchArgs] {
	return func(yield func(benchArgs) bool) {
		for i := range n {
			if !yield(benchArgs{Num: i, Pad: benchPad}) {
				return
			}
		}
	}
}

// work drains a queue by worker processes and tells how long it took, from the start of their work to the last receipt.
func (b *bench) work(ctx context.Context, queue string, n, slots int) (seconds, rss float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, benchWaitMax)
	defer cancel()
	if b.c.Workers > 1 {
		return b.workMany(ctx, queue, n, slots)
	}
	args := []string{"--queue=" + queue, fmt.Sprintf("--slots=%d", slots), fmt.Sprintf("--jobs=%d", n)}
	if b.c.Profile != "" {
		args = append(args, "--cpuprofile="+b.c.Profile)
	}
	p, err := b.worker(ctx, args...)
	if err != nil {
		return 0, 0, err
	}
	defer p.stop()
	done, err := p.wait(ctx, "done")
	return done.Seconds, done.RSSMB, err
}

// workMany drains by several processes: it takes as long as until all jobs have receipts.
func (b *bench) workMany(ctx context.Context, queue string, n, slots int) (seconds, rss float64, err error) {
	began := time.Now()
	for range b.c.Workers {
		p, err := b.worker(ctx, "--queue="+queue, fmt.Sprintf("--slots=%d", slots))
		if err != nil {
			return 0, 0, err
		}
		defer p.stop()
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var done int
		err := b.pool.QueryRow(ctx, `SELECT coalesce(sum(upper(u) - lower(u)), 0) FROM pawl.queue q JOIN pawl.claim c ON c.ns = 1 AND c.queue_id = q.id
			JOIN pawl.receipt r ON r.ns = 1 AND r.claim_id = c.id, unnest(r.jobs) u WHERE q.ns = 1 AND q.name = $1`, queue).Scan(&done)
		if err != nil || done >= n {
			return time.Since(began).Seconds(), 0, err
		}
		<-tick.C
	}
}

// drain measures inserting and draining, WAL and dead rows; with --pin and --pin-writer again under an open transaction.
func (b *bench) drain(ctx context.Context) error {
	n := b.c.Jobs
	if (b.c.Pin || b.c.PinWriter) && n == jobsDefault {
		n = jobsPinned
	}
	rate, err := b.drainOnce(ctx, n, true)
	if err != nil {
		return err
	}
	b.set("work_jobs_per_s", rate)
	if !b.c.Pin && !b.c.PinWriter {
		return nil
	}
	conn, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	pin := "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pawl.queue"
	if b.c.PinWriter {
		pin += "; SELECT pawl.queue_pause(1::smallint, 'no such queue', false); SELECT pg_current_xact_id()"
	}
	if _, err := conn.Exec(ctx, pin); err != nil {
		return err
	}
	pinned, err := b.drainOnce(ctx, n, false)
	if err != nil {
		return err
	}
	b.set("pinned_work_jobs_per_s", pinned)
	b.set("pinned_vs_work", pinned/rate)
	return nil
}

func (b *bench) drainOnce(ctx context.Context, n int, keep bool) (rate float64, err error) {
	queue := b.queue()
	took, err := b.insert(ctx, queue, n)
	if err != nil {
		return 0, err
	}
	if _, err := b.pool.Exec(ctx, "CHECKPOINT"); err != nil {
		b.a.log.Warn("no checkpoint before the drain", "err", err)
	}
	before, err := b.number(ctx, sqlWAL)
	if err != nil {
		return 0, err
	}
	seconds, _, err := b.work(ctx, queue, n, 100)
	if err != nil {
		return 0, err
	}
	after, err := b.number(ctx, sqlWAL)
	if err != nil {
		return 0, err
	}
	select { // until the backends have sent their statistics
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-time.After(statsSpan):
	}
	dead, err := b.number(ctx, sqlDead)
	if err != nil {
		return 0, err
	}
	if keep {
		b.set("insert_jobs_per_s", float64(n)/took.Seconds())
		b.set("wal_bytes_per_job_worked", (after-before)/float64(n))
		b.set("dead_rows", dead)
	}
	return float64(n) / seconds, nil
}

const (
	sqlWAL  = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8"
	sqlDead = `SELECT coalesce(sum(n_dead_tup), 0)::float8 FROM pg_stat_user_tables
		WHERE schemaname = 'pawl' AND relname ~ '^(job|ready|claim|receipt)(_|$)'`
)

func (b *bench) number(ctx context.Context, sql string, args ...any) (v float64, err error) {
	err = b.pool.QueryRow(ctx, sql, args...).Scan(&v)
	return v, err
}

// rate runs do over and over in goroutines for a span and gives how often a second.
func rate(ctx context.Context, goroutines int, do func(ctx context.Context, g int) error) (float64, error) {
	var (
		n     atomic.Int64
		wg    sync.WaitGroup
		fault atomic.Pointer[error]
	)
	began := time.Now()
	for g := range goroutines {
		wg.Go(func() {
			for time.Since(began) < benchSpan {
				if err := do(ctx, g); err != nil {
					fault.Store(&err)
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	if err := fault.Load(); err != nil {
		return 0, *err
	}
	return float64(n.Load()) / time.Since(began).Seconds(), nil
}

// single measures enqueues in transactions of their own beside bare inserts of rows of the same size, in turn.
func (b *bench) single(ctx context.Context) error {
	queue := b.queue()
	drop, err := b.bareTable(ctx)
	if err != nil {
		return err
	}
	defer drop()
	var ours, bares, ratios []float64
	for turn := range benchTurns + 1 { // the first, of cold connections, does not count
		bare, err := rate(ctx, 16, func(ctx context.Context, _ int) error {
			_, err := b.pool.Exec(ctx, "INSERT INTO pawl_bench_bare (kind, args) VALUES ($1, $2)", "bench.noop", benchArgs{Pad: benchPad})
			return err
		})
		if err != nil {
			return err
		}
		own, err := rate(ctx, 16, func(ctx context.Context, _ int) error {
			_, err := benchNoop.Enqueue(ctx, b.pool, benchArgs{Pad: benchPad}, job.Queue(queue))
			return err
		})
		if err != nil {
			return err
		}
		if turn > 0 {
			ours, bares, ratios = append(ours, own), append(bares, bare), append(ratios, own/bare)
		}
	}
	b.set("single_enqueue_per_s", median(ours))
	b.set("bare_inserts_per_s", median(bares))
	b.set("single_enqueue_vs_bare", median(ratios))
	return nil
}

// contended measures claims of one job each from one queue over many connections.
func (b *bench) contended(ctx context.Context) error {
	for _, n := range []int{1, 8, 32} {
		queue := b.queue()
		if _, err := b.insert(ctx, queue, contendedJobs); err != nil {
			return err
		}
		var id int32
		if err := b.pool.QueryRow(ctx, "SELECT id FROM pawl.queue WHERE ns = 1 AND name = $1", queue).Scan(&id); err != nil {
			return err
		}
		var session int64
		err := b.pool.QueryRow(ctx, "SELECT pawl.session_start(1::smallint, 'bench', 'bench', 0, '', interval '5 min')").Scan(&session)
		if err != nil {
			return err
		}
		conns := make([]*pgx.Conn, n)
		for i := range conns {
			if conns[i], err = pgx.Connect(ctx, b.url); err != nil {
				return err
			}
			defer func() { _ = conns[i].Close(context.WithoutCancel(ctx)) }()
		}
		claimOne := func(ctx context.Context, g int) error {
			var claim *int64
			err := conns[g].QueryRow(ctx, "SELECT claim_id FROM pawl.claim($1, $2, $3, $4, $5, $6)",
				int16(1), session, rand.Int64(), id, int16(job.PriorityDefault), int32(1)).Scan(&claim)
			if err == nil && claim == nil {
				err = errors.New("the queue ran dry")
			}
			return err
		}
		for g := range conns { // so that it has its plans
			if err := claimOne(ctx, g); err != nil {
				return err
			}
		}
		claims, err := rate(ctx, n, claimOne)
		if err != nil {
			return err
		}
		key := "contended_claims_per_s"
		if n < 32 {
			key += fmt.Sprintf("_%d", n)
		}
		b.set(key, claims)
		if _, err := b.pool.Exec(ctx, "SELECT pawl.session_end(1::smallint, $1, 'bench')", session); err != nil {
			return err
		}
	}
	return nil
}

// pickup measures the time from an enqueue's reply to the start of its handler in another process.
func (b *bench) pickup(ctx context.Context) error {
	queue := b.queue()
	p, err := b.worker(ctx, "--queue="+queue, "--starts")
	if err != nil {
		return err
	}
	sent, committed := map[int64]time.Time{}, map[int64]time.Time{}
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		fault error
	)
	tick := time.NewTicker(time.Second / pickupRate)
	defer tick.Stop()
	for range pickupRate { // not counted: connections and plans are made
		<-tick.C
		if _, err := benchNoop.Enqueue(ctx, b.pool, benchArgs{Pad: benchPad}, job.Queue(queue)); err != nil {
			p.stop()
			return err
		}
		if _, err := p.wait(ctx, "start"); err != nil {
			p.stop()
			return err
		}
	}
	for range int(pickupSpan.Seconds()) * pickupRate {
		<-tick.C
		wg.Go(func() {
			began := time.Now()
			res, err := benchNoop.Enqueue(ctx, b.pool, benchArgs{Pad: benchPad}, job.Queue(queue))
			replied := time.Now()
			mu.Lock()
			defer mu.Unlock()
			sent[res.ID], committed[res.ID] = began, replied
			if err != nil {
				fault = err
			}
		})
	}
	wg.Wait()
	if fault != nil {
		p.stop()
		return fault
	}
	var waits, whole []float64
	for range committed {
		e, err := p.wait(ctx, "start")
		if err != nil {
			return err
		}
		waits = append(waits, max(0, float64(e.AtNS-committed[e.Job].UnixNano())/1e6))
		whole = append(whole, float64(e.AtNS-sent[e.Job].UnixNano())/1e6)
	}
	p.stop()
	b.set("pickup_p50_ms", percentile(waits, 50))
	b.set("pickup_p99_ms", percentile(waits, 99))
	b.set("sent_to_start_p50_ms", percentile(whole, 50))
	b.set("sent_to_start_p99_ms", percentile(whole, 99))
	return nil
}

// idle counts the statements of a worker process that has nothing to do.
func (b *bench) idle(ctx context.Context) error {
	var args []string
	for range 10 {
		args = append(args, "--queue="+b.queue())
	}
	p, err := b.worker(ctx, append(args, "--tick=1s")...)
	if err != nil {
		return err
	}
	const settle, span = 5, 20 // seconds
	var counts []int64
	for range settle + span {
		e, err := p.wait(ctx, "tick")
		if err != nil {
			return err
		}
		counts = append(counts, e.Queries)
	}
	p.stop()
	b.set("idle_queries_per_s", float64(counts[settle+span-1]-counts[settle-1])/span)
	return nil
}

// due measures how late scheduled jobs start on an idle queue.
func (b *bench) due(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, benchWaitMax)
	defer cancel()
	queue := b.queue()
	stop, err := b.coordinate(ctx)
	if err != nil {
		return err
	}
	defer stop()
	p, err := b.worker(ctx, "--queue="+queue, "--starts")
	if err != nil {
		return err
	}
	defer p.stop()
	due := map[int64]time.Time{}
	first := time.Now().Add(2 * time.Second)
	for i := range dueJobs {
		at := first.Add(time.Duration(i) * 53 * time.Millisecond)
		res, err := benchNoop.Enqueue(ctx, b.pool, benchArgs{}, job.Queue(queue), job.RunAt(at))
		if err != nil {
			return err
		}
		due[res.ID] = at
	}
	var late []float64
	for range due {
		e, err := p.wait(ctx, "start")
		if err != nil {
			return err
		}
		late = append(late, float64(e.AtNS-due[e.Job].UnixNano())/1e6)
	}
	b.set("due_p50_ms", percentile(late, 50))
	b.set("due_p99_ms", percentile(late, 99))
	return nil
}

// coordinate runs a coordinator until stop.
func (b *bench) coordinate(ctx context.Context) (stop func(), err error) {
	c, err := coordinator.New(b.pool, coordinator.Config{})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Run(ctx); err != nil {
			b.a.log.Error("coordinator", "err", err)
		}
	}()
	return func() { cancel(); <-done }, nil
}

// rss measures the memory of a worker with many slots.
func (b *bench) rss(ctx context.Context) error {
	queue := b.queue()
	if _, err := b.insert(ctx, queue, b.c.Jobs); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, benchWaitMax)
	defer cancel()
	p, err := b.worker(ctx, "--queue="+queue, "--slots=1000", fmt.Sprintf("--jobs=%d", b.c.Jobs))
	if err != nil {
		return err
	}
	defer p.stop()
	done, err := p.wait(ctx, "done")
	if err == nil && done.RSSMB > 0 {
		b.set("worker_rss_mb", done.RSSMB)
	}
	return err
}

// rescue measures the time from SIGKILL of a worker process to the next start of the job that it ran.
func (b *bench) rescue(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, benchWaitMax)
	defer cancel()
	stop, err := b.coordinate(ctx)
	if err != nil {
		return err
	}
	defer stop()
	queue := b.queue()
	first, err := b.worker(ctx, "--queue="+queue)
	if err != nil {
		return err
	}
	defer first.stop()
	if _, err := benchHang.Enqueue(ctx, b.pool, benchArgs{}, job.Queue(queue), job.Timeout(time.Hour)); err != nil {
		return err
	}
	if _, err := first.wait(ctx, "start"); err != nil {
		return err
	}
	second, err := b.worker(ctx, "--queue="+queue)
	if err != nil {
		return err
	}
	defer func() { _ = second.cmd.Process.Kill(); second.stop() }()
	killed := time.Now()
	if err := first.cmd.Process.Kill(); err != nil {
		return err
	}
	e, err := second.wait(ctx, "start")
	if err != nil {
		return err
	}
	b.set("rescue_s", time.Unix(0, e.AtNS).Sub(killed).Seconds())
	return nil
}
