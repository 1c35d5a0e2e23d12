package tcc

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pawl-dev/pawl/db"
)

// State is how a transaction, or a branch of it, stands: derived from what was appended about it.
type State string

// The states. Confirmed and Cancelled are final.
const (
	Active     State = "active"     // not decided
	Confirming State = "confirming" // decided so, and not done
	Cancelling State = "cancelling" // the same
	Stuck      State = "stuck"      // decided, and a branch waits for an operator
	Confirmed  State = "confirmed"
	Cancelled  State = "cancelled"
)

// Final tells that nothing more will happen.
func (s State) Final() bool { return s == Confirmed || s == Cancelled }

// Story is all that is known of a transaction.
type Story struct {
	ID        string     `json:"id"`
	State     State      `json:"state"`
	BegunAt   time.Time  `json:"begun_at"`
	BegunBy   string     `json:"begun_by"`
	Deadline  time.Time  `json:"deadline"`
	DecidedAt *time.Time `json:"decided_at,omitempty"`
	DecidedBy string     `json:"decided_by,omitempty"` // "initiator", "pawl" at the deadline, or an operator
	Reason    string     `json:"reason,omitempty"`     // of a cancellation
	Branches  []Branch   `json:"branches"`
}

// Branch is a branch in a Story. That it is there says that it may have been tried.
type Branch struct {
	Name         string          `json:"name"`
	Kind         string          `json:"kind"`
	Queue        string          `json:"queue"`
	State        State           `json:"state"`
	RegisteredAt time.Time       `json:"registered_at"`
	Args         json.RawMessage `json:"args"`
	JobID        int64           `json:"job_id,string,omitempty"` // that confirms or cancels it, the newest; 0: none
	EndedAt      *time.Time      `json:"ended_at,omitempty"`
}

// Get tells a transaction's whole story. The error is ErrNotFound if there is none, or none any more (Keep).
func Get(ctx context.Context, on DB, ns int16, id string) (*Story, error) {
	q := db.New(on)
	row, err := q.ReadTCC(ctx, db.ReadTCCParams{Ns: ns, ID: id})
	if err != nil {
		return nil, fmt.Errorf("transaction %s: %w", id, wrap(err))
	}
	if row.BegunAt == nil {
		return nil, fmt.Errorf("transaction %s: %w", id, ErrNotFound)
	}
	s := &Story{
		ID: id, State: stateOf(row), BegunAt: *row.BegunAt, BegunBy: row.BegunBy, Deadline: *row.DeadlineAt, DecidedAt: row.DecidedAt, DecidedBy: row.DecidedBy, Reason: row.Reason, Branches: []Branch{},
	}
	branches, err := q.ListTCCBranches(ctx, db.ListTCCBranchesParams{Ns: ns, ID: id})
	if err != nil {
		return nil, fmt.Errorf("transaction %s: branches: %w", id, wrap(err))
	}
	for _, r := range branches {
		b := Branch{Name: branchName(r.Kind, r.N), Kind: r.Kind, Queue: r.Queue, State: s.State, RegisteredAt: r.At, Args: r.Args, JobID: r.JobID}
		switch {
		case r.Done:
			b.State, b.EndedAt = ended(row.Confirmed), &r.EndedAt
		case r.Stuck:
			b.State = Stuck
		}
		s.Branches = append(s.Branches, b)
	}
	for _, b := range s.Branches {
		if b.State == Stuck {
			s.State = Stuck
		}
	}
	return s, nil
}

func ended(confirmed bool) State {
	if confirmed {
		return Confirmed
	}
	return Cancelled
}

// stateOf does not look whether a branch is stuck.
func stateOf(row db.ReadTCCRow) State {
	switch {
	case !row.Decided:
		return Active
	case row.Branches == row.Ended:
		return ended(row.Confirmed)
	case row.Confirmed:
		return Confirming
	}
	return Cancelling
}

const (
	awaitMin = 5 * time.Millisecond   // until a transaction is looked at again, at first,
	awaitMax = 400 * time.Millisecond // and at last
)

