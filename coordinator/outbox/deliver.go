package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"
)

// errDown ends the turn of a TxSink that says it is down, for no transaction is to be open while it is left alone.
var errDown = errors.New("outbox: the receiver is down")

// deliver hands a page to the sink, key by key in order, several keys at once, until each event is delivered or put aside. The error is errDown, or why ctx ended before.
func (r *relay) deliver(ctx context.Context, sink Sink, events []Event) (aside parks, err error) {
	lanes := r.lanes(events, &aside)
	var mu sync.Mutex // of aside
	for len(lanes) > 0 {
		if r.s.SinkTx == nil && !r.waitUp(ctx) {
			return aside, context.Cause(ctx)
		}
		try := lanes
		if r.isDown() {
			try = lanes[:1] // one tells whether it is up again
		}
		var group sync.WaitGroup
		for i := range try {
			group.Go(func() { try[i] = r.lane(ctx, sink, try[i], &aside, &mu) })
		}
		group.Wait()
		lanes = slices.DeleteFunc(append(lanes[len(try):], try...), func(l []Event) bool { return len(l) == 0 }) // the next one tells the next time
		if len(lanes) > 0 && (ctx.Err() != nil || r.s.SinkTx != nil) {
			return aside, cmp.Or(context.Cause(ctx), errDown)
		}
	}
	return aside, nil
}

// lanes divides a page by key. Events of keys that wait are put aside.
func (r *relay) lanes(events []Event, aside *parks) [][]Event {
	out := make([][]Event, r.s.Parallel)
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, e := range events {
		n := i
		if e.Key != "" {
			if _, waits := r.blocked[e.Key]; waits {
				aside.add(e, -1, false, "")
				continue
			}
			n = int(maphash.String(r.seed, e.Key) % uint64(r.s.Parallel))
		}
		out[n%r.s.Parallel] = append(out[n%r.s.Parallel], e)
	}
	return slices.DeleteFunc(out, func(l []Event) bool { return len(l) == 0 })
}

// lane delivers events one call after the other and returns those that are left because the receiver is down or ctx ended.
func (r *relay) lane(ctx context.Context, sink Sink, events []Event, aside *parks, mu *sync.Mutex) []Event {
	for len(events) > 0 && ctx.Err() == nil {
		n := min(len(events), r.s.Batch)
		accepted, err := r.send(ctx, sink, events[:n:n])
		events = events[accepted:]
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return events
		}
		failed := events[0]
		var (
			retry int64
			dead  bool
		)
		switch r.refused(ctx, failed, err) {
		case leave:
			return events
		case putAside:
			failed.Attempt--
		case attempt:
			retry, dead = r.judge(ctx, failed, err)
		}
		mu.Lock()
		aside.add(failed, retry, dead, text(err))
		rest := events[1:]
		if failed.Key != "" && (!dead || r.s.Policy != Skip) {
			rest = make([]Event, 0, len(rest))
			for _, e := range events[1:] {
				if e.Key == failed.Key {
					aside.add(e, -1, false, "")
				} else {
					rest = append(rest, e)
				}
			}
		}
		mu.Unlock()
		events = rest
		if r.failed(err) {
			return events
		}
	}
	return events
}

// send calls the sink, and keeps it to its word. One that has got through some of the events when its time is over has not failed: the rest follows.
func (r *relay) send(ctx context.Context, sink Sink, events []Event) (accepted int, err error) {
	sctx, stop := context.WithTimeout(ctx, r.s.Timeout)
	defer stop()
	late := time.AfterFunc(2*r.s.Timeout, func() {
		r.log.Error("the sink does not return, and holds up its subscription", "timeout", r.s.Timeout, "event", events[0].ID)
	})
	defer late.Stop()
	defer func() {
		if p := recover(); p != nil {
			accepted, err = 0, fmt.Errorf("outbox: the sink panicked: %v", p)
		}
	}()
	accepted, err = sink.Send(sctx, events)
	if accepted < 0 || accepted > len(events) || err == nil && accepted < len(events) {
		return 0, fmt.Errorf("outbox: the sink says that it accepted %d of %d events: %w", accepted, len(events), errors.Join(err, errors.New("its count is wrong")))
	}
	if accepted == len(events) || accepted > 0 && sctx.Err() != nil {
		err = nil
	}
	if accepted > 0 {
		r.mu.Lock()
		if r.down > 0 {
			r.log.Info("receiver is up again")
		}
		r.failures, r.down = 0, 0
		r.accepted += int64(accepted)
		for _, e := range events[:accepted] {
			delete(r.refusals, e.Seq)
		}
		r.mu.Unlock()
	}
	return accepted, err
}
