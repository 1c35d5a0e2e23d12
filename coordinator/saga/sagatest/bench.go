package sagatest

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db"
)

const (
	// RunJobsMax is how many attempts one Run makes; a test with more does not come to rest.
	RunJobsMax = 200_000

	namespace  = 1
	queuesMax  = 10_000     // queues looked at
	sagasMax   = 1000       // sagas of which jobs are withdrawn at once
	dueMax     = 1000       // due jobs, or timers, taken up in one transaction
	passesMax  = 100_000    // transactions until nothing is due
	claimsMax  = 50         // claims rescued in one transaction
	sessionTTL = time.Hour  // nobody renews it
	workerName = "sagatest" // of the sessions
)

// Bench is a [saga.Worker] that works when it is told to. Handlers are registered with it as with a worker. Not safe for concurrent use: handlers run in the goroutine that calls Run.
type Bench struct {
	tb       testing.TB
	pool     *pgxpool.Pool
	q        *db.Queries
	handlers map[string]handler // by kind
	faults   map[string][]fault // by step, in the order in which they were planned
	session  int64              // of the process that runs; 0: none
	strange  []*claim           // of jobs without a handler, given back when it ends
	nonce    int64              // of the last claim
}

// handler does one attempt. With tx it is to be called in a transaction, which is nil otherwise.
type handler struct {
	tx bool
	do func(ctx context.Context, tx pgx.Tx, j *saga.Raw) (json.RawMessage, error)
}

var _ saga.Worker = (*Bench)(nil)

// New returns a bench on a database that has Pawl's schema. At the end of the test it reports faults that were planned and not met.
func New(tb testing.TB, pool *pgxpool.Pool) *Bench {
	tb.Helper()
	b := &Bench{tb: tb, pool: pool, q: db.New(pool), handlers: map[string]handler{}, faults: map[string][]fault{}}
	tb.Cleanup(func() {
		for step, left := range b.faults {
			if len(left) > 0 && !tb.Failed() {
				tb.Errorf("sagatest: %d faults planned for step %q were not met", len(left), step)
			}
		}
	})
	return b
}

// HandleRaw registers the handler of a kind of job; package saga calls it.
func (b *Bench) HandleRaw(kind string, h func(ctx context.Context, j *saga.Raw) (json.RawMessage, error)) {
	b.register(kind, handler{do: func(ctx context.Context, _ pgx.Tx, j *saga.Raw) (json.RawMessage, error) { return h(ctx, j) }})
}

// HandleRawTx registers one whose effects commit with the end of its job; package saga calls it.
func (b *Bench) HandleRawTx(kind string, h func(ctx context.Context, tx pgx.Tx, j *saga.Raw) (json.RawMessage, error)) {
	b.register(kind, handler{tx: true, do: h})
}

func (b *Bench) register(kind string, h handler) {
	if _, there := b.handlers[kind]; there {
		panic(fmt.Sprintf("sagatest: kind %q has a handler already", kind))
	}
	b.handlers[kind] = h
}

// Wake does nothing: Run finds what there is.
func (b *Bench) Wake(string) {}

// OnSagas does nothing: those who await a saga look by themselves.
func (b *Bench) OnSagas(func([]string)) {}

// Pool is the bench's pool.
func (b *Bench) Pool() *pgxpool.Pool { return b.pool }

// Advance lets d pass: deadlines, timers and waiting attempts come nearer by it, and what is due then is done as a coordinator does it; jobs that get their turn wait for Run. The process's own time, which passes too, is
// milliseconds: choose spans that differ by more.
func (b *Bench) Advance(d time.Duration) {
	b.tb.Helper()
	ctx := context.Background()
	b.must("advance time", b.q.AdvanceSagaTimers(ctx, db.AdvanceSagaTimersParams{Ns: namespace, By: d}))
	b.must("advance time", b.q.AdvanceSagaDeadlines(ctx, db.AdvanceSagaDeadlinesParams{Ns: namespace, By: d}))
	b.must("advance time", b.q.AdvanceScheduled(ctx, db.AdvanceScheduledParams{Ns: namespace, By: d}))
	for range passesMax {
		jobs, err := b.q.SweepDue(ctx, db.SweepDueParams{Ns: namespace, LimitRows: dueMax})
		b.must("sweep", err)
		sagas, err := b.q.SweepSagas(ctx, db.SweepSagasParams{Ns: namespace, LimitRows: dueMax})
		b.must("sweep", err)
		b.withdraw(ctx)
		if jobs.Moved <= 0 && sagas.Did <= 0 {
			return
		}
	}
	b.tb.Fatalf("sagatest: something is due for ever")
}

// withdraw takes jobs out of the line that sagas which compensate do not need any more, as a coordinator does at once.
func (b *Bench) withdraw(ctx context.Context) {
	b.tb.Helper()
	for range passesMax {
		ids, err := b.q.ListSagasToWithdraw(ctx, db.ListSagasToWithdrawParams{Ns: namespace, LimitRows: sagasMax})
		b.must("withdraw", err)
		for _, id := range ids {
			_, err := b.q.WithdrawSaga(ctx, db.WithdrawSagaParams{Ns: namespace, SagaID: id})
			b.must("withdraw", err)
		}
		if len(ids) == 0 {
			return
		}
	}
}

// State is how a saga stands.
func (b *Bench) State(id string) saga.State { return b.story(id).State }

func (b *Bench) story(id string) *saga.Story {
	b.tb.Helper()
	s, err := saga.Get(context.Background(), b.pool, namespace, id)
	b.must("look at a saga", err)
	return s
}

func (b *Bench) must(what string, err error) {
	b.tb.Helper()
	if err != nil {
		b.tb.Fatalf("sagatest: %s: %v", what, err)
	}
}
