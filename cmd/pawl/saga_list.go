package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// sagaListCmd is "pawl saga list".
type sagaListCmd struct {
	State  saga.State `placeholder:"STATE" help:"Only sagas in this state: running, compensating, stuck, succeeded, compensated or forced."`
	Name   string     `placeholder:"NAME" help:"Only sagas of this definition."`
	Before string     `placeholder:"ID" help:"Only sagas started before this one, to go on with a listing."`
	Limit  int        `default:"50" placeholder:"N" help:"Rows at most, 1 to 1,000. Default: ${default}."`
}

// sagaStates are those a saga can be in.
var sagaStates = []saga.State{saga.StateRunning, saga.StateCompensating, saga.StateStuck, saga.StateSucceeded, saga.StateCompensated, saga.StateForced}

// Help is the long help text.
func (*sagaListCmd) Help() string {
	return fmt.Sprintf(`Newest first. SINCE: since when the state is so. STUCK, written large, needs a person: "pawl saga show ID" says what for. running and compensating go on by themselves, as long as workers serve their steps, which "pawl saga definitions" tells. A saga's state is worked out from its newest event, so a listing by state looks at %s sagas at most and says where to go on.`, thousands(saga.ListScanMax))
}

// Run lists sagas.
func (c *sagaListCmd) Run(a *app) error {
	if c.Limit < 1 || c.Limit > 1000 {
		return usagef("--limit %d is outside 1 to 1,000", c.Limit)
	}
	if c.State != "" && !slices.Contains(sagaStates, c.State) {
		return usagef("--state %q is none of %s", c.State, strings.Trim(fmt.Sprint(sagaStates), "[]"))
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	sagas, next, err := saga.List(a.ctx, pool, a.namespace, saga.Filter{State: c.State, Name: c.Name, Before: c.Before, Limit: c.Limit})
	if err != nil {
		return err
	}
	if a.json {
		if sagas == nil {
			sagas = []saga.Summary{}
		}
		return a.printJSON(struct {
			Sagas []saga.Summary `json:"sagas"`
			Next  string         `json:"next,omitempty"` // for --before
		}{sagas, next})
	}
	if len(sagas) == 0 {
		fmt.Fprintln(a.err, "no such sagas")
	} else if err := a.sagaTable(pool, sagas); err != nil {
		return err
	}
	if next != "" {
		fmt.Fprintf(a.err, "there may be more: --before %s\n", shellWord(plain(next)))
	}
	return nil
}

// sagaTable prints sagas, and how many of them need a person.
func (a *app) sagaTable(pool *pgxpool.Pool, sagas []saga.Summary) error {
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	stuck := 0
	t := a.table("ID", "STATE", "SINCE", "NAME", "VERSION", "STARTED")
	for _, s := range sagas {
		if s.State == saga.StateStuck {
			stuck++
		}
		t.row(s.ID, loud(s.State), ago(now, s.At), s.Name, strconv.Itoa(s.Version), ago(now, s.StartedAt))
	}
	if err := t.end(); err != nil {
		return err
	}
	if stuck > 0 {
		fmt.Fprintf(a.err, "%d of these %s stuck and needs a person: \"pawl saga show ID\" says what for\n", stuck, map[bool]string{true: "is", false: "are"}[stuck == 1])
	}
	return nil
}
