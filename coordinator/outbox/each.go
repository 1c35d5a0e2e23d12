package outbox

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// Each makes a sink's Send of send, which delivers one event: those of a key one after the other, each when the one before is accepted, up to atOnce of different keys, or of
// none, at a time. After the first event that fails none behind it is begun with. accepted and err are those of Send; some of other keys behind the first that failed may have
// been accepted too, and come again. It returns when every call of send has.
func Each(ctx context.Context, events []Event, atOnce int, send func(context.Context, Event) error) (accepted int, err error) {
	var (
		chains = byKey(events)
		next   atomic.Int64 // of chains
		group  sync.WaitGroup
		mu     sync.Mutex // of accepted and err
	)
	accepted = len(events)
	isBehind := func(i int) bool {
		mu.Lock()
		defer mu.Unlock()
		return i > accepted
	}
	for range min(atOnce, len(chains)) {
		group.Go(func() {
			for c := next.Add(1); c <= int64(len(chains)); c = next.Add(1) {
				for _, i := range chains[c-1] {
					if isBehind(i) {
						break
					}
					if failed := unpanicked(ctx, events[i], send); failed != nil {
						mu.Lock()
						if i < accepted {
							accepted, err = i, failed
						}
						mu.Unlock()
					}
				}
			}
		})
	}
	group.Wait()
	return accepted, err
}

// unpanicked calls send, whose panic would end the process here, where no relay sees it.
func unpanicked(ctx context.Context, e Event, send func(context.Context, Event) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("outbox: the sink panicked: %v", p)
		}
	}()
	return send(ctx, e)
}

// byKey divides events into those that are sent one after the other: their places, in order.
func byKey(events []Event) [][]int {
	var chains [][]int
	of := map[string]int{}
	for i, e := range events {
		c, known := of[e.Key]
		if e.Key == "" || !known {
			c = len(chains)
			of[e.Key] = c
			chains = append(chains, nil)
		}
		chains[c] = append(chains[c], i)
	}
	return chains
}
