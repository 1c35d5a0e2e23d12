package worker

import (
	"context"
	"errors"
	"testing"
	"time"
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
