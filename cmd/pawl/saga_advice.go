package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

const (
	// sagaAdviceMax is for how many steps it is said there what they need. The graph has them all.
	sagaAdviceMax = 5
)

// advice says why the saga is where it is, and what a person must do about it, if anything, with the commands for it.
func (s *sagaStory) advice() {
	s.because()
	if s.State.Final() {
		return
	}
	var stuck []saga.StepStory
	for _, st := range s.Steps {
		if st.State == saga.StepStuck {
			stuck = append(stuck, st)
		}
	}
	s.rescue(stuck)
	var ahead []string
	for _, st := range s.Steps {
		if mark, text, verb, what := s.waits(st); mark != "" && s.advised < sagaAdviceMax {
			s.advised++
			s.prose(fmt.Sprintf("  %-11s ", mark), text)
			if verb != "" {
				s.command(verb, what, "")
			}
		}
		if st.State == saga.StepWaiting && s.unserved(st) {
			ahead = append(ahead, st.Name)
		}
	}
	if len(ahead) > 0 {
		s.prose("  AHEAD       ", fmt.Sprintf("No live worker serves %s; the saga waits when it comes to that.", strings.Join(ahead, ", ")))
	}
}

// act writes the command line for something that is done to the saga; why, the person writes.
func (s *sagaStory) act(verb, rest string) {
	s.command("saga "+verb, shellWord(s.ID), rest+" --reason 'WHY'")
}

// because tells what turned the saga, and what an operator ended.
func (s *sagaStory) because() {
	turned := slices.IndexFunc(s.Events, func(e saga.Event) bool { return e.State == saga.StateCompensating || e.State == saga.StateCompensated })
	last := len(s.Events) - 1
	for i, e := range s.Events {
		if i != turned && (i != last || e.What != "forced") {
			continue
		}
		text := whatHappened(e)
		if e.Actor != "" {
			text += " by " + e.Actor
		}
		if why := whyOf(e); why != "" {
			text += ": " + clip(why, pageErrorMax)
		}
		s.prose("  because     ", text+", "+ago(s.now, e.At))
	}
}

// whatHappened names what turns or ends a saga.
func whatHappened(e saga.Event) string {
	switch e.What {
	case "refused":
		return e.Step + " refused"
	case "exhausted":
		return e.Step + " used up its attempts, and nobody knows whether it was done"
	case "units":
		return "units of " + e.Step + " failed"
	case "withdrawn":
		return e.Step + " was withdrawn"
	case "failed":
		return e.Step + " was not done, as was said"
	case "cancelled":
		return "it was cancelled"
	case "expired":
		return "its deadline passed"
	case "forced":
		return "it was forced to an end as it stood"
	}
	return strings.TrimSpace(e.What + " " + e.Step)
}

// rescue says what is stuck, where to look, and how the saga goes on: what is tried first comes first.
func (s *sagaStory) rescue(stuck []saga.StepStory) {
	if len(stuck) == 0 {
		return
	}
	shown := stuck[:min(len(stuck), sagaAdviceMax)]
	for _, st := range shown {
		s.stuck(st)
	}
	if more := stuck[len(shown):]; len(more) > 0 {
		var names []string
		for _, st := range more {
			names = append(names, st.Name)
		}
		s.prose("  STUCK       ", "and likewise "+strings.Join(names, ", "))
	}
	if slices.ContainsFunc(stuck, s.canRetry) {
		s.line("  Try again all that is stuck, when its cause is gone:")
		s.act("retry", "")
	}
	for _, st := range shown {
		if st.UndoJobID != 0 {
			s.line("  Go on, when you know that %s is undone, or have undone it yourself:", st.Name)
			s.act("skip", " "+shellWord(st.Name)+" --as done")
			continue
		}
		if st.Kind == saga.KindSignal {
			s.line("  Go on as if the signal %s had come; OUTPUT is its value, as JSON:", st.Name)
		} else {
			s.line("  Go on, when you know that %s was done, or have done it yourself; OUTPUT is what it came to, as JSON:", st.Name)
		}
		s.act("skip", " "+shellWord(st.Name)+" --as done --output OUTPUT")
		if st.Pivot {
			s.line("  Undo the saga, when you know that %s was not done, and will not be:", st.Name)
			s.act("skip", " "+shellWord(st.Name)+" --as not-done")
		}
	}
	s.line("  Give up: the saga ends as it stands, nothing more of it runs, and what is not undone stays:")
	s.act("force", "")
}

// canRetry tells that a retry does something for a stuck step: of child sagas, one that was compensated begins anew.
func (s *sagaStory) canRetry(st saga.StepStory) bool {
	return st.Child == "" || st.UndoJobID != 0 || s.children[st.Child].state == saga.StateCompensated
}

