package job_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// modelSteps is how many random operations the model test makes.
const modelSteps = 1500

// A model is what the engine should do, said in the plainest way: lines are lists, and jobs have a state.
type model struct {
	*engine
	rand     *rand.Rand
	sessions []int64
	queues   []int32
	lines    map[modelLine][]*modelPlace
	jobs     []*modelJob
	claims   []*modelClaim
	moved    []*modelPlace // in line since the last commit
	log      []string
}

type modelLine struct {
	queue    int // index
	priority int16
}

type modelJob struct {
	id          int64
	line        modelLine
	attempt     int16
	attemptsMax int16
	state       string
	placed      bool // it was in line before
	asked       bool // to cancel the running attempt
	place       *modelPlace
}

type modelPlace struct {
	job       *modelJob
	attempt   int16
	cancelled bool
}

type modelClaim struct {
	claimed
	line  modelLine
	open  []*modelJob // by ordinal; nil when ended
	ended bool        // its session has
}

var modelQueues = []string{"mail", "images"}

// TestEngineModel makes random operations on the engine and on the model, and compares what they answer and the states of all jobs.
func TestEngineModel(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	m := &model{engine: newEngine(t), rand: rand.New(rand.NewPCG(seed, 0)), lines: map[modelLine][]*modelPlace{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d, the last operations:\n%s", seed, strings.Join(m.log[max(0, len(m.log)-40):], "\n"))
		}
	})
	for _, name := range modelQueues {
		m.queues = append(m.queues, m.queue(name))
	}
	for range 3 {
		m.sessions = append(m.sessions, m.session())
	}
	steps := map[string]func(){
		"enqueue": m.enqueueOne, "batch": m.enqueueBatch, "schedule": m.schedule, "claim": m.claimSome, "claim more": m.claimSome, "finish": m.finishSome,
		"settle": m.settleOne, "settle more": m.settleOne, "cancel": m.cancelOne, "retry": m.retryOne, "die": m.dieOne, "due": m.due, "abandon": m.abandonOne, "renew": m.renewOne,
	}
	names := make([]string, 0, len(steps))
	for name := range steps {
		names = append(names, name)
	}
	slices.Sort(names) // the seed is to say it all
	for i := 0; i < modelSteps && !t.Failed(); i++ {
		name := names[m.rand.IntN(len(names))]
		steps[name]()
		if i%50 == 0 || i == modelSteps-1 {
			m.compare(m.jobs)
		} else if len(m.jobs) > 0 {
			m.compare([]*modelJob{m.jobs[m.rand.IntN(len(m.jobs))]})
		}
	}
	t.Logf("%d jobs, %d claims", len(m.jobs), len(m.claims))
}

func (m *model) say(format string, args ...any) { m.log = append(m.log, fmt.Sprintf(format, args...)) }

// compare checks the states of jobs.
func (m *model) compare(jobs []*modelJob) {
	m.Helper()
	ids := make([]int64, len(jobs))
	for i, j := range jobs {
		ids[i] = j.id
	}
	got := all[string](m.engine, m.pool, `SELECT coalesce(s.state::text, 'none') || ' ' || coalesce(s.attempt, 0)
		FROM unnest($1::bigint[]) WITH ORDINALITY j(id, i) CROSS JOIN LATERAL pawl.job_state(1::smallint, j.id) s ORDER BY j.i`, ids)
	for i, j := range jobs {
		if want := fmt.Sprintf("%s %d", j.state, j.attempt); got[i] != want {
			m.Errorf("job %d: got %s, want %s", j.id, got[i], want)
		}
	}
}

// commit puts what a transaction has moved in line: in the order of the ids.
func (m *model) commitMoved() {
	slices.SortFunc(m.moved, func(a, b *modelPlace) int { return int(a.job.id - b.job.id) })
	for _, p := range m.moved {
		m.lines[p.job.line] = append(m.lines[p.job.line], p)
	}
	m.moved = nil
}

func (m *model) inLine(j *modelJob) {
	j.state, j.placed, j.asked = "available", true, false
	j.place = &modelPlace{job: j, attempt: j.attempt}
	m.moved = append(m.moved, j.place)
}

func (m *model) someLine() modelLine {
	return modelLine{m.rand.IntN(len(m.queues)), []int16{1, 2, 4}[m.rand.IntN(3)]}
}

func (m *model) add(id int64, l modelLine, attemptsMax int16) *modelJob {
	j := &modelJob{id: id, line: l, attempt: 1, attemptsMax: attemptsMax}
	m.jobs = append(m.jobs, j)
	return j
}

func (m *model) enqueueOne() {
	l, most := m.someLine(), int16(1+m.rand.IntN(4))
	id := get[int64](m.engine, m.pool, "SELECT pawl.enqueue(1::smallint, $1, 'test', '{}', $2, now() - interval '1 s', $3, NULL, 3600000)", modelQueues[l.queue], l.priority, most)
	m.say("enqueue %d on %v, at most %d attempts", id, l, most)
	m.inLine(m.add(id, l, most))
	m.commitMoved()
}

