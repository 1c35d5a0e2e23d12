package twophase

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
)

const (
	// SettleMax is how long Commit waits for participants to commit what they have prepared, once it is decided.
	SettleMax = 10 * time.Second

	decideMax   = 30 * time.Second       // how long the decision is asked for, until it is unknown
	decideRetry = 250 * time.Millisecond // between two tries
	abortMax    = 5 * time.Second        // how long participants are told to roll back
)

// Tx is a global transaction. Its methods are not safe for concurrent use, but for ID and the beginning of branches.
type Tx struct {
	m       *Manager
	id      BranchID // without a participant
	timeout time.Duration

	mu       sync.Mutex
	branches map[string]*branch
	own      *own // the coordinator's database's part; nil: it has none
	ended    bool
	pending  []string
}

// own is the part of the coordinator's own database: it is never prepared, the decision rides in it.
type own struct {
	conn *pgxpool.Conn
	lazy *db.Lazy
	tx   *db.Tx // of it
}

// branch is a branch of a Tx.
type branch struct {
	once sync.Once
	p    Participant
	b    Branch
	err  error

	prepared bool
	unknown  bool // it may be prepared
}

// ID is the transaction's: a UUIDv7.
func (t *Tx) ID() string { return t.id.ID.String() }

// Pending names the participants that had not yet done what was decided when Commit or Rollback returned. Recovery has them do it.
func (t *Tx) Pending() []string { return t.pending }

// Own gives the transaction in the coordinator's own database, which begins with its first statement: with it the decision commits, so that it costs no prepare. READ COMMITTED. The global transaction ends it.
func (t *Tx) Own(ctx context.Context) (pgx.Tx, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return nil, ErrEnded
	}
	if t.own != nil {
		return t.own.tx, nil
	}
	conn, err := t.m.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("own: %w", err)
	}
	lazy := db.NewLazy(conn.Conn())
	t.own = &own{conn, lazy, db.Lend(lazy)}
	return t.own.tx, nil
}

// enlist gives the branch at a participant, which begins at the first call.
func (t *Tx) enlist(ctx context.Context, p Participant) (Branch, error) {
	t.mu.Lock()
	if t.ended {
		t.mu.Unlock()
		return nil, ErrEnded
	}
	if t.m.participants[p.Name()] != p {
		t.mu.Unlock()
		return nil, fmt.Errorf("%w: participant %s was not given to New", ErrInvalid, p.Name())
	}
	b := t.branches[p.Name()]
	if b == nil {
		b = &branch{p: p}
		t.branches[p.Name()] = b
	}
	t.mu.Unlock()
	b.once.Do(func() {
		one, err := p.Begin(ctx, t.id.at(p.Name()))
		t.mu.Lock()
		late := t.ended && err == nil
		if b.b, b.err = one, err; late {
			b.b, b.err = nil, ErrEnded
		}
		t.mu.Unlock()
		if late { // a goroutine that the function left behind
			one.Close(ctx)
		}
	})
	return b.b, b.err
}

// end marks the end, and gives the branches that have begun, by name.
func (t *Tx) end() ([]*branch, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return nil, false
	}
	t.ended = true
	var all []*branch
	for _, b := range t.branches {
		if b.b != nil {
			all = append(all, b)
		}
	}
	slices.SortFunc(all, func(a, b *branch) int { return strings.Compare(a.p.Name(), b.p.Name()) })
	return all, true
}

// each calls do for all branches at the same time, and joins the errors.
func each(all []*branch, do func(*branch) error) error {
	errs := make([]error, len(all))
	var group sync.WaitGroup
	for i, b := range all[min(1, len(all)):] {
		group.Go(func() { errs[i+1] = do(b) })
	}
	if len(all) > 0 {
		errs[0] = do(all[0])
	}
	group.Wait()
	return errors.Join(errs...)
}

