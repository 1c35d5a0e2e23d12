package webhook_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-dev/pawl/coordinator/outbound"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/webhook"
)

const (
	secretA  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	secretB  = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJw=="
	patience = 30 * time.Second
)

var quiet = slog.NewLogLogger(slog.DiscardHandler, 0)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	t.Cleanup(stop)
	return ctx
}

func serve(t *testing.T, handle http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	return server
}

func sink(t *testing.T, conf webhook.Config) *webhook.Sink {
	t.Helper()
	conf.AllowPrivate = conf.Transport == nil
	s, err := webhook.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var at = time.Date(2027, 1, 1, 9, 30, 0, 123456000, time.UTC)

// events are of all sorts.
var events = []outbox.Event{
	{ID: "0199b0a0-0000-7000-8000-000000000001", Topic: "order", Key: "42", Type: "order.paid", Payload: []byte(`{"cents": 1999, "of": "<&>"}`), ContentType: "application/json", Seq: 1, CreatedAt: at},
	{ID: "0199b0a0-0000-7000-8000-000000000002", Topic: "öl/+#", Key: "Zürich \"7\"\n", Type: "a b", Payload: []byte(` [1, 2.50, "é"] `), ContentType: "application/json; charset=utf-8", Seq: 1 << 60, CreatedAt: at},
	{ID: "0199b0a0-0000-7000-8000-000000000003", Topic: "t", Type: "x", Payload: []byte{0, 1, 255, '"'}, ContentType: "application/octet-stream"},
	{ID: "0199b0a0-0000-7000-8000-000000000004", Topic: "t", Type: "x", ContentType: "application/json"},
	{ID: "0199b0a0-0000-7000-8000-000000000005", Topic: "t", Type: "x", Payload: []byte("no JSON"), ContentType: "application/json"},
	{ID: "0199b0a0-0000-7000-8000-000000000006", Topic: "t", Type: "x", Payload: []byte("\"\xff\""), ContentType: "application/json"},
	{ID: "0199b0a0-0000-7000-8000-000000000007", Topic: "t", Type: "x", Payload: []byte("null"), ContentType: "application/json"},
	{ID: "0199b0a0-0000-7000-8000-000000000008", Topic: "t", Type: "x", Payload: []byte(`"text"`), ContentType: "text/plain"},
	{
		ID: "0199b0a0-0000-7000-8000-000000000009", Topic: "t", Type: "x", Payload: []byte("1"),
		Headers: map[string]string{
			"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tenant7": "acme", "X-Tenant": "a\"b\n", "id": "not the id", "pawlheaders": "{", "": "",
			"twentyoneletterslong1": "v", "empty": "",
		},
	},
	{ID: "0199b0a0-0000-7000-8000-000000000010", Topic: "t", Type: "x", Payload: []byte("1"), Headers: map[string]string{"traceparent": "split\r\nX-Evil: 1"}},
	{ID: "0199b0a0-0000-7000-8000-000000000012", Topic: "t", Type: "x", Payload: []byte(`{"a": 1}`), ContentType: "application/vnd.x+json"},
	{ID: "0199b0a0-0000-7000-8000-000000000011", Topic: "t", Type: "x", Payload: bytes.Repeat([]byte{0xAB}, outbox.PayloadBytesMax), ContentType: "image/png"},
}

// What is sent is read by the CloudEvents SDK, checked by the library of Standard Webhooks, and read by Verify as what was published.
func TestSend(t *testing.T) {
	t.Parallel()
	type received struct {
		header http.Header
		body   []byte
	}
	var got []received
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, received{r.Header, must(io.ReadAll(r.Body))})
		if r.Method != http.MethodPost || r.URL.RequestURI() != "/in?token=1" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		w.WriteHeader(http.StatusAccepted)
	})
	s := sink(t, webhook.Config{
		URL: server.URL + "/in?token=1", Source: "https://shop.example/orders", Secrets: []string{secretA, secretB},
		Headers: map[string]string{"authorization": "Bearer 123456", "Content-Type": "text/plain", "webhook-signature": "v1,bogus", "User-Agent": "shop/1"},
	})
	if n, err := s.Send(within(t), events); n != len(events) || err != nil {
		t.Fatalf("accepted %d of %d: %v", n, len(events), err)
	}
	for i, want := range events {
		h, body := got[i].header, got[i].body
		for name, value := range map[string]string{
			"Content-Type": "application/cloudevents+json", "Authorization": "Bearer 123456", "User-Agent": "shop/1", "Webhook-Id": want.ID, "Idempotency-Key": `"` + want.ID + `"`,
		} {
			if values := h.Values(name); len(values) != 1 || values[0] != value {
				t.Errorf("event %d: %s is %q, want %q", i+1, name, values, value)
			}
		}
		if trace := h.Get("Traceparent"); trace != "" != (i == 8) || h.Get("X-Evil") != "" {
			t.Errorf("event %d: traceparent %q", i+1, trace)
		}
		for _, secret := range []string{secretA, secretB} {
			if err := must(standardwebhooks.NewWebhook(secret)).Verify(body, h); err != nil {
				t.Errorf("event %d: %v", i+1, err)
			}
			e, err := webhook.Verify([]string{secret}, h, body, 0)
			if err != nil {
				t.Errorf("event %d: Verify: %v", i+1, err)
			}
			if i == 1 {
				want.Payload = bytes.TrimSpace(want.Payload)
			}
			if i == 9 {
				want.Headers = map[string]string{"traceparent": "split\r\nX-Evil: 1"}
			}
			if !reflect.DeepEqual(e, want) {
				t.Errorf("event %d: Verify returns\n%.500v, want\n%.500v", i+1, e, want)
			}
		}
		checkSDK(t, i+1, want, h, body)
	}
}

