package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/devpg"
)

const (
	benchAccounts     = 10_000 // at each participant
	benchTxInFlight   = 32
	benchTxSpan       = 2 * time.Second // of one of the turns that the bare loop and the coordinator take
	benchTxTurns      = 4
	benchTxAlone      = 300 // transactions of one turn, one after another
	benchTxTimeout    = 2 * time.Second
	benchSweepEvery   = 5 * time.Second // as "pawl serve" does
	benchRecoveryMax  = time.Minute
	benchTxConns      = 40
	benchTransferLine = "transfers\n" // what a process says that does them
)

// benchTwophaseCmd is "pawl bench twophase".
type benchTwophaseCmd struct {
	benchOptions
}

// Help is the long help text.
func (*benchTwophaseCmd) Help() string {
	return "Figures: transfers, alone, prepares, recovery. The two participants are private servers beside the coordinator's; the bare loop sends them the same prepares and commits without a coordinator, in turn with it."
}

var twophaseTargets = []target{
	{"transfers_per_s", 0, false, "transfers between two Postgres servers, 32 in flight"},
	{"bare_2pc_per_s", 0, false, "the same prepares and commits by a bare loop"},
	{"vs_bare_2pc", 0.8, false, "the one by the other, taken in turn"},
	{"commit_p50_ms", 0, false, "a transfer alone, begin to end, median"},
	{"bare_p50_ms", 0, false, "the same by the bare loop"},
	{"commit_vs_bare", 1.5, true, "the one by the other, taken in turn"},
	{"prepares", 1, true, "prepares of a transfer between the coordinator's database and one participant"},
	{"in_doubt_s", 12, true, "from the deadline of what a killed coordinator had prepared until all is settled, sweeping every 5 s; or from the kill, if it is less"},
}

// Run measures and prints.
func (c *benchTwophaseCmd) Run(a *app) error {
	b := &bench{a: a}
	t := &benchTwophase{bench: b}
	defer t.close()
	wrap := func(run func(*benchTwophase, context.Context) error) func(*bench, context.Context) error {
		return func(_ *bench, ctx context.Context) error {
			if err := t.open(ctx); err != nil {
				return err
			}
			return run(t, ctx)
		}
	}
	return b.measure(c.benchOptions, []figure{
		{"transfers", wrap((*benchTwophase).transfers)}, {"alone", wrap((*benchTwophase).alone)}, {"prepares", wrap((*benchTwophase).prepares)}, {"recovery", wrap((*benchTwophase).recovery)},
	}, twophaseTargets)
}

// benchTwophase is a bench of global transactions.
type benchTwophase struct {
	*bench
	servers []*devpg.Server
	urls    []string
	pools   []*pgxpool.Pool
	at      []*twophase.PostgresDB
	m       *twophase.Manager
}

// open starts the participants, once.
func (t *benchTwophase) open(ctx context.Context) (err error) {
	if t.m != nil {
		return nil
	}
	dir, err := devpg.DefaultDir("bench")
	if err != nil {
		return err
	}
	for _, name := range []string{"east", "west"} {
		server, err := devpg.Start(ctx, devpg.Config{Dir: filepath.Join(dir, fmt.Sprintf("%d-%s", os.Getpid(), name)), Durable: true, Temporary: true})
		if err != nil {
			return err
		}
		t.servers, t.urls = append(t.servers, server), append(t.urls, server.URL("postgres"))
	}
	t.pools, t.at, t.m, err = openTransfers(ctx, t.pool, t.urls)
	if err != nil {
		return err
	}
	if err := t.m.Setup(ctx); err != nil {
		return err
	}
	for _, pool := range append([]*pgxpool.Pool{t.pool}, t.pools...) {
		if _, err := pool.Exec(ctx, `CREATE TABLE bench_account (id int PRIMARY KEY, amount bigint NOT NULL)`); err != nil {
			return err
		}
		if _, err := pool.Exec(ctx, `INSERT INTO bench_account SELECT i, 0 FROM generate_series(1, $1) i`, benchAccounts); err != nil {
			return err
		}
	}
	return nil
}

