package saga_test

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// modelSaga: facts of steps by index.
type modelSaga struct {
	*modelDef
	key                                   string
	parent                                *modelSaga
	began, ok, refused, unknown, undoings []bool
	undone                                []int
	outputs                               []string      // of plain steps that have succeeded
	units                                 [][]modelUnit // nil until the step is split
	children                              []*modelSaga  // nil until the step's saga is there
	again                                 []int         // how often that began anew
	ended                                 int           // how often it was told
	forced                                bool
}

// modelUnit is a unit of a step.
type modelUnit struct {
	state  int
	output string
}

const (
	unitOut = iota // is in line, runs, or is tried again
	unitOk
	unitBad // until the step is retried
)

// newSaga notes a saga. parent nil: it is none's child.
func (m *sagaModel) newSaga(d *modelDef, key string, parent *modelSaga) *modelSaga {
	n := len(d.steps)
	s := &modelSaga{
		modelDef: d, key: key, parent: parent, began: make([]bool, n), ok: make([]bool, n), refused: make([]bool, n), unknown: make([]bool, n), undoings: make([]bool, n),
		undone: make([]int, n), outputs: make([]string, n), units: make([][]modelUnit, n), children: make([]*modelSaga, n), again: make([]int, n),
	}
	if m.sagas[key] != nil {
		m.Fatalf("%s is there twice", key)
	}
	m.sagas[key] = s
	m.keys = append(m.keys, key)
	return s
}

// done tells whether the step has succeeded, as far as those who run steps know: timers and signals may have. Of a child its own check tells whether it could succeed.
func (m *sagaModel) done(s *modelSaga, i int) bool {
	switch kind := s.steps[i].kind; {
	case s.ok[i] || kind == saga.KindTimer || kind == saga.KindSignal:
		return true
	case s.units[i] != nil:
		return !slices.ContainsFunc(s.units[i], func(u modelUnit) bool { return u.state != unitOk })
	case s.children[i] != nil:
		return m.state(s.children[i].key) == "succeeded"
	}
	return false
}

// final tells whether a saga in this state has ended.
func final(state string) bool {
	return slices.Contains([]string{"succeeded", "compensated", "forced"}, state)
}

// modelEvent is a row of the history.
type modelEvent struct {
	Seq                                                                      int
	What, State                                                              string
	Lined, Ok, Refused, Unknown, Expanded, Signalled, Undoing, Undone, Stuck int64
	Step                                                                     int
	JobSteps                                                                 []int `json:"job_steps"`
	Backward                                                                 bool
	UnitsBad                                                                 int `json:"units_bad"`
	Detail                                                                   json.RawMessage
}

// check compares the end of a saga, and its history, with the facts. It gives its state.
func (m *sagaModel) check(s *modelSaga) string {
	m.Helper()
	var es []modelEvent
	text := value[string](m.engine, `SELECT json_agg(x ORDER BY x.seq) FROM pawl.saga y JOIN pawl.saga_event x ON x.ns = 1 AND x.saga_id = y.id WHERE y.ns = 1 AND y.key = $1`, s.key)
	if err := json.Unmarshal([]byte(text), &es); err != nil {
		m.Fatal(err)
	}
	bad := func(format string, args ...any) {
		m.Helper()
		m.Errorf("%s: %s\n%s", s.key, fmt.Sprintf(format, args...), text)
	}
	last := es[len(es)-1]
	m.checkHistory(s, es, bad)
	switch last.State {
	case "succeeded":
		for i := range s.steps {
			if !m.done(s, i) || s.undoings[i] {
				bad("it succeeded: %s: done %t, units %v, undone %d times", s.names[i], m.done(s, i), s.units[i], s.undone[i])
			}
		}
	case "compensated":
		if s.pivot >= 0 && m.done(s, s.pivot) {
			bad("it is compensated, and its pivot has succeeded")
		}
		for i := range s.steps {
			want := 0
			if m.toUndo(s, i) {
				want = 1
			}
			if s.undone[i] != want {
				bad("%s: undone %d times: began %t, refused %t", s.names[i], s.undone[i], s.began[i], s.refused[i])
			}
		}
		if !slices.Contains(s.refused, true) && !slices.Contains(s.unknown, true) && !slices.ContainsFunc(es, func(e modelEvent) bool {
			return e.What == "cancelled" || e.What == "expired" || e.What == "refused" || e.What == "exhausted" || e.What == "units" && e.UnitsBad > 0
		}) {
			bad("it is compensated, and nothing went wrong")
		}
	case "forced":
		if !s.forced {
			bad("nobody forced it")
		}
		return last.State
	}
	for i, x := range s.steps {
		if set := last.Ok>>i&1 == 1; x.kind != saga.KindTimer && x.kind != saga.KindSignal && set != m.done(s, i) {
			bad("%s: ok %t, done %t", s.names[i], set, m.done(s, i))
		}
		for n, u := range s.units[i] {
			if u.state == unitOut && last.State != "compensated" { // else it was taken out of the line
				bad("unit %d of %s is out", n, s.names[i])
			}
		}
		if c := s.children[i]; c != nil {
			as := map[string]int64{"succeeded": last.Ok, "compensated": last.Refused, "forced": last.Unknown}[m.state(c.key)]
			switch {
			case s.ok[i]: // an operator took it for done,
				as = last.Ok
			case s.refused[i]: // or for not done
				as = last.Refused
			}
			if as>>i&1 == 0 {
				bad("its child %s is %s", c.key, m.state(c.key))
			}
		}
	}
	m.checkOutputs(s, es, bad)
	return last.State
}

