package worker

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db"
)

const (
	claimJobsMax  = 2000                   // jobs of one claim
	bodiesMax     = 1000                   // bodies read in one statement
	prefetchBytes = 64 << 20               // bodies of a queue that may wait here, by their recent mean size
	prefetchSpan  = 50 * time.Millisecond  // how much work, by the recent rate, may wait here
	overtakeMax   = 20 * time.Millisecond  // how long lines that nobody told of may be passed over
	closely       = 100 * time.Millisecond // how long polls stay close together after there was work
	statementMax  = 30 * time.Second       // how long one statement of the fetcher or completer may take
	complainEvery = 10 * time.Second       // how often the same trouble is logged
)

// fetch claims jobs for the free slots until ctx is cancelled. One look tells which lines may have work; then each is claimed from in a
// transaction of its own, highest priority first. Where a queue has but one line and the fetcher was told that it got work, it claims without a look.
func (r *run) fetch(ctx context.Context) {
	var (
		wait     = r.w.conf.PollMin
		lastWork = time.Now()
		complain time.Time
	)
	for ctx.Err() == nil {
		got, full, err := r.round(ctx)
		if err != nil && ctx.Err() == nil {
			if time.Since(complain) > complainEvery {
				complain = time.Now()
				r.w.conf.Logger.Warn("fetching jobs failed, trying again", "err", db.Message(err))
			}
			pause(ctx, r.w.conf.PollMax)
			continue
		}
		now := time.Now()
		if got > 0 {
			lastWork, wait = now, r.w.conf.PollMin
		}
		if full {
			continue
		}
		if now.Sub(lastWork) > closely {
			wait = min(wait*3/2, r.w.conf.PollMax)
		}
		if r.sleep(ctx, wait) {
			lastWork, wait = time.Now(), r.w.conf.PollMin
		}
	}
}

