package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/outbound"
)

// call makes one call of pawl.http.
func call(t *testing.T, c *httpCaller, args string) (httpResult, job.Ending) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := c.handle(ctx, &job.Job[json.RawMessage]{ID: 7, Headers: map[string]string{"traceparent": "00-1"}, Args: json.RawMessage(args)})
	r, _ := got.(httpResult)
	return r, job.EndingOf(err)
}

func TestHTTPOutcomes(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/302":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "/404":
			http.Error(w, "who are you", http.StatusNotFound)
		case "/408", "/425", "/500", "/503":
			http.Error(w, "later", map[string]int{"/408": 408, "/425": 425, "/500": 500, "/503": 503}[r.URL.Path])
		case "/429":
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(429)
		case "/429/date":
			w.Header().Set("Date", "Fri, 01 Jan 2027 00:00:00 GMT")
			w.Header().Set("Retry-After", "Fri, 01 Jan 2027 00:00:30 GMT")
			w.WriteHeader(429)
		case "/429/year":
			w.Header().Set("Retry-After", "31536000")
			w.WriteHeader(429)
		case "/hangup":
			panic(http.ErrAbortHandler)
		case "/slow":
			<-r.Context().Done()
		default:
			t.Errorf("called %s", r.URL.Path)
		}
	}))
	t.Cleanup(server.Close)
	caller := newHTTPCaller(true, "test")
	for _, c := range []struct {
		path  string
		want  job.Outcome
		delay time.Duration // 0: by the job's backoff
		says  string
	}{
		{"/204", job.Succeeded, 0, ""},
		{"/302", job.Discarded, 0, "redirects are not followed"},
		{"/404", job.Discarded, 0, "404 Not Found: who are you"},
		{"/408", job.Failed, 0, "408"},
		{"/425", job.Failed, 0, "425"},
		{"/500", job.Failed, 0, "500 Internal Server Error: later"},
		{"/503", job.Failed, 0, "503"},
		{"/429", job.Failed, 7 * time.Second, "429"},
		{"/429/date", job.Failed, 30 * time.Second, "429"},
		{"/429/year", job.Failed, outbound.RetryAfterMax, "429"},
		{"/hangup", job.Failed, 0, "EOF"},
		{"/slow", job.Failed, 0, "no answer within 50ms"},
	} {
		timeout := "30s"
		if c.path == "/slow" {
			timeout = "50ms"
		}
		_, e := call(t, caller, `{"url": "`+server.URL+c.path+`?token=s3cr3t", "timeout": "`+timeout+`"}`)
		if e.Outcome != c.want {
			t.Errorf("%s: %s (%v), want %s", c.path, e.Outcome, e.Err, c.want)
		}
		if (e.Delay == nil) != (c.delay == 0) || e.Delay != nil && *e.Delay != c.delay {
			t.Errorf("%s: delay %v, want %v", c.path, e.Delay, c.delay)
		}
		if e.Err != nil && (!strings.Contains(e.Err.Error(), c.says) || strings.Contains(e.Err.Error(), "s3cr3t")) {
			t.Errorf("%s: error %q, want %q and no secret", c.path, e.Err, c.says)
		}
	}
	server.Close()
	if _, e := call(t, caller, `{"url": "`+server.URL+`"}`); e.Outcome != job.Failed || !strings.Contains(e.Err.Error(), "refused") {
		t.Errorf("nobody there: %+v", e)
	}
}

func TestHTTPBadArgs(t *testing.T) {
	t.Parallel()
	caller := newHTTPCaller(true, "test")
	for args, says := range map[string]string{
		`{}`:                                   "url must be",
		`[]`:                                   "an object is wanted, not array",
		`"x"`:                                  "an object is wanted, not string",
		`{"url": 3}`:                           "url: a string is wanted, not number",
		`{"url": "ftp://example.com"}`:         "url must be",
		`{"url": "example.com"}`:               "url must be",
		`{"url": "http://"}`:                   "url must be",
		`{"url": "http://a b"}`:                "url must be",
		`{"urll": "http://example.com"}`:       `unknown field "urll"`,
		`{"url": "http://x", "headers": 1}`:    "headers: an object is wanted, not number",
		`{"url": "http://x", "method": "a b"}`: "method",
		`{"url": "http://x", "timeout": 5}`:    `"30s"`,
		`{"url": "http://127.0.0.1:1", "headers": {"a b": "c"}}`: "invalid header field",
	} {
		if _, e := call(t, caller, args); e.Outcome != job.Discarded || !strings.Contains(e.Err.Error(), says) {
			t.Errorf("%s: %s, %v; want it discarded with %q", args, e.Outcome, e.Err, says)
		}
	}
}

func TestHTTPRequest(t *testing.T) {
	t.Parallel()
	type seen struct {
		method, body, contentType, host, trace string
	}
	got := make(chan seen, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- seen{r.Method, string(body), r.Header.Get("Content-Type"), r.Host, r.Header.Get("traceparent")}
	}))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	for args, want := range map[string]seen{
		``:                          {"GET", "", "", host, "00-1"},
		`, "body": null`:            {"GET", "", "", host, "00-1"},
		`, "method": "put"`:         {"PUT", "", "", host, "00-1"},
		`, "body": "some text"`:     {"POST", "some text", "text/plain; charset=utf-8", host, "00-1"},
		`, "body": [1, {"a": "b"}]`: {"POST", `[1, {"a": "b"}]`, "application/json", host, "00-1"},
		`, "body": "<x/>", "headers": {"content-type": "text/xml", "host": "example.org", "traceparent": "own"}`: {"POST", "<x/>", "text/xml", "example.org", "own"},
	} {
		if _, e := call(t, newHTTPCaller(true, "test"), `{"url": "`+server.URL+`"`+args+`}`); e.Outcome != job.Succeeded {
			t.Errorf("%s: %+v", args, e)
			continue
		}
		if s := <-got; s != want {
			t.Errorf("%s: %+v, want %+v", args, s, want)
		}
	}
}

func TestHTTPAnswer(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", answerBytesMax)
	for _, c := range []struct {
		answer string
		want   httpResult
	}{
		{"", httpResult{}},
		{`{"a": 1}`, httpResult{Body: json.RawMessage(`{"a": 1}`)}},
		{"plain", httpResult{Body: "plain"}},
		{"\xff\xfe", httpResult{Base64: []byte("\xff\xfe")}},
		{"x" + long, httpResult{Body: "x" + long[:answerBytesMax-2], Cut: true}},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, c.answer) }))
		got, e := call(t, newHTTPCaller(true, "test"), `{"url": "`+server.URL+`"}`)
		server.Close()
		gotBody, _ := json.Marshal(got.Body)
		wantBody, _ := json.Marshal(c.want.Body)
		if e.Outcome != job.Succeeded || got.Status != 200 || !bytes.Equal(gotBody, wantBody) || !bytes.Equal(got.Base64, c.want.Base64) || got.Cut != c.want.Cut {
			t.Errorf("%.20q: %+v, %.100s", c.answer, e, gotBody)
		}
	}
}
