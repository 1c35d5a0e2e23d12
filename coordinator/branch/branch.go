// Package branch calls services that do a branch of a saga or of a global transaction over HTTP: what sagas and package tcc have in common. Package barrier is the other side.
//
// Calls go to public addresses only, unless others are allowed, checked after names are resolved; no redirect is followed. Errors name the host and the first words of the answer: neither path nor query of a
// URL, nor a value of a configured header, even if the service answers with them.
package branch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/outbound"
)

const (
	// AnswerBytesMax bounds what a branch may answer.
	AnswerBytesMax = 1 << 20

	againDefault  = time.Second // when a branch that is at work is asked again, if it does not say
	retryAfterMax = time.Hour   // a longer Retry-After is taken for this
	faultBytesMax = 16 << 10    // read of an answer that is no success; with more, its connection is not used again
)

// Config says how a service is called. The zero value works.
type Config struct {
	// Header goes with every call, and replaces what the call has of the same names.
	Header http.Header
	// Allow names addresses that may be called though they are not public.
	Allow []netip.Prefix
	// Transport makes the calls; Allow is then its business and must be empty. Default: one that refuses addresses as Allow says.
	Transport http.RoundTripper
}

// Target is where some ops of a branch are posted.
type Target struct {
	Name string // for faults
	URL  string
	Ops  []barrier.Op
}

// RefusedError is the definite no of a service to an action or a try: nothing was done, and will not be.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

// Client calls one branch. It is safe for concurrent use.
type Client struct {
	urls      map[barrier.Op]*url.URL
	header    http.Header
	transport http.RoundTripper
	conceal   *outbound.Concealer
}

// New reports all faults at once, and then gives no client.
func New(conf Config, targets ...Target) (*Client, error) {
	var (
		faults []error
		urls   []*url.URL
	)
	c := &Client{urls: map[barrier.Op]*url.URL{}, header: http.Header{"User-Agent": {"pawl"}}, transport: conf.Transport}
	for _, t := range targets {
		u, err := outbound.ParseURL(t.URL)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", t.Name, err))
			continue
		}
		urls = append(urls, u)
		for _, op := range t.Ops {
			c.urls[op] = u
		}
	}
	for name, values := range conf.Header {
		c.header[http.CanonicalHeaderKey(name)] = values
	}
	if err := outbound.CheckHeaders(conf.Header); err != nil {
		faults = append(faults, fmt.Errorf("%s: %w", "Header", err))
	}
	if conf.Transport != nil && len(conf.Allow) > 0 {
		faults = append(faults, errors.New("a Transport leaves no meaning to Allow"))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	c.conceal = outbound.NewConcealer(conf.Header, urls...)
	if c.transport == nil {
		c.transport = outbound.TransportTo(conf.Allow...)
	}
	return c, nil
}

// Host is that of where an op is posted, for errors.
func (c *Client) Host(op barrier.Op) string { return c.urls[op].Host }

// Post makes one call, and gives the answer to a success, without spaces around it. An answer that says that the branch is at work is job.Snooze, one that refuses an action or a try a [RefusedError]; any other
// error leaves it unknown whether anything was done, and is job.RetryAfter where the service says when to ask again. headers that a call cannot have are left out.
func (c *Client) Post(ctx context.Context, at barrier.Branch, headers map[string]string, body []byte) (json.RawMessage, error) {
	req := c.request(ctx, at, headers, body)
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, callError(req, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 || resp.StatusCode == http.StatusAccepted && resp.Header.Get("Retry-After") != "" {
		return nil, c.judge(req, resp, at.Op)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, AnswerBytesMax+1)) // to its end: then the connection is used again
	if err != nil {
		return nil, callError(req, fmt.Errorf("%s, and the answer is cut short: %w", resp.Status, err))
	}
	if len(answer) > AnswerBytesMax && (at.Op == barrier.Confirm || at.Op == barrier.Cancel) { // it is done, and nobody wants to know more
		return nil, nil
	}
	if len(answer) > AnswerBytesMax {
		return nil, fmt.Errorf("http %s: %s, and the answer exceeds %d bytes", req.URL.Host, resp.Status, AnswerBytesMax)
	}
	return bytes.TrimSpace(answer), nil
}

