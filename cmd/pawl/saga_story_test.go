package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
)

var update = flag.Bool("update", false, "write testdata/saga anew")

// sagaBegin is when the sagas of these tests start.
var sagaBegin = time.Date(2027, 1, 31, 2, 50, 0, 0, time.UTC)

// step makes a step; of is what it waits for.
func step(name string, state saga.StepState, of ...string) saga.StepStory {
	return saga.StepStory{Name: name, Kind: "step", Queue: "default", After: of, State: state, Served: true}
}

func failed(st saga.StepStory, err string) saga.StepStory { st.Error = err; return st }
func gave(st saga.StepStory, output string) saga.StepStory {
	st.Output = json.RawMessage(output)
	return st
}
func on(st saga.StepStory, queue string) saga.StepStory { st.Queue = queue; return st }

// happened makes an event, so long after the start.
func happened(after time.Duration, what, step string, state saga.State, detail, actor string) saga.Event {
	e := saga.Event{At: sagaBegin.Add(after), What: what, Step: step, State: state, Actor: actor}
	if detail != "" {
		e.Detail = json.RawMessage(detail)
	}
	return e
}

func checkoutSaga(state saga.State, steps []saga.StepStory, events ...saga.Event) *sagaStory {
	s := &saga.Story{
		Summary: saga.Summary{ID: "checkout:4711", Name: "checkout", Version: 2, State: state, StartedAt: sagaBegin, At: sagaBegin}, StartedBy: "shop@web-1", Input: json.RawMessage(`{"order": "4711", "cents": 1999}`),
		Steps: steps, Events: append([]saga.Event{happened(0, "started", "", saga.StateRunning, "", "")}, events...),
	}
	last := saga.StateRunning
	for i := range s.Events {
		s.Events[i].Seq = i + 1
		if e := s.Events[i]; e.State != last {
			s.At, last = e.At, e.State
		}
	}
	return &sagaStory{Story: s, page: page{now: sagaBegin.Add(17 * time.Minute), zone: time.UTC, width: pageWidth}}
}

// TestSagaStory compares what is printed of sagas with testdata/saga; "go test -run TestSagaStory -update" writes it.
func TestSagaStory(t *testing.T) {
	t.Parallel()
	for name, s := range sagaStories() {
		t.Run(name, func(t *testing.T) { golden(t, filepath.Join("testdata", "saga", name+".txt"), s.text(), s.width) })
	}
}

func pivot(st saga.StepStory) saga.StepStory { st.Pivot = true; return st }

// diamond is reserve, then charge and label, then ship.
func diamond(reserve, charge, label, ship saga.StepState) []saga.StepStory {
	return []saga.StepStory{
		gave(on(step("reserve", reserve), "inventory"), `{"shelf": 7}`), on(step("charge", charge, "reserve"), "payments"),
		gave(on(step("label", label, "reserve"), "shipping"), `"L-9"`), on(pivot(step("ship", ship, "charge", "label")), "shipping"),
	}
}

