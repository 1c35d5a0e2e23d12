package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pawl-dev/pawl/coordinator/outbound"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/cloudevent"
)

const (
	retryAfterMax  = time.Hour // a longer Retry-After is taken for this
	answerBytesMax = 16 << 10  // read of an answer; with more, its connection is not used again
)

// Config says where events go. URL is required.
type Config struct {
	// URL is where events are posted, http or https.
	URL string
	// Source is the CloudEvents source: a URI that names the outbox to receivers, with or without a host. Default: pawl.
	Source string
	// Secrets sign each event: "whsec_" and the base64 of 24 to 64 random bytes. To replace one, add the new one, have the receiver take it over, and remove the old one.
	// None: events are not signed.
	Secrets []string
	// Headers go with every event, such as Authorization. Those of the package documentation replace theirs.
	Headers map[string]string
	// AllowPrivate allows addresses that are not public: this machine's and those of private networks.
	AllowPrivate bool
	// Transport makes the calls, for a receiver that needs certificates of its own, say; AllowPrivate is then its business and must be false here. A redirect is not followed.
	// Default: one that refuses addresses as AllowPrivate says, and takes up to 5 s to connect.
	Transport http.RoundTripper
}

// Sink posts events. It is safe for concurrent use.
type Sink struct {
	url       url.URL
	source    string
	keys      [][]byte
	headers   http.Header
	transport http.RoundTripper
	conceal   *outbound.Concealer
}

var _ outbox.Sink = (*Sink)(nil)

// New makes a sink. The error is outbox.ErrInvalid and lists every fault.
func New(conf Config) (*Sink, error) {
	var faults []error
	u, err := outbound.ParseURL(conf.URL)
	if err != nil {
		faults = append(faults, fmt.Errorf("%w: webhook: URL: %w", outbox.ErrInvalid, err))
	}
	if conf.Transport != nil && conf.AllowPrivate {
		faults = append(faults, fmt.Errorf("%w: webhook: AllowPrivate has no meaning with a Transport", outbox.ErrInvalid))
	}
	keys, err := parseSecrets(conf.Secrets)
	if err != nil {
		faults = append(faults, err)
	}
	own := http.Header{}
	for name, value := range conf.Headers {
		own.Set(name, value)
	}
	if err := outbound.CheckHeaders(own); err != nil {
		faults = append(faults, fmt.Errorf("%w: webhook: Headers: %w", outbox.ErrInvalid, err))
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	s := &Sink{url: *u, source: conf.Source, keys: keys, headers: own, transport: conf.Transport, conceal: outbound.NewConcealer(own, u)}
	if own.Get("User-Agent") == "" {
		own.Set("User-Agent", "pawl")
	}
	if s.source == "" {
		s.source = cloudevent.SourceDefault
	}
	if s.transport == nil {
		s.transport = outbound.Transport(conf.AllowPrivate)
	}
	return s, nil
}

// String tells the host, for Subscription.Describe.
func (s *Sink) String() string { return "webhook " + s.url.Scheme + "://" + s.url.Host }

// Send posts events one after the other, until one fails. The errors are those of the package documentation.
func (s *Sink) Send(ctx context.Context, events []outbox.Event) (accepted int, err error) {
	for i, e := range events {
		if err := s.post(ctx, e); err != nil {
			return i, err
		}
	}
	return len(events), nil
}

func (s *Sink) post(ctx context.Context, e outbox.Event) error {
	if !isPlain(e.ID) {
		return outbox.Permanent(fmt.Errorf("webhook %s: the ID %q is not one to sign", s.url.Host, e.ID))
	}
	var connected atomic.Bool // of the latest connection tried: one that was kept may turn out to be closed
	trace := &httptrace.ClientTrace{
		GetConn: func(string) { connected.Store(false) },
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}
	resp, err := s.transport.RoundTrip(s.request(httptrace.WithClientTrace(ctx, trace), e))
	if err != nil {
		err = fmt.Errorf("webhook %s: %w", s.url.Host, err)
		if errors.Is(err, outbound.ErrNotPublic) {
			err = fmt.Errorf("%w; AllowPrivate allows it", err)
		}
		if !connected.Load() && ctx.Err() == nil {
			return outbox.Unavailable(err)
		}
		return err
	}
	defer resp.Body.Close()
	return s.judge(resp)
}

func (s *Sink) request(ctx context.Context, e outbox.Event) *http.Request {
	body := encode(e, s.source)
	header := s.headers.Clone()
	for _, name := range []string{"traceparent", "tracestate"} {
		if value := e.Headers[name]; isPlain(value) {
			header.Set(name, value)
		}
	}
	header.Set("Content-Type", contentType)
	header.Set("Idempotency-Key", `"`+e.ID+`"`) // it lets net/http try again when a connection that was kept turns out to be closed
	sign(header, s.keys, e.ID, time.Now(), body)
	u := s.url
	req := &http.Request{
		Method: http.MethodPost, URL: &u, Host: u.Host, Header: header, ContentLength: int64(len(body)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(bytes.NewReader(body)), GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
	}
	return req.WithContext(ctx)
}

// isPlain tells whether s can stand in a header as it is.
func isPlain(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' })
}

// judge says what an answer means.
func (s *Sink) judge(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax)) // as much as there is; a connection whose answer was read is used again
	code := resp.StatusCode
	if code >= 200 && code < 300 {
		return nil
	}
	err := fmt.Errorf("webhook %s: %d %s", s.url.Host, code, http.StatusText(code))
	if code >= 300 && code < 400 {
		err = fmt.Errorf("%w: redirects are not followed", err)
	} else if shown := s.conceal.Shown(text); shown != "" {
		err = fmt.Errorf("%w: %s", err, shown)
	}
	wait, asked := outbound.RetryAfter(resp)
	wait = min(wait, retryAfterMax)
	switch {
	case code == http.StatusGone:
		return fmt.Errorf("%w: %w", outbox.ErrGone, err)
	case code == http.StatusRequestEntityTooLarge, code == http.StatusUnprocessableEntity:
		return outbox.Permanent(err)
	case code == http.StatusServiceUnavailable:
		return outbox.Unavailable(err, wait)
	case asked:
		return outbox.RetryAfter(err, wait)
	}
	return err
}