// stuck says why a step or its compensation is stuck, and where to look.
func (s *sagaStory) stuck(st saga.StepStory) {
	undo, name := st.UndoJobID != 0, st.Name
	var what string
	switch last := s.lastOf(st); {
	case undo:
		name = "the compensation of " + name
		what = name + " used up its attempts"
	case st.Child != "" && s.canRetry(st):
		what = name + " must be done, and is saga " + st.Child + ", which was compensated; after a retry another one begins"
	case st.Child != "":
		what = name + " must be done, and is saga " + st.Child + ", which has ended without that"
	case st.Kind == saga.KindSignal:
		what = name + " must come, and its signal did not come in time; after a retry it is waited for anew"
	case st.Units > 0 && last == "units":
		what = "units of " + name + " failed for good, and it must be done"
	case last == "refused":
		what = name + " refused, though it must be done: the saga has passed its pivot"
	case st.Pivot:
		what = name + ", the pivot, used up its attempts, and nobody knows whether it was done"
	default:
		what = name + " used up its attempts, though it must be done: the saga has passed its pivot"
	}
	if tried := attemptsOf(st); tried != "-" {
		what += " (" + strings.Replace(tried, "/", " of ", 1) + ")"
	}
	if st.Error != "" && (undo || st.Kind != saga.KindSignal) {
		what += "; the last error: " + clip(oneLine(st.Error), pageErrorMax)
	}
	s.prose("  STUCK       ", what)
	if behind := s.behind(st); len(behind) > 0 {
		mark := "waiting for it: "
		if undo {
			mark = "not undone before it is: "
		}
		s.prose("              ", mark+strings.Join(behind, ", "))
	}
	if s.canRetry(st) && !st.Served {
		s.prose("              ", "no live worker serves it: start one before a retry")
	}
	switch {
	case st.Child != "" && !undo:
		s.command("saga show", shellWord(st.Child), "")
	case st.Units > 0 && !undo:
		s.command("job list", "--state discarded --kind "+shellWord(fmt.Sprintf("saga:%s@%d/%s", s.Name, s.Version, st.Name)), "")
	case jobOf(st) != 0:
		s.command("job show", strconv.FormatInt(jobOf(st), 10), "")
	}
}

// lastOf is what happened last to a step.
func (s *sagaStory) lastOf(st saga.StepStory) string {
	for _, e := range slices.Backward(s.Events) {
		if e.Step == st.Name {
			return e.What
		}
	}
	return ""
}

// behind names the steps that cannot begin, or be undone, before a step is through, directly or not.
func (s *sagaStory) behind(st saga.StepStory) []string {
	var out []string
	if st.UndoJobID == 0 {
		after := map[string]bool{st.Name: true}
		for _, o := range s.Steps {
			if slices.ContainsFunc(o.After, func(name string) bool { return after[name] }) {
				after[o.Name] = true
				out = append(out, o.Name)
			}
		}
		return out
	}
	before := map[string]bool{}
	for _, name := range st.After {
		before[name] = true
	}
	for _, o := range slices.Backward(s.Steps) {
		if !before[o.Name] {
			continue
		}
		for _, name := range o.After {
			before[name] = true
		}
		if (o.State == saga.StepSucceeded || o.State == saga.StepUnknown) && !o.ReadOnly {
			out = append(out, o.Name)
		}
	}
	return out
}

// waits says what a step waits for that may not come by itself, and the command for it, if there is one. mark "": nothing of that sort.
func (s *sagaStory) waits(st saga.StepStory) (mark, text, verb, what string) {
	if st.State != saga.StepRunning && st.State != saga.StepUndoing {
		return "", "", "", ""
	}
	name := st.Name
	if st.State == saga.StepUndoing {
		name = "the compensation of " + name
	}
	child, j := s.children[st.Child], s.job(st)
	switch {
	case st.State == saga.StepRunning && child.stuck != "":
		return "STUCK", fmt.Sprintf("%s waits for saga %s, which is stuck. See what it needs:", name, child.stuck), "saga show", shellWord(child.stuck)
	case st.Until != nil && s.overdue(*st.Until):
		return "OVERDUE", name + overdueText, "", ""
	case st.State == saga.StepRunning && st.Kind == saga.KindSignal:
		text = name + " waits for its signal, which somebody must send"
		if st.Until != nil {
			text += "; without it, the step fails " + s.due(*st.Until)
		}
		return "WAITS", text + ". VALUE is what it brings, as JSON:", "saga signal", shellWord(s.ID) + " " + shellWord(name) + " VALUE"
	}
	mark, text = s.waitsForJob(name, s.queueOf(st), !s.unserved(st), j)
	return mark, text, "", ""
}

// whyOf is the reason or the error of an event, on one line.
func whyOf(e saga.Event) string {
	if reason := textOf(e.Detail, "reason"); reason != "" {
		return oneLine(reason)
	}
	return oneLine(textOf(e.Detail, "error"))
}