func (m *model) enqueueBatch() {
	l, most, n := m.someLine(), int16(1+m.rand.IntN(4)), 1+m.rand.IntN(8)
	first := get[int64](m.engine, m.pool, "SELECT first_id FROM pawl.enqueue_many(1::smallint, $1, 'test', array_fill('{}'::json, ARRAY[$2::int]), $3, NULL, $4, NULL, 3600000)",
		modelQueues[l.queue], n, l.priority, most)
	m.say("enqueue %d from %d on %v, at most %d attempts", n, first, l, most)
	for i := range n {
		m.inLine(m.add(first+int64(i), l, most))
	}
	m.commitMoved()
}

func (m *model) schedule() {
	l, most := m.someLine(), int16(1+m.rand.IntN(4))
	id := get[int64](m.engine, m.pool, "SELECT pawl.enqueue(1::smallint, $1, 'test', '{}', $2, now() + interval '1 h', $3, NULL, 3600000)", modelQueues[l.queue], l.priority, most)
	m.say("schedule %d on %v, at most %d attempts", id, l, most)
	m.add(id, l, most).state = "scheduled"
}

func (m *model) claimSome() {
	l, limit, s := m.someLine(), 1+m.rand.IntN(6), m.sessions[m.rand.IntN(len(m.sessions))]
	c, err := m.tryClaimLine(m.pool, s, m.queues[l.queue], l.priority, limit)
	if err != nil {
		m.Fatalf("claim: %v", err)
	}
	m.say("claim %d by %d: at most %d of %v: %v", c.id, s, limit, l, c.jobs)
	line := m.lines[l]
	n := min(limit, len(line))
	if (c.id != 0) != (n > 0) {
		m.Errorf("claim: got id %d with %d places in line", c.id, n)
	}
	mc := &modelClaim{claimed: c, line: l}
	for _, p := range line[:n] {
		if !p.cancelled {
			mc.open = append(mc.open, p.job)
			p.job.state = "running"
		}
	}
	m.lines[l] = line[n:]
	same := len(mc.open) == len(c.jobs)
	for i := 0; same && i < len(c.jobs); i++ {
		same = mc.open[i].id == c.jobs[i] && mc.open[i].attempt == c.attempts[i]
	}
	if !same {
		m.Errorf("claim of %v: got jobs %v, attempts %v, want %d others", l, c.jobs, c.attempts, len(mc.open))
	}
	if c.id != 0 {
		m.claims = append(m.claims, mc)
	}
}

// someClaim gives a claim, mostly a late one, or nil.
func (m *model) someClaim() *modelClaim {
	if len(m.claims) == 0 {
		return nil
	}
	return m.claims[len(m.claims)-1-m.rand.IntN(min(len(m.claims), 12))]
}

func (m *model) finishSome() {
	c := m.someClaim()
	if c == nil {
		return
	}
	var ask, lost []string
	for i := 0; i <= len(c.open); i++ { // one too many
		if m.rand.IntN(3) == 0 {
			continue
		}
		ask = append(ask, fmt.Sprintf("[%d,%d]", i, i))
		if c.ended || i == len(c.open) || c.open[i] == nil {
			lost = append(lost, fmt.Sprintf("[%d,%d]", i, i))
			continue
		}
		c.open[i].state, c.open[i] = "succeeded", nil
	}
	if len(ask) == 0 {
		return
	}
	want := get[string](m.engine, m.pool, "SELECT $1::int4multirange::text", "{"+strings.Join(lost, ",")+"}")
	got := m.finish(m.pool, c.claimed, "{"+strings.Join(ask, ",")+"}")
	m.say("finish %v of claim %d: lost %s", ask, c.id, got)
	if got != want {
		m.Errorf("finish %v of claim %d: got lost %s, want %s", ask, c.id, got, want)
	}
}

// end does what the end of an attempt does to its job, and gives the outcome that counts.
func (m *model) end(c *modelClaim, i int, outcome string, delayed bool) string {
	j := c.open[i]
	c.open[i] = nil
	goesOn := outcome == "failed" || outcome == "lost" || outcome == "snoozed" || outcome == "returned"
	switch {
	case goesOn && j.asked:
		outcome, goesOn = "cancelled", false
	case (outcome == "failed" || outcome == "lost") && j.attempt >= j.attemptsMax:
		outcome, goesOn = "discarded", false
	case outcome == "failed" || outcome == "lost":
		j.attempt++
	}
	j.asked = false
	switch {
	case !goesOn:
		j.state = outcome
	case delayed:
		j.state = "retrying"
	default:
		m.inLine(j)
	}
	return outcome
}

