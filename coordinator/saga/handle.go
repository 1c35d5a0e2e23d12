package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
)

const (
	// UnitsMax is how many units a step can be split into.
	UnitsMax = 100_000
	// UnitsBytesMax is how many bytes of JSON they may have together.
	UnitsBytesMax = 1 << 20
)

// Raw is the job of a step, its args not decoded.
type Raw = job.Job[json.RawMessage]

// Worker is what handlers of steps are registered with: a *worker.Worker.
type Worker interface {
	// HandleRaw registers the handler of a kind of job. What it returns is the job's result; nil is none.
	HandleRaw(kind string, h func(ctx context.Context, j *Raw) (json.RawMessage, error))
	// HandleRawTx registers one whose effects commit with the end of its job.
	HandleRawTx(kind string, h func(ctx context.Context, tx pgx.Tx, j *Raw) (json.RawMessage, error))
	// Wake says that jobs were enqueued in this process, so that the worker looks at once if the queue is one of its own.
	Wake(queue string)
	// OnSagas registers a function that is called with the ids of sagas that ended in a transaction of this worker, after its commit. It does not block.
	OnSagas(f func(ended []string))
	// Pool is the pool that the worker works on.
	Pool() *pgxpool.Pool
}

// Handle registers how a step is done, and how it is undone. Both may run more than once for a saga (a crash, a lost reply): Call.Key is the same at every attempt. Use HandleTx where the effects are
// in this database.
//
// act returns the step's output. Its errors: [Fail] is a refusal, nothing was done; job.Snooze asks again later, without an attempt used; any other error, a timeout or a panic leaves it unknown
// whether it was done: it is tried again, and compensated with the rest once its attempts are used up.
//
// undo makes undone what act did, if it did. out is what act returned, nil where nobody knows whether act has done anything, or ever will: undo must also keep an act that comes late from having an effect
// (package barrier does). It cannot refuse: an error is tried again, and when its attempts are used up the saga is stuck, and waits for an operator.
//
// It panics where undo is missing for a step that has something to undo, or is given for one that has not (the pivot, steps behind it, ReadOnly ones); where the definition is invalid; and where the
// worker has a handler for the step, or runs.
func Handle[In, Out any](w Worker, s *StepOf[In, Out], act func(ctx context.Context, c *Call[In]) (Out, error), undo func(ctx context.Context, c *Call[In], out *Out) error) {
	s.ready(w, act != nil, undo != nil, KindStep)
	w.HandleRaw(s.kindName(), func(ctx context.Context, j *Raw) (json.RawMessage, error) {
		return perform(w.Pool(), s.stepRef, j, func(c *Call[In]) (Out, error) { return act(ctx, c) })
	})
	if undo != nil {
		w.HandleRaw(s.kindName()+"/undo", func(ctx context.Context, j *Raw) (json.RawMessage, error) {
			return reverse(w.Pool(), s.stepRef, j, func(c *Call[In], out *Out) error { return undo(ctx, c, out) })
		})
	}
}

// HandleTx is Handle for a step whose effects are in this database: what act or undo write through tx, the saga's advance and the next steps' jobs commit together, or not at all. So they happen once,
// and nothing of an attempt that did not succeed. tx is as in worker.HandleTx.
func HandleTx[In, Out any](w Worker, s *StepOf[In, Out], act func(ctx context.Context, tx pgx.Tx, c *Call[In]) (Out, error), undo func(ctx context.Context, tx pgx.Tx, c *Call[In], out *Out) error) {
	s.ready(w, act != nil, undo != nil, KindStep)
	w.HandleRawTx(s.kindName(), func(ctx context.Context, tx pgx.Tx, j *Raw) (json.RawMessage, error) {
		return perform(tx, s.stepRef, j, func(c *Call[In]) (Out, error) { return act(ctx, tx, c) })
	})
	if undo != nil {
		w.HandleRawTx(s.kindName()+"/undo", func(ctx context.Context, tx pgx.Tx, j *Raw) (json.RawMessage, error) {
			return reverse(tx, s.stepRef, j, func(c *Call[In], out *Out) error { return undo(ctx, tx, c, out) })
		})
	}
}

