package saga_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/outbound"
	"github.com/pawl-dev/pawl/coordinator/saga"
)

// registry is a worker that only takes handlers, for this file to call.
type registry struct {
	handlers map[string]func(context.Context, *saga.Raw) (json.RawMessage, error)
}

func (w *registry) HandleRaw(kind string, h func(context.Context, *saga.Raw) (json.RawMessage, error)) {
	if w.handlers == nil {
		w.handlers = map[string]func(context.Context, *saga.Raw) (json.RawMessage, error){}
	}
	w.handlers[kind] = h
}

func (*registry) HandleRawTx(string, func(context.Context, pgx.Tx, *saga.Raw) (json.RawMessage, error)) {
}
func (*registry) Wake(string)            {}
func (*registry) OnSagas(func([]string)) {}
func (*registry) Pool() *pgxpool.Pool    { return nil }

type purchase struct {
	Item  string `json:"item"`
	Cents int    `json:"cents"`
}

type charged struct {
	ID string `json:"id"`
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// httpStep is a step that is done over HTTP, and its worker.
type httpStep struct {
	*registry
	saga    string
	header  map[string]string
	attempt int
}

// newHTTPStep gives a step of a service. Local addresses are allowed.
func newHTTPStep[Out any](b saga.Branch, opts ...saga.StepOption) httpStep {
	if b.Transport == nil && b.Allow == nil {
		b.Allow = loopback
	}
	w := &registry{}
	saga.HandleHTTP(w, saga.Step[Out](saga.Define[purchase]("checkout"), "charge", opts...), b)
	return httpStep{registry: w, saga: "checkout:4711", attempt: 2}
}

// call does the step, or compensates it, given its output.
func (b httpStep) call(ctx context.Context, undo bool, output string) (json.RawMessage, error) {
	args := fmt.Sprintf(`{"saga": %q, "id": "17", "step": "charge", "version": 1, "input": {"item": "book", "cents": 1999}`, b.saga)
	kind, id := "saga:checkout/charge", int64(4711)
	if undo {
		kind, id, args = kind+"/undo", id+1, args+`, "output": `+output
	}
	return b.handlers[kind](ctx, &saga.Raw{ID: id, Kind: kind, Attempt: b.attempt, MaxAttempts: 5, Headers: b.header, Args: json.RawMessage(args + "}")})
}

const boundedMax = 30 * time.Second

func bounded(t testing.TB) context.Context {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), boundedMax)
	t.Cleanup(stop)
	return ctx
}

func serveBranch(t testing.TB, handle http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(handle)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.Start()
	t.Cleanup(server.Close)
	return server
}

// meaning names what the engine makes of an error.
func meaning(err error) string {
	if err == nil {
		return "success"
	}
	switch e := job.EndingOf(err); e.Outcome {
	case job.Snoozed:
		return "again " + e.Delay.String()
	case job.Discarded:
		return "refused"
	case job.Failed:
		if e.Delay != nil {
			return "later " + e.Delay.String()
		}
		return "unknown"
	default:
		return "?"
	}
}

