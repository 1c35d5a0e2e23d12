package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/outbound"
)

const (
	answerBytesMax     = 64 << 10 // of a result
	answerShownMax     = 500      // of a refusal's body in the error
	callTimeoutDefault = 30 * time.Second
	callTimeoutMax     = time.Hour
)

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
	transport http.RoundTripper
	agent     string
}

func newHTTPCaller(allowPrivate bool, version string) *httpCaller {
	return &httpCaller{transport: outbound.Transport(allowPrivate), agent: "pawl/" + version}
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
	resp, err := c.transport.RoundTrip(req)
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

// callError says what kept a call from being answered.
func callError(ctx context.Context, req *http.Request, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	err = fmt.Errorf("%s %s: %w", req.Method, req.URL.Host, err)
	switch {
	case errors.Is(err, outbound.ErrNotPublic):
		return job.Discard(fmt.Errorf("%w; the worker's --allow-private allows it", err))
	case isInvalidHeader(err):
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
		if wait, ok := outbound.RetryAfter(resp); ok {
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
