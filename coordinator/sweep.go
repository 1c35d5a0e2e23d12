package coordinator

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

// The bounds of the sweeps.
const (
	sessionsMax  = 100              // sessions ended in one run
	claimsMax    = 50               // claims rescued in one transaction
	dueMax       = 1000             // due jobs moved in one transaction
	locksMax     = 200              // locks looked at in one transaction
	lockKeep     = time.Minute      // how long the last state of a lock that nobody holds is kept
	dedupeMax    = 500              // keys looked at in one transaction
	expiredMax   = 500              // answers, and as many messages, removed in one transaction
	passesMax    = 1000             // transactions of one run
	sweepTimeout = time.Minute      // one transaction
	fullEvery    = time.Second      // how often the due sweep looks from the front, for jobs that committed after their time
	dueReport    = 10 * time.Second // how often the due sweep reports
)

// Sweep runs one sweep now, on this node, unless another is at it. The error is ErrUnknownSweep, ErrMoved or ErrSchema, or the database's.
func (c *Coordinator) Sweep(ctx context.Context, name string) (Report, error) {
	began := time.Duration(session.Monotonic())
	r := Report{Name: name}
	var err error
	switch name {
	case SweepSessions:
		err = c.sweepSessions(ctx, &r)
	case SweepDue:
		_, err = c.sweepDue(ctx, nil, &r)
	case SweepInDoubt:
		err = c.sweepInDoubt(ctx, &r)
	case SweepDedupe:
		err = c.sweepDedupe(ctx, &r)
	case SweepLocks:
		err = c.sweepLocks(ctx, &r)
	case SweepOutbox:
		err = c.sweepOutbox(ctx, &r)
	case SweepIdempotency:
		err = c.sweepIdempotency(ctx, &r)
	case SweepBarrier:
		err = c.sweepBarrier(ctx, &r)
	case SweepSagas:
		err = c.sweepSagas(ctx, &r)
	case SweepTCC:
		err = c.sweepTCC(ctx, &r)
	case SweepPartitions:
		err = c.sweepPartitions(ctx, &r)
	default:
		return r, fmt.Errorf("%w: %q", ErrUnknownSweep, name)
	}
	r.Took = time.Duration(session.Monotonic()) - began
	if err != nil {
		err = fmt.Errorf("sweep %s: %w", name, wrap(err))
	}
	if !r.Skipped && !errors.Is(err, ErrSchema) && (name != SweepSessions || err != nil || r.Did > 0) {
		c.report(ctx, r, err)
	}
	return r, err
}

// report keeps what a run did. A report that fails is not worth failing the sweep for.
func (c *Coordinator) report(ctx context.Context, r Report, err error) {
	p := db.ReportSweepParams{Ns: c.conf.Namespace, Name: r.Name, Took: r.Took, Did: r.Did}
	if err != nil {
		text := err.Error()
		p.Error = &text
	}
	if err := c.q.ReportSweep(ctx, p); err != nil && ctx.Err() == nil {
		c.conf.Logger.Warn("sweep not reported", "sweep", r.Name, "err", err)
	}
}

// sweepSessions ends expired sessions in one transaction, then puts back in line what ended sessions held, each in transactions of its own: nothing of a session
// can commit after its end has, so what is read then is all there is.
func (c *Coordinator) sweepSessions(ctx context.Context, r *Report) error {
	ctx, stop := context.WithTimeout(ctx, sweepTimeout)
	defer stop()
	row, err := c.q.SweepSessions(ctx, db.SweepSessionsParams{Ns: c.conf.Namespace, LimitRows: sessionsMax})
	if err != nil {
		return err
	}
	r.Skipped = !row.Did
	var faults []error
	for _, id := range row.Ended {
		if err := c.freeLocks(ctx, id); err != nil { // whoever wants them frees them too
			faults = append(faults, fmt.Errorf("locks of session %d: %w", id, err))
		}
		before := r.Did
		for range passesMax {
			got, err := c.q.RescueSession(ctx, db.RescueSessionParams{Ns: c.conf.Namespace, SessionID: id, ClaimsMax: claimsMax})
			if err != nil {
				faults = append(faults, fmt.Errorf("rescue of session %d: %w", id, err))
				break
			}
			r.Did += int64(got.Jobs)
			if !got.LeftOver {
				break
			}
		}
		if r.Did > before {
			c.conf.Logger.Warn("jobs of an ended session put back in line", "session", id, "jobs", r.Did-before)
		}
	}
	return errors.Join(faults...)
}

