package idempotency_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// try runs fn under the key and checks that it leaves nothing behind: no effect, no answer, and the key free.
func try(t *testing.T, pool *pgxpool.Pool, o idempotency.Options, fn func(context.Context, pgx.Tx) (idempotency.Response, error)) error {
	t.Helper()
	o.Wait = patience // a connection that was lost may have the key for a moment more
	_, replayed, err := idempotency.Do(t.Context(), pool, key, nil, o, fn)
	if replayed {
		t.Error("replayed")
	}
	if n := count(t, pool, "SELECT count(*) FROM effect") + count(t, pool, "SELECT count(*) FROM pawl.idempotency_key"); n != 0 {
		t.Errorf("%d rows were left behind", n)
	}
	return err
}

// The ways in which a function may go wrong, each of which must leave nothing behind.
func TestDoRefused(t *testing.T) {
	t.Parallel()
	pool := open(t)
	exec(t, pool, "CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
	ok := idempotency.Response{Status: 200}
	sql := func(statements ...string) func(context.Context, pgx.Tx) (idempotency.Response, error) {
		return func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
			_, _ = effect(ctx, tx)
			for _, s := range statements {
				_, _ = tx.Exec(ctx, s) // the function does not look
			}
			return ok, nil
		}
	}
	for what, c := range map[string]struct {
		o    idempotency.Options
		fn   func(context.Context, pgx.Tx) (idempotency.Response, error)
		want error
	}{
		"error": {fn: func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
			_, _ = effect(ctx, tx)
			return ok, errCut
		}, want: errCut},
		"rollback":           {fn: sql("ROLLBACK"), want: idempotency.ErrEnded},
		"another":            {fn: sql("ROLLBACK", "BEGIN", "INSERT INTO effect VALUES (1)"), want: idempotency.ErrEnded},
		"chained":            {fn: sql("ROLLBACK AND CHAIN"), want: idempotency.ErrEnded},
		"failed":             {fn: sql("SELECT 1/0"), want: &pgconn.PgError{Code: "25P02"}},
		"deferred check":     {fn: sql("INSERT INTO late VALUES (1), (1)"), want: &pgconn.PgError{Code: "23505"}},
		"large answer":       {fn: answer(idempotency.Response{Body: make([]byte, idempotency.BodyBytesMax+1)}), want: idempotency.ErrInvalid},
		"beyond the option":  {o: idempotency.Options{BodyBytesMax: 3}, fn: answer(idempotency.Response{Body: []byte("four")}), want: idempotency.ErrInvalid},
		"large headers":      {fn: answer(idempotency.Response{Headers: map[string][]string{"A": {strings.Repeat("x", idempotency.HeaderBytesMax)}}}), want: idempotency.ErrInvalid},
		"namespace":          {o: idempotency.Options{Namespace: 77}, fn: effect, want: idempotency.ErrInvalid},
		"TTL":                {o: idempotency.Options{TTL: -1}, fn: effect, want: idempotency.ErrInvalid},
		"Idle":               {o: idempotency.Options{Idle: 1}, fn: effect, want: idempotency.ErrInvalid},
		"Lease":              {o: idempotency.Options{Lease: 1}, fn: effect, want: idempotency.ErrInvalid},
		"BodyBytesMax":       {o: idempotency.Options{BodyBytesMax: idempotency.BodyBytesMost + 1}, fn: effect, want: idempotency.ErrInvalid},
		"connection is lost": {fn: sql("SELECT pg_terminate_backend(pg_backend_pid())"), want: errAny},
	} {
		err := try(t, pool, c.o, c.fn)
		var want, got *pgconn.PgError
		switch {
		case errors.As(c.want, &want):
			if !errors.As(err, &got) || got.Code != want.Code || errors.Is(err, idempotency.ErrUnknown) {
				t.Errorf("%s: %v, want %s", what, err, want.Code)
			}
		case c.want == errAny && err == nil, c.want != errAny && !errors.Is(err, c.want):
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	for what, k := range map[string]idempotency.Key{
		"no key": {}, "long key": {Key: strings.Repeat("k", idempotency.KeyBytesMax+1)}, "long scope": {Key: "k", Scope: strings.Repeat("s", idempotency.ScopeBytesMax+1)},
		"NUL": {Key: "a\x00"}, "no UTF-8": {Key: "k", Scope: "\xff"},
	} {
		if _, _, err := idempotency.Do(t.Context(), pool, k, nil, idempotency.Options{}, effect); !errors.Is(err, idempotency.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, _, err := idempotency.Do(t.Context(), pool, key, make([]byte, idempotency.FingerprintBytesMax+1), idempotency.Options{}, effect); !errors.Is(err, idempotency.ErrInvalid) {
		t.Errorf("long fingerprint: %v", err)
	}

	func() {
		defer func() { _ = recover() }()
		_ = try(t, pool, idempotency.Options{}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
			_, _ = effect(ctx, tx)
			panic("oh")
		})
	}()
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := idempotency.Do(ctx, pool, key, nil, idempotency.Options{Wait: patience}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		defer cancel()
		return effect(ctx, tx)
	})
	if !errors.Is(err, context.Canceled) || errors.Is(err, idempotency.ErrUnknown) {
		t.Errorf("cancelled before the commit: %v", err)
	}
	if _, replayed, err := idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{Wait: patience}, effect); err != nil || replayed || count(t, pool, "SELECT count(*) FROM effect") != 1 {
		t.Errorf("after all that: replayed %t, %v", replayed, err)
	}
}

