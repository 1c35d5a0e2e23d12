package sagatest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/worker"
)

// errCrashed says that the process died, as it was planned to.
var errCrashed = errors.New("sagatest: the process died")

// claim is a claim of one job.
type claim struct {
	id, nonce int64
	row       db.ReadBodiesRow
}

// Run does what can be done now, one attempt after another: of the highest priority first, then of the queue that was first named by a definition, then in the order of the line. It returns when nothing is left but what
// waits for time (Advance), for an operator, a signal or a handler. An attempt that fails waits for its backoff, 1 s and more unless the step says otherwise: Advance ends the wait. A panic of a handler is an error, as
// it is in a worker. ctx is the handlers'.
func (b *Bench) Run(ctx context.Context) {
	b.tb.Helper()
	b.begin(ctx)
	defer b.end(ctx)
	for range RunJobsMax {
		b.withdraw(ctx)
		c := b.claim(ctx)
		if c == nil {
			return
		}
		if err := b.work(ctx, c); errors.Is(err, errCrashed) {
			b.die(ctx)
			b.begin(ctx)
		} else {
			b.must("end an attempt", err)
		}
	}
	b.tb.Fatalf("sagatest: %d attempts, and still there is something to do", RunJobsMax)
}

// begin starts a session.
func (b *Bench) begin(ctx context.Context) {
	b.tb.Helper()
	kinds := []string{}
	for kind := range b.handlers {
		kinds = append(kinds, kind)
	}
	id, err := b.q.StartSession(ctx, db.StartSessionParams{Ns: namespace, Name: workerName, Pid: int32(os.Getpid()), TTL: sessionTTL, Kinds: kinds})
	b.must("start a session", err)
	b.session = id
}

// end gives back what nobody has a handler for, and ends the session.
func (b *Bench) end(ctx context.Context) {
	b.tb.Helper()
	ctx = context.WithoutCancel(ctx)
	for _, c := range b.strange {
		if err := b.settle(ctx, c, job.Ending{Outcome: job.Returned}, nil); err != nil {
			b.tb.Errorf("sagatest: give back a job: %v", err)
		}
	}
	b.strange = nil
	if _, err := b.q.EndSession(ctx, db.EndSessionParams{Ns: namespace, SessionID: b.session, Why: "closed"}); err != nil {
		b.tb.Errorf("sagatest: end the session: %v", err)
	}
}

// die ends the session with all that it holds, and does what the sweep does that finds it.
func (b *Bench) die(ctx context.Context) {
	b.tb.Helper()
	b.end(ctx)
	for range passesMax {
		got, err := b.q.RescueSession(ctx, db.RescueSessionParams{Ns: namespace, SessionID: b.session, ClaimsMax: claimsMax})
		b.must("rescue what a dead process held", err)
		if !got.LeftOver {
			return
		}
	}
}

// claim takes the next job that there is a handler for, nil: there is none.
func (b *Bench) claim(ctx context.Context) *claim {
	b.tb.Helper()
	for range RunJobsMax {
		queues, err := b.q.ListSagaQueues(ctx, db.ListSagaQueuesParams{Ns: namespace, LimitRows: queuesMax})
		b.must("look for work", err)
		look, err := b.q.LookForWork(ctx, db.LookForWorkParams{Ns: namespace, QueueIds: queues})
		b.must("look for work", err)
		if len(look.QueueIds) == 0 {
			return nil
		}
		b.nonce++
		got, err := b.q.ClaimJobs(ctx, db.ClaimJobsParams{Ns: namespace, SessionID: b.session, Nonce: b.nonce, QueueID: look.QueueIds[0], Priority: look.Priorities[0], JobsMax: 1})
		b.must("claim a job", err)
		if got.Jobs == 0 {
			continue // a look may promise too much
		}
		rows, err := b.q.ReadBodies(ctx, db.ReadBodiesParams{Ns: namespace, ClaimID: got.ClaimID, Nonce: b.nonce, OrdinalTo: 1})
		b.must("read a job", err)
		c := &claim{id: got.ClaimID, nonce: b.nonce, row: rows[0]}
		if b.handlerOf(c.row.Kind) != nil {
			return c
		}
		b.strange = append(b.strange, c)
	}
	b.tb.Fatalf("sagatest: a queue seems to have work, and none can be claimed")
	return nil
}

