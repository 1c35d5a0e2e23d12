package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
)

// State is what a job is doing, derived from what was appended about it.
type State string

// The states. The last three are final.
const (
	StateScheduled State = "scheduled" // waits for its time, never tried
	StateRetrying  State = "retrying"  // waits for its next attempt
	StateAvailable State = "available" // in line
	StateRunning   State = "running"
	StateSucceeded State = "succeeded"
	StateDiscarded State = "discarded"
	StateCancelled State = "cancelled"
)

// Final tells that nothing more will happen to the job by itself.
func (s State) Final() bool {
	return s == StateSucceeded || s == StateDiscarded || s == StateCancelled
}

// Summary is a job in a listing.
type Summary struct {
	ID          int64     `json:"id,string"`
	Queue       string    `json:"queue"`
	Kind        string    `json:"kind"`
	State       State     `json:"state"`
	Priority    int       `json:"priority"`
	Attempt     int       `json:"attempt"`
	MaxAttempts int       `json:"max_attempts"`
	CreatedAt   time.Time `json:"created_at"`
	// At is when the state began or, of a scheduled or retrying job, when it will run.
	At time.Time `json:"at"`
}

// Story is all that is known of a job.
type Story struct {
	Summary
	EnqueuedBy string            `json:"enqueued_by"`
	Args       json.RawMessage   `json:"args"`
	Headers    map[string]string `json:"headers,omitempty"`
	DedupeKey  string            `json:"dedupe_key,omitempty"`
	Timeout    time.Duration     `json:"timeout_ns,omitempty"`     // 0: the worker's
	Backoff    time.Duration     `json:"backoff_ns,omitempty"`     // 0: 1 s
	BackoffMax time.Duration     `json:"backoff_max_ns,omitempty"` // 0: 1 h
	Attempts   []Attempt         `json:"attempts"`
	Cancels    []Cancellation    `json:"cancels,omitempty"`
	Result     json.RawMessage   `json:"result,omitempty"`
}

// Attempt is one place in line that a job had, and what came of it.
type Attempt struct {
	Number    int             `json:"number"`
	ClaimID   int64           `json:"claim_id,string,omitempty"` // 0: not claimed
	SessionID int64           `json:"session_id,string,omitempty"`
	Session   string          `json:"session,omitempty"`
	Host      string          `json:"host,omitempty"`
	PID       int             `json:"pid,omitempty"`
	ClaimedAt *time.Time      `json:"claimed_at,omitempty"`
	Outcome   Outcome         `json:"outcome,omitempty"` // "": not ended
	EndedAt   *time.Time      `json:"ended_at,omitempty"`
	Detail    json.RawMessage `json:"detail,omitempty"`
}

// Cancellation is a request to cancel, or the end of a job that waited.
type Cancellation struct {
	Attempt int       `json:"attempt"`
	At      time.Time `json:"at"`
	Reason  string    `json:"reason"`
	Running bool      `json:"running"` // the job ran, so it was asked; its attempt tells the rest
}

// Get tells a job's whole story. The error is ErrNotFound if there is no such job.
func Get(ctx context.Context, on DB, ns int16, id int64) (*Story, error) {
	q := db.New(on)
	j, err := q.ReadJob(ctx, db.ReadJobParams{Ns: ns, JobID: id})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("job %d: %w", id, ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("job %d: %w", id, wrap(err))
	}
	st, err := q.ReadJobState(ctx, db.ReadJobStateParams{Ns: ns, JobID: id})
	if err != nil {
		return nil, fmt.Errorf("job %d: %w", id, wrap(err))
	}
	s := &Story{
		Summary: Summary{
			ID: id, Queue: j.Queue, Kind: j.Kind, State: State(st.State), Priority: int(j.Priority), Attempt: int(st.Attempt),
			MaxAttempts: int(j.MaxAttempts), CreatedAt: j.CreatedAt, At: j.CreatedAt,
		},
		EnqueuedBy: j.EnqueuedBy, Args: j.Args,
	}
	if st.At != nil {
		s.At = *st.At
	}
	if j.DedupeKey != nil {
		s.DedupeKey = *j.DedupeKey
	}
	if j.TimeoutMs != nil {
		s.Timeout = time.Duration(*j.TimeoutMs) * time.Millisecond
	}
	if j.BackoffMs != nil {
		s.Backoff = time.Duration(*j.BackoffMs) * time.Millisecond
	}
	if j.BackoffMsMax != nil {
		s.BackoffMax = time.Duration(*j.BackoffMsMax) * time.Millisecond
	}
	if s.Headers, err = ParseHeaders(j.Headers); err != nil {
		return nil, fmt.Errorf("job %d: %w", id, err)
	}
	return s, s.readHistory(ctx, q, ns)
}

