package main

import (
	"fmt"
	"strconv"

	"github.com/pawl-dev/pawl/coordinator/session"
)

// sessionListCmd is "pawl session list".
type sessionListCmd struct {
	All   bool `help:"Also those that have ended."`
	Limit int  `default:"100" placeholder:"N" help:"Rows at most, 1 to 10,000. Default: ${default}."`
}

// Help is the long help text.
func (*sessionListCmd) Help() string {
	return `A session is a process that takes part, kept alive by one heartbeat. alive: its heartbeat comes. expired: it does not, and the next sweep ends it. ended: its jobs wait to be put back in line. rescued: nothing is left of it.`
}

// Run lists sessions.
func (c *sessionListCmd) Run(a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	sessions, err := session.List(a.ctx, pool, a.namespace, c.All, c.Limit)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"sessions": sessions})
	}
	if len(sessions) == 0 {
		fmt.Fprintln(a.err, `no sessions: no worker runs; start one with "pawl work", or see --all`)
		return nil
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	t := a.table("ID", "STATE", "NAME", "HOST", "PID", "STARTED", "EXPIRES", "VERSION")
	for _, s := range sessions {
		state, expires := "alive", ago(now, s.ExpiresAt)
		switch {
		case s.EndedAt != nil:
			state, expires = "ended", s.EndedWhy+" "+ago(now, *s.EndedAt)
			if s.RescuedAt != nil {
				state = "rescued"
			}
		case !s.Alive:
			state = "expired"
		}
		t.row(strconv.FormatInt(s.ID, 10), state, s.Name, s.Host, strconv.Itoa(s.PID), ago(now, s.StartedAt), expires, s.Version)
	}
	return t.end()
}