// Rollback rolls back, unless the transaction has ended. It tells nobody who is not there: what cannot be reached rolls back by itself, or by recovery.
func (t *Tx) Rollback(ctx context.Context) {
	all, ok := t.end()
	if ok {
		t.abort(ctx, all)
	}
}

// Commit commits at all participants, or nowhere. nil: it is decided, durably, that it is committed; participants that did not do so within SettleMax are Pending, and recovery has them do it. Else the error is
// ErrAborted, ErrUnknown, a [MixedError], or ErrEnded. Once it is under way ctx's end does not stop it.
//
// With one writer in all, or none, it is committed there at once; else all that wrote prepare, in parallel, the decision is written to the coordinator's database, together with its own part, and all commit, in
// parallel. A crash before the decision rolls back everywhere, after it commits everywhere, by recovery.
func (t *Tx) Commit(ctx context.Context) error {
	all, ok := t.end()
	if !ok {
		return fmt.Errorf("commit %s: %w", t.ID(), ErrEnded)
	}
	ctx = context.WithoutCancel(ctx)
	writers, err := t.vote(ctx, all)
	if err == nil {
		t.m.fail("voted")
		if err = t.decide(ctx, writers); err != nil {
			t.m.leaveHome() // its clock may have been set, by which deadlines are
		}
	}
	switch {
	case errors.Is(err, ErrUnknown):
		t.shut(ctx, all)
		t.pending = names(writers)
		return fmt.Errorf("commit %s: %w", t.ID(), err)
	case err != nil:
		if mixed := t.abort(ctx, all); len(mixed) > 0 {
			return errors.Join(&MixedError{t.ID(), false, mixed}, err)
		}
		return fmt.Errorf("commit %s: %w: %w", t.ID(), ErrAborted, err)
	}
	err = t.finish(ctx, writers)
	t.shut(ctx, all)
	return err
}

