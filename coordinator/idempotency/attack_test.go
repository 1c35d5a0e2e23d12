package idempotency_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
)

// A request whose body cannot be read is not answered 200.
func TestAttackBrokenBody(t *testing.T) {
	t.Parallel()
	pool := open(t)
	server := httptest.NewServer(handler(t, pool, idempotency.HTTP{}))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /orders HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
	reply, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	if n := count(t, pool, "SELECT count(*) FROM effect"); reply.StatusCode < 400 || n != 0 {
		t.Errorf("status %d, %d effects", reply.StatusCode, n)
	}
}

// The same of a body that comes so slowly that the server stops reading.
func TestAttackSlowBody(t *testing.T) {
	t.Parallel()
	pool := open(t)
	server := httptest.NewUnstartedServer(handler(t, pool, idempotency.HTTP{}))
	server.Config.ReadTimeout = 100 * time.Millisecond
	server.Start()
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /orders HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: 10\r\n\r\nhel")
	reply, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return // closed: that is an answer, too
	}
	defer reply.Body.Close()
	if n := count(t, pool, "SELECT count(*) FROM effect"); reply.StatusCode < 400 || n != 0 {
		t.Errorf("status %d, %d effects", reply.StatusCode, n)
	}
}

// An escaped slash is another path: a router tells /items/a%2Fb from /items/a/b.
func TestAttackEscapedPath(t *testing.T) {
	t.Parallel()
	pool := open(t)
	h := handler(t, pool, idempotency.HTTP{})
	if w := ask(h, "POST", "/items/a/b", "k", "x", "1"); w.Code != 200 {
		t.Fatalf("status %d", w.Code)
	}
	if w := ask(h, "POST", "/items/a%2Fb", "k", "x", "1"); w.Header().Get(idempotency.HeaderReplayed) != "" {
		t.Errorf("the answer of another resource was replayed")
	}
}

// A client whose name looks like a route does not share keys with another.
func TestAttackScopes(t *testing.T) {
	t.Parallel()
	pool := open(t)
	h := handler(t, pool, idempotency.HTTP{})
	if w := ask(h, "POST", "/x%20POST%20/y", "k", "", "a"); w.Code != 200 {
		t.Fatalf("status %d", w.Code)
	}
	if w := ask(h, "POST", "/y", "k", "", "a POST /x"); w.Code != 200 {
		t.Errorf("status %d: two clients share a key", w.Code)
	}
}

// What a client sends wrong is told him, and is no error of the server.
func TestAttackBadPaths(t *testing.T) {
	t.Parallel()
	pool := open(t)
	h := handler(t, pool, idempotency.HTTP{})
	for _, path := range []string{"/orders/%00", "/orders/%ff", "/orders/\xff", "/" + strings.Repeat("x", 2000)} {
		if w := ask(h, "POST", path, "k", "", "1"); w.Code >= 500 {
			t.Errorf("%.12q: status %d", path, w.Code)
		}
	}
}

// Bytes that Postgres takes for no text are ErrInvalid.
func TestAttackBadText(t *testing.T) {
	t.Parallel()
	pool := open(t)
	for _, bad := range []string{"a\x00b", "a\xff", strings.Repeat("a", 254) + "\xc3"} {
		for _, k := range []idempotency.Key{{Key: bad}, {Scope: bad, Key: "k"}} {
			if _, _, err := idempotency.Do(t.Context(), pool, k, nil, idempotency.Options{}, effect); !errors.Is(err, idempotency.ErrInvalid) {
				t.Errorf("%.10q: %v", k, err)
			}
		}
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			_, err := idempotency.Once(t.Context(), tx, 1, "c", bad)
			return err
		})
		if !errors.Is(err, idempotency.ErrInvalid) {
			t.Errorf("once, %.10q: %v", bad, err)
		}
	}
	for range 2 {
		if _, _, err := idempotency.Do(t.Context(), pool, idempotency.Key{Key: strings.Repeat("ü", 127) + "a"}, nil, idempotency.Options{}, effect); err != nil {
			t.Error(err)
		}
	}
	if n := count(t, pool, "SELECT count(*) FROM effect"); n != 1 {
		t.Errorf("%d effects", n)
	}
}

