package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/devpg"
)

const (
	// devLook is how often the run is looked at, for the live line and for kills.
	devLook = 100 * time.Millisecond
	// devLookShare keeps looking from being work itself: one part in so many of the time, but once in devLookMax.
	devLookShare = 20
	devLookMax   = time.Second
	// devStallMax is how long nothing may be done before the run is given up.
	devStallMax = 2 * time.Minute
	// devStopMax bounds the end of the processes, and of the server.
	devStopMax = 20 * time.Second
	// devStopMin is the same for processes that have nothing left to do.
	devStopMin = 2 * time.Second
	// devKills is how many processes --kill kills, at equal distances over the run.
	devKills = 8
	// devTTL is the ttl of the processes' sessions, and devKillTTL with --kill, where killed processes are to be found out in seconds.
	devTTL     = 15 * time.Second
	devKillTTL = 3 * time.Second
	// devKillSweep is how often expired sessions are looked for with --kill.
	devKillSweep = "@every 1s"
	// devDiffMax is how many differences are listed.
	devDiffMax = 20
)

// devCmd is "pawl dev": a private Postgres, processes that do what an example asks of them, and a proof that what they do together is right.
type devCmd struct {
	Example   string `enum:"gosrc,checkout,transfer" default:"gosrc" placeholder:"NAME" help:"What to run: gosrc, checkout or transfer, see above. Default: ${default}."`
	Kill      bool   `help:"Kill random processes (SIGKILL) while the example runs, and start new ones. The result must be right all the same."`
	Workers   int    `default:"2" placeholder:"N" help:"gosrc: worker processes, 1 to 32. Default: 2."`
	Dir       string `type:"path" placeholder:"DIR" help:"Directory of the private Postgres, kept for the next time. Default: pawl/dev in $XDG_STATE_HOME or ~/.local/state; for root /var/lib/pawl/dev, since Postgres runs as another user then and must be able to enter. Unused with --database-url."`
	Exit      bool   `help:"End after the proof, rather than stay up for a look around."`
	Src       string `type:"path" placeholder:"DIR" help:"gosrc: directory whose Go files are counted. Default: src of the Go installation."`
	Orders    int    `default:"2000" placeholder:"N" help:"checkout: how many orders are placed, 1 to 100,000. Default: 2,000."`
	Transfers int    `default:"5000" placeholder:"N" help:"transfer: how many transfers are made, 1 to 1,000,000. Default: 5,000."`

	// command makes the command of a process; tests have their own.
	command func(args ...string) (*exec.Cmd, error)
}

// Help is the long help text.
func (c *devCmd) Help() string {
	return `Starts a private Postgres (or uses --database-url), migrates it, and runs an example in processes of its own. Then it proves that the result is right: exit code 1 and the differences if it is not.

gosrc: a coordinator and worker processes. Each .go file of the Go installation is a job that parses it and writes what it found, in the transaction that ends the job. A last job adds up each package. Then the same is counted one by one without a database, and both must agree in every package.

checkout: a shop, inventory and payments, each with its own tables, relays, and shipping. Impatient clients ask the shop for the same order many times at once over HTTP, with one Idempotency-Key. Each order is a saga: a piece is reserved, the money is charged over a line that loses, repeats and delays calls, the order is confirmed, and shipping gets a webhook; or it is out of stock, refused or unanswered, and all of it is undone. Then the tables must show one order for each key, each of them confirmed, paid and packed once or cancelled with nothing left, and stock and money that add up.

transfer: three banks, each a private server of its own beside the first, two of Postgres and one of MariaDB (two banks where that is not installed), processes that move money between their accounts in global transactions over two banks and the coordinator's database, and processes that settle what others leave prepared. With --kill the banks' servers are killed too. Then the tables must show no transfer that is half done, the sum that was there at first, and no prepared transaction left.

Stays up afterwards, for you to look around with the other commands, until Ctrl-C. The example's tables are in the schema of its name; each run adds to them.`
}

// devExample is what "pawl dev" runs and proves right. Its methods are called by one goroutine, in this order.
type devExample interface {
	// check looks at the flags, before anything is started.
	check(ctx context.Context) error
	// start makes the example's tables, begins a run, and starts the processes that it takes as the fleet of dev.
	start(ctx context.Context) error
	// look tells how far the run is, again and again.
	look(ctx context.Context) (devProgress, error)
	// stalled says what a run waits for that stands still: the error.
	stalled(ctx context.Context) error
	// interrupted says what becomes of a run that is cut off; "": it had not begun.
	interrupted() string
	// prove looks at what a finished run has come to.
	prove(ctx context.Context) (devReport, error)
	// lookAround writes what to try while it stays up: commands of pawl by try, others to w.
	lookAround(w io.Writer, try func(args, what string))
}

// devProgress is how far a run is.
type devProgress struct {
	Done, All int    // kills are spread over it
	Moved     int    // rises as long as anything goes on
	Line      string // the live line
	Finished  bool
}

// dev is one run of the command.
type dev struct {
	*devCmd
	app    *app
	live   *live
	dir    string // of the private server; "": the database was given
	server *devpg.Server
	pool   *pgxpool.Pool
	cancel context.CancelCauseFunc // ends the run, with the reason
	fleet  *fleet
	ends   []func() // end what start started, the last one first
}

