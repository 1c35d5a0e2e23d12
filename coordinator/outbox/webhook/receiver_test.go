package webhook_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/webhook"
)

const body = `{"specversion":"1.0","id":"7","source":"x","type":"y","pawltopic":"t","data":1}`

// signed returns the headers of a request, signed by the library of Standard Webhooks.
func signed(secret, id string, at time.Time, body string) http.Header {
	signature := must(must(standardwebhooks.NewWebhook(secret)).Sign(id, at, []byte(body)))
	return http.Header{"Webhook-Id": {id}, "Webhook-Timestamp": {strconv.FormatInt(at.Unix(), 10)}, "Webhook-Signature": {signature}}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	now := time.Now()
	altered := func(name, value string) http.Header {
		h := signed(secretA, "7", now, body)
		h.Set(name, value)
		return h
	}
	both := []string{secretA, secretB}
	good := signed(secretB, "7", now, body).Get("Webhook-Signature")
	for name, c := range map[string]struct {
		secrets   []string
		header    http.Header
		body      string
		tolerance time.Duration
		want      error
	}{
		"the one":                {both, signed(secretA, "7", now, body), body, 0, nil},
		"the other":              {both, signed(secretB, "7", now, body), body, 0, nil},
		"among others":           {[]string{secretB}, altered("Webhook-Signature", "v1,AAAA v1a,x v1 "+good), body, 0, nil},
		"another":                {[]string{secretB}, signed(secretA, "7", now, body), body, 0, webhook.ErrSignature},
		"another version":        {[]string{secretB}, altered("Webhook-Signature", strings.Replace(good, "v1,", "v2,", 1)), body, 0, webhook.ErrSignature},
		"another body":           {both, signed(secretA, "7", now, body), body + " ", 0, webhook.ErrSignature},
		"another id":             {both, altered("Webhook-Id", "8"), body, 0, webhook.ErrSignature},
		"another time":           {both, altered("Webhook-Timestamp", strconv.FormatInt(now.Unix()+1, 10)), body, 0, webhook.ErrSignature},
		"no time":                {both, altered("Webhook-Timestamp", ""), body, 0, webhook.ErrSignature},
		"nothing":                {both, http.Header{}, body, 0, webhook.ErrSignature},
		"no secrets":             {nil, signed(secretA, "7", now, body), body, 0, webhook.ErrSignature},
		"an empty secret":        {[]string{""}, signed("", "7", now, body), body, 0, outbox.ErrInvalid},
		"4 minutes ago":          {both, signed(secretA, "7", now.Add(-4*time.Minute), body), body, 0, nil},
		"6 minutes ago":          {both, signed(secretA, "7", now.Add(-6*time.Minute), body), body, 0, webhook.ErrStale},
		"6 minutes ahead":        {both, signed(secretA, "7", now.Add(6*time.Minute), body), body, 0, webhook.ErrStale},
		"long ago":               {both, signed(secretA, "7", time.Unix(-1<<40, 0), body), body, 0, webhook.ErrStale},
		"6 minutes, 10 allowed":  {both, signed(secretA, "7", now.Add(-6*time.Minute), body), body, 10 * time.Minute, nil},
		"a minute, none allowed": {both, signed(secretA, "7", now.Add(-time.Minute), body), body, time.Second, webhook.ErrStale},
	} {
		e, err := webhook.Verify(c.secrets, c.header, []byte(c.body), c.tolerance)
		if !errors.Is(err, c.want) || err == nil && (e.ID != "7" || e.Topic != "t" || string(e.Payload) != "1") || err != nil && e.ID != "" {
			t.Errorf("%s: %+v, %v; want %v", name, e, err, c.want)
		}
	}
}

func TestVerify_malformed(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		"", "no JSON", "[]", "null", "{}", "7",
		`{"specversion":"0.3","id":"7","source":"x","type":"y"}`,
		`{"specversion":"1.0","id":"","source":"x","type":"y"}`,
		`{"specversion":"1.0","id":"7","source":"x"}`,
		`{"specversion":"1.0","id":"7","source":"x","type":{"a":1}}`,
		`{"specversion":"1.0","id":"7","source":"x","type":"y","time":"yesterday"}`,
		`{"specversion":"1.0","id":"7","source":"x","type":"y","pawlseq":"x"}`,
		`{"specversion":"1.0","id":"7","source":"x","type":"y","pawlheaders":"[]"}`,
		`{"specversion":"1.0","id":"7","source":"x","type":"y","data_base64":"?"}`,
		`{"specversion":"1.0","id":"7","source":"x","type":"y","data_base64":7}`,
		`{"specversion":"1.0","id":"7","source":"x","type":"y","data":1,"data_base64":"AA=="}`,
	} {
		if e, err := webhook.Verify([]string{secretA}, signed(secretA, "7", time.Now(), body), []byte(body), 0); !errors.Is(err, webhook.ErrMalformed) {
			t.Errorf("%s: %+v, %v; want ErrMalformed", body, e, err)
		}
	}
	// CloudEvents of others.
	for body, want := range map[string]outbox.Event{
		`{"specversion":"1.0","id":"7","source":"x","type":"y","data":"text","datacontenttype":"text/plain","level":3,"ok":true,"gone":null}`: {
			ContentType: "text/plain", Payload: []byte("text"), Headers: map[string]string{"level": "3", "ok": "true"},
		},
		`{"specversion":"1.0","id":"7","source":"x","type":"y","data":"text","datacontenttype":"a/b+json"}`: {ContentType: "a/b+json", Payload: []byte(`"text"`)},
		`{"specversion":"1.0","id":"7","source":"x","type":"y","data":"text","dataschema":"u:x"}`:           {Payload: []byte(`"text"`)},
	} {
		e, err := webhook.Verify([]string{secretA}, signed(secretA, "7", time.Now(), body), []byte(body), 0)
		if err != nil || !bytes.Equal(e.Payload, want.Payload) || e.ContentType != want.ContentType || len(e.Headers) != len(want.Headers) || e.Headers["level"] != want.Headers["level"] {
			t.Errorf("%s: %+v, %v", body, e, err)
		}
	}
}

