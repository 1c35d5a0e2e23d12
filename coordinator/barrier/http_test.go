package barrier_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// work is the service of these tests. The body says how it goes.
func work(ctx context.Context, tx pgx.Tx, b barrier.Branch, body []byte) (json.RawMessage, error) {
	return serve(ctx, postgresTx{tx}, b, body)
}

func serve(ctx context.Context, tx transaction, b barrier.Branch, body []byte) (json.RawMessage, error) {
	out, err := tx.effect(ctx, b)
	if err != nil {
		return nil, err
	}
	if sql, ok := strings.CutPrefix(string(body), "sql "); ok {
		return out, tx.exec(ctx, sql)
	}
	switch string(body) {
	case "cut":
		return nil, tx.cut(ctx)
	case "refuse":
		return nil, fmt.Errorf("charge: %w", barrier.Refuse(errors.New("no money")))
	case "fail":
		return nil, errors.New("s3cr3t")
	case "nothing":
		return nil, nil
	case "nonsense":
		return json.RawMessage("{"), nil
	case "panic":
		panic("oh")
	}
	return out, nil
}

func request(b barrier.Branch, body string) *http.Request {
	r := httptest.NewRequest("POST", "/charge", strings.NewReader(body))
	b.SetHeaders(r.Header)
	return r
}

// call calls a branch and gives the answer.
func call(h http.Handler, b barrier.Branch, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(b, body))
	return w
}

type problem struct {
	Title, Detail string
	Status        int
}

func readProblem(t *testing.T, w *httptest.ResponseRecorder) (p problem) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Title == "" || p.Detail == "" || p.Status != w.Code || w.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("status %d: %v: %q, %v", w.Code, w.Header(), w.Body, err)
	}
	return p
}

// What a branch answers to calls that come twice, late, or in vain.
func TestHandler(t *testing.T) { onEach(t, testHandler) }

func testHandler(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	h := s.handler(barrier.HTTP{}, serve)
	passing := s.passing()
	for i, c := range []struct {
		id, op, body string
		status       int
		outcome      string // or a part of the problem's detail
		answer       string
	}{
		{"1", "action", "", 200, "done", `{"id" : 1}`},
		{"1", "action", "refuse", 200, "duplicate", `{"id" : 1}`},
		{"1", "undo", "nothing", 200, "done", "null"},
		{"1", "undo", "fail", 200, "duplicate", "null"},
		{"2", "undo", "", 200, "null", "null"},
		{"2", "undo", "", 200, "duplicate", "null"},
		{"2", "action", "", 409, "compensated before", ""},
		{"3", "action", "refuse", 409, "charge: no money", ""},
		{"3", "action", "", 409, "charge: no money", ""},
		{"3", "confirm", "refuse", 500, "The branch failed", ""},
		{"4", "action", "refuse", 409, "no money", ""},
		{"4", "undo", "", 200, "null", "null"},
		{"4", "action", "", 409, "compensated before", ""},
		{"5", "action", "fail", 500, "The branch failed", ""},
		{"5", "action", "nonsense", 500, "The branch failed", ""},
		{"5", "action", "sql ROLLBACK", 500, "The branch failed", ""},
		{"5", "action", "sql SELECT nonsense", 500, "The branch failed", ""},
		{"5", "action", "sql " + passing[0], 503, "Nothing was done", ""},
		{"5", "action", "sql " + passing[1], 503, "Nothing was done", ""},
		{"5", "action", "cut", 503, "Nothing was done", ""},
		{"5", "action", "", 200, "done", `{"id" : 3}`},
		{"6 ü/%\n", "try", "", 200, "done", `{"id" : 4}`},
		{"6 ü/%\n", "confirm", "", 200, "done", `{"id" : 5}`},
	} {
		w := call(h, barrier.Branch{ID: c.id, Branch: "charge", Op: barrier.Op(c.op)}, c.body)
		if w.Code != c.status {
			t.Errorf("%d: status %d: %s", i, w.Code, w.Body)
			continue
		}
		if c.status == 200 {
			if w.Header().Get(barrier.HeaderOutcome) != c.outcome || w.Body.String() != c.answer || w.Header().Get("Content-Type") != "application/json" {
				t.Errorf("%d: %v %s", i, w.Header(), w.Body)
			}
			continue
		}
		if p := readProblem(t, w); !strings.Contains(p.Detail, c.outcome) || strings.Contains(w.Body.String(), "s3cr3t") {
			t.Errorf("%d: %+v", i, p)
		}
		if (w.Header().Get("Retry-After") != "") != (c.status == 503) {
			t.Errorf("%d: Retry-After %q", i, w.Header().Get("Retry-After"))
		}
	}
	if got := s.effects(t); got != "action undo action try confirm" {
		t.Errorf("effects %q", got)
	}
	if n := s.count(t, "SELECT count(*) FROM effect WHERE saga = '6 ü/%\n' AND step = 'charge'"); n != 2 {
		t.Errorf("%d effects of the saga with an odd id", n)
	}
}

