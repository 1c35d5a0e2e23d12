package idempotency_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// serve wraps a handler; all requests are one client's.
func serve(t *testing.T, pool *pgxpool.Pool, conf idempotency.HTTP, h http.HandlerFunc) http.Handler {
	t.Helper()
	if conf.Scope == nil {
		conf.Scope = func(*http.Request) string { return "client" }
	}
	wrap, err := idempotency.Middleware(pool, conf)
	if err != nil {
		t.Fatal(err)
	}
	return wrap(h)
}

func note(t *testing.T, r *http.Request) {
	t.Helper()
	if _, err := idempotency.Tx(r.Context()).Exec(r.Context(), "INSERT INTO effect VALUES (1)"); err != nil {
		t.Error(err)
	}
}

// Every fault of the configuration is told.
func TestHTTPValidate(t *testing.T) {
	t.Parallel()
	_, err := idempotency.Middleware(nil, idempotency.HTTP{
		Options: idempotency.Options{TTL: -1, BodyBytesMax: -1}, RequestBytesMax: -1, Headers: []string{"content-length"}, Optional: true, Phases: true, Docs: "https://x/#y",
	})
	for _, part := range []string{"TTL", "BodyBytesMax", "Scope", "RequestBytesMax", "content-length", "Optional", "Docs"} {
		if !errors.Is(err, idempotency.ErrInvalid) || !strings.Contains(err.Error(), part) {
			t.Errorf("%s is missing in: %v", part, err)
		}
	}
}

