package sinktest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

// memory is a receiver that keeps what it gets, and knows IDs again.
type memory struct {
	mu     sync.Mutex
	events []outbox.Event
	ids    map[string]bool
	fault  Fault
	id     string
	met    chan struct{}
	mended chan struct{}
}

var (
	errRefused = errors.New("refused")
	errLost    = errors.New("lost")
)

func (m *memory) put(ctx context.Context, e outbox.Event) error {
	m.mu.Lock()
	fault, mended := Fault(""), m.mended
	if e.ID == m.id && m.met != nil {
		fault = m.fault
		select {
		case <-m.met:
		default:
			close(m.met)
		}
	}
	if (fault == "" || fault == Lose) && !m.ids[e.ID] {
		m.ids[e.ID] = true
		m.events = append(m.events, e)
	}
	m.mu.Unlock()
	switch fault {
	case Refuse:
		return errRefused
	case Garble, Lose:
		return errLost
	case Hang:
		select {
		case <-mended:
		case <-ctx.Done():
		}
		return errors.Join(errLost, ctx.Err())
	}
	return ctx.Err()
}

func target(sink func(*memory) outbox.SinkFunc) Target {
	m := &memory{ids: map[string]bool{}}
	return Target{
		Sink: sink(m), Recognises: true,
		Received: func() ([]outbox.Event, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			return slices.Clone(m.events), nil
		},
		Break: func(f Fault, id string) <-chan struct{} {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.fault, m.id, m.met, m.mended = f, id, make(chan struct{}), make(chan struct{})
			return m.met
		},
		Mend: func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.id = ""
			close(m.mended)
		},
	}
}

func good(m *memory) outbox.SinkFunc {
	return func(ctx context.Context, events []outbox.Event) (int, error) {
		for i, e := range events {
			if err := m.put(ctx, e); err != nil {
				return i, err
			}
		}
		return len(events), nil
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	t.Run("good", func(t *testing.T) {
		t.Parallel()
		Run(t, func(*testing.T) Target { return target(good) })
	})
	t.Run("forgetful", func(t *testing.T) { // the receiver does not know IDs again
		t.Parallel()
		Run(t, func(*testing.T) Target {
			t := target(func(m *memory) outbox.SinkFunc {
				return func(ctx context.Context, events []outbox.Event) (int, error) {
					m.mu.Lock()
					clear(m.ids)
					m.mu.Unlock()
					return good(m)(ctx, events)
				}
			})
			t.Recognises = false
			return t
		})
	})
}

// Each sink breaks a promise, and one check at least finds it.
func TestChecks_bad(t *testing.T) {
	t.Parallel()
	each := func(change func(*outbox.Event)) func(*memory) outbox.SinkFunc {
		return func(m *memory) outbox.SinkFunc {
			return func(ctx context.Context, events []outbox.Event) (int, error) {
				events = slices.Clone(events)
				for i := range events {
					change(&events[i])
				}
				return good(m)(ctx, events)
			}
		}
	}
	after := func(change func(int, int, error) (int, error)) func(*memory) outbox.SinkFunc {
		return func(m *memory) outbox.SinkFunc {
			return func(ctx context.Context, events []outbox.Event) (int, error) {
				n, err := good(m)(ctx, events)
				return change(len(events), n, err)
			}
		}
	}
	for name, c := range map[string]struct {
		sink  func(*memory) outbox.SinkFunc
		check string // the first that finds it
		says  string
	}{
		"loses headers": {each(func(e *outbox.Event) { e.Headers = nil }), "contents", "headers"},
		"loses keys":    {each(func(e *outbox.Event) { e.Key = strings.TrimSpace(e.Key + "x") }), "order", "key"},
		"changes payloads": {each(func(e *outbox.Event) {
			e.Payload = slices.DeleteFunc(slices.Clone(e.Payload), func(b byte) bool { return b == 0 })
		}), "contents", "payload"},
		"makes IDs":       {each(func(e *outbox.Event) { e.ID += string('a' + rune(e.Attempt)) }), "order", "not sent"},
		"counts too many": {after(func(all, n int, err error) (int, error) { return min(n+1, all), err }), "refuse/0", "1 events were accepted"},
		"counts too few":  {after(func(_, n int, err error) (int, error) { return map[bool]int{true: n}[err == nil], err }), "refuse/7", "7 events without a gap, and 0 were accepted"},
		"no error":        {after(func(_, n int, _ error) (int, error) { return n, nil }), "late", "count is wrong"},
		"no count":        {after(func(_, _ int, err error) (int, error) { return 0, err }), "order", "were accepted"},
		"says it is sent": {after(func(all, _ int, _ error) (int, error) { return all, nil }), "late", "lacks event"},
		"a last word": {after(func(_, n int, err error) (int, error) {
			return n, map[bool]error{true: err, false: outbox.Permanent(errors.Join(err, errLost))}[err == nil]
		}), "late", "last word"},
		"none at all":   {after(func(all, n int, err error) (int, error) { return n, err }), "", ""}, // the control
		"goes on":       {goesOn, "refuse/0", "but not event"},
		"reverses":      {reverses, "order", "before event"},
		"does not wait": {doesNotWait, "order", "lacks event"},
		"ignores ctx": {func(m *memory) outbox.SinkFunc {
			return func(ctx context.Context, e []outbox.Event) (int, error) {
				return good(m)(context.WithoutCancel(ctx), e)
			}
		}, "hang/0", "has not returned"},
		"takes lost for ok": {func(m *memory) outbox.SinkFunc { return takesLostForOK(m) }, "garble/0", "all events were accepted"},
		"gives up on a lost answer": {after(func(_, n int, err error) (int, error) {
			return n, map[bool]error{true: outbox.Permanent(errLost), false: err}[errors.Is(err, errLost) && !errors.Is(err, context.Canceled)]
		}), "garble/0", "knows nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, check := range checks() {
				ctx, stop := context.WithTimeout(t.Context(), patience)
				err := check.check(ctx, target(c.sink))
				stop()
				if err == nil {
					continue
				}
				if check.name != c.check || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s finds: %v; want %s, %q", check.name, err, c.check, c.says)
				}
				return
			}
			if c.check != "" {
				t.Error("nothing was found")
			}
		})
	}
}

// goesOn with the events of a key after one that failed.
func goesOn(m *memory) outbox.SinkFunc {
	return func(ctx context.Context, events []outbox.Event) (int, error) {
		n, failed := len(events), error(nil)
		for i, e := range events {
			if err := m.put(ctx, e); err != nil && failed == nil {
				n, failed = i, err
			}
		}
		return n, failed
	}
}

func reverses(m *memory) outbox.SinkFunc {
	return func(ctx context.Context, events []outbox.Event) (int, error) {
		for _, e := range slices.Backward(events) {
			if err := m.put(ctx, e); err != nil {
				return 0, err
			}
		}
		return len(events), nil
	}
}

// doesNotWait has events accepted once the next come.
func doesNotWait(m *memory) outbox.SinkFunc {
	var (
		mu      sync.Mutex
		waiting []outbox.Event
	)
	return func(ctx context.Context, events []outbox.Event) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		_, err := good(m)(ctx, waiting)
		waiting = events
		return len(events), err
	}
}

func takesLostForOK(m *memory) outbox.SinkFunc {
	return func(ctx context.Context, events []outbox.Event) (int, error) {
		for i, e := range events {
			if err := m.put(ctx, e); err != nil && !errors.Is(err, errLost) {
				return i, err
			}
		}
		return len(events), ctx.Err()
	}
}
