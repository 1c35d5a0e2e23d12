package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
)

const (
	// sagaNameMax is how much of a step's name is drawn, and sagaQueueMax of a queue's.
	sagaNameMax, sagaQueueMax = 32, 16
	// sagaNoteMin is the least that is left for what a step came to.
	sagaNoteMin = 24
)

// sagaStory turns a saga's story into text: what a person must do about it, its steps as a graph, what is known of it, and what happened. It asks nobody.
type sagaStory struct {
	*saga.Story
	page

	jobs     map[int64]*job.Story // those that run or wait, as far as they are known
	children map[string]sagaChild // by their ids
	advised  int                  // steps
}

// sagaChild is a saga that is a step of another.
type sagaChild struct {
	state saga.State
	stuck string // the one that is stuck, this or one below it; "": none
}

// text writes it all.
func (s *sagaStory) text() string {
	s.head()
	s.advice()
	s.line("")
	s.steps()
	s.line("")
	s.facts()
	s.timeline()
	return s.out.String()
}

func (s *sagaStory) head() {
	since := "for " + span(s.now.Sub(s.At))
	if s.State.Final() {
		since = ago(s.now, s.At)
	}
	s.line("saga %s  %s version %d  %s %s", s.ID, s.Name, s.Version, loud(s.State), since)
}

// loud writes the state that needs a person so that it is seen.
func loud[S ~string](state S) string {
	if state == S(saga.StateStuck) {
		return strings.ToUpper(string(state))
	}
	return string(state)
}

// stepMarks stand for the steps in the graph.
var stepMarks = map[saga.StepState]rune{
	saga.StepWaiting: '·', saga.StepRunning: '▸', saga.StepSucceeded: '✓', saga.StepRefused: '✗', saga.StepUnknown: '?', saga.StepStuck: '!', saga.StepUndoing: '◂',
	saga.StepUndone: '↶', saga.StepSkipped: '»',
}

// steps draws the graph, and beside each step how it stands.
func (s *sagaStory) steps() {
	at := map[string]int{}
	after, marks := make([][]int, len(s.Steps)), make([]rune, len(s.Steps))
	names, queues := len("STEP"), len("QUEUE")
	for i, st := range s.Steps {
		for _, name := range st.After {
			if p, ok := at[name]; ok {
				after[i] = append(after[i], p)
			}
		}
		at[st.Name] = i
		marks[i] = '?'
		if m, ok := stepMarks[st.State]; ok {
			marks[i] = m
		}
		names = max(names, utf8.RuneCountInString(stepLabel(st)))
		queues = max(queues, utf8.RuneCountInString(s.queueOf(st)))
	}
	rows := layGraph(after, marks)
	art := 0
	if len(rows) > 0 {
		art = utf8.RuneCountInString(rows[0].art)
	}
	queues = min(queues, sagaQueueMax)
	fixed := 2 + art + 2 + 2 + len("succeeded") + 2 + queues + 2 + len("ATTEMPT") + 2
	names = min(names, sagaNameMax, max(12, s.width-fixed-sagaNoteMin))
	row := func(art, name, state, queue, attempt, note string) {
		s.line("  %s  %s  %-9s  %s  %-7s  %s", art, pad(abridge(name, names), names), state, pad(abridge(queue, queues), queues), attempt, note)
	}
	row(strings.Repeat(" ", art), "STEP", "STATE", "QUEUE", "ATTEMPT", "")
	for _, r := range rows {
		switch {
		case r.step >= 0:
			st := s.Steps[r.step]
			row(r.art, stepLabel(st), s.word(st), s.queueOf(st), attemptsOf(st), s.note(st))
		case r.after != nil:
			var of []string
			for _, p := range r.after {
				of = append(of, s.Steps[p].Name)
			}
			s.line("  %s  after %s:", r.art, strings.Join(of, ", "))
		default:
			s.line("  %s", r.art)
		}
	}
}

// stepLabel is a step's name, and what is special about it.
func stepLabel(st saga.StepStory) string {
	if st.Pivot {
		return st.Name + " (pivot)"
	}
	return st.Name
}

// word is the state of a step. What has not begun may never.
func (s *sagaStory) word(st saga.StepStory) string {
	if st.State == saga.StepWaiting && !s.goesForward() {
		return "not begun"
	}
	return string(st.State)
}

// job is what the step waits for, nil if that is no job, or none that is known.
func (s *sagaStory) job(st saga.StepStory) *job.Story {
	if j := s.jobs[jobOf(st)]; j != nil && !j.State.Final() {
		return j
	}
	return nil
}

// queueOf is where a step's job waits: its compensation may have a queue of its own.
func (s *sagaStory) queueOf(st saga.StepStory) string {
	if j := s.job(st); j != nil {
		return j.Queue
	}
	return cmp.Or(st.Queue, "-")
}

