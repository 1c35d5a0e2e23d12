package sagatest

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// Point is where in an attempt a process dies.
type Point int

// The points.
const (
	// BeforeAction is after the job was claimed, before its handler is called.
	BeforeAction Point = iota + 1
	// AfterAction is after the handler has returned, before that is recorded: what a transactional handler wrote is lost, what another did is done.
	AfterAction
	// AfterCommit is after that was recorded, before anybody is told.
	AfterCommit
)

// fault is what befalls one attempt.
type fault struct {
	err   error // in place of what the handler does
	point Point // else: where the process dies
}

// FailAt has the next attempt at a step fail with err, its handler not called: any error that a handler may return, such as job.Snooze. Further calls plan for the attempts after it. step is a step's name, with
// "/undo" behind it for its compensation, or "/0", "/1", … for a unit of it.
func (b *Bench) FailAt(step string, err error) { b.plan(step, fault{err: err}) }

// RefuseAt is FailAt for a definite refusal, [saga.Fail].
func (b *Bench) RefuseAt(step string, err error) { b.plan(step, fault{err: saga.Fail(err)}) }

// CrashAt is FailAt for the death of the process at a point of the attempt. Run goes on as another process would, once a coordinator has found that the first is dead.
func (b *Bench) CrashAt(step string, at Point) {
	if at < BeforeAction || at > AfterCommit {
		panic(fmt.Sprintf("sagatest: there is no point %d", at))
	}
	b.plan(step, fault{point: at})
}

func (b *Bench) plan(step string, f fault) {
	if f.err == nil && f.point == 0 {
		panic("sagatest: a step fails with an error")
	}
	b.faults[step] = append(b.faults[step], f)
}

// meet takes what was planned for the attempt of a job next; the zero fault: nothing.
func (b *Bench) meet(kind string, args json.RawMessage) fault {
	_, step, _ := strings.Cut(kind, "/")
	var a struct {
		N *int `json:"n"`
	}
	if json.Unmarshal(args, &a) == nil && a.N != nil {
		step = fmt.Sprintf("%s/%d", step, *a.N)
	}
	planned := b.faults[step]
	if len(planned) == 0 {
		return fault{}
	}
	b.faults[step] = planned[1:]
	return planned[0]
}
