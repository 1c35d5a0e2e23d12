package saga

import (
	"context"
	"errors"
)

// Instance is a saga that has ended, with what its steps came to: see StepOf.From.
type Instance struct {
	ID      string
	State   State
	outputs map[string][]byte
}

// Await waits until a saga has ended, and gives it. It holds no connection while it waits: one goroutine looks for all that wait for sagas of this definition on the same pool, after 5 ms, then ever less often, at
// most every 400 ms, and at once when a worker in this process with handlers of the definition has ended one. The error is ErrCompensated (a [CompensatedError]) or ErrForced, both with the instance; ErrNotFound;
// or ErrUnfinished with ctx's cause. It goes on waiting for a saga that is stuck.
func (d *Definition[In]) Await(ctx context.Context, on DB, id string) (*Instance, error) {
	return nil, errors.ErrUnsupported
}

// From reads the step's output from what Await gave. The error is ErrNoOutput if it has none.
func (s *StepOf[In, Out]) From(i *Instance) (out Out, err error) {
	return out, errors.ErrUnsupported
}

// Output reads the output of a step that c's step needs, directly or through others. The error is ErrNoOutput if there is none.
func (s *StepOf[In, Out]) Output(ctx context.Context, c *Call[In]) (out Out, err error) {
	return out, errors.ErrUnsupported
}

// Outputs reads what the units of the step came to, in their order, for a step behind it. The error is ErrNoOutput if there is nothing yet.
func (s *EachOf[In, Unit, Out]) Outputs(ctx context.Context, c *Call[In]) ([]Out, error) {
	return nil, errors.ErrUnsupported
}

// Output reads what the child came to, for a step behind it: StepOf.From of the child's steps tells more. The error is ErrNoOutput if there is nothing yet.
func (s *ChildOf[In, ChildIn]) Output(ctx context.Context, c *Call[In]) (*Instance, error) {
	return nil, errors.ErrUnsupported
}

// ends is who waits for the ends of sagas of one definition.
type ends struct{}

func (e *ends) heard(ended []string) {}