// Await waits until all branches of a transaction are confirmed. It holds no connection while it waits: it looks again after 5 ms, then ever less often, at most every 400 ms. The error is ErrCancelled if all were cancelled instead, ErrNotFound,
// ErrUnfinished with ctx's cause, or the database's. It goes on waiting for one that is stuck.
func Await(ctx context.Context, on DB, ns int16, id string) error {
	for wait := awaitMin; ; wait = min(wait*3/2, awaitMax) {
		row, err := db.New(on).ReadTCC(ctx, db.ReadTCCParams{Ns: ns, ID: id})
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("await transaction %s: %w: %w", id, ErrUnfinished, context.Cause(ctx))
		case err != nil:
			return fmt.Errorf("await transaction %s: %w", id, wrap(err))
		case row.BegunAt == nil:
			return fmt.Errorf("await transaction %s: %w", id, ErrNotFound)
		}
		switch state := stateOf(row); state {
		case Confirmed:
			return nil
		case Cancelled:
			return fmt.Errorf("await transaction %s: %w: %s", id, ErrCancelled, row.Reason)
		case Active, Confirming, Cancelling, Stuck:
		default:
			return fmt.Errorf("await transaction %s: unknown state %q", id, state)
		}
		if err := pause(ctx, wait); err != nil {
			return fmt.Errorf("await transaction %s: %w: %w", id, ErrUnfinished, err)
		}
	}
}

// Retry has the branches of a transaction that are stuck tried again, with all their attempts. actor and reason are kept with it; both are required. The error is ErrNotStuck, ErrBusy or ErrNotFound.
func Retry(ctx context.Context, on DB, ns int16, id, actor, reason string) error {
	if actor == "" || reason == "" {
		return fmt.Errorf("retry transaction %s: %w: who does it and why are required", id, ErrInvalid)
	}
	queues, err := db.New(on).RetryTCC(ctx, db.RetryTCCParams{Ns: ns, ID: id, Actor: actor, Reason: reason})
	if err != nil {
		return fmt.Errorf("retry transaction %s: %w", id, wrap(err))
	}
	hintAll(ctx, on, ns, queues)
	return nil
}

// CancelByID is an operator's Transaction.Cancel, of one that nobody has decided. actor and reason are kept with it; both are required. The error is also ErrNotFound.
func CancelByID(ctx context.Context, on DB, ns int16, id, actor, reason string) error {
	if actor == "" || reason == "" {
		return fmt.Errorf("cancel %s: %w: who does it and why are required", id, ErrInvalid)
	}
	return decide(ctx, on, db.DecideTCCParams{Ns: ns, ID: id, Tried: []int32{}, DecidedBy: actor, Reason: reason})
}

// Filter selects transactions for List. Its zero value selects all.
type Filter struct {
	State  State  // "": any
	Before string // only those whose deadline is before that of this one; "": from the latest
	Limit  int    // rows, at most 1,000; default 50
}

// ListScanMax is how many transactions List looks at for one page when it filters by state.
const ListScanMax = 5_000

// List returns transactions, the latest deadline first. A state is derived, so a filter by state looks at up to ListScanMax transactions; next is where to go on (Filter.Before), "" where there are no more. The error is ErrNotFound if there is no
// transaction Filter.Before.
func List(ctx context.Context, on DB, ns int16, f Filter) (found []*Story, next string, err error) {
	limit := min(cmp.Or(max(f.Limit, 0), 50), 1000)
	p := db.ListTCCParams{Ns: ns, BeforeAt: endOfTime, BeforeID: "", LimitRows: int32(limit)}
	if f.Before != "" {
		before, err := Get(ctx, on, ns, f.Before)
		if err != nil {
			return nil, "", err
		}
		p.BeforeAt, p.BeforeID = before.Deadline, before.ID
	}
	for scanned := 0; scanned < ListScanMax; {
		rows, err := db.New(on).ListTCC(ctx, p)
		if err != nil {
			return nil, "", fmt.Errorf("list transactions: %w", wrap(err))
		}
		for _, r := range rows {
			p.BeforeAt, p.BeforeID = r.DeadlineAt, r.ID
			s, err := Get(ctx, on, ns, r.ID)
			if errors.Is(err, ErrNotFound) {
				continue // removed meanwhile
			}
			if err != nil {
				return nil, "", err
			}
			if f.State != "" && s.State != f.State {
				continue
			}
			if found = append(found, s); len(found) == limit {
				return found, r.ID, nil
			}
		}
		if len(rows) < limit {
			return found, "", nil
		}
		scanned += len(rows)
	}
	return found, p.BeforeID, nil
}

// endOfTime is behind every deadline.
var endOfTime = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