func (m *model) settleOne() {
	c := m.someClaim()
	if c == nil {
		return
	}
	i := m.rand.IntN(len(c.open) + 1)
	outcome := []string{"succeeded", "failed", "failed", "snoozed", "returned", "lost", "discarded", "cancelled"}[m.rand.IntN(8)]
	delays := []*int64{nil, new(int64), new(int64)}
	*delays[2] = 3600_000
	delay := delays[m.rand.IntN(3)]
	got, want := m.settle(m.pool, c.claimed, i, outcome, delay), ""
	if !c.ended && i < len(c.open) && c.open[i] != nil {
		want = m.end(c, i, outcome, delay == delays[2] || delay == nil && outcome == "failed")
	}
	m.commitMoved()
	m.say("settle ordinal %d of claim %d as %s: %s", i, c.id, outcome, got)
	if got != want {
		m.Errorf("settle ordinal %d of claim %d as %s: got %q, want %q", i, c.id, outcome, got, want)
	}
}

func (m *model) cancelOne() {
	if len(m.jobs) == 0 {
		return
	}
	j := m.jobs[len(m.jobs)-1-m.rand.IntN(min(len(m.jobs), 30))]
	got, want := m.cancel(m.pool, j.id), j.state
	m.say("cancel %d: %s", j.id, got)
	switch j.state {
	case "available":
		j.place.cancelled, j.state = true, "cancelled"
	case "scheduled", "retrying":
		j.state = "cancelled"
	case "running":
		j.asked = true
	}
	if got != want {
		m.Errorf("cancel of job %d: got %s, want %s", j.id, got, want)
	}
}

func (m *model) retryOne() {
	if len(m.jobs) == 0 {
		return
	}
	j := m.jobs[len(m.jobs)-1-m.rand.IntN(min(len(m.jobs), 30))]
	got, want := m.retry(m.pool, j.id), j.state
	m.say("retry %d: %s", j.id, got)
	switch j.state {
	case "scheduled", "retrying":
		m.inLine(j)
	case "succeeded", "discarded", "cancelled":
		j.attempt++
		m.inLine(j)
	}
	m.commitMoved()
	if got != want {
		m.Errorf("retry of job %d: got %s, want %s", j.id, got, want)
	}
}

// giveBack ends what a claim has open.
func (m *model) giveBack(c *modelClaim, outcome string) (n int) {
	for i, j := range c.open {
		if j != nil {
			m.end(c, i, outcome, false)
			n++
		}
	}
	m.commitMoved()
	return n
}

func (m *model) dieOne() {
	if m.rand.IntN(3) > 0 {
		return
	}
	k, want := m.rand.IntN(len(m.sessions)), 0
	for _, c := range m.claims {
		if c.session == m.sessions[k] {
			want += m.giveBack(c, "lost")
			c.ended = true
		}
	}
	got := m.die(m.sessions[k])
	m.say("session %d dies: %d jobs", m.sessions[k], got)
	if got != want {
		m.Errorf("rescue of session %d: got %d jobs, want %d", m.sessions[k], got, want)
	}
	m.sessions[k] = m.session()
}

func (m *model) abandonOne() {
	c := m.someClaim()
	if c == nil || c.ended || m.rand.IntN(2) > 0 {
		return
	}
	want := m.giveBack(c, "returned")
	got := get[int](m.engine, m.pool, "SELECT pawl.abandon(1::smallint, $1, $2, $3, $4)", c.session, c.nonce, m.queues[c.line.queue], c.line.priority)
	m.say("abandon claim %d: %d", c.id, got)
	if got != want {
		m.Errorf("abandon of claim %d: got %d jobs, want %d", c.id, got, want)
	}
}

func (m *model) renewOne() {
	s := m.sessions[m.rand.IntN(len(m.sessions))]
	if alive, _ := m.renew(m.pool, s); !alive {
		m.Errorf("heartbeat of session %d: got not alive", s)
	}
	m.say("session %d beats", s)
}

// due lets the time of some jobs come.
func (m *model) due() {
	var ids []int64
	for _, j := range m.jobs {
		if (j.state == "scheduled" || j.state == "retrying") && m.rand.IntN(3) == 0 {
			ids = append(ids, j.id)
			m.inLine(j)
		}
	}
	m.commitMoved()
	// The others stay behind, however slow this run is.
	m.exec(m.pool, "UPDATE pawl.scheduled SET run_at = now() + CASE WHEN job_id = ANY ($1) THEN interval '-1 s' ELSE interval '1 hour' END", ids)
	got := get[int](m.engine, m.pool, "SELECT moved FROM pawl.sweep_due(1::smallint, NULL, 1000)")
	m.say("due %v: %d", ids, got)
	if got != len(ids) {
		m.Errorf("due: got %d jobs moved, want %d", got, len(ids))
	}
}
