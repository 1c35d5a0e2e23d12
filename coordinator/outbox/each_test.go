package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

func keyed(keys string) []outbox.Event {
	var out []outbox.Event
	for i, key := range keys {
		out = append(out, outbox.Event{ID: fmt.Sprint(i), Key: strings.Trim(string(key), ".")})
	}
	return out
}

func TestEach(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		keys     string // one event each; a dot: none
		atOnce   int
		fail     string // IDs that fail, but for those that were sent before
		accepted int
		sent     string // at once 1: the IDs in order
	}{
		{"", 1, "", 0, ""},
		{"aaa", 1, "", 3, "0 1 2"},
		{"abab..", 1, "", 6, "0 2 1 3 4 5"},
		{"aaa", 1, "0", 0, "0"},
		{"aaa", 1, "1", 1, "0 1"},
		{"abab", 1, "1", 1, "0 2 1"},
		{"abab", 1, "2", 2, "0 2 1"},
		{"abcab", 1, "1", 1, "0 3 1"},
		{"....", 1, "1", 1, "0 1"},
		{"baab", 1, "3 1", 1, "0 3 1"}, // 3 fails first
		{"baab", 1, "2 0", 0, "0"},
		{"abcabcabc", 9, "", 9, ""},
		{"abcabcabc", 9, "4 8", 4, ""},
		{"abcabcabc", 2, "3 7 8", 3, ""},
	} {
		var (
			mu   sync.Mutex
			sent []string
			busy = map[string]bool{}
			fail = strings.Fields(c.fail)
		)
		n, err := outbox.Each(t.Context(), keyed(c.keys), c.atOnce, func(_ context.Context, e outbox.Event) error {
			mu.Lock()
			if busy[e.Key] && e.Key != "" {
				t.Errorf("%q: two events of key %s at once", c.keys, e.Key)
			}
			busy[e.Key] = true
			sent = append(sent, e.ID)
			mu.Unlock()
			runtime.Gosched()
			mu.Lock()
			defer mu.Unlock()
			busy[e.Key] = false
			if slices.Contains(fail, e.ID) {
				return errors.New(e.ID)
			}
			return nil
		})
		if n != c.accepted || (err == nil) != (c.fail == "") || err != nil && err.Error() != fmt.Sprint(n) {
			t.Errorf("%q, failing %q: %d, %v; want %d and its error", c.keys, c.fail, n, err, c.accepted)
		}
		if c.atOnce == 1 && strings.Join(sent, " ") != c.sent {
			t.Errorf("%q, failing %q: sent %q, want %q", c.keys, c.fail, sent, c.sent)
		}
		for i := range n {
			if !slices.Contains(sent, fmt.Sprint(i)) {
				t.Errorf("%q, failing %q: %d accepted, but event %d was not sent", c.keys, c.fail, n, i)
			}
		}
	}
}

// As many as are allowed are under way at once, and no more.
func TestEach_atOnce(t *testing.T) {
	t.Parallel()
	for keys, want := range map[string][]int32{"abcdefg": {3, 3, 3, 3, 3, 2, 1}, ".......": {3, 3, 3, 3, 3, 2, 1}, "aaabbb": {2, 2, 2, 2, 2, 1}, "aaa": {1, 1, 1}} {
		synctest.Test(t, func(t *testing.T) {
			var (
				under   atomic.Int32
				proceed = make(chan struct{})
			)
			go func() {
				for i, want := range want {
					synctest.Wait() // all that can be under way is
					if got := under.Load(); got != want {
						t.Errorf("%q: %d under way after %d, want %d", keys, got, i, want)
					}
					proceed <- struct{}{}
				}
			}()
			n, err := outbox.Each(t.Context(), keyed(keys), 3, func(ctx context.Context, _ outbox.Event) error {
				under.Add(1)
				<-proceed
				under.Add(-1)
				return ctx.Err()
			})
			if n != len(keys) || err != nil {
				t.Errorf("%q: %d, %v", keys, n, err)
			}
		})
	}
}

// The first in the order of events counts, not the first to fail.
func TestEach_bothFail(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"0", "1"} {
		var both sync.WaitGroup
		both.Add(2)
		failed := make(chan struct{})
		n, err := outbox.Each(t.Context(), keyed("ab"), 2, func(_ context.Context, e outbox.Event) error {
			both.Done()
			both.Wait()
			if e.ID == first {
				defer close(failed)
			} else {
				<-failed
			}
			return errors.New(e.ID)
		})
		if n != 0 || err == nil || err.Error() != "0" {
			t.Errorf("%s fails first: %d, %v", first, n, err)
		}
	}
}

func TestEach_panic(t *testing.T) {
	t.Parallel()
	n, err := outbox.Each(t.Context(), keyed("ab"), 2, func(_ context.Context, e outbox.Event) error {
		if e.ID == "1" {
			panic("oops")
		}
		return nil
	})
	if n != 1 || err == nil || !strings.Contains(err.Error(), "panicked: oops") {
		t.Errorf("%d, %v", n, err)
	}
}
