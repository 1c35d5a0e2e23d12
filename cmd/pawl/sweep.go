package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pawl-dev/pawl/coordinator"
)

// sweepCmd is "pawl sweep".
type sweepCmd struct {
	Name string `arg:"" optional:"" help:"Sweep to run: sessions, due, dedupe or partitions. Without a name the sweeps are listed."`
}

// Help is the long help text.
func (*sweepCmd) Help() string {
	return `Runs one sweep on this machine, once, unless another machine is at it. Coordinators ("pawl serve") run them by themselves; this is for the day when none does.

sessions: ends expired sessions and puts the jobs of ended ones back in line. due: moves scheduled jobs whose time has come to the line. dedupe: removes dedupe keys that are over. partitions: makes the tables' next ranges, and drops those of events that are not kept any more. in-doubt: removes old decisions of global transactions; what is left prepared at participants "pawl tx recover" settles.`
}

// Run runs a sweep, or lists them.
func (c *sweepCmd) Run(a *app) error {
	if c.Name != "" && !slices.Contains(coordinator.SweepNames(), c.Name) {
		return usagef("there is no sweep %q; there are %s", c.Name, strings.Join(coordinator.SweepNames(), ", "))
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	coord, err := coordinator.New(pool, coordinator.Config{Namespace: a.namespace, Logger: a.log})
	if err != nil {
		return err
	}
	if c.Name == "" {
		statuses, err := coord.Statuses(a.ctx)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]any{"sweeps": statuses})
		}
		now, err := a.now(a.ctx, pool)
		if err != nil {
			return err
		}
		if len(statuses) == 0 {
			fmt.Fprintln(a.err, `no sweep ever ran here; run a coordinator: "pawl serve"`)
			return nil
		}
		t := a.table("NAME", "LAST RAN", "TOOK", "DID", "DID IN ALL", "RUNS", "ERROR")
		for _, s := range statuses {
			t.row(s.Name, ago(now, s.RanAt), fmt.Sprintf("%dms", s.TookMS), strconv.FormatInt(s.Did, 10), strconv.FormatInt(s.DidTotal, 10),
				strconv.FormatInt(s.Runs, 10), cut(oneLine(s.Error), 200))
		}
		return t.end()
	}
	report, err := coord.Sweep(a.ctx, c.Name)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(report)
	}
	if report.Skipped {
		fmt.Fprintf(a.out, "sweep %s: another machine is at it\n", c.Name)
		return nil
	}
	fmt.Fprintf(a.out, "sweep %s: %d %s, in %s\n", c.Name, report.Did, sweepDid[c.Name], span(report.Took))
	for _, d := range report.Dropped {
		fmt.Fprintf(a.out, "dropped %s from %d to %d\n", d.Table, d.From, d.To-1)
	}
	return nil
}

// sweepDid says what a sweep counts.
var sweepDid = map[string]string{
	coordinator.SweepSessions:    "jobs put back in line",
	coordinator.SweepDue:         "due jobs put in line",
	coordinator.SweepInDoubt:     "branches settled, transactions ended and old decisions removed",
	coordinator.SweepDedupe:      "dedupe keys removed",
	coordinator.SweepLocks:       "old states of locks removed",
	coordinator.SweepOutbox:      "old positions removed",
	coordinator.SweepBarrier:     "rows of barriers removed",
	coordinator.SweepTCC:         "deadlines, stuck branches and old transactions of TCC seen to",
	coordinator.SweepSagas:       "deadlines, timers, forgotten and old sagas seen to",
	coordinator.SweepIdempotency: "expired answers and messages removed",
	coordinator.SweepPartitions:  "ranges made or dropped",
}
