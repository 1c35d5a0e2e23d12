package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/checkout"
	"github.com/pawl-dev/pawl/cmd/transfer"
	"github.com/pawl-dev/pawl/db/devmaria"
)

const (
	devTransfersMax   = 1_000_000
	devMovers         = 3
	devSweepers       = 2
	devTransferConns  = 8
	devSweepEvery     = 5 * time.Second
	devSweepKill      = time.Second // with --kill
	devServerKillEach = 2           // processes that are killed for each server that is
)

// devTransfer is the example of package transfer: a private server for each bank, and processes that move money between them.
type devTransfer struct {
	*dev
	run     int64
	banks   *transfer.Banks
	servers []devBank     // those of a bank are another goroutine's while killing is full
	killing chan struct{} // has room for one: a server is being killed and started again
	crashed int           // servers killed so far
	pace    *pace
	began   time.Time
	seen    devProgress // at the last look
	moved   time.Time   // when there were fewer transfers
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

func (e *devTransfer) start(ctx context.Context) error {
	e.killing = make(chan struct{}, 1)
	e.ends = append(e.ends, e.stopServers)
	for _, name := range devBanksPostgres {
		if err := e.startPostgres(ctx, name); err != nil {
			return err
		}
	}
	err := e.startMaria(ctx)
	switch {
	case errors.Is(err, devmaria.ErrNotInstalled), errors.Is(err, devmaria.ErrTooLong):
		e.live.say("Bank %s is left out, which would be a MariaDB: %s.", devBankMaria, strings.TrimPrefix(err.Error(), "devmaria: "))
	case err != nil:
		return err
	}
	banks, closeBanks, err := e.app.openBanks(e.named())
	if err != nil {
		return err
	}
	e.ends = append(e.ends, closeBanks)
	if e.banks, err = transfer.Open(e.pool, e.app.namespace, "pawl dev", e.live.logger(e.app.log), banks...); err != nil {
		return err
	}
	if e.run, err = transfer.Create(ctx, e.banks); err != nil {
		return err
	}
	e.report = transferReport{Run: e.run}
	e.startFleet(ctx, role{name: "mover", size: devMovers, command: e.processes("mover")}, role{name: "sweeper", size: devSweepers, command: e.processes("sweeper")})
	e.live.say("Run %d: %s transfers between accounts at %d banks, in transactions over two of them and the coordinator's database. %d processes move money, %d settle what is left.", e.run, thousands(e.Transfers), len(e.servers), devMovers, devSweepers)
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
		if e.Kill && !e.app.log.Enabled(context.Background(), slog.LevelDebug) {
			cmd.Args = append(cmd.Args, "--log-level=error") // they warn of what is left to others, as it is to be here
		}
		cmd.Env = append(cmd.Env, devBanksEnv+"="+strings.Join(e.named(), " "))
		return cmd, nil
	}
}

func (e *devTransfer) look(ctx context.Context) (devProgress, error) {
	if e.Kill && e.fleet.killed() >= devServerKillEach*(e.crashed+1) {
		e.killServer(ctx)
	}
	if len(e.killing) > 0 { // a bank is away, and back in a moment
		e.seen.Finished = false
		return e.seen, nil
	}
	done, err := transfer.Done(ctx, e.banks, e.run)
	if err != nil {
		return devProgress{}, err
	}
	prepared, err := e.banks.Prepared(ctx)
	if err != nil {
		return devProgress{}, err
	}
	unfinished, err := e.banks.Unfinished(ctx)
	if err != nil {
		return devProgress{}, err
	}
	now := time.Now()
	still := done == e.seen.Moved
	if !still {
		e.moved = now
	}
	line := e.line(fmt.Sprintf("%s of %s transfers", thousands(done), thousands(e.Transfers)), e.pace.rate(now, done), plural(e.fleet.alive(), "process", "processes"), fmt.Sprintf("%d prepared", prepared), e.pace.elapsed(now))
	e.seen = devProgress{Done: min(done, e.Transfers), All: e.Transfers, Moved: done, Line: line, Finished: done >= e.Transfers && still && prepared == 0 && !unfinished}
	return e.seen, nil
}

func (e *devTransfer) stalled(ctx context.Context) error {
	doubts, err := e.banks.Manager.Doubts(ctx, false, devMissingMax)
	if err != nil {
		return err
	}
	for _, d := range doubts {
		e.live.say("Transaction %s at %s is %s: %s", d.Branch.ID, d.Branch.Participant, d.What, d.Detail)
	}
	return fmt.Errorf("nothing happened for %s, with %d of %d transfers made", devStallMax, e.seen.Moved, e.Transfers)
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
	for _, bank := range e.servers {
		if slices.Contains(e.report.Figures.ExampleAt, bank.name) {
			fmt.Fprintf(w, "  %s \"SELECT * FROM transfer.entry WHERE transfer = '%s'\"   # a transfer at bank %s\n", bank.client, e.report.Figures.Example, bank.name)
		}
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
	if len(f.Between) > 1 {
		var parts []string
		for _, banks := range slices.Sorted(maps.Keys(f.Between)) {
			parts = append(parts, thousands(f.Between[banks])+" between "+banks)
		}
		fmt.Fprintf(a.out, "%s.\n", strings.Join(parts, ", "))
	}
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
		all, closeAll, err := a.openBanks(strings.Fields(os.Getenv(devBanksEnv)))
		if err != nil {
			return err
		}
		defer closeAll()
		banks, err := transfer.Open(pool, a.namespace, c.Name, a.log, all...)
		if err != nil {
			return err
		}
		if c.What == "sweeper" {
			return transfer.Sweep(ctx, banks, c.Every)
		}
		err = transfer.Move(ctx, banks, c.RunID, c.Transfers)
		<-ctx.Done()
		return err
	})
}
