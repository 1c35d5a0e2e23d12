package sinktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

const (
	events  = 40   // of a call
	keys    = 5    // among them, and none every so often
	manyMax = 1000 // events of a large call
)

// id is the UUID of the nth event.
func id(n int) string { return fmt.Sprintf("0199b0a0-0000-7000-8000-%012x", n) }

// some returns n events of several keys, and of none, numbered from begin.
func some(begin, n int) []outbox.Event {
	out := make([]outbox.Event, n)
	for i := range out {
		e := outbox.Event{
			ID: id(begin + i), Topic: "order", Key: "key " + strconv.Itoa(i%keys), Type: "order.paid", Payload: fmt.Appendf(nil, `{"n":%d}`, begin+i), ContentType: "application/json",
			Seq: int64(begin + i + 1), Attempt: 1,
		}
		if i%keys == keys-1 {
			e.Key = ""
		}
		out[i] = e
	}
	return out
}

// accepts sends events of which all are to be accepted.
func accepts(ctx context.Context, t Target, events []outbox.Event) error {
	n, err := t.Sink.Send(ctx, events)
	if n != len(events) || err != nil {
		return fmt.Errorf("%d of %d events were accepted: %w", n, len(events), errors.Join(err, context.Cause(ctx)))
	}
	return nil
}

// has checks that the receiver has got exactly what was sent, that order is kept within a key (of what was received several times, the first counts), and nothing twice if
// it should not be.
func has(t Target, sent []outbox.Event) error {
	got, err := t.Received()
	if err != nil {
		return fmt.Errorf("read what was received: %w", err)
	}
	want := map[string]outbox.Event{}
	left := map[string][]string{} // by key, the IDs to come
	for _, e := range sent {
		want[e.ID] = e
		left[e.Key] = append(left[e.Key], e.ID)
	}
	seen := map[string]bool{}
	for _, e := range got {
		w, ok := want[e.ID]
		if !ok {
			return fmt.Errorf("the receiver has event %q, which was not sent or not accepted", e.ID)
		}
		if err := same(e, w); err != nil {
			return err
		}
		if seen[e.ID] {
			if t.Recognises {
				return fmt.Errorf("the receiver has event %s twice", e.ID)
			}
			continue
		}
		seen[e.ID] = true
		if e.Key == "" {
			continue
		}
		if next := left[e.Key][0]; next != e.ID {
			return fmt.Errorf("the receiver got event %s of key %q before event %s", e.ID, e.Key, next)
		}
		left[e.Key] = left[e.Key][1:]
	}
	for _, e := range sent {
		if !seen[e.ID] {
			return fmt.Errorf("the receiver lacks event %s of key %q", e.ID, e.Key)
		}
	}
	return nil
}

func same(got, want outbox.Event) error {
	switch {
	case got.Topic != want.Topic, got.Key != want.Key, got.Type != want.Type, got.ContentType != want.ContentType:
		return fmt.Errorf("event %s was received with topic %q, key %q, type %q, content type %q; sent were %q, %q, %q, %q", want.ID, got.Topic, got.Key, got.Type, got.ContentType,
			want.Topic, want.Key, want.Type, want.ContentType)
	case !bytes.Equal(got.Payload, want.Payload):
		return fmt.Errorf("event %s was received with %d bytes of payload, %.40q; sent were %d, %.40q", want.ID, len(got.Payload), got.Payload, len(want.Payload), want.Payload)
	case !maps.Equal(got.Headers, want.Headers):
		return fmt.Errorf("event %s was received with headers %q; sent were %q", want.ID, got.Headers, want.Headers)
	}
	return nil
}

func nothing(ctx context.Context, t Target) error {
	if err := accepts(ctx, t, nil); err != nil {
		return err
	}
	return has(t, nil)
}

// order: what is accepted is there as soon as Send has returned, in order, in calls small and large.
func order(ctx context.Context, t Target) error {
	var sent []outbox.Event
	for _, n := range []int{1, 1, events, manyMax} {
		call := some(len(sent), n)
		sent = append(sent, call...)
		if err := accepts(ctx, t, call); err != nil {
			return err
		}
		if err := has(t, sent); err != nil {
			return err
		}
	}
	return nil
}

