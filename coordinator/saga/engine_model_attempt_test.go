package saga_test

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// modelHolds is how many semantic locks the sagas want.
const modelHolds = 4

// claimSome claims, and checks that what it is given may run now.
func (m *sagaModel) claimSome() {
	if m.chance(3) && len(m.held) > 60 {
		return
	}
	m.claimUpTo(1 + m.rand.IntN(60))
}

func (m *sagaModel) claimUpTo(n int) {
	for _, a := range m.mustClaim(n) {
		m.say("claimed %s of %s, attempt %d", a.name(), a.saga, a.number)
		s := m.sagas[a.saga]
		if s == nil {
			m.Fatalf("%s of %s runs, and there is no such saga", a.name(), a.saga)
		}
		i := slices.Index(s.names, a.step)
		if slices.ContainsFunc(m.held, func(h *attempt) bool {
			return h.saga == a.saga && h.step == a.step && h.undo == a.undo && (h.unit == nil) == (a.unit == nil) && (a.unit == nil || *h.unit == *a.unit)
		}) {
			m.Errorf("%s: %s runs twice at a time", s.key, a.name())
		}
		m.held = append(m.held, &a)
		switch {
		case s.ended > 0 && !s.forced:
			m.Errorf("%s: %s runs, and it has ended", s.key, a.name())
		case a.undo:
			m.mayUndo(s, i, &a)
			s.undoings[i] = true
		default:
			m.mayRun(s, i, &a)
			s.began[i] = true
		}
	}
}

// mayRun checks that a step, or a unit of it, is to be done.
func (m *sagaModel) mayRun(s *modelSaga, i int, a *attempt) {
	switch {
	case s.forced:
		return
	case slices.Contains(s.undoings, true):
		m.Errorf("%s: %s runs, and it is being undone", s.key, a.name())
	case a.unit != nil && (*a.unit >= len(s.units[i]) || s.units[i][*a.unit].state != unitOut):
		m.Errorf("%s: %s runs, of %v", s.key, a.name(), s.units[i])
	case a.unit == nil && (m.done(s, i) || s.refused[i] || s.units[i] != nil || s.children[i] != nil):
		m.Errorf("%s: %s runs after its end", s.key, a.name())
	}
	for _, k := range s.steps[i].needs {
		if !m.done(s, k) {
			m.Errorf("%s: %s runs before %s has succeeded", s.key, a.name(), s.names[k])
		}
	}
}

// mayUndo checks that nothing of the saga runs, that what stands on the step is undone, and that the compensation is told what the step came to.
func (m *sagaModel) mayUndo(s *modelSaga, i int, a *attempt) {
	if s.forced {
		return
	}
	for _, h := range m.held {
		if o := m.sagas[h.saga]; o == s && !h.undo || o.parent == s && !o.forced {
			m.Errorf("%s: %s is undone while %s of %s runs", s.key, s.names[i], h.name(), h.saga)
		}
	}
	for k := range s.steps {
		if s.needs(k, i) && m.toUndo(s, k) && s.undone[k] == 0 {
			m.Errorf("%s: %s is undone before %s", s.key, s.names[i], s.names[k])
		}
	}
	if !m.toUndo(s, i) || s.undone[i] > 0 {
		m.Errorf("%s: %s is undone: began %t, refused %t, undone %d times", s.key, s.names[i], s.began[i], s.refused[i], s.undone[i])
	}
	if want := s.outputs[i]; string(a.output) != want && (want != "" || string(a.output) != "null") {
		m.Errorf("%s: %s is undone by the output %s, want %q", s.key, s.names[i], a.output, want)
	}
}

// toUndo tells whether the step may have done something that has to be undone. A child that is compensated has done nothing.
func (m *sagaModel) toUndo(s *modelSaga, i int) bool {
	return s.steps[i].undo && s.began[i] && !s.refused[i] && (s.children[i] == nil || m.state(s.children[i].key) != "compensated")
}