func checkSDK(t *testing.T, i int, want outbox.Event, h http.Header, body []byte) {
	t.Helper()
	ce, err := cehttp.NewEventFromHTTPRequest(&http.Request{Header: h, Body: io.NopCloser(bytes.NewReader(body))})
	if err != nil {
		t.Errorf("event %d: the SDK says: %v\n%.500s", i, err, body)
		return
	}
	if err := ce.Validate(); err != nil {
		t.Errorf("event %d: the SDK says: %v", i, err)
	}
	if ce.SpecVersion() != cloudevents.VersionV1 || ce.ID() != want.ID || ce.Source() != "https://shop.example/orders" || ce.Type() != want.Type || ce.Subject() != want.Key ||
		!ce.Time().Equal(want.CreatedAt) || ce.DataContentType() != want.ContentType || ce.Extensions()["pawltopic"] != want.Topic || !bytes.Equal(bytes.TrimSpace(ce.Data()), want.Payload) {
		t.Errorf("event %d: the SDK reads %.500s", i, ce)
	}
	for _, name := range []string{"X-Tenant", "twentyoneletterslong1"} {
		if value, ok := ce.Extensions()[name]; ok {
			t.Errorf("event %d: the attribute %s is %v", i, name, value)
		}
	}
	for _, name := range []string{"traceparent", "tenant7"} {
		if value, ok := want.Headers[name]; ok && ce.Extensions()[name] != value {
			t.Errorf("event %d: the SDK reads %s as %v", i, name, ce.Extensions()[name])
		}
	}
}

// An event is the same body at every attempt.
func TestSend_sameBody(t *testing.T) {
	t.Parallel()
	var bodies []string
	server := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		bodies = append(bodies, string(must(io.ReadAll(r.Body))))
	})
	s := sink(t, webhook.Config{URL: server.URL})
	again := events[8]
	for again.Attempt = range 20 {
		if _, err := s.Send(within(t), []outbox.Event{again}); err != nil {
			t.Fatal(err)
		}
		if bodies[again.Attempt] != bodies[0] {
			t.Fatalf("%s, then %s", bodies[0], bodies[again.Attempt])
		}
	}
	if !strings.Contains(bodies[0], `"source":"pawl"`) {
		t.Errorf("the default source is missing: %s", bodies[0])
	}
}

// kind names what the relay makes of an error.
func kind(err error) string {
	after, down := outbox.IsUnavailable(err)
	wait, later := outbox.IsRetryAfter(err)
	switch {
	case err == nil:
		return "accepted"
	case errors.Is(err, outbox.ErrGone):
		return "gone"
	case outbox.IsPermanent(err):
		return "permanent"
	case down:
		return "unavailable " + after.String()
	case later:
		return "later " + wait.String()
	default:
		return "failed"
	}
}

