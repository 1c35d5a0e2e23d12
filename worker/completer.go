package worker

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

const (
	flushClaimsMax = 128             // claims whose successes go in one transaction
	flushOthersMax = 1000            // other endings in one transaction
	errorBytesMax  = 8 << 10         // of an error's text and stack that are kept
	flushRetry     = time.Second / 4 // between tries while the database cannot be reached
)

// completer ends the attempts of all slots together. Whatever gathers while a flush runs goes in the next one.
type completer struct {
	r    *run
	wake chan struct{}
	stop chan struct{}

	failing atomic.Int64 // since when flushes fail, by the monotonic clock; 0: they do not

	mu     sync.Mutex
	dirty  []*claim // with done ordinals
	others []ending
	chores []chore
}

// ending is one attempt's, other than a plain success.
type ending struct {
	t      *task
	what   job.Ending
	result json.RawMessage
}

// chore is a claim to be given back: by id, or by the nonce of a claim that was never answered.
type chore struct {
	claim    int64
	nonce    int64
	queue    int32
	priority int16
}

func newCompleter(r *run) *completer {
	return &completer{r: r, wake: make(chan struct{}, 1), stop: make(chan struct{})}
}

// healthy tells the session whether attempts can be ended at all: a process whose heartbeat works while nothing else does must be given up.
func (c *completer) healthy() bool {
	since := c.failing.Load()
	return since == 0 || session.Monotonic()-since < int64(c.r.w.conf.TTL)
}

func (c *completer) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *completer) succeed(t *task) {
	c.mu.Lock()
	if len(t.claim.done) == 0 {
		c.dirty = append(c.dirty, t.claim)
	}
	t.claim.done = append(t.claim.done, t.ordinal)
	c.mu.Unlock()
	c.nudge()
}

func (c *completer) settle(t *task, e job.Ending, result json.RawMessage) {
	c.mu.Lock()
	c.others = append(c.others, ending{t, e, result})
	c.mu.Unlock()
	c.nudge()
}

func (c *completer) giveBack(id int64) { c.add(chore{claim: id}) }

func (c *completer) abandon(nonce int64, queue int32, priority int16) {
	c.add(chore{nonce: nonce, queue: queue, priority: priority})
}

func (c *completer) add(ch chore) {
	c.mu.Lock()
	c.chores = append(c.chores, ch)
	c.mu.Unlock()
	c.nudge()
}

// close makes run flush what is left and return.
func (c *completer) close() { close(c.stop) }

func (c *completer) run() {
	for {
		stopping := false
		select {
		case <-c.wake:
		case <-c.stop:
			stopping = true
		}
		c.flush()
		if stopping {
			return
		}
	}
}

func (c *completer) flush() {
	c.mu.Lock()
	dirty, others, chores := c.dirty, c.others, c.chores
	c.dirty, c.others, c.chores = nil, nil, nil
	done := make([][]int32, len(dirty))
	for i, cl := range dirty {
		done[i], cl.done = cl.done, nil
	}
	c.mu.Unlock()
	byID := make([]int, len(dirty))
	for i := range byID {
		byID[i] = i
	}
	slices.SortFunc(byID, func(a, b int) int { return int(dirty[a].id - dirty[b].id) })
	for part := range slices.Chunk(byID, flushClaimsMax) {
		c.finish(part, dirty, done)
	}
	slices.SortStableFunc(others, func(a, b ending) int { return int(a.t.claim.id - b.t.claim.id) })
	for part := range slices.Chunk(others, flushOthersMax) {
		c.settleAll(part)
	}
	for _, ch := range chores {
		c.do(ch)
	}
}

