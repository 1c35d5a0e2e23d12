package main

import (
	"bytes"
	"io"
	"log/slog"
	"testing"
	"time"
)

func TestLive_terminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := &live{w: &out, terminal: true}
	l.say("begin")
	l.show("1 of 2")
	l.show("1 of 2") // the same: nothing to do
	l.say("event")
	l.show("2 of 2")
	l.end()
	l.end()
	l.say("after")
	const want = "begin\n" + clearLine + "1 of 2" + clearLine + "event\n1 of 2" + clearLine + "2 of 2\nafter\n"
	if got := out.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Elsewhere the line is printed now and then, and as it is in the end, and messages stand between.
func TestLive_plain(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := newLive(&out)
	l.show("1 of 3")
	l.show("2 of 3") // within the same second
	l.say("event")
	l.printed = l.printed.Add(-livePlain)
	l.show("3 of 3")
	l.end()
	l.show("1 of 1") // within the same second, and the last
	l.end()
	l.end()
	if got, want := out.String(), "1 of 3\nevent\n3 of 3\n1 of 1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLive_logger(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := newLive(&out)
	logger := l.logger(slog.New(slog.NewTextHandler(io.Discard, nil)))
	logger.Info("not told unless asked for")
	logger.With("a", 1).WithGroup("g").Warn("put back", "jobs", 2)
	if got, want := out.String(), "  put back a=1 jobs=2\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for level, want := range map[slog.Level]slog.Level{slog.LevelDebug: slog.LevelDebug, slog.LevelInfo: slog.LevelWarn, slog.LevelWarn: slog.LevelWarn, slog.LevelError: slog.LevelError} {
		if got := l.level(slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: level}))); got != want {
			t.Errorf("level %s: got %s, want %s", level, got, want)
		}
	}
}

func TestPrefixed(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &prefixed{w: &out, prefix: "> "}
	for _, text := range []string{"one\ntw", "o", "\nthree\n", "cut off"} {
		if n, err := p.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("got %d, %v, want %d", n, err, len(text))
		}
	}
	if got, want := out.String(), "> one\n> two\n> three\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPace(t *testing.T) {
	t.Parallel()
	began := time.Now()
	p := newPace(began)
	at := func(s float64) time.Time { return began.Add(time.Duration(s * float64(time.Second))) }
	for _, tc := range []struct {
		at    float64
		count int
		want  float64
	}{{0, 0, 0}, {1, 100, 100}, {2, 200, 100}, {4, 1200, 500}, {6, 1200, 0}} {
		if got := p.rate(at(tc.at), tc.count); got != tc.want {
			t.Errorf("after %g s: got %g a second, want %g", tc.at, got, tc.want)
		}
	}
	if got := p.elapsed(at(6)); got != 6*time.Second {
		t.Errorf("got %s, want 6s", got)
	}
}
