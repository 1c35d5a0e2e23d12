package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/gosrc"
	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/devpg"
)

const (
	// devWorkersMax is how many worker processes may be asked for.
	devWorkersMax = 32
	// devLook is how often the run is looked at, for the live line and for kills.
	devLook = 100 * time.Millisecond
	// devLookShare keeps looking from being work itself: one part in so many of the time, but once in devLookMax.
	devLookShare = 20
	devLookMax   = time.Second
	// devStallMax is how long nothing may be counted before the run is given up.
	devStallMax = 2 * time.Minute
	// devStopMax bounds the end of the worker processes, and of the server.
	devStopMax = 20 * time.Second
	// devStopMin is the same for workers that have nothing left to do.
	devStopMin = 2 * time.Second
	// devKills is how many worker processes --kill kills, at equal distances over the run.
	devKills = 8
	// devTTL is the ttl of the workers' sessions, and devKillTTL with --kill, where killed processes are to be found out in seconds.
	devTTL     = 15 * time.Second
	devKillTTL = 3 * time.Second
	// devKillSweep is how often expired sessions are looked for with --kill.
	devKillSweep = "@every 1s"
	// devMissingMax is how many jobs are named that a run waits for.
	devMissingMax = 5
	// devDiffMax is how many packages that differ are listed.
	devDiffMax = 20
)

// devCmd is "pawl dev": a private Postgres, a coordinator and worker processes, and an example that shows that what they do together is right.
type devCmd struct {
	Kill    bool   `help:"Kill random worker processes (SIGKILL) while the example runs, and start new ones. The result must be right all the same."`
	Workers int    `default:"2" placeholder:"N" help:"Worker processes, 1 to 32. Default: 2."`
	Dir     string `type:"path" placeholder:"DIR" help:"Directory of the private Postgres, kept for the next time. Default: pawl/dev in $XDG_STATE_HOME or ~/.local/state; for root /var/lib/pawl/dev, since Postgres runs as another user then and must be able to enter. Unused with --database-url."`
	Exit    bool   `help:"End after the proof, rather than stay up for a look around."`
	Src     string `type:"path" placeholder:"DIR" help:"Directory whose Go files are counted. Default: src of the Go installation."`

	// command makes the command of a worker process; tests have their own.
	command func(args ...string) (*exec.Cmd, error)
}

// Help is the long help text.
func (c *devCmd) Help() string {
	return `Starts a private Postgres (or uses --database-url), migrates it, starts a coordinator and worker processes, and runs an example: each .go file of the Go installation is a job that parses it and writes what it found, in the transaction that ends the job. A last job adds up each package. Then the same is counted one by one without a database, and both must agree in every package: exit code 1 and the differences if they do not.

Stays up afterwards, for you to look around with the other commands, until Ctrl-C. The example's tables are in the schema gosrc; each run adds to them.`
}

// dev is one run of the command.
type dev struct {
	*devCmd
	app    *app
	live   *live
	src    string
	dir    string // of the private server; "": the database was given
	server *devpg.Server
	pool   *pgxpool.Pool
	fleet  *fleet
	run    int64
	// earlier is how many files of earlier runs are left, which are counted first.
	earlier int
	report  devReport
}

