package idempotency_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
)

// handler writes a row and answers with the status that the request's query asks for.
func handler(t *testing.T, pool *pgxpool.Pool, conf idempotency.HTTP) http.Handler {
	t.Helper()
	conf.Scope = func(r *http.Request) string { return r.Header.Get("X-Client") }
	wrap, err := idempotency.Middleware(pool, conf)
	if err != nil {
		t.Fatal(err)
	}
	return wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if tx := idempotency.Tx(r.Context()); tx != nil {
			if _, err := tx.Exec(r.Context(), "INSERT INTO effect VALUES (1)"); err != nil {
				t.Error(err)
			}
		}
		status, _ := strconv.Atoi(r.URL.Query().Get("status"))
		w.Header().Set("Location", "/orders/1")
		w.Header().Set("Set-Cookie", "secret")
		w.WriteHeader(max(status, 200))
		_, _ = w.Write([]byte("made"))
	}))
}

func ask(h http.Handler, method, url, key, body, client string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, url, strings.NewReader(body))
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	r.Header.Set("X-Client", client)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestMiddleware(t *testing.T) {
	t.Parallel()
	pool := open(t)
	h := handler(t, pool, idempotency.HTTP{RequestBytesMax: 10})
	for _, c := range []struct {
		what, method, url, key, body, client string
		status                               int
		replayed                             bool
		effects                              int
	}{
		{"no key", "POST", "/orders", "", "a", "1", 400, false, 0},
		{"bad key", "POST", "/orders", `"a`, "a", "1", 400, false, 0},
		{"long key", "POST", "/orders", strings.Repeat("k", 256), "a", "1", 400, false, 0},
		{"large", "POST", "/orders", "k", "01234567890", "1", 413, false, 0},
		{"first", "POST", "/orders?status=201", `"k"`, "a", "1", 201, false, 1},
		{"again", "POST", "/orders?status=201", `k`, "a", "1", 201, true, 1},
		{"other payload", "POST", "/orders?status=201", "k", "b", "1", 422, false, 1},
		{"other query", "POST", "/orders?status=202", "k", "a", "1", 422, false, 1},
		{"other client", "POST", "/orders?status=201", "k", "a", "2", 201, false, 2},
		{"other route", "POST", "/refunds?status=201", "k", "a", "1", 201, false, 3},
		{"refused for good", "POST", "/orders?status=404", "r", "a", "1", 404, false, 4},
		{"the same", "POST", "/orders?status=404", "r", "a", "1", 404, true, 4},
		{"failed", "POST", "/orders?status=500", "f", "a", "1", 500, false, 4},
		{"failed again", "POST", "/orders?status=500", "f", "a", "1", 500, false, 4},
		{"too many", "PATCH", "/orders?status=429", "t", "a", "1", 429, false, 4},
		{"get", "GET", "/orders", "", "", "1", 200, false, 4},
		{"put", "PUT", "/orders", "", "", "1", 200, false, 4},
	} {
		w := ask(h, c.method, c.url, c.key, c.body, c.client)
		if w.Code != c.status || (w.Header().Get(idempotency.HeaderReplayed) == "true") != c.replayed {
			t.Errorf("%s: status %d, replayed %q, want %d, %t", c.what, w.Code, w.Header().Get(idempotency.HeaderReplayed), c.status, c.replayed)
		}
		if c.replayed && (w.Body.String() != "made" || w.Header().Get("Location") != "/orders/1" || w.Header().Get("Set-Cookie") != "") {
			t.Errorf("%s: replayed %v %s", c.what, w.Header(), w.Body)
		}
		if n := count(t, pool, "SELECT count(*) FROM effect"); n != c.effects {
			t.Errorf("%s: %d effects, want %d", c.what, n, c.effects)
		}
	}
	if _, err := idempotency.Middleware(pool, idempotency.HTTP{}); !errors.Is(err, idempotency.ErrInvalid) {
		t.Errorf("no Scope: %v", err)
	}
}

