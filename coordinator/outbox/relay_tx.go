package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
)

// txSink makes a Sink of a TxSink in a transaction that is open: each call is a savepoint. Events that fail together are tried one by one.
type txSink struct {
	sink   TxSink
	tx     pgx.Tx
	tried  int64 // the first event of the last try
	broken error // what went wrong when the transaction, and not only a savepoint in it, was lost
}

// blame is why the transaction of an event alone was lost: it is put aside without another try.
type blame struct {
	event int64
	err   error
}

func (s *txSink) Send(ctx context.Context, events []Event) (accepted int, err error) {
	err = s.try(ctx, events)
	if err == nil {
		return len(events), nil
	}
	if len(events) > 1 && !isRefusal(err) {
		for i := range events {
			if err := s.try(ctx, events[i:i+1:i+1]); err != nil {
				return i, err
			}
		}
		return len(events), nil
	}
	return 0, err
}

func isRefusal(err error) bool {
	_, down := IsUnavailable(err)
	return down || errors.Is(err, ErrGone)
}

func (s *txSink) try(ctx context.Context, events []Event) (err error) {
	if s.broken != nil {
		return s.broken
	}
	s.tried = events[0].Seq
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("outbox: the sink panicked: %v", p)
		}
		if err != nil {
			ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer stop()
			if _, fault := s.tx.Exec(ctx, "ROLLBACK TO SAVEPOINT pawl_sink"); fault != nil {
				s.broken = err
			}
		}
	}()
	if _, err := s.tx.Exec(ctx, "SAVEPOINT pawl_sink"); err != nil {
		return err
	}
	if err := s.sink.SendTx(ctx, db.Lend(s.tx), events); err != nil {
		return err
	}
	_, err = s.tx.Exec(ctx, "RELEASE SAVEPOINT pawl_sink")
	return err
}

// turnTx is turn for a TxSink. A transaction that is lost with its events is tried with one event alone; one that loses it even so is put aside without another try.
func (r *relay) turnTx(ctx context.Context, at *position, topics []string, lazy bool) (got turned, err error) {
	if !r.waitUp(ctx) {
		return got, context.Cause(ctx)
	}
	next, batch, alone := *at, *at.batch, r.page == 1
	next.batch = &batch
	lost, err := r.inTx(ctx, r.blame, func(tx pgx.Tx, sink Sink) error {
		got, err = r.turnOn(ctx, tx, sink, &next, topics, lazy)
		return err
	})
	switch {
	case errors.Is(err, errDown):
		return turned{}, nil
	case lost != nil:
		if alone {
			r.blame = lost
		}
		r.page = 1
		return turned{}, nil
	case err != nil:
		return turned{}, err
	}
	*at, r.blame = next, nil
	if got.events > 0 {
		r.committed(ctx)
	}
	return got, nil
}

// retryKeyTx is retryKey for a TxSink.
func (r *relay) retryKeyTx(ctx context.Context, key string, id int64) {
	try := func(events int, on *blame) (lost *blame) {
		locked := false
		defer func() {
			if locked {
				r.mu.Unlock()
			}
		}()
		var left int64
		lost, err := r.inTx(ctx, on, func(tx pgx.Tx, sink Sink) error {
			q := db.New(tx)
			p, ok := r.retry(ctx, q, sink, key, id, events)
			if !ok {
				return errDown
			}
			r.mu.Lock() // until the transaction has ended
			locked = true
			var err error
			left, err = r.settleParked(ctx, q, p)
			return err
		})
		if lost != nil || errors.Is(err, errDown) {
			return lost
		}
		r.unblock(key, left, err)
		if err == nil {
			r.committed(ctx)
		}
		return nil
	}
	lost := try(r.s.Batch, nil)
	if lost != nil {
		lost = try(1, nil)
	}
	if lost != nil {
		_ = try(1, lost)
	}
}

// inTx runs do in a transaction that has the shard, with a sink in it, which fails at once for an event that is blamed. lost: which event did what, that the transaction did not survive.
func (r *relay) inTx(ctx context.Context, on *blame, do func(pgx.Tx, Sink) error) (lost *blame, err error) {
	sink := &txSink{sink: r.s.SinkTx}
	committing := false
	err = beginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		q := db.New(tx)
		if err := q.BoundStatements(ctx, int32(r.s.Timeout.Milliseconds())); err != nil {
			return err
		}
		if err := q.LockSubscription(ctx, db.LockSubscriptionParams{SubscriptionID: r.p.id, Shard: r.p.shard}); err != nil {
			return err
		}
		sink.tx = tx
		var to Sink = sink
		if on != nil {
			to = SinkFunc(func(ctx context.Context, events []Event) (int, error) {
				if events[0].Seq == on.event {
					return 0, on.err
				}
				return sink.Send(ctx, events)
			})
		}
		if err := do(tx, to); err != nil {
			return err
		}
		committing = sink.broken == nil
		return sink.broken
	})
	if ctx.Err() != nil || err == nil {
		return nil, err
	}
	if sink.broken == nil && committing && db.Code(err) != "" { // such as a deferred constraint
		sink.broken = err
	}
	if sink.broken == nil {
		return nil, err
	}
	return &blame{sink.tried, sink.broken}, err
}

// committed tells a TxSink that wants to know.
func (r *relay) committed(ctx context.Context) {
	if c, ok := r.s.SinkTx.(interface {
		Committed(context.Context, *pgxpool.Pool)
	}); ok {
		c.Committed(ctx, r.pool)
	}
}
