package worker

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/session"
)

// A job that waits for a slot may be asked to cancel in the moment its slot comes free: the heartbeat and the slot touch its context at once.
func TestTask_cancelAtBegin(t *testing.T) {
	t.Parallel()
	reason := errors.New("cancelled")
	for range 1000 {
		task := &task{timeout: time.Minute}
		task.ctx.parent = t.Context()
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			task.ctx.cancel(reason)
		}()
		if !task.begin() {
			t.Fatal("the task does not begin")
		}
		<-asked
		<-task.ctx.Done()
		if got := context.Cause(&task.ctx); got != reason {
			t.Fatalf("got cause %v, want %v", got, reason)
		}
	}
}

// silent is a context that has ended and has not told its children yet.
type silent struct {
	context.Context
	err error
}

func (s silent) Err() error { return s.err }

// TestTaskContext_parentFirst: the cause is that of the session's end, though the worker, woken by it, stops its handlers before it has come down to them.
func TestTaskContext_parentFirst(t *testing.T) {
	c := &taskContext{parent: silent{context.Background(), session.ErrLost}}
	inner := c.get(true)
	c.cancel(ErrStopping)
	if got := context.Cause(inner); !errors.Is(got, session.ErrLost) {
		t.Errorf("cause: got %v, want session.ErrLost", got)
	}
}
