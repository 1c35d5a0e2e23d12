package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
)

// printJSON writes v as one JSON document.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// checkLimit bounds how many rows a listing may ask for.
func checkLimit(n int) error {
	if n < 1 || n > 10_000 {
		return usagef("--limit %d is outside 1 to 10,000", n)
	}
	return nil
}

// table writes aligned columns.
type table struct{ w *tabwriter.Writer }

func (a *app) table(header ...string) table {
	t := table{tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)}
	t.row(header...)
	return t
}

func (t table) row(cells ...string) {
	for i := range cells {
		cells[i] = plain(cells[i])
	}
	fmt.Fprintln(t.w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

func (t table) end() error { return t.w.Flush() }

// plain replaces what would move the cursor or colour the terminal: names and errors come from anywhere.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// now is the database's time, which all that is printed relates to.
func (a *app) now(ctx context.Context, pool *pgxpool.Pool) (time.Time, error) {
	at, _, err := session.Clock(ctx, pool)
	return at, err
}

// ago writes how far t is from now: "3m ago", "in 5s".
func ago(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case d >= time.Second:
		return span(d) + " ago"
	case d <= -time.Second:
		return "in " + span(-d)
	case d > -10*time.Millisecond:
		return "just now"
	default:
		return "at once"
	}
}

// moment writes t in full and how far it is from now.
func moment(now, t time.Time) string {
	return t.Local().Format("2006-01-02 15:04:05 MST") + " (" + ago(now, t) + ")"
}

// span writes a duration with the one or two units that matter.
func span(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%.0fd", d.Hours()/24)
	}
}

// brief writes a duration exactly, without units that are zero: "1h", "1m30s".
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// cut shortens s to about most bytes.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	end := most
	for end > 0 && s[end]&0xC0 == 0x80 { // within a character
		end--
	}
	return fmt.Sprintf("%s … (%d bytes more)", s[:end], len(s)-end)
}