// A function that ends the transaction itself must not have its effect without its answer.
func TestAttackCommitInside(t *testing.T) {
	t.Parallel()
	pool := open(t)
	for range 2 {
		_, _, err := idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
			out, err := effect(ctx, tx)
			if err != nil {
				return out, err
			}
			return out, tx.Commit(ctx)
		})
		t.Log(err)
	}
	if n := count(t, pool, "SELECT count(*) FROM effect"); n > 1 {
		t.Errorf("%d effects", n)
	}
}

// pooler stands between the pool that it returns and the server: it answers COMMIT as PgBouncer does when the server has gone meanwhile.
func pooler(t *testing.T, pool *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	conf := pool.Config()
	network, address := pgconn.NetworkAddress(conf.ConnConfig.Host, conf.ConnConfig.Port)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	serve := func(client net.Conn) {
		defer client.Close()
		upstream, err := net.Dial(network, address)
		if err != nil {
			return
		}
		defer upstream.Close()
		go func() {
			buffer := make([]byte, 1<<16)
			for {
				n, err := upstream.Read(buffer)
				if bytes.Contains(buffer[:n], []byte("COMMIT\x00")) {
					fields := "SFATAL\x00VFATAL\x00C08P01\x00Mserver conn crashed?\x00\x00"
					message := append([]byte{'E'}, binary.BigEndian.AppendUint32(nil, uint32(len(fields)+4))...)
					_, _ = client.Write(append(message, fields...))
					_ = client.Close()
					return
				}
				if err != nil {
					return
				}
				if _, err := client.Write(buffer[:n]); err != nil {
					return
				}
			}
		}()
		_, _ = io.Copy(upstream, client)
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(client)
		}
	}()
	addr := listener.Addr().(*net.TCPAddr)
	conf.ConnConfig.Host, conf.ConnConfig.Port, conf.ConnConfig.Fallbacks, conf.ConnConfig.TLSConfig = addr.IP.String(), uint16(addr.Port), nil, nil
	through, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(through.Close)
	return through
}

// A pooler that loses the server during COMMIT says so with an SQLSTATE; the outcome is unknown all the same.
func TestAttackPoolerLosesCommit(t *testing.T) {
	t.Parallel()
	pool := open(t)
	_, _, err := idempotency.Do(t.Context(), pooler(t, pool), key, nil, idempotency.Options{}, effect)
	if n := count(t, pool, "SELECT count(*) FROM effect"); n != 1 {
		t.Fatalf("%d effects: nothing is proved", n)
	}
	if !errors.Is(err, idempotency.ErrUnknown) {
		t.Errorf("got %v, want ErrUnknown", err)
	}
}

// What fails at COMMIT failed for certain.
func TestAttackDeferredConstraint(t *testing.T) {
	t.Parallel()
	pool := open(t)
	if _, err := pool.Exec(t.Context(), "CREATE TABLE unlike (n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED); INSERT INTO unlike VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	_, _, err := idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		_, err := tx.Exec(ctx, "INSERT INTO unlike VALUES (1)")
		return idempotency.Response{}, err
	})
	if err == nil || errors.Is(err, idempotency.ErrUnknown) {
		t.Errorf("got %v", err)
	}
	// So did what was never sent, and a statement whose error was not looked at.
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err = idempotency.Do(ctx, pool, key, nil, idempotency.Options{}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		out, err := effect(ctx, tx)
		cancel()
		return out, err
	})
	if !errors.Is(err, context.Canceled) || errors.Is(err, idempotency.ErrUnknown) {
		t.Errorf("cancelled: got %v", err)
	}
	_, _, err = idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		out, err := effect(ctx, tx)
		_, _ = tx.Exec(ctx, "SELECT 1/0")
		return out, err
	})
	if err == nil || errors.Is(err, idempotency.ErrUnknown) {
		t.Errorf("aborted: got %v", err)
	}
	if n := count(t, pool, "SELECT count(*) FROM effect"); n != 0 {
		t.Errorf("%d effects", n)
	}
}

