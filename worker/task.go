package worker

import (
	"encoding/json"
	"sync/atomic"
	"time"
)

// queue is one of the worker's queues: a buffer of claimed jobs and the slots that take from it.
type queue struct {
	id    int32
	name  string
	slots int
	tasks chan *task

	lines    []int16      // priorities of its lines that looks found work in; the fetcher's alone
	spawned  int          // slots that have a goroutine; the fetcher's alone
	held     atomic.Int64 // jobs claimed whose handlers have not returned
	finished atomic.Int64 // attempts over, ever
	measured int64        // finished when the rate was last measured, and when; the fetcher's alone
	at       time.Time
	ahead    atomic.Int64 // how many jobs may wait here for a slot, by the recent rate
	bytes    float64      // of a body, the recent mean; the fetcher's alone
}

// claim is a claim held by this process.
type claim struct {
	id    int64
	nonce int64
	tasks []task // by ordinal

	open int     // attempts without a receipt; under run.mu
	done []int32 // ordinals that succeeded and await their flush; under completer.mu
}

// task is one attempt.
type task struct {
	claim       *claim
	queue       *queue
	handler     handler
	args        json.RawMessage
	headers     json.RawMessage
	kind        string
	id          int64
	createdAt   time.Time
	timeout     time.Duration // 0: none
	ordinal     int32
	attempt     int16
	maxAttempts int16

	state atomic.Uint32 // of taskState
	ctx   taskContext
}

type taskState = uint32

const (
	waiting taskState = iota
	running
	ended // its ending is on its way, or in the database
)

// begin moves a waiting task to running. False: it was ended before a slot took it.
func (t *task) begin() bool {
	if t.timeout > 0 {
		t.ctx.expire(time.Now().Add(t.timeout))
	}
	return t.state.CompareAndSwap(waiting, running)
}

// end claims the right to end the task, once.
func (t *task) end() bool { return t.state.Swap(ended) != ended }

// overdue tells whether the handler has ignored its cancelled context for longer than grace.
func (t *task) overdue(now time.Time, grace time.Duration) bool {
	return t.state.Load() == running && t.timeout > 0 && now.Sub(t.ctx.deadline) > grace
}