// Run runs the example and proves its result. When it returns, what it started has ended.
func (c *devCmd) Run(a *app) (err error) {
	if c.Workers < 1 || c.Workers > devWorkersMax {
		return usagef("--workers %d is outside 1 to %d", c.Workers, devWorkersMax)
	}
	d := &dev{devCmd: c, app: a, live: newLive(a.err)}
	defer d.live.end()
	if d.command == nil {
		d.command = ownCommand
	}
	if d.src, err = c.source(a.ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(a.ctx)
	defer cancel(nil)
	defer context.AfterFunc(a.ctx, func() {
		d.live.say("Stopping; workers finish the files they have. Ctrl-C again ends at once.")
	})()
	if err := d.openDatabase(ctx); err != nil {
		return err
	}
	defer d.closeDatabase()
	if d.server != nil && d.server.Done() != nil {
		go func() {
			select {
			case <-d.server.Done():
				cancel(fmt.Errorf("the private Postgres ended; its log is %s", filepath.Join(d.dir, "postgres.log")))
			case <-ctx.Done():
			}
		}()
	}
	stopCoordinator, err := d.startCoordinator(ctx, cancel)
	if err != nil {
		return err
	}
	defer stopCoordinator()
	return d.runExample(ctx, cancel)
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

// startCoordinator runs a coordinator in this process until the function it returns is called, or until ctx ends.
func (d *dev) startCoordinator(ctx context.Context, cancel context.CancelCauseFunc) (stop func(), err error) {
	conf := coordinator.Config{Namespace: d.app.namespace, Logger: d.live.logger(d.app.log)}
	if d.Kill {
		conf.Specs = map[string]string{coordinator.SweepSessions: devKillSweep}
	}
	c, err := coordinator.New(d.pool, conf)
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Run(ctx); err != nil {
			cancel(err)
		}
	}()
	return func() { end(); <-done }, nil
}

// runExample enqueues the files, has them counted, checks the totals, and stays up if it is to.
func (d *dev) runExample(ctx context.Context, cancel context.CancelCauseFunc) (err error) {
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = d.cutOff(ctx)
		}
	}()
	paths, err := gosrc.List(d.src)
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return usagef("there are no Go files in %s", d.src)
	}
	if err := d.enqueue(ctx, paths); err != nil {
		return err
	}
	d.fleet = startFleet(d.Workers, d.workerCommand, d.live, cancel)
	defer d.stopFleet(ctx)
	if err := d.watch(ctx); err != nil {
		return err
	}
	if err := d.prove(ctx); err != nil {
		return err
	}
	if err := d.conclude(); err != nil || d.Exit {
		return err
	}
	d.lookAround()
	<-ctx.Done()
	if d.app.ctx.Err() != nil {
		return nil // Ctrl-C: as it should be
	}
	return context.Cause(ctx)
}

// conclude prints the report. The error says that the totals are wrong.
func (d *dev) conclude() error {
	d.live.end()
	if err := d.report.write(d.app); err != nil {
		return err
	}
	if !d.report.Equal {
		return reportedError{errors.New("the totals differ from those of a sequential walk")}
	}
	return nil
}

// stopFleet ends the worker processes. If it is not the user who ends this, the database may be gone, and they have nothing to finish.
func (d *dev) stopFleet(ctx context.Context) {
	patience := devStopMax
	if d.app.ctx.Err() == nil && ctx.Err() != nil {
		patience = devStopMin
	}
	if left := d.fleet.stop(patience); left > 0 {
		d.live.say("%s not end in time and were killed.", plural(left, "worker process did", "worker processes did"))
	}
}

// enqueue lines up a job for each file.
func (d *dev) enqueue(ctx context.Context, paths []string) (err error) {
	began := time.Now()
	if d.run, err = gosrc.Start(ctx, d.pool, d.app.namespace, d.src, paths); err != nil {
		return err
	}
	d.report = devReport{Run: d.run, Source: d.src, Files: len(paths), Workers: d.Workers, EnqueueS: time.Since(began).Seconds()}
	d.live.say("Run %d: %s jobs enqueued in %.2f s, one for each Go file in %s.", d.run, thousands(len(paths)), d.report.EnqueueS, d.src)
	if d.earlier, err = gosrc.Unfinished(ctx, d.pool, d.run); err != nil {
		return err
	}
	if d.earlier > 0 {
		d.report.Earlier = d.earlier
		d.live.say("An earlier run is not finished: %s left, and counted first.", plural(d.earlier, "of its files is", "of its files are"))
	}
	if d.Kill {
		d.live.say("Killing %d worker processes on the way. Sessions expire after %s here (default %s) and are looked for every second (default 5 s).", devKills, devKillTTL, devTTL)
	}
	return nil
}

// cutOff says why the run ends now, which ctx knows.
func (d *dev) cutOff(ctx context.Context) error {
	d.live.end()
	if d.app.ctx.Err() == nil {
		return context.Cause(ctx)
	}
	if d.run != 0 {
		d.live.say("Interrupted. What is left of run %d will be counted first the next time.", d.run)
	}
	return reportedError{context.Cause(ctx)}
}

