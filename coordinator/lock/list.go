package lock

import (
	"context"
	"fmt"
	"time"

	"github.com/pawl-dev/pawl/db"
)

// Info is what is known of a lock.
type Info struct {
	Name    string     `json:"name"`
	Mode    string     `json:"mode"`
	Holders []Holder   `json:"holders"`
	Waiters int64      `json:"waiters"`
	FreeAt  *time.Time `json:"free_at,omitempty"` // nobody is granted the lock before, since a holder was lost
}

// Holder holds a lock.
type Holder struct {
	Token   int64      `json:"token"`
	Owner   string     `json:"owner"`
	Since   time.Time  `json:"since"`
	Until   *time.Time `json:"until,omitempty"` // its maximum hold
	Session int64      `json:"session"`
	Process string     `json:"process"`
	Host    string     `json:"host"`
	PID     int        `json:"pid"`
	Dead    bool       `json:"dead"` // its session has ended: whoever asks gets the lock
}

// Waiter waits for a lock.
type Waiter struct {
	ID      int64     `json:"id"` // in the order of asking
	Owner   string    `json:"owner"`
	Mode    string    `json:"mode"`
	Since   time.Time `json:"since"`
	Session int64     `json:"session"`
	Process string    `json:"process"`
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
}

// Event is a change of a lock.
type Event struct {
	At      time.Time `json:"at"`
	What    string    `json:"what"` // granted, released, expired, lost, forced or passed
	Token   int64     `json:"token"`
	Session int64     `json:"session,omitempty"` // to which it was granted
	Reason  string    `json:"reason,omitempty"`
	Holders int       `json:"holders"` // afterwards
}

// never is the end of a hold without a maximum.
var never = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

// List tells of locks that are held, waited for or delayed, by name behind after, up to limit holders.
func List(ctx context.Context, on DB, ns int16, after string, limit int) ([]Info, error) {
	return list(ctx, on, db.ListLocksParams{Ns: ns, AfterName: after, LimitRows: int32(limit)})
}

// Read tells of one lock.
func Read(ctx context.Context, on DB, ns int16, name string) (Info, error) {
	infos, err := list(ctx, on, db.ListLocksParams{Ns: ns, OnlyName: name, LimitRows: PermitsMax})
	if err != nil || len(infos) == 0 {
		return Info{Name: name, Mode: "exclusive", Holders: []Holder{}}, err
	}
	return infos[0], nil
}

func list(ctx context.Context, on DB, p db.ListLocksParams) ([]Info, error) {
	rows, err := db.New(on).ListLocks(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("list locks: %w", wrap(err))
	}
	infos := []Info{}
	for _, r := range rows {
		if n := len(infos); n == 0 || infos[n-1].Name != r.Name {
			infos = append(infos, Info{Name: r.Name, Mode: r.Mode, Waiters: r.Waiters, FreeAt: r.FreeAt, Holders: []Holder{}})
		}
		if r.Token == 0 {
			continue
		}
		h := Holder{
			Token: r.Token, Owner: r.Owner, Since: r.Since, Session: r.SessionID, Process: r.SessionName, Host: r.Host, PID: int(r.Pid), Dead: r.Ended,
		}
		if r.Until.Before(never) {
			h.Until = &r.Until
		}
		last := &infos[len(infos)-1]
		last.Holders = append(last.Holders, h)
	}
	return infos, nil
}

// Waiters tells who waits for a lock, in their order, up to limit.
func Waiters(ctx context.Context, on DB, ns int16, name string, limit int) ([]Waiter, error) {
	rows, err := db.New(on).ListLockWaiters(ctx, db.ListLockWaitersParams{Ns: ns, Name: name, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("waiters of lock %s: %w", name, wrap(err))
	}
	waiters := make([]Waiter, len(rows))
	for i, r := range rows {
		waiters[i] = Waiter{ID: r.ID, Owner: r.Owner, Mode: r.Mode, Since: r.At, Session: r.SessionID, Process: r.SessionName, Host: r.Host, PID: int(r.Pid)}
	}
	return waiters, nil
}

// OwnerWait is a lock that an owner waits for.
type OwnerWait struct {
	Name  string
	Since time.Time
}

// WaitsOf lists up to limit locks that an owner waits for, whichever its process.
func WaitsOf(ctx context.Context, on DB, ns int16, owner string, limit int) ([]OwnerWait, error) {
	rows, err := db.New(on).ListOwnerWaits(ctx, db.ListOwnerWaitsParams{Owner: owner, Ns: ns, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("waits of %s: %w", owner, wrap(err))
	}
	waits := make([]OwnerWait, len(rows))
	for i, r := range rows {
		waits[i] = OwnerWait{Name: r.Name, Since: r.At}
	}
	return waits, nil
}

// History tells what is kept of what happened to a lock, newest first, up to limit.
func History(ctx context.Context, on DB, ns int16, name string, limit int) ([]Event, error) {
	rows, err := db.New(on).ListLockHistory(ctx, db.ListLockHistoryParams{Ns: ns, Name: name, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("history of lock %s: %w", name, wrap(err))
	}
	events := make([]Event, len(rows))
	for i, r := range rows {
		events[i] = Event{At: r.At, What: r.What, Token: r.Token, Session: r.SessionID, Reason: r.Reason, Holders: int(r.Holders)}
	}
	return events, nil
}
