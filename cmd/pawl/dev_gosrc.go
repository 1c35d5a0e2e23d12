package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-dev/pawl/cmd/gosrc"
	"github.com/pawl-dev/pawl/coordinator/job"
)

const (
	// devWorkersMax is how many worker processes may be asked for.
	devWorkersMax = 32
	// devMissingMax is how many jobs are named that a run waits for.
	devMissingMax = 5
)

// devGosrc is the example of package gosrc: a coordinator here, and worker processes that count Go files.
type devGosrc struct {
	*dev
	src string
	run int64
	// earlier is how many files of earlier runs are left, which are counted first.
	earlier int
	pace    *pace
	report  gosrcReport
}

func (e *devGosrc) check(ctx context.Context) (err error) {
	if e.Workers < 1 || e.Workers > devWorkersMax {
		return usagef("--workers %d is outside 1 to %d", e.Workers, devWorkersMax)
	}
	e.src, err = e.source(ctx)
	return err
}

// source finds the directory to count.
func (c *devCmd) source(ctx context.Context) (string, error) {
	dir := c.Src
	if dir == "" {
		out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
		if err != nil {
			return "", usagef("no Go installation found (go env GOROOT: %v); name a directory with Go files: --src DIR", err)
		}
		dir = filepath.Join(strings.TrimSpace(string(out)), "src")
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "", usagef("%s is not a directory; name one with Go files: --src DIR", dir)
	}
	return filepath.Abs(dir)
}

func (e *devGosrc) start(ctx context.Context) error {
	if err := gosrc.Create(ctx, e.pool); err != nil {
		return err
	}
	if err := e.startCoordinator(ctx); err != nil {
		return err
	}
	paths, err := gosrc.List(e.src)
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return usagef("there are no Go files in %s", e.src)
	}
	if err := e.enqueue(ctx, paths); err != nil {
		return err
	}
	e.startFleet(ctx, role{name: "worker", size: e.Workers, command: e.workerCommand})
	e.pace = newPace(time.Now())
	return nil
}

// enqueue lines up a job for each file.
func (e *devGosrc) enqueue(ctx context.Context, paths []string) (err error) {
	began := time.Now()
	if e.run, err = gosrc.Start(ctx, e.pool, e.app.namespace, e.src, paths); err != nil {
		return err
	}
	e.report = gosrcReport{Run: e.run, Source: e.src, Files: len(paths), Workers: e.Workers, EnqueueS: time.Since(began).Seconds()}
	e.live.say("Run %d: %s jobs enqueued in %.2f s, one for each Go file in %s.", e.run, thousands(len(paths)), e.report.EnqueueS, e.src)
	if e.earlier, err = gosrc.Unfinished(ctx, e.pool, e.run); err != nil {
		return err
	}
	if e.earlier > 0 {
		e.report.Earlier = e.earlier
		e.live.say("An earlier run is not finished: %s left, and counted first.", plural(e.earlier, "of its files is", "of its files are"))
	}
	if e.Kill {
		e.live.say("Killing %d worker processes on the way. Sessions expire after %s here (default %s) and are looked for every second (default 5 s).", devKills, devKillTTL, devTTL)
	}
	return nil
}

// look reads how far this run is, and how much is left of earlier ones.
func (e *devGosrc) look(ctx context.Context) (devProgress, error) {
	p, err := gosrc.ReadProgress(ctx, e.pool, e.run)
	if err != nil {
		return devProgress{}, err
	}
	if e.earlier > 0 {
		left, err := gosrc.Unfinished(ctx, e.pool, e.run)
		if err != nil {
			return devProgress{}, err
		}
		e.earlier = left
	}
	now, note := time.Now(), ""
	if e.earlier > 0 {
		note = "first " + thousands(e.earlier) + " of earlier runs"
	}
	line := e.line(fmt.Sprintf("%s of %s jobs", thousands(p.Done), thousands(p.Files)), e.pace.rate(now, p.Done), plural(e.fleet.alive(), "worker"), note, e.pace.elapsed(now))
	return devProgress{Done: p.Done, All: p.Files, Moved: p.Done + e.report.Earlier - e.earlier, Line: line, Finished: p.Finished}, nil
}

func (e *devGosrc) stalled(ctx context.Context) error {
	p, err := gosrc.ReadProgress(ctx, e.pool, e.run)
	if err != nil {
		return err
	}
	ids, err := gosrc.Missing(ctx, e.pool, e.app.namespace, e.run, devMissingMax)
	if err != nil {
		return err
	}
	for _, id := range ids {
		story, err := job.Get(ctx, e.pool, e.app.namespace, id)
		if err != nil {
			return err
		}
		why := ""
		for _, a := range story.Attempts {
			if a.Detail != nil {
				why = ", last " + string(a.Outcome) + ": " + string(a.Detail)
			}
		}
		e.live.say("Job %d is %s at attempt %d%s", id, story.State, story.Attempt, why)
	}
	return fmt.Errorf("nothing was counted for %s, with %d of %d files done", devStallMax, p.Done, p.Files)
}

func (e *devGosrc) interrupted() string {
	if e.run == 0 {
		return ""
	}
	return fmt.Sprintf("What is left of run %d will be counted first the next time.", e.run)
}

// prove counts the same files one by one and compares.
func (e *devGosrc) prove(ctx context.Context) (devReport, error) {
	e.live.show("Counting the same one by one …")
	began := time.Now()
	want, err := gosrc.Walk(ctx, e.src)
	if err != nil {
		return nil, err
	}
	e.report.WalkS = time.Since(began).Seconds()
	got, err := gosrc.ReadTotals(ctx, e.pool, e.run)
	if err != nil {
		return nil, err
	}
	e.report.Differences = gosrc.Diff(got, want)
	e.report.take(got)
	e.report.Kills = e.fleet.killed()
	attempts, err := gosrc.ReadAttempts(ctx, e.pool, e.app.namespace, e.run)
	e.report.tookAttempts(attempts)
	return &e.report, err
}

func (e *devGosrc) lookAround(w io.Writer, try func(args, what string)) {
	try("job list", "the newest jobs, the join first")
	if e.report.LostJob != 0 {
		try("job show "+strconv.FormatInt(e.report.LostJob, 10), "lost with its worker, and run again")
	}
	try("queue list", "what waits in each queue")
	if e.Kill {
		try("session list --all", "the workers, those that were killed too")
	} else {
		try("session list", "the workers")
	}
	try("sweep sessions", "look for dead ones at once")
	try("doctor", "is all well?")
	fmt.Fprintf(w, "\n  psql %s -c 'SELECT * FROM gosrc.totals WHERE run_id = %d ORDER BY lines DESC LIMIT 20'\n", shellQuote(e.app.databaseURL), e.run)
}