func sagaStories() map[string]*sagaStory {
	const run, back = saga.StateRunning, saga.StateCompensating
	ms := time.Millisecond
	tried := func(state job.State, attempt int, at time.Duration, err string) *job.Story {
		j := &job.Story{Summary: job.Summary{Queue: "inventory-undo", State: state, Attempt: attempt, MaxAttempts: 25, At: sagaBegin.Add(17*time.Minute + at)}}
		j.Attempts = []job.Attempt{{Number: 1, Host: "inv-2", PID: 4711}, {Number: 2, Host: "inv-2", PID: 4711, Detail: json.RawMessage(fmt.Sprintf(`{"error": %q}`, err))}}
		return j
	}

	chain := checkoutSaga(saga.StateSucceeded, []saga.StepStory{
		gave(step("reserve", saga.StepSucceeded), `{"shelf": 7}`), gave(pivot(step("charge", saga.StepSucceeded, "reserve")), `{"receipt": 17}`), step("ship", saga.StepSucceeded, "charge"),
	}, happened(9*ms, "succeeded", "reserve", run, `{"shelf": 7}`, ""), happened(1500*ms, "succeeded", "charge", run, `{"receipt": 17}`, ""),
		happened(25*time.Hour, "succeeded", "ship", saga.StateSucceeded, "null", ""))
	chain.now = sagaBegin.Add(49 * time.Hour)

	names := []saga.StepStory{step("begin", saga.StepSucceeded)}
	var of []string
	for i := range 40 {
		st := gave(step(fmt.Sprintf("a-branch-whose-name-is-really-long-%d", i), saga.StepSucceeded, "begin"), fmt.Sprintf(`{"text": %q}`, strings.Repeat("long ", 40)))
		if i%7 == 3 {
			st = step(st.Name, saga.StepRunning, "begin")
			st.JobID, st.Attempt, st.MaxAttempts = int64(100+i), 1, 5
		}
		names, of = append(names, st), append(of, st.Name)
	}
	wide := checkoutSaga(run, append(names, step("end", saga.StepWaiting, of...)), happened(3*ms, "succeeded", "begin", run, "", ""))
	wide.jobs = map[int64]*job.Story{103: tried(job.StateAvailable, 1, -9*time.Second, ""), 110: tried(job.StateRunning, 1, -3*time.Second, "")}
	wide.width = 80

	steps := diamond(saga.StepUndoing, saga.StepRefused, saga.StepUndone, saga.StepWaiting)
	steps[0].UndoJobID, steps[0].Attempt, steps[0].MaxAttempts = 1000, 4, 25
	steps[1] = failed(steps[1], "the card is declined")
	compensating := checkoutSaga(back, steps, happened(9*ms, "succeeded", "reserve", run, `{"shelf": 7}`, ""), happened(14*ms, "succeeded", "label", run, `"L-9"`, ""),
		happened(16*ms, "refused", "charge", back, `{"error": "the card is declined", "refused": true}`, ""), happened(18*ms, "undone", "label", back, "", ""))
	compensating.jobs = map[int64]*job.Story{1000: tried(job.StateRetrying, 4, 8*time.Second, "canceling statement due to lock timeout")}

	steps = diamond(saga.StepSucceeded, saga.StepStuck, saga.StepUndone, saga.StepRefused)
	steps[1] = failed(steps[1], "post https://bank.example/refunds: dial tcp 10.0.0.7:443: connect: connection refused")
	steps[1].JobID, steps[1].UndoJobID, steps[1].Attempt, steps[1].MaxAttempts = 991, 994, 25, 25
	steps[3].Error = "nothing goes to this address"
	stuck := checkoutSaga(saga.StateStuck, steps,
		happened(9*ms, "succeeded", "reserve", run, `{"shelf": 7}`, ""), happened(12*ms, "succeeded", "charge", run, "", ""), happened(14*ms, "succeeded", "label", run, `"L-9"`, ""),
		happened(16*ms, "refused", "ship", back, `{"error": "nothing goes to this address", "refused": true}`, ""), happened(18*ms, "undone", "label", back, "", ""),
		happened(5*time.Minute, "undo_exhausted", "charge", saga.StateStuck, `{"error": "post https://bank.example/refunds: dial tcp 10.0.0.7:443: connect: connection refused"}`, ""),
		happened(7*time.Minute, "retried", "", back, `{"reason": "the bank is back"}`, "mia"),
		happened(9*time.Minute, "undo_exhausted", "charge", saga.StateStuck, `{"error": "post https://bank.example/refunds: dial tcp 10.0.0.7:443: connect: connection refused"}`, ""))
	stuck.Events[0].Jobs, stuck.Events[1].Jobs = saga.JobIDs{990}, saga.JobIDs{991, 992}

	steps = diamond(saga.StepSucceeded, saga.StepSucceeded, saga.StepSucceeded, saga.StepStuck)
	steps[3] = failed(steps[3], "no route to the carrier")
	steps[3].JobID, steps[3].Attempt, steps[3].MaxAttempts, steps[3].Served = 77, 5, 5, false
	steps = append(steps, step("thank", saga.StepWaiting, "ship"), step("bill", saga.StepWaiting, "thank"))
	atPivot := checkoutSaga(saga.StateStuck, steps, happened(time.Second, "exhausted", "ship", saga.StateStuck, `{"error": "no route to the carrier"}`, ""))
	atPivot.ID, atPivot.flags = "it's 5", " --namespace 7"

	each := pivot(step("parcels", saga.StepStuck, "reserve"))
	each.Kind, each.Units, each.UnitsOver, each.JobID, each.Attempt, each.MaxAttempts = saga.KindEach, 10_000, 10_000, 55, 1, 5
	units := checkoutSaga(saga.StateStuck, []saga.StepStory{step("reserve", saga.StepSucceeded), failed(each, "too heavy")}, happened(ms, "succeeded", "reserve", run, "", ""),
		happened(2*ms, "expanded", "parcels", run, "", ""), happened(30*ms, "units", "parcels", run, `{"over": 4000, "outputs": {"0": 1}, "failed": [7, 8], "error": "too heavy"}`, ""),
		happened(60*ms, "units", "parcels", run, `{"over": 5000, "failed": [], "error": null}`, ""), happened(90*ms, "units", "parcels", saga.StateStuck, `{"over": 1000, "failed": [], "error": null}`, ""))

	child := step("bill", saga.StepRunning)
	child.Kind, child.Child, child.Served = saga.KindChild, "checkout:4711/bill", false
	signal := step("approval", saga.StepRunning)
	until := sagaBegin.Add(20 * time.Minute)
	signal.Kind, signal.Queue, signal.Until = saga.KindSignal, "", &until
	timer := signal
	timer.Name, timer.Kind = "cool-down", saga.KindTimer
	lonely := step("notify", saga.StepRunning)
	lonely.JobID, lonely.Attempt, lonely.MaxAttempts, lonely.Served = 9, 1, 5, false
	later := step("ship", saga.StepWaiting, "bill", "approval", "cool-down", "notify")
	later.Served = false
	waiting := checkoutSaga(run, []saga.StepStory{child, signal, timer, lonely, later}, happened(4*ms, "held", "", run, `{"lock": "account:7"}`, ""), happened(9*ms, "expanded", "bill", run, "", ""))
	waiting.children = map[string]sagaChild{child.Child: {saga.StateRunning, "checkout:4711/bill/mail"}}
	waiting.jobs = map[int64]*job.Story{9: {Summary: job.Summary{Queue: "default", State: job.StateAvailable, At: sagaBegin}}}
	waiting.Held, waiting.Deadline, waiting.Headers, waiting.Parent = []string{"account:7"}, &until, map[string]string{"traceparent": "00-1"}, "month:2027-01"

	steps = diamond(saga.StepSucceeded, saga.StepUnknown, saga.StepUndone, saga.StepWaiting)
	forced := checkoutSaga(saga.StateForced, steps, happened(ms, "cancelled", "", back, `{"reason": "the customer called"}`, "mia"), happened(time.Minute, "undone", "label", back, "", ""),
		happened(2*time.Minute, "forced", "", saga.StateForced, `{"reason": "the bank has closed"}`, "noor"))

	hostile := checkoutSaga(run, []saga.StepStory{failed(step("a", saga.StepRunning), "a\x1b[31m\nb")}, happened(0, "retried", "", run, `{"reason": "a\u001b[31m\nb"}`, "m\x1bia"))
	hostile.ID, hostile.StartedBy, hostile.Input = "a\x1b[31m\nb", "\x1b", json.RawMessage(`"\x1b"`)

	due := sagaBegin.Add(5 * time.Minute)
	timer.Until = &due
	late := on(step("late", saga.StepUndoing), "inventory")
	late.UndoJobID, late.Attempt, late.MaxAttempts = 1000, 2, 25
	overdue := checkoutSaga(back, []saga.StepStory{timer, late, step("never", saga.StepWaiting, "late")}, happened(time.Second, "expired", "", back, "null", ""))
	overdue.jobs = map[int64]*job.Story{1000: tried(job.StateRetrying, 2, -11*time.Minute, "out of order")}

	var all []saga.StepStory
	for i := range 8 {
		st := failed(step(fmt.Sprintf("s%d", i), saga.StepStuck), "full")
		st.UndoJobID = int64(1 + i)
		all = append(all, st)
	}
	many := checkoutSaga(saga.StateStuck, all, happened(0, "cancelled", "", back, `{"reason": "x"}`, "mia"))
	for i := range 300 {
		many.Events = append(many.Events, happened(time.Duration(i)*time.Minute, "undo_exhausted", fmt.Sprintf("s%d", i%8), saga.StateStuck, `{"error": "full"}`, ""))
	}
	many.At, many.LeftOut = sagaBegin, 12_345

	below := failed(step("bill", saga.StepStuck), "saga checkout:4711/bill: forced")
	below.Kind, below.Child, below.JobID, below.Attempt, below.MaxAttempts = saga.KindChild, "checkout:4711/bill", 12, 1, 25
	silent := failed(step("approval", saga.StepStuck, "charge"), "the signal did not come in time")
	silent.Kind, silent.Queue = saga.KindSignal, ""
	gone := checkoutSaga(saga.StateStuck, []saga.StepStory{pivot(step("charge", saga.StepSucceeded)), func() saga.StepStory { below.After = []string{"charge"}; return below }(), silent},
		happened(ms, "succeeded", "charge", run, "", ""), happened(2*ms, "expanded", "bill", run, "", ""), happened(time.Minute, "exhausted", "bill", saga.StateStuck, `{"error": "saga checkout:4711/bill: forced"}`, ""))
	gone.children = map[string]sagaChild{below.Child: {state: saga.StateForced}}

	again := below
	again.Error = "saga checkout:4711/bill: compensated"
	anew := checkoutSaga(saga.StateStuck, []saga.StepStory{pivot(step("charge", saga.StepSucceeded)), again},
		happened(ms, "succeeded", "charge", run, "", ""), happened(2*ms, "expanded", "bill", run, "", ""), happened(time.Minute, "refused", "bill", saga.StateStuck, `{"error": "saga checkout:4711/bill: compensated"}`, ""))
	anew.children = map[string]sagaChild{again.Child: {state: saga.StateCompensated}}

	prompt := on(step("reserve", saga.StepUndoing), "inventory") // due a moment ago, which is not late
	prompt.UndoJobID, prompt.Attempt, prompt.MaxAttempts = 1000, 2, 25
	soon := checkoutSaga(back, []saga.StepStory{prompt}, happened(time.Second, "expired", "", back, "null", ""))
	soon.jobs = map[int64]*job.Story{1000: tried(job.StateRetrying, 2, -2*time.Second, "out of order")}

	return map[string]*sagaStory{
		"overdue": overdue, "many": many, "gone": gone, "anew": anew, "soon": soon,
		"chain": chain, "wide": wide, "compensating": compensating, "stuck": stuck, "pivot": atPivot, "each": units, "waiting": waiting, "forced": forced, "hostile": hostile,
	}
}

// golden compares a page with a file, or writes it.
func golden(t *testing.T, file, got string, width int) {
	t.Helper()
	if strings.Contains(got, "\x1b") {
		t.Errorf("an escape sequence goes to the terminal: %q", got)
	}
	for line := range strings.Lines(got) {
		if n := utf8.RuneCountInString(line) - 1; n > width && !strings.HasPrefix(line, "      pawl ") {
			t.Errorf("a line of %d characters, more than %d: %s", n, width, line)
		}
	}
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