func (s *Story) readHistory(ctx context.Context, q *db.Queries, ns int16) error {
	attempts, err := q.ListAttempts(ctx, db.ListAttemptsParams{Ns: ns, JobID: s.ID})
	if err != nil {
		return fmt.Errorf("job %d: attempts: %w", s.ID, err)
	}
	for _, a := range attempts {
		at := Attempt{
			Number: int(a.Attempt), ClaimID: a.ClaimID, SessionID: a.SessionID, Session: a.SessionName, Host: a.Host, PID: int(a.Pid),
			Outcome: Outcome(a.Outcome), Detail: a.Detail,
		}
		if a.ClaimID != 0 {
			at.ClaimedAt = &a.ClaimedAt
		}
		if a.Outcome != "" {
			at.EndedAt = &a.EndedAt
		}
		s.Attempts = append(s.Attempts, at)
	}
	cancels, err := q.ListCancellations(ctx, db.ListCancellationsParams{Ns: ns, JobID: s.ID})
	if err != nil {
		return fmt.Errorf("job %d: cancellations: %w", s.ID, err)
	}
	for _, c := range cancels {
		s.Cancels = append(s.Cancels, Cancellation{Attempt: int(c.Attempt), At: c.At, Reason: c.Reason, Running: c.Running})
	}
	s.Result, err = q.ReadResult(ctx, db.ReadResultParams{Ns: ns, JobID: s.ID})
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("job %d: result: %w", s.ID, err)
	}
	return nil
}

// ParseHeaders reads the headers of a job's row.
func ParseHeaders(raw []byte) (map[string]string, error) {
	if raw == nil {
		return nil, nil
	}
	var h map[string]string
	if err := json.Unmarshal(raw, &h); err != nil {
		return nil, fmt.Errorf("headers: %w", err)
	}
	return h, nil
}

// Filter selects jobs for List. Its zero value selects all.
type Filter struct {
	Namespace int16  // default: 1
	Queue     string // "": any
	Kind      string // "": any
	State     State  // "": any
	Before    int64  // only ids below; 0: from the newest
	Limit     int    // rows, at most 1,000; default 50
}

// ListScanMax is how many jobs List looks at for one page when it filters by state.
const ListScanMax = 20_000

// List returns jobs, newest first. States are derived, so a filter by state looks at up to ListScanMax jobs; more says that older ones were not looked at,
// and next is where to go on (Filter.Before). The error is ErrNotFound if the queue does not exist.
func List(ctx context.Context, on DB, f Filter) (jobs []Summary, next int64, err error) {
	q := db.New(on)
	ns := max(f.Namespace, 1)
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	limit = min(limit, 1000)
	p := db.ListJobsParams{Ns: ns, Kind: f.Kind, BeforeID: f.Before, LimitRows: int32(limit)}
	if p.BeforeID <= 0 {
		p.BeforeID = 1<<63 - 1
	}
	if f.Queue != "" {
		if p.QueueID, err = q.FindQueue(ctx, db.FindQueueParams{Ns: ns, Queue: f.Queue}); errors.Is(err, pgx.ErrNoRows) {
			return nil, 0, fmt.Errorf("queue %q: %w", f.Queue, ErrNotFound)
		} else if err != nil {
			return nil, 0, fmt.Errorf("queue %q: %w", f.Queue, wrap(err))
		}
	}
	for scanned := 0; scanned < ListScanMax; {
		rows, err := q.ListJobs(ctx, p)
		if err != nil {
			return nil, 0, fmt.Errorf("list jobs: %w", wrap(err))
		}
		for _, r := range rows {
			p.BeforeID = r.ID
			if f.State != "" && State(r.State) != f.State {
				continue
			}
			jobs = append(jobs, Summary{
				ID: r.ID, Queue: r.Queue, Kind: r.Kind, State: State(r.State), Priority: int(r.Priority), Attempt: int(r.Attempt),
				MaxAttempts: int(r.MaxAttempts), CreatedAt: r.CreatedAt, At: r.At,
			})
			if len(jobs) == limit {
				return jobs, r.ID, nil
			}
		}
		if len(rows) < int(p.LimitRows) {
			return jobs, 0, nil
		}
		scanned += len(rows)
		p.LimitRows = 1000
	}
	return jobs, p.BeforeID, nil
}
