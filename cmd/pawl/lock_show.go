package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/lock"
)

const (
	lockWaitersMax = 100 // shown
	lockEventsMax  = 20  // shown
	lockGraphMax   = 8   // locks deep
)

// lockShowCmd is "pawl lock show".
type lockShowCmd struct {
	Name string `arg:"" help:"Lock."`
}

// lockStory is what is printed.
type lockStory struct {
	lock.Info

	Queue   []lock.Waiter `json:"queue"`
	History []lock.Event  `json:"history"` // newest first, as far as it is kept
}

// Run shows a lock.
func (c *lockShowCmd) Run(a *app) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	s, err := readLock(a.ctx, pool, a.namespace, c.Name)
	if err != nil {
		return err
	}
	if s.History, err = lock.History(a.ctx, pool, a.namespace, c.Name, lockEventsMax); err != nil {
		return err
	}
	if len(s.History) == 0 {
		return fmt.Errorf("%w: lock %s is free, and nothing of it is kept", job.ErrNotFound, c.Name)
	}
	if a.json {
		return a.printJSON(s)
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "lock %s\n", plain(c.Name))
	if err := a.waitGraph(pool, now, s, "  ", map[string]bool{c.Name: true}); err != nil {
		return err
	}
	fmt.Fprintln(a.out, "\nHistory, newest first:")
	t := a.table("  AT", "WHAT", "TOKEN", "SESSION", "HOLDERS", "REASON")
	for _, e := range s.History {
		session := "-"
		if e.Session != 0 {
			session = fmt.Sprint(e.Session)
		}
		t.row("  "+moment(now, e.At), e.What, fmt.Sprint(e.Token), session, fmt.Sprint(e.Holders), e.Reason)
	}
	return t.end()
}

func readLock(ctx context.Context, pool *pgxpool.Pool, ns int16, name string) (s lockStory, err error) {
	if s.Info, err = lock.Read(ctx, pool, ns, name); err != nil {
		return s, err
	}
	s.Queue, err = lock.Waiters(ctx, pool, ns, name, lockWaitersMax)
	return s, err
}

// waitGraph writes who holds a lock and who waits for it, and below each holder what that one waits for.
func (a *app) waitGraph(pool *pgxpool.Pool, now time.Time, s lockStory, indent string, seen map[string]bool) error {
	if len(s.Holders) == 0 {
		fmt.Fprintf(a.out, "%sheld by nobody\n", indent)
	}
	for _, h := range s.Holders {
		dead := ""
		if h.Dead {
			dead = ", dead: whoever asks gets the lock"
		}
		fmt.Fprintf(a.out, "%sheld (%s) by %s on %s, pid %d, session %d, got it %s, token %d, owner %s%s\n",
			indent, s.Mode, plain(h.Process), plain(h.Host), h.PID, h.Session, ago(now, h.Since), h.Token, plain(h.Owner), dead)
		if len(indent) > 2*lockGraphMax {
			continue
		}
		waits, err := lock.WaitsOf(a.ctx, pool, a.namespace, h.Owner, lockWaitersMax)
		if err != nil {
			return err
		}
		for _, w := range waits {
			if seen[w.Name] {
				continue
			}
			seen[w.Name] = true
			fmt.Fprintf(a.out, "%s  who asked %s for lock %s\n", indent, ago(now, w.Since), plain(w.Name))
			other, err := lock.Read(a.ctx, pool, a.namespace, w.Name)
			if err != nil {
				return err
			}
			if err := a.waitGraph(pool, now, lockStory{Info: other}, indent+strings.Repeat(" ", 4), seen); err != nil {
				return err
			}
		}
	}
	for i, w := range s.Queue {
		fmt.Fprintf(a.out, "%swaiting %d. (%s) %s on %s, pid %d, session %d, asked %s, owner %s\n",
			indent, i+1, w.Mode, plain(w.Process), plain(w.Host), w.PID, w.Session, ago(now, w.Since), plain(w.Owner))
	}
	if more := s.Waiters - int64(len(s.Queue)); more > 0 && len(s.Queue) > 0 {
		fmt.Fprintf(a.out, "%sand %d more\n", indent, more)
	}
	return nil
}
