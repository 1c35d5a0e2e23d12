package main

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/tcc"
)

const (
	// tccEventsMax is how many events a timeline shows; of more, those in the middle are left out.
	tccEventsMax = 200
	// tccNameMax is how much of a branch's name is printed, in characters.
	tccNameMax = 32
	// tccAdviceMax is for how many branches it is said above what they need. The table has them all.
	tccAdviceMax = 5
)

// tccStory turns a transaction's story into text: what a person must do about it, its branches, what is known of it, and what happened. It asks nobody.
type tccStory struct {
	*tcc.Story
	page

	jobs map[int64]*job.Story // of branches that are not through, as far as they are known
}

// text writes it all.
func (s *tccStory) text() string {
	s.head()
	s.advice()
	s.line("")
	s.branches()
	s.facts()
	s.timeline()
	return s.out.String()
}

func (s *tccStory) head() {
	since := s.BegunAt
	if s.DecidedAt != nil {
		since = *s.DecidedAt
	}
	for _, b := range s.Branches {
		if s.State.Final() && b.EndedAt != nil && b.EndedAt.After(since) {
			since = *b.EndedAt
		}
	}
	text := loud(s.State) + " for " + span(s.now.Sub(since))
	switch {
	case s.State.Final():
		text = string(s.State) + " " + ago(s.now, since)
	case s.State == tcc.Stuck:
		text = fmt.Sprintf("%s, to %s for %s", loud(s.State), s.Decision, span(s.now.Sub(since)))
	}
	s.line("transaction %s  %s", s.ID, text)
}

// advice says why the transaction is where it is, and what a person must do about it, if anything, with the commands for it.
func (s *tccStory) advice() {
	if s.Decision == barrier.Cancel {
		why := s.Reason
		if s.DecidedBy != "initiator" && s.DecidedBy != "pawl" {
			why = "it was cancelled by " + s.DecidedBy + ": " + s.Reason
		}
		s.prose("  because     ", clip(oneLine(why), pageErrorMax)+", "+ago(s.now, *s.DecidedAt))
	}
	switch {
	case s.State == tcc.Active && s.overdue(s.Deadline):
		s.prose("  OVERDUE     ", "its deadline has passed, and it"+overdueText)
	case s.State == tcc.Active:
		s.prose("  WAITS       ", fmt.Sprintf("for its initiator to confirm or cancel it; else it is cancelled at its deadline, %s. To cancel it before:", s.due(s.Deadline)))
		s.act("cancel")
	}
	s.stuck()
	advised := 0
	for _, b := range s.Branches {
		if b.State != tcc.Confirming && b.State != tcc.Cancelling {
			continue
		}
		if mark, text := s.waitsForJob(b.Name, b.Queue, b.Served, s.jobs[b.JobID]); mark != "" && advised < tccAdviceMax {
			advised++
			s.prose(fmt.Sprintf("  %-11s ", mark), text)
		}
	}
}

// act writes the command line for something that is done to the transaction; why, the person writes.
func (s *tccStory) act(verb string) {
	s.command("tcc "+verb, shellWord(s.ID), " --reason 'WHY'")
}

// stuck says why branches are stuck, where to look, and how the transaction goes on.
func (s *tccStory) stuck() {
	shown, more := 0, 0
	for _, b := range s.Branches {
		if b.State != tcc.Stuck {
			continue
		}
		if shown == tccAdviceMax {
			more++
			continue
		}
		shown++
		s.prose("  STUCK       ", fmt.Sprintf("%s could not be %sed: %s", b.Name, strings.Replace(string(s.Decision), "cancel", "cancell", 1), s.whyStuck(b)))
		if !b.Served {
			s.prose("              ", "no live worker serves it: start one before a retry")
		}
		if s.jobs[b.JobID] != nil {
			s.command("job show", strconv.FormatInt(b.JobID, 10), "")
		}
	}
	if more > 0 {
		s.line("  STUCK       and %s, below", plural(more, "more branch", "more branches"))
	}
	if shown > 0 {
		s.line("  Try again all that is stuck, when its cause is gone. It cannot be given up: what was tried stays reserved until then.")
		s.act("retry")
	}
}

