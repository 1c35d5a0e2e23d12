package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
)

// ErrNamespace: there is no namespace of that name.
var ErrNamespace = errors.New("session: no such namespace")

// Info is a session in a listing.
type Info struct {
	ID        int64      `json:"id,string"`
	Name      string     `json:"name"`
	Host      string     `json:"host"`
	PID       int        `json:"pid"`
	Version   string     `json:"version,omitempty"`
	StartedAt time.Time  `json:"started_at"`
	ExpiresAt time.Time  `json:"expires_at"`           // unless it is renewed before
	EndedAt   *time.Time `json:"ended_at,omitempty"`   // nil: it lives, or has expired and was not ended yet
	EndedWhy  string     `json:"ended_why,omitempty"`  // "closed" by its process, "expired", …
	RescuedAt *time.Time `json:"rescued_at,omitempty"` // since when nothing is left of what it held
	Alive     bool       `json:"alive"`
}

// List lists sessions, newest first, at most limit of them; those that have ended only if ended says so. The error is ErrSchema, or the database's.
func List(ctx context.Context, on db.DBTX, ns int16, ended bool, limit int) ([]Info, error) {
	rows, err := db.New(on).ListSessions(ctx, db.ListSessionsParams{Ns: ns, Ended: ended, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", wrap(err))
	}
	out := make([]Info, len(rows))
	for i, r := range rows {
		out[i] = Info{
			ID: r.ID, Name: r.Name, Host: r.Host, PID: int(r.Pid), Version: r.Version, StartedAt: r.StartedAt, ExpiresAt: r.ExpiresAt,
			EndedAt: r.EndedAt, RescuedAt: r.RescuedAt, Alive: r.Alive,
		}
		if r.EndedWhy != nil {
			out[i].EndedWhy = *r.EndedWhy
		}
	}
	return out, nil
}

// FindNamespace returns the number of a namespace. The error is ErrNamespace if there is none of that name.
func FindNamespace(ctx context.Context, on db.DBTX, name string) (int16, error) {
	ns, err := db.New(on).FindNamespace(ctx, name)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("%w: %q", ErrNamespace, name)
	} else if err != nil {
		return 0, fmt.Errorf("namespace %q: %w", name, wrap(err))
	}
	return ns, nil
}

func wrap(err error) error {
	if db.IsUnmigrated(err) {
		return fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
	}
	return err
}
