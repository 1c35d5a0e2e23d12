package saga_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

const (
	modelDefinitions = 40
	modelSagas       = 8 // of each
	modelMovesMax    = 20_000
	modelNoise       = 250 // moves after which nobody cancels any more and no session dies
)

var modelSeed = flag.Uint64("saga.seed", 0, "seed of TestEngineModel; 0: another each time")

// A sagaModel is what is known of sagas to those who run their steps, and not what the engine says of them.
type sagaModel struct {
	*engine
	rand  *rand.Rand
	sagas map[string]*modelSaga
	keys  []string
	open  []string   // that have not ended
	held  []*attempt // claimed
	log   []string
}

type modelDef struct {
	def      *saga.Definition[order]
	steps    []modelStep
	pivot    int // index, -1 for none
	names    []string
	signals  []string
	deadline bool
}

type modelStep struct {
	kind   saga.Kind
	needs  []int
	undo   bool
	behind bool // the pivot, or is it
}

// modelSaga: facts of steps by index.
type modelSaga struct {
	*modelDef
	key                                   string
	began, ok, refused, unknown, undoings []bool
	undone                                []int
	ended                                 int // how often it was told
	forced                                bool
}

// TestEngineModel runs random sagas with random ends of steps, operators, deadlines, signals and deaths, and checks that each comes to an end that fits what happened.
func TestEngineModel(t *testing.T) {
	t.Parallel()
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	m := &sagaModel{engine: newEngine(t), rand: rand.New(rand.NewPCG(seed, 0)), sagas: map[string]*modelSaga{}}
	t.Logf("-saga.seed=%d", seed)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the last moves:\n%s", strings.Join(m.log[max(0, len(m.log)-60):], "\n"))
		}
	})
	for i := range modelDefinitions {
		m.startSome(m.define(i))
	}
	m.open = slices.Clone(m.keys)
	moves := []func(){
		m.claimSome, m.claimSome, m.claimSome, m.endSome, m.endSome, m.endSome, m.endInTx, m.dueSome, m.timeSome, m.sendSome, m.operate, m.operate, m.mustSweep, m.prove,
	}
	noise := []func(){m.cancelSome, m.deadlineSome, m.loseAll, m.forceSome}
	n := 0
	for ; len(m.open) > 0 && !t.Failed(); n++ {
		if n == modelMovesMax {
			t.Fatalf("%d sagas have not ended, such as %s: %s", len(m.open), m.open[0], m.state(m.open[0]))
		}
		if n < modelNoise && n%4 == 0 {
			noise[m.rand.IntN(len(noise))]()
		}
		moves[m.rand.IntN(len(moves))]()
		if n%8 == 0 {
			m.look()
		}
	}
	if t.Failed() {
		return
	}
	m.mustSweep()
	m.prove()
	m.endAll()
	if err := m.none(); err != nil {
		t.Error(err)
	}
	ends := map[string]int{}
	for _, key := range m.keys {
		ends[m.check(m.sagas[key])]++
	}
	t.Logf("%d sagas in %d moves: %v", len(m.keys), n, ends)
	for _, state := range []string{"succeeded", "compensated", "forced"} {
		if ends[state] == 0 {
			t.Errorf("no saga ended as %s: this run has proved little", state)
		}
	}
}

func (m *sagaModel) say(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
}

// chance is true once in n.
func (m *sagaModel) chance(n int) bool { return m.rand.IntN(n) == 0 }

// some gives up to n of the open sagas.
func (m *sagaModel) some(n int) []*modelSaga {
	var ss []*modelSaga
	for range n {
		ss = append(ss, m.sagas[m.open[m.rand.IntN(len(m.open))]])
	}
	return ss
}