// A refusal is the answer to copies of the call, and a later attempt may succeed. One that cannot be stored is none.
func TestHandlerRefused(t *testing.T) {
	t.Parallel()
	pool := open(t)
	p, through := dbtest.NewProxy(t, pool, 4)
	h := barrier.Handler(through, work)
	at := func(attempt int) barrier.Branch {
		b := branch(barrier.Action)
		b.Job, b.Attempt = 4711, attempt
		return b
	}
	for i, c := range []struct {
		attempt int
		body    string
		commit  int32
		status  int
		detail  string
	}{
		{1, "refuse", dbtest.DropCommit, 503, "Nothing was done"},
		{1, "refuse", dbtest.DropReply, 503, "Nothing was done"},
		{1, "", dbtest.PassCommit, 409, "charge: no money"}, // which the lost reply had stored
		{2, "refuse", dbtest.PassCommit, 409, "charge: no money"},
		{1, "", dbtest.PassCommit, 409, "charge: no money"},
		{2, "", dbtest.PassCommit, 409, "charge: no money"},
		{3, "", dbtest.PassCommit, 200, ""},
		{3, "refuse", dbtest.PassCommit, 200, ""},
	} {
		p.Commit.Store(c.commit)
		w := call(h, at(c.attempt), c.body)
		if w.Code != c.status || c.status != 200 && readProblem(t, w).Detail != c.detail && !strings.HasPrefix(readProblem(t, w).Detail, c.detail) {
			t.Errorf("%d: %d %s", i, w.Code, w.Body)
		}
		if c.commit == dbtest.DropReply {
			until(t, "the commit", func() bool { return count(t, pool, "SELECT count(*) FROM pawl.barrier") == 1 })
		}
	}
	if got := effects(t, pool); got != "action" {
		t.Errorf("effects %q", got)
	}
}