// checkOutputs checks that the history has the output of each step and unit that came to one, once.
func (m *sagaModel) checkOutputs(s *modelSaga, es []modelEvent, bad func(format string, args ...any)) {
	m.Helper()
	steps, units := map[int]int{}, map[[2]int]int{}
	for _, e := range es {
		i := e.Step - 1
		switch e.What {
		case "succeeded":
			if steps[i]++; steps[i] > 1 || s.outputs[i] != "" && string(e.Detail) != s.outputs[i] {
				bad("event %d: %s has succeeded for the %dth time, with %q", e.Seq, s.names[i], steps[i], s.outputs[i])
			}
		case "units":
			var d struct{ Outputs map[int]json.RawMessage }
			if err := json.Unmarshal(e.Detail, &d); err != nil {
				m.Fatal(err)
			}
			for n, o := range d.Outputs {
				if units[[2]int{i, n}]++; units[[2]int{i, n}] > 1 || s.units[i][n].state != unitOk || string(o) != s.units[i][n].output {
					bad("event %d: unit %d of %s has the output %s, want %v", e.Seq, n, s.names[i], o, s.units[i][n])
				}
			}
		}
	}
	for i := range s.steps {
		if s.outputs[i] != "" && steps[i] != 1 {
			bad("%s has no output", s.names[i])
		}
		for n, u := range s.units[i] {
			if u.state == unitOk && units[[2]int{i, n}] != 1 {
				bad("unit %d of %s has no output", n, s.names[i])
			}
		}
	}
}

// checkHistory checks what must be so in every history.
func (m *sagaModel) checkHistory(s *modelSaga, es []modelEvent, bad func(format string, args ...any)) {
	m.Helper()
	var before modelEvent
	undoable := int64(0)
	for i, x := range s.steps {
		if x.undo {
			undoable |= 1 << i
		}
	}
	for k, e := range es {
		if e.Seq != k+1 || final(e.State) != (k == len(es)-1) {
			bad("event %d is the %dth of %d, of state %s", e.Seq, k+1, len(es), e.State)
		}
		if e.Ok&e.Refused|e.Ok&e.Unknown|e.Refused&e.Unknown|(e.Ok|e.Refused|e.Unknown)&^e.Lined|e.Undone&^e.Undoing|e.Undoing&^undoable != 0 {
			bad("event %d: sets of steps overlap", e.Seq)
		}
		if before.Lined&^e.Lined|before.Ok&^e.Ok|before.Refused&^e.Refused|before.Undone&^e.Undone != 0 {
			bad("event %d: a step has become less than it was", e.Seq)
		}
		for i := range s.steps {
			if e.Lined&^before.Lined>>i&1 == 0 {
				continue
			}
			for _, n := range s.steps[i].needs {
				if e.Ok>>n&1 == 0 {
					bad("event %d: %s is lined before %s is ok", e.Seq, s.names[i], s.names[n])
				}
			}
		}
		if e.Undoing != 0 && e.Lined&^(e.Ok|e.Refused|e.Unknown) != 0 {
			bad("event %d: it undoes while steps are out", e.Seq)
		}
		if e.Backward && (e.Lined&^before.Lined|e.Expanded&^before.Expanded) != 0 {
			bad("event %d: it begins something, and has turned back", e.Seq)
		}
		before = e
	}
}