// How a key may be written.
func TestHTTPKey(t *testing.T) {
	t.Parallel()
	pool := open(t)
	h := serve(t, pool, idempotency.HTTP{}, func(w http.ResponseWriter, r *http.Request) { note(t, r) })
	for _, c := range []struct {
		keys   []string
		status int
		stored string
	}{
		{[]string{"8e03978e-40d5-43dd-bc93-6894a57f9324"}, 200, "8e03978e-40d5-43dd-bc93-6894a57f9324"},
		{[]string{`"quoted"`}, 200, "quoted"},
		{[]string{`"a \"b\" \\"`}, 200, `a "b" \`},
		{[]string{`"with"; parameters=1`}, 200, "with"},
		{[]string{"a, b"}, 200, "a, b"},
		{[]string{"one", "two"}, 400, ""},
		{[]string{""}, 400, ""},
		{[]string{`""`}, 400, ""},
		{[]string{`"open`}, 400, ""},
		{[]string{`"a"b`}, 400, ""},
		{[]string{`"a\b"`}, 400, ""},
		{[]string{`"a\`}, 400, ""},
		{[]string{"ä"}, 400, ""},
		{[]string{"a\tb"}, 400, ""},
	} {
		exec(t, pool, "DELETE FROM pawl.idempotency_key")
		r := httptest.NewRequest("POST", "/", nil)
		r.Header["Idempotency-Key"] = c.keys
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("%q: status %d, want %d", c.keys, w.Code, c.status)
		}
		if n := count(t, pool, "SELECT count(*) FROM pawl.idempotency_key WHERE $1 = '' OR key = $1", c.stored); n != min(len(c.stored), 1) {
			t.Errorf("%q: %d keys stored", c.keys, n)
		}
	}
}

// Errors are problem details, with links where there is a page to link to.
func TestHTTPProblem(t *testing.T) {
	t.Parallel()
	pool := open(t)
	for _, docs := range []string{"", "https://example.com/idempotency"} {
		h := serve(t, pool, idempotency.HTTP{Docs: docs, RequestBytesMax: 3}, func(http.ResponseWriter, *http.Request) {})
		for _, c := range []struct {
			key, body string
			status    int
			kind      string
		}{{"", "", 400, "key-missing"}, {`"`, "", 400, "key-invalid"}, {"k", "four", 413, "request-too-large"}, {"k", "a", 200, ""}, {"k", "b", 422, "key-reused"}} {
			w := ask(h, "POST", "/", c.key, c.body, "")
			if w.Code != c.status {
				t.Errorf("%v: status %d", c, w.Code)
			}
			if c.status == 200 {
				continue
			}
			var p struct {
				Type, Title, Detail string
				Status              int
			}
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != c.status || p.Title == "" || p.Detail == "" || w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("%v: %s, %v", c, w.Body, err)
			}
			want := ""
			if docs != "" {
				want = docs + "#" + c.kind
			}
			if p.Type != want {
				t.Errorf("%v: type %q, want %q", c, p.Type, want)
			}
		}
	}
}

// No name of a client, and no path, makes its requests another's.
func TestHTTPScope(t *testing.T) {
	t.Parallel()
	pool := open(t)
	h := serve(t, pool, idempotency.HTTP{Scope: func(r *http.Request) string { return r.Header.Get("X-Client") }}, func(w http.ResponseWriter, r *http.Request) { note(t, r) })
	routes := http.NewServeMux()
	routes.Handle("/", h)
	routes.Handle("/v1/", http.StripPrefix("/v1", h))
	routes.Handle("/v2/", http.StripPrefix("/v2", h))
	for i, c := range []struct{ method, path, client string }{
		{"POST", "/a", "x"},
		{"POST", "/a", "/a x"},
		{"POST", "/a%20POST%20/b", "x"},
		{"POST", "/a", "POST /b x"},
		{"PATCH", "/a", "x"},
		{"POST", "/v1/a", "x"},
		{"POST", "/v2/a", "x"},
		{"POST", "/a%2Fb", "x"},
		{"POST", "/a/b", "x"},
		{"POST", "/%00", "x"},
	} {
		for replayed := range 2 {
			w := ask(routes, c.method, c.path, "k", "", c.client)
			if w.Code != 200 || (w.Header().Get(idempotency.HeaderReplayed) == "true") != (replayed == 1) {
				t.Errorf("%v: status %d, replayed %q", c, w.Code, w.Header().Get(idempotency.HeaderReplayed))
			}
		}
		if n := count(t, pool, "SELECT count(*) FROM effect"); n != i+1 {
			t.Errorf("%v: %d effects, want %d", c, n, i+1)
		}
	}
	if w := ask(routes, "POST", "/"+strings.Repeat("p", idempotency.ScopeBytesMax), "k", "", "x"); w.Code != 414 {
		t.Errorf("long path: status %d", w.Code)
	}
	if w := ask(routes, "POST", "/a", "k", "", strings.Repeat("c", idempotency.ScopeBytesMax)); w.Code != 500 {
		t.Errorf("long client: status %d", w.Code)
	}
}

// Without a key, where it is optional, a request has its transaction, and nothing is stored.
func TestHTTPOptional(t *testing.T) {
	t.Parallel()
	pool := open(t)
	h := serve(t, pool, idempotency.HTTP{Optional: true, Options: idempotency.Options{Idle: 3 * time.Second}}, func(w http.ResponseWriter, r *http.Request) {
		note(t, r)
		var idle string
		if err := idempotency.Tx(r.Context()).QueryRow(r.Context(), "SHOW idle_in_transaction_session_timeout").Scan(&idle); err != nil || idle != "3s" {
			t.Errorf("idle %s, %v", idle, err)
		}
		if r.URL.Path == "/commit" {
			_, _ = idempotency.Tx(r.Context()).Exec(r.Context(), "ROLLBACK")
		}
		if r.URL.Path == "/fail" {
			w.WriteHeader(500)
		}
		fmt.Fprint(w, "made")
	})
	for i := range 2 {
		if w := ask(h, "POST", "/", "", "", ""); w.Code != 200 || w.Body.String() != "made" || count(t, pool, "SELECT count(*) FROM effect") != i+1 {
			t.Errorf("status %d", w.Code)
		}
	}
	if w := ask(h, "POST", "/fail", "", "", ""); w.Code != 500 || w.Body.String() != "made" {
		t.Errorf("failed: status %d", w.Code)
	}
	if w := ask(h, "POST", "/commit", "", "", ""); w.Code != 500 || w.Body.String() == "made" {
		t.Errorf("ended its transaction: status %d", w.Code)
	}
	if n, m := count(t, pool, "SELECT count(*) FROM effect"), count(t, pool, "SELECT count(*) FROM pawl.idempotency_key"); n != 2 || m != 0 {
		t.Errorf("%d effects, %d keys", n, m)
	}
	for range 2 {
		if w := ask(h, "POST", "/", "k", "", ""); w.Code != 200 || count(t, pool, "SELECT count(*) FROM effect") != 3 {
			t.Errorf("with a key: status %d", w.Code)
		}
	}
	if w := ask(h, "POST", "/", `"`, "", ""); w.Code != 400 {
		t.Errorf("with a bad key: status %d", w.Code)
	}
	p, through := dbtest.NewProxy(t, pool, 2)
	h = serve(t, through, idempotency.HTTP{Optional: true}, func(w http.ResponseWriter, r *http.Request) { note(t, r) })
	p.Commit.Store(dbtest.DropReply)
	if w := ask(h, "POST", "/", "", "", ""); w.Code != 503 {
		t.Errorf("the reply to COMMIT was lost: status %d", w.Code)
	}
}

// What a handler sends is sent whole the first time, and stored as far as it means the same later.
func TestHTTPAnswer(t *testing.T) {
	t.Parallel()
	pool := open(t)
	var handle http.HandlerFunc
	server := httptest.NewServer(serve(t, pool, idempotency.HTTP{}, func(w http.ResponseWriter, r *http.Request) { note(t, r); handle(w, r) }))
	defer server.Close()
	keys := 0
	for what, c := range map[string]struct {
		handle  http.HandlerFunc
		status  int
		body    string
		headers map[string]string // "": none
	}{
		"nothing":        {func(http.ResponseWriter, *http.Request) {}, 200, "", nil},
		"implicit":       {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, 200, "<html>", map[string]string{"Content-Type": "text/html; charset=utf-8"}},
		"in pieces":      {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "a"); fmt.Fprint(w, "b") }, 200, "ab", map[string]string{"Content-Length": "2"}},
		"no content":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204); fmt.Fprint(w, "a") }, 204, "", nil},
		"two statuses":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201); w.WriteHeader(500) }, 201, "", nil},
		"informational":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(103); w.WriteHeader(201) }, 201, "", nil},
		"late header":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201); w.Header().Set("Location", "/late") }, 201, "", map[string]string{"Location": ""}},
		"redirect":       {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/there", http.StatusSeeOther) }, 303, "", map[string]string{"Location": "/there"}},
		"not acceptable": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(402) }, 402, "", nil},
		"wrong length": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "7")
			fmt.Fprint(w, "four")
		}, 200, "four", map[string]string{"Content-Length": "4"}},
		"encoded": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "x-own")
			w.Header().Set("etag", `"1"`)
			fmt.Fprint(w, "zzz")
		}, 200, "zzz", map[string]string{"Content-Encoding": "x-own", "ETag": `"1"`}},
		"trailer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			fmt.Fprint(w, "a")
			w.Header().Set("X-Sum", "1")
		}, 200, "a", map[string]string{"Trailer": ""}},
		"flush": {func(w http.ResponseWriter, _ *http.Request) {
			if err := http.NewResponseController(w).Flush(); !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("Flush: %v", err)
			}
			if _, _, err := http.NewResponseController(w).Hijack(); !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("Hijack: %v", err)
			}
		}, 200, "", nil},
		"body": {func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			fmt.Fprint(w, string(body), r.ContentLength, err)
		}, 200, "{}2 <nil>", nil},
	} {
		handle = c.handle
		keys++
		for _, replayed := range []string{"", "true"} {
			r, err := http.NewRequest("POST", server.URL, io.MultiReader(strings.NewReader("{}"))) // of unknown length
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Idempotency-Key", fmt.Sprint(keys))
			res, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			body, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if res.StatusCode != c.status || string(body) != c.body && c.status != 303 || res.Header.Get(idempotency.HeaderReplayed) != replayed || len(res.Trailer) > 0 {
				t.Errorf("%s: status %d, replayed %q, %q", what, res.StatusCode, res.Header.Get(idempotency.HeaderReplayed), body)
			}
			for name, value := range c.headers {
				if res.Header.Get(name) != value {
					t.Errorf("%s: %s is %q, want %q", what, name, res.Header.Get(name), value)
				}
			}
		}
		if n := count(t, pool, "SELECT count(*) FROM effect"); n != keys {
			t.Errorf("%s: %d effects, want %d", what, n, keys)
		}
	}
}

