package tcc

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/pawl-dev/pawl/coordinator/barrier"
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

// Summary is a transaction in a listing.
type Summary struct {
	ID        string     `json:"id"`
	State     State      `json:"state"`
	BegunAt   time.Time  `json:"begun_at"`
	BegunBy   string     `json:"begun_by"`
	Deadline  time.Time  `json:"deadline"`
	Decision  barrier.Op `json:"decision,omitempty"` // barrier.Confirm or Cancel; "": none
	DecidedAt *time.Time `json:"decided_at,omitempty"`
	DecidedBy string     `json:"decided_by,omitempty"` // "initiator", "pawl" at the deadline, or an operator
	Reason    string     `json:"reason,omitempty"`     // of a cancellation
	Count     int        `json:"branch_count"`
	Done      int        `json:"done_count"` // branches that are confirmed or cancelled
	Stuck     int        `json:"stuck_count"`
}

// Story is all that is known of a transaction.
type Story struct {
	Summary
	Branches []Branch `json:"branches"`
	Events   []Event  `json:"events"` // the oldest first; the newest EventsMax
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
	Attempt      int             `json:"attempt,omitempty"`       // that this job is at, or ended with; 0: none, or the job is not kept any more
	MaxAttempts  int             `json:"max_attempts"`
	Error        string          `json:"error,omitempty"` // of the job's newest attempt that failed
	Served       bool            `json:"served"`          // a live worker confirms or cancels it, as is decided
	EndedAt      *time.Time      `json:"ended_at,omitempty"`
}

// Event is something that happened to a transaction, or to a branch of it: begun, registered, confirming or cancelling, stuck (when the sweep found it), retried, confirmed or cancelled.
type Event struct {
	At     time.Time `json:"at"`
	What   string    `json:"what"`
	Branch string    `json:"branch,omitempty"`
	Actor  string    `json:"actor,omitempty"` // who began, decided or retried
	Reason string    `json:"reason,omitempty"`
	JobID  int64     `json:"job_id,string,omitempty"` // that was stuck, or that a retry enqueued
}

// EventsMax is how many events a Story has: of more, the newest.
const EventsMax = 10_000

// Get tells a transaction's whole story. The error is ErrNotFound if there is none, or none any more (Keep).
func Get(ctx context.Context, on DB, ns int16, id string) (*Story, error) {
	q := db.New(on)
	branches, err := q.ListTCCBranches(ctx, db.ListTCCBranchesParams{Ns: ns, ID: id})
	if err != nil {
		return nil, fmt.Errorf("transaction %s: branches: %w", id, wrap(err))
	}
	row, err := q.ReadTCC(ctx, db.ReadTCCParams{Ns: ns, ID: id}) // the later one: what is done is decided
	if err != nil {
		return nil, fmt.Errorf("transaction %s: %w", id, wrap(err))
	}
	if row.BegunAt == nil {
		return nil, fmt.Errorf("transaction %s: %w", id, ErrNotFound)
	}
	stuck := 0
	for _, r := range branches {
		if r.Stuck {
			stuck++
		}
	}
	s := &Story{Summary: summary(id, row, stuck), Branches: []Branch{}}
	for _, r := range branches {
		b := Branch{
			Name: branchName(r.Kind, r.N), Kind: r.Kind, Queue: r.Queue, State: stateOf(row), RegisteredAt: r.At, Args: r.Args, JobID: r.JobID, Attempt: int(r.Attempt), MaxAttempts: int(r.MaxAttempts),
			Error: r.Error, Served: r.Served,
		}
		switch {
		case r.Done:
			b.State, b.EndedAt = ended(row.Confirmed), &r.EndedAt
		case r.Stuck && !b.State.Final():
			b.State = Stuck
		}
		s.Branches = append(s.Branches, b)
	}
	return s, s.readEvents(ctx, q, ns)
}