// What Handle returns reaches the relay on the other side.
func TestHandler(t *testing.T) {
	t.Parallel()
	var (
		fails error
		seen  outbox.Event
		log   bytes.Buffer
	)
	handler, err := webhook.Handler(webhook.Receiver{
		Secrets: []string{secretA}, BodyBytesMax: 1000, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Handle: func(_ context.Context, e outbox.Event) error {
			seen = e
			return fails
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	oops := errors.New("oops")
	for want, err := range map[string]error{
		"accepted": nil, "failed": oops, "gone": outbox.ErrGone, "permanent": outbox.Permanent(oops), "unavailable 0s": outbox.Unavailable(oops),
		"unavailable 3s": outbox.Unavailable(oops, 2500*time.Millisecond), "later 2s": outbox.RetryAfter(oops, 2*time.Second),
	} {
		fails = err
		log.Reset()
		_, err := sink(t, webhook.Config{URL: server.URL, Secrets: []string{secretA}}).Send(within(t), events[:1])
		if kind(err) != want || seen.ID != events[0].ID || err != nil && strings.Contains(err.Error(), "oops") {
			t.Errorf("%v becomes %v, want %s and no word of why", fails, err, want)
		}
		if logged := strings.Contains(log.String(), "oops"); logged != (fails != nil && want != "gone") {
			t.Errorf("%v is logged as %q", fails, log.String())
		}
	}
	fails, seen = nil, outbox.Event{}
	large := events[0]
	large.Payload = bytes.Repeat([]byte("1"), 1000)
	for want, c := range map[string]struct {
		event  outbox.Event
		secret string
	}{
		"401": {events[0], secretB},
		"413": {large, secretA},
		"400": {outbox.Event{ID: "7"}, secretA}, // it has no type
	} {
		if _, err := sink(t, webhook.Config{URL: server.URL, Secrets: []string{c.secret}}).Send(within(t), []outbox.Event{c.event}); err == nil || !strings.Contains(err.Error(), want) || seen.ID != "" {
			t.Errorf("%v, want %s", err, want)
		}
	}
	req := must(http.NewRequestWithContext(within(t), http.MethodGet, server.URL, nil))
	resp := must(http.DefaultClient.Do(req))
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != http.MethodPost {
		t.Errorf("GET: %s", resp.Status)
	}
	if _, err := webhook.Handler(webhook.Receiver{Secrets: []string{"x"}, Tolerance: -1}); !errors.Is(err, outbox.ErrInvalid) || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("three faults: %v", err)
	}
	if _, err := webhook.Handler(webhook.Receiver{Handle: func(context.Context, outbox.Event) error { return nil }}); !errors.Is(err, outbox.ErrInvalid) {
		t.Errorf("no secrets: %v", err)
	}
}

// A sender that goes before the answer, as a relay that is killed does, is nobody's fault.
func TestHandler_senderGone(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	ctx, leave := context.WithCancel(t.Context())
	handler, err := webhook.Handler(webhook.Receiver{
		Secrets: []string{secretA}, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Handle: func(ctx context.Context, _ outbox.Event) error {
			leave()
			return ctx.Err()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(body))
	req.Header = signed(secretA, "7", time.Now(), body)
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, req)
	if answer.Code != http.StatusInternalServerError || log.Len() > 0 {
		t.Errorf("answered %d, logged %q", answer.Code, &log)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(body)
	f.Add(`{"specversion":"1.0","id":"7","source":"x","type":"y","data":null,"pawlheaders":"{\"A\":\"b\"}","time":"2027-01-01T09:30:00Z"}`)
	f.Fuzz(func(t *testing.T, body string) {
		e, err := webhook.Verify([]string{secretA}, signed(secretA, "7", time.Now(), body), []byte(body), 0)
		if err != nil {
			if !errors.Is(err, webhook.ErrMalformed) {
				t.Error(err)
			}
			return
		}
		if e.ID == "" || e.Type == "" {
			t.Errorf("%q: %+v", body, e)
		}
	})
}