// attemptsOf tells how often a step was tried, or its compensation; not of units and children, which are tried on their own.
func attemptsOf(st saga.StepStory) string {
	if st.Attempt == 0 || st.UndoJobID == 0 && (st.Units > 0 || st.Child != "") {
		return "-"
	}
	return fmt.Sprintf("%d/%d", st.Attempt, st.MaxAttempts)
}

// note says on one line what a step waits for or came to.
func (s *sagaStory) note(st saga.StepStory) string {
	var parts []string
	if s.unserved(st) {
		parts = append(parts, "no worker serves it")
	}
	if st.Units > 0 {
		parts = append(parts, fmt.Sprintf("%s of %s over", thousands(st.UnitsOver), plural(st.Units, "unit")))
	}
	if st.Child != "" {
		parts = append(parts, "saga "+st.Child+" "+loud(s.children[st.Child].state))
	}
	if st.Until != nil && s.overdue(*st.Until) {
		parts = append(parts, "was due "+ago(s.now, *st.Until))
	} else if st.Until != nil {
		parts = append(parts, untilWords[st.Kind]+s.due(*st.Until))
	} else if st.Kind == saga.KindSignal && st.State == saga.StepRunning {
		parts = append(parts, "waits for its signal")
	}
	why := st.Error
	if j := s.job(st); j != nil {
		parts = append(parts, s.progress(j))
		why = cmp.Or(lastError(j), why)
	}
	switch {
	case why != "":
		parts = append(parts, oneLine(why))
	case len(st.Output) > 0 && string(st.Output) != "null":
		parts = append(parts, inline(st.Output))
	}
	return strings.Join(parts, "; ")
}

// untilWords say what comes at the time that a step waits for.
var untilWords = map[saga.Kind]string{saga.KindTimer: "over ", saga.KindSignal: "waits for its signal, and fails "}

// unserved tells that a step which has a job, or will have one, has no worker for it.
func (s *sagaStory) unserved(st saga.StepStory) bool {
	switch st.State {
	case saga.StepRunning, saga.StepUndoing, saga.StepStuck:
		return !st.Served && st.Child == ""
	case saga.StepWaiting:
		return !st.Served && s.goesForward()
	case saga.StepSucceeded, saga.StepRefused, saga.StepUnknown, saga.StepUndone, saga.StepSkipped:
	}
	return false
}

// goesForward tells that steps which have not begun will.
func (s *sagaStory) goesForward() bool {
	return s.State == saga.StateRunning || s.State == saga.StateStuck && !slices.ContainsFunc(s.Events, func(e saga.Event) bool { return e.State == saga.StateCompensating })
}

// lastError is what the newest attempt that failed ended with.
func lastError(j *job.Story) string {
	for _, at := range slices.Backward(j.Attempts) {
		if text := textOf(at.Detail, "error"); text != "" {
			return text
		}
	}
	return ""
}

// facts are what is known of the saga as a whole.
func (s *sagaStory) facts() {
	s.tabbed(func(field func(cells ...string)) {
		field("started", s.moment(s.StartedAt))
		if s.StartedBy != "" {
			field("by", s.StartedBy)
		}
		if s.Deadline != nil {
			field("deadline", s.moment(*s.Deadline))
		}
		if s.Parent != "" {
			field("part of", "saga "+s.Parent+", which waits for it")
		}
		for _, name := range s.Held {
			field("holds", name)
		}
		for _, k := range slices.Sorted(maps.Keys(s.Headers)) {
			field("header", k+": "+s.Headers[k])
		}
		field("input", inline(s.Input))
	})
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// shellWord writes s so that a shell reads it as one word.
func shellWord(s string) string {
	if plainWord.MatchString(s) && s[0] != '-' {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// clip shortens s to so many characters.
func clip(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}

// abridge shortens a name to so many characters: what tells it from its like is often its end.
func abridge(s string, most int) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	tail := most / 3
	return string(r[:most-1-tail]) + "…" + string(r[len(r)-tail:])
}

// pad makes s exactly so many characters wide.
func pad(s string, width int) string {
	s = clip(s, width)
	return s + strings.Repeat(" ", width-utf8.RuneCountInString(s))
}

// wrapped breaks text at spaces, into lines of so many characters where that can be done.
func wrapped(text string, width int) []string {
	var out []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			out, line = append(out, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(out, line)
}

// textOf reads a text out of what an event or an ending says; "" if it is not there.
func textOf(detail json.RawMessage, name string) string {
	var d map[string]json.RawMessage
	var text string
	if json.Unmarshal(detail, &d) != nil || json.Unmarshal(d[name], &text) != nil {
		return ""
	}
	return text
}
