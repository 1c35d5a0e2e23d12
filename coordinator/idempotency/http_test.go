package idempotency_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/db/dbtest"
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
	if _, err := tx.Exec(t.Context(), "SELECT pawl.idempotency_take(1::smallint, 'POST /orders 1', 'k', '', 1000)"); err != nil {
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
	if w.Code != 503 || log.Len() > 0 || count(t, pool, "SELECT count(*) FROM effect") != 0 {
		t.Errorf("the client left: status %d, logged %q", w.Code, &log)
	}
	pool.Close()
	if w := ask(h, "POST", "/orders", "k", "", ""); w.Code < 500 || !strings.Contains(log.String(), "level=ERROR") {
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

// The reply to COMMIT is lost, or the COMMIT itself: the client is told that the outcome is unknown, and asking again finds the truth; there is one effect.
func TestMiddlewareCommitLost(t *testing.T) {
	t.Parallel()
	for name, commit := range map[string]int32{"not applied": dbtest.DropCommit, "applied": dbtest.DropReply} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := open(t)
			p, through := dbtest.NewProxy(t, pool, 4)
			h := handler(t, through, idempotency.HTTP{Options: idempotency.Options{Wait: patience}})
			p.Commit.Store(commit)
			w := ask(h, "POST", "/orders?status=201", "k", "a", "1")
			if w.Code != 503 || w.Header().Get("Retry-After") == "" || w.Header().Get("Location") != "" {
				t.Errorf("status %d %v", w.Code, w.Header())
			}
			if p.Commit.Load() != dbtest.PassCommit {
				t.Error("no COMMIT came by")
			}
			if commit == dbtest.DropReply { // the server is done with it before the client asks again, or while it does
				until(t, "the commit", func() bool { return count(t, pool, "SELECT count(*) FROM effect") == 1 })
			}
			w = ask(h, "POST", "/orders?status=201", "k", "a", "1")
			if w.Code != 201 || (commit == dbtest.DropReply) != (w.Header().Get(idempotency.HeaderReplayed) == "true") {
				t.Errorf("again: status %d, replayed %q", w.Code, w.Header().Get(idempotency.HeaderReplayed))
			}
			if n := count(t, pool, "SELECT count(*) FROM effect"); n != 1 {
				t.Errorf("%d effects", n)
			}
		})
	}
}

// The connection is lost while the server is still at the COMMIT: who asks again meanwhile is told that it is in flight, or waits, and the handler runs once.
func TestMiddlewareStillCommitting(t *testing.T) {
	t.Parallel()
	pool := open(t)
	exec(t, pool, `CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$`)
	exec(t, pool, "CREATE CONSTRAINT TRIGGER stall AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION stall()")
	gate, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Rollback(t.Context())
	if _, err := gate.Exec(t.Context(), "SELECT pg_advisory_xact_lock(1)"); err != nil {
		t.Fatal(err)
	}
	p, through := dbtest.NewProxy(t, pool, 4)
	p.Commit.Store(dbtest.CutClient)
	if w := ask(handler(t, through, idempotency.HTTP{}), "POST", "/orders?status=201", "k", "a", "1"); w.Code != 503 {
		t.Errorf("status %d", w.Code)
	}
	until(t, "the COMMIT to stall", func() bool {
		return count(t, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'") == 1
	})
	if w := ask(handler(t, pool, idempotency.HTTP{}), "POST", "/orders?status=201", "k", "a", "1"); w.Code != 409 || w.Header().Get("Retry-After") == "" {
		t.Errorf("meanwhile: status %d", w.Code)
	}
	waited := make(chan *httptest.ResponseRecorder)
	go func() {
		waited <- ask(handler(t, pool, idempotency.HTTP{Options: idempotency.Options{Wait: patience}}), "POST", "/orders?status=201", "k", "a", "1")
	}()
	if err := gate.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w := <-waited; w.Code != 201 || w.Header().Get(idempotency.HeaderReplayed) != "true" {
		t.Errorf("waited: status %d, replayed %q", w.Code, w.Header().Get(idempotency.HeaderReplayed))
	}
	if n := count(t, pool, "SELECT count(*) FROM effect"); n != 1 {
		t.Errorf("%d effects", n)
	}
}
