package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

// ResultBytesMax bounds what a handler may return.
const ResultBytesMax = 1 << 20

// notBegunDelay is how long a job waits that was handed back since the database was away.
const notBegunDelay = time.Second

// closeMax bounds what is said to the server on the way out.
const closeMax = 5 * time.Second

// hintsMax is how many hints are remembered, so that they are not sent too often.
const hintsMax = 1000

// run is a worker's life within one session.
type run struct {
	w       *Worker
	q       *db.Queries
	session *session.Session
	beginTx string
	byID    map[int32]*queue
	byName  map[string]*queue
	queues  []int32
	wake    chan struct{} // there may be work
	starved atomic.Bool   // the fetcher waits for room
	passing time.Time     // when it first claimed without a look since it last looked; its alone
	comp    *completer
	slots   sync.WaitGroup

	mu     sync.Mutex
	claims map[int64]*claim
	told   map[*queue]bool  // queues that got work, as who nudged the fetcher knows
	taking int              // claims between the server's commit and our knowing them
	hinted map[string]int64 // when each hint was sent last, by the monotonic clock
}

// runSession works until ctx is cancelled (nil) or the session is lost (nil as well: the caller goes on); an error says that it could not begin.
func (w *Worker) runSession(ctx context.Context) error {
	grace := w.conf.Grace.Milliseconds()
	r := &run{
		w: w, q: db.New(w.pool), byID: map[int32]*queue{}, byName: map[string]*queue{}, wake: make(chan struct{}, 1), claims: map[int64]*claim{}, told: map[*queue]bool{}, hinted: map[string]int64{},
		beginTx: fmt.Sprintf("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = %d", max(grace, 1000)),
	}
	r.comp = newCompleter(r)
	if err := r.openQueues(ctx); err != nil {
		return err
	}
	var err error
	r.session, err = session.Start(ctx, w.pool, session.Config{
		Namespace: w.conf.Namespace, Name: w.conf.Name, Version: w.conf.Version, TTL: w.conf.TTL, Listen: !w.conf.PollOnly, Logger: w.conf.Logger,
		Kinds: w.kinds(), Held: r.held, Heard: r.heard, Healthy: r.comp.healthy,
	})
	if err != nil {
		return err
	}
	defer func() {
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), closeMax)
		defer stop()
		if err := r.session.Close(ctx); err != nil {
			w.conf.Logger.Warn("session was not closed, it will expire", "err", err)
		}
	}()
	var aides sync.WaitGroup
	aides.Go(r.comp.run)
	stopWatch, stop := context.WithCancel(r.session.Context())
	aides.Go(func() { r.watch(stopWatch) })
	fetching, stopFetching := context.WithCancel(r.session.Context())
	release := context.AfterFunc(ctx, stopFetching)
	w.current.Store(r)
	r.fetch(fetching)
	w.current.Store(nil)
	release()
	stopFetching()
	r.drain()
	stop()
	r.comp.close()
	aides.Wait()
	return nil
}

// kinds are those of steps of sagas and branches of transactions that have handlers here.
func (w *Worker) kinds() []string {
	kinds := slices.Sorted(maps.Keys(w.handlers))
	return slices.DeleteFunc(kinds, func(kind string) bool { return !strings.HasPrefix(kind, "saga:") && !strings.HasPrefix(kind, "tcc:") })
}

func (r *run) openQueues(ctx context.Context) error {
	for name, slots := range r.w.conf.Queues {
		id, err := r.q.EnsureQueue(ctx, db.EnsureQueueParams{Ns: r.w.conf.Namespace, QueueName: name, Priority: job.PriorityDefault})
		if db.IsUnmigrated(err) {
			return fmt.Errorf("%w (%s)", session.ErrSchema, db.Message(err))
		} else if err != nil {
			return fmt.Errorf("worker: queue %q: %w", name, err)
		}
		q := &queue{id: id, name: name, slots: slots, tasks: make(chan *task, slots+r.w.conf.PrefetchMax), at: time.Now()}
		r.byID[id], r.byName[name] = q, q
		r.queues = append(r.queues, id)
	}
	slices.Sort(r.queues)
	return nil
}