// What is sent: to an action, to its compensation, and to that of an unknown outcome.
func TestHandleHTTP(t *testing.T) {
	t.Parallel()
	type received struct {
		uri, body string
		header    http.Header
	}
	var got received
	server := serveBranch(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = received{r.Method + " " + r.Host + r.URL.RequestURI(), string(body), r.Header}
		_, _ = io.WriteString(w, ` {"id": "ch_1", "more": true} `)
	})
	host := strings.TrimPrefix(server.URL, "http://")
	conf := saga.Branch{
		URL: server.URL + "/charge?x=1", UndoURL: server.URL + "/refund",
		Header: http.Header{"authorization": {"Bearer 123456"}, "Pawl-Saga": {"another"}, "Content-Type": {"text/plain"}, "X-Two": {"1", "2"}},
	}
	b := newHTTPStep[charged](conf)
	b.header = map[string]string{
		"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "X-Tenant": "acme ü", "Authorization": "Bearer forged", "Pawl-Op": "undo", "Idempotency-Key": "forged",
		"Content-Length": "1", "transfer-encoding": "chunked", "Host": "evil", "Connection": "close", "Proxy-Authorization": "x", "bad name": "x", "": "x", "X-Split": "a\r\nX-Evil: 1", "Expect": "100-continue",
	}
	for _, c := range []struct {
		saga, uri, op, key, output, body string
		undo                             bool
	}{
		{"checkout:4711", "/charge?x=1", "action", "checkout:4711/charge", "", `{"saga":"checkout:4711","step":"charge","input":{"item":"book","cents":1999}}`, false},
		{"checkout:4711", "/refund", "undo", "checkout:4711/charge/undo", `{"id": "ch_1"}`, `{"saga":"checkout:4711","step":"charge","input":{"item":"book","cents":1999},"output":{"id":"ch_1"}}`, true},
		{"checkout:4711", "/refund", "undo", "checkout:4711/charge/undo", "null", `{"saga":"checkout:4711","step":"charge","input":{"item":"book","cents":1999},"output":null}`, true},
		{"a/b ü", "/charge?x=1", "action", "a%2Fb%20%C3%BC/charge", "", `{"saga":"a/b ü","step":"charge","input":{"item":"book","cents":1999}}`, false},
	} {
		b.saga = c.saga
		out, err := b.call(bounded(t), c.undo, c.output)
		if err != nil || !c.undo && string(out) != `{"id":"ch_1"}` {
			t.Errorf("%s: %s, %v", c.op, out, err)
		}
		if got.uri != "POST "+host+c.uri || got.body != c.body {
			t.Errorf("%s %s\nwant %s %s", got.uri, got.body, "POST "+host+c.uri, c.body)
		}
		at, err := barrier.FromRequest(&http.Request{Header: got.header})
		want := barrier.Branch{ID: c.saga, Branch: "charge", Op: barrier.Op(c.op), Job: 4711, Attempt: 2}
		if c.undo {
			want.Job++
		}
		if at != want || err != nil {
			t.Errorf("the barrier reads %+v, %v", at, err)
		}
		headers := map[string][]string{
			"Idempotency-Key": {c.key}, "Content-Type": {"application/json"}, "Authorization": {"Bearer 123456"}, "X-Two": {"1", "2"}, "User-Agent": {"pawl"},
			"Traceparent": {b.header["traceparent"]}, "X-Tenant": {"acme ü"},
			"Pawl-Saga": got.header["Pawl-Saga"], "Pawl-Attempt": got.header["Pawl-Attempt"], "Pawl-Step": {"charge"}, "Pawl-Op": {c.op}, "Accept-Encoding": {"gzip"}, "Content-Length": {fmt.Sprint(len(c.body))},
		}
		if !maps.EqualFunc(headers, got.header, slices.Equal) {
			t.Errorf("%s: headers %v\nwant %v", c.op, got.header, headers)
		}
	}
	conf.UndoURL, conf.Header = "", http.Header{"Host": {"payments.internal"}, "User-Agent": {"shop/1"}}
	b = newHTTPStep[charged](conf)
	if _, err := b.call(bounded(t), true, "null"); err != nil || got.uri != "POST payments.internal/charge?x=1" || got.header.Get("User-Agent") != "shop/1" {
		t.Errorf("%v, %s", err, got.uri)
	}
}

// A body of one's own, for a service that knows nothing of sagas.
func TestHandleHTTPBody(t *testing.T) {
	t.Parallel()
	var bodies []string
	server := serveBranch(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies = append(bodies, string(body))
	})
	w := &registry{}
	oh := errors.New("oh")
	saga.HandleHTTPBody(w, saga.Step[charged](saga.Define[purchase]("checkout"), "charge"), saga.Branch{URL: server.URL, Allow: loopback},
		func(_ context.Context, c *saga.Call[purchase], own *charged) (any, error) {
			switch {
			case !c.Compensating:
				return map[string]int{"amount": c.Input.Cents}, nil
			case own == nil:
				return nil, oh
			default:
				return json.RawMessage(`{"refund":"` + own.ID + `"}`), nil
			}
		})
	b := httpStep{registry: w}
	if _, err := b.call(bounded(t), false, ""); err != nil {
		t.Error(err)
	}
	if _, err := b.call(bounded(t), true, `{"id": "ch_1"}`); err != nil {
		t.Error(err)
	}
	if _, err := b.call(bounded(t), true, "null"); !errors.Is(err, oh) {
		t.Error(err)
	}
	if got := strings.Join(bodies, " "); got != `{"amount":1999} {"refund":"ch_1"}` {
		t.Errorf("sent %s", got)
	}
}