func openTransfers(ctx context.Context, own *pgxpool.Pool, urls []string) (pools []*pgxpool.Pool, at []*twophase.PostgresDB, m *twophase.Manager, err error) {
	var participants []twophase.Participant
	for i, url := range urls {
		conf, err := pgxpool.ParseConfig(url)
		if err != nil {
			return nil, nil, nil, err
		}
		conf.MaxConns = benchTxConns
		pool, err := pgxpool.NewWithConfig(ctx, conf)
		if err != nil {
			return nil, nil, nil, err
		}
		p := twophase.Postgres([]string{"east", "west"}[i], pool)
		pools, at, participants = append(pools, pool), append(at, p), append(participants, p)
	}
	m, err = twophase.New(own, twophase.Config{}, participants...)
	return pools, at, m, err
}

func (t *benchTwophase) close() {
	for _, pool := range t.pools {
		pool.Close()
	}
	for _, server := range t.servers {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.a.ctx), 30*time.Second)
		if err := server.Stop(ctx); err != nil {
			t.a.log.Warn("private server not stopped", "err", err)
		}
		cancel()
	}
}

func addTo(ctx context.Context, tx pgx.Tx, amount int) error {
	_, err := tx.Exec(ctx, "UPDATE bench_account SET amount = amount + $1 WHERE id = $2", amount, 1+rand.IntN(benchAccounts))
	return err
}

