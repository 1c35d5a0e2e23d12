package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

const (
	benchEventBytes    = 1000
	benchPublishers    = 16
	benchPublishSpan   = 700 * time.Millisecond
	benchPublishRounds = 5
	benchPaceEvery     = 10 * time.Millisecond
	benchPaceEvents    = 1000
	benchRelayMax      = 5 * time.Minute
)

// benchOutboxCmd is "pawl bench outbox".
type benchOutboxCmd struct {
	benchOptions

	Events int `default:"300000" help:"Events to relay, 1,000 to 10,000,000."`
}

// Help is the long help text.
func (*benchOutboxCmd) Help() string {
	return "Figures: publish, pace, relay (with straggler and dead rows), idempotency."
}

// Run measures and prints.
func (c *benchOutboxCmd) Run(a *app) error {
	if c.Events < 1000 || c.Events > 10_000_000 {
		return usageError{"--events from 1,000 to 10,000,000 are measured"}
	}
	b := &bench{a: a, events: c.Events}
	return b.measure(c.benchOptions, []figure{{"publish", (*bench).outboxPublish}, {"pace", (*bench).outboxPace}, {"relay", (*bench).outboxRelay}, {"idempotency", (*bench).idempotency}}, append(outboxTargets, idempotencyTargets...))
}

var outboxTargets = []target{
	{"publish_per_s", 0, false, "transactions that insert a row and publish an event, 16 goroutines"},
	{"bare_transactions_per_s", 0, false, "the same without the event"},
	{"publish_vs_bare", 0.85, false, "the one by the other, taken in turn"},
	{"own_table_vs_bare", 0, false, "the same with a plain insert of the event into a table with one index, in place of publishing it"},
	{"publish_batched_per_s", 0, false, "events published, 1,000 a call, one connection"},
	{"relay_events_per_s", 100_000, false, "events of 1 kB that one relay handed to a no-op sink"},
	{"straggler_events_per_s", 0, false, "the same while another transaction, which has written, stays open"},
	{"straggler_delay_ratio", 0.9, false, "the one by the other"},
	{"dead_rows", 0, true, "dead rows in the tables of the outbox after both"},
	{"relay_p50_ms", 10, true, "from the commit's reply to the sink, 100 events/s, median"},
	{"relay_p99_ms", 50, true, "the same, 99 of 100"},
}

// outboxPublish takes transactions that insert a row, with an event, without, and with a plain insert of the event, in turn.
func (b *bench) outboxPublish(ctx context.Context) error {
	drop, err := b.bareTable(ctx)
	if err != nil {
		return err
	}
	defer drop()
	if _, err := b.pool.Exec(ctx, "CREATE TABLE pawl_bench_own (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic text, key text, type text, payload bytea)"); err != nil {
		return err
	}
	defer func() { _, _ = b.pool.Exec(context.WithoutCancel(ctx), "DROP TABLE pawl_bench_own") }()
	payload := make([]byte, benchEventBytes)
	ways := []func(tx pgx.Tx, g int) error{
		func(pgx.Tx, int) error { return nil },
		func(tx pgx.Tx, g int) error {
			return outbox.Outbox{Namespace: b.a.namespace}.Publish(ctx, tx, outbox.Event{Topic: "bench", Key: fmt.Sprint(g), Type: "bench", Payload: payload})
		},
		func(tx pgx.Tx, g int) error {
			_, err := tx.Exec(ctx, "INSERT INTO pawl_bench_own (topic, key, type, payload) VALUES ($1, $2, $3, $4)", "bench", fmt.Sprint(g), "bench", payload)
			return err
		},
	}
	rates := make([][]float64, len(ways))
	for range benchPublishRounds {
		for i, way := range ways {
			rate, err := b.transactions(ctx, way)
			if err != nil {
				return err
			}
			rates[i] = append(rates[i], rate)
		}
	}
	bare := median(rates[0])
	b.set("bare_transactions_per_s", bare)
	b.set("publish_per_s", median(rates[1]))
	b.set("publish_vs_bare", median(rates[1])/bare)
	b.set("own_table_vs_bare", median(rates[2])/bare)
	return nil
}