// What an answer means to an action and to a compensation, and what is said of it.
func TestHandleHTTP_answers(t *testing.T) {
	t.Parallel()
	const problem = `{"title": "Refused", "status": 409, "detail": "no money"}`
	for _, c := range []struct {
		status             int
		retryAfter, body   string
		action, undo, says string
	}{
		{200, "", `{"id": "1"}`, "success", "success", ""},
		{200, "5", `{"id": "1"}`, "success", "success", ""},
		{201, "", `null`, "success", "success", ""},
		{200, "", ``, "success", "success", ""},
		{204, "", ``, "success", "success", ""},
		{202, "", ``, "success", "success", ""},
		{202, "7", ``, "again 7s", "again 7s", ""},
		{202, "0", ``, "again 1s", "again 1s", ""},
		{202, "soon", ``, "unknown", "unknown", "202"},
		{200, "", `no JSON`, "unknown", "success", "does not fit"},
		{200, "", `{"id": 1}`, "unknown", "success", "does not fit"},
		{200, "", `{"id": "1"} {}`, "unknown", "success", "does not fit"},
		{301, "", ``, "unknown", "unknown", "301 Moved Permanently: redirects are not followed"},
		{307, "", ``, "unknown", "unknown", "redirects are not followed"},
		{400, "", problem, "unknown", "unknown", "400 Bad Request: {\"title\""},
		{401, "", ``, "unknown", "unknown", "401"},
		{403, "", ``, "unknown", "unknown", "403"},
		{404, "", "words \x00\n and", "unknown", "unknown", "404 Not Found: words and"},
		{408, "", ``, "unknown", "unknown", "408"},
		{409, "", problem, "refused", "unknown", "no money"},
		{409, "", `{"title": "Refused"}`, "refused", "unknown", "Refused"},
		{409, "", "no  money\n", "refused", "unknown", "no money"},
		{409, "", ``, "refused", "unknown", "409 Conflict"},
		{409, "3", problem, "again 3s", "again 3s", ""}, // being worked on
		{410, "", ``, "unknown", "unknown", "410"},
		{422, "", ``, "unknown", "unknown", "422"},
		{425, "", ``, "again 1s", "again 1s", ""},
		{425, "2", ``, "again 2s", "again 2s", ""},
		{425, "86400", ``, "again 1h0m0s", "again 1h0m0s", ""},
		{429, "", ``, "unknown", "unknown", "429"},
		{429, "7", ``, "later 7s", "later 7s", "429"},
		{429, "Fri, 01 Jan 2027 00:00:30 GMT", ``, "later 30s", "later 30s", "429"},
		{500, "", "oops", "unknown", "unknown", "500 Internal Server Error: oops"},
		{502, "", ``, "unknown", "unknown", "502"},
		{503, "", ``, "unknown", "unknown", "503"},
		{503, "86400", ``, "later 1h0m0s", "later 1h0m0s", "503"},
		{504, "", ``, "unknown", "unknown", "504"},
		{599, "", ``, "unknown", "unknown", "599"},
	} {
		calls := 0
		server := serveBranch(t, func(w http.ResponseWriter, _ *http.Request) {
			calls++
			w.Header().Set("Date", "Fri, 01 Jan 2027 00:00:00 GMT")
			if c.retryAfter != "" {
				w.Header().Set("Retry-After", c.retryAfter)
			}
			if c.status/100 == 3 {
				w.Header().Set("Location", "/elsewhere")
			}
			w.WriteHeader(c.status)
			if c.body != "" {
				_, _ = io.WriteString(w, c.body)
			}
		})
		b := newHTTPStep[charged](saga.Branch{URL: server.URL})
		out, err := b.call(bounded(t), false, "")
		if got := meaning(err); got != c.action || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%d, Retry-After %q, %q: %s, %v; want %s, %q", c.status, c.retryAfter, c.body, got, err, c.action, c.says)
		}
		if want := map[bool]string{true: `{"id":"1"}`, false: `{"id":""}`}[c.body == `{"id": "1"}`]; err == nil && string(out) != want {
			t.Errorf("%d: output %s, want %s", c.status, out, want)
		}
		if _, err := b.call(bounded(t), true, "null"); meaning(err) != c.undo {
			t.Errorf("%d, Retry-After %q, to a compensation: %v; want %s", c.status, c.retryAfter, err, c.undo)
		}
		if calls != 2 {
			t.Errorf("%d: %d calls", c.status, calls)
		}
		// A step without output does not care what is in the answer.
		if _, err := newHTTPStep[saga.None](saga.Branch{URL: server.URL}).call(bounded(t), false, ""); c.status == 200 && err != nil {
			t.Errorf("%d %q without output: %v", c.status, c.body, err)
		}
	}
}

