package idempotency

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/pawl-dev/pawl/db"
)

// DB is a pool, a connection or a transaction.
type DB = db.DBTX

// Stored is what is stored of a key, as an operator sees it: its answer, or the phased request that is in progress.
type Stored struct {
	Key
	Response
	Progress *Progress // nil: it was answered
	Points   []Point   // of a phased request, in their order; List gives the newest only

	CreatedAt, ExpiresAt time.Time // of the answer; a request in progress does not expire
}

// Progress is a phased request that has no answer yet.
type Progress struct {
	Since     time.Time // its first claim
	Claims    int       // how often it was claimed
	Holder    string    // host and process of the newest claim
	Token     int64
	ClaimedAt time.Time
	Until     time.Time // if it is past, nobody is at work on it, and the next request goes on
}

// Point is a recovery point that was reached.
type Point struct {
	Name   string
	Output json.RawMessage
	Token  int64 // of the claim that reached it
	At     time.Time
}

// Find returns what is stored of a key, in up to limit scopes.
func Find(ctx context.Context, on DB, ns int16, key string, limit int) ([]Stored, error) {
	q := db.New(on)
	answers, err := q.FindKeys(ctx, db.FindKeysParams{Ns: ns, Key: key, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("find key: %w", wrap(err))
	}
	claims, err := q.FindClaims(ctx, db.FindClaimsParams{Ns: ns, Key: key, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("find key: claims: %w", wrap(err))
	}
	points, err := q.FindPoints(ctx, db.FindPointsParams{Ns: ns, Key: key, LimitRows: int32(limit) * PointsMax})
	if err != nil {
		return nil, fmt.Errorf("find key: points: %w", wrap(err))
	}
	out := make([]Stored, 0, len(answers)+len(claims))
	for _, r := range answers {
		s := Stored{Key: Key{r.Scope, key}, Response: Response{Status: int(r.Status), Body: r.Body}, CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt}
		if err := json.Unmarshal(r.Headers, &s.Headers); err != nil {
			return nil, fmt.Errorf("find key: headers: %w", err)
		}
		out = append(out, s)
	}
	for _, r := range claims {
		out = append(out, Stored{Key: Key{r.Scope, key}, Progress: &Progress{r.CreatedAt, int(r.Claims), r.Holder, r.Token, r.ClaimedAt, r.Until}})
	}
	for _, p := range points {
		for i := range out {
			if out[i].Scope == p.Scope {
				out[i].Points = append(out[i].Points, Point{p.Name, p.Output, p.Token, p.At})
			}
		}
	}
	return out, nil
}

// List returns up to limit phased requests that are in progress, the oldest first.
func List(ctx context.Context, on DB, ns int16, limit int) ([]Stored, error) {
	rows, err := db.New(on).ListClaims(ctx, db.ListClaimsParams{Ns: ns, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", wrap(err))
	}
	out := make([]Stored, len(rows))
	for i, r := range rows {
		out[i] = Stored{Key: Key{r.Scope, r.Key}, Progress: &Progress{r.CreatedAt, int(r.Claims), r.Holder, r.Token, r.ClaimedAt, r.Until}}
		if r.Point != "" {
			out[i].Points = []Point{{r.Point, r.Output, r.PointToken, r.At}}
		}
	}
	return out, nil
}
