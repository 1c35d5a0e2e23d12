// Package coordinator runs the sweeps that put right what crashed and start what is due, and the relays of subscriptions.
//
// Any number of coordinators may run: each sweep begins with an advisory lock that one of them gets, the others skip; but for "in-doubt", which all do. Every sweep is bounded,
// reports what it did in pawl.sweep, and may die anywhere; the next one goes on.
//
//	Situation                | Error                          | What to do
//	bad configuration        | New's error lists all faults   | mend it
//	schema missing           | ErrSchema from Run and Sweep   | run "pawl migrate up"
//	database moved           | ErrMoved from Sweep, logged    | run "pawl doctor --rebase" once
//	no such sweep            | ErrUnknownSweep                | see SweepSpecs and SweepDue
package coordinator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/robfig/cron/v3"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db"
)

var (
	// ErrSchema: the database lacks Pawl's schema or has an older one.
	ErrSchema = session.ErrSchema
	// ErrMoved: the database was restored or copied into another cluster.
	ErrMoved = errors.New("coordinator: database was moved to another cluster")
	// ErrUnknownSweep: there is no sweep of that name.
	ErrUnknownSweep = errors.New("coordinator: unknown sweep")
)

var parser = cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// Coordinator runs sweeps. It is safe for concurrent use.
type Coordinator struct {
	pool *pgxpool.Pool
	q    *db.Queries
	conf Config

	sagasSeen atomic.Int64             // up to which saga the look for forgotten ones has come
	tccSeen   atomic.Pointer[tccRound] // up to which transaction the look for stuck ones has

	mu       sync.Mutex
	hindered map[string]bool // participants of global transactions where recovery was hindered last
}

// New makes a coordinator on a pool. The error lists every fault of conf.
func New(pool *pgxpool.Pool, conf Config) (*Coordinator, error) {
	conf = conf.withDefaults()
	if err := conf.validate(); err != nil {
		return nil, err
	}
	if conf.Global == nil {
		m, err := twophase.New(pool, twophase.Config{Namespace: conf.Namespace, Logger: conf.Logger})
		if err != nil {
			return nil, fmt.Errorf("coordinator: %w", err)
		}
		conf.Global = m
	}
	return &Coordinator{pool: pool, q: db.New(pool), conf: conf}, nil
}

// Run sweeps until ctx is cancelled, waits for the sweeps at work and returns nil. An error means that it could not start; later ones are logged and
// kept with the sweep.
func (c *Coordinator) Run(ctx context.Context) error {
	ctx, stopDue := context.WithCancel(ctx)
	defer stopDue()
	if _, err := c.q.ListSweeps(ctx, c.conf.Namespace); err != nil {
		if db.IsUnmigrated(err) {
			return fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
		}
		return fmt.Errorf("coordinator: %w", err)
	}
	if err := c.keepOutbox(ctx); err != nil {
		return err
	}
	clock := cron.New(cron.WithParser(parser), cron.WithChain(cron.SkipIfStillRunning(cron.DiscardLogger)))
	for name, spec := range c.conf.Specs {
		if _, err := clock.AddFunc(spec, func() { c.sweepLogged(ctx, name) }); err != nil {
			return fmt.Errorf("coordinator: sweep %q: %w", name, err)
		}
	}
	clock.Start()
	c.conf.Logger.Info("coordinator started", "namespace", c.conf.Namespace)
	var due sync.WaitGroup
	due.Go(func() { c.runDue(ctx) })
	due.Go(func() { // once now: the process may come after an outage
		for _, name := range slices.Sorted(maps.Keys(c.conf.Specs)) {
			if ctx.Err() == nil {
				c.sweepLogged(ctx, name)
			}
		}
	})
	err := c.relay(ctx) // until ctx ends, unless it cannot start
	if err == nil {
		<-ctx.Done()
	}
	stopDue()
	<-clock.Stop().Done()
	due.Wait()
	return err
}

func (c *Coordinator) sweepLogged(ctx context.Context, name string) {
	r, err := c.Sweep(ctx, name)
	var unsettled *twophase.UnsettledError
	switch {
	case ctx.Err() != nil:
	case errors.As(err, &unsettled): // told when it begins, and when it ends
	case err != nil:
		c.conf.Logger.Error("sweep failed, the next one tries again", "sweep", name, "err", err)
	case r.Did > 0:
		c.conf.Logger.Info("sweep", "sweep", name, "did", r.Did, "took", r.Took)
	}
}

// Report is what one run of a sweep did.
type Report struct {
	Name    string        `json:"name"`
	Did     int64         `json:"did"`               // what was put right: sessions ended and jobs rescued, jobs moved, branches settled, keys removed, ranges made and dropped
	Dropped []Range       `json:"dropped,omitempty"` // ranges dropped
	Skipped bool          `json:"skipped"`           // another node was at it
	Took    time.Duration `json:"took_ns"`
}

// Status is what is known of a sweep over all nodes.
type Status struct {
	Name     string    `json:"name"`
	RanAt    time.Time `json:"ran_at"`
	TookMS   int       `json:"took_ms"`
	Did      int64     `json:"did"`
	DidTotal int64     `json:"did_total"`
	Runs     int64     `json:"runs"`
	Error    string    `json:"error,omitempty"`
}

// Statuses lists the sweeps that ever ran in the namespace.
func (c *Coordinator) Statuses(ctx context.Context) ([]Status, error) {
	rows, err := c.q.ListSweeps(ctx, c.conf.Namespace)
	if err != nil {
		return nil, fmt.Errorf("list sweeps: %w", wrap(err))
	}
	out := make([]Status, len(rows))
	for i, r := range rows {
		out[i] = Status{Name: r.Name, RanAt: r.RanAt, TookMS: int(r.TookMs), Did: r.Did, DidTotal: r.DidTotal, Runs: r.Runs}
		if r.Error != nil {
			out[i].Error = *r.Error
		}
	}
	return out, nil
}

// Rebase makes a database work again that was restored, copied or upgraded into another cluster: every line takes its newest position as its base and counts
// in the new cluster's xids from here on. Of global transactions that began before, nothing is presumed any more: decisions may be lost. Nothing of Pawl may run in the old place. It returns the number of lines
// changed, 0 if all were at home; then nothing was done.
func (c *Coordinator) Rebase(ctx context.Context) (lines int, err error) {
	var n int32
	err = pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) (err error) {
		q := db.New(tx)
		if n, err = q.RebaseLines(ctx, c.conf.Namespace); err == nil && n > 0 {
			_, err = q.RaiseGlobalIncarnation(ctx)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("rebase: %w", wrap(err))
	}
	return int(n), nil
}

func wrap(err error) error {
	if db.Code(err) == db.CodeMoved {
		return fmt.Errorf("%w: %s", ErrMoved, db.Message(err))
	}
	if db.IsUnmigrated(err) {
		return fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
	}
	return err
}
