package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/checkout"
	"github.com/pawl-dev/pawl/cmd/transfer"
	"github.com/pawl-dev/pawl/db/devpg"
)

const (
	devTransfersMax   = 1_000_000
	devMovers         = 3
	devSweepers       = 2
	devTransferConns  = 8
	devSweepEvery     = 5 * time.Second
	devSweepKill      = time.Second // with --kill
	devServerKillEach = 3           // processes that are killed for each server that is
)

// devTransfer is the example of package transfer: two more private servers, and processes that move money between them.
type devTransfer struct {
	*dev
	run     int64
	banks   *transfer.Banks
	urls    []string
	servers [2]atomic.Pointer[devpg.Server]
	killing chan struct{} // has room for one: a server is being killed and started again
	crashed int           // servers killed so far
	pace    *pace
	began   time.Time
	last    int // transfers at the last look,
	moved   time.Time
	report  transferReport
}

func (e *devTransfer) check(context.Context) error {
	switch {
	case e.Src != "":
		return usagef("--src is for --example gosrc")
	case e.Transfers < 1 || e.Transfers > devTransfersMax:
		return usagef("--transfers %d is outside 1 to %d", e.Transfers, devTransfersMax)
	}
	return nil
}

// bankDir is where the server of a bank lies: beside the private one.
func (e *devTransfer) bankDir(name string) (string, error) {
	if e.Dir != "" {
		return e.Dir + "-" + name, nil
	}
	return devpg.DefaultDir(devName + "-" + name)
}

func (e *devTransfer) start(ctx context.Context) error {
	e.killing = make(chan struct{}, 1)
	e.ends = append(e.ends, e.stopServers)
	for i, name := range transfer.Names {
		dir, err := e.bankDir(name)
		if err != nil {
			return err
		}
		server, err := devpg.Start(ctx, devpg.Config{Dir: dir, Durable: true, Logger: e.live.logger(e.app.log)})
		if err != nil {
			return err
		}
		e.servers[i].Store(server)
		e.urls = append(e.urls, server.URL("postgres"))
		e.live.say("Bank %s: PostgreSQL %s in %s.", name, server.Version(), dir)
	}
	var err error
	if e.banks, err = transfer.Open(ctx, e.pool, e.app.namespace, "pawl dev", e.urls...); err != nil {
		return err
	}
	e.ends = append(e.ends, e.banks.Close)
	if e.run, err = transfer.Create(ctx, e.banks); err != nil {
		return err
	}
	e.report = transferReport{Run: e.run}
	e.startFleet(ctx, role{name: "mover", size: devMovers, command: e.processes("mover")}, role{name: "sweeper", size: devSweepers, command: e.processes("sweeper")})
	e.live.say("Run %d: %s transfers between accounts at two banks, in transactions over both and the coordinator's database. %d processes move money, %d settle what is left.", e.run, thousands(e.Transfers), devMovers, devSweepers)
	if e.Kill {
		e.live.say("Killing %d processes on the way, and a bank's server after every %d of them.", devKills, devServerKillEach)
	}
	e.began = time.Now()
	e.moved = e.began
	e.pace = newPace(e.began)
	return nil
}

// processes makes the commands of a role's processes. The banks' URLs go by the environment: others see arguments.
func (e *devTransfer) processes(what string) func(n int) (*exec.Cmd, error) {
	return func(n int) (*exec.Cmd, error) {
		every := devSweepEvery
		if e.Kill {
			every = devSweepKill
		}
		cmd, err := e.processCommand("dev-transfer", what, fmt.Sprintf("--name=pawl dev %s %d", what, n), fmt.Sprintf("--run=%d", e.run), fmt.Sprintf("--transfers=%d", e.Transfers), "--every="+every.String())
		if err != nil {
			return nil, err
		}
		for i, url := range e.urls {
			cmd.Env = append(cmd.Env, devBankEnv(i)+"="+url)
		}
		return cmd, nil
	}
}

func devBankEnv(i int) string { return fmt.Sprintf("PAWL_DEV_BANK_%d_URL", i+1) }

func (e *devTransfer) look(ctx context.Context) (devProgress, error) {
	if e.Kill && e.fleet.killed() >= devServerKillEach*(e.crashed+1) {
		e.killServer(ctx)
	}
	done, err := transfer.Done(ctx, e.banks, e.run)
	if err != nil {
		return devProgress{}, err
	}
	prepared, err := e.banks.Prepared(ctx)
	if err != nil {
		return devProgress{}, err
	}
	unfinished, err := e.banks.Manager.List(ctx, "", true, 1)
	if err != nil {
		return devProgress{}, err
	}
	now := time.Now()
	still := done == e.last
	if !still {
		e.last, e.moved = done, now
	}
	line := e.line(fmt.Sprintf("%s of %s transfers", thousands(done), thousands(e.Transfers)), e.pace.rate(now, done), plural(e.fleet.alive(), "process", "processes"), fmt.Sprintf("%d prepared", prepared), e.pace.elapsed(now))
	return devProgress{Done: min(done, e.Transfers), All: e.Transfers, Moved: done, Line: line, Finished: done >= e.Transfers && still && prepared == 0 && len(unfinished) == 0 && len(e.killing) == 0}, nil
}

