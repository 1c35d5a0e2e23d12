package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/tcc"
)

// tccListCmd is "pawl tcc list".
type tccListCmd struct {
	State  tcc.State `placeholder:"STATE" help:"Only transactions in this state: active, confirming, cancelling, stuck, confirmed or cancelled."`
	Open   bool      `help:"Only those that are not confirmed or cancelled, whatever their state."`
	Before string    `placeholder:"ID" help:"Only transactions whose deadline is before that of this one, to go on with a listing."`
	Limit  int       `default:"50" placeholder:"N" help:"Rows at most, 1 to 1,000. Default: ${default}."`
}

// tccStates are those a transaction can be in.
var tccStates = []tcc.State{tcc.Active, tcc.Confirming, tcc.Cancelling, tcc.Stuck, tcc.Confirmed, tcc.Cancelled}

// Help is the long help text.
func (*tccListCmd) Help() string {
	return fmt.Sprintf(`The latest deadline first. STUCK, written large, needs a person: "pawl tcc show ID" says what for. active is not decided yet, and cancelled at its deadline by itself; confirming and cancelling go on by themselves, as long as workers serve their branches. DONE: branches that are confirmed or cancelled, of how many. A transaction's state is worked out from what was noted of it, so a listing by --state or --open looks at %s transactions at most and says where to go on.`, thousands(tcc.ListScanMax))
}

// Run lists transactions.
func (c *tccListCmd) Run(a *app) error {
	if c.Limit < 1 || c.Limit > 1000 {
		return usagef("--limit %d is outside 1 to 1,000", c.Limit)
	}
	if c.State != "" && !slices.Contains(tccStates, c.State) {
		return usagef("--state %q is none of %s", c.State, strings.Trim(fmt.Sprint(tccStates), "[]"))
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	found, next, err := tcc.List(a.ctx, pool, a.namespace, tcc.Filter{State: c.State, Open: c.Open, Before: c.Before, Limit: c.Limit})
	if err != nil {
		return err
	}
	if a.json {
		if found == nil {
			found = []tcc.Summary{}
		}
		return a.printJSON(struct {
			Transactions []tcc.Summary `json:"transactions"`
			Next         string        `json:"next,omitempty"` // for --before
		}{found, next})
	}
	if len(found) == 0 {
		fmt.Fprintln(a.err, "no such transactions")
	} else if err := a.tccTable(pool, found); err != nil {
		return err
	}
	if next != "" {
		fmt.Fprintf(a.err, "there may be more: --before %s\n", shellWord(plain(next)))
	}
	return nil
}

// tccTable prints transactions, and how many of them need a person.
func (a *app) tccTable(pool *pgxpool.Pool, found []tcc.Summary) error {
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	stuck, late := 0, 0
	t := a.table("ID", "STATE", "DONE", "BEGUN", "DEADLINE", "DECIDED", "BY")
	for _, s := range found {
		decided := "-"
		switch {
		case s.DecidedAt != nil:
			decided = string(s.Decision) + ", " + ago(now, *s.DecidedAt)
		case now.Sub(s.Deadline) > pageOverdue:
			late++
		}
		if s.State == tcc.Stuck {
			stuck++
		}
		t.row(s.ID, loud(s.State), fmt.Sprintf("%d/%d", s.Done, s.Count), ago(now, s.BegunAt), ago(now, s.Deadline), decided, cmp.Or(s.DecidedBy, "-"))
	}
	if err := t.end(); err != nil {
		return err
	}
	if stuck > 0 {
		fmt.Fprintf(a.err, "%d of these %s stuck and needs a person: \"pawl tcc show ID\" says what for\n", stuck, map[bool]string{true: "is", false: "are"}[stuck == 1])
	}
	if late > 0 {
		fmt.Fprintf(a.err, "%d of these should have been cancelled at the deadline: see that a coordinator runs (\"pawl serve\"), and what \"pawl doctor\" says\n", late)
	}
	return nil
}
