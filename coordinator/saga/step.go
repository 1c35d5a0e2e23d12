package saga

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// StepsMax is how many steps a definition has at most.
	StepsMax = 62
	// AttemptsDefault is how often an action before the pivot, or the pivot, is tried where MaxAttempts does not say.
	AttemptsDefault = 5
	// AttemptsSureDefault is that for what must not fail: compensations, and actions behind the pivot.
	AttemptsSureDefault = 25
	// QueueDefault is the queue of steps that name none.
	QueueDefault = "default"
	// PriorityDefault is the priority of steps that name none.
	PriorityDefault = 2
)

// Kind is what kind of step a step is.
type Kind string

// The kinds of steps.
const (
	KindStep   Kind = "step"   // a handler does it
	KindEach   Kind = "each"   // a handler splits it into units, and handlers do those
	KindChild  Kind = "child"  // another saga does it
	KindTimer  Kind = "timer"  // waits for a time
	KindSignal Kind = "signal" // waits for Send
)

// AnyStep is a step of whatever types: a [StepOf], an [EachOf] or a [ChildOf].
type AnyStep interface {
	// Name is the step's name.
	Name() string
	self() *step
}

// step is a step without its types.
type step struct {
	def   *definition
	name  string
	kind  Kind
	wait  time.Duration // of a timer
	child *definition
	opts  stepOptions

	served bool // a worker of this process has a handler; under def.mu
}

// stepRef is what all typed steps have in common.
type stepRef struct {
	step      *step
	atVersion bool
}

// Name is the step's name.
func (s stepRef) Name() string { return s.step.name }

func (s stepRef) self() *step { return s.step }

// compensated tells whether the step has a compensation, and so its handlers an undo.
func (s stepRef) compensated() bool { return s.step.compensated() }

// kindName is the kind of the step's jobs as handlers are registered.
func (s stepRef) kindName() string {
	if s.atVersion {
		return fmt.Sprintf("saga:%s@%d/%s", s.step.def.name, s.step.def.version, s.step.name)
	}
	return fmt.Sprintf("saga:%s/%s", s.step.def.name, s.step.name)
}

// AnyVersion is the kind under which handlers for all versions of a step are registered, "saga:name/step", of the kind of its jobs, "saga:name@version/step". "" for a kind of another form. A worker that has no
// handler for a kind looks for one for this.
func AnyVersion(kind string) string {
	name, rest, versioned := strings.Cut(kind, "@")
	_, step, ok := strings.Cut(rest, "/")
	if !versioned || !ok || !strings.HasPrefix(name, "saga:") {
		return ""
	}
	return name + "/" + step
}

// StepOf is a step of a saga with input In, whose output is an Out.
type StepOf[In, Out any] struct{ stepRef }

// EachOf is a step of a saga with input In that is split into units, each a Unit, whose outputs are Outs.
type EachOf[In, Unit, Out any] struct{ stepRef }

// ChildOf is a step of a saga with input In that is a saga itself, with input ChildIn.
type ChildOf[In, ChildIn any] struct{ stepRef }

// AtVersion has handlers registered with it serve this version of the definition only. Without it they serve every version that no handler is registered for.
func (s *StepOf[In, Out]) AtVersion() *StepOf[In, Out] {
	return &StepOf[In, Out]{stepRef{s.step, true}}
}

// AtVersion is that of StepOf.
func (s *EachOf[In, Unit, Out]) AtVersion() *EachOf[In, Unit, Out] {
	return &EachOf[In, Unit, Out]{stepRef{s.step, true}}
}

// AtVersion is that of StepOf.
func (s *ChildOf[In, ChildIn]) AtVersion() *ChildOf[In, ChildIn] {
	return &ChildOf[In, ChildIn]{stepRef{s.step, true}}
}

// Step declares a step that a handler does: Handle, HandleTx or HandleHTTP, in the service that owns it. It starts when the steps that After names have succeeded, at once if it names none.
// A name is like a definition's. A step can be declared until the definition is used, and panics then; what is wrong with it tells Definition.Validate.
func Step[Out, In any](d *Definition[In], name string, opts ...StepOption) *StepOf[In, Out] {
	return &StepOf[In, Out]{declare(d, name, KindStep, opts)}
}

// Timer declares a step that succeeds when it has waited for so long, 1 ms to DurationMax. No process waits: a sweep of the coordinator finds that it is due.
func Timer[In any](d *Definition[In], name string, wait time.Duration, opts ...StepOption) *StepOf[In, None] {
	s := declare(d, name, KindTimer, opts)
	s.step.wait = wait
	return &StepOf[In, None]{s}
}

// Signal declares a step that succeeds when Send brings it a value, which is its output; also one that was sent before it was its turn. Expires bounds the wait.
func Signal[Out, In any](d *Definition[In], name string, opts ...StepOption) *StepOf[In, Out] {
	return &StepOf[In, Out]{declare(d, name, KindSignal, opts)}
}

// Each declares a step that a handler splits into units (HandleEach), which any free workers do; it succeeds when all have, and has failed when one has, after the others are through.
// Its compensation undoes it as a whole. What applies to Step applies to the split and to each unit.
func Each[Unit, Out, In any](d *Definition[In], name string, opts ...StepOption) *EachOf[In, Unit, Out] {
	return &EachOf[In, Unit, Out]{declare(d, name, KindEach, opts)}
}