// HandleEach registers how a step is split and its units are done. split gives the units, up to UnitsMax; with none the step has succeeded. each does one, in whichever process has room, and may run more than
// once for it: Call.Key tells units apart. Errors are as in Handle; when a unit is refused or exhausted, the others are done all the same. Once the saga has turned back for another reason, units that have not begun
// do not: they are taken out of the line, some hundreds at a time. undo undoes the step as a whole, whichever of its units were done: it must bear that any one was, was not, or will be.
func HandleEach[In, Unit, Out any](w Worker, s *EachOf[In, Unit, Out], split func(ctx context.Context, c *Call[In]) ([]Unit, error), each func(ctx context.Context, c *Call[In], u Unit) (Out, error),
	undo func(ctx context.Context, c *Call[In]) error,
) {
	s.ready(w, split != nil && each != nil, undo != nil, KindEach)
	w.HandleRaw(s.kindName(), func(ctx context.Context, j *Raw) (json.RawMessage, error) {
		c, a, err := read[In](w.Pool(), s.stepRef, j, false)
		if err != nil {
			return nil, err
		}
		if a.Unit == nil {
			return expand(func() ([]Unit, error) { return split(ctx, c) })
		}
		if !s.step.def.goes.forward(ctx, c.ref) {
			return nil, Fail(errors.New("the saga does not go forward any more"))
		}
		var unit Unit
		if err := json.Unmarshal(a.Unit, &unit); err != nil {
			return nil, fmt.Errorf("unit does not fit %T: %w", unit, err)
		}
		c.Unit, c.unit = a.N, true
		out, err := each(ctx, c, unit)
		if err != nil {
			return nil, err
		}
		return encode(out)
	})
	if undo != nil {
		w.HandleRaw(s.kindName()+"/undo", func(ctx context.Context, j *Raw) (json.RawMessage, error) {
			return reverse(w.Pool(), s.stepRef, j, func(c *Call[In], _ *json.RawMessage) error { return undo(ctx, c) })
		})
	}
}

// HandleChild registers how the input of the saga is made that is the step, and how the effects of one that succeeded are undone. The child's id is its parent's with a slash and the step's name behind it; begun anew by Retry, with another slash and its number. A child that runs when its parent is
// compensated is cancelled, and undoes itself if it can. child is the child as it ended: it has succeeded, or an operator has forced it to an end as it stood. nil: none was started.
func HandleChild[In, ChildIn any](w Worker, s *ChildOf[In, ChildIn], input func(ctx context.Context, c *Call[In]) (ChildIn, error), undo func(ctx context.Context, c *Call[In], child *Instance) error) {
	s.ready(w, input != nil, undo != nil, KindChild)
	w.HandleRaw(s.kindName(), func(ctx context.Context, j *Raw) (json.RawMessage, error) {
		return perform(w.Pool(), s.stepRef, j, func(c *Call[In]) (ChildIn, error) { return input(ctx, c) })
	})
	if undo != nil {
		w.HandleRaw(s.kindName()+"/undo", func(ctx context.Context, j *Raw) (json.RawMessage, error) {
			return reverse(w.Pool(), s.stepRef, j, func(c *Call[In], _ *json.RawMessage) error {
				child, err := s.read(ctx, c)
				if errors.Is(err, ErrNotFound) {
					child, err = nil, nil
				}
				if err != nil {
					return err
				}
				return undo(ctx, c, child)
			})
		})
	}
}

