package checkout_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/pawl-dev/pawl/cmd/checkout"
)

// script is a shop whose answers are laid down, the last one for ever.
type script struct {
	mu    sync.Mutex
	steps []http.HandlerFunc
	keys  []string // asked with
	wants []string // asked for
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	step := s.steps[0]
	if len(s.steps) > 1 {
		s.steps = s.steps[1:]
	}
	s.keys = append(s.keys, r.Header.Get("Idempotency-Key"))
	s.wants = append(s.wants, string(body))
	s.mu.Unlock()
	step(w, r)
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func cut(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func created(replayed string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/orders/7")
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Idempotent-Replayed", replayed)
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "body")
	}
}

// halfway begins an answer and cuts it off.
func halfway(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "1000")
	w.WriteHeader(http.StatusCreated)
	_ = http.NewResponseController(w).Flush()
	cut(w, r)
}

// A client asks with the same key for the same order until it has an answer, whatever happens on the way, and what happens is counted.
func TestLoad(t *testing.T) {
	t.Parallel()
	shop := &script{steps: []http.HandlerFunc{status(409), cut, status(503), halfway, status(500), status(409), cut, created("true"), status(422)}}
	server := httptest.NewServer(shop)
	defer server.Close()
	load := checkout.NewLoad(server.URL)
	answers, err := load.Run(t.Context(), []checkout.Request{{Key: "k", Customer: "ada", Item: "tea", Cents: 450, Clients: 1, Others: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if len(answers) != 2 {
		t.Fatalf("got %+v, want two answers", answers)
	}
	a, b := answers[0], answers[1]
	if a.Key != "k" || a.Other || a.Status != 201 || !a.Replayed || a.Location != "/orders/7" || a.ContentType != "application/json" || string(a.Body) != "body" {
		t.Errorf("got %+v", a)
	}
	if b.Key != "k" || !b.Other || b.Status != 422 || b.Replayed {
		t.Errorf("for another order: got %+v", b)
	}
	got := load.Tally()
	// A client in a hurry may give a call up, and then makes one more.
	if got.Calls != got.Answers+got.InFlight+got.Failed+got.Cut+got.Hurried || got.Answers != 2 || got.Replayed != 1 || got.InFlight+got.Failed+got.Cut+got.Hurried < 7 {
		t.Errorf("counted %+v", got)
	}
	if got.Hurried == 0 && (got.InFlight != 2 || got.Failed != 2 || got.Cut != 3) {
		t.Errorf("counted %+v", got)
	}
	if load.Done() != 1 {
		t.Errorf("%d requests are done, want 1", load.Done())
	}
	const (
		first  = `{"cents":450,"item":"tea"}`
		second = `{"cents":451,"item":"tea"}`
	)
	shop.mu.Lock()
	defer shop.mu.Unlock()
	for i, want := range shop.wants {
		last := i == len(shop.wants)-1
		if shop.keys[i] != "k" || (want == first) == last || last && want != second {
			t.Errorf("call %d of %d asked with key %s for %s", i+1, len(shop.wants), shop.keys[i], want)
		}
	}
}

// A load that is cut off says so, and is not done.
func TestLoad_cutOff(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		cancel()
		w.WriteHeader(http.StatusConflict)
	}))
	defer server.Close()
	load := checkout.NewLoad(server.URL)
	if _, err := load.Run(ctx, []checkout.Request{{Key: "k", Clients: 2}}); !errors.Is(err, context.Canceled) || load.Done() != 0 {
		t.Errorf("got %v with %d requests done", err, load.Done())
	}
}

// The clients of a key ask at once, and one of them later.
func TestLoad_clients(t *testing.T) {
	t.Parallel()
	var (
		mu   sync.Mutex
		here int
		all  = make(chan struct{})
		full = sync.OnceFunc(func() { close(all) })
	)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		here++
		if here == 3 {
			full()
		}
		mu.Unlock()
		select {
		case <-all: // three ask at once
			created("")(w, r)
		case <-r.Context().Done():
			mu.Lock()
			here-- // it was in a hurry, and comes again
			mu.Unlock()
		}
	}))
	defer server.Close()
	load := checkout.NewLoad(server.URL)
	answers, err := load.Run(t.Context(), []checkout.Request{{Key: "k", Clients: 4, Late: 1}})
	if err != nil || len(answers) != 4 {
		t.Errorf("got %d answers, %v, want 4", len(answers), err)
	}
}
