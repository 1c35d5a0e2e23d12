package twophase

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pawl-dev/pawl/db"
)

const (
	decisionsMax = 500                    // decisions in one transaction
	endedWait    = 500 * time.Millisecond // until transactions that are committed everywhere are noted, together
)

// decider writes decisions. Those that gather while one transaction is under way go together in the next.
type decider struct {
	m *Manager

	mu      sync.Mutex
	busy    bool
	waiting []*decision
	ends    []string // ids of those that are committed everywhere, to be noted
	timed   bool     // a timer will see to the ends
}

// decision is one that is asked for.
type decision struct {
	t            *Tx
	participants []string
	told         chan error // has room for one
}

// decide makes the commit point of t: nil, ErrUnknown, or why it is aborted.
func (d *decider) decide(ctx context.Context, t *Tx, participants []string) error {
	one := &decision{t, participants, make(chan error, 1)}
	d.mu.Lock()
	d.waiting = append(d.waiting, one)
	lead := !d.busy
	d.busy = true
	d.mu.Unlock()
	if lead {
		d.turn(context.WithoutCancel(ctx))
	}
	return <-one.told
}

// turn writes what waits, and has another goroutine write what has gathered meanwhile.
func (d *decider) turn(ctx context.Context) {
	d.mu.Lock()
	n := min(len(d.waiting), decisionsMax)
	batch := d.waiting[:n:n]
	d.waiting = slices.Clone(d.waiting[n:])
	if n == 0 {
		d.busy = false
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()
	bounded, stop := context.WithTimeout(ctx, decideMax)
	defer stop()
	p := db.DecideGlobalParams{Ns: d.m.conf.Namespace, DecidedBy: d.m.conf.Name}
	for _, one := range batch {
		p.IDs, p.Deadlines = append(p.IDs, one.t.ID()), append(p.Deadlines, one.t.id.Deadline)
		p.Branches = append(p.Branches, one.t.id.String())
		p.Participants = append(p.Participants, strings.Join(one.participants, ","))
	}
	committed, err := d.write(bounded, p)
	for i, one := range batch {
		switch {
		case err != nil:
			one.told <- fmt.Errorf("%w: %w", ErrUnknown, err)
		case !committed[i]:
			one.told <- errAbortedBefore
		default:
			one.told <- nil
		}
	}
	go d.turn(ctx)
}

var errAbortedBefore = errors.New("its deadline had passed, or recovery aborted it")

// write asks until the server answers: a decision that was written before stays as it is. Mostly all of them are written at once; else it asks who was first.
func (d *decider) write(ctx context.Context, p db.DecideGlobalParams) (committed []bool, err error) {
	for {
		d.m.fail("deciding")
		rows, err := d.m.q.DecideGlobal(ctx, p)
		if err == nil && len(rows) == len(p.IDs) {
			return slices.Repeat([]bool{true}, len(rows)), nil
		}
		if err == nil {
			committed, err = d.m.q.SettleGlobalDecision(ctx, db.SettleGlobalDecisionParams{Ns: p.Ns, IDs: p.IDs, Deadlines: p.Deadlines, Branches: p.Branches, Participants: p.Participants, DecidedBy: p.DecidedBy})
		}
		if err == nil || ctx.Err() != nil || db.IsUnmigrated(err) {
			return committed, wrap(err)
		}
		pause(ctx, decideRetry)
	}
}

// find asks what is decided, where the transaction that was to decide was lost with err. Where nothing is, it aborts it: nil, ErrUnknown, or err.
func (d *decider) find(ctx context.Context, id string, err error) error {
	for ctx.Err() == nil {
		fault := d.m.q.AbortGlobal(ctx, db.AbortGlobalParams{Ns: d.m.conf.Namespace, IDs: []string{id}, DecidedBy: d.m.conf.Name, Reason: "the connection was lost at its commit"})
		if fault == nil {
			committed, fault := d.m.Outcome(ctx, id)
			if fault == nil && committed {
				return nil
			} else if fault == nil {
				return err
			}
		}
		pause(ctx, decideRetry)
	}
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// ended has it noted, some time, that a transaction is committed everywhere: recovery need not look at it.
func (d *decider) ended(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ends = append(d.ends, id)
	if !d.timed {
		d.timed = true
		time.AfterFunc(endedWait, d.note)
	}
}

func (d *decider) note() {
	d.mu.Lock()
	ends := d.ends
	d.ends, d.timed = nil, false
	d.mu.Unlock()
	if len(ends) == 0 {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), abortMax)
	defer stop()
	_ = d.m.q.EndGlobal(ctx, db.EndGlobalParams{Ns: d.m.conf.Namespace, IDs: ends}) // else recovery does
}