// define registers a definition of 1 to 8 steps.
func (m *sagaModel) define(number int) *modelDef {
	m.Helper()
	n := 1 + m.rand.IntN(8)
	d := &modelDef{def: saga.Define[order](fmt.Sprintf("model%d", number)), pivot: -1, deadline: m.chance(3)}
	if m.chance(2) {
		d.pivot = m.rand.IntN(n)
	}
	var made []saga.AnyStep
	for i := range n {
		s := modelStep{kind: saga.KindStep, behind: d.pivot >= 0 && i >= d.pivot}
		switch {
		case i == d.pivot: // behind all, as all must be before it or behind
			for k := range i {
				s.needs = append(s.needs, k)
			}
		case s.behind:
			s.needs = append(s.needs, d.pivot+m.rand.IntN(i-d.pivot))
		}
		for k := range i {
			if i != d.pivot && m.chance(3) && !slices.Contains(s.needs, k) {
				s.needs = append(s.needs, k)
			}
		}
		if i != d.pivot && m.chance(5) {
			s.kind = []saga.Kind{saga.KindTimer, saga.KindSignal}[m.rand.IntN(2)]
		}
		made = append(made, m.declare(d, i, &s, made))
		d.steps = append(d.steps, s)
	}
	registered(m, m.pool, d.def)
	return d
}

func (m *sagaModel) declare(d *modelDef, i int, s *modelStep, made []saga.AnyStep) saga.AnyStep {
	name := fmt.Sprintf("s%d", i)
	d.names = append(d.names, name)
	var opts []saga.StepOption
	for _, k := range s.needs {
		opts = append(opts, saga.After(made[k]))
	}
	switch s.kind {
	case saga.KindTimer:
		return saga.Timer(d.def, name, time.Hour, opts...)
	case saga.KindSignal:
		if m.chance(2) {
			opts = append(opts, saga.Expires(time.Hour))
		}
		d.signals = append(d.signals, name)
		return saga.Signal[int](d.def, name, opts...)
	}
	opts = append(opts, saga.Queue(engineQueue), saga.MaxAttempts(1+m.rand.IntN(3)))
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
	return saga.Step[paid](d.def, name, opts...)
}

func (m *sagaModel) startSome(d *modelDef) {
	m.Helper()
	var keys []string
	for i := range modelSagas {
		n := len(d.steps)
		s := &modelSaga{
			modelDef: d, key: fmt.Sprintf("%s:%d", d.def.Name(), i), began: make([]bool, n), ok: make([]bool, n), refused: make([]bool, n), unknown: make([]bool, n), undoings: make([]bool, n),
			undone: make([]int, n),
		}
		m.sagas[s.key] = s
		keys = append(keys, s.key)
	}
	m.keys = append(m.keys, keys...)
	deadline := 0
	if d.deadline {
		deadline = 3600_000
	}
	m.exec("SELECT pawl.saga_start(1::smallint, $1, 1, $2, array_fill('{}'::json, ARRAY[cardinality($2::text[])]), array_fill($3::bigint, ARRAY[cardinality($2::text[])]), NULL, false)", d.def.Name(), keys, deadline)
}

// claimSome claims, and checks that what it is given may run now.
func (m *sagaModel) claimSome() {
	if m.chance(3) && len(m.held) > 60 {
		return
	}
	for _, a := range m.mustClaim(1 + m.rand.IntN(60)) {
		m.held = append(m.held, &a)
		s := m.sagas[a.saga]
		i := slices.Index(s.names, a.step)
		m.say("claimed %s of %s, attempt %d", a.name(), a.saga, a.number)
		switch {
		case s.ended > 0 && !s.forced:
			m.Errorf("%s: %s runs, and it has ended", s.key, a.name())
		case a.undo:
			m.mayUndo(s, i)
			s.undoings[i] = true
		default:
			s.began[i] = true
			if s.ok[i] {
				m.Errorf("%s: %s runs after its success", s.key, a.name())
			}
			for _, k := range s.steps[i].needs {
				if s.steps[k].kind == saga.KindStep && !s.ok[k] {
					m.Errorf("%s: %s runs before %s has succeeded", s.key, a.name(), s.names[k])
				}
			}
		}
	}
}

