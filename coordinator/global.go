package coordinator

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

const (
	globalMax  = 1000        // doubts, unfinished transactions and participants that the doctor looks at
	globalWarn = time.Minute // a transaction is not committed everywhere, a participant not reached, or not tried
	globalBad  = 15 * time.Minute
)

// sweepInDoubt settles what global transactions have left. It takes no lock: recoveries do not harm each other, and one that waits for a participant must not hold up those of other nodes, which may
// reach it, or have other participants.
func (c *Coordinator) sweepInDoubt(ctx context.Context, r *Report) error {
	got, err := c.conf.Global.Recover(ctx, c.conf.GlobalKeep)
	r.Did = got.Did()
	if ctx.Err() == nil {
		c.tellHindered(err)
	}
	return err
}

// tellHindered logs at which participants recovery is hindered, and where it is no more: once each.
func (c *Coordinator) tellHindered(err error) {
	var unsettled *twophase.UnsettledError
	if !errors.As(err, &unsettled) {
		if err != nil {
			return // nobody knows
		}
		unsettled = &twophase.UnsettledError{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(unsettled.Errors)) {
		if !c.hindered[name] {
			c.conf.Logger.Error("participant of global transactions hinders their recovery, which goes on to try", "participant", name, "err", unsettled.Errors[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.hindered)) {
		if unsettled.Errors[name] == nil {
			c.conf.Logger.Info("participant of global transactions hinders their recovery no more", "participant", name)
		}
	}
	c.hindered = map[string]bool{}
	for name := range unsettled.Errors {
		c.hindered[name] = true
	}
}

// checkGlobal gives one finding of what global transactions have left, and one for each thing that their participants lack.
func (c *Coordinator) checkGlobal(ctx context.Context) ([]Finding, error) {
	m := c.conf.Global
	row, err := c.q.ReadGlobalHome(ctx)
	if err != nil {
		return nil, err
	}
	doubts, err := m.Doubts(ctx, false, globalMax)
	if err != nil {
		return nil, err
	}
	open, err := m.List(ctx, twophase.FirstID(row.At.Add(-globalWarn)), true, globalMax)
	if err != nil {
		return nil, err
	}
	var f Finding
	f.ok("none is in doubt or unfinished")
	if len(open) > 0 {
		oldest := open[len(open)-1]
		late := row.At.Sub(oldest.DecidedAt)
		f.Value, f.Unit = late.Seconds(), "s"
		f.grade(late, globalWarn, globalBad, `"pawl tx list" says what hinders them; their participants must be known to a coordinator: "pawl serve --participant"`,
			"some are decided and not committed everywhere, for up to "+short(late)+": rows stay locked there")
	}
	if len(doubts) > 0 {
		f.Value, f.Unit = float64(len(doubts)), "branches"
		f.bad(`"pawl tx list" says what to do about each`, "%d branches need a person, the first since %s", len(doubts), short(row.At.Sub(doubts[0].First)))
	}
	participants, err := c.checkParticipants(ctx, row.At)
	return append([]Finding{f}, participants...), err
}

// checkParticipants gives findings of what coordinators know of participants, and of those that this one was given.
func (c *Coordinator) checkParticipants(ctx context.Context, now time.Time) ([]Finding, error) {
	seen, err := c.conf.Global.Participants(ctx, globalMax)
	if err != nil {
		return nil, err
	}
	var all []Finding
	for _, p := range seen {
		f := Finding{Check: "recovery at " + p.Name, Unit: "s"}
		tried, reached := now.Sub(p.TriedAt), now.Sub(p.SeenAt)
		switch {
		case tried > globalWarn:
			f.Value = tried.Seconds()
			f.warn(`give it to a coordinator: "pawl serve --participant"`, "no coordinator was at it for %s: what a crash leaves prepared there stays locked", short(tried))
		case p.Error == "":
			continue
		case p.SeenAt.IsZero():
			f.bad("mend what it says; the next run tries again", "was never done: %s", p.Error)
		default:
			f.Value = reached.Seconds()
			f.bad("mend what it says; the next run tries again", "was last done %s ago: %s", short(reached), p.Error)
		}
		all = append(all, f)
	}
	found, err := c.conf.Global.Doctor(ctx)
	for _, f := range found {
		all = append(all, Finding{Check: f.Check, Level: Level(f.Level), Message: f.Message, Remedy: f.Remedy, Value: f.Value, Unit: f.Unit})
	}
	return all, err
}
