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
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/pawl-dev/pawl/coordinator/outbound"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/cloudevent"
)

const (
	retryAfterMax  = time.Hour // a longer Retry-After is taken for this
	answerBytesMax = 16 << 10  // read of an answer; with more, its connection is not used again
	answerShownMax = 200       // characters of a refusal in the error
	secretBytesMin = 6         // of the URL or a header, to be kept out of errors
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
	conceal   *strings.Replacer
}

var _ outbox.Sink = (*Sink)(nil)

// New makes a sink. The error is outbox.ErrInvalid and lists every fault.
func New(conf Config) (*Sink, error) {
	var faults []error
	u, err := url.Parse(conf.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		faults = append(faults, fmt.Errorf("%w: webhook: URL must be of the form http://host/path or https://host/path", outbox.ErrInvalid))
	}
	if conf.Transport != nil && conf.AllowPrivate {
		faults = append(faults, fmt.Errorf("%w: webhook: AllowPrivate has no meaning with a Transport", outbox.ErrInvalid))
	}
	keys, err := parseSecrets(conf.Secrets)
	if err != nil {
		faults = append(faults, err)
	}
	headers := http.Header{"User-Agent": {"pawl"}}
	for name, value := range conf.Headers {
		headers.Set(name, value)
	}
	if err := checkHeaders(headers); err != nil {
		faults = append(faults, err)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	s := &Sink{url: *u, source: conf.Source, keys: keys, headers: headers, transport: conf.Transport, conceal: concealer(u, conf.Headers)}
	if s.source == "" {
		s.source = cloudevent.SourceDefault
	}
	if s.transport == nil {
		s.transport = outbound.Transport(conf.AllowPrivate)
	}
	return s, nil
}

// checkHeaders has net/http look at headers, which it does before it sees that a request is cancelled.
func checkHeaders(headers http.Header) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost", nil)
	if err != nil {
		return err
	}
	req.Header = headers
	resp, err := (&http.Transport{}).RoundTrip(req)
	if err == nil {
		return resp.Body.Close()
	}
	if !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%w: webhook: Headers: %w", outbox.ErrInvalid, err)
	}
	return nil
}

// concealer takes out of texts what only this sink and its receiver are to know.
func concealer(u *url.URL, headers map[string]string) *strings.Replacer {
	secrets := []string{u.RequestURI(), u.EscapedPath(), u.Path, u.RawQuery}
	secrets = append(secrets, strings.Split(u.Path, "/")...)
	for _, values := range u.Query() {
		secrets = append(secrets, values...)
	}
	if password, ok := u.User.Password(); ok {
		secrets = append(secrets, password)
	}
	for _, value := range headers {
		secrets = append(append(secrets, value), strings.Fields(value)...)
	}
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) }) // the longest is found first
	var pairs []string
	for _, secret := range secrets {
		if len(secret) >= secretBytesMin {
			pairs = append(pairs, secret, "…")
		}
	}
	return strings.NewReplacer(pairs...)
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
	} else if shown := s.shown(text); shown != "" {
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

// shown is the beginning of an answer as one line.
func (s *Sink) shown(text []byte) string {
	words := strings.FieldsFunc(strings.ToValidUTF8(s.conceal.Replace(string(text)), "\uFFFD"), func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) })
	line := []rune(strings.Join(words, " "))
	if len(line) > answerShownMax {
		line = append(line[:answerShownMax], '…')
	}
	return string(line)
}
