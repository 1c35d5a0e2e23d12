package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

// subscriptionListCmd is "pawl subscription list".
type subscriptionListCmd struct {
	Limit int `default:"100" placeholder:"N" help:"Rows at most, 1 to 10,000. Default: ${default}."`
}

// Run lists subscriptions.
func (c *subscriptionListCmd) Run(a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	rows, err := outbox.List(a.ctx, pool, a.namespace, c.Limit)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"subscriptions": rows})
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.err, "there is no subscription")
		return nil
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	t := a.table("NAME", "TOPICS", "SHARDS", "SINK", "DELIVERED", "LAG", "BEHIND", "PARKED", "DEAD", "STATE")
	for _, s := range rows {
		topics, state, behind := "all", "moved "+ago(now, s.MovedAt), "-"
		if len(s.Topics) > 0 {
			topics = strings.Join(s.Topics, ",")
		}
		if s.PausedAt != nil {
			state = "paused " + ago(now, *s.PausedAt) + ": " + s.PausedWhy
		}
		if s.Lag > 0 {
			behind = span(time.Duration(s.LagAge * float64(time.Second)))
		}
		t.row(s.Name, topics, strconv.Itoa(s.Shards), s.Sink, strconv.FormatInt(s.Events, 10), strconv.FormatInt(s.Lag, 10), behind, strconv.FormatInt(s.Parked, 10),
			strconv.FormatInt(s.Dead, 10), state)
	}
	return t.end()
}