// mayUndo checks that nothing of the saga runs, and that what stands on the step is undone.
func (m *sagaModel) mayUndo(s *modelSaga, i int) {
	if s.forced {
		return
	}
	for _, h := range m.held {
		if h.saga == s.key && !h.undo {
			m.Errorf("%s: %s is undone while %s runs", s.key, s.names[i], h.name())
		}
	}
	for k := range s.steps {
		if s.needs(k, i) && s.toUndo(k) && s.undone[k] == 0 {
			m.Errorf("%s: %s is undone before %s", s.key, s.names[i], s.names[k])
		}
	}
	if !s.toUndo(i) || s.undone[i] > 0 {
		m.Errorf("%s: %s is undone: began %t, refused %t, undone %d times", s.key, s.names[i], s.began[i], s.refused[i], s.undone[i])
	}
}

// needs tells whether step k needs i, directly or not.
func (d *modelDef) needs(k, i int) bool {
	return slices.ContainsFunc(d.steps[k].needs, func(n int) bool { return n == i || d.needs(n, i) })
}

// toUndo tells whether the step may have done something that has to be undone.
func (s *modelSaga) toUndo(i int) bool { return s.steps[i].undo && s.began[i] && !s.refused[i] }

// release takes attempts out of those held.
func (m *sagaModel) release(n int) []*attempt {
	m.rand.Shuffle(len(m.held), func(i, k int) { m.held[i], m.held[k] = m.held[k], m.held[i] })
	n = min(n, len(m.held))
	as := m.held[:n:n]
	m.held = slices.Clone(m.held[n:])
	return as
}

// endSome ends some attempts in one transaction, one of them twice at times.
func (m *sagaModel) endSome() { m.end(m.release(1 + m.rand.IntN(50))) }

func (m *sagaModel) end(as []*attempt) {
	if len(as) == 0 {
		return
	}
	var es []ending
	for _, a := range as {
		x := ending{attempt: *a, outcome: []string{"succeeded", "succeeded", "succeeded", "succeeded", "succeeded", "succeeded", "failed", "failed", "discarded", "refused", "snoozed", "returned"}[m.rand.IntN(12)]}
		if a.undo && x.outcome == "refused" {
			x.outcome = "succeeded"
		}
		if x.outcome == "succeeded" {
			x.result = fmt.Sprintf(`{"receipt":%d}`, a.job)
		}
		if m.chance(2) {
			x.delay = new(int64)
		}
		es = append(es, x)
	}
	counted, ended, err := m.settle(m.pool, es...)
	if err != nil {
		m.Fatalf("settle: %v", err)
	}
	for i, x := range es {
		m.say("%s of %s ended as %s: %s", x.name(), x.saga, x.outcome, counted[i])
		m.count(&x.attempt, x.outcome, counted[i])
	}
	m.over(ended)
}

// count notes how an attempt ended.
func (m *sagaModel) count(a *attempt, outcome, counted string) {
	s := m.sagas[a.saga]
	i := slices.Index(s.names, a.step)
	switch {
	case counted == "":
		m.Errorf("%s: attempt %d of %s was lost to its session", a.saga, a.number, a.name())
	case s.forced: // nobody hears of it any more
	case a.undo && counted == "succeeded":
		s.undone[i]++
	case a.undo:
	case counted == "succeeded":
		s.ok[i] = true
	case counted == "discarded" && outcome == "refused" && (!s.steps[i].behind || i == s.pivot):
		s.refused[i] = true
	case counted == "discarded" || counted == "cancelled":
		s.unknown[i] = true
	}
}

func (m *sagaModel) over(ended []string) {
	for _, key := range ended {
		m.say("%s has ended", key)
		if m.sagas[key].ended++; m.sagas[key].ended > 1 {
			m.Errorf("%s has ended twice", key)
		}
	}
}

