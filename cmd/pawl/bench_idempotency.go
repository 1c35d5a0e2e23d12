package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
)

const (
	benchKeys       = 1_000_000 // in the table beforehand
	benchRequests   = 2000
	benchKeysWarmUp = 100 // requests that do not count
	benchBodyBytes  = 200
)

var idempotencyTargets = []target{
	{"idempotent_overhead_ms", 1.5, true, "Do around an empty function, less BEGIN and COMMIT of an empty transaction, 1,000,000 keys in the table, median"},
	{"idempotent_pinned_overhead_ms", 0, false, "the same with a transaction held open throughout"},
	{"idempotent_ms", 0, false, "Do around an empty function, median"},
	{"empty_transaction_ms", 0, false, "BEGIN and COMMIT, which write nothing, taken in turn with it, median"},
	{"one_insert_ms", 0, false, "a bare single-row insert, which waits for the disk as Do does, taken in turn with both, median"},
	{"replay_ms", 0, false, "Do for a key that has its answer, median"},
	{"replay_round_trips", 1, true, "round trips to the database of such a call"},
}

// idempotency measures Do beside transactions that do nothing, and a replay.
func (b *bench) idempotency(ctx context.Context) error {
	drop, err := b.bareTable(ctx)
	if err != nil {
		return err
	}
	defer drop()
	scope := b.queue()
	_, err = b.pool.Exec(ctx, `INSERT INTO pawl.idempotency_key (ns, key, scope, fingerprint, status, headers, body, created_at, expires_at)
		SELECT $1, gen_random_uuid()::text, $2, sha256(i::text::bytea), 201, '{"Location": ["/orders/1"]}', decode(repeat('61', $3), 'hex'), now(), now() + i * interval '50 ms' + interval '1 h'
		FROM generate_series(1, $4) i`, b.a.namespace, scope, benchBodyBytes, benchKeys)
	if err != nil {
		return err
	}
	defer func() {
		_, _ = b.pool.Exec(context.WithoutCancel(ctx), "DELETE FROM pawl.idempotency_key WHERE ns = $1 AND scope LIKE $2 || '%'", b.a.namespace, scope)
	}()
	if _, err := b.pool.Exec(ctx, "VACUUM ANALYZE pawl.idempotency_key"); err != nil {
		return err
	}
	conn, err := b.pool.Acquire(ctx) // one that is not pinned down by what follows
	if err != nil {
		return err
	}
	defer conn.Release()
	do, empty, insert, err := b.idempotentTurns(ctx, scope+" a")
	if err != nil {
		return err
	}
	b.set("idempotent_ms", do)
	b.set("empty_transaction_ms", empty)
	b.set("one_insert_ms", insert)
	b.set("idempotent_overhead_ms", do-empty)
	if err := b.replay(ctx, scope+" a"); err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, "SELECT pg_current_xact_id()"); err != nil {
		return err
	}
	do, empty, _, err = b.idempotentTurns(ctx, scope+" b")
	b.set("idempotent_pinned_overhead_ms", do-empty)
	return err
}

// idempotentTurns takes requests, empty transactions and inserts in turn, and gives the medians of what they took.
func (b *bench) idempotentTurns(ctx context.Context, scope string) (do, empty, insert float64, err error) {
	var took [3][]float64
	for i := range benchRequests + benchKeysWarmUp {
		for kind, call := range []func() error{
			func() error { return b.request(ctx, b.pool, scope, i) },
			func() error { return pgx.BeginFunc(ctx, b.pool, func(pgx.Tx) error { return nil }) },
			func() error {
				_, err := b.pool.Exec(ctx, "INSERT INTO pawl_bench_bare (kind, args) VALUES ('bare', '{}')")
				return err
			},
		} {
			began := time.Now()
			if err := call(); err != nil {
				return 0, 0, 0, err
			}
			if i >= benchKeysWarmUp {
				took[kind] = append(took[kind], time.Since(began).Seconds()*1000)
			}
		}
	}
	return median(took[0]), median(took[1]), median(took[2]), nil
}

// request is one of an empty function. Of a scope and a number the second is a replay.
func (b *bench) request(ctx context.Context, pool *pgxpool.Pool, scope string, i int) error {
	key := idempotency.Key{Scope: scope, Key: fmt.Sprintf("2f1c8a00-0000-4000-8000-%012d", i)}
	_, _, err := idempotency.Do(ctx, pool, key, []byte("fingerprint of 32 bytes as SHA256"), idempotency.Options{Namespace: b.a.namespace}, func(context.Context, pgx.Tx) (idempotency.Response, error) {
		return idempotency.Response{Status: 201, Headers: map[string][]string{"Location": {"/orders/1"}}, Body: make([]byte, benchBodyBytes)}, nil
	})
	return err
}

// replay measures requests that were answered before, through a connection that counts.
func (b *bench) replay(ctx context.Context, scope string) error {
	conf := b.pool.Config()
	conf.MaxConns = 1
	var trips tripCount
	dial := conf.ConnConfig.DialFunc
	conf.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return &countedConn{Conn: conn, count: &trips}, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		return err
	}
	defer pool.Close()
	var took []float64
	var most int
	for i := range benchRequests + benchKeysWarmUp {
		before, began := trips.read(), time.Now()
		if err := b.request(ctx, pool, scope, i); err != nil {
			return err
		}
		if i >= benchKeysWarmUp { // the statement is prepared
			took = append(took, time.Since(began).Seconds()*1000)
			most = max(most, trips.read()-before)
		}
	}
	b.set("replay_ms", median(took))
	b.set("replay_round_trips", float64(most))
	return nil
}

// tripCount counts round trips: how often something is heard after something was said.
type tripCount struct {
	mu    sync.Mutex
	said  bool
	trips int
}

func (t *tripCount) read() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.trips
}

type countedConn struct {
	net.Conn
	count *tripCount
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.count.mu.Lock()
	c.count.said = true
	c.count.mu.Unlock()
	return c.Conn.Write(p)
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.count.mu.Lock()
	defer c.count.mu.Unlock()
	if n > 0 && c.count.said {
		c.count.said = false
		c.count.trips++
	}
	return n, err
}