// release takes attempts out of those held.
func (m *sagaModel) release(n int) []*attempt {
	m.rand.Shuffle(len(m.held), func(i, k int) { m.held[i], m.held[k] = m.held[k], m.held[i] })
	n = min(n, len(m.held))
	as := m.held[:n:n]
	m.held = slices.Clone(m.held[n:])
	return as
}

// result is what an attempt comes to: units, the input of a child, or an output that no other has.
func (m *sagaModel) result(a *attempt) string {
	s := m.sagas[a.saga]
	step := s.steps[slices.Index(s.names, a.step)]
	if a.undo || a.unit != nil || step.kind != saga.KindEach {
		return fmt.Sprintf(`{"receipt":%d}`, a.job)
	}
	n := step.units
	if n == 0 {
		n = m.rand.IntN(modelUnitsMax + 1)
	}
	return "[" + strings.TrimPrefix(strings.Repeat(",7", n), ",") + "]"
}

// endSome ends some attempts in one transaction.
func (m *sagaModel) endSome() { m.end(m.release(1 + m.rand.IntN(50))) }

func (m *sagaModel) end(as []*attempt) {
	var es []ending
	for _, a := range as {
		x := ending{attempt: *a, outcome: "succeeded"}
		if m.chance(3) {
			x.outcome = []string{"failed", "failed", "discarded", "refused", "snoozed", "returned"}[m.rand.IntN(6)]
		}
		if a.undo && x.outcome == "refused" {
			x.outcome = "succeeded"
		}
		if x.outcome == "succeeded" {
			x.result = m.result(a)
		}
		if m.chance(2) {
			x.delay = new(int64)
		}
		es = append(es, x)
	}
	m.endAs(es)
}

func (m *sagaModel) endAs(es []ending) {
	if len(es) == 0 {
		return
	}
	counted, ended, err := m.settle(m.pool, es...)
	if err != nil {
		m.Fatalf("settle: %v", err)
	}
	for i, x := range es {
		m.say("%s of %s ended as %s: %s", x.name(), x.saga, x.outcome, counted[i])
		m.count(&x, counted[i])
	}
	m.over(ended)
}

// count notes how an attempt ended.
func (m *sagaModel) count(x *ending, counted string) {
	s := m.sagas[x.saga]
	i := slices.Index(s.names, x.step)
	good, bad := counted == "succeeded", counted == "discarded" || counted == "cancelled"
	switch {
	case counted == "":
		m.Errorf("%s: attempt %d of %s was lost to its session", x.saga, x.number, x.name())
	case s.forced: // nobody hears of it any more
	case x.undo && good:
		s.undone[i]++
	case x.undo:
	case x.unit != nil && good:
		s.units[i][*x.unit] = modelUnit{unitOk, x.result}
	case x.unit != nil && bad:
		s.units[i][*x.unit].state = unitBad
	case x.unit != nil:
	case good && s.steps[i].kind == saga.KindStep:
		s.ok[i], s.outputs[i] = true, x.result
	case good:
		m.expand(s, i, x.result)
	case bad && x.outcome == "refused" && (!s.steps[i].behind || i == s.pivot):
		s.refused[i] = true
	case bad:
		s.unknown[i] = true
	}
}

// expand notes that a step has its units, or its child; or, where the saga had turned back before, that it was refused.
func (m *sagaModel) expand(s *modelSaga, i int, result string) {
	var expanded, backward bool
	if err := m.pool.QueryRow(m.ctx, "SELECT x.expanded >> $2 & 1 = 1, x.backward FROM pawl.saga y CROSS JOIN LATERAL pawl.saga_now(1::smallint, y.id) x WHERE y.ns = 1 AND y.key = $1", s.key, i).
		Scan(&expanded, &backward); err != nil {
		m.Fatal(err)
	}
	switch {
	case !expanded && !backward:
		m.Errorf("%s: %s has nothing of what it consists of", s.key, s.names[i])
	case !expanded:
		s.refused[i] = true
	case s.steps[i].kind == saga.KindEach:
		s.units[i] = make([]modelUnit, strings.Count(result, "7"))
	default:
		key := s.key + "/" + s.names[i]
		if s.again[i] > 0 {
			key += fmt.Sprintf("/%d", s.again[i]+1)
		}
		s.children[i] = m.newSaga(s.steps[i].child, key, s)
	}
}

