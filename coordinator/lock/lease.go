package lock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
)

// hold is one grant to this process. Nested leases of its owner share it.
type hold struct {
	locks  *Locks
	owner  *owner
	name   string
	token  int64
	mode   string
	run    *run
	ctx    context.Context // ends with the grant
	cancel context.CancelCauseFunc
	unhook func() bool // from what its end sets off

	count int // leases; guarded by owner.mu
}

// Lease is a grant of a lock. It is safe for concurrent use. It holds until Release, unless it is lost: then its context is cancelled, and nothing gets it back.
type Lease struct {
	hold *hold
	ctx  context.Context
	stop context.CancelCauseFunc

	mu   sync.Mutex
	over bool
}

// lease makes one more lease of the hold; owner.mu is held.
func (h *hold) lease(ctx context.Context) *Lease {
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, ownerKey{h.locks}, h.owner))
	l := &Lease{hold: h, ctx: ctx}
	unhook := context.AfterFunc(h.ctx, func() { cancel(context.Cause(h.ctx)) })
	l.stop = func(cause error) {
		unhook()
		cancel(cause)
	}
	return l
}

// Name is the lock's name.
func (l *Lease) Name() string { return l.hold.name }

// Token is the fencing token: every later grant of this name has a higher one. Hand it to resources that can refuse older ones.
func (l *Lease) Token() int64 { return l.hold.token }

// Owner is the name under which the lock is held.
func (l *Lease) Owner() string { return l.hold.owner.name }

// Context is the context given to Acquire, and ends with the lease: its cause is then ErrLost, ErrForced, ErrExpired or ErrReleased. It carries the owner: what is
// acquired under it is acquired by the same owner, so that names already held are granted again and deadlocks are found.
func (l *Lease) Context() context.Context { return l.ctx }

// Assert proves in the caller's transaction (READ COMMITTED) that the lease still holds, and keeps it so until that transaction ends: whoever would take the lock
// away waits. The error is ErrLost if it does not hold; the transaction is aborted then. The lease cannot be released while the transaction is open.
func (l *Lease) Assert(ctx context.Context, tx pgx.Tx) error {
	if err := l.err(); err != nil {
		return fmt.Errorf("assert lock %s: %w", l.hold.name, err)
	}
	h := l.hold
	err := db.New(tx).AssertLock(ctx, db.AssertLockParams{Ns: h.locks.conf.Namespace, SessionID: h.run.session.ID(), Name: h.name, Token: h.token})
	if err == nil {
		return nil
	}
	if db.Code(err) == db.CodeLost {
		h.end(ErrLost)
	}
	return fmt.Errorf("assert lock %s: %w", h.name, wrap(err))
}

// Guard refuses the lease's token in the caller's transaction if the resource has seen a newer one, and notes it otherwise: the fence for resources that several locks
// or none of this database's rows protect. The error is ErrLost.
func (l *Lease) Guard(ctx context.Context, tx pgx.Tx, resource string) error {
	err := db.New(tx).GuardLock(ctx, db.GuardLockParams{Ns: l.hold.locks.conf.Namespace, Resource: resource, Token: l.hold.token})
	if err != nil {
		return fmt.Errorf("guard %s: %w", resource, wrap(err))
	}
	return nil
}

// err is why the lease does not hold any more, as far as this process knows.
func (l *Lease) err() error {
	l.mu.Lock()
	over := l.over
	l.mu.Unlock()
	if over {
		return ErrReleased
	}
	if l.hold.ctx.Err() != nil {
		return context.Cause(l.hold.ctx)
	}
	return nil
}

// Release gives the lease back; the last one of its owner gives back the lock, in one round trip, to whoever waits first. The error is ErrReleased if it was released
// before, ErrLost, ErrForced or ErrExpired if it had been lost by then, ErrAsserted when ctx ends while a transaction still asserts it, the cause of ctx when it ends
// before the reply, or the database's: after all of these the process itself goes on giving the lock back. A lock that was lost between a release and its reply, if that
// reply is lost too, counts as released. A crash before the reply leaves the lock either released or with the session, which gives it up.
func (l *Lease) Release(ctx context.Context) error {
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return fmt.Errorf("release lock %s: %w", l.hold.name, ErrReleased)
	}
	l.over = true
	l.mu.Unlock()
	l.stop(ErrReleased)
	if err := l.hold.release(ctx); err != nil {
		return fmt.Errorf("release lock %s: %w", l.hold.name, err)
	}
	return nil
}

func (h *hold) release(ctx context.Context) error {
	h.owner.mu.Lock()
	h.count--
	last := h.count == 0
	if last {
		if others := slices.DeleteFunc(h.owner.holds[h.name], func(x *hold) bool { return x == h }); len(others) > 0 {
			h.owner.holds[h.name] = others
		} else {
			delete(h.owner.holds, h.name)
		}
	}
	h.owner.mu.Unlock()
	if !last {
		return nil
	}
	h.locks.tidy(h.owner)
	if h.ctx.Err() != nil {
		return context.Cause(h.ctx)
	}
	err := h.run.release(ctx, h.name, h.token)
	h.unhook() // the run has forgotten it
	h.end(ErrReleased)
	if errors.Is(err, errGone) {
		return ErrLost
	}
	return err
}

// end ends the hold in this process.
func (h *hold) end(cause error) { h.cancel(cause) }
