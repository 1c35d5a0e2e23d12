package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
)

const (
	detachMax  = 10 * time.Second // one step of a range that leaves
	detachLock = "1s"             // one wait for a lock of it: below that of partition_ahead, which may wait behind it
)

// Range is a part of a table, by its key, which is below To.
type Range struct {
	Table string `json:"table"`
	From  int64  `json:"from,string"`
	To    int64  `json:"to,string"`
}

// sweepPartitions makes the hot tables' next ranges, and drops those of the outbox that nobody needs any more.
func (c *Coordinator) sweepPartitions(ctx context.Context, r *Report) error {
	ctx, stop := context.WithTimeout(ctx, sweepTimeout)
	defer stop()
	made, err := c.q.SweepPartitions(ctx)
	r.Did = int64(made)
	return errors.Join(err, c.leave(ctx, r))
}

// leave has ranges leave one by one. Each is marked first, which is for good, then detached and dropped: at any point a crash leaves it marked, and the next run goes on.
func (c *Coordinator) leave(ctx context.Context, r *Report) error {
	for range passesMax {
		if left, err := c.dropLeaving(ctx, r); err != nil || !left {
			return err
		}
		row, err := c.q.LeaveOutbox(ctx)
		if err != nil || !row.Leaves {
			return err
		}
		for _, missed := range row.Missed {
			c.conf.Logger.Error("events dropped before a subscription had them", "from", row.RangeFrom, "to", row.RangeTo, "missed", missed)
		}
	}
	return nil
}

// dropLeaving detaches and drops the ranges that are marked. False: some are left, since a transaction uses them or another node is at them.
func (c *Coordinator) dropLeaving(ctx context.Context, r *Report) (all bool, err error) {
	leaving, err := c.q.ListLeaving(ctx)
	if err != nil || len(leaving) == 0 {
		return err == nil, err
	}
	own, err := c.detacher(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = own.Close(context.WithoutCancel(ctx)) }()
	// The lock is another connection's, for DETACH … CONCURRENTLY runs in no transaction.
	err = pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if held, err := db.New(tx).LockLeaving(ctx); err != nil || !held {
			return err
		}
		// By the simple protocol: a portal that is left open keeps its snapshot, for which FINALIZE would wait.
		if _, err := tx.Exec(ctx, "SELECT"); err != nil {
			return err
		}
		leaving, err := db.New(own).ListLeaving(ctx)
		for _, l := range leaving {
			if err = dropRange(ctx, own, l); err != nil {
				break
			}
			dropped := Range{l.Parent, l.RangeFrom, l.RangeTo}
			r.Dropped = append(r.Dropped, dropped)
			r.Did++
			c.conf.Logger.Info("range dropped", "table", dropped.Table, "from", dropped.From, "to", dropped.To)
		}
		all = err == nil
		return err
	})
	if db.Code(err) == codeLockTimeout || errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		c.conf.Logger.Info("range not dropped yet, a transaction uses it", "err", err)
		return false, nil
	}
	return all, err
}

const codeLockTimeout = "55P03"

// detacher is a connection of its own, for it does not go back with a lock_timeout. Behind a pooler that would stay with another's: there detachMax alone bounds its waits.
func (c *Coordinator) detacher(ctx context.Context) (*pgx.Conn, error) {
	pooled, err := c.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	conn := pooled.Hijack()
	pid, err := db.New(conn).ReadBackendPID(ctx)
	if err == nil && uint32(pid) == conn.PgConn().PID() {
		_, err = conn.Exec(ctx, "SET lock_timeout = '"+detachLock+"'")
	}
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return conn, nil
}

// dropRange takes a range from its table and drops it. While that waits, for transactions that use the table or have read the range, nobody waits for it.
func dropRange(ctx context.Context, conn *pgx.Conn, l db.ListLeavingRow) error {
	ctx, stop := context.WithTimeout(ctx, detachMax)
	defer stop()
	if l.Statement != "" {
		if _, err := conn.Exec(ctx, l.Statement); err != nil {
			return fmt.Errorf("detach range %d of %s: %w", l.RangeFrom, l.Parent, err)
		}
	}
	dropped, err := db.New(conn).DropPartition(ctx, db.DropPartitionParams{Parent: l.Parent, RangeFrom: l.RangeFrom})
	if err == nil && !dropped {
		err = errors.New("it is still attached")
	}
	if err != nil {
		return fmt.Errorf("drop range %d of %s: %w", l.RangeFrom, l.Parent, err)
	}
	return nil
}
