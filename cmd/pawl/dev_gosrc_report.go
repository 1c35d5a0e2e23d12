package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/pawl-dev/pawl/cmd/gosrc"
)

// gosrcTop is how many packages the summary lists.
const gosrcTop = 10

// gosrcReport is what a run of the example did, and whether it was right.
type gosrcReport struct {
	Run      int64   `json:"run,string"`
	Source   string  `json:"source"`
	Files    int     `json:"files"`
	Workers  int     `json:"workers"`
	EnqueueS float64 `json:"enqueue_s"`
	Earlier  int     `json:"earlier"` // files of earlier runs, counted first
	// ElapsedS is from the enqueue to the totals, WalkS what counting one by one took.
	ElapsedS    float64        `json:"elapsed_s"`
	JobsPerS    float64        `json:"jobs_per_s"`
	WalkS       float64        `json:"walk_s"`
	Kills       int            `json:"kills"`
	Sessions    int            `json:"sessions_expired"`
	Attempts    int            `json:"attempts"`
	Lost        int            `json:"attempts_lost"`   // with their session, and made again
	Failed      int            `json:"attempts_failed"` // with an error, and made again
	LostJob     int64          `json:"lost_job,string,omitempty"`
	LostPath    string         `json:"lost_path,omitempty"`
	Packages    int            `json:"packages"`
	Sum         gosrc.Package  `json:"sum"`
	Top         []gosrcPackage `json:"top"`
	Equal       bool           `json:"equal"` // to a sequential walk
	Differences []string       `json:"differences"`
}

type gosrcPackage struct {
	Dir string `json:"dir"`
	gosrc.Package
}

// take takes over the totals, once the differences are known.
func (r *gosrcReport) take(t gosrc.Totals) {
	r.Packages, r.Sum, r.Equal = len(t), t.Sum(), len(r.Differences) == 0
	dirs := slices.SortedFunc(maps.Keys(t), func(a, b string) int {
		if d := t[b].Lines - t[a].Lines; d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for _, dir := range dirs[:min(len(dirs), gosrcTop)] {
		r.Top = append(r.Top, gosrcPackage{dir, t[dir]})
	}
}

func (r *gosrcReport) tookAttempts(a gosrc.Attempts) {
	r.ElapsedS, r.JobsPerS = a.Elapsed.Seconds(), float64(r.Files)/a.Elapsed.Seconds()
	r.Sessions, r.Attempts, r.Lost, r.Failed, r.LostJob, r.LostPath = a.Sessions, a.Total, a.Lost, a.Failed, a.Example, a.ExamplePath
}

// write writes the report, as text or JSON.
func (r *gosrcReport) write(a *app) error {
	if a.json {
		return a.printJSON(r)
	}
	fmt.Fprintf(a.out, "\n%s of %s in %.1f s: %s jobs/s in %s.\n", plural(r.Files, "file"), plural(r.Packages, "package"), r.ElapsedS,
		thousands(int(r.JobsPerS+0.5)), plural(r.Workers, "worker process", "worker processes"))
	if r.Earlier > 0 {
		fmt.Fprintf(a.out, "Before them %s of earlier runs.\n", plural(r.Earlier, "file"))
	}
	if r.Kills > 0 {
		fmt.Fprintf(a.out, "%s killed, %s expired: %s lost with them and run again.\n",
			plural(r.Kills, "worker process was", "worker processes were"), plural(r.Sessions, "session"), plural(r.Lost, "job was", "jobs were"))
	}
	fmt.Fprintf(a.out, "%s: %s lost, %s failed.\n\n", plural(r.Attempts, "attempt"), thousands(r.Lost), thousands(r.Failed))
	if err := r.table(a.out); err != nil {
		return err
	}
	r.proof(a.out)
	return nil
}

// wrong says what is wrong with the result, if anything is.
func (r *gosrcReport) wrong() error {
	if r.Equal {
		return nil
	}
	return errors.New("the totals differ from those of a sequential walk")
}

func (r *gosrcReport) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "files\tlines\tfuncs\tmethods\ttypes\tconsts\tvars\timports\t  package")
	row := func(name string, p gosrc.Package) {
		for _, n := range []int{p.Files, p.Lines, p.Funcs, p.Methods, p.Types, p.Consts, p.Vars, p.Imports} {
			fmt.Fprintf(t, "%s\t", thousands(n))
		}
		fmt.Fprintf(t, "  %s\n", plain(name))
	}
	for _, p := range r.Top {
		row(p.Dir, p.Package)
	}
	row("all "+plural(r.Packages, "package"), r.Sum)
	return t.Flush()
}

func (r *gosrcReport) proof(w io.Writer) {
	if r.Equal {
		fmt.Fprintf(w, "\nProof: counted one by one without a database (%.1f s), %s in every figure.", r.WalkS, plural(r.Packages, "package agrees", "packages agree"))
		if r.Sum.Bad > 0 {
			fmt.Fprintf(w, " %s.", plural(r.Sum.Bad, "file does not parse and counts for its lines only", "files do not parse and count for their lines only"))
		}
		fmt.Fprintln(w)
		return
	}
	fmt.Fprintf(w, "\nWRONG: counted one by one without a database, %s:\n", plural(len(r.Differences), "package differs", "packages differ"))
	for _, line := range r.Differences[:min(len(r.Differences), devDiffMax)] {
		fmt.Fprintln(w, "  "+plain(line))
	}
	if more := len(r.Differences) - devDiffMax; more > 0 {
		fmt.Fprintf(w, "  and %d more\n", more)
	}
}
