package saga

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
	// AnswerBytesMax bounds what an HTTP branch may answer.
	AnswerBytesMax = 1 << 20

	againDefault  = time.Second // when a branch that is at work is asked again, if it does not say
	retryAfterMax = time.Hour   // a longer Retry-After is taken for this
	faultBytesMax = 16 << 10    // read of an answer that is no success; with more, its connection is not used again
)

// Branch says where the service is that does a step over HTTP. URL is required.
type Branch struct {
	// URL is where the action is posted, http or https.
	URL string
	// UndoURL is where its compensation is posted. Default: URL; the header Pawl-Op tells them apart.
	UndoURL string
	// Header goes with every call, such as Authorization: secrets come from configuration, never from a definition. Those of HandleHTTP replace theirs.
	Header http.Header
	// Allow names addresses that may be called though they are not public, such as 10.0.0.0/8 for a cluster's services.
	Allow []netip.Prefix
	// Transport makes the calls, for a service that asks for certificates of its callers, say; Allow is then its business and must be empty here. A redirect is not followed.
	// Default: one that refuses addresses as Allow says, and takes up to 5 s to connect.
	Transport http.RoundTripper
}

// HandleHTTP has this worker do a step by calling a service: POST, with the body
//
//	{"saga": "checkout:4711", "step": "charge", "input": …}
//
// and the headers Pawl-Saga, Pawl-Step, Pawl-Op (action or undo), Pawl-Attempt (the numbers of the job and its attempt), Idempotency-Key (Call.Key), Content-Type, those of the saga,
// such as traceparent, and those of b. A compensation has also "output": what the action answered, null where that is not known. Package barrier is the other side. In Pawl-Saga and
// Idempotency-Key the saga's id is percent-encoded where it holds anything that a segment of a URL's path could not. What answers mean:
//
//	2xx                                         | success; the body, up to AnswerBytesMax of JSON or nothing at all, is the output
//	425, or 202 or 409 with Retry-After         | at work: it is asked again then, or after 1 s, and no attempt is used
//	409 to an action                            | refused, as by Fail
//	any other, with Retry-After                 | unknown, and tried again then
//	any other; no answer; one that is cut short | unknown, and tried again by the step's Backoff
//	or does not fit
//
// A refusal says that nothing was done, and nothing will be, whatever copy of the call is still under way: the barrier sees to that. A service whose 409 means something else is called by a
// handler of its own (Handle). 409 with Retry-After is what the draft on Idempotency-Key has for a request that is being worked on. A compensation may not refuse: 409 is as any other answer then. A Retry-After counts for up to an hour. Timeout bounds a call as a whole;
// how often a branch may be at work, only the saga's deadline does.
//
// Calls go to public addresses and those of b.Allow only, checked after names are resolved; no redirect is followed. Errors name the host and the first words of the answer: neither
// path nor query of a URL, nor a value of b.Header, even if the service answers with them. It panics if b is wrong, and lists every fault.
func HandleHTTP[In, Out any](w Worker, s *StepOf[In, Out], b Branch) {
	HandleHTTPBody(w, s, b, func(_ context.Context, c *Call[In], own *Out) (any, error) {
		body := struct {
			Saga   string `json:"saga"`
			Step   string `json:"step"`
			Input  In     `json:"input"`
			Output any    `json:"output,omitempty"`
		}{Saga: c.Saga, Step: c.Step, Input: c.Input}
		if c.Compensating {
			body.Output = own
		}
		return body, nil
	})
}

// HandleHTTPBody is HandleHTTP with a body of the caller's own, which is sent as JSON; a json.RawMessage is sent as it is. c.Compensating tells what is asked for; own is the step's own
// output, nil for an action and where it is not known. An error of body is that of the attempt, as if a handler had returned it.
func HandleHTTPBody[In, Out any](w Worker, s *StepOf[In, Out], b Branch, body func(ctx context.Context, c *Call[In], own *Out) (any, error)) {
	p, err := newPoster(b, s.compensated())
	if err != nil {
		panic(fmt.Sprintf("saga: step %q of %q: %v", s.step.name, s.step.def.name, err))
	}
	post := func(ctx context.Context, c *Call[In], own *Out) (json.RawMessage, error) {
		content, err := body(ctx, c, own)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(content)
		if err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
		at := barrier.Branch{ID: c.Saga, Branch: c.Step, Op: barrier.Action, Job: c.job, Attempt: c.Attempt}
		if c.Compensating {
			at.Op = barrier.Undo
		}
		return p.post(ctx, at, c.Headers, text)
	}
	act := func(ctx context.Context, c *Call[In]) (out Out, err error) {
		answer, err := post(ctx, c, nil)
		if _, none := any(out).(None); err != nil || none || len(answer) == 0 {
			return out, err
		}
		if err := json.Unmarshal(answer, &out); err != nil {
			return out, fmt.Errorf("http %s: the answer does not fit %T: %w", p.url.Host, out, err)
		}
		return out, nil
	}
	var undo func(context.Context, *Call[In], *Out) error
	if s.compensated() {
		undo = func(ctx context.Context, c *Call[In], own *Out) error {
			_, err := post(ctx, c, own)
			return err
		}
	}
	Handle(w, s, act, undo)
}

