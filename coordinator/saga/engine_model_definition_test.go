package saga_test

import (
	"fmt"
	"slices"
	"time"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// modelUnitsMax is how many units a step is split into at most, where it does not say.
const modelUnitsMax = 5

// modelDef is a definition, and what its steps are.
type modelDef struct {
	def      *saga.Definition[order]
	made     []saga.AnyStep
	steps    []modelStep
	pivot    int // index, -1 for none
	names    []string
	signals  []string
	deadline bool
}

type modelStep struct {
	kind     saga.Kind
	needs    []int
	attempts int
	undo     bool
	behind   bool      // the pivot, or is it
	units    int       // how many it is split into; 0: some
	child    *modelDef // the saga that it is
}

func (m *sagaModel) newDef(number, pivot int, deadline bool) *modelDef {
	var opts []saga.Option
	if deadline {
		opts = append(opts, saga.Deadline(time.Hour))
	}
	return &modelDef{def: saga.Define[order](fmt.Sprintf("model%d", number), opts...), pivot: pivot, deadline: deadline}
}

// define registers a definition of 1 to 8 steps. Those of leaves are its children.
func (m *sagaModel) define(number int, leaves []*modelDef) *modelDef {
	m.Helper()
	n, pivot := 1+m.rand.IntN(8), -1
	if m.chance(2) {
		pivot = m.rand.IntN(n)
	}
	d := m.newDef(number, pivot, m.chance(3))
	for i := range n {
		s := modelStep{kind: saga.KindStep}
		switch {
		case i == pivot: // behind all, as all must be before it or behind
			for k := range i {
				s.needs = append(s.needs, k)
			}
		case pivot >= 0 && i > pivot:
			s.needs = append(s.needs, pivot+m.rand.IntN(i-pivot))
		}
		for k := range i {
			if i != pivot && m.chance(3) && !slices.Contains(s.needs, k) {
				s.needs = append(s.needs, k)
			}
		}
		switch {
		case i != pivot && m.chance(5):
			s.kind = []saga.Kind{saga.KindTimer, saga.KindSignal}[m.rand.IntN(2)]
		case i != pivot && m.each && m.chance(3):
			s.kind = saga.KindEach
		case len(leaves) > 0 && m.chance(2):
			s.kind, s.child = saga.KindChild, leaves[m.rand.IntN(len(leaves))]
		}
		m.add(d, s)
	}
	registered(m, m.pool, d.def)
	return d
}

// defineMany registers a definition whose second step is split into n units, before its pivot, which is the third, or behind it.
func (m *sagaModel) defineMany(number, n, pivot int) *modelDef {
	m.Helper()
	d := m.newDef(number, pivot, false)
	m.add(d, modelStep{kind: saga.KindStep})
	m.add(d, modelStep{kind: saga.KindEach, needs: []int{0}, units: n})
	m.add(d, modelStep{kind: saga.KindStep, needs: []int{1}})
	registered(m, m.pool, d.def)
	return d
}

// add declares a step, with random limits.
func (m *sagaModel) add(d *modelDef, s modelStep) {
	i := len(d.steps)
	s.behind = d.pivot >= 0 && i >= d.pivot
	s.attempts = 1 + m.rand.IntN(3)
	name := fmt.Sprintf("s%d", i)
	var opts []saga.StepOption
	for _, k := range s.needs {
		opts = append(opts, saga.After(d.made[k]))
	}
	if s.kind != saga.KindTimer && s.kind != saga.KindSignal {
		opts = append(opts, saga.Queue(engineQueue), saga.MaxAttempts(s.attempts))
		switch {
		case i == d.pivot:
			opts = append(opts, saga.Pivot())
		case s.behind:
		case m.chance(5):
			opts = append(opts, saga.ReadOnly())
		default:
			s.undo = true
			opts = append(opts, saga.Undo(saga.MaxAttempts(1+m.rand.IntN(2))))
		}
	}
	d.made, d.names, d.steps = append(d.made, m.declare(d, name, s, opts)), append(d.names, name), append(d.steps, s)
}

func (m *sagaModel) declare(d *modelDef, name string, s modelStep, opts []saga.StepOption) saga.AnyStep {
	switch s.kind {
	case saga.KindTimer:
		return saga.Timer(d.def, name, time.Hour, opts...)
	case saga.KindSignal:
		if m.chance(2) {
			opts = append(opts, saga.Expires(time.Hour))
		}
		d.signals = append(d.signals, name)
		return saga.Signal[int](d.def, name, opts...)
	case saga.KindEach:
		return saga.Each[int, paid](d.def, name, opts...)
	case saga.KindChild:
		return saga.Child(d.def, name, s.child.def, opts...)
	}
	return saga.Step[paid](d.def, name, opts...)
}

// needs tells whether step k needs i, directly or not.
func (d *modelDef) needs(k, i int) bool {
	return slices.ContainsFunc(d.steps[k].needs, func(n int) bool { return n == i || d.needs(n, i) })
}
