package main

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

// subscriptionPauseCmd is "pawl subscription pause".
type subscriptionPauseCmd struct {
	Name   string `arg:"" help:"Subscription."`
	Reason string `placeholder:"TEXT" help:"Why; listings show it."`
}

// Run pauses a subscription.
func (c *subscriptionPauseCmd) Run(a *app) error {
	return a.subscription(c.Name, func(pool *pgxpool.Pool) (string, error) {
		return "is paused; relays stop within a second", outbox.Pause(a.ctx, pool, a.namespace, c.Name, c.Reason)
	})
}

// subscriptionResumeCmd is "pawl subscription resume".
type subscriptionResumeCmd struct {
	Name      string `arg:"" help:"Subscription."`
	AcceptGap bool   `help:"Also if events were dropped before it had them: it goes on with the oldest that is kept."`
}

// Run resumes a subscription.
func (c *subscriptionResumeCmd) Run(a *app) error {
	return a.subscription(c.Name, func(pool *pgxpool.Pool) (string, error) {
		if c.AcceptGap {
			return "is resumed, with the oldest event kept that it has not had", outbox.AcceptGap(a.ctx, pool, a.namespace, c.Name)
		}
		return "is resumed", outbox.Resume(a.ctx, pool, a.namespace, c.Name)
	})
}

// subscriptionRemoveCmd is "pawl subscription remove".
type subscriptionRemoveCmd struct {
	Name string `arg:"" help:"Subscription."`
	Yes  bool   `short:"y" help:"Do not ask."`
}

// Run removes a subscription.
func (c *subscriptionRemoveCmd) Run(a *app) error {
	if err := a.confirm(c.Yes, "Its place is gone for good, and what it has parked."); err != nil {
		return err
	}
	return a.subscription(c.Name, func(pool *pgxpool.Pool) (string, error) {
		return "is removed; it holds no events any more", outbox.Remove(a.ctx, pool, a.namespace, c.Name)
	})
}

// subscriptionRewindCmd is "pawl subscription rewind".
type subscriptionRewindCmd struct {
	Name string        `arg:"" help:"Subscription."`
	Ago  time.Duration `required:"" placeholder:"DURATION" help:"Deliver again what was published since so long ago, such as 2h, as far as it is kept."`
}

// Run rewinds a subscription.
func (c *subscriptionRewindCmd) Run(a *app) error {
	return a.subscription(c.Name, func(pool *pgxpool.Pool) (string, error) {
		now, err := a.now(a.ctx, pool)
		if err != nil {
			return "", err
		}
		first, err := outbox.Rewind(a.ctx, pool, a.namespace, c.Name, now.Add(-c.Ago))
		if first == 0 {
			return "stays where it is: nothing was published since", err
		}
		return fmt.Sprintf("delivers again from event number %d on", first), err
	})
}

// subscriptionReplayCmd is "pawl subscription replay".
type subscriptionReplayCmd struct {
	Name string  `arg:"" help:"Subscription."`
	Key  *string `help:"Only events of this key."`
	Drop bool    `help:"Remove the events that were given up instead; what waits behind them goes on."`
}

// Run replays or drops parked events.
func (c *subscriptionReplayCmd) Run(a *app) error {
	return a.subscription(c.Name, func(pool *pgxpool.Pool) (string, error) {
		if c.Drop {
			n, err := outbox.Drop(a.ctx, pool, a.namespace, c.Name, c.Key)
			return plural(int(n), "event that was given up is removed", "events that were given up are removed"), err
		}
		n, err := outbox.Replay(a.ctx, pool, a.namespace, c.Name, c.Key)
		return plural(int(n), "parked event is tried now", "parked events are tried now"), err
	})
}

// subscriptionParkedCmd is "pawl subscription parked".
type subscriptionParkedCmd struct {
	Name  string `arg:"" help:"Subscription."`
	Limit int    `default:"100" placeholder:"N" help:"Rows at most, 1 to 10,000. Default: ${default}."`
}

// Run lists parked events.
func (c *subscriptionParkedCmd) Run(a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	rows, err := outbox.Parked(a.ctx, pool, a.namespace, c.Name, c.Limit)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"parked": rows})
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.err, "no event is parked")
		return nil
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	t := a.table("ID", "TOPIC", "KEY", "TYPE", "PARKED", "ATTEMPTS", "NEXT", "ERROR")
	for _, e := range rows {
		next := "behind its key"
		switch {
		case e.DeadAt != nil:
			next = "given up " + ago(now, *e.DeadAt)
		case e.RetryAt != nil:
			next = ago(now, *e.RetryAt)
		}
		t.row(e.ID, e.Topic, e.Key, e.Type, ago(now, e.ParkedAt), fmt.Sprint(e.Attempt), next, plain(cut(e.Error, payloadShown)))
	}
	return t.end()
}

// subscription does something to a subscription and says so.
func (a *app) subscription(name string, do func(*pgxpool.Pool) (string, error)) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	did, err := do(pool)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"name": name, "did": did})
	}
	fmt.Fprintf(a.out, "subscription %s: %s\n", plain(name), did)
	return nil
}
