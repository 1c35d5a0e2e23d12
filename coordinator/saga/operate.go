package saga

import (
	"context"
	"encoding/json"
	"errors"
)

// Verdict is what an operator knows of a step that is stuck.
type Verdict string

// The verdicts.
const (
	Done    Verdict = "done"     // it was done; of a compensation: it was undone
	NotDone Verdict = "not-done" // it was not done, and will not be
)

// Cancel has a saga compensated: jobs of its that wait in line are withdrawn, those that run answer first. actor and reason are kept with it; both are required. The error is ErrTooLate past the pivot, ErrEnded,
// or ErrNotFound. A saga that compensates is left alone.
func Cancel(ctx context.Context, on DB, ns int16, id, actor, reason string) error {
	return errors.ErrUnsupported
}

// Retry lets a saga that is stuck try again, with all its attempts, what it is stuck at. The error is ErrNotWaiting if it is not stuck, ErrEnded, ErrNotFound.
func Retry(ctx context.Context, on DB, ns int16, id, actor, reason string) error {
	return errors.ErrUnsupported
}

// Skip takes an operator's word for a step, or its compensation, that is stuck, and lets the saga go on. output is what the step came to, for the steps behind it, where it was Done; nil is null. Nobody
// checks it. The error is ErrNotWaiting if the step is not stuck, ErrEnded, ErrNotFound.
func Skip(ctx context.Context, on DB, ns int16, id, step string, as Verdict, output json.RawMessage, actor, reason string) error {
	return errors.ErrUnsupported
}

// Force ends a saga as it stands: nothing more of it runs, and what is not undone stays. The error is ErrEnded, ErrNotFound.
func Force(ctx context.Context, on DB, ns int16, id, actor, reason string) error {
	return errors.ErrUnsupported
}

// Send brings a value to a signal of a saga: in the caller's transaction if on is one. Sent before it is the signal's turn, it is kept until then. The first value counts: a second gives ErrNotWaiting, as does
// one for a saga that compensates. The error is ErrNotFound if there is no such saga, ErrEnded if it has ended.
func Send[Out, In any](ctx context.Context, on DB, s *StepOf[In, Out], id string, value Out) error {
	return errors.ErrUnsupported
}

// SendByName is Send where the definition's Go types are not at hand.
func SendByName(ctx context.Context, on DB, ns int16, id, signal string, value json.RawMessage) error {
	return errors.ErrUnsupported
}
