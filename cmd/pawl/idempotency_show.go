package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/coordinator/job"
)

const scopesMax = 100 // shown of a key

// idempotencyShowCmd is "pawl idempotency show".
type idempotencyShowCmd struct {
	Key string `arg:"" help:"Key."`
}

// Run shows what is stored for a key, in all scopes that have it.
func (c *idempotencyShowCmd) Run(a *app) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	found, err := idempotency.Find(a.ctx, pool, a.namespace, c.Key, scopesMax)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("%w: nothing is stored for key %s", job.ErrNotFound, c.Key)
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"keys": keyRows(found)})
	}
	t := a.table("SCOPE", "STATE", "SINCE", "EXPIRES", "ANSWER")
	for _, s := range found {
		if s.Progress != nil {
			t.row(s.Scope, "in progress "+reached(s.Points), ago(now, s.Progress.Since), "when answered", claimText(now, s.Progress))
			continue
		}
		t.row(s.Scope, "answered", ago(now, s.CreatedAt), ago(now, s.ExpiresAt), strconv.Itoa(s.Status)+" "+payloadText(s.Body, payloadShown))
	}
	if err := t.end(); err != nil {
		return err
	}
	for _, s := range found {
		if len(s.Points) == 0 {
			continue
		}
		fmt.Fprintf(a.out, "\npoints of %s\n", plain(s.Scope))
		t := a.table("POINT", "REACHED", "TOKEN", "OUTPUT")
		for _, p := range s.Points {
			t.row(p.Name, moment(now, p.At), strconv.FormatInt(p.Token, 10), payloadText(p.Output, payloadShown))
		}
		if err := t.end(); err != nil {
			return err
		}
	}
	return nil
}

// reached tells the newest point.
func reached(points []idempotency.Point) string {
	if len(points) == 0 {
		return "at no point yet"
	}
	return "at point " + points[len(points)-1].Name
}

// claimText tells who is at work on a request, or that nobody is.
func claimText(now time.Time, p *idempotency.Progress) string {
	text := fmt.Sprintf("claim %d, of %s", p.Claims, p.Holder)
	if p.Until.After(now) {
		return text + ", runs out " + ago(now, p.Until)
	}
	return text + ", ran out " + ago(now, p.Until) + ": the next request goes on"
}

func keyRows(found []idempotency.Stored) []map[string]any {
	rows := []map[string]any{}
	for _, s := range found {
		row := map[string]any{"scope": s.Scope, "key": s.Key.Key}
		if p := s.Progress; p != nil {
			row["in_progress"] = map[string]any{
				"since": p.Since, "claims": p.Claims, "holder": p.Holder, "token": strconv.FormatInt(p.Token, 10), "claimed_at": p.ClaimedAt, "until": p.Until,
			}
		} else {
			row["status"], row["headers"], row["body_bytes"], row["created_at"], row["expires_at"] = s.Status, s.Headers, len(s.Body), s.CreatedAt, s.ExpiresAt
		}
		points := []map[string]any{}
		for _, p := range s.Points {
			points = append(points, map[string]any{"name": p.Name, "token": strconv.FormatInt(p.Token, 10), "output": p.Output, "at": p.At})
		}
		row["points"] = points
		rows = append(rows, row)
	}
	return rows
}
