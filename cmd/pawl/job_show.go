package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
)

const (
	// shownBytesMax is how much of args, a result or an error is printed as text.
	shownBytesMax = 2000
	// stackLinesMax is how much of a stack is printed.
	stackLinesMax = 12
)

// jobShowCmd is "pawl job show".
type jobShowCmd struct {
	ID int64 `arg:"" help:"Job to show."`
}

// Help is the long help text.
func (*jobShowCmd) Help() string {
	return `Who enqueued it, when and with which policy; each attempt with its process, outcome and error; requests to cancel; when it runs next; its result. Long texts are cut, --json has them whole.`
}

// Run tells a job's story.
func (c *jobShowCmd) Run(a *app) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	s, err := job.Get(a.ctx, pool, a.namespace, c.ID)
	if err != nil {
		return err
	}
	if a.json {
		if s.Attempts == nil {
			s.Attempts = []job.Attempt{}
		}
		return a.printJSON(s)
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	w := &storyWriter{w: a.out, now: now, s: s}
	w.head()
	w.attempts()
	w.cancellations()
	w.next()
	w.result()
	return nil
}

// storyWriter writes a story for people.
type storyWriter struct {
	w   io.Writer
	now time.Time
	s   *job.Story
}

func (w *storyWriter) line(format string, args ...any) { fmt.Fprintf(w.w, format+"\n", args...) }

func (w *storyWriter) head() {
	s := w.s
	w.line("job %d  %s  %s", s.ID, plain(s.Kind), s.State)
	t := tabwriter.NewWriter(w.w, 0, 8, 2, ' ', 0)
	field := func(name, value string) { fmt.Fprintf(t, "  %s\t%s\n", name, value) }
	field("queue", fmt.Sprintf("%s, priority %d", plain(s.Queue), s.Priority))
	field("enqueued", moment(w.now, s.CreatedAt))
	if s.EnqueuedBy != "" {
		field("by", plain(s.EnqueuedBy))
	}
	field("policy", w.policy())
	if s.DedupeKey != "" {
		field("dedupe key", plain(s.DedupeKey))
	}
	for _, k := range slices.Sorted(maps.Keys(s.Headers)) {
		field("header", plain(k+": "+s.Headers[k]))
	}
	field("args", inline(s.Args))
	_ = t.Flush() // to the same writer as the lines
}

// policy says how often and for how long the job is tried.
func (w *storyWriter) policy() string {
	s := w.s
	first, longest := s.Backoff, s.BackoffMax
	if first == 0 {
		first = time.Second
	}
	if longest == 0 {
		longest = time.Hour
	}
	timeout := "the worker's timeout"
	if s.Timeout != 0 {
		timeout = "timeout " + brief(s.Timeout)
	}
	attempts := "1 attempt"
	if s.MaxAttempts > 1 {
		attempts = fmt.Sprintf("%d attempts, backoff %s doubling to %s", s.MaxAttempts, brief(first), brief(longest))
	}
	return attempts + ", " + timeout
}

func (w *storyWriter) attempts() {
	if len(w.s.Attempts) == 0 {
		return
	}
	w.line("\nattempts")
	for _, at := range w.s.Attempts {
		if at.ClaimID == 0 {
			w.line("  %d  %s", at.Number, w.unclaimed(at))
			continue
		}
		if at.EndedAt == nil {
			w.line("  %d  running for %s", at.Number, span(w.now.Sub(*at.ClaimedAt)))
		} else {
			w.line("  %d  %s after %s%s", at.Number, at.Outcome, span(at.EndedAt.Sub(*at.ClaimedAt)), outcomeNotes[at.Outcome])
		}
		w.line("     claimed %s", moment(w.now, *at.ClaimedAt))
		w.line("     by session %d: %s on %s, pid %d", at.SessionID, plain(at.Session), plain(at.Host), at.PID)
		w.detail(at.Detail)
	}
}

// outcomeNotes explain the outcomes that do not speak for themselves.
var outcomeNotes = map[job.Outcome]string{
	job.Returned: ": handed back unrun, no attempt used",
	job.Snoozed:  ": goes again later as it asked, no attempt used",
	job.Lost:     ": its session ended, or it was given up",
}

// unclaimed says what became of a place in line that no worker took.
func (w *storyWriter) unclaimed(at job.Attempt) string {
	for _, c := range w.s.Cancels {
		if c.Attempt == at.Number && !c.Running {
			return "cancelled in line"
		}
	}
	return "in line, no worker has taken it yet"
}

// detail prints what an ending left behind.
func (w *storyWriter) detail(raw json.RawMessage) {
	if len(raw) == 0 || string(raw) == "null" {
		return
	}
	var d struct{ Error, Stack string }
	if err := json.Unmarshal(raw, &d); err != nil || d.Error == "" {
		w.line("     %s", inline(raw))
		return
	}
	for i, l := range lines(cut(d.Error, shownBytesMax)) {
		mark := "error: "
		if i > 0 {
			mark = "       "
		}
		w.line("     %s%s", mark, plain(l))
	}
	stack := lines(d.Stack)
	for i, l := range stack {
		if i == stackLinesMax {
			w.line("         … (%d lines more, see --json)", len(stack)-i)
			break
		}
		w.line("         %s", plain(strings.ReplaceAll(l, "\t", "    ")))
	}
}

func lines(text string) []string {
	text = strings.TrimRight(text, "\n")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func (w *storyWriter) cancellations() {
	if len(w.s.Cancels) == 0 {
		return
	}
	w.line("\ncancellations")
	for _, c := range w.s.Cancels {
		what := "cancelled before it ran"
		if c.Running {
			what = "asked to stop while it ran"
		}
		w.line("  attempt %d  %s, %s: %s", c.Attempt, what, moment(w.now, c.At), plain(c.Reason))
	}
}

func (w *storyWriter) next() {
	switch w.s.State {
	case job.StateScheduled, job.StateRetrying:
		w.line("\nattempt %d runs %s", w.s.Attempt, moment(w.now, w.s.At))
	case job.StateAvailable, job.StateRunning, job.StateSucceeded, job.StateDiscarded, job.StateCancelled:
	}
}

func (w *storyWriter) result() {
	if len(w.s.Result) == 0 {
		return
	}
	var out bytes.Buffer
	if err := json.Indent(&out, w.s.Result, "  ", "  "); err != nil || out.Len() > shownBytesMax {
		w.line("\nresult\n  %s", inline(w.s.Result))
		return
	}
	w.line("\nresult\n  %s", out.String())
}

// inline writes JSON on one line, cut.
func inline(raw json.RawMessage) string {
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		return plain(cut(string(raw), shownBytesMax))
	}
	return plain(cut(out.String(), shownBytesMax))
}