// endInTx ends an attempt as the transaction of its handler does.
func (m *sagaModel) endInTx() {
	for _, a := range m.release(1) {
		var ended []string
		if err := m.pool.QueryRow(m.ctx, "SELECT ended FROM pawl.finish_tx(1::smallint, $1, $2, $3, $4, '{}')", m.session, a.claim, a.nonce, a.ordinal).Scan(&ended); err != nil {
			m.Fatalf("finish_tx: %v", err)
		}
		m.say("%s of %s succeeded in its transaction", a.name(), a.saga)
		m.count(a, "succeeded", "succeeded")
		m.over(ended)
	}
}

// endAll ends what is held yet: it is of sagas that were forced.
func (m *sagaModel) endAll() {
	for _, a := range m.held {
		if !m.sagas[a.saga].forced {
			m.Errorf("%s of %s runs, and it has ended", a.name(), a.saga)
		}
	}
	for len(m.held) > 0 {
		m.end(m.release(len(m.held)))
		m.dueSome()
		m.claimSome()
	}
}

// loseAll has the session die. What it held was lost; those that had no attempt left may have been done.
func (m *sagaModel) loseAll() {
	if m.chance(2) {
		m.die()
		m.say("the session died")
		m.held = nil
	}
}

// dueSome lets the time of retries come.
func (m *sagaModel) dueSome() {
	m.exec("UPDATE pawl.scheduled SET run_at = now() - interval '1 s' WHERE job_id % 3 <> $1", m.rand.IntN(3))
	m.exec("SELECT pawl.sweep_due(1::smallint, NULL, 1000)")
}

// timeSome lets the time of some timers come, and of some signals that are waited for.
func (m *sagaModel) timeSome() {
	m.exec("UPDATE pawl.saga_timer SET at = now() - interval '1 s' WHERE step > 0 AND saga_id % 5 = $1", m.rand.IntN(5))
	m.mustSweep()
}

// deadlineSome lets some deadlines come.
func (m *sagaModel) deadlineSome() {
	m.exec("UPDATE pawl.saga_timer SET at = now() - interval '1 s' WHERE step = 0 AND saga_id % 40 = $1", m.rand.IntN(40))
	m.mustSweep()
}

// allow fails the test unless the error has one of these codes, or is none.
func (m *sagaModel) allow(what, key string, err error, codes ...string) {
	m.Helper()
	m.say("%s %s: %v", what, key, err)
	if err != nil && !slices.Contains(codes, code(err)) {
		m.Errorf("%s %s: %v", what, key, err)
	}
}

func (m *sagaModel) sendSome() {
	for _, s := range m.some(10) {
		if len(s.signals) > 0 {
			name := s.signals[m.rand.IntN(len(s.signals))]
			m.allow("send "+name, s.key, m.send(m.pool, s.key, name), "PW023", "PW025")
		}
	}
}

func (m *sagaModel) cancelSome() {
	for _, s := range m.some(4) {
		m.allow("cancel", s.key, m.act(m.pool, s.key, "cancelled", nil), "PW022", "PW023")
	}
}

func (m *sagaModel) forceSome() {
	s := m.some(1)[0]
	if s.ended > 0 || m.state(s.key) == "succeeded" {
		return
	}
	err := m.act(m.pool, s.key, "forced", nil)
	m.allow("force", s.key, err, "PW023")
	if err == nil {
		s.forced = true
		s.ended++
	}
}

