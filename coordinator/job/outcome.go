package job

import (
	"errors"
	"fmt"
	"time"
)

// Outcome is how an attempt ended.
type Outcome string

// The outcomes. Succeeded, Discarded and Cancelled are final.
const (
	Succeeded Outcome = "succeeded"
	Failed    Outcome = "failed"   // goes again by its backoff
	Snoozed   Outcome = "snoozed"  // goes again when it asked to, no attempt used
	Returned  Outcome = "returned" // handed back, unrun or as its worker stopped; no attempt used
	Lost      Outcome = "lost"     // its session ended: goes again, one attempt on
	Discarded Outcome = "discarded"
	Cancelled Outcome = "cancelled"
)

// Ending is how a handler wants its attempt to end.
type Ending struct {
	Outcome Outcome
	Delay   *time.Duration // nil: by the job's backoff, or at once
	Err     error          // nil for success
	Unrun   bool           // of one that is returned: no handler had begun, so nothing was done, which a saga goes by
	Refused bool           // of one that is discarded: nothing was done, and will not be, which a saga goes by
}

func (e *Ending) Error() string {
	if e.Err != nil {
		return string(e.Outcome) + ": " + e.Err.Error()
	}
	return fmt.Sprintf("%s for %s", e.Outcome, *e.Delay)
}

// Unwrap returns the error that the handler gave.
func (e *Ending) Unwrap() error { return e.Err }

// Snooze makes the job run again after d without using an attempt.
func Snooze(d time.Duration) error { d = max(d, 0); return &Ending{Outcome: Snoozed, Delay: &d} }

// Discard gives the job up: it is not tried again, and err is kept with it.
func Discard(err error) error { return &Ending{Outcome: Discarded, Err: orUnknown(err)} }

// Cancel ends the job as cancelled: it is not tried again, and err is kept with it.
func Cancel(err error) error { return &Ending{Outcome: Cancelled, Err: orUnknown(err)} }

// RetryAfter fails the attempt and has the next one start after d rather than by the job's backoff.
func RetryAfter(d time.Duration, err error) error {
	d = max(d, 0)
	return &Ending{Outcome: Failed, Delay: &d, Err: orUnknown(err)}
}

// EndingOf reads what a handler returned: nil is success, one of the above is what it says, any other error is a failure.
func EndingOf(err error) Ending {
	if err == nil {
		return Ending{Outcome: Succeeded}
	}
	if e := (*Ending)(nil); errors.As(err, &e) {
		return *e
	}
	return Ending{Outcome: Failed, Err: err}
}

func orUnknown(err error) error {
	if err == nil {
		return errors.New("no reason given")
	}
	return err
}