// Child declares a step that is a saga of another definition, in the same namespace: a handler makes its input (HandleChild). The step succeeds when that saga does, and has failed, with nothing done, when it is
// compensated.
func Child[ChildIn, In any](d *Definition[In], name string, child *Definition[ChildIn], opts ...StepOption) *ChildOf[In, ChildIn] {
	s := declare(d, name, KindChild, opts)
	s.step.child = child.def
	return &ChildOf[In, ChildIn]{s}
}

func declare[In any](d *Definition[In], name string, kind Kind, opts []StepOption) stepRef {
	s := &step{name: name, kind: kind}
	for _, opt := range opts {
		opt(&s.opts)
	}
	return stepRef{step: d.def.add(s)}
}

// StepOption is a property of a step.
type StepOption func(*stepOptions)

// stepOptions are the options of a step, or of its compensation.
type stepOptions struct {
	given       []string // the names of the options that were given
	after       []*step
	queue       string
	priority    int
	pivot       bool
	readOnly    bool
	maxAttempts int
	timeout     time.Duration
	backoff     time.Duration
	backoffMax  time.Duration
	expires     time.Duration
	undo        *stepOptions
}

func option(name string, set func(*stepOptions)) StepOption {
	return func(o *stepOptions) {
		o.given = append(o.given, name)
		set(o)
	}
}

func (o *stepOptions) has(name string) bool { return slices.Contains(o.given, name) }

// After has the step start when all these have succeeded: steps of the same definition, declared before it.
func After(steps ...AnyStep) StepOption {
	return option("After", func(o *stepOptions) {
		for _, s := range steps {
			o.after = append(o.after, s.self())
		}
	})
}

// Queue names the queue of the step's jobs: that of the service which does it, 1 to 128 bytes. Default: "default"; a compensation's: its step's.
func Queue(name string) StepOption {
	return option("Queue", func(o *stepOptions) { o.queue = name })
}

// Priority orders the step's jobs, and its compensation's, within their queue as job.Priority does: 1 goes first, 4 last. Default: 2.
func Priority(p int) StepOption {
	return option("Priority", func(o *stepOptions) { o.priority = p })
}

// Pivot makes the step the one after whose success the saga only goes forward: it can no longer be cancelled, its deadline means nothing, and steps behind it are tried until they succeed, or until
// the saga is stuck. A definition has one pivot at most, and every other step is needed by it or needs it, directly or through others.
func Pivot() StepOption { return option("Pivot", func(o *stepOptions) { o.pivot = true }) }

// ReadOnly says that the step leaves nothing to undo. Timers and signals are so by nature.
func ReadOnly() StepOption { return option("ReadOnly", func(o *stepOptions) { o.readOnly = true }) }

// MaxAttempts is how often the step is tried, 1 to 1,000. An action that has used them up without an answer may have happened: it is compensated with the others, or the saga is stuck if that is
// not possible any more. Default: AttemptsDefault, for compensations and behind the pivot AttemptsSureDefault.
func MaxAttempts(n int) StepOption {
	return option("MaxAttempts", func(o *stepOptions) { o.maxAttempts = n })
}

// Timeout cancels the context of an attempt after d, from 1 ms. Default: the worker's.
func Timeout(d time.Duration) StepOption {
	return option("Timeout", func(o *stepOptions) { o.timeout = d })
}

// Backoff is how long a failed attempt waits: base after the first, doubled after each, at most longest, ± 20 %. Default: 1 s, 1 h.
func Backoff(base, longest time.Duration) StepOption {
	return option("Backoff", func(o *stepOptions) { o.backoff, o.backoffMax = base, longest })
}

// Undo sets Queue, MaxAttempts, Timeout and Backoff of the step's compensation.
func Undo(opts ...StepOption) StepOption {
	return option("Undo", func(o *stepOptions) {
		o.undo = &stepOptions{}
		for _, opt := range opts {
			opt(o.undo)
		}
	})
}

// Expires bounds how long a Signal waits: then it has failed. Default: as long as the saga's deadline lets it.
func Expires(d time.Duration) StepOption {
	return option("Expires", func(o *stepOptions) { o.expires = d })
}

// needs tells whether s comes behind other, directly or through others.
func (s *step) needs(other *step) bool {
	for _, a := range s.opts.after {
		if a == other || a.def == s.def && a.needs(other) {
			return true
		}
	}
	return false
}

// pivot is the definition's first pivot, nil if it has none.
func (d *definition) pivot() *step {
	for _, s := range d.steps {
		if s.opts.pivot {
			return s
		}
	}
	return nil
}

// sure tells whether the step comes behind the pivot, where it must not fail.
func (s *step) sure() bool {
	p := s.def.pivot()
	return p != nil && s.needs(p)
}

// compensated tells whether the step has a compensation.
func (s *step) compensated() bool {
	return !s.opts.readOnly && !s.opts.pivot && s.kind != KindTimer && s.kind != KindSignal && !s.sure()
}
