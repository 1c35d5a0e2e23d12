package saga

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

// Verdict is what an operator knows of a step that is stuck.
type Verdict string

// The verdicts.
const (
	Done    Verdict = "done"     // it was done; of a compensation: it was undone
	NotDone Verdict = "not-done" // it was not done, and will not be
)

// Cancel has a saga compensated: jobs of its that wait in line are withdrawn, those that run are asked to stop, their handlers' contexts being cancelled with cause job.ErrCancelled, and answer first. actor and reason are kept with it; both are required. The error is ErrTooLate past the pivot, ErrEnded,
// or ErrNotFound. A saga that compensates is left alone.
func Cancel(ctx context.Context, on DB, ns int16, id, actor, reason string) error {
	return act(ctx, on, "cancel", db.ActOnSagaParams{Ns: ns, Key: id, What: "cancelled", Actor: actor, Reason: reason})
}

// Retry lets a saga that is stuck try again, with all its attempts, what it is stuck at. A child that was compensated begins anew, as
// another saga, whose id has a slash and its number behind the step's name: parent/step/2; its input is made again. One that was forced to its end does not. The error is ErrNotWaiting if it is not stuck, or only at such a child; ErrEnded, ErrNotFound.
func Retry(ctx context.Context, on DB, ns int16, id, actor, reason string) error {
	return act(ctx, on, "retry", db.ActOnSagaParams{Ns: ns, Key: id, What: "retried", Actor: actor, Reason: reason})
}

// Skip takes an operator's word for a step, or its compensation, that is stuck, and lets the saga go on. output is what the step came to, for the steps behind it, where it was Done; nil is null. NotDone
// is for the pivot, and has the saga compensated; what is behind it, and a compensation, must be done. Nobody checks it. The error is ErrNotWaiting if the step is not stuck or cannot be skipped so, ErrEnded,
// ErrNotFound if there is no such saga or step.
func Skip(ctx context.Context, on DB, ns int16, id, step string, as Verdict, output json.RawMessage, actor, reason string) error {
	p := db.ActOnSagaParams{Ns: ns, Key: id, Step: &step, Actor: actor, Reason: reason}
	switch as {
	case Done:
		p.What, p.Output = "skipped", output
	case NotDone:
		p.What = "failed"
	default:
		return fmt.Errorf("skip step %q of saga %s: %w: unknown verdict %q", step, id, ErrInvalid, as)
	}
	return act(ctx, on, fmt.Sprintf("skip step %q of", step), p)
}

// Force ends a saga as it stands, and its children: nothing more of them runs, and what is not undone stays. The error is ErrEnded, ErrNotFound.
func Force(ctx context.Context, on DB, ns int16, id, actor, reason string) error {
	return act(ctx, on, "force", db.ActOnSagaParams{Ns: ns, Key: id, What: "forced", Actor: actor, Reason: reason})
}

func act(ctx context.Context, on DB, what string, p db.ActOnSagaParams) error {
	if p.Actor == "" || p.Reason == "" {
		return fmt.Errorf("%s saga %s: %w: who does it and why are required", what, p.Key, ErrInvalid)
	}
	row, err := db.New(on).ActOnSaga(ctx, p)
	if err != nil {
		return fmt.Errorf("%s saga %s: %w", what, p.Key, wrap(err))
	}
	hintAll(ctx, on, p.Ns, row.Queues)
	return nil
}

// hintAll tells workers of queues that got work, and coordinators that something may be due, unless on is a transaction: that is not committed.
func hintAll(ctx context.Context, on DB, ns int16, queues []string) {
	if _, ok := on.(*pgxpool.Pool); !ok {
		return
	}
	for _, q := range queues {
		_ = job.Hint(ctx, on, ns, q) // hints are hints
	}
	_ = db.New(on).SendHint(ctx, db.SendHintParams{Channel: session.Channel(ns), Payload: job.HintDue})
}

// ValueBytesMax is how large a signal's value may be, as JSON.
const ValueBytesMax = 256 << 10

// Send brings a value to a signal of a saga: in the caller's transaction if on is one. Sent before it is the signal's turn, it is kept until then. The first value counts: a second gives ErrNotWaiting, as does
// one for a saga that compensates. The error is ErrNotFound if there is no such saga, ErrEnded if it has ended,
// ErrPayloadTooLarge for a value beyond ValueBytesMax.
func Send[Out, In any](ctx context.Context, on DB, s *StepOf[In, Out], id string, value Out) error {
	if s.step.kind != KindSignal {
		return fmt.Errorf("send to step %q: %w: it is a %s, not a signal", s.step.name, ErrInvalid, s.step.kind)
	}
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("send to step %q: %w: %w", s.step.name, ErrInvalid, err)
	}
	return SendByName(ctx, on, s.step.def.namespace, id, s.step.name, text)
}

// SendByName is Send where the definition's Go types are not at hand.
func SendByName(ctx context.Context, on DB, ns int16, id, signal string, value json.RawMessage) error {
	if len(value) == 0 {
		value = json.RawMessage("null")
	}
	if len(value) > ValueBytesMax {
		return fmt.Errorf("send %q to saga %s: %w: a value of %d bytes exceeds the %d allowed", signal, id, ErrPayloadTooLarge, len(value), ValueBytesMax)
	}
	row, err := db.New(on).SendToSaga(ctx, db.SendToSagaParams{Ns: ns, Key: id, Signal: signal, Value: value})
	if err != nil {
		return fmt.Errorf("send %q to saga %s: %w", signal, id, wrap(err))
	}
	if len(row.Queues) > 0 {
		hintAll(ctx, on, ns, row.Queues)
	}
	return nil
}

// reasonOf says for people what an event says that turned a saga.
func reasonOf(what string, detail json.RawMessage) string {
	var d struct{ Error, Reason string }
	_ = json.Unmarshal(detail, &d)
	switch {
	case d.Error != "":
		return d.Error
	case what == "expired":
		return "its time was over"
	case d.Reason != "":
		return what + ": " + d.Reason
	}
	return what
}
