package saga_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const modelMovesMax = 20_000

var modelSeed = flag.Uint64("saga.seed", 0, "seed of TestEngineModel; 0: another each time")

// A sagaModel is what is known of sagas to those who run their steps, and not what the engine says of them.
type sagaModel struct {
	*engine
	modelVariant
	rand  *rand.Rand
	sagas map[string]*modelSaga
	keys  []string
	open  []string          // that have not ended
	held  []*attempt        // claimed
	holds map[string]string // semantic locks, and the saga that took each last
	ends  map[string]int    // of sagas by their last state, and of attempts that found a semantic lock "held"
	log   []string
}

// A modelVariant is what there is in a model's sagas.
type modelVariant struct {
	name        string
	definitions int
	started     int // sagas of each
	each        bool
	leaves      int // the first of the definitions, which are children of the others too
	many        int // units of a step; 0: few
}

var modelVariants = []modelVariant{
	{name: "steps", definitions: 16, started: 5},
	{name: "units", definitions: 12, started: 5, each: true},
	{name: "children", definitions: 12, started: 5, leaves: 3},
	{name: "all", definitions: 12, started: 5, each: true, leaves: 3},
	{name: "many units", definitions: 2, started: 1, many: 1100}, // more than one run of 1,024
}

// modelNoise is the number of moves after which nobody cancels any more and no session dies.
const modelNoise = 120

// TestEngineModel runs random sagas with random ends of steps, units and children, operators, deadlines, signals, semantic locks and deaths, and checks that each comes to an end that fits what happened.
func TestEngineModel(t *testing.T) {
	t.Parallel()
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-saga.seed=%d", seed)
	var mu sync.Mutex
	ends, ran := map[string]int{}, 0
	for i, v := range modelVariants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			m := &sagaModel{engine: newEngine(t), modelVariant: v, rand: rand.New(rand.NewPCG(seed, uint64(i))), sagas: map[string]*modelSaga{}, holds: map[string]string{}, ends: map[string]int{}}
			m.run()
			mu.Lock()
			defer mu.Unlock()
			for end, n := range m.ends {
				ends[end] += n
			}
			ran++
		})
	}
	t.Cleanup(func() {
		for _, end := range []string{"succeeded", "compensated", "forced", "held"} {
			if ran == len(modelVariants) && ends[end] == 0 {
				t.Errorf("nothing ended as %s: this run has proved little", end)
			}
		}
	})
}

// run has sagas begin and come to their ends.
func (m *sagaModel) run() {
	m.Cleanup(func() {
		if m.Failed() {
			m.Logf("the last moves:\n%s", strings.Join(m.log[max(0, len(m.log)-60):], "\n"))
		}
	})
	m.startAll()
	m.open = slices.Clone(m.keys)
	moves := []func(){
		m.claimSome, m.claimSome, m.claimSome, m.endSome, m.endSome, m.endSome, m.endInTx, m.endInTx, m.dueSome, m.timeSome, m.sendSome, m.operate, m.mustSweep,
	}
	noise := []func(){m.cancelSome, m.deadlineSome, m.loseAll, m.forceSome}
	if m.many > 0 {
		noise = []func(){m.loseAll}
	}
	n := 0
	for ; len(m.open) > 0 && !m.Failed(); n++ {
		if n == modelMovesMax {
			m.Fatalf("%d sagas have not ended, such as %s: %s", len(m.open), m.open[0], m.state(m.open[0]))
		}
		if n < modelNoise && n%4 == 0 {
			noise[m.rand.IntN(len(noise))]()
		}
		moves[m.rand.IntN(len(moves))]()
		if n%8 == 0 {
			m.look()
		}
		if n%32 == 0 {
			m.prove()
		}
	}
	if m.Failed() {
		return
	}
	m.mustSweep()
	m.prove()
	m.endAll()
	m.look()
	for _, key := range m.keys {
		m.ends[m.check(m.sagas[key])]++
	}
	m.Logf("%d sagas in %d moves: %v", len(m.keys), n, m.ends)
}