// freeLocks grants what an ended session held to who waits for it, and removes its own waits.
func (c *Coordinator) freeLocks(ctx context.Context, session int64) error {
	p := db.ResyncLocksParams{Ns: c.conf.Namespace, SessionID: session, Tokens: []int64{}, Waiters: []int64{}, AfterKey: math.MinInt64, NamesMax: locksMax}
	for range passesMax {
		last, err := c.q.ResyncLocks(ctx, p)
		if err != nil || last == nil {
			return err
		}
		p.AfterKey = *last
	}
	return nil
}

// sweepLocks makes one round over all locks.
func (c *Coordinator) sweepLocks(ctx context.Context, r *Report) error {
	p := db.SweepLocksParams{Ns: c.conf.Namespace, AfterKey: math.MinInt64, LimitLocks: locksMax, Keep: lockKeep}
	for range passesMax {
		row, err := c.q.SweepLocks(ctx, p)
		if err != nil {
			return err
		}
		if row.Removed < 0 {
			r.Skipped = true
			return nil
		}
		r.Did += row.Removed
		if row.Last == nil {
			return nil
		}
		p.AfterKey = *row.Last
	}
	return nil
}

// sweepDedupe makes one round over all keys.
func (c *Coordinator) sweepDedupe(ctx context.Context, r *Report) error {
	var p db.SweepDedupeParams
	for range passesMax {
		p.Ns, p.LimitRows = c.conf.Namespace, dedupeMax
		row, err := c.q.SweepDedupe(ctx, p)
		if err != nil {
			return err
		}
		r.Did += int64(row.Removed)
		if p.AfterKind, p.AfterKey = row.LastKind, row.LastKey; p.AfterKind == "" {
			return nil
		}
	}
	return nil
}

// sweepIdempotency removes what has expired.
func (c *Coordinator) sweepIdempotency(ctx context.Context, r *Report) error {
	return removeAll(r, expiredMax, func() (int64, error) {
		return c.q.SweepIdempotency(ctx, db.SweepIdempotencyParams{Ns: c.conf.Namespace, Keep: idempotency.AbandonedKeep, LimitRows: expiredMax})
	})
}

// sweepBarrier removes what no call can come for any more.
func (c *Coordinator) sweepBarrier(ctx context.Context, r *Report) error {
	return removeAll(r, expiredMax, func() (int64, error) {
		return c.q.SweepBarrier(ctx, db.SweepBarrierParams{Ns: c.conf.Namespace, Keep: barrier.Keep, LimitRows: expiredMax})
	})
}

// removeAll calls a sweep that removes up to limit rows until it finds fewer. Below 0 it says that another node is at it.
func removeAll(r *Report, limit int64, sweep func() (int64, error)) error {
	for range passesMax {
		n, err := sweep()
		if err != nil {
			return err
		}
		if n < 0 {
			r.Skipped = true
			return nil
		}
		r.Did += n
		if n < limit {
			return nil
		}
	}
	return nil
}

// due is where the due sweep stands.
type due struct {
	from *time.Time    // everything before was moved, but for what committed late
	next time.Duration // until the next job is due; negative: none is scheduled
}