// vote finds who has written, and has all of them prepare unless one alone has.
func (t *Tx) vote(ctx context.Context, all []*branch) (writers []*branch, err error) {
	ctx, stop := context.WithTimeout(ctx, t.timeout)
	defer stop()
	if len(all) == 1 && t.own == nil {
		return all, nil
	}
	wrote := make([]bool, len(all))
	index := map[*branch]int{}
	for i, b := range all {
		index[b] = i
	}
	err = each(all, func(b *branch) error {
		readOnly, err := b.b.ReadOnly(ctx)
		wrote[index[b]] = !readOnly
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, b := range all {
		if wrote[i] {
			writers = append(writers, b)
		}
	}
	if len(writers) == 1 && t.own == nil {
		return writers, nil
	}
	return writers, each(writers, func(b *branch) (err error) {
		b.unknown, err = b.b.Prepare(ctx)
		b.prepared = err == nil
		t.m.fail("prepared " + b.p.Name())
		return err
	})
}

// decide is the commit point.
func (t *Tx) decide(ctx context.Context, writers []*branch) error {
	switch {
	case len(writers) == 0 && t.own == nil:
		return nil
	case len(writers) == 0:
		return t.commitOwn(ctx, false, "SELECT 1")
	case !writers[0].prepared:
		return t.commitOne(ctx, writers[0])
	case t.own != nil:
		return t.commitOwn(ctx, true, "SELECT pawl.global_decide_here($1::smallint, $2::uuid, $3::timestamptz, $4::text, $5::text, $6::text)",
			t.m.conf.Namespace, t.ID(), t.id.Deadline, t.id.String(), strings.Join(names(writers), ","), t.m.conf.Name)
	}
	return t.m.decider.decide(ctx, t, names(writers))
}

// commitOne commits the only branch that wrote.
func (t *Tx) commitOne(ctx context.Context, b *branch) error {
	commit, stop := context.WithTimeout(ctx, t.timeout)
	defer stop()
	unknown, err := b.b.Commit(commit)
	if !unknown {
		return err
	}
	asked, stop := context.WithTimeout(ctx, decideMax)
	defer stop()
	for asked.Err() == nil {
		committed, fault := b.p.Fence(asked, t.id.at(b.p.Name()))
		if fault == nil && committed {
			return nil
		} else if fault == nil {
			return err
		}
		pause(asked, decideRetry)
	}
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// commitOwn commits the coordinator's own part, after a statement, which decides or is of no account.
func (t *Tx) commitOwn(ctx context.Context, decides bool, statement string, args ...any) error {
	if _, err := intact(t.own.lazy, t.own.conn); err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, decideMax)
	defer stop()
	unknown, err := t.own.tx.End(ctx, statement, args...)
	switch {
	case !unknown:
		return err
	case !decides:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return t.m.decider.find(ctx, t.ID(), err)
}

// finish has all commit that have prepared.
func (t *Tx) finish(ctx context.Context, writers []*branch) error {
	if len(writers) == 0 || !writers[0].prepared {
		return nil
	}
	t.m.fail("decided")
	ctx, stop := context.WithTimeout(ctx, SettleMax)
	defer stop()
	var mu sync.Mutex
	var mixed []string
	_ = each(writers, func(b *branch) error {
		err := b.b.Settle(ctx, true)
		t.m.fail("committed " + b.p.Name())
		if err != nil { // on another connection, which also finds out what became of a reply that was lost
			_, err = t.m.settle(ctx, b.p, t.id.at(b.p.Name()), true)
		}
		if err == nil {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if isMixed := (*MixedError)(nil); errors.As(err, &isMixed) {
			mixed = append(mixed, b.p.Name())
		}
		if !isNoted(err) {
			t.m.conf.Logger.Warn("a participant has not committed yet what was decided, recovery goes on", "id", t.ID(), "participant", b.p.Name(), "err", err)
			t.pending = append(t.pending, b.p.Name())
		}
		return nil
	})
	if len(t.pending) == 0 {
		t.m.decider.ended(t.ID())
	}
	if len(mixed) > 0 {
		return &MixedError{t.ID(), true, mixed}
	}
	return nil
}

// abort rolls back everywhere, but at those that it names, where somebody has committed by hand. Where nobody knows whether a participant has prepared, the abort is written down, so that recovery need not wait for the
// deadline.
func (t *Tx) abort(ctx context.Context, all []*branch) (mixed []string) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), abortMax)
	defer stop()
	left := false
	for _, b := range all {
		left = left || b.unknown
	}
	var mu sync.Mutex
	_ = each(all, func(b *branch) error {
		if !b.prepared {
			return nil
		}
		err := b.b.Settle(ctx, false)
		if errors.Is(err, ErrAbsent) { // recovery was here, or somebody by hand
			_, err = t.m.settle(ctx, b.p, t.id.at(b.p.Name()), false)
		}
		mu.Lock()
		defer mu.Unlock()
		if isMixed := (*MixedError)(nil); errors.As(err, &isMixed) {
			mixed = append(mixed, b.p.Name())
		} else if err != nil {
			left = true
			t.pending = append(t.pending, b.p.Name())
		}
		return nil
	})
	if left {
		_ = t.m.q.AbortGlobal(ctx, db.AbortGlobalParams{Ns: t.m.conf.Namespace, IDs: []string{t.ID()}, DecidedBy: t.m.conf.Name, Reason: "rolled back"}) // else recovery aborts it at its deadline
	}
	t.shut(ctx, all)
	return mixed
}

// shut gives back all connections.
func (t *Tx) shut(ctx context.Context, all []*branch) {
	_ = each(all, func(b *branch) error {
		b.b.Close(ctx)
		return nil
	})
	if t.own != nil {
		t.own.tx.Undo(ctx)
		t.own.conn.Release()
	}
}

func names(all []*branch) []string {
	out := make([]string, len(all))
	for i, b := range all {
		out[i] = b.p.Name()
	}
	return out
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