// A request whose key is in flight is told when to try again.
func TestMiddlewareInFlight(t *testing.T) {
	t.Parallel()
	pool := open(t)
	h := handler(t, pool, idempotency.HTTP{})
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), "SELECT pawl.idempotency_take(1::smallint, '1 POST /orders', 'k', 0)"); err != nil {
		t.Fatal(err)
	}
	if w := ask(h, "POST", "/orders", "k", "a", "1"); w.Code != 409 || w.Header().Get("Retry-After") != "1" {
		t.Errorf("status %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
}

// A client that goes while its request is at work leaves nothing behind, and is nobody's fault; a failure of the database is.
func TestMiddlewareLog(t *testing.T) {
	t.Parallel()
	pool := open(t)
	var log bytes.Buffer
	ctx, leave := context.WithCancel(t.Context())
	wrap, err := idempotency.Middleware(pool, idempotency.HTTP{
		Scope: func(*http.Request) string { return "" }, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	h := wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if _, err := idempotency.Tx(r.Context()).Exec(r.Context(), "INSERT INTO effect VALUES (1)"); err != nil {
			t.Error(err)
		}
		leave()
	}))
	r := httptest.NewRequest("POST", "/orders", nil).WithContext(ctx)
	r.Header.Set("Idempotency-Key", "k")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 500 || log.Len() > 0 || count(t, pool, "SELECT count(*) FROM effect") != 0 {
		t.Errorf("the client left: status %d, logged %q", w.Code, &log)
	}
	pool.Close()
	if w := ask(h, "POST", "/orders", "k", "", ""); w.Code != 500 || !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("no database: status %d, logged %q", w.Code, &log)
	}
}

// An answer that is too large is neither cut off nor kept.
func TestMiddlewareLargeAnswer(t *testing.T) {
	t.Parallel()
	pool := open(t)
	wrap, err := idempotency.Middleware(pool, idempotency.HTTP{Scope: func(*http.Request) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	h := wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := idempotency.Tx(r.Context()).Exec(r.Context(), "INSERT INTO effect VALUES (1)"); err != nil {
			t.Error(err)
		}
		_, _ = w.Write(make([]byte, idempotency.BodyBytesMax+1))
	}))
	if w := ask(h, "POST", "/orders", "k", "a", "1"); w.Code != 500 || count(t, pool, "SELECT count(*) FROM effect") != 0 {
		t.Errorf("status %d", w.Code)
	}
}

// proxy stands between the pool it returns and the server. While armed it lets a COMMIT through (lost false) or not, and then cuts the connection.
func proxy(t *testing.T, pool *pgxpool.Pool, armed *atomic.Bool, lost bool) *pgxpool.Pool {
	t.Helper()
	conf := pool.Config()
	server := conf.ConnConfig
	network, address := pgconn.NetworkAddress(server.Host, server.Port)
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
		var cut atomic.Bool
		go func() { // the server's replies
			defer client.Close()
			buffer := make([]byte, 1<<16)
			for {
				n, err := upstream.Read(buffer)
				if err != nil || cut.Load() {
					return
				}
				if _, err := client.Write(buffer[:n]); err != nil {
					return
				}
			}
		}()
		buffer := make([]byte, 1<<16)
		for {
			n, err := client.Read(buffer)
			if err != nil {
				return
			}
			if armed.Load() && bytes.Contains(buffer[:n], []byte("commit\x00")) {
				if lost {
					return
				}
				cut.Store(true)
			}
			if _, err := upstream.Write(buffer[:n]); err != nil {
				return
			}
		}
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

// The reply to COMMIT is lost, or the COMMIT itself: the client is told that the outcome is unknown, and asking again finds the truth; there is one effect.
func TestMiddlewareCommitLost(t *testing.T) {
	t.Parallel()
	for _, lost := range []bool{false, true} {
		pool := open(t)
		var armed atomic.Bool
		h := handler(t, proxy(t, pool, &armed, lost), idempotency.HTTP{Options: idempotency.Options{Wait: time.Minute}})
		armed.Store(true)
		w := ask(h, "POST", "/orders?status=201", "k", "a", "1")
		armed.Store(false)
		if w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("lost %t: status %d", lost, w.Code)
		}
		w = ask(h, "POST", "/orders?status=201", "k", "a", "1")
		if w.Code != 201 || lost == (w.Header().Get(idempotency.HeaderReplayed) == "true") {
			t.Errorf("lost %t, again: status %d, replayed %q", lost, w.Code, w.Header().Get(idempotency.HeaderReplayed))
		}
		if n := count(t, pool, "SELECT count(*) FROM effect"); n != 1 {
			t.Errorf("lost %t: %d effects", lost, n)
		}
	}
}