// expand makes the units of a step. What it refuses, it refuses before anything is done.
func expand[Unit any](split func() ([]Unit, error)) (json.RawMessage, error) {
	units, err := split()
	if err != nil {
		return nil, err
	}
	if len(units) > UnitsMax {
		return nil, Fail(fmt.Errorf("%d units, and %d are the most", len(units), UnitsMax))
	}
	if len(units) == 0 {
		return json.RawMessage("[]"), nil
	}
	text, err := encode(units)
	if err == nil && len(text) > UnitsBytesMax {
		err = Fail(fmt.Errorf("%d units of %d bytes, and %d are the most", len(units), len(text), UnitsBytesMax))
	}
	return text, err
}

// ready panics unless the step can get these handlers, and has the definition know the worker.
func (s stepRef) ready(w Worker, act, undo bool, kind Kind) {
	d := s.step.def
	bad := func(format string, args ...any) {
		panic(fmt.Sprintf("saga: step %q of %q: "+format, append([]any{s.step.name, d.name}, args...)...))
	}
	if err := d.seal().err; err != nil {
		bad("%v", err)
	}
	switch {
	case s.step.kind != kind:
		bad("a %s has no such handler", s.step.kind)
	case !act:
		bad("no handler is given")
	case s.step.compensated() && !undo:
		bad("undo is missing: say how it is undone, or that it is ReadOnly")
	case !s.step.compensated() && undo:
		bad("undo is given, and it has nothing to undo: it is the pivot, or behind it, or ReadOnly")
	}
	d.serve(w, s.step)
}

// serve has the definition know a worker in this process that does a step of it.
func (d *definition) serve(w Worker, s *step) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.served = true
	for _, other := range d.served {
		if other == w {
			return
		}
	}
	d.served = append(d.served, w)
	w.OnSagas(d.ends.heard)
}

// args are those of a step's job.
type args struct {
	Saga    string          `json:"saga"`
	ID      int64           `json:"id,string"`
	Step    string          `json:"step"`
	Version int             `json:"version"`
	Input   json.RawMessage `json:"input"`
	Output  json.RawMessage `json:"output"` // of a compensation: null where it is not known
	Unit    json.RawMessage `json:"unit"`   // of a unit
	N       int             `json:"n"`      // the unit's number, from 0
}

// nothing is the result of a compensation: the job of a step always has one.
var nothing = json.RawMessage("null")

// read decodes the args of a job.
func read[In any](on DB, s stepRef, j *Raw, compensating bool) (*Call[In], *args, error) {
	var a args
	if err := json.Unmarshal(j.Args, &a); err != nil {
		return nil, nil, fmt.Errorf("args do not fit: %w", err)
	}
	c := &Call[In]{
		Saga: a.Saga, Step: a.Step, Version: a.Version, Attempt: j.Attempt, MaxAttempts: j.MaxAttempts, Compensating: compensating, Headers: j.Headers,
		ref: ref{ns: s.step.def.namespace, id: a.ID, key: a.Saga, on: on}, job: j.ID,
	}
	if err := json.Unmarshal(a.Input, &c.Input); err != nil {
		return nil, nil, fmt.Errorf("input does not fit %T: %w", c.Input, err)
	}
	return c, &a, nil
}

func perform[In, Out any](on DB, s stepRef, j *Raw, act func(*Call[In]) (Out, error)) (json.RawMessage, error) {
	c, _, err := read[In](on, s, j, false)
	if err != nil {
		return nil, err
	}
	out, err := act(c)
	if err != nil {
		return nil, err
	}
	return encode(out)
}

func reverse[In, Out any](on DB, s stepRef, j *Raw, undo func(*Call[In], *Out) error) (json.RawMessage, error) {
	c, a, err := read[In](on, s, j, true)
	if err != nil {
		return nil, err
	}
	var own *Out
	if len(a.Output) > 0 && string(a.Output) != "null" {
		own = new(Out)
		if err := json.Unmarshal(a.Output, own); err != nil {
			return nil, fmt.Errorf("output does not fit %T: %w", *own, err)
		}
	}
	return nothing, undo(c, own)
}

func encode(out any) (json.RawMessage, error) {
	text, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	return text, nil
}