// Roles whose transactions are REPEATABLE READ or SERIALIZABLE: duplicates have one effect, and a message noted by two is first for one, or an error.
func TestAttackIsolation(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"repeatable read", "serializable"} {
		pool := open(t)
		conf := pool.Config()
		conf.ConnConfig.RuntimeParams["default_transaction_isolation"] = level
		conf.MaxConns = 10
		strict, err := pgxpool.NewWithConfig(t.Context(), conf)
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for range 30 {
			group.Go(func() {
				_, _, err := idempotency.Do(t.Context(), strict, key, nil, idempotency.Options{Wait: time.Minute}, effect)
				if err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if n := count(t, pool, "SELECT count(*) FROM effect"); n != 1 {
			t.Errorf("%s: %d effects", level, n)
		}
		a, err := strict.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var one int
		if err := a.QueryRow(t.Context(), "SELECT 1 FROM pawl.namespace LIMIT 1").Scan(&one); err != nil { // its snapshot
			t.Fatal(err)
		}
		err = pgx.BeginFunc(t.Context(), strict, func(b pgx.Tx) error {
			first, err := idempotency.Once(t.Context(), b, 1, "c", "m")
			if !first {
				t.Errorf("%s: b is not first, %v", level, err)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		first, err := idempotency.Once(t.Context(), a, 1, "c", "m")
		if first && err == nil {
			err = a.Commit(t.Context())
			if err == nil {
				t.Errorf("%s: two are first", level)
			}
		}
		t.Logf("%s: first %t, %v", level, first, err)
		_ = a.Rollback(t.Context())
		strict.Close()
	}
}

// A message noted in a savepoint that is rolled back is first again; one that is kept is not.
func TestAttackOnceSavepoint(t *testing.T) {
	t.Parallel()
	pool := open(t)
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		for i, want := range []bool{true, true, false} {
			inner, err := tx.Begin(t.Context())
			if err != nil {
				return err
			}
			first, err := idempotency.Once(t.Context(), inner, 1, "c", "m")
			if err != nil || first != want {
				t.Errorf("%d: first %t, %v", i, first, err)
			}
			if i == 0 {
				err = inner.Rollback(t.Context())
			} else {
				err = inner.Commit(t.Context())
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// One connection is enough, and a key within itself is in flight.
func TestAttackNested(t *testing.T) {
	t.Parallel()
	pool := open(t)
	conf := pool.Config()
	conf.MaxConns = 1
	single, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer single.Close()
	for range 2 {
		if _, _, err := idempotency.Do(t.Context(), single, key, nil, idempotency.Options{}, effect); err != nil {
			t.Error(err)
		}
	}
	other := idempotency.Key{Key: "other"}
	_, _, err = idempotency.Do(t.Context(), pool, other, nil, idempotency.Options{}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		_, _, err := idempotency.Do(ctx, pool, other, nil, idempotency.Options{Wait: 50 * time.Millisecond}, effect)
		return idempotency.Response{}, err
	})
	if !errors.Is(err, idempotency.ErrInFlight) {
		t.Errorf("got %v", err)
	}
}

// A body that is encoded is replayed as what it is.
func TestAttackEncodedAnswer(t *testing.T) {
	t.Parallel()
	pool := open(t)
	wrap, err := idempotency.Middleware(pool, idempotency.HTTP{Scope: func(*http.Request) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	h := wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write([]byte("\x1f\x8b"))
	}))
	for range 2 {
		if w := ask(h, "POST", "/orders", "k", "", ""); w.Header().Get("Content-Encoding") != "gzip" {
			t.Errorf("replayed %q: %v", w.Header().Get(idempotency.HeaderReplayed), w.Header())
		}
	}
}