func TestSend_answers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status     int
		retryAfter string
		want       string
		says       string
	}{
		{200, "", "accepted", ""},
		{202, "9", "accepted", ""},
		{204, "", "accepted", ""},
		{301, "", "failed", "301 Moved Permanently: redirects are not followed"},
		{307, "", "failed", "redirects are not followed"},
		{400, "", "failed", "400 Bad Request: words"},
		{401, "", "failed", "401"},
		{403, "", "failed", "403"},
		{404, "", "failed", "404"},
		{405, "", "failed", "405"},
		{408, "", "failed", "408"},
		{409, "3", "later 3s", "409"},
		{410, "", "gone", "410 Gone: words"},
		{413, "", "permanent", "413"},
		{422, "", "permanent", "422 Unprocessable Entity: words"},
		{425, "", "failed", "425"},
		{429, "", "failed", "429"},
		{429, "7", "later 7s", "429"},
		{429, "86400", "later 1h0m0s", "429"},
		{429, "Fri, 01 Jan 2027 00:00:30 GMT", "later 30s", "429"},
		{429, "whenever", "failed", "429"},
		{500, "", "failed", "500"},
		{500, "5", "later 5s", "500"},
		{501, "", "failed", "501"},
		{502, "", "failed", "502"},
		{503, "", "unavailable 0s", "503"},
		{503, "8", "unavailable 8s", "503"},
		{503, "86400", "unavailable 1h0m0s", "503"},
		{504, "", "failed", "504"},
		{599, "", "failed", "599"},
	} {
		calls := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls++
			if r.Header.Get("Webhook-Id") == events[0].ID {
				return
			}
			if c.retryAfter != "" {
				w.Header().Set("Retry-After", c.retryAfter)
			}
			if c.status/100 == 3 {
				w.Header().Set("Location", "/elsewhere?%zz")
			}
			w.Header().Set("Date", "Fri, 01 Jan 2027 00:00:00 GMT")
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, "  words \x00\n")
		}))
		n, err := sink(t, webhook.Config{URL: server.URL}).Send(within(t), events[:2])
		server.Close()
		if got := kind(err); got != c.want || c.says != "" && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%d, Retry-After %q: %s, %v; want %s, %q", c.status, c.retryAfter, got, err, c.want, c.says)
		}
		if want := map[bool]int{true: 2, false: 1}[err == nil]; n != want || calls != 2 {
			t.Errorf("%d: %d accepted in %d calls, want %d in 2", c.status, n, calls, want)
		}
	}
}

// Whoever reads errors and logs learns nothing that lets him in.
func TestSend_secrets(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("long ", 100)
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, fmt.Sprintf("cannot %s %s, %v, %s;\x1b[31m %s", r.Method, r.URL, r.Header["Authorization"], path.Base(r.URL.Path), long), http.StatusInternalServerError)
	})
	address := strings.Replace(server.URL, "//", "//ada:p4ssw0rd@", 1) + "/services/T0000001/T0000001hunter22?token=t0ken123&x=%C3%A4bcdef"
	s := sink(t, webhook.Config{URL: address, Headers: map[string]string{"Authorization": "Bearer b3arer99"}, Secrets: []string{secretA}})
	hidden := func(text string) {
		t.Helper()
		for _, secret := range []string{"T0000001", "hunter22", "t0ken123", "bcdef", "p4ssw0rd", "b3arer99", "ada", "whsec", "\x1b"} {
			if strings.Contains(text, secret) {
				t.Errorf("%q is in: %s", secret, text)
			}
		}
	}
	_, err := s.Send(within(t), events[:1])
	if err == nil || !strings.Contains(err.Error(), "500 Internal Server Error: cannot POST …") || len(err.Error()) > 300 {
		t.Errorf("the error says: %v", err)
	}
	hidden(err.Error())
	hidden(s.String())
	server.Close()
	_, err = s.Send(within(t), events[:1])
	hidden(err.Error())
	for _, conf := range []webhook.Config{
		{URL: "ftp://ada:p4ssw0rd@host/?token=t0ken123"},
		{URL: "http://ada:p4ssw0rd@host:port/%zz?token=t0ken123"},
		{URL: "http://host", Secrets: []string{"whsec_hunter22"}},
		{URL: "http://host", Headers: map[string]string{"Authorization": "b3arer99\n"}},
	} {
		_, err := webhook.New(conf)
		if !errors.Is(err, outbox.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", conf, err)
			continue
		}
		hidden(strings.ReplaceAll(err.Error(), "must be whsec_ and", ""))
	}
}