// poster calls one branch. It is safe for concurrent use.
type poster struct {
	url, undoURL *url.URL
	header       http.Header
	transport    http.RoundTripper
	conceal      *outbound.Concealer
}

// newPoster reports all faults at once.
func newPoster(b Branch, compensated bool) (*poster, error) {
	var faults []error
	read := func(name, text string) *url.URL {
		u, err := outbound.ParseURL(text)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", name, err))
			return &url.URL{}
		}
		return u
	}
	p := &poster{url: read("URL", b.URL), header: http.Header{"User-Agent": {"pawl"}}, transport: b.Transport}
	for name, values := range b.Header {
		p.header[http.CanonicalHeaderKey(name)] = values
	}
	p.undoURL = p.url
	if b.UndoURL != "" {
		p.undoURL = read("UndoURL", b.UndoURL)
		if !compensated {
			faults = append(faults, errors.New("there is an UndoURL, and nothing to undo"))
		}
	}
	if err := outbound.CheckHeaders(b.Header); err != nil {
		faults = append(faults, fmt.Errorf("Header: %w", err))
	}
	if b.Transport != nil && len(b.Allow) > 0 {
		faults = append(faults, errors.New("a Transport leaves no meaning to Allow"))
	}
	p.conceal = outbound.NewConcealer(b.Header, p.url, p.undoURL)
	if p.transport == nil {
		p.transport = outbound.TransportTo(b.Allow...)
	}
	return p, errors.Join(faults...)
}

// post makes one call, and gives the answer to a success.
func (p *poster) post(ctx context.Context, at barrier.Branch, headers map[string]string, body []byte) (json.RawMessage, error) {
	req := p.request(ctx, at, headers, body)
	resp, err := p.transport.RoundTrip(req)
	if err != nil {
		return nil, callError(req, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 || resp.StatusCode == http.StatusAccepted && resp.Header.Get("Retry-After") != "" {
		return nil, p.judge(req, resp, at.Op)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, AnswerBytesMax+1)) // to its end: then the connection is used again
	if err != nil {
		return nil, callError(req, fmt.Errorf("%s, and the answer is cut short: %w", resp.Status, err))
	}
	if len(answer) > AnswerBytesMax {
		return nil, fmt.Errorf("http %s: %s, and the answer exceeds %d bytes", req.URL.Host, resp.Status, AnswerBytesMax)
	}
	return bytes.TrimSpace(answer), nil
}

func (p *poster) request(ctx context.Context, at barrier.Branch, headers map[string]string, body []byte) *http.Request {
	u, key := *p.url, url.PathEscape(at.ID)+"/"+url.PathEscape(at.Branch)
	if at.Op == barrier.Undo {
		u, key = *p.undoURL, key+"/undo"
	}
	header := make(http.Header, len(headers)+len(p.header)+6)
	for name, value := range headers {
		if isForwarded(name, value) {
			header.Set(name, value)
		}
	}
	maps.Copy(header, p.header)
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

// isForwarded tells whether a header of a saga can go with a call. They come from whoever started it, and one that is malformed would fail every attempt.
func isForwarded(name, value string) bool {
	const token = "!#$%&'*+-.^_`|~"
	for _, c := range []byte(name) {
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && !strings.ContainsRune(token, rune(c)) {
			return false
		}
	}
	for _, c := range []byte(value) {
		if c < ' ' && c != '\t' || c == 0x7f {
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
		return fmt.Errorf("%w; Branch.Allow allows it", err)
	}
	return err
}

// judge says what an answer means that is no success.
func (p *poster) judge(req *http.Request, resp *http.Response, op barrier.Op) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, faultBytesMax)) // as much as there is
	wait, asked := outbound.RetryAfter(resp)
	wait = min(wait, retryAfterMax)
	switch code := resp.StatusCode; {
	case code == http.StatusTooEarly, asked && (code == http.StatusAccepted || code == http.StatusConflict):
		if wait <= 0 {
			wait = againDefault
		}
		return job.Snooze(wait)
	case code == http.StatusConflict && op == barrier.Action:
		return Fail(errors.New(p.reason(resp, text)))
	}
	err := fmt.Errorf("http %s: %s", req.URL.Host, resp.Status)
	if resp.StatusCode/100 == 3 {
		err = fmt.Errorf("%w: redirects are not followed", err)
	} else if shown := p.conceal.Shown(text); shown != "" {
		err = fmt.Errorf("%w: %s", err, shown)
	}
	if asked {
		return job.RetryAfter(wait, err)
	}
	return err
}

// reason is what a refusal says: the detail of a problem (RFC 9457), or the first words of the answer.
func (p *poster) reason(resp *http.Response, text []byte) string {
	var problem struct{ Title, Detail string }
	_ = json.Unmarshal(text, &problem)
	for _, said := range []string{problem.Detail, problem.Title, string(text)} {
		if shown := p.conceal.Shown([]byte(said)); shown != "" {
			return shown
		}
	}
	return resp.Status
}
