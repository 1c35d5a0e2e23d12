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
	kept, err := outbox.Retention(a.ctx, pool, a.namespace)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"subscriptions": rows, "kept": kept})
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.err, "there is no subscription")
		fmt.Fprintln(a.out, keptText(now, kept))
		return nil
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
		if s.Missed > 0 {
			state += fmt.Sprintf(" (%s, number %d to %d; see resume --accept-gap)", plural(int(s.Missed), "event"), s.MissedFrom, s.MissedTo)
		}
		if s.Lag > 0 {
			behind = span(time.Duration(s.LagAge * float64(time.Second)))
		}
		t.row(s.Name, topics, strconv.Itoa(s.Shards), s.Sink, strconv.FormatInt(s.Events, 10), strconv.FormatInt(s.Lag, 10), behind, strconv.FormatInt(s.Parked, 10),
			strconv.FormatInt(s.Dead, 10), state)
	}
	if err := t.end(); err != nil {
		return err
	}
	fmt.Fprintln(a.out, "\n"+keptText(now, kept))
	return nil
}

// keptText says what events are kept, and why the oldest of them are.
func keptText(now time.Time, k outbox.Kept) string {
	text := fmt.Sprintf("Events are kept from number %d on", k.OldestSeq)
	if k.OldestAt != nil {
		text += ", published " + ago(now, *k.OldestAt)
	}
	text += fmt.Sprintf(", for %s at least, by whole ranges of ids: %s in use. The oldest ", brief(k.Keep), plural(k.Ranges, "range"))
	since := ""
	if k.Since != nil {
		since = ago(now, *k.Since)
	}
	switch k.By {
	case outbox.HeldByIDs:
		text += "is not full yet."
	case outbox.HeldByTransaction:
		text += fmt.Sprintf("waits for a transaction that may still publish in it: %s, begun %s.", plain(k.Who), since)
	case outbox.HeldByAge:
		text += fmt.Sprintf("is complete since %s.", span(now.Sub(*k.Since)))
	case outbox.HeldBySubscription:
		text += fmt.Sprintf("could have left %s, but not all of it was delivered by %s; it leaves %s nevertheless.", since, plain(k.Who), ago(now, k.Since.Add(k.Hold-k.Keep)))
	case outbox.HeldByMove:
		text += fmt.Sprintf("waits for a rebase, which %s needs; see pawl doctor.", plain(k.Who))
	case outbox.HeldByNothing:
		text += "leaves with the next sweep."
	}
	if k.LeavingAt != nil {
		text += " One is being dropped, begun " + ago(now, *k.LeavingAt) + "."
	}
	return text
}