// A copy of a call that is refused has it done meanwhile: then that is the answer.
func TestHandlerRefusedMeanwhile(t *testing.T) {
	t.Parallel()
	pool := open(t)
	copies := make(chan *httptest.ResponseRecorder, 1)
	h := barrier.Handler(pool, func(ctx context.Context, tx pgx.Tx, b barrier.Branch, _ []byte) (json.RawMessage, error) {
		go func() { copies <- call(barrier.Handler(pool, work), b, "") }()
		untilWaiting(t, pool, 1)
		_, err := tx.Exec(ctx, "ROLLBACK") // so that the copy is next for certain
		if w := <-copies; w.Code != 200 {
			t.Errorf("the copy: %d %s", w.Code, w.Body)
		}
		return nil, errors.Join(err, barrier.Refuse(errors.New("no")))
	})
	if w := call(h, branch(barrier.Action), ""); w.Code != 200 || w.Header().Get(barrier.HeaderOutcome) != "duplicate" || w.Body.String() != `{"id" : 1}` {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
}

// The handler's namespace tells the sagas of several callers apart, and its transactions are bounded unless the role's are.
func TestHandlerConfig(t *testing.T) {
	t.Parallel()
	pool := open(t)
	exec(t, pool, "SELECT pawl.namespace_create('other')")
	for i, c := range []struct {
		conf barrier.HTTP
		idle string
	}{{barrier.HTTP{}, "1min"}, {barrier.HTTP{Namespace: 2, Idle: 7 * time.Second}, "7s"}} {
		h := c.conf.Handler(pool, func(ctx context.Context, tx pgx.Tx, b barrier.Branch, _ []byte) (out json.RawMessage, err error) {
			err = tx.QueryRow(ctx, "SELECT to_json(current_setting('idle_in_transaction_session_timeout'))").Scan(&out)
			return out, err
		})
		for _, want := range []string{"done", "duplicate"} {
			w := call(h, branch(barrier.Action), "")
			if w.Header().Get(barrier.HeaderOutcome) != want || w.Body.String() != fmt.Sprintf("%q", c.idle) {
				t.Errorf("%d: %d %v %s", i, w.Code, w.Header(), w.Body)
			}
		}
	}
}

// A panic is rolled back and goes on.
func TestHandlerPanic(t *testing.T) { onEach(t, testHandlerPanic) }

func testHandlerPanic(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	h := s.handler(barrier.HTTP{}, serve)
	func() {
		defer func() {
			if p := recover(); p != "oh" {
				t.Errorf("recovered %v", p)
			}
		}()
		call(h, branch(barrier.Action), "panic")
	}()
	if w := call(h, branch(barrier.Action), ""); w.Header().Get(barrier.HeaderOutcome) != "done" || s.count(t, "SELECT count(*) FROM effect") != 1 {
		t.Errorf("after a panic: %d %s", w.Code, w.Body)
	}
}

// What is wrong with a request is told him who made it, all of it at once, and nothing is run.
func TestHandlerBadRequest(t *testing.T) {
	t.Parallel()
	pool := open(t)
	h := barrier.HTTP{RequestBytesMax: 10}.Handler(pool, work)
	change := func(change func(*http.Request)) *http.Request {
		r := request(branch(barrier.Action), "")
		change(r)
		return r
	}
	for what, c := range map[string]struct {
		r      *http.Request
		status int
		names  []string
	}{
		"nothing":     {httptest.NewRequest("POST", "/", nil), 400, []string{"Pawl-Saga must be there once", "Pawl-Step must be there once", "Pawl-Op must be there once"}},
		"empty":       {change(func(r *http.Request) { r.Header.Set("Pawl-Saga", "") }), 400, []string{"Pawl-Saga must have 1 to 1024 bytes, not 0"}},
		"twice":       {change(func(r *http.Request) { r.Header.Add("Pawl-Step", "charge") }), 400, []string{"Pawl-Step must be there once, not 2 times"}},
		"long":        {change(func(r *http.Request) { r.Header.Set("Pawl-Step", strings.Repeat("s", 256)) }), 400, []string{"Pawl-Step must have"}},
		"another op":  {change(func(r *http.Request) { r.Header.Set("Pawl-Op", "redo") }), 400, []string{`Pawl-Op must be one of "action", "undo", "try", "confirm", "cancel"`}},
		"NUL":         {change(func(r *http.Request) { r.Header.Set("Pawl-Saga", "a%00") }), 400, []string{"Pawl-Saga must be UTF-8"}},
		"no UTF-8":    {change(func(r *http.Request) { r.Header.Set("Pawl-Saga", "a%ff") }), 400, []string{"Pawl-Saga must be UTF-8"}},
		"bad percent": {change(func(r *http.Request) { r.Header.Set("Pawl-Saga", "100%") }), 400, []string{"Pawl-Saga is not percent-encoded"}},
		"attempt":     {change(func(r *http.Request) { r.Header.Set("Pawl-Attempt", "4711") }), 400, []string{"Pawl-Attempt must be two numbers"}},
		"attempts":    {change(func(r *http.Request) { r.Header.Add("Pawl-Attempt", "1.1") }), 400, []string{"Pawl-Attempt must be there once"}},
		"large job":   {change(func(r *http.Request) { r.Header.Set("Pawl-Attempt", "9223372036854775808.1") }), 400, []string{"Pawl-Attempt must be"}},
		"no attempt":  {change(func(r *http.Request) { r.Header.Set("Pawl-Attempt", "1.-1") }), 400, []string{"Pawl-Attempt must be"}},
		"method":      {change(func(r *http.Request) { r.Method = "GET" }), 405, []string{"POST"}},
		"large":       {request(branch(barrier.Action), "12345678901"), 413, []string{"10 bytes"}},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, c.r)
		p := readProblem(t, w)
		if w.Code != c.status {
			t.Errorf("%s: status %d", what, w.Code)
		}
		for _, name := range c.names {
			if !strings.Contains(p.Detail, name) {
				t.Errorf("%s: %q is missing in %q", what, name, p.Detail)
			}
		}
		if strings.Count(p.Detail, "header") != strings.Count(strings.Join(c.names, " "), "Pawl-") {
			t.Errorf("%s: %q names others", what, p.Detail)
		}
	}
	server := httptest.NewServer(h)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: x\r\nPawl-Saga: a\r\nPawl-Step: b\r\nPawl-Op: action\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
	reply, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	if n := count(t, pool, "SELECT count(*) FROM effect"); reply.StatusCode != 400 || n != 0 {
		t.Errorf("status %d, %d effects", reply.StatusCode, n)
	}
}