// A service that hangs, breaks off, says too much, or is not there: the outcome is unknown, and the error says why.
func TestHandleHTTP_noAnswer(t *testing.T) {
	t.Parallel()
	full := `{"id": "` + strings.Repeat("x", saga.AnswerBytesMax-len(`{"id": ""}`)) + `"}`
	hijack := func(say string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			_, _ = io.WriteString(conn, say)
			_ = conn.Close()
		}
	}
	enough := errors.New("enough")
	for what, c := range map[string]struct {
		handle     http.HandlerFunc
		conf       saga.Branch
		want, says string
		hangs      bool
	}{
		"full":       {handle: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, full) }, want: "success"},
		"too large":  {handle: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, full+" ") }, want: "unknown", says: "exceeds 1048576 bytes"},
		"endless":    {handle: endless(200), want: "unknown", says: "exceeds 1048576 bytes"},
		"endless no": {handle: endless(500), want: "unknown", says: "500 Internal Server Error: xxx"},
		"breaks off": {handle: hijack(""), want: "unknown", says: "EOF"},
		"cut short":  {handle: hijack("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"id\""), want: "unknown", says: "200 OK, and the answer is cut short"},
		"cut no":     {handle: hijack("HTTP/1.1 409 Conflict\r\nContent-Length: 99\r\n\r\nno mon"), want: "refused", says: "no mon"},
		"nonsense":   {handle: hijack("hello\r\n\r\n"), want: "unknown", says: "malformed"},
		"hangs":      {handle: hang(0), want: "unknown", says: "enough", hangs: true},
		"hangs in":   {handle: hang(200), want: "unknown", says: "enough", hangs: true},
		"hangs no":   {handle: hang(500), want: "unknown", hangs: true},
		"private":    {conf: saga.Branch{Allow: []netip.Prefix{}}, want: "unknown", says: "not public: 127.0.0.1; Allow allows it"},
		"elsewhere":  {conf: saga.Branch{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, want: "unknown", says: "not public"},
		"by name":    {conf: saga.Branch{URL: "http://localhost", Allow: []netip.Prefix{}}, want: "unknown", says: "not public"},
		"not there":  {conf: saga.Branch{URL: "http://127.0.0.1:1"}, want: "unknown", says: "refused"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			called := make(chan struct{}, 1)
			server := serveBranch(t, func(w http.ResponseWriter, r *http.Request) {
				called <- struct{}{}
				if c.handle == nil {
					t.Error("called")
					return
				}
				c.handle(w, r)
			})
			conf := c.conf
			switch conf.URL {
			case "":
				conf.URL = server.URL
			case "http://localhost":
				conf.URL = strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
			}
			ctx, cancel := context.WithCancelCause(bounded(t))
			defer cancel(nil)
			if c.hangs {
				go func() { <-called; cancel(enough) }()
			}
			_, err := newHTTPStep[charged](conf).call(ctx, false, "")
			if meaning(err) != c.want || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want %s, %q", err, c.want, c.says)
			}
			if c.hangs && c.says == "enough" && !errors.Is(err, enough) {
				t.Errorf("the cause is not in %v", err)
			}
			if strings.Contains(c.says, "not public") && !errors.Is(err, outbound.ErrNotPublic) {
				t.Errorf("not ErrNotPublic: %v", err)
			}
		})
	}
}

// endless answers until nobody listens.
func endless(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		for text := bytes.Repeat([]byte("x"), 1<<16); ; {
			if _, err := w.Write(text); err != nil {
				return
			}
		}
	}
}

// hang begins an answer, or not even that.
func hang(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if status != 0 {
			w.WriteHeader(status)
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	}
}