// sleep waits for about d. True: it was woken.
func (r *run) sleep(ctx context.Context, d time.Duration) bool {
	r.w.fail("before-sleep", nil)
	t := time.NewTimer(d - d/10 + rand.N(d/5+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return false
	case <-r.wake:
		return true
	}
}

// claimTold claims from the queues that were told of, if each is known to have one line.
func (r *run) claimTold(ctx context.Context) (got int, full bool, err error) {
	r.mu.Lock()
	told := slices.Collect(maps.Keys(r.told))
	clear(r.told)
	r.mu.Unlock()
	if len(told) == 0 || !r.passing.IsZero() && time.Since(r.passing) > overtakeMax {
		return 0, false, nil
	}
	for _, q := range told {
		if len(q.lines) != 1 || q.room() <= 0 {
			return 0, false, nil
		}
	}
	if r.passing.IsZero() {
		r.passing = time.Now()
	}
	for _, q := range told {
		n := min(q.room(), claimJobsMax)
		taken, err := r.claim(ctx, q, q.lines[0], n)
		if err != nil {
			return got, false, err
		}
		got += taken
		full = full || taken >= n
	}
	return got, full, nil
}

// round claims from every line that has work and room: of the queues that it was told of, or else of all. full: there is certainly more to claim at once.
func (r *run) round(ctx context.Context) (got int, full bool, err error) {
	room := false
	for _, q := range r.byID {
		q.measure(r.w.conf.PrefetchMax)
		room = room || q.room() > 0
	}
	if !room {
		r.starved.Store(true)
		for _, q := range r.byID { // a slot may have become free before it could see the flag
			room = room || q.room() > 0
		}
		if !room {
			select {
			case <-ctx.Done():
			case <-r.wake:
			}
			return 1, true, nil
		}
	}
	lctx, stop := context.WithTimeout(ctx, statementMax)
	defer stop()
	if got, full, err := r.claimTold(ctx); got > 0 || err != nil {
		return got, full, err
	}
	r.passing = time.Time{}
	look, err := r.q.LookForWork(lctx, db.LookForWorkParams{Ns: r.w.conf.Namespace, QueueIds: r.queues})
	if err != nil {
		return 0, false, err
	}
	more := map[*queue]bool{} // lines of theirs that go first have more
	for i, id := range look.QueueIds {
		q := r.byID[id]
		if !slices.Contains(q.lines, look.Priorities[i]) {
			q.lines = append(q.lines, look.Priorities[i])
		}
		if more[q] {
			continue
		}
		n := min(q.room(), claimJobsMax)
		if n <= 0 {
			r.starved.Store(true)
			continue
		}
		taken, err := r.claim(ctx, q, look.Priorities[i], n)
		if err != nil {
			return got, false, err
		}
		got += taken
		more[q] = taken >= n
		full = full || more[q]
	}
	return got, full, nil
}

// measure sets how far ahead the queue may fetch: what it ran in the last prefetchSpan, at most most.
func (q *queue) measure(most int) {
	span := time.Since(q.at)
	if span < 2*time.Millisecond {
		return
	}
	n := q.finished.Load()
	q.ahead.Store(int64(min(float64(most), prefetchBytes/max(q.bytes, 1), float64(n-q.measured)/span.Seconds()*prefetchSpan.Seconds())))
	if span > prefetchSpan {
		q.at, q.measured = time.Now(), n
	}
}

// room is how many jobs to claim now: none while half of what may wait does, so that claims are few and large.
func (q *queue) room() int {
	held, ahead := int(q.held.Load()), int(q.ahead.Load())
	if held-q.slots > ahead/2 {
		return 0
	}
	return q.slots + ahead - held
}

// claim takes up to n jobs of a line, reads their bodies and hands them to the slots.
func (r *run) claim(ctx context.Context, q *queue, priority int16, n int) (int, error) {
	nonce := rand.Int64()
	cctx, stop := context.WithTimeout(context.WithoutCancel(ctx), statementMax)
	defer stop()
	r.mu.Lock()
	r.taking++
	r.mu.Unlock()
	row, err := r.q.ClaimJobs(cctx, db.ClaimJobsParams{
		Ns: r.w.conf.Namespace, SessionID: r.session.ID(), Nonce: nonce, QueueID: q.id, Priority: priority, JobsMax: int32(n),
	})
	r.mu.Lock()
	r.taking--
	var c *claim
	if err == nil && row.Jobs > 0 {
		c = &claim{id: row.ClaimID, nonce: nonce, tasks: make([]task, row.Jobs), open: int(row.Jobs)}
		for i := range c.tasks {
			c.tasks[i].ctx.parent = r.session.Context()
		}
		r.claims[c.id] = c
	}
	r.mu.Unlock()
	if err != nil {
		r.claimFailed(err, q, priority, nonce)
		return 0, err
	}
	if c == nil {
		return 0, nil
	}
	r.w.stats.claims.Add(1)
	r.w.stats.claimed.Add(int64(row.Jobs))
	r.w.fail("after-claim", nil)
	for from := int32(0); from < row.Jobs; from += bodiesMax {
		if err := r.load(ctx, q, c, from, min(from+bodiesMax, row.Jobs)); err != nil {
			r.mu.Lock()
			delete(r.claims, c.id)
			r.mu.Unlock()
			r.comp.giveBack(c.id) // what was handed to slots before goes on and is ended by whichever comes first
			return int(from), err
		}
	}
	return int(row.Jobs), nil
}

// claimFailed sees to it that a claim whose reply was lost does not stay open.
func (r *run) claimFailed(err error, q *queue, priority int16, nonce int64) {
	switch db.Code(err) {
	case db.CodeSessionEnded:
		r.session.Lose("a claim was refused")
	case "":
		r.comp.abandon(nonce, q.id, priority) // no answer: it may have committed
	}
}

// load reads the bodies of a part of a claim and hands the jobs to the slots.
func (r *run) load(ctx context.Context, q *queue, c *claim, from, to int32) error {
	lctx, stop := context.WithTimeout(context.WithoutCancel(ctx), statementMax)
	defer stop()
	rows, err := r.q.ReadBodies(lctx, db.ReadBodiesParams{Ns: r.w.conf.Namespace, ClaimID: c.id, Nonce: c.nonce, OrdinalFrom: from, OrdinalTo: to})
	if err != nil {
		return err
	}
	if len(rows) != int(to-from) {
		return errors.New("worker: the bodies of a claim are not all there")
	}
	for q.spawned < q.slots && q.spawned < int(q.held.Load())+len(rows) {
		q.spawned++
		r.slots.Add(1)
		go r.slot(q)
	}
	for i := range rows {
		b := &rows[i]
		t := &c.tasks[b.Ordinal]
		t.claim, t.queue, t.handler, t.args, t.headers, t.kind, t.id, t.createdAt = c, q, r.w.handlerOf(b.Kind), b.Args, b.Headers, b.Kind, b.ID, b.CreatedAt
		t.ordinal, t.attempt, t.maxAttempts = b.Ordinal, b.Attempt, b.MaxAttempts
		q.bytes += (float64(len(b.Args)) - q.bytes) / 64
		if t.timeout = r.w.conf.Timeout; b.TimeoutMs > 0 {
			t.timeout = time.Duration(b.TimeoutMs) * time.Millisecond
		}
		if t.handler == nil {
			r.w.stats.unknown.Add(1)
			r.w.conf.Logger.Warn("no handler for this kind here, job handed back", "kind", t.kind, "job", t.id)
			delay := r.w.conf.UnknownDelay
			if t.end() {
				r.comp.settle(t, job.Ending{Outcome: job.Returned, Delay: &delay, Unrun: true}, nil)
			}
			continue
		}
		q.held.Add(1)
		q.tasks <- t
	}
	return nil
}
