package saga

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

const (
	awaitMin      = 5 * time.Millisecond   // until a saga is looked for again, at first,
	awaitMax      = 400 * time.Millisecond // and at last
	awaitHear     = 10 * time.Millisecond  // until it is looked for at all, where workers of this process have handlers of all its steps, and tell: twice as long as they took lately, but no less
	awaitServed   = 100 * time.Millisecond // and no more than this, which is also how long until the next look
	awaitLately   = 8                      // sagas that lately means
	awaitBatchMax = 250                    // sagas that are looked for in one statement
	awaitShare    = 3                      // how many times longer than to look for all the looks are apart
	awaitReadMax  = 30 * time.Second       // how long a look may take
)

// Instance is a saga that has ended, with what its steps came to: see StepOf.From.
type Instance struct {
	ID      string
	State   State
	outputs map[string]json.RawMessage
}

// Await waits until a saga has ended, and gives it. It holds no connection while it waits: one goroutine looks for all that wait for sagas of this definition on the same pool. Where workers of this process have
// handlers of all steps, and of those of its children, and no timer or signal comes last, it hears from them of nearly all ends, and looks after 10 ms (or, up to 100 ms, twice the time that sagas took lately), 100 ms later, then ever less often, at
// most every 400 ms; else it looks at once, after 5 ms, and so on, and hears of those that its workers bring about. On a transaction or connection it looks by itself. The error is ErrCompensated (a [CompensatedError]) or ErrForced, both with
// the instance; ErrNotFound; ErrUnfinished with ctx's cause; or the database's. It goes on waiting for a saga that is stuck.
func (d *Definition[In]) Await(ctx context.Context, on DB, id string) (*Instance, error) {
	var a answer
	if pool, ok := on.(*pgxpool.Pool); ok {
		a = d.def.ends.await(ctx, d.def.namespace, pool, d.def.newWaiter(id))
	} else {
		a = awaitAlone(ctx, on, d.def.namespace, id)
	}
	if a.err != nil {
		return nil, fmt.Errorf("await saga %s: %w", id, a.err)
	}
	return a.instance, a.instance.fault(a.turned)
}

// answer is how a saga stands.
type answer struct {
	instance *Instance
	turned   *CompensatedError // why it was compensated
	err      error
}

func (a answer) final() bool { return a.err != nil || a.instance.State.Final() }

func unfinished(ctx context.Context, last State) answer {
	return answer{err: fmt.Errorf("%w (%s): %w", ErrUnfinished, cmp.Or(last, "not looked at"), context.Cause(ctx))}
}

// fault is the error that goes with a saga that has ended.
func (i *Instance) fault(turned *CompensatedError) error {
	switch i.State {
	case StateSucceeded:
		return nil
	case StateCompensated:
		return turned
	case StateForced:
		return fmt.Errorf("await saga %s: %w", i.ID, ErrForced)
	case StateRunning, StateCompensating, StateStuck:
	}
	return fmt.Errorf("await saga %s: unknown state %q", i.ID, i.State)
}

// awaitAlone looks on a connection that is the caller's alone.
func awaitAlone(ctx context.Context, on DB, ns int16, id string) answer {
	last := State("")
	for wait := awaitMin; ; wait = min(wait*3/2, awaitMax) {
		a := lookFor(ctx, on, ns, []string{id})[id]
		if ctx.Err() != nil {
			return unfinished(ctx, last)
		}
		if a.final() {
			return a
		}
		last = a.instance.State
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// lookFor tells how sagas stand: an answer for each.
func lookFor(ctx context.Context, on DB, ns int16, ids []string) map[string]answer {
	out := make(map[string]answer, len(ids))
	rows, err := db.New(on).ReadSagaEnds(ctx, db.ReadSagaEndsParams{Ns: ns, Keys: ids})
	if err != nil {
		for _, id := range ids {
			out[id] = answer{err: wrap(err)}
		}
		return out
	}
	for _, r := range rows {
		a := answer{instance: &Instance{ID: r.Key, State: State(r.State)}}
		if len(r.Outputs) > 0 {
			if err := json.Unmarshal(r.Outputs, &a.instance.outputs); err != nil {
				a.err = fmt.Errorf("outputs: %w", err)
			}
		}
		if a.instance.State == StateCompensated {
			a.turned = &CompensatedError{ID: r.Key, Step: r.Step, Reason: reasonOf(r.What, r.Detail)}
		}
		out[r.Key] = a
	}
	for _, id := range ids {
		if _, ok := out[id]; !ok {
			out[id] = answer{err: ErrNotFound}
		}
	}
	return out
}

// ends is who awaits sagas of one definition.
type ends struct {
	pause time.Duration // in place of awaitMin and awaitMax, for tests

	mu       sync.Mutex
	took     time.Duration // those of whose ends workers told, lately
	watchers map[*pgxpool.Pool]*watcher
}

// watcher looks for sagas that are awaited on one pool. It has a goroutine while there are any. Its fields are under ends.mu.
type watcher struct {
	ends *ends
	ns   int16
	pool *pgxpool.Pool
	wake chan struct{}

	due  waiters
	byID map[string][]*waiter
}

// waiter is one call of Await.
type waiter struct {
	id     string
	at     int64         // when to look again, by the monotonic clock; 0: at once
	wait   time.Duration // and how long after that
	since  int64
	looked bool        // it was, or is being
	last   State       // when it was last
	place  int         // in waiters
	told   chan answer // has room for one
}

// waiters are a heap by when they are due.
type waiters []*waiter

func (w waiters) Len() int           { return len(w) }
func (w waiters) Less(i, j int) bool { return w[i].at < w[j].at }
func (w waiters) Swap(i, j int)      { w[i], w[j] = w[j], w[i]; w[i].place, w[j].place = i, j }
func (w *waiters) Push(x any)        { x.(*waiter).place = len(*w); *w = append(*w, x.(*waiter)) }
func (w *waiters) Pop() any {
	old := *w
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*w = old[:len(old)-1]
	return last
}

// hears tells that workers of this process bring about the ends of sagas, but for those of which an operator, a deadline or another process's worker of the same steps does.
func (d *definition) hears() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.served) == 0 {
		return false
	}
	last := map[*step]bool{}
	for _, s := range d.steps {
		last[s] = true
		for _, a := range s.opts.after {
			delete(last, a)
		}
	}
	for _, s := range d.steps {
		switch s.kind {
		case KindTimer, KindSignal: // its end is nobody's here
			if last[s] {
				return false
			}
		case KindStep, KindEach, KindChild:
			if !s.served || s.child != nil && !s.child.hears() {
				return false
			}
		}
	}
	return true
}