func (c *Client) request(ctx context.Context, at barrier.Branch, headers map[string]string, body []byte) *http.Request {
	u, key := *c.urls[at.Op], url.PathEscape(at.ID)+"/"+url.PathEscape(at.Branch)
	if at.Op != barrier.Action {
		key += "/" + string(at.Op)
	}
	header := make(http.Header, len(headers)+len(c.header)+6)
	for name, value := range headers {
		if isForwarded(name, value) {
			header.Set(name, value)
		}
	}
	maps.Copy(header, c.header)
	at.SetHeaders(header)
	header.Set("Content-Type", "application/json")
	header.Set("Idempotency-Key", key) // it lets net/http try again when a connection that was kept turns out to be closed
	host := u.Host
	if own := header.Get("Host"); own != "" {
		host = own
	}
	req := &http.Request{
		Method: http.MethodPost, URL: &u, Host: host, Header: header, ContentLength: int64(len(body)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(bytes.NewReader(body)), GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
	}
	return req.WithContext(ctx)
}

// notForwarded are headers that belong to one connection or to one body.
var notForwarded = map[string]bool{
	"Accept-Encoding": true, "Connection": true, "Content-Encoding": true, "Content-Length": true, "Expect": true, "Host": true, "Keep-Alive": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true,
}

// isForwarded tells whether a header can go with a call. They come from whoever started it, and one that is malformed would fail every attempt.
func isForwarded(name, value string) bool {
	const token = "!#$%&'*+-.^_`|~"
	for _, b := range []byte(name) {
		if (b < '0' || b > '9') && (b|0x20 < 'a' || b|0x20 > 'z') && !strings.ContainsRune(token, rune(b)) {
			return false
		}
	}
	for _, b := range []byte(value) {
		if b < ' ' && b != '\t' || b == 0x7f {
			return false
		}
	}
	name = http.CanonicalHeaderKey(name)
	return name != "" && !notForwarded[name] && !strings.HasPrefix(name, "Proxy-")
}

// callError says what kept a call from being answered; net/http gives the cause if the context has ended.
func callError(req *http.Request, err error) error {
	err = fmt.Errorf("http %s: %w", req.URL.Host, err)
	if errors.Is(err, outbound.ErrNotPublic) {
		return fmt.Errorf("%w; Allow allows it", err)
	}
	return err
}

// judge says what an answer means that is no success.
func (c *Client) judge(req *http.Request, resp *http.Response, op barrier.Op) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, faultBytesMax)) // as much as there is
	wait, asked := outbound.RetryAfter(resp)
	wait = min(wait, retryAfterMax)
	switch code := resp.StatusCode; {
	case code == http.StatusTooEarly, asked && (code == http.StatusAccepted || code == http.StatusConflict):
		if wait <= 0 {
			wait = againDefault
		}
		return job.Snooze(wait)
	case code == http.StatusConflict && (op == barrier.Action || op == barrier.Try):
		return &RefusedError{c.reason(resp, text)}
	}
	err := fmt.Errorf("http %s: %s", req.URL.Host, resp.Status)
	if resp.StatusCode/100 == 3 {
		err = fmt.Errorf("%w: redirects are not followed", err)
	} else if shown := c.conceal.Shown(text); shown != "" {
		err = fmt.Errorf("%w: %s", err, shown)
	}
	if asked {
		return job.RetryAfter(wait, err)
	}
	return err
}

// reason is what a refusal says: the detail of a problem (RFC 9457), or the first words of the answer.
func (c *Client) reason(resp *http.Response, text []byte) string {
	var problem struct{ Title, Detail string }
	_ = json.Unmarshal(text, &problem)
	for _, said := range []string{problem.Detail, problem.Title, string(text)} {
		if shown := c.conceal.Shown([]byte(said)); shown != "" {
			return shown
		}
	}
	return resp.Status
}