// Run runs the example and proves its result. When it returns, what it started has ended.
func (c *devCmd) Run(a *app) (err error) {
	d := &dev{devCmd: c, app: a, live: newLive(a.err)}
	defer d.live.end()
	if d.command == nil {
		d.command = ownCommand
	}
	var example devExample = &devGosrc{dev: d}
	switch c.Example {
	case "checkout":
		example = &devCheckout{dev: d}
	case "transfer":
		example = &devTransfer{dev: d}
	}
	if err := example.check(a.ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(a.ctx)
	d.cancel = cancel
	defer cancel(nil)
	defer context.AfterFunc(a.ctx, func() {
		d.live.say("Stopping; processes finish what they have. Ctrl-C again ends at once.")
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
	return d.run(ctx, example)
}

// run runs the example, checks what came of it, and stays up if it is to.
func (d *dev) run(ctx context.Context, example devExample) (err error) {
	defer func() {
		for len(d.ends) > 0 {
			last := len(d.ends) - 1
			d.ends[last]()
			d.ends = d.ends[:last]
		}
	}()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = d.cutOff(ctx, example)
		}
	}()
	if err := example.start(ctx); err != nil {
		return err
	}
	if err := d.watch(ctx, example); err != nil {
		return err
	}
	report, err := example.prove(ctx)
	if err != nil {
		return err
	}
	if err := d.conclude(report); err != nil || d.Exit {
		return err
	}
	d.lookAround(example)
	<-ctx.Done()
	if d.app.ctx.Err() != nil {
		return nil // Ctrl-C: as it should be
	}
	return context.Cause(ctx)
}

// startCoordinator runs a coordinator in this process until the run ends.
func (d *dev) startCoordinator(ctx context.Context) error {
	conf := coordinator.Config{Namespace: d.app.namespace, Logger: d.live.logger(d.app.log)}
	if d.Kill {
		conf.Specs = map[string]string{coordinator.SweepSessions: devKillSweep}
	}
	c, err := coordinator.New(d.pool, conf)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Run(ctx); err != nil {
			d.cancel(err)
		}
	}()
	d.ends = append(d.ends, func() { end(); <-done })
	return nil
}

// startFleet starts processes, which the end of the run ends. If it is not the user who ends it, the database may be gone, and they have nothing to finish.
func (d *dev) startFleet(ctx context.Context, roles ...role) {
	d.fleet = startFleet(d.live, d.cancel, roles...)
	d.ends = append(d.ends, func() {
		patience := devStopMax
		if d.app.ctx.Err() == nil && ctx.Err() != nil {
			patience = devStopMin
		}
		if left := d.fleet.stop(patience); left > 0 {
			d.live.say("%s not end in time and were killed.", plural(left, "process did", "processes did"))
		}
	})
}

// ttl is the ttl of the processes' sessions.
func (d *dev) ttl() time.Duration {
	if d.Kill {
		return devKillTTL
	}
	return devTTL
}

// watch shows the progress of the run until it is finished, and kills processes on the way if it is to.
func (d *dev) watch(ctx context.Context, example devExample) error {
	var (
		tick   = time.NewTicker(devLook)
		last   = time.Now() // when something was done
		before devProgress
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
		p, err := example.look(ctx)
		now := time.Now()
		tick.Reset(min(max(devLook, devLookShare*now.Sub(looked)), devLookMax))
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && now.Sub(last) > devStallMax:
			return err
		case err != nil: // the database is away for a moment, as it is for the processes
			if !away {
				d.live.say("  the database does not answer, trying again: %s", db.Message(err))
			}
			away = true
			continue
		case p.Moved > before.Moved:
			last = now
		}
		away, before = false, p
		d.live.show(p.Line)
		if p.Finished && (!d.Kill || kills >= devKills) {
			return nil
		}
		if now.Sub(last) > devStallMax {
			d.live.end()
			return example.stalled(ctx)
		}
		for d.Kill && kills < devKills && p.Done*(devKills+1) >= p.All*(kills+1) && d.fleet.kill() {
			kills++
		}
	}
}

// line is a live line: what is done and how quickly, the processes at work, and what else there is to tell.
func (d *dev) line(done string, rate float64, alive, note string, elapsed time.Duration) string {
	line := fmt.Sprintf("%s  %s/s  %s", done, thousands(int(rate+0.5)), alive)
	if d.Kill {
		line += "  " + plural(d.fleet.killed(), "kill")
	}
	if note != "" {
		line += "  " + note
	}
	return line + fmt.Sprintf("  %.0f s", elapsed.Seconds())
}

// conclude prints the report. The error says that the result is wrong.
func (d *dev) conclude(report devReport) error {
	d.live.end()
	if err := report.write(d.app); err != nil {
		return err
	}
	if err := report.wrong(); err != nil {
		return reportedError{err}
	}
	return nil
}

// cutOff says why the run ends now, which ctx knows.
func (d *dev) cutOff(ctx context.Context, example devExample) error {
	d.live.end()
	if d.app.ctx.Err() == nil {
		return context.Cause(ctx)
	}
	if text := example.interrupted(); text != "" {
		d.live.say("Interrupted. %s", text)
	}
	return reportedError{context.Cause(ctx)}
}