func (d *definition) newWaiter(id string) *waiter {
	w := &waiter{id: id, since: session.Monotonic(), wait: awaitMin, told: make(chan answer, 1)}
	if d.hears() {
		d.ends.mu.Lock()
		w.at, w.wait = w.since+int64(min(max(2*d.ends.took, awaitHear), awaitServed)), awaitServed
		d.ends.mu.Unlock()
	}
	w.wait = cmp.Or(d.ends.pause, w.wait)
	return w
}

func (e *ends) await(ctx context.Context, ns int16, pool *pgxpool.Pool, me *waiter) answer {
	w := e.join(ns, pool, me)
	select {
	case a := <-me.told:
		return a
	case <-ctx.Done():
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case a := <-me.told: // meanwhile
		return a
	default:
	}
	w.remove(me)
	w.nudge() // nobody may be left
	return unfinished(ctx, me.last)
}

func (e *ends) join(ns int16, pool *pgxpool.Pool, me *waiter) *watcher {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.watchers[pool]
	if w == nil {
		w = &watcher{ends: e, ns: ns, pool: pool, wake: make(chan struct{}, 1), byID: map[string][]*waiter{}}
		if e.watchers == nil {
			e.watchers = map[*pgxpool.Pool]*watcher{}
		}
		e.watchers[pool] = w
		go w.run()
	}
	heap.Push(&w.due, me)
	w.byID[me.id] = append(w.byID[me.id], me)
	w.nudge()
	return w
}

// heard is told by workers which sagas have ended.
func (e *ends) heard(ended []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.watchers {
		for _, id := range ended {
			for _, one := range w.byID[id] {
				e.took += (time.Duration(session.Monotonic()-one.since) - e.took) / awaitLately
				one.at = 0
				heap.Fix(&w.due, one.place)
				w.nudge()
			}
		}
	}
}

func (w *watcher) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// remove is for who holds the lock.
func (w *watcher) remove(one *waiter) {
	heap.Remove(&w.due, one.place)
	left := w.byID[one.id]
	for i := range left {
		if left[i] == one {
			left[i] = left[len(left)-1]
			left = left[:len(left)-1]
			break
		}
	}
	if w.byID[one.id] = left; len(left) == 0 {
		delete(w.byID, one.id)
	}
}

func (w *watcher) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		ids, next, over := w.take()
		switch {
		case over:
			return
		case len(ids) > 0:
			began := session.Monotonic()
			ctx, stop := context.WithTimeout(context.Background(), awaitReadMax)
			answers := lookFor(ctx, w.pool, w.ns, ids)
			stop()
			w.tell(answers, session.Monotonic()-began)
		default:
			timer.Reset(next)
			select {
			case <-timer.C:
			case <-w.wake:
			}
		}
	}
}

// take gives the ids of those who are due, or how long nobody is. over: nobody waits, and the watcher is no more.
func (w *watcher) take() (ids []string, next time.Duration, over bool) {
	w.ends.mu.Lock()
	defer w.ends.mu.Unlock()
	if len(w.due) == 0 {
		delete(w.ends.watchers, w.pool)
		return nil, 0, true
	}
	now := session.Monotonic()
	seen := map[string]bool{}
	for len(seen) < awaitBatchMax && w.due[0].at <= now {
		one := w.due[0]
		one.looked = true
		one.at, one.wait = now+int64(one.wait), min(one.wait*3/2, cmp.Or(w.ends.pause, awaitMax))
		heap.Fix(&w.due, 0)
		if !seen[one.id] {
			seen[one.id] = true
			ids = append(ids, one.id)
		}
	}
	return ids, time.Duration(w.due[0].at - now), false
}

// tell answers those whose sagas have ended. The others are looked for again no sooner than the time it took allows.
func (w *watcher) tell(answers map[string]answer, took int64) {
	w.ends.mu.Lock()
	defer w.ends.mu.Unlock()
	later := session.Monotonic() + awaitShare*took*int64(len(w.byID))/int64(len(answers))
	for id, a := range answers {
		for _, one := range append([]*waiter(nil), w.byID[id]...) {
			switch {
			case a.err != nil && (one.at == 0 || !one.looked): // came, or heard of its end, during the look, which may have been too early
			case a.final():
				w.remove(one)
				one.told <- a
			default:
				one.last = a.instance.State
				if one.at != 0 && one.at < later {
					one.at = later
					heap.Fix(&w.due, one.place)
				}
			}
		}
	}
}
