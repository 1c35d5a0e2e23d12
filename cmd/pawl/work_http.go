package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/pawl-dev/pawl/coordinator/job"
)

const (
	answerBytesMax     = 64 << 10 // of a result
	answerShownMax     = 500      // of a refusal's body in the error
	headerBytesMax     = 64 << 10
	callTimeoutDefault = 30 * time.Second
	callTimeoutMax     = time.Hour
	retryAfterMax      = 24 * time.Hour
)

// errNotPublic refuses an address.
var errNotPublic = errors.New("the address is not public; the worker's --allow-private allows it")

// httpArgs are the args of pawl.http.
type httpArgs struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Body    json.RawMessage   `json:"body"`
	Timeout jsonDuration      `json:"timeout"`
}

// httpResult is the result of pawl.http.
type httpResult struct {
	Status      int    `json:"status"`
	ContentType string `json:"content_type,omitempty"`
	Body        any    `json:"body,omitempty"` // JSON if it is JSON, else text
	Base64      []byte `json:"base64,omitempty"`
	Cut         bool   `json:"cut,omitempty"` // there was more than is kept
}

// httpCaller calls URLs for jobs.
type httpCaller struct {
	client *http.Client
	agent  string
}

// newHTTPCaller makes a caller without a proxy, whose address would be checked in place of the target's.
func newHTTPCaller(allowPrivate bool, version string) *httpCaller {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	if !allowPrivate {
		dialer.Control = refusePrivate
	}
	return &httpCaller{
		client: &http.Client{
			Transport: &http.Transport{
				DialContext: dialer.DialContext, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 30 * time.Second,
				MaxResponseHeaderBytes: headerBytesMax, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		agent: "pawl/" + version,
	}
}

// notPublic lists what netip.Addr has no method for: addresses that lead to this or a private network, or nowhere.
var notPublic = func() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
	} {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}()

// nat64 is where IPv4 is reached through IPv6.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// refusePrivate is the dialer's last look before it connects, after the name was resolved: a name cannot lie to it.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %s", errNotPublic, address)
	}
	if !isPublic(at.Addr()) {
		return fmt.Errorf("%w: %s", errNotPublic, at.Addr())
	}
	return nil
}

func isPublic(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

// handle makes one call.
func (c *httpCaller) handle(ctx context.Context, j *job.Job[json.RawMessage]) (any, error) {
	var args httpArgs
	if err := decodeArgs(j.Args, &args); err != nil {
		return nil, err
	}
	timeout := callTimeoutDefault
	if args.Timeout > 0 {
		timeout = min(time.Duration(args.Timeout), callTimeoutMax)
	}
	ctx, stop := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s", timeout))
	defer stop()
	req, err := c.request(ctx, j, args)
	if err != nil {
		return nil, job.Discard(err)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, callError(ctx, req, err)
	}
	defer resp.Body.Close()
	return readAnswer(ctx, req, resp)
}

func (c *httpCaller) request(ctx context.Context, j *job.Job[json.RawMessage], args httpArgs) (*http.Request, error) {
	u, err := url.Parse(args.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("args: url must be of the form http://host/path or https://host/path")
	}
	body, isJSON := args.Body, true
	if string(body) == "null" {
		body = nil
	}
	var text string
	if json.Unmarshal(body, &text) == nil {
		body, isJSON = []byte(text), false
	}
	method := strings.ToUpper(args.Method)
	switch {
	case method == "" && body == nil:
		method = http.MethodGet
	case method == "":
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, args.URL, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("args: method %q is not one of HTTP's", args.Method)
	}
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set("Idempotency-Key", "pawl-"+strconv.FormatInt(j.ID, 10))
	if body != nil && isJSON {
		req.Header.Set("Content-Type", "application/json")
	} else if body != nil {
		req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	}
	for _, name := range []string{"traceparent", "tracestate"} {
		if v := j.Headers[name]; v != "" {
			req.Header.Set(name, v)
		}
	}
	for name, value := range args.Headers {
		if strings.EqualFold(name, "Host") {
			req.Host = value
			continue
		}
		req.Header.Set(name, value)
	}
	return req, nil
}

// callError says what kept a call from being answered, without the URL, whose query may hold a secret.
func callError(ctx context.Context, req *http.Request, err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	err = fmt.Errorf("%s %s: %w", req.Method, req.URL.Host, err)
	if errors.Is(err, errNotPublic) || isInvalidHeader(err) {
		return job.Discard(err)
	}
	return err
}

// isInvalidHeader tells errors of net/http that come of the args' headers.
func isInvalidHeader(err error) bool {
	return strings.Contains(err.Error(), "net/http: invalid header field")
}

// readAnswer turns an answer into a result, or into how the attempt is to end.
func readAnswer(ctx context.Context, req *http.Request, resp *http.Response) (any, error) {
	kept, err := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax+1))
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		if err != nil {
			return nil, callError(ctx, req, fmt.Errorf("read the answer: %w", err))
		}
		return httpAnswer(resp, kept), nil
	}
	err = fmt.Errorf("%s %s: %s", req.Method, req.URL.Host, resp.Status)
	if text := strings.TrimSpace(string(kept)); text != "" {
		err = fmt.Errorf("%w: %s", err, cut(strings.ToValidUTF8(text, "\uFFFD"), answerShownMax))
	}
	switch code := resp.StatusCode; {
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests, code >= 500:
		if wait, ok := retryAfter(resp); ok {
			return nil, job.RetryAfter(wait, err)
		}
		return nil, err
	case code >= 300 && code < 400:
		return nil, job.Discard(fmt.Errorf("%w: redirects are not followed", err))
	default:
		return nil, job.Discard(err)
	}
}

func httpAnswer(resp *http.Response, kept []byte) httpResult {
	r := httpResult{Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type")}
	if len(kept) > answerBytesMax {
		kept, r.Cut = wholeRunes(kept[:answerBytesMax]), true
	}
	switch {
	case len(kept) == 0:
	case utf8.Valid(kept):
		r.Body = asResult(kept)
	default:
		r.Base64 = kept
	}
	return r
}

// asResult is output as a result: JSON if it is JSON, else text.
func asResult(out []byte) any {
	switch {
	case !utf8.Valid(out):
		return strings.ToValidUTF8(string(out), "\uFFFD")
	case json.Valid(out):
		return json.RawMessage(out)
	default:
		return string(out)
	}
}

// wholeRunes takes the beginning of a character off the end.
func wholeRunes(b []byte) []byte {
	for i := len(b) - 1; i >= max(len(b)-utf8.UTFMax, 0); i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return b[:i]
			}
			break
		}
	}
	return b
}

// retryAfter reads when the server wants to be asked again: in seconds, or as a date by its own clock.
func retryAfter(resp *http.Response) (time.Duration, bool) {
	value := strings.TrimSpace(resp.Header.Get("Retry-After"))
	if value == "" {
		return 0, false
	}
	if s, err := strconv.ParseUint(value, 10, 32); err == nil {
		return min(time.Duration(s)*time.Second, retryAfterMax), true
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	now, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return min(max(at.Sub(now), 0), retryAfterMax), true
}
