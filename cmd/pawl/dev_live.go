package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// livePlain is how often the line is printed where it cannot be rewritten.
const livePlain = time.Second

// live writes messages and, below them, one line that changes: rewritten in place on a terminal, printed every second elsewhere. It is safe for
// concurrent use.
type live struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	line     string
	printed  time.Time // when a line was last printed, not on a terminal,
	last     string    // and which
}

func newLive(w io.Writer) *live {
	f, ok := w.(*os.File)
	return &live{w: w, terminal: ok && isTerminal(f)}
}

const clearLine = "\r\x1b[K"

// show replaces the line.
func (l *live) show(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch now := time.Now(); {
	case line == l.line:
		return
	case l.terminal:
		fmt.Fprint(l.w, clearLine+line)
	case now.Sub(l.printed) >= livePlain:
		fmt.Fprintln(l.w, line)
		l.printed, l.last = now, line
	}
	l.line = line
}

// Write writes whole lines above the one that changes.
func (l *live) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.terminal || l.line == "" {
		return l.w.Write(text)
	}
	fmt.Fprint(l.w, clearLine)
	n, err := l.w.Write(text)
	fmt.Fprint(l.w, l.line)
	return n, err
}

// say writes a message of one line.
func (l *live) say(format string, args ...any) {
	fmt.Fprintf(l, format+"\n", args...)
}

// end leaves the line as it stands; what comes next goes below it.
func (l *live) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.line == "" {
		return
	}
	switch {
	case l.terminal:
		fmt.Fprintln(l.w)
	case l.line != l.last:
		fmt.Fprintln(l.w, l.line)
	}
	l.line = ""
}

// level is how much of what happens is told: warnings, as long as nobody asks for more or for less.
func (l *live) level(log *slog.Logger) slog.Level {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelWarn} {
		if log.Enabled(context.Background(), level) {
			return level
		}
	}
	return slog.LevelError
}

// logger returns a logger that writes messages here, at the level of log.
func (l *live) logger(log *slog.Logger) *slog.Logger {
	return slog.New(&liveHandler{l: l, level: l.level(log)})
}

// liveHandler writes records for people: the message and what belongs to it, without the time.
type liveHandler struct {
	l     *live
	level slog.Level
	attrs string
}

func (h *liveHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

func (h *liveHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString("  " + r.Message + h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%s", a.Key, a.Value)
		return true
	})
	_, err := io.WriteString(h.l, b.String()+"\n")
	return err
}

func (h *liveHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	for _, a := range attrs {
		with.attrs += fmt.Sprintf(" %s=%s", a.Key, a.Value)
	}
	return &with
}

func (h *liveHandler) WithGroup(string) slog.Handler { return h }

// prefixed passes whole lines on, each with a prefix. It is not safe for concurrent use.
type prefixed struct {
	w       io.Writer
	prefix  string
	partial []byte
}

func (p *prefixed) Write(text []byte) (int, error) {
	p.partial = append(p.partial, text...)
	for {
		line, rest, whole := bytes.Cut(p.partial, []byte{'\n'})
		if !whole {
			return len(text), nil
		}
		if _, err := io.WriteString(p.w, p.prefix+string(line)+"\n"); err != nil {
			return 0, err
		}
		p.partial = rest
	}
}

// pace measures how quickly a count rises: over the last few seconds.
type pace struct {
	began  time.Time
	points []pacePoint
}

type pacePoint struct {
	at    time.Time
	count int
}

const paceSpan = 2 * time.Second

func newPace(now time.Time) *pace { return &pace{began: now, points: []pacePoint{{now, 0}}} }

// rate adds a count and returns by how much it rises in a second.
func (p *pace) rate(now time.Time, count int) float64 {
	for len(p.points) > 1 && now.Sub(p.points[1].at) >= paceSpan {
		p.points = p.points[1:]
	}
	first := p.points[0]
	p.points = append(p.points, pacePoint{now, count})
	if now.Sub(first.at) <= 0 {
		return 0
	}
	return float64(count-first.count) / now.Sub(first.at).Seconds()
}

func (p *pace) elapsed(now time.Time) time.Duration { return now.Sub(p.began) }