// Whoever reads errors, histories and logs learns nothing that lets him in.
func TestHandleHTTP_secrets(t *testing.T) {
	t.Parallel()
	for status := range map[int]bool{500: true, 409: true} {
		server := serveBranch(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(map[string]string{"detail": fmt.Sprintf("cannot %s %s, %v", r.Method, r.URL, r.Header["Authorization"])})
		})
		address := strings.Replace(server.URL, "//", "//ada:p4ssw0rd@", 1)
		b := newHTTPStep[charged](saga.Branch{
			URL: address + "/services/T0000001?token=t0ken123", UndoURL: address + "/refund/hunter22", Header: http.Header{"Authorization": {"Bearer b3arer99"}},
		})
		for _, undo := range []bool{false, true} {
			for range 2 {
				_, err := b.call(bounded(t), undo, "null")
				if err == nil {
					t.Fatal("no error")
				}
				for _, secret := range []string{"T0000001", "hunter22", "t0ken123", "p4ssw0rd", "b3arer99"} {
					if strings.Contains(err.Error(), secret) {
						t.Errorf("%q is in: %v", secret, err)
					}
				}
				server.Close()
			}
		}
	}
}

// A branch that cannot work is refused where it is written, all that is wrong with it at once.
func TestHandleHTTP_faults(t *testing.T) {
	t.Parallel()
	for want, b := range map[string]saga.Branch{
		`saga: step "charge" of "checkout": URL: it must be`: {},
		"UndoURL: it must be":                                {URL: "http://x", UndoURL: "ftp://x"},
		"Header":                                             {URL: "http://x", Header: http.Header{"a b": {"c"}}},
		"leaves no meaning to Allow":                         {URL: "http://x", Allow: loopback, Transport: http.DefaultTransport},
		"https://host/path\nUndoURL":                         {URL: "x", UndoURL: "y"},
		"and nothing to undo":                                {URL: "http://x", UndoURL: "http://x"},
	} {
		var opts []saga.StepOption
		if want == "and nothing to undo" {
			opts = append(opts, saga.ReadOnly())
		}
		func() {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.Contains(p, want) || strings.Contains(p, "ftp") {
					t.Errorf("panics with %q, want %q", p, want)
				}
			}()
			saga.HandleHTTP(&registry{}, saga.Step[charged](saga.Define[purchase]("checkout"), "charge", opts...), b)
		}()
	}
	w := &registry{}
	saga.HandleHTTP(w, saga.Step[charged](saga.Define[purchase]("checkout"), "charge", saga.ReadOnly()), saga.Branch{URL: "http://x"})
	if len(w.handlers) != 1 {
		t.Errorf("%d handlers, want that of the action", len(w.handlers))
	}
}

// Connections are kept and used again, also after answers that are no successes.
func TestHandleHTTP_reuse(t *testing.T) {
	t.Parallel()
	const parallel, calls = 16, 600
	var conns, n atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch n.Add(1) % 5 {
		case 0:
			http.Error(w, strings.Repeat("no ", 5000), http.StatusInternalServerError)
		case 1:
			w.WriteHeader(http.StatusTooEarly)
			_, _ = io.WriteString(w, strings.Repeat("wait ", 1000))
		case 2:
			_, _ = io.WriteString(w, `{"id": "`+strings.Repeat("x", 100_000)+`"}`)
		default:
			_, _ = io.WriteString(w, `{"id": "1"}`)
		}
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	b := newHTTPStep[charged](saga.Branch{URL: server.URL})
	var group sync.WaitGroup
	for range parallel {
		group.Go(func() {
			for i := range calls / parallel {
				_, _ = b.call(bounded(t), i%2 == 0, "null")
			}
		})
	}
	group.Wait()
	if got := conns.Load(); got > 2*parallel || n.Load() < calls-parallel {
		t.Errorf("%d connections for %d calls, %d at a time", got, n.Load(), parallel)
	}
}

// A kept connection that the service closes as a call is on its way costs no attempt.
func TestHandleHTTP_keptConnection(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(conn)
			if r, err := http.ReadRequest(in); err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
				_, _ = in.Peek(1) // the next call, which gets no answer
			}
			_ = conn.Close()
		}
	}()
	b := newHTTPStep[charged](saga.Branch{URL: "http://" + listener.Addr().String()})
	for i := range 4 {
		if _, err := b.call(bounded(t), false, ""); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// 16 calls at a time.
func BenchmarkHandleHTTP(b *testing.B) {
	server := serveBranch(b, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"id": "1"}`)
	})
	step := newHTTPStep[charged](saga.Branch{URL: server.URL})
	ctx := bounded(b)
	b.SetParallelism(8)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := step.call(ctx, false, ""); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}
