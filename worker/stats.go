package worker

import "sync/atomic"

// Stats counts what a worker did since it began.
type Stats struct {
	Claims    int64 // claims taken
	Claimed   int64 // jobs in them
	Succeeded int64
	Failed    int64 // of any other outcome that the handler gave
	Lost      int64 // endings that did not count
	Unknown   int64 // jobs handed back since no handler of their kind is here
	GivenUp   int64 // handlers that ignored their cancelled context past the grace time
	Flushes   int64 // transactions that ended attempts
	Running   int64 // handlers at work now
}

type counters struct {
	claims, claimed, succeeded, failed, lost, unknown, givenUp, flushes, running atomic.Int64
}

// Stats tells what the worker did so far.
func (w *Worker) Stats() Stats {
	s := &w.stats
	return Stats{
		Claims: s.claims.Load(), Claimed: s.claimed.Load(), Succeeded: s.succeeded.Load(), Failed: s.failed.Load(), Lost: s.lost.Load(),
		Unknown: s.unknown.Load(), GivenUp: s.givenUp.Load(), Flushes: s.flushes.Load(), Running: s.running.Load(),
	}
}