// over notes the sagas that have ended.
func (m *sagaModel) over(ended []string) {
	for _, key := range ended {
		m.say("%s has ended", key)
		if m.sagas[key].ended++; m.sagas[key].ended > 1 {
			m.Errorf("%s has ended twice", key)
		}
	}
}

// endInTx ends some attempts as the transactions of their handlers do, which may take a semantic lock before: the attempt fails if it cannot. At times the transaction comes to nothing.
func (m *sagaModel) endInTx() {
	for _, a := range m.release(1 + m.rand.IntN(5)) {
		tx, err := m.pool.Begin(m.ctx)
		if err != nil {
			m.Fatal(err)
		}
		name := ""
		if m.chance(2) {
			name = fmt.Sprintf("account:%d", m.rand.IntN(modelHolds))
		}
		mine := name == "" || m.take(tx, a, name)
		if !mine || m.chance(8) {
			if err := tx.Rollback(m.ctx); err != nil {
				m.Fatal(err)
			}
			m.say("%s of %s is rolled back", a.name(), a.saga)
			m.endAs(ends("failed", *a))
			continue
		}
		x := ending{attempt: *a, outcome: "succeeded", result: m.result(a)}
		var ended []string
		if err := tx.QueryRow(m.ctx, "SELECT ended FROM pawl.finish_tx(1::smallint, $1, $2, $3, $4, $5::text::json)", m.session, a.claim, a.nonce, a.ordinal, x.result).Scan(&ended); err != nil {
			m.Fatalf("finish_tx: %v", err)
		}
		if err := tx.Commit(m.ctx); err != nil {
			m.Fatal(err)
		}
		m.say("%s of %s succeeded in its transaction, with %q", a.name(), a.saga, name)
		if name != "" {
			m.holds[name] = a.saga
		}
		m.count(&x, "succeeded")
		m.over(ended)
	}
}

// take takes a semantic lock for a saga, and checks that it gets it, or hears who has it.
func (m *sagaModel) take(tx pgx.Tx, a *attempt, name string) bool {
	who := m.holds[name]
	if who == a.saga || who != "" && final(m.state(who)) {
		who = ""
	}
	var has *string
	err := tx.QueryRow(m.ctx, "SELECT pawl.saga_hold(1::smallint, $1, $2)", a.saga, name).Scan(&has)
	m.say("%s for %s of %s: %v", name, a.name(), a.saga, err)
	switch {
	case m.sagas[a.saga].forced:
		if code(err) != "PW023" {
			m.Errorf("%s takes %s after its end: %v", a.saga, name, err)
		}
		return false
	case err != nil:
		m.Fatalf("hold: %v", err)
	case (has == nil) != (who == "") || has != nil && *has != who:
		m.Errorf("%s wants %s: got %v, want %q, who has it", a.saga, name, has, who)
	}
	if who != "" {
		m.ends["held"]++
	}
	return who == ""
}

// loseAll has the session die. What it held was lost; those that had no attempt left may have been done.
func (m *sagaModel) loseAll() {
	if m.chance(2) {
		return
	}
	m.die()
	m.say("the session died")
	for _, a := range m.held {
		s := m.sagas[a.saga]
		i := slices.Index(s.names, a.step)
		switch {
		case a.undo || s.forced || int(a.number) < s.steps[i].attempts:
		case a.unit != nil:
			s.units[i][*a.unit].state = unitBad
		default:
			s.unknown[i] = true
		}
	}
	m.held = nil
}

// endAll ends what runs yet of sagas that were forced; of those nothing comes in line.
func (m *sagaModel) endAll() {
	for {
		m.end(m.release(len(m.held)))
		m.exec("UPDATE pawl.scheduled SET run_at = now() - interval '1 s'")
		m.exec("SELECT pawl.sweep_due(1::smallint, NULL, 10000)")
		if m.claimUpTo(1000); len(m.held) == 0 {
			return
		}
		for _, a := range m.held {
			m.Errorf("%s of %s runs, and it has ended", a.name(), a.saga)
		}
	}
}