// operate does something about sagas that are stuck.
func (m *sagaModel) operate() {
	for _, key := range values[string](m.engine, `SELECT y.key FROM pawl.saga y CROSS JOIN LATERAL pawl.saga_now(1::smallint, y.id) x WHERE y.ns = 1 AND x.state = 'stuck' ORDER BY y.id`) {
		if m.chance(2) {
			continue
		}
		s := m.sagas[key]
		at := value[[]int32](m.engine, `SELECT ARRAY(SELECT i FROM generate_series(0, 61) i WHERE x.stuck >> i & 1 = 1) FROM pawl.saga y CROSS JOIN LATERAL pawl.saga_now(1::smallint, y.id) x
			WHERE y.ns = 1 AND y.key = $1`, key)
		i := int(at[m.rand.IntN(len(at))])
		undo := s.undoings[i]
		switch m.rand.IntN(4) {
		case 0, 1:
			m.allow("retry", key, m.act(m.pool, key, "retried", nil))
			for _, k := range at {
				s.unknown[k] = false
			}
		case 2:
			m.allow("skip "+s.names[i]+" of", key, m.act(m.pool, key, "skipped", s.names[i]))
			if undo {
				s.undone[i]++
			} else {
				s.ok[i] = true
			}
		case 3:
			err := m.act(m.pool, key, "failed", s.names[i])
			m.allow("fail "+s.names[i]+" of", key, err, "PW025")
			if (err == nil) != (i == s.pivot) {
				m.Errorf("%s: %s is not done, the pivot is step %d: %v", key, s.names[i], s.pivot, err)
			}
			s.refused[i] = s.refused[i] || err == nil
		}
	}
}

// prove checks that no saga is forgotten.
func (m *sagaModel) prove() {
	if f := m.forgotten(); len(f) > 0 {
		m.Errorf("forgotten: %v", f)
	}
}

// look finds out which sagas are open, and that those which were said to have ended have.
func (m *sagaModel) look() {
	m.open = values[string](m.engine, `SELECT y.key FROM pawl.saga y CROSS JOIN LATERAL pawl.saga_now(1::smallint, y.id) x WHERE y.ns = 1 AND x.state NOT IN ('succeeded', 'compensated', 'forced') ORDER BY y.id`)
	for _, key := range m.open {
		if m.sagas[key].ended > 0 {
			m.Errorf("%s has ended, and is open", key)
		}
	}
}

// modelEvent is a row of the history.
type modelEvent struct {
	Seq                                                            int
	What, State                                                    string
	Lined, Ok, Refused, Unknown, Signalled, Undoing, Undone, Stuck int64
	Step                                                           int
	JobSteps                                                       []int `json:"job_steps"`
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
	pivot := s.pivot >= 0 && s.ok[s.pivot]
	switch last.State {
	case "succeeded":
		for i := range s.steps {
			if s.steps[i].kind == saga.KindStep && !s.ok[i] || s.undoings[i] || s.undone[i] > 0 {
				bad("it succeeded: %s: ok %t, undone %d times", s.names[i], s.ok[i], s.undone[i])
			}
		}
	case "compensated":
		if pivot {
			bad("it is compensated, and its pivot has succeeded")
		}
		for i := range s.steps {
			if want := 0; s.undone[i] != want && !s.toUndo(i) || s.undone[i] != 1 && s.toUndo(i) {
				bad("%s: undone %d times: began %t, refused %t", s.names[i], s.undone[i], s.began[i], s.refused[i])
			}
		}
		if !slices.Contains(s.refused, true) && !slices.Contains(s.unknown, true) && !slices.ContainsFunc(es, func(e modelEvent) bool {
			return e.What == "cancelled" || e.What == "expired" || e.What == "refused" || e.What == "exhausted"
		}) {
			bad("it is compensated, and nothing went wrong")
		}
	case "forced":
		if !s.forced {
			bad("nobody forced it")
		}
	}
	return last.State
}

// checkHistory checks what must be so in every history.
func (m *sagaModel) checkHistory(s *modelSaga, es []modelEvent, bad func(format string, args ...any)) {
	m.Helper()
	final := []string{"succeeded", "compensated", "forced"}
	var before modelEvent
	undoable := int64(0)
	for i, x := range s.steps {
		if x.undo {
			undoable |= 1 << i
		}
	}
	for k, e := range es {
		if e.Seq != k+1 || slices.Contains(final, e.State) != (k == len(es)-1) {
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
		before = e
	}
}
