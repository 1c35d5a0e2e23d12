package worker

import (
	"context"
	"sync"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
)

// taskContext is the context of one attempt: its deadline and cancellation under those of the session. It becomes a real context, with its
// allocations and its timer, only when someone waits on it or it is cancelled; most short handlers never do.
type taskContext struct {
	parent   context.Context
	deadline time.Time // zero: none

	mu    sync.Mutex
	inner context.Context
	stop  context.CancelCauseFunc
	over  bool // the handler has returned
}

var _ context.Context = (*taskContext)(nil)

// expire sets the deadline, before the handler is called. The heartbeat may be cancelling the context at that moment.
func (c *taskContext) expire(at time.Time) {
	c.mu.Lock()
	c.deadline = at
	c.mu.Unlock()
}

// get returns the real context; with make it is made if need be, else only when the deadline has passed.
func (c *taskContext) get(make bool) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil && (make || c.over || !c.deadline.IsZero() && !time.Now().Before(c.deadline)) {
		var base context.Context
		base, c.stop = context.WithCancelCause(c.parent)
		c.inner = base
		if !c.deadline.IsZero() {
			var stop context.CancelFunc
			c.inner, stop = context.WithDeadlineCause(base, c.deadline, job.ErrTimeout)
			_ = stop // the end of base frees the timer; stop itself would say context.Canceled where base says why
		}
		if c.over {
			c.stop(context.Canceled)
		}
	}
	if c.inner == nil {
		return c.parent
	}
	return c.inner
}

func (c *taskContext) Deadline() (time.Time, bool) { return c.deadline, !c.deadline.IsZero() }
func (c *taskContext) Done() <-chan struct{}       { return c.get(true).Done() }
func (c *taskContext) Err() error                  { return c.get(false).Err() }
func (c *taskContext) Value(key any) any           { return c.get(false).Value(key) }

// cancel cancels the context with a cause, now or as soon as it is used. What ended the parent goes before it: who was woken by that end may get here
// before the end has come down to the children.
func (c *taskContext) cancel(cause error) {
	c.get(true)
	if c.parent.Err() != nil {
		cause = context.Cause(c.parent)
	}
	c.stop(cause)
}

// finish is called when the handler has returned: it tells why the context was cancelled by then, if it was, and cancels it.
func (c *taskContext) finish() (cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.inner == nil {
		return context.Cause(c.parent)
	}
	cause = context.Cause(c.inner)
	c.stop(context.Canceled)
	return cause
}
