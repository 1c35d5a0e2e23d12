package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

const (
	// SagaKeepDefault is how long sagas that have ended are kept, with their histories.
	SagaKeepDefault = 30 * 24 * time.Hour

	sagaTimersMax = 200  // deadlines and timers of sagas in one transaction
	sagasMax      = 1000 // sagas looked at in one transaction
	sagaPassesMax = 20   // such transactions in one run; the next one goes on from there
)

// sweepSagas does what is due, looks at all sagas for one that was forgotten, and removes the old.
func (c *Coordinator) sweepSagas(ctx context.Context, r *Report) error {
	_, err := c.fireSagas(ctx, r)
	if err != nil || r.Skipped {
		return err
	}
	return errors.Join(c.findForgotten(ctx, r), c.removeSagas(ctx, r))
}

// fireSagas does what is due: deadlines, timers, jobs to be withdrawn. It tells how long until the next is; negative: none is.
func (c *Coordinator) fireSagas(ctx context.Context, r *Report) (next time.Duration, err error) {
	next = -1
	var faults []error
	for range passesMax {
		row, err := c.q.SweepSagas(ctx, db.SweepSagasParams{Ns: c.conf.Namespace, LimitRows: sagaTimersMax})
		if err != nil {
			return -1, err
		}
		if row.Did < 0 {
			r.Skipped = true
			return -1, nil
		}
		next = untilNext(row.NextInMs)
		r.Did += int64(row.Did)
		c.hintQueues(ctx, row.Queues)
		more := row.Did == sagaTimersMax
		for _, id := range row.Withdraw {
			got, err := c.q.WithdrawSaga(ctx, db.WithdrawSagaParams{Ns: c.conf.Namespace, SagaID: id})
			if err != nil {
				faults = append(faults, fmt.Errorf("jobs of saga %d: %w", id, err))
				continue
			}
			more = more || got.More
			c.hintQueues(ctx, got.Queues)
			for _, s := range got.Sessions {
				c.sendHint(ctx, session.Hint(s))
			}
		}
		if !more || len(faults) > 0 {
			break
		}
	}
	return next, errors.Join(faults...)
}

// findForgotten goes on with its round over all sagas.
func (c *Coordinator) findForgotten(ctx context.Context, r *Report) error {
	p := db.SweepSagasForgottenParams{Ns: c.conf.Namespace, AfterID: c.sagasSeen.Load(), LimitRows: sagasMax}
	defer func() { c.sagasSeen.Store(p.AfterID) }()
	for range sagaPassesMax {
		row, err := c.q.SweepSagasForgotten(ctx, p)
		if err != nil {
			return err
		}
		for _, id := range row.Forgotten {
			r.Did++
			c.conf.Logger.Error("saga had nothing to wait for, its step counts as exhausted", "saga", id)
		}
		if row.Last == nil {
			p.AfterID = 0
			return nil
		}
		p.AfterID = *row.Last
	}
	return nil
}

// removeSagas makes one round over those that may go.
func (c *Coordinator) removeSagas(ctx context.Context, r *Report) error {
	p := db.SweepSagasOldParams{Ns: c.conf.Namespace, Keep: c.conf.SagaKeep, LimitRows: sagasMax}
	for range passesMax {
		row, err := c.q.SweepSagasOld(ctx, p)
		if err != nil {
			return err
		}
		r.Did += int64(row.Removed)
		if row.Last == nil {
			return nil
		}
		p.AfterID = *row.Last
	}
	return nil
}

func (c *Coordinator) hintQueues(ctx context.Context, names []string) {
	for _, name := range names {
		c.sendHint(ctx, "n"+name)
	}
}

func (c *Coordinator) sendHint(ctx context.Context, payload string) {
	_ = c.q.SendHint(ctx, db.SendHintParams{Channel: session.Channel(c.conf.Namespace), Payload: payload}) // hints are hints
}
