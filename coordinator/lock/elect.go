package lock

import (
	"context"
	"errors"
	"time"

	"github.com/pawl-dev/pawl/db"
)

// Term is a leadership: a lock held under the election's name. Its number is the fencing token, so a later leader's is higher.
type Term struct {
	Number int64
	Lease  *Lease
}

// Campaign makes this process a candidate until ctx ends: whenever it is elected, it runs lead, whose context ends when the leadership does; when lead returns,
// it resigns, and stands again after rest. Campaign returns the error of a lead whose leadership was not lost or taken away, or the cause of ctx. An error of the
// database is waited out.
func (l *Locks) Campaign(ctx context.Context, election string, rest time.Duration, lead func(context.Context, Term) error) error {
	for {
		lease, err := l.Acquire(ctx, election)
		if ctx.Err() != nil {
			if err == nil {
				_ = lease.Release(context.WithoutCancel(ctx))
			}
			return context.Cause(ctx)
		}
		if errors.Is(err, ErrInvalid) || errors.Is(err, ErrClosed) || errors.Is(err, ErrSchema) {
			return err
		}
		if err != nil {
			l.conf.Logger.Warn("election failed, trying again", "election", election, "err", err)
			pause(ctx, max(rest, time.Second))
			continue
		}
		l.conf.Logger.Info("elected", "election", election, "term", lease.Token())
		err = lead(lease.Context(), Term{Number: lease.Token(), Lease: lease})
		rctx, stop := context.WithTimeout(context.WithoutCancel(ctx), closeMax)
		released := lease.Release(rctx)
		stop()
		if over := errors.Is(released, ErrLost) || errors.Is(released, ErrForced); err != nil && !over { // of a term that was taken away, the error says only that
			return err
		}
		if !pause(ctx, rest) {
			return context.Cause(ctx)
		}
	}
}

// Leader tells who leads: the term's number and the process; 0 and "" if nobody does.
type Leader struct {
	Term    int64
	Session int64
	Process string // name, host and pid
}

// Observe calls seen with each new leader, as it is when it is looked at, every interval, until ctx ends; seen's first call is for the present one. An error of the
// database is waited out; ErrInvalid and ErrSchema are returned.
func Observe(ctx context.Context, on DB, ns int16, election string, interval time.Duration, seen func(Leader)) error {
	if _, err := newRequest(election, nil); err != nil {
		return err
	}
	last := Leader{Term: -1}
	for {
		row, err := db.New(on).ReadLockHolder(ctx, db.ReadLockHolderParams{Ns: ns, Name: election})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(wrap(err), ErrSchema) {
			return wrap(err)
		}
		if now := (Leader{row.Token, row.SessionID, row.Process}); err == nil && now != last {
			last = now
			seen(now)
		}
		if !pause(ctx, interval) {
			return context.Cause(ctx)
		}
	}
}