var errAny = errors.New("any")

func answer(r idempotency.Response) func(context.Context, pgx.Tx) (idempotency.Response, error) {
	return func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		_, err := effect(ctx, tx)
		return r, err
	}
}

// A function that commits by SQL has its effect, and is told so; no answer is stored, and none would be believed.
func TestDoCommittedItself(t *testing.T) {
	t.Parallel()
	pool := open(t)
	_, _, err := idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		out, _ := effect(ctx, tx)
		_, err := tx.Exec(ctx, "COMMIT")
		return out, err
	})
	if !errors.Is(err, idempotency.ErrEnded) || count(t, pool, "SELECT count(*) FROM effect") != 1 || count(t, pool, "SELECT count(*) FROM pawl.idempotency_key") != 0 {
		t.Errorf("got %v", err)
	}
}

// The server ends the session in the middle of COMMIT: whether it had committed cannot be told from that.
func TestDoTerminated(t *testing.T) {
	t.Parallel()
	pool := open(t)
	exec(t, pool, `CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$`)
	exec(t, pool, "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()")
	if err := try(t, pool, idempotency.Options{}, effect); !errors.Is(err, idempotency.ErrUnknown) {
		t.Errorf("got %v", err)
	}
}

// The transaction is the function's to use, until it returns, but not to end.
func TestDoTx(t *testing.T) {
	t.Parallel()
	pool := open(t)
	exec(t, pool, "CREATE TABLE note (text text)")
	var kept, savepoint pgx.Tx
	_, _, err := idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{Idle: 17 * time.Second}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		kept = tx
		if err := tx.Commit(ctx); !errors.Is(err, db.ErrLent) {
			t.Errorf("Commit: %v", err)
		}
		if err := tx.Rollback(ctx); !errors.Is(err, db.ErrLent) {
			t.Errorf("Rollback: %v", err)
		}
		for _, fails := range []error{nil, errCut} {
			err := pgx.BeginFunc(ctx, tx, func(inner pgx.Tx) error {
				if _, err := inner.Exec(ctx, "INSERT INTO effect VALUES (1)"); err != nil {
					return err
				}
				return fails
			})
			if !errors.Is(err, fails) {
				t.Errorf("savepoint: %v", err)
			}
		}
		var err error
		if savepoint, err = tx.Begin(ctx); err != nil {
			return idempotency.Response{}, err
		}
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"note"}, []string{"text"}, pgx.CopyFromRows([][]any{{"copied"}})); err != nil {
			t.Error(err)
		}
		b := &pgx.Batch{}
		b.Queue("INSERT INTO note VALUES ('batched')")
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			t.Error(err)
		}
		var level, idle, wait string
		err = tx.QueryRow(ctx, "SELECT current_setting('transaction_isolation'), current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout')").Scan(&level, &idle, &wait)
		if err != nil || level != "read committed" || idle != "17s" || wait != "0" {
			t.Errorf("isolation %s, idle %s, lock_timeout %s, %v", level, idle, wait, err)
		}
		return idempotency.Response{Status: 200}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n, m := count(t, pool, "SELECT count(*) FROM effect"), count(t, pool, "SELECT count(*) FROM note"); n != 1 || m != 2 {
		t.Errorf("%d effects, %d notes", n, m)
	}
	// What it left behind does not reach who has the connection next.
	ctx := t.Context()
	for _, tx := range []pgx.Tx{kept, savepoint} {
		_, execErr := tx.Exec(ctx, "INSERT INTO effect VALUES (2)")
		rows, queryErr := tx.Query(ctx, "SELECT 1")
		rows.Close()
		_, copyErr := tx.CopyFrom(ctx, pgx.Identifier{"note"}, []string{"text"}, pgx.CopyFromRows(nil))
		_, beginErr := tx.Begin(ctx)
		_, prepareErr := tx.Prepare(ctx, "p", "SELECT 1")
		b := &pgx.Batch{}
		b.Queue("SELECT 1")
		for what, err := range map[string]error{
			"Exec": execErr, "Query": queryErr, "rows": rows.Err(), "CopyFrom": copyErr, "Begin": beginErr, "Prepare": prepareErr, "QueryRow": tx.QueryRow(ctx, "SELECT 1").Scan(new(int)),
			"SendBatch": tx.SendBatch(ctx, b).Close(),
		} {
			if !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("%s after the end: %v", what, err)
			}
		}
	}
	if err := savepoint.Commit(ctx); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("Commit of a savepoint after the end: %v", err)
	}
	if err := savepoint.Rollback(ctx); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("Rollback of a savepoint after the end: %v", err)
	}
}