func (s *Story) readEvents(ctx context.Context, q *db.Queries, ns int16) error {
	rows, err := q.ListTCCEvents(ctx, db.ListTCCEventsParams{Ns: ns, ID: s.ID, NewestRows: EventsMax})
	if err != nil {
		return fmt.Errorf("transaction %s: events: %w", s.ID, wrap(err))
	}
	s.Events = []Event{}
	for _, r := range slices.Backward(rows) {
		e := Event{At: r.At, What: r.What, Actor: r.Actor, Reason: r.Reason, JobID: r.JobID}
		if r.N > 0 && int(r.N) <= len(s.Branches) {
			e.Branch = s.Branches[r.N-1].Name
		}
		s.Events = append(s.Events, e)
	}
	return nil
}

func summary(id string, row db.ReadTCCRow, stuck int) Summary {
	s := Summary{
		ID: id, State: stateOf(row), BegunAt: *row.BegunAt, BegunBy: row.BegunBy, Deadline: *row.DeadlineAt, DecidedAt: row.DecidedAt, DecidedBy: row.DecidedBy, Reason: row.Reason,
		Count: int(row.Branches), Done: int(row.Ended), Stuck: stuck,
	}
	switch {
	case row.Confirmed:
		s.Decision = barrier.Confirm
	case row.Decided:
		s.Decision = barrier.Cancel
	}
	switch {
	case s.State.Final():
		s.Stuck = 0 // they are done meanwhile
	case stuck > 0:
		s.State = Stuck
	}
	return s
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
	Open   bool   // only those that are not Final
	Before string // only those whose deadline is before that of this one; "": from the latest
	Limit  int    // rows, at most 1,000; default 50
}

func (f Filter) takes(s State) bool {
	return (f.State == "" || s == f.State) && (!f.Open || !s.Final())
}

// ListScanMax is how many transactions List looks at for one page when it filters.
const ListScanMax = 20_000

// List returns transactions, the latest deadline first. A state is derived, so a filter looks at up to ListScanMax transactions; next is where to go on (Filter.Before), "" where there are no more. The error is ErrNotFound if there is no
// transaction Filter.Before.
func List(ctx context.Context, on DB, ns int16, f Filter) (found []Summary, next string, err error) {
	q := db.New(on)
	limit := min(cmp.Or(max(f.Limit, 0), 50), 1000)
	p := db.ListTCCParams{Ns: ns, BeforeAt: endOfTime, BeforeID: "", LimitRows: int32(limit)}
	if f.Before != "" {
		before, err := q.ReadTCC(ctx, db.ReadTCCParams{Ns: ns, ID: f.Before})
		if err != nil {
			return nil, "", fmt.Errorf("list transactions: %w", wrap(err))
		}
		if before.BegunAt == nil {
			return nil, "", fmt.Errorf("transaction %s: %w", f.Before, ErrNotFound)
		}
		p.BeforeAt, p.BeforeID = *before.DeadlineAt, f.Before
	}
	for scanned := 0; scanned < ListScanMax; p.LimitRows = 1000 {
		rows, err := q.ListTCC(ctx, p)
		if err != nil {
			return nil, "", fmt.Errorf("list transactions: %w", wrap(err))
		}
		for _, r := range rows {
			p.BeforeAt, p.BeforeID = r.DeadlineAt, r.ID
			s := summary(r.ID, db.ReadTCCRow{
				BegunAt: &r.BegunAt, DeadlineAt: &r.DeadlineAt, BegunBy: r.BegunBy, Decided: r.Decided, Confirmed: r.Confirmed, DecidedAt: r.DecidedAt, DecidedBy: r.DecidedBy, Reason: r.Reason,
				Branches: r.Branches, Ended: r.Ended,
			}, int(r.Stuck))
			if !f.takes(s.State) {
				continue
			}
			if found = append(found, s); len(found) == limit {
				return found, r.ID, nil
			}
		}
		if len(rows) < int(p.LimitRows) {
			return found, "", nil
		}
		scanned += len(rows)
	}
	return found, p.BeforeID, nil
}

// endOfTime is behind every deadline.
var endOfTime = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
