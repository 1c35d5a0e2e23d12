package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

const (
	// sagaEventsMax is how many events a timeline shows; of more, those in the middle are left out.
	sagaEventsMax = 200
	// sagaStepMax is how much of a step's name it shows, in characters.
	sagaStepMax = 24
	// sagaJobsMax is how many jobs of an event it names.
	sagaJobsMax = 3
)

// timeline writes what happened, the oldest first: when, how long after the start, what, to which step, by whom and why.
func (s *sagaStory) timeline() {
	moments := moments(s.Events)
	steps := 0
	for _, m := range moments {
		steps = max(steps, utf8.RuneCountInString(m.Step))
	}
	steps = min(steps, sagaStepMax)
	s.line("")
	s.line("timeline, all times in %s", s.StartedAt.In(s.zone).Format("MST"))
	if s.LeftOut > 0 {
		s.line("  (%s left out: of all but the newest %s, the last of each kind and step are told)", plural(s.LeftOut, "event is", "events are"), thousands(saga.EventsMax))
	}
	state, day, left := saga.StateRunning, "", len(moments)-sagaEventsMax
	for i, m := range moments {
		if i >= sagaEventsMax/2 && i < sagaEventsMax/2+left {
			if i == sagaEventsMax/2 {
				s.line("  … (%s more, see --json)", plural(left, "event"))
			}
			state = m.State
			continue
		}
		var parts []string
		if m.State != state {
			parts = append(parts, "→ "+loud(m.State))
			state = m.State
		}
		parts = append(parts, s.told(m)...)
		s.happened(&day, s.StartedAt, m.At, m.What, m.Step, steps, parts)
	}
}

// sagaMoment is an event, or several in a row that only tell that units of a step ended.
type sagaMoment struct {
	saga.Event

	over, failed int // units
}

func moments(events []saga.Event) []sagaMoment {
	var out []sagaMoment
	for _, e := range events {
		m := sagaMoment{Event: e}
		if e.What == "units" {
			var d struct {
				Over   int
				Failed []json.RawMessage
			}
			_ = json.Unmarshal(e.Detail, &d) // an object
			m.over, m.failed = d.Over, len(d.Failed)
		}
		if n := len(out); n > 0 && e.What == "units" && out[n-1].What == "units" && out[n-1].Step == e.Step && out[n-1].State == e.State {
			m.over, m.failed = m.over+out[n-1].over, m.failed+out[n-1].failed
			if whyOf(e) == "" {
				m.Detail = out[n-1].Detail
			}
			out = out[:n-1]
		}
		out = append(out, m)
	}
	return out
}

// told is what an event says: by whom, why, what came of it, and the jobs it enqueued.
func (s *sagaStory) told(m sagaMoment) []string {
	var parts []string
	switch by := m.Actor; {
	case m.What == "started" && s.StartedBy != "":
		parts = append(parts, "by "+s.StartedBy)
	case by != "":
		parts = append(parts, "by "+by)
	}
	if m.What == "units" {
		text := plural(m.over, "unit") + " over"
		if m.failed > 0 {
			text += fmt.Sprintf(", %s failed", thousands(m.failed))
		}
		parts = append(parts, text)
	}
	switch text := whyOf(m.Event); {
	case m.What == "succeeded" || m.What == "signalled" || text == "" && m.What != "units":
		if len(m.Detail) > 0 && string(m.Detail) != "null" {
			parts = append(parts, inline(m.Detail))
		}
	case text != "":
		parts = append(parts, text)
		if output := outputOf(m.Detail); output != "" {
			parts = append(parts, "output "+output)
		}
	}
	if m.What == "expanded" { // its jobs are some of the units
		for _, st := range s.Steps {
			switch {
			case st.Name != m.Step:
			case st.Child != "":
				parts = append(parts, "is saga "+st.Child)
			default:
				parts = append(parts, "into "+plural(st.Units, "unit"))
			}
		}
		return parts
	}
	var jobs []string
	for i, id := range m.Jobs {
		if i == sagaJobsMax {
			jobs = append(jobs, "…")
			break
		}
		jobs = append(jobs, strconv.FormatInt(id, 10))
	}
	if len(jobs) > 0 {
		parts = append(parts, "job "+strings.Join(jobs, ", "))
	}
	return parts
}

// outputOf is the output that an operator gave a step.
func outputOf(detail json.RawMessage) string {
	var d struct{ Output json.RawMessage }
	if json.Unmarshal(detail, &d) != nil || len(d.Output) == 0 {
		return ""
	}
	return inline(d.Output)
}