// Which answers are stored is the API's to say; what is not, is rolled back.
func TestHTTPStored(t *testing.T) {
	t.Parallel()
	pool := open(t)
	for name, c := range map[string]struct {
		stored func(int) bool
		not    []int
	}{
		"default": {nil, []int{401, 407, 408, 409, 412, 421, 423, 425, 429, 500, 503}},
		"own":     {func(status int) bool { return status == 500 }, []int{200, 201, 301, 400, 403, 404, 422}},
	} {
		h := serve(t, pool, idempotency.HTTP{Stored: c.stored}, func(w http.ResponseWriter, r *http.Request) {
			note(t, r)
			var status int
			_, _ = fmt.Sscan(r.URL.Query().Get("status"), &status)
			w.WriteHeader(status)
		})
		for _, status := range []int{200, 201, 204, 301, 400, 401, 403, 404, 407, 408, 409, 412, 421, 422, 423, 425, 429, 500, 503} {
			stored := name == "own" && status == 500
			if name == "default" {
				stored = true
				for _, not := range c.not {
					stored = stored && status != not
				}
			}
			exec(t, pool, "DELETE FROM effect")
			for i := range 2 {
				w := ask(h, "POST", fmt.Sprint("/?status=", status), fmt.Sprint(name, status), "", "")
				if w.Code != status || (w.Header().Get(idempotency.HeaderReplayed) == "true") != (stored && i == 1) {
					t.Errorf("%s %d: status %d, replayed %q", name, status, w.Code, w.Header().Get(idempotency.HeaderReplayed))
				}
			}
			want := 0
			if stored {
				want = 1
			}
			if n := count(t, pool, "SELECT count(*) FROM effect"); n != want {
				t.Errorf("%s %d: %d effects, want %d", name, status, n, want)
			}
		}
	}
}