// held names the claims that the process holds, for the heartbeat.
func (r *run) held() []int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make([]int64, 0, len(r.claims))
	for id := range r.claims {
		ids = append(ids, id)
	}
	return ids
}

// heard takes what a heartbeat or a hint brought. It does not block.
func (r *run) heard(n session.News) {
	if name, ok := strings.CutPrefix(n.Hint, "n"); ok {
		r.tell(r.byName[name])
	}
	for _, c := range n.Cancels {
		r.mu.Lock()
		cl := r.claims[c.Claim]
		r.mu.Unlock()
		if cl != nil && int(c.Ordinal) < len(cl.tasks) {
			cl.tasks[c.Ordinal].ctx.cancel(job.ErrCancelled)
		}
	}
	for _, id := range n.Strays {
		r.mu.Lock()
		ours := r.claims[id] != nil || r.taking > 0
		r.mu.Unlock()
		if !ours {
			r.comp.giveBack(id)
		}
	}
}

// tell has the fetcher claim from a queue that got work; nil is another worker's.
func (r *run) tell(q *queue) {
	if q == nil {
		return
	}
	r.mu.Lock()
	r.told[q] = true
	r.mu.Unlock()
	r.nudge()
}

func (r *run) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// advanced sees to what a transaction of this worker has brought forward: queues that got work, which are looked at at once where they are this worker's and hinted at
// where not, and sagas that ended.
func (r *run) advanced(queues, ended []string) {
	for _, name := range queues {
		if q := r.byName[name]; q != nil {
			r.tell(q)
		} else {
			r.hint("n" + name)
		}
	}
	if len(ended) == 0 {
		return
	}
	for _, f := range r.w.onSagas {
		f(ended)
	}
}

// hint sends a hint to the namespace, at most once an interval: workers and coordinators look at once, and without it by themselves.
func (r *run) hint(payload string) {
	now := session.Monotonic()
	r.mu.Lock()
	last, before := r.hinted[payload]
	early := before && now-last < int64(job.HintInterval)
	if !early {
		if len(r.hinted) >= hintsMax {
			clear(r.hinted)
		}
		r.hinted[payload] = now
	}
	r.mu.Unlock()
	if early {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), closeMax)
	defer stop()
	_ = r.q.SendHint(ctx, db.SendHintParams{Channel: session.Channel(r.w.conf.Namespace), Payload: payload}) // hints are hints
}

// slot runs tasks until the buffer is closed, or until it was given up.
func (r *run) slot(q *queue) {
	for t := range q.tasks {
		if !r.work(t) {
			return // another goroutine has the slot
		}
		r.free(q)
	}
	r.slots.Done()
}

// free counts an attempt that is over, and wakes the fetcher if it waits for room and the queue has some.
func (r *run) free(q *queue) {
	q.held.Add(-1)
	q.finished.Add(1)
	if r.starved.Load() && q.room() > 0 && r.starved.CompareAndSwap(true, false) {
		r.nudge()
	}
}

// work runs one attempt and passes its ending on. False: the handler was given up meanwhile.
func (r *run) work(t *task) bool {
	if !t.begin() {
		return true
	}
	r.w.stats.running.Add(1)
	result, done, err := r.call(&t.ctx, t)
	r.w.stats.running.Add(-1)
	cause := t.ctx.finish()
	if !t.end() {
		return false
	}
	t.args, t.headers = nil, nil // the claim lives until its last job is over
	r.end(t, result, done, err, cause)
	return true
}

// end translates what a handler did into the ending of its attempt.
func (r *run) end(t *task, result json.RawMessage, done bool, err, cause error) {
	switch {
	case done && err != nil: // fenced
		r.w.stats.lost.Add(1)
		r.w.conf.Logger.Warn("attempt lost, its transaction was rolled back", "job", t.id, "kind", t.kind, "attempt", t.attempt)
		r.over(t.claim, 1)
		return
	case done:
		r.w.stats.succeeded.Add(1)
		r.over(t.claim, 1)
		return
	case err == nil && result == nil:
		r.comp.succeed(t)
		return
	case err == nil && len(result) > ResultBytesMax:
		err = job.Discard(fmt.Errorf("result of %d bytes exceeds %d", len(result), ResultBytesMax))
	}
	e := job.EndingOf(err)
	switch {
	case e.Outcome != job.Failed:
	case errors.Is(cause, session.ErrLost): // whatever it says, this is why it failed; the sweep ends the attempt as lost
		r.w.stats.lost.Add(1)
		r.over(t.claim, 1)
		return
	case errors.Is(cause, ErrStopping):
		e = job.Ending{Outcome: job.Returned}
	case cause == nil && errors.Is(err, errNotBegun):
		delay := notBegunDelay
		e = job.Ending{Outcome: job.Returned, Delay: &delay, Err: err, Unrun: true}
	}
	if e.Outcome == job.Failed && e.Delay == nil && errors.Is(cause, job.ErrTimeout) && !errors.Is(e.Err, job.ErrTimeout) {
		e.Err = fmt.Errorf("%w after %s: %w", job.ErrTimeout, t.timeout, e.Err)
	}
	r.comp.settle(t, e, result)
}