// try runs one transaction until the server answers. It gives up when the session is lost: then nothing counts any more. After a lost reply the
// second try finds the receipts of the first and reports those attempts as lost, which changes nothing.
func (c *completer) try(what string, call func(context.Context) error) error {
	for {
		ctx, stop := context.WithTimeout(context.Background(), statementMax)
		err := call(ctx)
		stop()
		if code := db.Code(err); err == nil || code != "" && !transient(code) {
			c.failing.Store(0)
			return err
		}
		if cause := context.Cause(c.r.session.Context()); cause != nil {
			return cause
		}
		if c.failing.CompareAndSwap(0, session.Monotonic()) {
			c.r.w.conf.Logger.Warn("ending attempts failed, trying again", "what", what, "err", err)
		}
		pause(c.r.session.Context(), flushRetry)
	}
}

// transient tells errors that go away by themselves: the connection, a lack of resources, a lock or deadlock, a server that stops or starts.
func transient(code string) bool {
	switch code[:2] {
	case "08", "53", "57", "40", "55", "25":
		return true
	}
	return false
}

// finish ends successes. A batch that the server refuses is halved until the culprit stands alone.
func (c *completer) finish(part []int, dirty []*claim, done [][]int32) {
	p := db.FinishJobsParams{Ns: c.r.w.conf.Namespace, SessionID: c.r.session.ID()}
	for _, i := range part {
		p.ClaimIDs = append(p.ClaimIDs, dirty[i].id)
		p.Nonces = append(p.Nonces, dirty[i].nonce)
		p.Jobs = append(p.Jobs, ranges(done[i]))
	}
	c.r.w.fail("before-flush", nil)
	var lost []string
	err := c.try("finish", func(ctx context.Context) (err error) {
		lost, err = c.r.q.FinishJobs(ctx, p)
		return err
	})
	c.r.w.fail("after-flush", nil)
	if err != nil && len(part) > 1 && db.Code(err) != "" {
		c.finish(part[:len(part)/2], dirty, done)
		c.finish(part[len(part)/2:], dirty, done)
		return
	}
	c.r.w.stats.flushes.Add(1)
	for k, i := range part {
		n := len(done[i])
		switch {
		case err != nil:
			c.r.w.stats.lost.Add(int64(n))
			c.r.w.conf.Logger.Log(context.Background(), levelOf(err), "successes could not be recorded", "claim", dirty[i].id, "jobs", n, "err", err)
		case lost != nil && lost[k] != "{}":
			c.r.w.stats.lost.Add(int64(n))
			c.r.w.conf.Logger.Warn("attempts lost: they were ended by others", "claim", dirty[i].id, "ordinals", lost[k])
		default:
			c.r.w.stats.succeeded.Add(int64(n))
		}
		c.r.over(dirty[i], n)
	}
}

// settleAll ends attempts of any outcome. An ending that the server refuses (a result that is not JSON for Postgres, say) becomes a failure that says so.
func (c *completer) settleAll(part []ending) {
	p := db.SettleJobsParams{Ns: c.r.w.conf.Namespace, SessionID: c.r.session.ID()}
	for _, e := range part {
		p.ClaimIDs = append(p.ClaimIDs, e.t.claim.id)
		p.Nonces = append(p.Nonces, e.t.claim.nonce)
		p.Ordinals = append(p.Ordinals, e.t.ordinal)
		p.Outcomes = append(p.Outcomes, string(e.what.Outcome))
		p.Details = append(p.Details, detail(e.what))
		delay := int64(-1)
		if e.what.Delay != nil {
			delay = e.what.Delay.Milliseconds()
		}
		p.DelaysMs = append(p.DelaysMs, delay)
		p.Results = append(p.Results, e.result)
	}
	var got db.SettleJobsRow
	c.r.w.fail("before-flush", nil)
	err := c.try("settle", func(ctx context.Context) (err error) {
		got, err = c.r.q.SettleJobs(ctx, p)
		return err
	})
	c.r.w.fail("after-flush", nil)
	if err != nil && db.Code(err) != "" {
		if len(part) > 1 {
			c.settleAll(part[:len(part)/2])
			c.settleAll(part[len(part)/2:])
			return
		}
		if e := part[0]; e.what.Outcome != job.Failed || e.result != nil {
			c.settleAll([]ending{{t: e.t, what: job.Ending{Outcome: job.Failed, Err: errors.New("the ending was refused: " + db.Message(err))}}})
			return
		}
	}
	c.r.w.stats.flushes.Add(1)
	waits := false
	for i, e := range part {
		switch {
		case err != nil:
			c.r.w.stats.lost.Add(1)
			c.r.w.conf.Logger.Log(context.Background(), levelOf(err), "an ending could not be recorded", "job", e.t.id, "err", err)
		case got.Counted[i] == "":
			c.r.w.stats.lost.Add(1)
			c.r.w.conf.Logger.Warn("attempt lost: it was ended by others", "job", e.t.id, "kind", e.t.kind, "attempt", e.t.attempt)
		case got.Counted[i] == string(job.Succeeded):
			c.r.w.stats.succeeded.Add(1)
		case got.Counted[i] == string(job.Returned):
			waits = waits || e.what.Delay != nil
		default:
			waits = true
			c.r.w.stats.failed.Add(1)
		}
		c.r.over(e.t.claim, 1)
	}
	c.r.advanced(got.Queues, got.Ended)
	if waits {
		c.r.hint(job.HintDue) // it may be due before the coordinators look again by themselves
	}
}