// sweepDue moves due jobs from a time on (nil: from the front) until none is left, and hints the queues that got work.
func (c *Coordinator) sweepDue(ctx context.Context, from *time.Time, r *Report) (due, error) {
	d := due{from: from, next: -1}
	for range passesMax {
		row, err := c.q.SweepDue(ctx, db.SweepDueParams{Ns: c.conf.Namespace, FromAt: d.from, LimitRows: dueMax})
		if err != nil {
			return d, err
		}
		if row.Moved < 0 {
			r.Skipped = true
			return d, nil
		}
		d.next = untilNext(row.NextInMs)
		if row.Moved == 0 {
			return d, nil
		}
		r.Did += int64(row.Moved)
		if from != nil {
			d.from = row.MovedTo
		}
		c.hint(ctx, row.QueueIds)
		if row.Moved < dueMax {
			if from == nil {
				d.from = row.MovedTo
			}
			return d, nil
		}
	}
	return d, nil
}

// untilNext reads how long until something is due, of which -1 ms says that nothing is, and any other negative time that it is late.
func untilNext(ms float64) time.Duration {
	if ms == -1 {
		return -1
	}
	return max(time.Duration(ms*float64(time.Millisecond)), 0)
}

func (c *Coordinator) hint(ctx context.Context, queues []int32) {
	names, err := c.q.ListQueueNames(ctx, db.ListQueueNamesParams{Ns: c.conf.Namespace, QueueIds: queues})
	if err != nil {
		return // hints are hints
	}
	c.hintQueues(ctx, names)
}

// runDue runs the due sweep, and does what sagas have due, at the next due time, at most every DueMax, and at once when a hint says that something was scheduled.
func (c *Coordinator) runDue(ctx context.Context) {
	hints := make(chan struct{}, 1)
	if !c.conf.PollOnly {
		stopped := make(chan struct{})
		go func() { defer close(stopped); c.listenDue(ctx, hints) }()
		defer func() { <-stopped }()
	}
	var (
		d        due
		fullAt   = -fullEvery
		reportAt = -dueReport
		sum      Report
	)
	for ctx.Err() == nil {
		now := time.Duration(session.Monotonic())
		from := d.from
		if now-fullAt >= fullEvery {
			from, fullAt = nil, now
		}
		r := Report{Name: SweepDue}
		sctx, stop := context.WithTimeout(ctx, sweepTimeout)
		got, err := c.sweepDue(sctx, from, &r)
		var sagas Report
		next, err2 := c.fireSagas(sctx, &sagas)
		stop()
		err = errors.Join(err, err2)
		if got.from != nil {
			d.from = got.from
		}
		if d.next = got.next; next >= 0 && (d.next < 0 || next < d.next) {
			d.next = next
		}
		if err != nil && ctx.Err() == nil {
			c.conf.Logger.Error("sweep failed, the next one tries again", "sweep", SweepDue, "err", wrap(err))
			d.next = -1
		}
		sum.Did += r.Did
		if now-reportAt >= dueReport && !r.Skipped && ctx.Err() == nil {
			sum.Name, sum.Took, reportAt = SweepDue, time.Duration(session.Monotonic())-now, now
			c.report(ctx, sum, err)
			sum = Report{}
		}
		wait := c.conf.DueMax - c.conf.DueMax/10 + rand.N(c.conf.DueMax/5)
		if d.next >= 0 && !r.Skipped {
			wait = min(wait, max(d.next, time.Millisecond))
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-hints:
		}
		t.Stop()
	}
}

// listenDue passes on hints that something was scheduled. Where LISTEN does not work, the sweep finds it within DueMax.
func (c *Coordinator) listenDue(ctx context.Context, hints chan<- struct{}) {
	for ctx.Err() == nil {
		err := c.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{session.Channel(c.conf.Namespace)}.Sanitize()); err != nil {
				return err
			}
			defer func() { _ = conn.Hijack().Close(context.WithoutCancel(ctx)) }() // it must not go back listening
			for {
				n, err := conn.Conn().WaitForNotification(ctx)
				if err != nil {
					return err
				}
				if n.Payload == job.HintDue {
					select {
					case hints <- struct{}{}:
					default:
					}
				}
			}
		})
		if err != nil && ctx.Err() == nil {
			t := time.NewTimer(c.conf.DueMax)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
		}
	}
}