// A handler that panics has done nothing, and its connection is cut as net/http does it.
func TestHTTPPanic(t *testing.T) {
	t.Parallel()
	pool := open(t)
	for _, p := range []any{http.ErrAbortHandler, "oh", -1} {
		h := serve(t, pool, idempotency.HTTP{}, func(w http.ResponseWriter, r *http.Request) {
			note(t, r)
			if p == -1 {
				w.WriteHeader(0) // net/http panics as well
			}
			panic(p)
		})
		func() {
			defer func() {
				if got := recover(); got == nil || p != -1 && got != p {
					t.Errorf("got %v, want %v", got, p)
				}
			}()
			ask(h, "POST", "/", "k", "", "")
		}()
		if n := count(t, pool, "SELECT count(*) FROM effect"); n != 0 {
			t.Errorf("%v: %d effects", p, n)
		}
	}
	if w := ask(serve(t, pool, idempotency.HTTP{}, func(w http.ResponseWriter, r *http.Request) { note(t, r) }), "POST", "/", "k", "", ""); w.Code != 200 {
		t.Errorf("after that: status %d", w.Code)
	}
}

// The handler has one transaction, which it may not end.
func TestHTTPTx(t *testing.T) {
	t.Parallel()
	pool := open(t)
	h := serve(t, pool, idempotency.HTTP{}, func(w http.ResponseWriter, r *http.Request) {
		tx := idempotency.Tx(r.Context())
		if tx != idempotency.Tx(r.Context()) || idempotency.ClaimOf(r.Context()) != nil {
			t.Error("two transactions, or a claim")
		}
		note(t, r)
		if err := tx.Commit(r.Context()); !errors.Is(err, db.ErrLent) {
			t.Errorf("Commit: %v", err)
		}
		if r.URL.Path != "/" {
			if _, err := tx.Exec(r.Context(), "ROLLBACK"); err != nil {
				t.Error(err)
			}
		}
	})
	if w := ask(h, "POST", "/", "k", "", ""); w.Code != 200 || count(t, pool, "SELECT count(*) FROM effect") != 1 {
		t.Errorf("status %d", w.Code)
	}
	if w := ask(h, "POST", "/ended", "k", "", ""); w.Code != 500 || count(t, pool, "SELECT count(*) FROM pawl.idempotency_key") != 1 {
		t.Errorf("ended within: status %d", w.Code)
	}
	if idempotency.Tx(t.Context()) != nil {
		t.Error("a transaction without a request")
	}
}

// A client that goes in the middle undoes its request; a body that is cut short is none.
func TestHTTPGone(t *testing.T) {
	t.Parallel()
	pool := open(t)
	began, over := make(chan struct{}, 1), make(chan error, 1)
	server := httptest.NewServer(serve(t, pool, idempotency.HTTP{}, func(w http.ResponseWriter, r *http.Request) {
		note(t, r)
		if r.URL.Path == "/wait" {
			began <- struct{}{}
			<-r.Context().Done()
			_, err := idempotency.Tx(r.Context()).Exec(r.Context(), "SELECT 1")
			over <- err
		}
		fmt.Fprint(w, "made") // to nobody
	}))
	defer server.Close()
	ctx, leave := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "POST", server.URL+"/wait", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Idempotency-Key", "k")
	go func() {
		<-began
		leave()
	}()
	if _, err := http.DefaultTransport.RoundTrip(r); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("the handler's statement: %v", err)
	}
	until(t, "the rollback", func() bool {
		_, replayed, err := idempotency.Do(t.Context(), pool, idempotency.Key{Scope: "POST /wait client", Key: "k"}, nil, idempotency.Options{}, func(context.Context, pgx.Tx) (idempotency.Response, error) {
			return idempotency.Response{}, errCut
		})
		return !replayed && errors.Is(err, errCut)
	})
	if n := count(t, pool, "SELECT count(*) FROM effect"); n != 0 {
		t.Errorf("%d effects", n)
	}

	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /cut HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != 400 {
		t.Errorf("a body that breaks off: %v, %v", res, err)
	}
	if n := count(t, pool, "SELECT count(*) FROM effect"); n != 0 {
		t.Errorf("%d effects", n)
	}
}

