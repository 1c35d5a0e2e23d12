package idempotency

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
)

// AbandonedKeep is how long the claim and the points of a phased request are kept that was not finished, from the last that was heard of it. Until then every request with the
// key goes on from its newest point; afterwards the key is like one never used, but for its derived keys.
const AbandonedKeep = 90 * 24 * time.Hour

// PointsMax bounds the phases of a request.
const PointsMax = 100

// releaseMax bounds the giving up of a claim; one that was not given up runs out.
const releaseMax = 5 * time.Second

// Claim is a phased request at work: see Phases. Not safe for concurrent use.
type Claim struct {
	request
	token  int64
	points []point // that were reached before this claim, then by it
	next   int     // of points, what the code has not yet come by
	named  map[string]bool
	fault  error // after which the claim is of no more use
}

type point struct {
	Name   string          `json:"name"`
	Output json.RawMessage `json:"output"`
}

// Phases runs fn under a claim on the key: a request with effects elsewhere, which no transaction can undo. What fn does goes in phases, PhaseTx for what it does in this
// database and Phase for what it does elsewhere, and nothing outside of them, for fn runs from its beginning at every try: a phase that is over is passed by, with its stored
// output as its result. So a crash or an error costs no more than the phase that was under way. The answer of fn is stored and replayed as that of Do is, in one round trip.
//
// Each phase commits one row, its recovery point, in the transaction that proves that the claim still stands. A process that was frozen, and whose claim another has taken
// over, commits no further phase and no answer: it gets ErrLost, and ctx ends with that cause. Phase may run more than once for one point (a crash after the call and before
// the commit, or a frozen process beside its successor), each time with the same DerivedKey, by which the service that is called tells that it has done it. A claim that
// has run out is never run anew: whoever takes it over goes on from its newest point. Phases that were stored by other code are not guessed at: where they differ from
// what fn does, by name and order, the error is ErrPoint.
//
// The claim is a row with an expiry, Options.Lease by Postgres's clock, that this process renews, until Phases returns, three times a lease. Not a session-level advisory
// lock: that would bind each request to a connection while it waits for another service, and not work behind a pooler; and losing the connection would lose it.
// While a phase's transaction is open, the key's transaction lock is held as well: a claim that runs out in the middle of one is not taken over before that has ended, which
// Options.Idle bounds. An error of fn, or a panic, gives the claim up at once, at its newest point, so the next try need not wait for the lease; fn itself
// decides what is an error, to be tried again, and what is an answer, such as 402 for a card that was declined. What has been reached binds the key to its fingerprint.
//
// The error is fn's, ErrInFlight, ErrMismatch, ErrUnknown, ErrLost, ErrPoint, ErrEnded, ErrInvalid, ErrSchema or the database's. Claims and points commit durably, whatever
// synchronous_commit says.
func Phases(ctx context.Context, pool *pgxpool.Pool, key Key, fingerprint []byte, o Options, fn func(ctx context.Context, c *Claim) (Response, error)) (out Response, replayed bool, err error) {
	r, err := newRequest(pool, key, fingerprint, o)
	if err != nil {
		return out, false, err
	}
	var c *Claim
	err = poll(ctx, r.Wait, func() error {
		out, replayed, c, err = r.claim(ctx)
		return err
	})
	if err != nil || replayed {
		return out, replayed, err
	}
	out, err = c.run(ctx, fn)
	return out, false, err
}