// killServer kills a bank's server and starts it again, while the others go on.
func (e *devTransfer) killServer(ctx context.Context) {
	select {
	case e.killing <- struct{}{}:
	default:
		return // the last one is not back yet
	}
	i := e.crashed % len(transfer.Names)
	e.crashed++
	go func() {
		defer func() { <-e.killing }()
		server := e.servers[i].Load()
		conf := server.Config()
		if err := server.Kill(); err != nil {
			e.live.say("  the server of bank %s could not be killed: %v", transfer.Names[i], err)
			return
		}
		<-server.Done()
		e.live.say("  killed the server of bank %s", transfer.Names[i])
		server, err := devpg.Start(context.WithoutCancel(ctx), conf)
		if err != nil {
			e.cancel(fmt.Errorf("bank %s: %w", transfer.Names[i], err))
			return
		}
		e.servers[i].Store(server)
	}()
}

func (e *devTransfer) stopServers() {
	e.killing <- struct{}{} // wait for the one that is started
	for i := range e.servers {
		if server := e.servers[i].Load(); server != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(e.app.ctx), devStopMax)
			if err := server.Stop(ctx); err != nil {
				e.live.say("The server of bank %s did not stop: %v", transfer.Names[i], err)
			}
			cancel()
		}
	}
}

func (e *devTransfer) stalled(ctx context.Context) error {
	doubts, err := e.banks.Manager.Doubts(ctx, false, devMissingMax)
	if err != nil {
		return err
	}
	for _, d := range doubts {
		e.live.say("Transaction %s at %s is %s: %s", d.Branch.ID, d.Branch.Participant, d.What, d.Detail)
	}
	return fmt.Errorf("nothing happened for %s, with %d of %d transfers made", devStallMax, e.last, e.Transfers)
}

func (e *devTransfer) interrupted() string {
	if e.run == 0 {
		return ""
	}
	return "What is left prepared will be settled the next time."
}

func (e *devTransfer) prove(ctx context.Context) (devReport, error) {
	r := &e.report
	r.ElapsedS, r.Kills, r.Servers = e.moved.Sub(e.began).Seconds(), e.fleet.killed(), e.crashed
	var err error
	r.Figures, r.Claims, err = transfer.Prove(ctx, e.banks, e.run)
	return r, err
}

func (e *devTransfer) lookAround(w io.Writer, try func(args, what string)) {
	try("tx list", "what needs a person, or is unfinished: nothing")
	try("tx list --all", "the newest transfers, as they were decided")
	try("tx show "+e.report.Figures.Example, "one of them: who decided it, and that it is done")
	try("tx participants", "the banks, and when recovery was last there")
	fmt.Fprintln(w)
	for i, name := range transfer.Names {
		fmt.Fprintf(w, "  psql %s -c \"SELECT * FROM transfer.entry WHERE transfer = '%s'\"   # a transfer at bank %s\n", shellQuote(e.urls[i]), e.report.Figures.Example, name)
	}
	fmt.Fprintf(w, "  psql %s -c \"SELECT * FROM pawl.global_decision WHERE id = '%s'\"   # and its decision\n", shellQuote(e.app.databaseURL), e.report.Figures.Example)
}

// transferReport is what a run of the example transfer did, and whether it was right.
type transferReport struct {
	Run      int64            `json:"run,string"`
	ElapsedS float64          `json:"elapsed_s"`
	Kills    int              `json:"kills"`   // processes
	Servers  int              `json:"servers"` // banks' servers that were killed
	Figures  transfer.Figures `json:"figures"`
	Claims   []transfer.Claim `json:"claims"`
}

func (r *transferReport) claims() []checkout.Claim {
	out := make([]checkout.Claim, len(r.Claims))
	for i, c := range r.Claims {
		out[i] = checkout.Claim(c)
	}
	return out
}

// wrong says what is wrong with the result, if anything is.
func (r *transferReport) wrong() error { return wrongClaims(r.claims()) }

// write writes the report, as text or JSON.
func (r *transferReport) write(a *app) error {
	if a.json {
		return a.printJSON(r)
	}
	f := r.Figures
	fmt.Fprintf(a.out, "\n%s of %s cents in %.1f s, %s of them recorded in the coordinator's database.\n", plural(f.Transfers, "transfer"), thousands(int(f.Cents)), r.ElapsedS, thousands(f.Recorded))
	if r.Kills > 0 {
		fmt.Fprintf(a.out, "%s killed, and %s.\n", plural(r.Kills, "process was", "processes were"), plural(r.Servers, "server of a bank", "servers of banks"))
	}
	fmt.Fprintln(a.out)
	return writeClaims(a.out, r.claims())
}

// devTransferCmd is "pawl dev-transfer", hidden: a process of the example transfer.
type devTransferCmd struct {
	What      string        `arg:"" enum:"mover,sweeper" help:"What it does: mover or sweeper."`
	Name      string        `default:"pawl dev transfer" help:"Name of the process."`
	RunID     int64         `name:"run" help:"The run."`
	Transfers int           `help:"How many transfers the run has."`
	Every     time.Duration `help:"How often a sweeper sweeps."`
}

// Run moves or sweeps until standard input ends.
func (c *devTransferCmd) Run(a *app) error {
	return a.runDevProcess(c.Name, devTransferConns, func(ctx context.Context, pool *pgxpool.Pool) error {
		var urls []string
		for i := range transfer.Names {
			urls = append(urls, os.Getenv(devBankEnv(i)))
		}
		banks, err := transfer.Open(ctx, pool, a.namespace, c.Name, urls...)
		if err != nil {
			return err
		}
		defer banks.Close()
		if c.What == "sweeper" {
			return transfer.Sweep(ctx, banks, c.Every)
		}
		err = transfer.Move(ctx, banks, c.RunID, c.Transfers)
		<-ctx.Done()
		return err
	})
}
