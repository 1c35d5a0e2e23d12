package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

const (
	txDoubtsMax = 1000             // of doubts and participants
	txYoung     = 10 * time.Second // transactions that began later are not listed as unfinished: they are likely to be at it
	txLooked    = time.Minute      // a participant at which no recovery was for longer has no coordinator
)

// txListCmd is "pawl tx list".
type txListCmd struct {
	All    bool   `help:"All that is known: also transactions that are done, and doubts that somebody has dealt with."`
	Before string `placeholder:"ID" help:"Only transactions that began before this one, to go on with a listing."`
	Limit  int    `default:"50" placeholder:"N" help:"Transactions at most, 1 to 1,000. Default: ${default}."`
}

// Help is the long help text.
func (*txListCmd) Help() string {
	return `First what needs a person, with what to do; then transactions that are decided and not known to be committed everywhere, which recovery goes on with; then participants where recovery was not, or could not do all. Transactions newest first. One that has not come to its commit point has no row anywhere but in its participants, and rolls back by itself past its deadline. Transactions over services are in "pawl tcc list".

UNDECIDED: nobody may presume anything, since decisions may be lost. UNFINISHED: decided, and the participant refuses. MIXED: the participant did the opposite of what was decided.`
}

// txDoubt is a doubt as it is printed.
type txDoubt struct {
	ID          string `json:"id"`
	Participant string `json:"participant"`
	twophase.Doubt
	ToDo string `json:"to_do,omitempty"` // "": somebody has dealt with it
}

func newTxDoubts(doubts []twophase.Doubt) []txDoubt {
	out := make([]txDoubt, len(doubts))
	for i, d := range doubts {
		out[i] = txDoubt{ID: d.Branch.ID.String(), Participant: d.Branch.Participant, Doubt: d}
		if d.ResolvedAt.IsZero() {
			out[i].ToDo = toDo(d)
		}
	}
	return out
}

// toDo says what a person does about a doubt.
func toDo(d twophase.Doubt) string {
	id := d.Branch.ID
	switch d.What {
	case twophase.Undecided:
		return fmt.Sprintf("find out from the application, or from its other participants, whether it was committed; then: pawl tx resolve %s --commit (or --rollback) --reason …", id)
	case twophase.Unfinished:
		return fmt.Sprintf("mend at %s what hinders it, and recovery goes on", d.Branch.Participant)
	case twophase.Mixed:
		return fmt.Sprintf("put the data at %s right by hand; then: pawl tx resolve %s --accept --reason …", d.Branch.Participant, id)
	}
	return fmt.Sprintf("a newer pawl knows what %q is", d.What)
}

// txListing is a listing.
type txListing struct {
	Doubts       []txDoubt          `json:"doubts"`
	Transactions []twophase.Decided `json:"transactions"`   // unfinished ones, or all
	Participants []twophase.Seen    `json:"participants"`   // that recovery does not reach, or where it could not do all
	Next         string             `json:"next,omitempty"` // for --before

	now time.Time
	all bool
}

// Run lists global transactions.
func (c *txListCmd) Run(a *app) error {
	if c.Limit < 1 || c.Limit > 1000 {
		return usagef("--limit %d is outside 1 to 1,000", c.Limit)
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
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	l, err := c.ask(a, m, now)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(l)
	}
	return l.print(a)
}

func (c *txListCmd) ask(a *app, m *twophase.Manager, now time.Time) (*txListing, error) {
	l := &txListing{now: now, all: c.All}
	doubts, err := m.Doubts(a.ctx, c.All, txDoubtsMax)
	if err != nil {
		return nil, err
	}
	l.Doubts = newTxDoubts(doubts)
	before := c.Before
	if before == "" && !c.All {
		before = twophase.FirstID(now.Add(-txYoung))
	}
	if l.Transactions, err = m.List(a.ctx, before, !c.All, c.Limit); err != nil {
		return nil, err
	}
	if len(l.Transactions) == c.Limit {
		l.Next = l.Transactions[c.Limit-1].ID
	}
	if l.Participants, err = m.Participants(a.ctx, txDoubtsMax); err != nil {
		return nil, err
	}
	l.Participants = slices.DeleteFunc(l.Participants, func(p twophase.Seen) bool { return p.Error == "" && now.Sub(p.TriedAt) < txLooked })
	return l, nil
}

// print writes a listing for people.
func (l *txListing) print(a *app) error {
	open := slices.IndexFunc(l.Doubts, func(d txDoubt) bool { return d.ToDo != "" }) >= 0
	if !open && len(l.Participants) == 0 && (len(l.Transactions) == 0 || l.all) {
		fmt.Fprintln(a.err, "nothing needs a person: nothing is in doubt or unfinished, and recovery reaches all participants it knows")
	}
	begun := false
	part := func(title string) {
		if begun {
			fmt.Fprintln(a.out)
		}
		begun = true
		fmt.Fprintln(a.out, title)
	}
	if len(l.Doubts) > 0 {
		if open {
			part("These need a person:")
		} else {
			part("Somebody has dealt with these:")
		}
		l.printDoubts(a)
	}
	if len(l.Transactions) > 0 {
		if l.all {
			part("Transactions that are decided:")
		} else {
			part("Decided, and not known to be committed everywhere; recovery goes on with these, where participants are reached:")
		}
		t := a.table("ID", "OUTCOME", "DECIDED", "PARTICIPANTS", "BY", "REASON")
		for _, d := range l.Transactions {
			t.row(d.ID, outcome(d), ago(l.now, d.DecidedAt), strings.Join(d.Participants, ","), d.DecidedBy, cut(oneLine(d.Reason), 100))
		}
		if err := t.end(); err != nil {
			return err
		}
	}
	if len(l.Participants) > 0 {
		part(`Recovery could not do all here; see that these are up, and known to a coordinator ("pawl serve --participant"):`)
		if err := l.participantTable(a); err != nil {
			return err
		}
	}
	if l.Next != "" {
		fmt.Fprintf(a.err, "there may be more: --before %s\n", l.Next)
	}
	return nil
}

func (l *txListing) printDoubts(a *app) {
	for _, d := range l.Doubts {
		fmt.Fprintf(a.out, "%s at %s: %s, for %s\n", d.ID, d.Participant, strings.ToUpper(string(d.What)), span(l.now.Sub(d.First)))
		fmt.Fprintf(a.out, "    %s\n", plain(cut(oneLine(d.Detail), 1000)))
		if d.ToDo != "" {
			fmt.Fprintf(a.out, "  → %s\n", d.ToDo)
		} else {
			fmt.Fprintf(a.out, "    settled %s by %s: %s\n", ago(l.now, d.ResolvedAt), plain(d.ResolvedBy), plain(oneLine(d.Reason)))
		}
	}
}

// outcome names what is decided, and how far it is.
func outcome(d twophase.Decided) string {
	switch {
	case !d.Committed:
		return "aborted"
	case d.Ended:
		return "committed"
	default:
		return "committing"
	}
}