// contents: an event arrives as it was published.
func contents(ctx context.Context, t Target) error {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	sent := some(0, 10)
	sent[0].Payload = nil
	sent[1].Payload, sent[1].ContentType = every, "application/octet-stream"
	sent[2].Payload = bytes.Repeat([]byte{'0' + 7}, outbox.PayloadBytesMax)
	sent[3].Payload, sent[3].ContentType = bytes.Repeat(every, outbox.PayloadBytesMax/len(every)), "application/octet-stream"
	sent[4].Payload, sent[4].ContentType = []byte("no JSON, whatever it is said to be"), "application/json; charset=utf-8"
	sent[5].Key, sent[5].Type = "Zürich 東京 \U0001F980 \"'\\%#?&=,;", "größer"
	sent[6].Key = "two\nlines\tand a tab"
	sent[7].Key = string(bytes.Repeat([]byte("k"), outbox.KeyBytesMax))
	sent[8].Type = string(bytes.Repeat([]byte("t"), outbox.TypeBytesMax))
	sent[9].Headers = map[string]string{
		"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tenant": "acme", "X-Tenant": "a, b", "größe": "東京", "lines": "a\r\nb: c", "a b:\n": "odd",
		"empty": "", "spaced": " a ", " ": "blank", "id": "own", "ce_id": "own", "ce-id": "own", "content-type": "own", "Content-Type": "Own", "Nats-Msg-Id": "own", "percent": "100%25",
	}
	for i := range sent {
		if err := accepts(ctx, t, sent[i:i+1]); err != nil {
			return fmt.Errorf("event %d: %w", i, err)
		}
	}
	return has(t, sent)
}

// again: an event sent again, as after the death of a relay, has the same ID.
func again(ctx context.Context, t Target) error {
	sent := some(0, events)
	for range 3 {
		if err := accepts(ctx, t, sent); err != nil {
			return err
		}
		if err := has(t, sent); err != nil {
			return err
		}
		for i := range sent {
			sent[i].Attempt++
		}
	}
	return nil
}

// concurrent: several goroutines send, each its own keys.
func concurrent(ctx context.Context, t Target) error {
	const (
		senders = 8
		calls   = 5
	)
	var (
		group  sync.WaitGroup
		errs   [senders]error
		all    []outbox.Event
		shares [senders][]outbox.Event
	)
	for s := range senders {
		shares[s] = some(s*calls*events, calls*events)
		for i := range shares[s] {
			if e := &shares[s][i]; e.Key != "" {
				e.Key += " of " + strconv.Itoa(s)
			}
		}
		all = append(all, shares[s]...)
	}
	for s := range senders {
		group.Go(func() {
			for c := range calls {
				errs[s] = errors.Join(errs[s], accepts(ctx, t, shares[s][c*events:(c+1)*events]))
			}
		})
	}
	group.Wait()
	return errors.Join(append(errs[:], has(t, all))...)
}

// late: nothing is accepted any more after ctx has ended; but that is not the events' fault.
func late(ctx context.Context, t Target) error {
	ended, cancel := context.WithCancel(ctx)
	cancel()
	sent := some(0, events)
	n, err := send(ended, t, sent)
	if err != nil {
		return err
	}
	return resume(ctx, t, sent, n)
}

// outcome of a call that need not accept all.
type outcome struct {
	accepted int
	err      error
}

