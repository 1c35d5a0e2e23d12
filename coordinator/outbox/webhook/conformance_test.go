package webhook_test

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/sinktest"
	"github.com/pawl-dev/pawl/coordinator/outbox/webhook"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(t *testing.T) sinktest.Target {
		r := &receiver{ids: map[string]bool{}}
		handler, err := webhook.Handler(webhook.Receiver{Secrets: []string{secretA}, Handle: r.handle})
		if err != nil {
			t.Fatal(err)
		}
		server := serve(t, func(w http.ResponseWriter, req *http.Request) { r.serve(handler, w, req) })
		return sinktest.Target{
			Sink: sink(t, webhook.Config{URL: server.URL, Secrets: []string{secretA}}), Received: r.received, Break: r.breakAt, Mend: r.mend, Recognises: true,
		}
	})
}

// receiver keeps what it gets, and knows IDs again.
type receiver struct {
	mu     sync.Mutex
	events []outbox.Event
	ids    map[string]bool

	fault    sinktest.Fault
	id       string
	met      chan struct{}
	meetOnce *sync.Once
	mended   chan struct{}
}

func (r *receiver) handle(_ context.Context, e outbox.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ids[e.ID] {
		r.ids[e.ID] = true
		r.events = append(r.events, e)
	}
	return nil
}

func (r *receiver) received() ([]outbox.Event, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events), nil
}

func (r *receiver) breakAt(f sinktest.Fault, id string) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault, r.id, r.met, r.meetOnce, r.mended = f, id, make(chan struct{}), &sync.Once{}, make(chan struct{})
	return r.met
}

func (r *receiver) mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.id = ""
	close(r.mended)
}

func (r *receiver) serve(handler http.Handler, w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	fault, mended := r.fault, r.mended
	if req.Header.Get("Webhook-Id") != r.id {
		fault = ""
	} else {
		r.meetOnce.Do(func() { close(r.met) })
	}
	r.mu.Unlock()
	switch fault {
	case sinktest.Refuse:
		http.Error(w, "no", http.StatusInternalServerError)
	case sinktest.Garble:
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_, _ = io.WriteString(conn, "what?\r\n\r\n")
			_ = conn.Close()
		}
	case sinktest.Hang:
		_, _ = io.Copy(io.Discard, req.Body)
		select {
		case <-mended:
		case <-req.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case sinktest.Lose:
		handler.ServeHTTP(silent{w}, req)
		panic(http.ErrAbortHandler)
	default:
		handler.ServeHTTP(w, req)
	}
}

// silent answers nothing.
type silent struct{ w http.ResponseWriter }

func (s silent) Header() http.Header          { return s.w.Header() }
func (silent) WriteHeader(int)                {}
func (silent) Write(text []byte) (int, error) { return len(text), nil }