// claim claims the key, unless there is an answer.
func (r request) claim(ctx context.Context) (out Response, replayed bool, c *Claim, err error) {
	host, _ := os.Hostname()
	row, err := db.New(r.pool).ClaimKey(ctx, db.ClaimKeyParams{
		Ns: r.Namespace, Scope: r.key.Scope, Key: r.key.Key, Fingerprint: r.fingerprint, Holder: fmt.Sprintf("%s, pid %d", host, os.Getpid()), Lease: r.Lease,
	})
	if err != nil {
		return out, false, nil, fmt.Errorf("claim key: %w", wrap(err))
	}
	if s := state(row.What); s != claimed {
		out, replayed, err = r.outcome(s, row.Status, row.Headers, row.Body)
		return out, replayed, nil, err
	}
	c = &Claim{request: r, token: row.Token, named: map[string]bool{}}
	if err := json.Unmarshal(row.Points, &c.points); err != nil {
		return out, false, nil, fmt.Errorf("claim key: points: %w", err)
	}
	return out, false, c, nil
}

func (c *Claim) run(ctx context.Context, fn func(context.Context, *Claim) (Response, error)) (out Response, err error) {
	outer := ctx
	ctx, end := context.WithCancelCause(ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() { c.keep(ctx, end) })
	finished := false
	defer func() { // also on a panic of fn
		end(nil)
		keeper.Wait()
		if !finished {
			c.giveUp(outer)
		}
	}()
	c.fail("claimed")
	out, err = fn(ctx, c)
	if err == nil {
		err = c.fault
	}
	if err == nil && c.next < len(c.points) {
		err = fmt.Errorf("%w: %q was reached, and the code is over without it", ErrPoint, c.points[c.next].Name)
	}
	if err == nil {
		err = c.finish(ctx, out)
	}
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrLost) && !errors.Is(err, ErrLost) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	if err != nil {
		return Response{}, err
	}
	finished = true
	return out, nil
}

// broken notes an error of ours: no later phase and no answer may follow it.
func (c *Claim) broken(err error) error {
	c.fault = err
	return err
}

// finish stores the answer, which ends the claim.
func (c *Claim) finish(ctx context.Context, out Response) error {
	headers, body, err := c.encode(out)
	if err != nil {
		return err
	}
	c.fail("before-answer")
	err = c.commit(ctx, "store answer", func(q *db.Queries) error {
		return q.FinishKey(ctx, db.FinishKeyParams{
			Ns: c.Namespace, Scope: c.key.Scope, Key: c.key.Key, Token: c.token, Status: int32(out.Status), Headers: headers, Body: body, TTL: c.TTL,
		})
	})
	c.fail("after-answer")
	return err
}

// commit runs a statement that is a transaction of its own, and tells if nobody knows whether it was committed.
func (c *Claim) commit(ctx context.Context, what string, statement func(*db.Queries) error) error {
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer conn.Release()
	err = statement(db.New(conn))
	return committed(what, db.Unknown(conn.Conn(), err), err)
}

// keep renews the claim until ctx ends. If that does not succeed for most of a lease, counted from before the last renewal that did was sent, the claim counts as lost:
// this process stops before Postgres lets another go on.
func (c *Claim) keep(ctx context.Context, end context.CancelCauseFunc) {
	trusted := c.Lease * 4 / 5
	lose := func() { end(fmt.Errorf("%w: it could not be renewed for %s", ErrLost, trusted)) }
	over := time.AfterFunc(trusted, lose)
	defer func() { over.Stop() }()
	tick := time.NewTicker(c.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		next := time.AfterFunc(trusted, lose)
		still, err := c.renew(ctx, c.Lease)
		if err != nil {
			next.Stop()
			continue
		}
		over.Stop()
		over = next
		if !still {
			end(ErrLost)
		}
	}
}

func (c *Claim) renew(ctx context.Context, lease time.Duration) (still bool, err error) {
	ctx, stop := context.WithTimeout(ctx, max(c.Lease/3, leaseMin))
	defer stop()
	return db.New(c.pool).RenewKey(ctx, db.RenewKeyParams{Ns: c.Namespace, Scope: c.key.Scope, Key: c.key.Key, Token: c.token, Lease: lease})
}

// giveUp lets the next try go on at once. Where that fails, the claim runs out.
func (c *Claim) giveUp(ctx context.Context) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), releaseMax)
	defer stop()
	_, _ = c.renew(ctx, 0)
}