func TestNew_faults(t *testing.T) {
	t.Parallel()
	for want, conf := range map[string]webhook.Config{
		"URL: it must":          {URL: "example.com"},
		"number 2 must":         {URL: "http://x", Secrets: []string{secretA, ""}},
		"base64 of 24 to 64":    {URL: "http://x", Secrets: []string{"whsec_c2hvcnQ="}},
		"Headers":               {URL: "http://x", Headers: map[string]string{"a b": "c"}},
		"has no meaning":        {URL: "http://x", AllowPrivate: true, Transport: http.DefaultTransport},
		"https://host/path\nou": {Secrets: []string{"x"}}, // all faults
	} {
		if _, err := webhook.New(conf); !errors.Is(err, outbox.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// A receiver that cannot be reached is down, whatever keeps it from being reached; one that breaks off has failed at the event.
func TestSend_down(t *testing.T) {
	t.Parallel()
	private, err := webhook.New(webhook.Config{URL: "http://127.0.0.1:1/"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := private.Send(within(t), events[:1]); kind(err) != "unavailable 0s" || !errors.Is(err, outbound.ErrNotPublic) || !strings.Contains(err.Error(), "AllowPrivate") {
		t.Errorf("an address that is not public: %v", err)
	}
	answers := serve(t, func(http.ResponseWriter, *http.Request) {})
	breaks := serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	untrusted := httptest.NewUnstartedServer(answers.Config.Handler)
	untrusted.Config.ErrorLog = quiet
	untrusted.StartTLS()
	t.Cleanup(untrusted.Close)
	unknown := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}}
	}}
	for name, c := range map[string]struct {
		conf webhook.Config
		want string
	}{
		"plain HTTP to HTTPS":   {webhook.Config{URL: strings.Replace(answers.URL, "http:", "https:", 1)}, "unavailable 0s"},
		"certificate":           {webhook.Config{URL: untrusted.URL}, "unavailable 0s"},
		"no such host":          {webhook.Config{URL: "http://x", Transport: unknown}, "unavailable 0s"},
		"breaks off":            {webhook.Config{URL: breaks.URL}, "failed"},
		"trusted by Transport":  {webhook.Config{URL: untrusted.URL, Transport: untrusted.Client().Transport}, "accepted"},
		"an ID that is no UUID": {webhook.Config{URL: answers.URL}, "permanent"},
	} {
		e := events[0]
		if c.want == "permanent" {
			e.ID = "a\nb"
		}
		if _, err := sink(t, c.conf).Send(within(t), []outbox.Event{e}); kind(err) != c.want {
			t.Errorf("%s: %s, %v; want %s", name, kind(err), err, c.want)
		}
	}
}

// A receiver that restarts is down meanwhile, also where the first thing tried is a connection kept from before.
func TestSend_restart(t *testing.T) {
	t.Parallel()
	handler := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	server := httptest.NewServer(handler)
	s := sink(t, webhook.Config{URL: server.URL})
	if _, err := s.Send(within(t), events[:1]); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if _, err := s.Send(within(t), events[:1]); kind(err) != "unavailable 0s" || !strings.Contains(err.Error(), "refused") {
		t.Errorf("stopped: %s, %v", kind(err), err)
	}
	listener, err := net.Listen("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Skip(err) // somebody else has taken the port
	}
	again := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler}}
	again.Start()
	defer again.Close()
	if n, err := s.Send(within(t), events[:1]); n != 1 {
		t.Errorf("started again: %v", err)
	}
}

// A kept connection that the receiver closes as a request is on its way costs no attempt.
func TestSend_keptConnection(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 64<<10)
			if _, err := conn.Read(buf); err == nil {
				calls.Add(1)
				_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
				_, _ = conn.Read(buf) // the next request, which gets no answer
			}
			_ = conn.Close()
		}
	}()
	s := sink(t, webhook.Config{URL: "http://" + listener.Addr().String()})
	if n, err := s.Send(within(t), events[:4]); n != 4 || err != nil {
		t.Errorf("accepted %d of 4: %v", n, err)
	}
	if calls.Load() != 4 {
		t.Errorf("%d calls, want 4", calls.Load())
	}
}

// Who ran out of time has learned nothing about the receiver.
func TestSend_late(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(within(t))
	cancel()
	if n, err := sink(t, webhook.Config{URL: "http://127.0.0.1:1"}).Send(ctx, events); n != 0 || kind(err) != "failed" || !errors.Is(err, context.Canceled) {
		t.Errorf("%d accepted, %v", n, err)
	}
}

func TestSend_hangs(t *testing.T) {
	t.Parallel()
	for name, handle := range map[string]http.HandlerFunc{
		"no answer": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"half a body": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	} {
		called := make(chan struct{})
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadAll(r.Body)
			close(called)
			handle(w, r)
		}))
		ctx, cancel := context.WithCancelCause(within(t))
		go func() { <-called; cancel(errors.New("enough")) }()
		n, err := sink(t, webhook.Config{URL: server.URL}).Send(ctx, events)
		if n != 0 || kind(err) != "failed" || within(t).Err() != nil {
			t.Errorf("%s: %d accepted, %v", name, n, err)
		}
		server.Close()
	}
}
