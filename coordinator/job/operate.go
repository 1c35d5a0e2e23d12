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

// CancelByID cancels a job and tells what it was when it looked. Scheduled, retrying or available: it is cancelled and will not run. Running: its process
// is asked, its handler's context is cancelled with cause ErrCancelled, and it ends as cancelled unless it succeeds all the same. Final: it stays as it is.
// In a caller's transaction (READ COMMITTED) this holds when that commits; until then nobody claims from the job's line. The error is ErrNotFound if there is no such job.
func CancelByID(ctx context.Context, on DB, ns int16, id int64, reason string) (was State, err error) {
	row, err := db.New(on).CancelJob(ctx, db.CancelJobParams{Ns: ns, JobID: id, Reason: reason})
	if err != nil {
		return "", fmt.Errorf("cancel job %d: %w", id, wrap(err))
	}
	if row.Was == "" {
		return "", fmt.Errorf("cancel job %d: %w", id, ErrNotFound)
	}
	if row.SessionID != 0 {
		hintSession(ctx, on, ns, row.SessionID)
	}
	return State(row.Was), nil
}

// RetryByID runs a job again now: one that waits for its time goes to the line, a finished one gets one attempt more. Available and running ones are left
// alone. It tells what the job was when it looked. A dedupe key that another job has taken since stays with that one. In a transaction it holds the
// line's lock, so that nobody claims from the line until the end, as CancelByID does. The error is ErrNotFound if there is no such job.
func RetryByID(ctx context.Context, on DB, ns int16, id int64) (was State, err error) {
	got, err := db.New(on).RetryJob(ctx, db.RetryJobParams{Ns: ns, JobID: id})
	if err != nil {
		return "", fmt.Errorf("retry job %d: %w", id, wrap(err))
	}
	if got == "" {
		return "", fmt.Errorf("retry job %d: %w", id, ErrNotFound)
	}
	return State(got), nil
}

// PauseQueue stops workers from claiming from a queue, ResumeQueue lets them again; what runs goes on. The error is ErrNotFound if there is no such queue.
func PauseQueue(ctx context.Context, on DB, ns int16, queue string) error {
	return setPaused(ctx, on, ns, queue, true)
}

// ResumeQueue ends a pause.
func ResumeQueue(ctx context.Context, on DB, ns int16, queue string) error {
	if err := setPaused(ctx, on, ns, queue, false); err != nil {
		return err
	}
	_ = Hint(ctx, on, ns, queue)
	return nil
}

func setPaused(ctx context.Context, on DB, ns int16, queue string, paused bool) error {
	found, err := db.New(on).PauseQueue(ctx, db.PauseQueueParams{Ns: ns, Queue: queue, Paused: paused})
	if err != nil {
		return fmt.Errorf("queue %q: %w", queue, wrap(err))
	}
	if !found {
		return fmt.Errorf("queue %q: %w", queue, ErrNotFound)
	}
	return nil
}

// QueueInfo is a queue in a listing.
type QueueInfo struct {
	Name      string    `json:"name"`
	Paused    bool      `json:"paused"`
	Available int64     `json:"available"` // counted up to AvailableMax a priority
	Scheduled int64     `json:"scheduled"` // the same
	OldestS   float64   `json:"oldest_s"`  // age of the first job in line, in seconds
	CreatedAt time.Time `json:"created_at"`
}

// AvailableMax is how far Queues counts.
const AvailableMax = 1_000_000

// Queues lists queues by name, after the name given, at most limit of them.
func Queues(ctx context.Context, on DB, ns int16, after string, limit int) ([]QueueInfo, error) {
	rows, err := db.New(on).ListQueues(ctx, db.ListQueuesParams{Ns: ns, AfterName: after, LimitRows: int32(limit), AvailableMax: AvailableMax})
	if err != nil {
		return nil, fmt.Errorf("list queues: %w", wrap(err))
	}
	out := make([]QueueInfo, len(rows))
	for i, r := range rows {
		out[i] = QueueInfo{Name: r.Name, Paused: r.Paused, Available: r.Available, Scheduled: r.Scheduled, OldestS: r.OldestS, CreatedAt: r.CreatedAt}
	}
	return out, nil
}

// Await waits until a job is finished and returns what its handler returned. It holds no connection while it waits: it looks again after 5 ms, then ever less
// often, at most every 500 ms. The error is ErrDiscarded, ErrCancelled, ErrNotFound, or ErrUnfinished with ctx's cause. A job that returned nothing gives the zero R.
func Await[R any](ctx context.Context, on DB, ns int16, id int64) (R, error) {
	var out R
	q := db.New(on)
	wait := 5 * time.Millisecond
	for {
		st, err := q.ReadJobState(ctx, db.ReadJobStateParams{Ns: ns, JobID: id})
		if ctx.Err() != nil {
			return out, fmt.Errorf("await job %d: %w: %w", id, ErrUnfinished, context.Cause(ctx))
		} else if err != nil {
			return out, fmt.Errorf("await job %d: %w", id, wrap(err))
		}
		switch State(st.State) {
		case "":
			return out, fmt.Errorf("await job %d: %w", id, ErrNotFound)
		case StateDiscarded:
			return out, fmt.Errorf("await job %d: %w", id, ErrDiscarded)
		case StateCancelled:
			return out, fmt.Errorf("await job %d: %w", id, ErrCancelled)
		case StateSucceeded:
			raw, err := q.ReadResult(ctx, db.ReadResultParams{Ns: ns, JobID: id})
			if errors.Is(err, pgx.ErrNoRows) {
				return out, nil
			} else if err != nil {
				return out, fmt.Errorf("await job %d: %w", id, err)
			}
			if err := json.Unmarshal(raw, &out); err != nil {
				return out, fmt.Errorf("await job %d: result: %w", id, err)
			}
			return out, nil
		case StateScheduled, StateRetrying, StateAvailable, StateRunning:
		default:
			return out, fmt.Errorf("await job %d: unknown state %q", id, st.State)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		wait = min(wait*3/2, 500*time.Millisecond)
	}
}