// handlerOf is that of a worker: a handler for the version goes before one for all.
func (b *Bench) handlerOf(kind string) *handler {
	h, there := b.handlers[kind]
	if !there {
		h, there = b.handlers[saga.AnyVersion(kind)]
	}
	if !there {
		return nil
	}
	return &h
}

// work makes an attempt and ends it.
func (b *Bench) work(ctx context.Context, c *claim) error {
	h, f := b.handlerOf(c.row.Kind), b.meet(c.row.Kind, c.row.Args)
	if f.point == BeforeAction {
		return errCrashed
	}
	headers, err := job.ParseHeaders(c.row.Headers)
	if err != nil {
		return err
	}
	j := &saga.Raw{
		ID: c.row.ID, Kind: c.row.Kind, Attempt: int(c.row.Attempt), MaxAttempts: int(c.row.MaxAttempts), CreatedAt: c.row.CreatedAt, Headers: headers, Args: c.row.Args,
	}
	var result json.RawMessage
	var done bool
	switch {
	case f.err != nil:
		err = f.err
	case h.tx:
		done, err = b.inTx(ctx, c, f, func(tx pgx.Tx) (json.RawMessage, error) { return b.call(ctx, h, tx, c, j) })
	default:
		result, err = b.call(ctx, h, nil, c, j)
	}
	if f.point == AfterAction || errors.Is(err, errCrashed) {
		return errCrashed
	}
	if !done {
		if err == nil && len(result) > worker.ResultBytesMax {
			err = job.Discard(fmt.Errorf("result of %d bytes exceeds %d", len(result), worker.ResultBytesMax))
		}
		if err = b.settle(ctx, c, job.EndingOf(err), result); db.Code(err) != "" {
			err = b.settle(ctx, c, job.Ending{Outcome: job.Failed, Err: errors.New("the ending was refused: " + db.Message(err))}, nil)
		}
		if err != nil {
			return err
		}
	}
	if f.point == AfterCommit {
		return errCrashed
	}
	return nil
}

// call calls the handler within the job's timeout; a panic is an error.
func (b *Bench) call(ctx context.Context, h *handler, tx pgx.Tx, c *claim, j *saga.Raw) (result json.RawMessage, err error) {
	if c.row.TimeoutMs > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, time.Duration(c.row.TimeoutMs)*time.Millisecond, job.ErrTimeout)
		defer stop()
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return h.do(ctx, tx, j)
}

// inTx runs do and the end of the attempt in one transaction. done: it has committed.
func (b *Bench) inTx(ctx context.Context, c *claim, f fault, do func(pgx.Tx) (json.RawMessage, error)) (done bool, err error) {
	tx, err := b.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // nothing after a commit
	result, err := do(db.Lend(tx))
	if err != nil {
		return false, err
	}
	if f.point == AfterAction {
		return false, errCrashed
	}
	_, err = b.q.WithTx(tx).FinishJobTx(ctx, db.FinishJobTxParams{Ns: namespace, SessionID: b.session, ClaimID: c.id, Nonce: c.nonce, Ordinal: 0, Result: result})
	if err == nil {
		err = tx.Commit(ctx)
	}
	return err == nil, err
}

// settle ends an attempt as a worker does that ends it by itself.
func (b *Bench) settle(ctx context.Context, c *claim, e job.Ending, result json.RawMessage) (err error) {
	p := db.SettleJobsParams{
		Ns: namespace, SessionID: b.session, ClaimIDs: []int64{c.id}, Nonces: []int64{c.nonce}, Ordinals: []int32{0}, Outcomes: []string{string(e.Outcome)}, Details: [][]byte{nil},
		DelaysMs: []int64{-1}, Results: [][]byte{result},
	}
	if e.Delay != nil {
		p.DelaysMs[0] = e.Delay.Milliseconds()
	}
	if e.Err != nil {
		p.Details[0], err = json.Marshal(struct {
			Error   string `json:"error"`
			Refused bool   `json:"refused,omitempty"`
		}{e.Err.Error(), e.Refused && e.Outcome == job.Discarded})
		if err != nil {
			return err
		}
	}
	_, err = b.q.SettleJobs(ctx, p)
	return err
}
