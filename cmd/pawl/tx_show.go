package main

import (
	"fmt"
	"strings"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

// txShowCmd is "pawl tx show".
type txShowCmd struct {
	ID string `arg:"" help:"Transaction."`
}

// Help is the long help text.
func (*txShowCmd) Help() string {
	return `Whether it is committed, by whose decision, where it is not known to be done, and what to do about that. Decisions are kept for a day after the transaction is done.`
}

// Run tells what is known of a transaction.
func (c *txShowCmd) Run(a *app) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	m, err := a.manager(pool)
	if err != nil {
		return err
	}
	s, err := m.Get(a.ctx, c.ID)
	if err != nil {
		return err
	}
	doubts := newTxDoubts(s.Doubts)
	if a.json {
		return a.printJSON(struct {
			ID      string            `json:"id"`
			Decided *twophase.Decided `json:"decided,omitempty"`
			Doubts  []txDoubt         `json:"doubts"`
		}{c.ID, s.Decided, doubts})
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	d := s.Decided
	switch {
	case d == nil:
		fmt.Fprintf(a.out, "transaction %s is not decided\n", c.ID)
	case !d.Committed:
		fmt.Fprintf(a.out, "transaction %s is aborted: it is rolled back everywhere, or will be\n", d.ID)
	case d.Ended:
		fmt.Fprintf(a.out, "transaction %s is committed everywhere\n", d.ID)
	default:
		fmt.Fprintf(a.out, "transaction %s is committed, and not known to be so at all participants; recovery goes on with it\n", d.ID)
	}
	if d != nil {
		fmt.Fprintf(a.out, "decided       %s by %s\n", moment(now, d.DecidedAt), plain(d.DecidedBy))
		if len(d.Participants) > 0 {
			fmt.Fprintf(a.out, "participants  %s\n", plain(strings.Join(d.Participants, ", ")))
		}
		if d.Reason != "" {
			fmt.Fprintf(a.out, "reason        %s\n", plain(oneLine(d.Reason)))
		}
	}
	if len(doubts) > 0 {
		fmt.Fprintln(a.out)
		(&txListing{Doubts: doubts, now: now}).printDoubts(a)
	}
	return nil
}
