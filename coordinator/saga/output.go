package saga

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/pawl-dev/pawl/db"
)

// From reads the step's output from what Await gave. The error is ErrNoOutput if it did not succeed, or its saga is of another definition.
func (s *StepOf[In, Out]) From(i *Instance) (Out, error) {
	return decode[Out](s.stepRef, i.outputs[s.step.name])
}

// Output reads the output of a step, in a handler of one that needs it, directly or through others, or in a compensation. The error is ErrNoOutput if it has not succeeded.
func (s *StepOf[In, Out]) Output(ctx context.Context, c *Call[In]) (Out, error) {
	text, err := s.output(ctx, c.ref)
	if err != nil {
		var none Out
		return none, err
	}
	return decode[Out](s.stepRef, text)
}

// Outputs reads what the units of the step came to, in their order, as StepOf.Output does. One that an operator took for done without a word has the zero Out.
func (s *EachOf[In, Unit, Out]) Outputs(ctx context.Context, c *Call[In]) ([]Out, error) {
	if _, err := s.output(ctx, c.ref); err != nil {
		return nil, err
	}
	rows, err := db.New(c.on).ListSagaUnitOutputs(ctx, db.ListSagaUnitOutputsParams{Ns: c.ns, SagaID: c.id, Step: s.step.name})
	if err != nil {
		return nil, fmt.Errorf("outputs of step %q: %w", s.step.name, wrap(err))
	}
	var out []Out
	for _, r := range rows {
		for len(out) <= int(r.N) {
			out = append(out, *new(Out))
		}
		if err := json.Unmarshal(r.Output, &out[r.N]); err != nil {
			return nil, fmt.Errorf("output of unit %d of step %q does not fit %T: %w", r.N, s.step.name, out[r.N], err)
		}
	}
	return out, nil
}

// Output reads what the child came to, as StepOf.Output does: StepOf.From of the child's steps tells.
func (s *ChildOf[In, ChildIn]) Output(ctx context.Context, c *Call[In]) (*Instance, error) {
	if _, err := s.output(ctx, c.ref); err != nil {
		return nil, err
	}
	return s.read(ctx, c)
}

// read gives the child of a call's saga, the newest. The error is ErrNotFound if there is none.
func (s *ChildOf[In, ChildIn]) read(ctx context.Context, c *Call[In]) (*Instance, error) {
	id, err := db.New(c.on).FindSagaChild(ctx, db.FindSagaChildParams{Ns: c.ns, SagaID: c.id, Step: s.step.name})
	if err != nil {
		return nil, fmt.Errorf("child of step %q: %w", s.step.name, wrap(err))
	}
	a := lookFor(ctx, c.on, c.ns, []string{id})[id]
	if a.err != nil {
		return nil, fmt.Errorf("child %s: %w", id, a.err)
	}
	return a.instance, nil
}

// output reads what the step came to in the saga of a call.
func (s stepRef) output(ctx context.Context, r ref) (json.RawMessage, error) {
	text, err := db.New(r.on).ReadSagaOutput(ctx, db.ReadSagaOutputParams{Ns: r.ns, SagaID: r.id, Step: s.step.name})
	if err != nil {
		return nil, fmt.Errorf("output of step %q: %w", s.step.name, wrap(err))
	}
	if text == nil {
		return nil, fmt.Errorf("step %q: %w", s.step.name, ErrNoOutput)
	}
	return text, nil
}

func decode[T any](s stepRef, text json.RawMessage) (out T, err error) {
	if text == nil {
		return out, fmt.Errorf("step %q: %w", s.step.name, ErrNoOutput)
	}
	if err := json.Unmarshal(text, &out); err != nil {
		return out, fmt.Errorf("output of step %q does not fit %T: %w", s.step.name, out, err)
	}
	return out, nil
}
