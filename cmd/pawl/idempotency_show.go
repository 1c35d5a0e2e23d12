package main

import (
	"fmt"
	"strconv"

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
		return fmt.Errorf("%w: no answer is stored for key %s", job.ErrNotFound, c.Key)
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	if a.json {
		rows := []map[string]any{}
		for _, s := range found {
			rows = append(rows, map[string]any{
				"scope": s.Scope, "key": s.Key.Key, "status": s.Status, "headers": s.Headers, "body_bytes": len(s.Body), "created_at": s.CreatedAt, "expires_at": s.ExpiresAt,
			})
		}
		return a.printJSON(map[string]any{"answers": rows})
	}
	t := a.table("SCOPE", "STATUS", "STORED", "EXPIRES", "BODY")
	for _, s := range found {
		t.row(s.Scope, strconv.Itoa(s.Status), ago(now, s.CreatedAt), ago(now, s.ExpiresAt), payloadText(s.Body, payloadShown))
	}
	return t.end()
}
