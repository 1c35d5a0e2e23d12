package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/term"

	"github.com/pawl-dev/pawl/coordinator/job"
)

const (
	// pageWidth is how wide a page is where no terminal says otherwise, in characters.
	pageWidth = 120
	// pageWidthMin is how wide it is on a terminal that is narrower still.
	pageWidthMin = 60
	// pageErrorMax is how much of an error is printed in advice, in characters.
	pageErrorMax = 600
	// pageOverdue is how late a coordinator may be before it is missed.
	pageOverdue = 10 * time.Second
)

// page is text for a person about something that goes on: what it needs, how it stands, what happened. It asks nobody.
type page struct {
	now   time.Time
	zone  *time.Location
	width int    // of the text, in characters
	flags string // that commands need to find what it is about, such as " --namespace 7"
	out   bytes.Buffer
}

func (a *app) page(pool *pgxpool.Pool) (page, error) {
	now, err := a.now(a.ctx, pool)
	return page{now: now, zone: time.Local, width: a.width(), flags: a.namespaceFlag()}, err
}

// width is how many characters a line may have.
func (a *app) width() int {
	f, ok := a.out.(*os.File)
	if !ok {
		return pageWidth
	}
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
		return max(w, pageWidthMin)
	}
	return pageWidth
}

// namespaceFlag is what a command needs to work on the same namespace as this one.
func (a *app) namespaceFlag() string {
	if a.namespace == 1 {
		return ""
	}
	return fmt.Sprintf(" --namespace %d", a.namespace)
}

// line writes a line that is no wider than it may be.
func (p *page) line(format string, args ...any) {
	p.out.WriteString(strings.TrimRight(clip(plain(fmt.Sprintf(format, args...)), p.width), " ") + "\n")
}

// prose writes text in lines, behind a mark that is as wide as what the other lines begin with.
func (p *page) prose(mark, text string) {
	indent := strings.Repeat(" ", utf8.RuneCountInString(mark))
	for _, l := range wrapped(plain(text), p.width-len(indent)) {
		p.line("%s%s", mark, l)
		mark = indent
	}
}

// tabbed writes lines of aligned cells.
func (p *page) tabbed(rows func(row func(cells ...string))) {
	var text strings.Builder
	t := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	rows(func(cells ...string) {
		for i := range cells {
			cells[i] = plain(cells[i])
		}
		fmt.Fprintf(t, "  %s\n", strings.Join(cells, "\t"))
	})
	_ = t.Flush() // into memory
	for l := range strings.Lines(text.String()) {
		p.line("%s", strings.TrimSuffix(l, "\n"))
	}
}

// moment writes t in full and how far it is from now.
func (p *page) moment(t time.Time) string {
	return t.In(p.zone).Format("2006-01-02 15:04:05 MST") + " (" + ago(p.now, t) + ")"
}

// command writes a command line to copy, however wide it is.
func (p *page) command(verb, what, rest string) {
	p.out.WriteString(plain("      pawl "+verb+p.flags+" "+what+rest) + "\n")
}

// progress says where a job is.
func (p *page) progress(j *job.Story) string {
	switch j.State {
	case job.StateScheduled, job.StateRetrying:
		if p.overdue(j.At) {
			return "should have gone again " + ago(p.now, j.At)
		}
		return "again " + p.due(j.At)
	case job.StateAvailable:
		return "in line for " + span(p.now.Sub(j.At))
	case job.StateRunning:
		if at := j.Attempts[len(j.Attempts)-1]; at.Host != "" {
			return fmt.Sprintf("runs for %s on %s, pid %d", span(p.now.Sub(j.At)), at.Host, at.PID)
		}
		return "runs for " + span(p.now.Sub(j.At))
	case job.StateSucceeded, job.StateDiscarded, job.StateCancelled:
	}
	return string(j.State)
}

// overdue tells that no coordinator does what was due at a time.
func (p *page) overdue(at time.Time) bool { return p.now.Sub(at) > pageOverdue }

// due writes when something comes that is not overdue.
func (p *page) due(at time.Time) string {
	if at.After(p.now) {
		return ago(p.now, at)
	}
	return "any moment"
}

const overdueText = ` should have gone on by now: see that a coordinator runs ("pawl serve"), and what "pawl doctor" says`

// waitsForJob says what something waits for whose job, if it is known, waits in a queue, and which live workers serve or do not. mark "": nothing that needs be said.
func (p *page) waitsForJob(name, queue string, served bool, j *job.Story) (mark, text string) {
	switch {
	case j != nil && (j.State == job.StateRetrying || j.State == job.StateScheduled) && p.overdue(j.At):
		return "OVERDUE", name + overdueText
	case !served:
		return "NOT SERVED", fmt.Sprintf("%s waits in queue %s, and no live worker serves it. Start the service that registers it, with a worker on that queue; nothing is lost meanwhile.", name, queue)
	case j != nil && j.State == job.StateRetrying:
		text = fmt.Sprintf("%s failed %s of %d, and goes again %s", name, plural(j.Attempt-1, "time"), j.MaxAttempts, p.due(j.At))
		if why := lastError(j); why != "" {
			text += "; the last error: " + clip(oneLine(why), pageErrorMax)
		}
		return "RETRIES", text
	}
	return "", ""
}

// happened writes a line of a timeline: when, how long after the begin, what, to which part, whose name gets width characters, and more. day is that of the line before, and becomes this one's.
func (p *page) happened(day *string, begin, at time.Time, what, part string, width int, more []string) {
	if d := at.In(p.zone).Format(time.DateOnly); d != *day {
		*day = d
		p.line("  %s", d)
	}
	p.line("  %s  %8s  %-14s  %s  %s", at.In(p.zone).Format("15:04:05.000"), "+"+span(at.Sub(begin)), what, pad(abridge(part, width), width), strings.Join(more, "; "))
}
