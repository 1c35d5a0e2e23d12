package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

// txResolveCmd is "pawl tx resolve".
type txResolveCmd struct {
	ID       string `arg:"" help:"Transaction."`
	Commit   bool   `xor:"how" required:"" help:"It was committed: commit it wherever it is prepared."`
	Rollback bool   `xor:"how" required:"" help:"It was not: roll it back wherever it is prepared."`
	Accept   bool   `xor:"how" required:"" help:"It was mixed, and its data are put right by hand."`
	Yes      bool   `short:"y" help:"Do not ask."`
	why
}

// Help is the long help text.
func (*txResolveCmd) Help() string {
	return `--commit and --rollback decide a transaction that is UNDECIDED in "pawl tx list": its decision may be lost with a restore of the coordinator's database. What you say is done at all participants where it is prepared, by the next recovery, and cannot be taken back: find out first what the others did. --accept ends the listing of one that is MIXED; it changes no data. Asks.`
}

// Run resolves a doubt.
func (c *txResolveCmd) Run(a *app) error {
	if err := c.check(); err != nil {
		return err
	}
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
	question, did, at := c.plan(s)
	if err := a.confirm(c.Yes, question); err != nil {
		return err
	}
	if c.Accept {
		err = m.Accept(a.ctx, c.ID, c.Actor, c.Reason)
	} else {
		err = m.Resolve(a.ctx, c.ID, c.Commit, c.Actor, c.Reason)
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"id": c.ID, "did": did, "participants": at})
	}
	if c.Accept {
		fmt.Fprintf(a.out, "transaction %s is accepted as it stands, and listed no more\n", plain(c.ID))
		return nil
	}
	if len(at) == 0 {
		fmt.Fprintf(a.out, "transaction %s was %s before\n", plain(c.ID), did)
		return nil
	}
	fmt.Fprintf(a.out, "transaction %s is %s; the next recovery does so at %s, and \"pawl tx show %s\" tells\n", plain(c.ID), did, strings.Join(at, ", "), plain(c.ID))
	return nil
}

// plan says what a person vouches for, what that does, and at which participants.
func (c *txResolveCmd) plan(s twophase.Story) (question, did string, at []string) {
	want, do := twophase.Undecided, "commits"
	switch did = "committed"; {
	case c.Rollback:
		do, did = "rolls back", "aborted"
	case c.Accept:
		want, did = twophase.Mixed, "accepted"
	}
	at = []string{}
	for _, d := range s.Doubts {
		if d.What == want && d.ResolvedAt.IsZero() {
			at = append(at, d.Branch.Participant)
		}
	}
	slices.Sort(at)
	where := strings.Join(at, ", ")
	if where == "" {
		where = "no participant that is known to have it prepared"
	}
	if c.Accept {
		return fmt.Sprintf("You vouch that the data of transaction %s are right at %s.", c.ID, where), did, at
	}
	return fmt.Sprintf("Transaction %s %s at %s, for good.", c.ID, do, where), did, at
}

// txRestoredCmd is "pawl tx restored".
type txRestoredCmd struct {
	Yes bool `short:"y" help:"Do not ask."`
}

// Help is the long help text.
func (*txRestoredCmd) Help() string {
	return `To be run once after the coordinator's database was restored to an earlier time in the same cluster, before coordinators start: decisions from after that time are lost, and what is prepared must not be rolled back for want of them. From then on nothing is presumed of transactions that began before: those that are prepared and undecided wait in "pawl tx list" for a person. Recovery notices most restores by itself, since participants know how far the log was, and "pawl doctor --rebase" does this as well. In vain it does little harm.`
}

// Run raises the incarnation.
func (c *txRestoredCmd) Run(a *app) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := a.confirm(c.Yes, "Of transactions that began before now and are undecided, nothing is presumed: a person must settle them."); err != nil {
		return err
	}
	m, err := a.manager(pool)
	if err != nil {
		return err
	}
	n, err := m.Restored(a.ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"incarnation": n})
	}
	fmt.Fprintf(a.out, "incarnation %d begins; after the next recovery \"pawl tx list\" shows what needs a person\n", n)
	return nil
}