// whyStuck says what became of the job of a branch that is stuck.
func (s *tccStory) whyStuck(b tcc.Branch) string {
	j := s.jobs[b.JobID]
	switch {
	case j == nil:
		return "its job ended, and is not kept any more"
	case j.State == job.StateCancelled:
		text := "its job was cancelled"
		if n := len(j.Cancels); n > 0 && j.Cancels[n-1].Reason != "" {
			text += ", " + oneLine(j.Cancels[n-1].Reason)
		}
		return clip(text, pageErrorMax)
	}
	text := fmt.Sprintf("it used up its attempts (%d of %d)", b.Attempt, b.MaxAttempts)
	if b.Error != "" {
		text += "; the last error: " + clip(oneLine(b.Error), pageErrorMax)
	}
	return text
}

// branches prints a table of them.
func (s *tccStory) branches() {
	if len(s.Branches) == 0 {
		s.line("  no branches: nothing was tried")
		s.line("")
		return
	}
	s.tabbed(func(row func(cells ...string)) {
		row("BRANCH", "STATE", "QUEUE", "ATTEMPT", "JOB", "")
		for _, b := range s.Branches {
			attempt, id := "-", "-"
			if b.Attempt > 0 {
				attempt = fmt.Sprintf("%d/%d", b.Attempt, b.MaxAttempts)
			}
			if b.JobID != 0 {
				id = strconv.FormatInt(b.JobID, 10)
			}
			row(abridge(b.Name, tccNameMax), loud(b.State), abridge(b.Queue, sagaQueueMax), attempt, id, s.note(b))
		}
	})
	s.line("")
}

// note says on one line what a branch waits for or came to.
func (s *tccStory) note(b tcc.Branch) string {
	if b.State.Final() {
		return ""
	}
	var parts []string
	if !b.Served {
		parts = append(parts, "no worker serves it")
	}
	if j := s.jobs[b.JobID]; j != nil && !j.State.Final() {
		parts = append(parts, s.progress(j))
	}
	if b.Error != "" {
		parts = append(parts, oneLine(b.Error))
	}
	return strings.Join(parts, "; ")
}

// facts are what is known of the transaction as a whole, and of what its branches are for.
func (s *tccStory) facts() {
	s.tabbed(func(row func(cells ...string)) {
		row("begun", s.moment(s.BegunAt))
		row("by", s.BegunBy)
		row("deadline", s.moment(s.Deadline))
		if s.DecidedAt != nil {
			row("decided", fmt.Sprintf("to %s, %s, by %s", s.Decision, s.moment(*s.DecidedAt), s.DecidedBy))
		}
		for _, b := range s.Branches {
			row("args", abridge(b.Name, tccNameMax)+" "+inline(b.Args))
		}
	})
}

// timeline writes what happened, the oldest first: when, how long after the begin, what, to which branch, by whom and why.
func (s *tccStory) timeline() {
	names := 0
	for _, b := range s.Branches {
		names = max(names, utf8.RuneCountInString(b.Name))
	}
	names = min(names, tccNameMax)
	s.line("")
	s.line("timeline, all times in %s", s.BegunAt.In(s.zone).Format("MST"))
	day, left := "", len(s.Events)-tccEventsMax
	for i, e := range s.Events {
		if i >= tccEventsMax/2 && i < tccEventsMax/2+left {
			if i == tccEventsMax/2 {
				s.line("  … (%s more, see --json)", plural(left, "event"))
			}
			continue
		}
		s.happened(&day, s.BegunAt, e.At, e.What, e.Branch, names, s.told(e))
	}
}

// told is what an event says: by whom, why, and its job.
func (s *tccStory) told(e tcc.Event) []string {
	var parts []string
	if e.Actor != "" {
		parts = append(parts, "by "+e.Actor)
	}
	if e.Reason != "" {
		parts = append(parts, oneLine(e.Reason))
	}
	if e.JobID != 0 {
		parts = append(parts, "job "+strconv.FormatInt(e.JobID, 10))
	}
	return parts
}