// send calls a sink whose ctx has ended, or ends any time: it must return soon, with an error that is no last word.
func send(ctx context.Context, t Target, events []outbox.Event) (outcome, error) {
	done := make(chan outcome, 1)
	go func() {
		n, err := t.Sink.Send(ctx, events)
		done <- outcome{n, err}
	}()
	var out outcome
	select {
	case out = <-done:
	case <-ctx.Done():
		timer := time.NewTimer(soon)
		defer timer.Stop()
		select {
		case out = <-done:
		case <-timer.C:
			return out, fmt.Errorf("the sink has not returned %s after its ctx had ended", soon)
		}
	}
	switch {
	case out.accepted < 0 || out.accepted > len(events) || (out.err == nil) != (out.accepted == len(events)):
		return out, fmt.Errorf("the sink says that it accepted %d of %d, and %w", out.accepted, len(events), errors.Join(out.err, errors.New("its count is wrong")))
	case out.err != nil && ctx.Err() != nil && (outbox.IsPermanent(out.err) || errors.Is(out.err, outbox.ErrGone)):
		return out, fmt.Errorf("the sink ran out of time and takes that for a last word: %w", out.err)
	}
	return out, nil
}

// resume checks that the receiver has what was accepted, sends the rest, and checks that all has arrived in order.
func resume(ctx context.Context, t Target, sent []outbox.Event, had outcome) error {
	if _, err := prefix(t, sent, had.accepted); err != nil {
		return err
	}
	rest := sent[had.accepted:]
	for i := range rest {
		rest[i].Attempt++
	}
	if err := accepts(ctx, t, rest); err != nil {
		return fmt.Errorf("sent again after %v: %w", had.err, err)
	}
	return has(t, sent)
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// prefix returns how many of the events the receiver has without a gap, which must be as many as were accepted at least; those of a key must be without one.
func prefix(t Target, sent []outbox.Event, accepted int) (int, error) {
	got, err := t.Received()
	if err != nil {
		return 0, fmt.Errorf("read what was received: %w", err)
	}
	has := map[string]bool{}
	for _, e := range got {
		has[e.ID] = true
	}
	lacks := map[string]string{} // by key, its first event that is not there
	n := len(sent)
	for i, e := range sent {
		switch {
		case !has[e.ID]:
			n = min(n, i)
			if _, ok := lacks[e.Key]; !ok {
				lacks[e.Key] = e.ID
			}
		case e.Key != "" && lacks[e.Key] != "":
			return 0, fmt.Errorf("the receiver has event %s of key %q, but not event %s before it", e.ID, e.Key, lacks[e.Key])
		}
	}
	if n < accepted {
		return n, fmt.Errorf("%d events were accepted, but the receiver lacks event %s", accepted, sent[n].ID)
	}
	return n, nil
}

// broken: the receiver is broken at one of the events. What was accepted is exact, nothing of a key overtakes, and all arrives once it is mended.
func broken(ctx context.Context, t Target, f Fault, at int) error {
	if t.Break == nil {
		return errSkip
	}
	sent := some(0, events)
	met := t.Break(f, sent[at].ID)
	if met == nil {
		return fmt.Errorf("%w: %s", errSkip, f)
	}
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	if f != Refuse { // it may show by nothing else
		go func() {
			select {
			case <-met:
				pause(short, faultTime)
				cancel()
			case <-short.Done():
			}
		}()
	}
	out, err := send(short, t, sent)
	if err != nil {
		return err
	}
	select {
	case <-met:
	default:
		return fmt.Errorf("the sink returns %d, %v, and has not sent event %s", out.accepted, out.err, sent[at].ID)
	}
	if out.err == nil {
		return fmt.Errorf("all events were accepted, but for %s the receiver did this: %s", sent[at].ID, f)
	}
	if out.accepted > at {
		return fmt.Errorf("%d events were accepted, but at event %d the receiver did this: %s", out.accepted, at, f)
	}
	if f != Refuse && (outbox.IsPermanent(out.err) || errors.Is(out.err, outbox.ErrGone)) {
		return fmt.Errorf("the sink knows nothing of the event, and takes that for a last word: %w", out.err)
	}
	there, err := prefix(t, sent, out.accepted)
	if err != nil {
		return err
	}
	if f == Refuse && there != out.accepted {
		return fmt.Errorf("the receiver has %d events without a gap, and %d were accepted", there, out.accepted)
	}
	t.Mend()
	return resume(ctx, t, sent, out)
}