// watch shows the progress of the run until it is finished, and kills workers on the way if it is to.
func (d *dev) watch(ctx context.Context) error {
	var (
		tick   = time.NewTicker(devLook)
		pace   = newPace(time.Now())
		last   = time.Now() // when the count rose
		before gosrc.Progress
		away   = false
		kills  = 0
	)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		looked := time.Now()
		p, earlier, err := d.look(ctx)
		now := time.Now()
		tick.Reset(min(max(devLook, devLookShare*now.Sub(looked)), devLookMax))
		switch {
		case err != nil && now.Sub(last) > devStallMax:
			return err
		case err != nil: // the database is away for a moment, as it is for the workers
			if !away {
				d.live.say("  the database does not answer, trying again: %s", db.Message(err))
			}
			away = true
			continue
		case p.Done > before.Done || earlier < d.earlier:
			last = now
		}
		away, before, d.earlier = false, p, earlier
		d.live.show(d.progress(p, pace.rate(now, p.Done), pace.elapsed(now)))
		if p.Finished {
			return nil
		}
		if now.Sub(last) > devStallMax {
			return d.stalled(ctx, p)
		}
		if d.Kill && kills < devKills && p.Done*(devKills+1) >= p.Files*(kills+1) && d.fleet.kill() {
			kills++
		}
	}
}

// look reads how far this run is, and how much is left of earlier ones.
func (d *dev) look(ctx context.Context) (p gosrc.Progress, earlier int, err error) {
	if p, err = gosrc.ReadProgress(ctx, d.pool, d.run); err == nil && d.earlier > 0 {
		earlier, err = gosrc.Unfinished(ctx, d.pool, d.run)
	}
	return p, earlier, err
}

// stalled tells what the run waits for.
func (d *dev) stalled(ctx context.Context, p gosrc.Progress) error {
	ids, err := gosrc.Missing(ctx, d.pool, d.app.namespace, d.run, devMissingMax)
	if err != nil {
		return err
	}
	d.live.end()
	for _, id := range ids {
		story, err := job.Get(ctx, d.pool, d.app.namespace, id)
		if err != nil {
			return err
		}
		why := ""
		for _, a := range story.Attempts {
			if a.Detail != nil {
				why = ", last " + string(a.Outcome) + ": " + string(a.Detail)
			}
		}
		d.live.say("Job %d is %s at attempt %d%s", id, story.State, story.Attempt, why)
	}
	return fmt.Errorf("nothing was counted for %s, with %d of %d files done", devStallMax, p.Done, p.Files)
}

// progress is the live line.
func (d *dev) progress(p gosrc.Progress, rate float64, elapsed time.Duration) string {
	line := fmt.Sprintf("%s of %s jobs  %s/s  %s", thousands(p.Done), thousands(p.Files), thousands(int(rate+0.5)), plural(d.fleet.alive(), "worker"))
	if d.Kill {
		line += "  " + plural(d.fleet.killed(), "kill")
	}
	if d.earlier > 0 {
		line += "  first " + thousands(d.earlier) + " of earlier runs"
	}
	return line + fmt.Sprintf("  %.0f s", elapsed.Seconds())
}

// prove counts the same files one by one and compares.
func (d *dev) prove(ctx context.Context) error {
	d.live.show("Counting the same one by one …")
	began := time.Now()
	want, err := gosrc.Walk(ctx, d.src)
	if err != nil {
		return err
	}
	d.report.WalkS = time.Since(began).Seconds()
	got, err := gosrc.ReadTotals(ctx, d.pool, d.run)
	if err != nil {
		return err
	}
	d.report.Differences = gosrc.Diff(got, want)
	d.report.take(got)
	d.report.Kills = d.fleet.killed()
	attempts, err := gosrc.ReadAttempts(ctx, d.pool, d.app.namespace, d.run)
	d.report.tookAttempts(attempts)
	return err
}
