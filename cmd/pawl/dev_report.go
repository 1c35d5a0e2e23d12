package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/pawl-dev/pawl/db/devpg"
)

// devReport is what a run did, and whether it was right.
type devReport interface {
	// write writes the report, as text or JSON.
	write(a *app) error
	// wrong says what is wrong with the result; nil: nothing is.
	wrong() error
}

// lookAround says what to try while it stays up.
func (d *dev) lookAround(example devExample) {
	if d.app.json {
		d.live.say("It stays up until Ctrl-C.")
		return
	}
	w := d.app.out
	fmt.Fprintf(w, "\nIt stays up until Ctrl-C. Meanwhile, in another terminal:\n\n")
	if dir, ok := devDefaultDir(); !ok || dir != d.dir {
		fmt.Fprintf(w, "  export PAWL_DATABASE_URL=%s\n\n", shellQuote(d.app.databaseURL))
	}
	pawl := invocation()
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	example.lookAround(t, func(args, what string) { fmt.Fprintf(t, "  %s %s\t%s\n", pawl, args, what) })
	_ = t.Flush()
	fmt.Fprintln(w)
}

// invocation is how the user runs this program.
func invocation() string {
	self, err := os.Executable()
	if err == nil && strings.Contains(filepath.ToSlash(self), "/go-build") {
		return "go run ./cmd/pawl"
	}
	if strings.ContainsRune(os.Args[0], filepath.Separator) {
		return os.Args[0]
	}
	return "pawl"
}

func shellQuote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// thousands writes a number with commas.
func thousands(n int) string {
	text := strconv.Itoa(n)
	first := len(text) % 3
	if n < 0 || len(text) <= 3 {
		return text
	}
	var parts []string
	if first > 0 {
		parts = append(parts, text[:first])
	}
	for i := first; i < len(text); i += 3 {
		parts = append(parts, text[i:i+3])
	}
	return strings.Join(parts, ",")
}

// plural writes a number with a word: the first form for 1, the second, or the first with an s, for others.
func plural(n int, forms ...string) string {
	switch {
	case n == 1:
		return "1 " + forms[0]
	case len(forms) > 1:
		return thousands(n) + " " + forms[1]
	default:
		return thousands(n) + " " + forms[0] + "s"
	}
}

// devDefaultDir is where the other commands look for the private Postgres.
func devDefaultDir() (string, bool) {
	dir, err := devpg.DefaultDir(devName)
	return dir, err == nil
}