// benchTransfer moves an amount from one participant to the other, in a global transaction.
func benchTransfer(ctx context.Context, m *twophase.Manager, at []*twophase.PostgresDB, opts ...twophase.Option) error {
	return m.Run(ctx, func(ctx context.Context, g *twophase.Tx) error {
		for i, p := range at {
			tx, err := p.Tx(ctx, g)
			if err == nil {
				err = addTo(ctx, tx, 1-2*i)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}, opts...)
}

// bareTransfer does what benchTransfer has the participants do, without a decision: after a crash nobody would know.
func (t *benchTwophase) bareTransfer(ctx context.Context) error {
	name := fmt.Sprintf("bare-%d", rand.Int64())
	conns := make([]*pgxpool.Conn, len(t.pools))
	for i, pool := range t.pools {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		conns[i] = conn
		tx, err := conn.Begin(ctx)
		if err == nil {
			err = addTo(ctx, tx, 1-2*i)
		}
		if err != nil {
			return err
		}
	}
	for _, statement := range []string{"PREPARE TRANSACTION", "COMMIT PREPARED"} {
		errs := make([]error, len(conns))
		var group sync.WaitGroup
		for i, conn := range conns {
			group.Go(func() { _, errs[i] = conn.Conn().PgConn().Exec(ctx, statement+" '"+name+"'").ReadAll() })
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}

// inFlight does transactions, so many at a time for a span, and gives how many a second it did.
func inFlight(ctx context.Context, n int, span time.Duration, do func(context.Context) error) (perS float64, err error) {
	var group sync.WaitGroup
	var done atomic.Int64
	var fault atomic.Pointer[error]
	began := time.Now()
	for range n {
		group.Go(func() {
			for time.Since(began) < span && fault.Load() == nil {
				if err := do(ctx); err != nil {
					fault.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	group.Wait()
	if err := fault.Load(); err != nil {
		return 0, *err
	}
	return float64(done.Load()) / time.Since(began).Seconds(), nil
}

func (t *benchTwophase) ours(ctx context.Context) error { return benchTransfer(ctx, t.m, t.at) }

// inTurn measures the bare loop and the coordinator in turn, and gives both medians. The first turn does not count.
func (t *benchTwophase) inTurn(measure func(do func(context.Context) error) ([]float64, error)) (ours, bare float64, err error) {
	var all [2][]float64
	for i := range benchTxTurns + 1 {
		for k, do := range []func(context.Context) error{t.bareTransfer, t.ours} {
			got, err := measure(do)
			if err != nil {
				return 0, 0, err
			}
			if i > 0 {
				all[k] = append(all[k], got...)
			}
		}
	}
	return median(all[1]), median(all[0]), nil
}

func (t *benchTwophase) transfers(ctx context.Context) error {
	ours, bare, err := t.inTurn(func(do func(context.Context) error) ([]float64, error) {
		perS, err := inFlight(ctx, benchTxInFlight, benchTxSpan, do)
		return []float64{perS}, err
	})
	if err != nil {
		return err
	}
	t.set("transfers_per_s", ours)
	t.set("bare_2pc_per_s", bare)
	t.set("vs_bare_2pc", ours/bare)
	return nil
}

func (t *benchTwophase) alone(ctx context.Context) error {
	ours, bare, err := t.inTurn(func(do func(context.Context) error) (took []float64, err error) {
		for range benchTxAlone {
			at := time.Now()
			if err := do(ctx); err != nil {
				return nil, err
			}
			took = append(took, time.Since(at).Seconds()*1000)
		}
		return took, nil
	})
	if err != nil {
		return err
	}
	t.set("commit_p50_ms", ours)
	t.set("bare_p50_ms", bare)
	t.set("commit_vs_bare", ours/bare)
	return nil
}

// prepares counts who had prepared when a transaction of the coordinator's database and one participant was decided.
func (t *benchTwophase) prepares(ctx context.Context) error {
	var id string
	err := t.m.Run(ctx, func(ctx context.Context, g *twophase.Tx) error {
		id = g.ID()
		own, err := g.Own(ctx)
		if err != nil {
			return err
		}
		east, err := t.at[0].Tx(ctx, g)
		if err != nil {
			return err
		}
		return errors.Join(addTo(ctx, own, 1), addTo(ctx, east, -1))
	})
	if err != nil {
		return err
	}
	s, err := t.m.Get(ctx, id)
	if err == nil {
		t.set("prepares", float64(len(s.Decided.Participants)))
	}
	return err
}

// recovery kills a process amid transfers, and sweeps until nothing is left prepared.
func (t *benchTwophase) recovery(ctx context.Context) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, exe, "bench-transfers", "--database-url", t.url, "--east", t.urls[0], "--west", t.urls[1])
	cmd.Stderr = t.a.err
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	_, err = bufio.NewReader(out).ReadString('\n')
	prepared := 0
	for end := time.Now().Add(benchRecoveryMax); err == nil && prepared == 0; { // killed again and again, until something was left
		if time.Now().After(end) {
			err = errors.New("the process never had anything prepared")
			break
		}
		time.Sleep(10 * time.Millisecond)
		prepared, err = t.prepared(ctx)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		return err
	}
	killed := time.Now()
	for last := killed.Add(-rand.N(benchSweepEvery)); ; { // the sweep is anywhere between two runs
		if wait := time.Until(last.Add(benchSweepEvery)); wait > 0 {
			time.Sleep(wait)
		}
		last = time.Now()
		if _, err := t.m.Recover(ctx, twophase.KeepDefault); err != nil {
			return err
		}
		if prepared, err = t.prepared(ctx); err != nil {
			return err
		}
		if prepared == 0 {
			break
		}
		if time.Since(killed) > benchRecoveryMax {
			return fmt.Errorf("%d branches are still prepared", prepared)
		}
	}
	t.set("in_doubt_s", max(0, time.Since(killed).Seconds()-benchTxTimeout.Seconds()))
	return nil
}

func (t *benchTwophase) prepared(ctx context.Context) (n int, err error) {
	for _, p := range t.at {
		all, err := p.Prepared(ctx)
		if err != nil {
			return 0, err
		}
		n += len(all)
	}
	return n, nil
}

// benchTransfersCmd is "pawl bench-transfers", hidden: a process of "pawl bench twophase" that transfers until it is killed.
type benchTransfersCmd struct {
	East, West string
}

// Run works until it is killed, or its parent is gone.
func (c *benchTransfersCmd) Run(a *app) error {
	conf, err := pgxpool.ParseConfig(a.databaseURL)
	if err != nil {
		return err
	}
	conf.MaxConns = 8
	own, err := pgxpool.NewWithConfig(a.ctx, conf)
	if err != nil {
		return err
	}
	defer own.Close()
	_, at, m, err := openTransfers(a.ctx, own, []string{c.East, c.West})
	if err != nil {
		return err
	}
	if _, err := io.WriteString(a.out, benchTransferLine); err != nil {
		return err
	}
	_, err = inFlight(a.ctx, benchTxInFlight, benchRecoveryMax, func(ctx context.Context) error {
		return benchTransfer(ctx, m, at, twophase.Timeout(benchTxTimeout))
	})
	return err
}