// startAll registers the definitions, and starts the sagas.
func (m *sagaModel) startAll() {
	m.Helper()
	var ds []*modelDef
	for i := range m.definitions {
		switch {
		case m.many > 0:
			ds = append(ds, m.defineMany(i, m.many, 2*i))
		case i < m.leaves:
			ds = append(ds, m.define(i, nil))
		default:
			ds = append(ds, m.define(i, ds[:m.leaves]))
		}
		m.startSome(ds[i])
	}
}

func (m *sagaModel) startSome(d *modelDef) {
	m.Helper()
	var keys []string
	for i := range m.started {
		keys = append(keys, fmt.Sprintf("%s:%d", d.def.Name(), i))
		m.newSaga(d, keys[i], nil)
	}
	deadline := 0
	if d.deadline {
		deadline = 3600_000
	}
	m.exec("SELECT pawl.saga_start(1::smallint, $1, 1, $2, array_fill('{}'::json, ARRAY[cardinality($2::text[])]), array_fill($3::bigint, ARRAY[cardinality($2::text[])]), NULL, false)", d.def.Name(), keys, deadline)
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
	for _, s := range m.some(2) {
		m.allow("cancel", s.key, m.act(m.pool, s.key, "cancelled", nil), "PW022", "PW023")
	}
}

// forceSome has an operator end a saga as it stands, and its children with it.
func (m *sagaModel) forceSome() {
	s := m.some(1)[0]
	if final(m.state(s.key)) {
		return
	}
	forced := []*modelSaga{s}
	for _, c := range s.children {
		if c != nil && !final(m.state(c.key)) {
			forced = append(forced, c)
		}
	}
	err := m.act(m.pool, s.key, "forced", nil)
	m.allow("force", s.key, err)
	if err == nil {
		for _, f := range forced {
			f.forced = true
			f.ended++
		}
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
			m.retry(s, at)
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

// retry has a saga try again what it is stuck at, of units those that have failed; a child that was compensated begins anew, as another, and one that was forced does not.
func (m *sagaModel) retry(s *modelSaga, at []int32) {
	err := m.act(m.pool, s.key, "retried", nil)
	m.allow("retry", s.key, err, "PW025")
	anew := func(k int32) bool {
		return s.children[k] != nil && !s.undoings[k] && m.state(s.children[k].key) == "compensated"
	}
	if (err == nil) != slices.ContainsFunc(at, func(k int32) bool { return s.children[k] == nil || s.undoings[k] || anew(k) }) {
		m.Errorf("%s: is retried at %v: %v", s.key, at, err)
	}
	for _, k := range at {
		s.unknown[k] = false
		if anew(k) {
			s.children[k] = nil
			s.again[k]++
		}
		for n := range s.units[k] {
			if s.units[k][n].state == unitBad && !s.undoings[k] {
				s.units[k][n].state = unitOut
			}
		}
	}
}

// prove checks that no saga is forgotten.
func (m *sagaModel) prove() {
	if f := m.forgotten(); len(f) > 0 {
		m.Errorf("forgotten: %v", f)
	}
}

// look finds out which sagas are open, and checks that those which were said to have ended have, and that semantic locks are of open ones.
func (m *sagaModel) look() {
	m.open = values[string](m.engine, `SELECT y.key FROM pawl.saga y CROSS JOIN LATERAL pawl.saga_now(1::smallint, y.id) x WHERE y.ns = 1 AND NOT pawl.saga_over(x.state) ORDER BY y.id`)
	for _, key := range m.open {
		if m.sagas[key].ended > 0 {
			m.Errorf("%s has ended, and is open", key)
		}
	}
	var want []string
	for name, key := range m.holds {
		if slices.Contains(m.open, key) {
			want = append(want, name+" "+key)
		}
	}
	slices.Sort(want)
	if got := values[string](m.engine, `SELECT h.name || ' ' || y.key FROM pawl.saga_hold h JOIN pawl.saga y ON y.ns = 1 AND y.id = h.saga_id WHERE h.ns = 1 ORDER BY h.name COLLATE "C"`); !slices.Equal(got, want) {
		m.Errorf("semantic locks: got %v, want %v", got, want)
	}
}
