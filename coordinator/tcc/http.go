package tcc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/branch"
	"github.com/pawl-dev/pawl/coordinator/job"
)

const (
	// TriesMax is how often TryHTTP calls a service that does not answer, or answers with what leaves it unknown whether anything was done.
	TriesMax = 3

	triesApart = 100 * time.Millisecond // unless the service says otherwise
)

// Service says where a participant is that is called over HTTP. URL is required. It may not be changed once it is used, and is safe for concurrent use.
type Service struct {
	// URL is where try, confirm and cancel are posted, http or https; the header Pawl-Op tells them apart.
	URL string
	// ConfirmURL and CancelURL are where these are posted. Default: URL.
	ConfirmURL, CancelURL string
	// Header goes with every call, such as Authorization.
	Header http.Header
	// Allow names addresses that may be called though they are not public, such as 10.0.0.0/8 for a cluster's services.
	Allow []netip.Prefix
	// Transport makes the calls, for a service that asks for certificates of its callers, say; Allow is then its business and must be empty here. A redirect is not followed. Default: one that refuses addresses as Allow
	// says, and takes up to 5 s to connect.
	Transport http.RoundTripper

	once   sync.Once
	client *branch.Client
	err    error
}

// open reports all faults at once.
func (s *Service) open() (*branch.Client, error) {
	s.once.Do(func() {
		targets := []branch.Target{{Name: "URL", URL: s.URL, Ops: []barrier.Op{barrier.Try, barrier.Confirm, barrier.Cancel}}}
		if s.ConfirmURL != "" {
			targets = append(targets, branch.Target{Name: "ConfirmURL", URL: s.ConfirmURL, Ops: []barrier.Op{barrier.Confirm}})
		}
		if s.CancelURL != "" {
			targets = append(targets, branch.Target{Name: "CancelURL", URL: s.CancelURL, Ops: []barrier.Op{barrier.Cancel}})
		}
		s.client, s.err = branch.New(branch.Config{Header: s.Header, Allow: s.Allow, Transport: s.Transport}, targets...)
	})
	return s.client, s.err
}

// content is the body of every call.
func content(transaction, branch string, args any) (json.RawMessage, error) {
	body, err := json.Marshal(struct {
		Transaction string `json:"transaction"`
		Branch      string `json:"branch"`
		Args        any    `json:"args"`
	}{transaction, branch, args})
	if err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	return body, nil
}

// TryHTTP is Try by calling a service: POST, with the body
//
//	{"transaction": "order:4711", "branch": "inventory.hold.1", "args": …}
//
// and the headers Pawl-Saga (the transaction's id), Pawl-Step (the branch), Pawl-Op (try), Pawl-Attempt, Idempotency-Key, Content-Type, those of the transaction, such as traceparent, and those of s. Package barrier is
// the other side. The answer to a success, up to branch.AnswerBytesMax of JSON or nothing, is returned. 409 is ErrRefused. A branch that is at work (425, or 202 or 409 with Retry-After) is asked again, until ctx or the deadline
// ends; anything else leaves it unknown whether it was tried, and is tried again up to TriesMax times, in the same name.
func (k *Kind[A]) TryHTTP(ctx context.Context, t *Transaction, args A, s *Service) (answer json.RawMessage, err error) {
	client, err := s.open()
	if err != nil {
		return nil, fmt.Errorf("try %s: %w: %w", k.name, ErrInvalid, err)
	}
	err = k.Try(ctx, t, args, func(ctx context.Context, b barrier.Branch) error {
		body, err := content(t.id, b.Branch, args)
		if err != nil {
			return err
		}
		for tries := 1; ; {
			answer, err = client.Post(ctx, b, t.header, body)
			if no := (*branch.RefusedError)(nil); errors.As(err, &no) {
				return fmt.Errorf("%w: %s", ErrRefused, no.Reason)
			}
			if err == nil && len(answer) > 0 && !json.Valid(answer) {
				err = errors.New("the answer is not JSON")
			}
			if err == nil {
				return nil
			}
			e := job.EndingOf(err)
			if e.Outcome != job.Snoozed {
				if tries++; tries > TriesMax {
					return err
				}
			}
			wait := triesApart
			if e.Delay != nil {
				wait = *e.Delay
			}
			if pause(ctx, wait) != nil {
				return err
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// HandleHTTP has this worker confirm and cancel branches of the kind by calling a service, as TryHTTP does. What answers mean:
//
//	2xx                                         | done
//	425, or 202 or 409 with Retry-After         | at work: it is asked again then, or after 1 s, and no attempt is used
//	any other, with Retry-After                 | tried again then
//	any other; no answer; one that is cut short | tried again by the kind's Backoff
//
// A cancel may come where no try has, or before it: the barrier sees to that. Calls go to public addresses and those of s.Allow only; no redirect is followed. Errors name the host and the first words of the answer:
// neither path nor query of a URL, nor a value of s.Header. It panics if s is wrong, and lists every fault.
func HandleHTTP[A any](w Worker, k *Kind[A], s *Service) {
	client, err := s.open()
	if err != nil {
		panic(fmt.Sprintf("tcc: kind %q: %v", k.name, err))
	}
	post := func(ctx context.Context, c *Call[A]) error {
		body, err := content(c.Transaction, c.Branch, c.Args)
		if err != nil {
			return err
		}
		_, err = client.Post(ctx, c.Barrier(), c.Headers, body)
		return err
	}
	Handle(w, k, post, post)
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