// A bound of the role's own for idle transactions stays.
func TestDoIdleOfRole(t *testing.T) {
	t.Parallel()
	conf := open(t).Config()
	conf.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "7s"
	pool, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	_, _, err = idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{}, func(ctx context.Context, tx pgx.Tx) (out idempotency.Response, err error) {
		var idle string
		if err := tx.QueryRow(ctx, "SHOW idle_in_transaction_session_timeout").Scan(&idle); err != nil || idle != "7s" {
			t.Errorf("idle %s, %v", idle, err)
		}
		return out, nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A function that stalls longer than it may loses its transaction, and the key is free.
func TestDoStalled(t *testing.T) {
	t.Parallel()
	pool := open(t)
	_, _, err := idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{Idle: 500 * time.Millisecond}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		out, err := effect(ctx, tx)
		if err != nil {
			return out, err
		}
		_, replayed, err := idempotency.Do(ctx, pool, key, nil, idempotency.Options{Wait: patience}, effect)
		if err != nil || replayed {
			t.Errorf("another: replayed %t, %v", replayed, err)
		}
		return out, nil
	})
	if err == nil || count(t, pool, "SELECT count(*) FROM effect") != 1 {
		t.Errorf("got %v", err)
	}
}

// Who waits holds no connection: the one who runs gets a second one from a pool of two.
func TestDoWaitsWithoutConnection(t *testing.T) {
	t.Parallel()
	conf := open(t).Config()
	conf.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var group sync.WaitGroup
	began := make(chan struct{})
	do := func(fn func(context.Context, pgx.Tx) (idempotency.Response, error)) {
		if _, _, err := idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{Wait: patience}, fn); err != nil {
			t.Error(err)
		}
	}
	group.Go(func() {
		do(func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
			close(began)
			for range 20 { // while the others ask again and again
				conn, err := pool.Acquire(ctx)
				if err != nil {
					return idempotency.Response{}, err
				}
				if _, err := conn.Exec(ctx, "SELECT pg_sleep(0.01)"); err != nil {
					t.Error(err)
				}
				conn.Release()
			}
			return effect(ctx, tx)
		})
	})
	<-began
	for range 10 {
		group.Go(func() { do(nil) })
	}
	group.Wait()
	if n := count(t, pool, "SELECT count(*) FROM effect"); n != 1 {
		t.Errorf("%d effects", n)
	}
	// The wait has an end.
	gate, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Rollback(t.Context())
	if _, err := gate.Exec(t.Context(), "SELECT pawl.idempotency_take(1::smallint, $1, 'held', '', 60000)", key.Scope); err != nil {
		t.Fatal(err)
	}
	held := idempotency.Key{Scope: key.Scope, Key: "held"}
	if _, _, err := idempotency.Do(t.Context(), pool, held, nil, idempotency.Options{Wait: 20 * time.Millisecond}, nil); !errors.Is(err, idempotency.ErrInFlight) {
		t.Errorf("waited in vain: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := idempotency.Do(ctx, pool, held, nil, idempotency.Options{Wait: patience}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited past its context: %v", err)
	}
}