// over counts attempts of a claim that have their receipt.
func (r *run) over(c *claim, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.open -= n; c.open <= 0 {
		delete(r.claims, c.id)
	}
}

// watch gives up handlers that ignore their cancelled context past the grace time, and warns when nobody sweeps.
func (r *run) watch(ctx context.Context) {
	const sweepLate = 60.0
	tick := time.NewTicker(max(min(time.Second, r.w.conf.Grace/4), 10*time.Millisecond))
	defer tick.Stop()
	nextSweepCheck := time.Now().Add(30 * time.Second)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		r.mu.Lock()
		claims := make([]*claim, 0, len(r.claims))
		for _, c := range r.claims {
			claims = append(claims, c)
		}
		r.mu.Unlock()
		for _, c := range claims {
			for i := range c.tasks {
				if t := &c.tasks[i]; t.overdue(now, r.w.conf.Grace) && t.end() {
					r.giveUp(t)
				}
			}
		}
		if now.After(nextSweepCheck) {
			nextSweepCheck = now.Add(time.Minute)
			if age, err := r.q.ReadSweepAge(ctx, r.w.conf.Namespace); err == nil && age > sweepLate {
				r.w.conf.Logger.Warn("no coordinator sweeps: due and crashed jobs wait; run one (pawl serve)", "last_s", int64(age))
			}
		}
	}
}

func (r *run) giveUp(t *task) {
	r.w.stats.givenUp.Add(1)
	r.w.conf.Logger.Error("handler ignores its cancelled context and was given up; its goroutine leaks until it returns",
		"job", t.id, "kind", t.kind, "attempt", t.attempt)
	r.comp.settle(t, job.Ending{Outcome: job.Failed, Err: fmt.Errorf("%w after %s: the handler ignored its context and was given up", job.ErrTimeout, t.timeout)}, nil)
	r.free(t.queue)
	go r.slot(t.queue) // takes the place of the one given up, which is waited for no more
}

// drain lets running attempts finish, hands back what waits, and past the drain time cancels and hands back what runs.
func (r *run) drain() {
	r.mu.Lock()
	claims := make([]*claim, 0, len(r.claims))
	for _, c := range r.claims {
		claims = append(claims, c)
	}
	r.mu.Unlock()
	for _, q := range r.byID {
		close(q.tasks)
		for t := range q.tasks {
			if t.end() {
				r.comp.settle(t, job.Ending{Outcome: job.Returned, Unrun: true}, nil)
			}
		}
	}
	idle := make(chan struct{})
	go func() { r.slots.Wait(); close(idle) }()
	wait := func(d time.Duration, stop <-chan struct{}) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-idle:
			return true
		case <-stop:
			return false
		case <-t.C:
			return false
		}
	}
	if wait(r.w.conf.Drain, r.session.Context().Done()) {
		return
	}
	for _, c := range claims {
		for i := range c.tasks {
			c.tasks[i].ctx.cancel(ErrStopping)
		}
	}
	if wait(min(r.w.conf.Grace, closeMax), nil) {
		return
	}
	for _, c := range claims {
		for i := range c.tasks {
			if t := &c.tasks[i]; t.end() {
				r.w.conf.Logger.Warn("handler ignores the end of the worker; its job is handed back", "job", t.id, "kind", t.kind)
				r.comp.settle(t, job.Ending{Outcome: job.Returned}, nil)
			}
		}
	}
}