// transactions gives how many a second commit, of benchPublishers goroutines, for benchPublishSpan, that insert a row and do what else they are to do.
func (b *bench) transactions(ctx context.Context, also func(tx pgx.Tx, g int) error) (perS float64, err error) {
	span, stop := context.WithTimeout(ctx, benchPublishSpan)
	defer stop()
	began := time.Now()
	var group sync.WaitGroup
	var done atomic.Int64
	var fault atomic.Pointer[error]
	for g := range benchPublishers {
		group.Go(func() {
			for span.Err() == nil {
				err := pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
					if _, err := tx.Exec(ctx, "INSERT INTO pawl_bench_bare (kind, args) VALUES ('bare', '{}')"); err != nil {
						return err
					}
					return also(tx, g)
				})
				if err != nil {
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

// outboxRelay publishes a backlog and has one relay hand it on, without and with a transaction open.
func (b *bench) outboxRelay(ctx context.Context) error {
	dead := func() (n float64, err error) {
		err = b.pool.QueryRow(ctx, `SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables
			WHERE schemaname = 'pawl' AND (relname LIKE 'outbox%' OR relname LIKE 'subscription%' OR relname LIKE 'parked%')`).Scan(&n)
		return n, err
	}
	const flushed = "SELECT pg_stat_clear_snapshot(), pg_sleep(1.1)" // statistics come once a second
	if _, err := b.pool.Exec(ctx, flushed); err != nil {
		return err
	}
	before, err := dead()
	if err != nil {
		return err
	}
	rates := map[bool][]float64{}
	for _, straggler := range []bool{false, true, true, false} {
		rate, err := b.relayBeside(ctx, straggler)
		if err != nil {
			return err
		}
		rates[straggler] = append(rates[straggler], rate)
	}
	mean := func(v []float64) float64 { return (v[0] + v[1]) / 2 }
	b.set("relay_events_per_s", mean(rates[false]))
	b.set("straggler_events_per_s", mean(rates[true]))
	b.set("straggler_delay_ratio", mean(rates[true])/mean(rates[false]))
	if _, err := b.pool.Exec(ctx, flushed); err != nil {
		return err
	}
	after, err := dead()
	b.set("dead_rows", max(after-before, 0))
	return err
}

// relayBeside is relayBacklog, beside an unrelated transaction that has written and stays open if there is to be a straggler.
func (b *bench) relayBeside(ctx context.Context, straggler bool) (perS float64, err error) {
	if !straggler {
		return b.relayBacklog(ctx)
	}
	tx, err := b.pool.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, "CREATE TEMPORARY TABLE straggler ON COMMIT DROP AS SELECT pg_current_xact_id()"); err != nil {
		return 0, err
	}
	return b.relayBacklog(ctx)
}

// relayBacklog publishes events and measures one relay from its start to the last event.
func (b *bench) relayBacklog(ctx context.Context) (perS float64, err error) {
	n := b.events
	var seen atomic.Int64
	done := make(chan struct{})
	s := outbox.Subscription{
		Name: b.queue(), Topics: []string{b.queue()}, Page: 2000, Batch: 2000,
		Sink: outbox.SinkFunc(func(_ context.Context, events []outbox.Event) (int, error) {
			if seen.Add(int64(len(events))) == int64(n) {
				close(done)
			}
			return len(events), nil
		}),
	}
	s.Namespace = b.a.namespace
	if _, err := outbox.Create(ctx, b.pool, s); err != nil {
		return 0, err
	}
	payload := make([]byte, benchEventBytes)
	began := time.Now()
	for at := 0; at < n; at += outbox.PublishMax {
		if at%1_000_000 == 0 { // as a coordinator would
			if _, err := b.pool.Exec(ctx, "SELECT pawl.partition_ahead()"); err != nil {
				return 0, err
			}
		}
		events := make([]outbox.Event, min(outbox.PublishMax, n-at))
		for i := range events {
			events[i] = outbox.Event{Topic: s.Topics[0], Key: fmt.Sprint("k", (at+i)%1000), Type: "bench", Payload: payload}
		}
		err := pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error { return outbox.Outbox{Namespace: b.a.namespace}.Publish(ctx, tx, events...) })
		if err != nil {
			return 0, err
		}
	}
	b.set("publish_batched_per_s", float64(n)/time.Since(began).Seconds())
	if _, err := b.pool.Exec(ctx, "ANALYZE pawl.outbox_event"); err != nil {
		return 0, err
	}
	rctx, stop := context.WithTimeout(ctx, benchRelayMax)
	defer stop()
	ended := make(chan error, 1)
	began = time.Now()
	go func() { ended <- outbox.Relay(rctx, b.pool, s, 0, b.a.log) }()
	select {
	case <-done:
	case err := <-ended:
		return 0, fmt.Errorf("relay ended after %d of %d events: %w", seen.Load(), n, err)
	}
	took := time.Since(began)
	stop()
	if err := <-ended; err != nil {
		return 0, err
	}
	return float64(n) / took.Seconds(), nil
}

// outboxPace publishes at a steady pace and measures how long each event takes from its commit to the sink.
func (b *bench) outboxPace(ctx context.Context) error {
	var mu sync.Mutex
	arrived := map[string]time.Time{}
	done := make(chan struct{})
	s := outbox.Subscription{
		Namespace: b.a.namespace, Name: b.queue(), Topics: []string{b.queue()},
		Sink: outbox.SinkFunc(func(_ context.Context, events []outbox.Event) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range events {
				arrived[string(e.Payload)] = time.Now()
			}
			if len(arrived) == benchPaceEvents {
				close(done)
			}
			return len(events), nil
		}),
	}
	if _, err := outbox.Create(ctx, b.pool, s); err != nil {
		return err
	}
	rctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- outbox.Relay(rctx, b.pool, s, 0, b.a.log) }()
	committed := map[string]time.Time{}
	ticks := time.NewTicker(benchPaceEvery)
	defer ticks.Stop()
	for i := range benchPaceEvents {
		<-ticks.C
		text := fmt.Sprintf("%d-%d", os.Getpid(), i)
		err := pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
			return outbox.Outbox{Namespace: b.a.namespace}.Publish(ctx, tx, outbox.Event{Topic: s.Topics[0], Type: "bench", Payload: []byte(text)})
		})
		if err != nil {
			return err
		}
		committed[text] = time.Now()
	}
	select {
	case <-done:
	case err := <-ended:
		return fmt.Errorf("relay ended: %w", err)
	}
	stop()
	if err := <-ended; err != nil {
		return err
	}
	var took []float64
	for text, at := range committed {
		took = append(took, max(arrived[text].Sub(at).Seconds()*1000, 0))
	}
	slices.Sort(took)
	b.set("relay_p50_ms", percentile(took, 50))
	b.set("relay_p99_ms", percentile(took, 99))
	return nil
}
