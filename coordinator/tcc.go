package coordinator

import (
	"context"
	"errors"

	"github.com/pawl-dev/pawl/coordinator/tcc"
	"github.com/pawl-dev/pawl/db"
)

const (
	tccMax       = 200  // transactions cancelled in one transaction
	tccLookMax   = 1000 // looked at in one transaction
	tccPassesMax = 20   // such transactions in one run; the next one goes on from there
)

// sweepTCC cancels global transactions over services that nobody has decided by their deadline, tells of branches that are stuck, and removes the old.
func (c *Coordinator) sweepTCC(ctx context.Context, r *Report) error {
	p := db.SweepTCCParams{Ns: c.conf.Namespace, LimitRows: tccMax}
	for range passesMax {
		row, err := c.q.SweepTCC(ctx, p)
		if err != nil {
			return err
		}
		if row.Did < 0 {
			r.Skipped = true
			return nil
		}
		r.Did += int64(row.Did)
		c.hintQueues(ctx, row.Queues)
		for _, what := range row.Failed {
			c.conf.Logger.Error("transaction could not be cancelled, the next sweep tries again", "transaction", what)
		}
		if row.Last == nil {
			break
		}
		p.AfterAt, p.AfterID = *row.Last, row.LastID
	}
	return errors.Join(c.findStuckTCC(ctx, r), c.removeTCC(ctx, r))
}

// tccRound is how far a round over transactions has come.
type tccRound struct{ after db.SweepTCCStuckParams }

// findStuckTCC goes on with its round over all transactions that are decided.
func (c *Coordinator) findStuckTCC(ctx context.Context, r *Report) error {
	p := db.SweepTCCStuckParams{Ns: c.conf.Namespace, LimitRows: tccLookMax}
	if round := c.tccSeen.Load(); round != nil {
		p = round.after
	}
	defer func() { c.tccSeen.Store(&tccRound{p}) }()
	for range tccPassesMax {
		row, err := c.q.SweepTCCStuck(ctx, p)
		if err != nil {
			return err
		}
		for _, branch := range row.Stuck {
			r.Did++
			c.conf.Logger.Error("branch is stuck, an operator must see to it", "branch", branch)
		}
		if row.Last == nil {
			p = db.SweepTCCStuckParams{Ns: p.Ns, LimitRows: p.LimitRows}
			return nil
		}
		p.AfterAt, p.AfterID = *row.Last, row.LastID
	}
	return nil
}

// removeTCC makes one round over those that may go.
func (c *Coordinator) removeTCC(ctx context.Context, r *Report) error {
	p := db.SweepTCCOldParams{Ns: c.conf.Namespace, Keep: tcc.Keep, LimitRows: tccLookMax}
	for range passesMax {
		row, err := c.q.SweepTCCOld(ctx, p)
		if err != nil {
			return err
		}
		r.Did += int64(row.Removed)
		if row.Last == nil {
			return nil
		}
		p.AfterAt, p.AfterID = *row.Last, row.LastID
	}
	return nil
}