// A request goes over the wire as it was meant, whatever its saga is called.
func TestSetHeaders(t *testing.T) {
	t.Parallel()
	var got barrier.Branch
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var err error
		if got, err = barrier.FromRequest(r); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	for _, id := range []string{"checkout:4711", " leading", "trailing\t", "new\nline", "ü", "日本", "100%", "%41", "a/b?c#d", strings.Repeat("ü", 512)} {
		want := barrier.Branch{ID: id, Branch: "step-1", Op: barrier.Undo, Job: 1<<63 - 1, Attempt: 1<<31 - 1}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		want.SetHeaders(r.Header)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Errorf("%q: %v", id, err)
			continue
		}
		_ = resp.Body.Close()
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	h := http.Header{}
	branch(barrier.Action).SetHeaders(h)
	if h.Get("Pawl-Saga") != "checkout:4711" { // as it is, where that can be
		t.Errorf("got %v", h)
	}
}

// A call that meets another of its branch waits, and is told to come again if that takes too long.
func TestHandlerInFlight(t *testing.T) { onEach(t, testHandlerInFlight) }

func testHandlerInFlight(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	holder, err := s.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.rollback(t.Context())
	if _, err := holder.do(t.Context(), branch(barrier.Action), func(ctx context.Context) (json.RawMessage, error) { return holder.effect(ctx, branch(barrier.Action)) }); err != nil {
		t.Fatal(err)
	}
	h := s.handler(barrier.HTTP{}, serve)
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(branch(barrier.Undo), "").WithContext(ctx))
	if w.Code != 425 || w.Header().Get("Retry-After") != "1" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	readProblem(t, w)

	answers := make(chan *httptest.ResponseRecorder, 1)
	go func() { answers <- call(h, branch(barrier.Undo), "") }()
	s.untilWaiting(t, 1)
	if err := holder.commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w := <-answers; w.Code != 200 || w.Header().Get(barrier.HeaderOutcome) != "done" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// Many copies of one call, over one server: work runs once, and all are answered alike.
func TestHandlerStorm(t *testing.T) { onEach(t, testHandlerStorm) }

func testHandlerStorm(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	server := httptest.NewServer(s.handler(barrier.HTTP{}, serve))
	defer server.Close()
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		seen  = map[string]int{}
	)
	for range 40 {
		group.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, nil)
			if err != nil {
				t.Error(err)
				return
			}
			branch(barrier.Action).SetHeaders(r.Header)
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			var body bytes.Buffer
			if _, err := body.ReadFrom(resp.Body); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			seen[fmt.Sprint(resp.StatusCode, " ", resp.Header.Get(barrier.HeaderOutcome), " ", body.String())]++
		})
	}
	group.Wait()
	if len(seen) != 2 || seen[`200 done {"id" : 1}`] != 1 || seen[`200 duplicate {"id" : 1}`] != 39 {
		t.Errorf("answers %v", seen)
	}
	if n := s.count(t, "SELECT count(*) FROM effect"); n != 1 {
		t.Errorf("%d effects", n)
	}
}