// Keys of other scopes and namespaces are other keys.
func TestDoScopes(t *testing.T) {
	t.Parallel()
	pool := open(t)
	exec(t, pool, "SELECT pawl.namespace_create('other')")
	for _, c := range []struct {
		ns    int16
		scope string
	}{{1, "a"}, {1, "b"}, {2, "a"}, {1, ""}} {
		for i := range 2 {
			_, replayed, err := idempotency.Do(t.Context(), pool, idempotency.Key{Scope: c.scope, Key: "k"}, nil, idempotency.Options{Namespace: c.ns}, effect)
			if err != nil || replayed != (i == 1) {
				t.Errorf("%v: replayed %t, %v", c, replayed, err)
			}
		}
	}
	if n := count(t, pool, "SELECT count(*) FROM effect"); n != 4 {
		t.Errorf("%d effects", n)
	}
}

// A replay takes one round trip, a fresh request three beside those of its function; so for phases, each of which takes two, and one more to prove the claim before a call.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	pool, b := shop(t), newBank(t)
	exec(t, pool, "CREATE TABLE effect (n int)")
	p, through := dbtest.NewProxy(t, pool, 1)
	trips := func(call func() error) int32 {
		t.Helper()
		before := p.Trips.Load()
		if err := call(); err != nil {
			t.Error(err)
		}
		return p.Trips.Load() - before
	}
	do := func(key string) func() error {
		return func() error {
			_, _, err := idempotency.Do(t.Context(), through, idempotency.Key{Key: key}, nil, idempotency.Options{}, func(context.Context, pgx.Tx) (idempotency.Response, error) {
				return idempotency.Response{Status: 201, Body: []byte("made")}, nil
			})
			return err
		}
	}
	buyAs := func(k string) func() error {
		return func() error {
			_, _, err := idempotency.Phases(t.Context(), through, idempotency.Key{Key: k}, nil, idempotency.Options{}, func(ctx context.Context, c *idempotency.Claim) (out idempotency.Response, err error) {
				if _, err = idempotency.PhaseTx(ctx, c, "here", func(context.Context, pgx.Tx) (int, error) { return 1, nil }); err != nil {
					return out, err
				}
				_, err = idempotency.Phase(ctx, c, "there", func(ctx context.Context, key string) (string, error) { return charge(ctx, b.url, key) })
				return out, err
			})
			return err
		}
	}
	for range 2 { // statements are prepared the first time
		trips(do("warm"))
		trips(buyAs("warmer"))
	}
	trips(do("warm2"))
	for what, c := range map[string]struct {
		call func() error
		want int32
	}{"Do": {do("a"), 3}, "Phases": {buyAs("b"), 1 + 2 + 2 + 1}} {
		if got := trips(c.call); got != c.want {
			t.Errorf("%s: %d round trips, want %d", what, got, c.want)
		}
		if got := trips(c.call); got != 1 {
			t.Errorf("%s, replay: %d round trips, want 1", what, got)
		}
	}
}
