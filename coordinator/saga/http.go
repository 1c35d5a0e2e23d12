package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/branch"
)

// AnswerBytesMax bounds what an HTTP branch may answer.
const AnswerBytesMax = branch.AnswerBytesMax

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
	client, err := newClient(b, s.compensated())
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
		answer, err := client.Post(ctx, at, c.Headers, text)
		if no := (*branch.RefusedError)(nil); errors.As(err, &no) {
			return nil, Fail(no)
		}
		return answer, err
	}
	act := func(ctx context.Context, c *Call[In]) (out Out, err error) {
		answer, err := post(ctx, c, nil)
		if _, none := any(out).(None); err != nil || none || len(answer) == 0 {
			return out, err
		}
		if err := json.Unmarshal(answer, &out); err != nil {
			return out, fmt.Errorf("http %s: the answer does not fit %T: %w", client.Host(barrier.Action), out, err)
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

// newClient reports all faults at once.
func newClient(b Branch, compensated bool) (*branch.Client, error) {
	targets := []branch.Target{{Name: "URL", URL: b.URL, Ops: []barrier.Op{barrier.Action, barrier.Undo}}}
	var fault error
	if b.UndoURL != "" {
		targets = append(targets, branch.Target{Name: "UndoURL", URL: b.UndoURL, Ops: []barrier.Op{barrier.Undo}})
		if !compensated {
			fault = errors.New("there is an UndoURL, and nothing to undo")
		}
	}
	c, err := branch.New(branch.Config{Header: b.Header, Allow: b.Allow, Transport: b.Transport}, targets...)
	return c, errors.Join(err, fault)
}