// levelOf tells what a person must see to from what comes right by itself: the jobs of a lost session run again elsewhere.
func levelOf(err error) slog.Level {
	if errors.Is(err, session.ErrLost) {
		return slog.LevelWarn
	}
	return slog.LevelError
}

func (c *completer) do(ch chore) {
	err := c.try("give back", func(ctx context.Context) (err error) {
		if ch.claim != 0 {
			_, err = c.r.q.GiveBackClaim(ctx, db.GiveBackClaimParams{
				Ns: c.r.w.conf.Namespace, ClaimID: ch.claim, SessionID: c.r.session.ID(),
			})
		} else {
			_, err = c.r.q.AbandonClaim(ctx, db.AbandonClaimParams{
				Ns: c.r.w.conf.Namespace, SessionID: c.r.session.ID(), Nonce: ch.nonce, QueueID: ch.queue, Priority: ch.priority,
			})
		}
		return err
	})
	if err != nil && db.Code(err) != "" {
		c.r.w.conf.Logger.Error("a claim could not be given back", "claim", ch.claim, "err", err)
	}
}

// ranges writes ordinals as a multirange.
func ranges(ordinals []int32) string {
	if !slices.IsSorted(ordinals) {
		slices.Sort(ordinals)
	}
	b := []byte{'{'}
	for i := 0; i < len(ordinals); {
		j := i
		for j+1 < len(ordinals) && ordinals[j+1] == ordinals[j]+1 {
			j++
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '[')
		b = strconv.AppendInt(b, int64(ordinals[i]), 10)
		b = append(b, ',')
		b = strconv.AppendInt(b, int64(ordinals[j])+1, 10)
		b = append(b, ')')
		i = j + 1
	}
	return string(append(b, '}'))
}

// detail is what is kept of an ending but its outcome.
func detail(e job.Ending) json.RawMessage {
	if e.Err == nil && e.Unrun {
		return json.RawMessage(`{"unrun":true}`)
	}
	if e.Err == nil {
		return nil
	}
	d := struct {
		Error   string `json:"error"`
		Unrun   bool   `json:"unrun,omitempty"`
		Stack   string `json:"stack,omitempty"`
		Refused bool   `json:"refused,omitempty"`
	}{Error: clip(e.Err.Error()), Unrun: e.Unrun, Refused: e.Refused && e.Outcome == job.Discarded}
	if p := (*panicError)(nil); errors.As(e.Err, &p) {
		d.Stack = clip(string(p.stack))
	}
	b, _ := json.Marshal(d) // of two strings: cannot fail
	return b
}

func clip(s string) string {
	if len(s) > errorBytesMax {
		s = s[:errorBytesMax] + " …"
	}
	return s
}
