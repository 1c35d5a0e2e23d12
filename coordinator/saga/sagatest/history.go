package sagatest

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// History is what has happened to a saga, a line an event, without times and numbers that differ from run to run: what, to which step, by whom, its error, reason or output, and the state of the saga where it has changed.
//
//	started → running
//	succeeded reserve: {"room":7}
//	refused charge: no money → compensating
//	undone reserve → compensated
func (b *Bench) History(id string) string {
	b.tb.Helper()
	var out strings.Builder
	var state saga.State
	for _, e := range b.story(id).Events {
		if out.Len() > 0 {
			out.WriteByte('\n')
		}
		out.WriteString(e.What)
		if e.Step != "" {
			out.WriteString(" " + e.Step)
		}
		if e.Actor != "" {
			out.WriteString(" by " + e.Actor)
		}
		if text := told(e); text != "" {
			out.WriteString(": " + text)
		}
		if e.State != state {
			out.WriteString(" → " + string(e.State))
			state = e.State
		}
	}
	return out.String()
}

// told is what an event says: an output as its JSON, else an error or a reason.
func told(e saga.Event) string {
	if len(e.Detail) == 0 || string(e.Detail) == "null" {
		return ""
	}
	var flat bytes.Buffer
	if err := json.Compact(&flat, e.Detail); err != nil {
		return string(e.Detail) // cannot be: Postgres took it for JSON
	}
	if e.What == "succeeded" || e.What == "signalled" || e.What == "units" {
		return flat.String()
	}
	var d struct {
		Error, Reason string
		Output        json.RawMessage
	}
	_ = json.Unmarshal(e.Detail, &d) // if not, its JSON tells
	switch {
	case strings.HasPrefix(d.Error, "session ") && strings.Contains(d.Error, " of "+workerName+" ("):
		return "the process died"
	case d.Error != "":
		return d.Error
	case d.Reason != "" && d.Output != nil:
		return d.Reason + ", " + string(d.Output)
	case d.Reason != "":
		return d.Reason
	}
	return flat.String()
}