// The reply to COMMIT is lost, or the COMMIT itself: the caller is told that the outcome is unknown, and his next call finds the truth; there is one effect.
func TestHandlerCommitLost(t *testing.T) {
	t.Parallel()
	for name, commit := range map[string]int32{"not applied": dbtest.DropCommit, "applied": dbtest.DropReply} {
		for _, op := range []barrier.Op{barrier.Action, barrier.Undo} {
			t.Run(fmt.Sprint(name, " ", op), func(t *testing.T) {
				t.Parallel()
				pool := open(t)
				p, through := dbtest.NewProxy(t, pool, 4)
				var log bytes.Buffer
				h := barrier.HTTP{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Handler(through, work)
				if op == barrier.Undo {
					call(h, branch(barrier.Action), "")
				}
				p.Commit.Store(commit)
				w := call(h, branch(op), "")
				if w.Code != 503 || w.Header().Get("Retry-After") == "" || readProblem(t, w).Title != "Outcome unknown" {
					t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
				}
				if p.Commit.Load() != dbtest.PassCommit {
					t.Error("no COMMIT came by")
				}
				if text := log.String(); !strings.Contains(text, "outcome of a branch unknown") || !strings.Contains(text, "saga=checkout:4711 step=charge op="+string(op)) {
					t.Errorf("logged %q", text)
				}
				want := "done"
				if commit == dbtest.DropReply { // the server is done with it before the next call
					want = "duplicate"
					until(t, "the commit", func() bool { return count(t, pool, "SELECT count(*) FROM effect WHERE op = $1", op) == 1 })
				}
				if w = call(h, branch(op), ""); w.Code != 200 || w.Header().Get(barrier.HeaderOutcome) != want {
					t.Errorf("again: %d %v %s", w.Code, w.Header(), w.Body)
				}
				if n := count(t, pool, "SELECT count(*) FROM effect WHERE op = $1", op); n != 1 {
					t.Errorf("%d effects", n)
				}
			})
		}
	}
}

// The database is away: nothing was done, and the call may be made again.
func TestHandlerAway(t *testing.T) {
	t.Parallel()
	pool := open(t)
	_, through := dbtest.NewProxy(t, pool, 4)
	through.Close()
	w := call(barrier.Handler(through, work), branch(barrier.Action), "")
	if w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
}

// A caller who goes away rolls back what he asked for; it is not the service's error.
func TestHandlerCallerGone(t *testing.T) { onEach(t, testHandlerCallerGone) }

func testHandlerCallerGone(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	h := s.handler(barrier.HTTP{Logger: slog.New(slog.NewTextHandler(&log, nil))}, func(ctx context.Context, tx transaction, b barrier.Branch, _ []byte) (json.RawMessage, error) {
		out, err := tx.effect(ctx, b)
		cancel()
		return out, err
	})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(branch(barrier.Action), "").WithContext(ctx))
	if n := s.count(t, "SELECT count(*) FROM effect"); w.Code != 503 || n != 0 || log.Len() > 0 {
		t.Errorf("%d, %d effects, logged %q", w.Code, n, log.String())
	}
}

// Work that stalls longer than it may loses its transaction, and the branch is free.
func TestHandlerStalled(t *testing.T) { onEach(t, testHandlerStalled) }

func testHandlerStalled(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	quick := s.handler(barrier.HTTP{}, serve)
	slow := s.handler(barrier.HTTP{Idle: 500 * time.Millisecond}, func(ctx context.Context, tx transaction, b barrier.Branch, _ []byte) (json.RawMessage, error) {
		out, err := tx.effect(ctx, b)
		if w := call(quick, b, ""); w.Header().Get(barrier.HeaderOutcome) != "done" { // which waits for it
			t.Errorf("another: %d %s", w.Code, w.Body)
		}
		return out, err
	})
	if w := call(slow, branch(barrier.Action), ""); w.Code != 503 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if n := s.count(t, "SELECT count(*) FROM effect"); n != 1 {
		t.Errorf("%d effects", n)
	}
}

// A call takes two round trips beside those of its work, a duplicate one and the end of its transaction.
func TestHandlerRoundTrips(t *testing.T) {
	t.Parallel()
	pool := open(t)
	p, through := dbtest.NewProxy(t, pool, 1)
	h := barrier.Handler(through, func(context.Context, pgx.Tx, barrier.Branch, []byte) (json.RawMessage, error) { return nil, nil })
	for _, id := range []string{"warm", "warmer", "a"} { // statements are prepared the first time
		for _, c := range []struct {
			op      barrier.Op
			outcome string
		}{{barrier.Action, "done"}, {barrier.Action, "duplicate"}, {barrier.Undo, "done"}} {
			before := p.Trips.Load()
			w := call(h, barrier.Branch{ID: id, Branch: "b", Op: c.op}, "")
			if w.Header().Get(barrier.HeaderOutcome) != c.outcome {
				t.Errorf("%s %s: %d %s", id, c.op, w.Code, w.Body)
			}
			if got := p.Trips.Load() - before; id == "a" && got != 2 {
				t.Errorf("%s, %s: %d round trips, want 2", c.op, c.outcome, got)
			}
		}
	}
}