// A body that an outer handler has read away cannot tell requests apart.
func TestHTTPBodyRead(t *testing.T) {
	t.Parallel()
	pool := open(t)
	h := serve(t, pool, idempotency.HTTP{}, func(w http.ResponseWriter, r *http.Request) { note(t, r) })
	outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		h.ServeHTTP(w, r)
	})
	if w := ask(outer, "POST", "/", "k", "a=1", ""); w.Code != 500 {
		t.Errorf("status %d", w.Code)
	}
	if n := count(t, pool, "SELECT count(*) FROM effect"); n != 0 {
		t.Errorf("%d effects", n)
	}
}

// A database that is away is no fault of the request.
func TestHTTPUnavailable(t *testing.T) {
	t.Parallel()
	p, through := dbtest.NewProxy(t, open(t), 2)
	h := serve(t, through, idempotency.HTTP{RetryAfter: 1500 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) { t.Error("ran") })
	p.CutAll()
	if w := ask(h, "POST", "/", "k", "", ""); w.Code != 503 || w.Header().Get("Retry-After") != "2" {
		t.Errorf("status %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
	r := httptest.NewRequest("POST", "/", nil)
	r.Header.Set("Idempotency-Key", "k")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r.WithContext(ctx)); w.Code != 503 {
		t.Errorf("its time was over: status %d", w.Code)
	}
}

// A handler in phases: a failure leaves it at its point, the next try goes on, and what happens to the claim is answered for it.
func TestHTTPPhases(t *testing.T) {
	t.Parallel()
	pool, b := open(t), newBank(t)
	var bankAway, other, lose bool
	h := serve(t, pool, idempotency.HTTP{Phases: true}, func(w http.ResponseWriter, r *http.Request) {
		c := idempotency.ClaimOf(r.Context())
		if idempotency.Tx(r.Context()) != nil {
			t.Error("a transaction beside the claim")
		}
		first := "note"
		if other {
			first = "memo"
		}
		_, err := idempotency.PhaseTx(r.Context(), c, first, func(ctx context.Context, tx pgx.Tx) (any, error) {
			_, err := tx.Exec(ctx, "INSERT INTO effect VALUES (1)")
			return nil, err
		})
		var id string
		if err == nil {
			id, err = idempotency.Phase(r.Context(), c, "charge", func(ctx context.Context, key string) (string, error) {
				if bankAway {
					return "", errCut
				}
				if lose {
					exec(t, pool, "UPDATE pawl.idempotency_claim SET token = token + 1, until = now()")
				}
				return charge(ctx, b.url, key)
			})
		}
		if err != nil {
			http.Error(w, "own words", http.StatusBadGateway)
			return
		}
		w.WriteHeader(201)
		fmt.Fprint(w, id)
	})
	for i, c := range []struct {
		bankAway, other, lose bool
		status                int
		body                  string
		replayed              bool
	}{
		{bankAway: true, status: 502, body: "own words"},
		{other: true, status: 500},
		{lose: true, status: 409},
		{status: 201, body: "ch_1"},
		{status: 201, body: "ch_1", replayed: true},
	} {
		bankAway, other, lose = c.bankAway, c.other, c.lose
		w := ask(h, "POST", "/", "k", "", "")
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.body) || (w.Header().Get(idempotency.HeaderReplayed) == "true") != c.replayed {
			t.Errorf("%d: status %d %s", i, w.Code, w.Body)
		}
		if n := count(t, pool, "SELECT count(*) FROM effect"); n != 1 {
			t.Errorf("%d: %d effects", i, n)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.calls != 2 || len(b.charges) != 1 {
		t.Errorf("%d calls, %v", b.calls, b.charges)
	}
}

// A replay costs one round trip to the database over HTTP as well.
func TestHTTPRoundTrips(t *testing.T) {
	t.Parallel()
	p, through := dbtest.NewProxy(t, open(t), 1)
	h := serve(t, through, idempotency.HTTP{}, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "made") })
	for _, key := range []string{"a", "a", "b", "b"} { // statements are prepared the first time
		ask(h, "POST", "/", key, "", "")
	}
	before := p.Trips.Load()
	if w := ask(h, "POST", "/", "a", "", ""); w.Body.String() != "made" || w.Header().Get(idempotency.HeaderReplayed) != "true" {
		t.Errorf("got %s", w.Body)
	}
	if got := p.Trips.Load() - before; got != 1 {
		t.Errorf("%d round trips", got)
	}
}
