package transfer

import (
	"context"
	"fmt"
)

// Claim says what holds for a number of things, unless there are differences.
type Claim struct {
	Count       int      `json:"count"`
	Of          string   `json:"of"`
	Text        string   `json:"claim"`
	Differences []string `json:"differences"`
}

// Figures are what a finished run came to.
type Figures struct {
	Transfers int   `json:"transfers"`
	Recorded  int   `json:"recorded"` // of them, in the coordinator's database
	Cents     int64 `json:"cents"`    // that were moved
	// Between counts the transfers by the banks they were between, such as "east and west".
	Between map[string]int `json:"between"`
	// Example is a transfer that was recorded, and ExampleAt names its banks.
	Example   string   `json:"example"`
	ExampleAt []string `json:"example_at"`
}

// side is what a transfer did at a bank, as its entry there says.
type side struct {
	bank    string
	account int
	cents   int64
	peer    string // the other bank
}

func (s side) String() string {
	return fmt.Sprintf("%+d cents in account %d of %s, with %s", s.cents, s.account, s.bank, s.peer)
}

// whole is how many cents a transfer has moved, 0 if it was not whole.
func whole(sides []side) int64 {
	if len(sides) != 2 || sides[0].bank != sides[1].peer || sides[1].bank != sides[0].peer || sides[0].bank == sides[1].bank || sides[0].cents+sides[1].cents != 0 {
		return 0
	}
	return max(sides[0].cents, sides[1].cents)
}

// Prove looks whether the tables show what they should, once a run has ended: what differs is in the claims.
func Prove(ctx context.Context, b *Banks, run int64) (Figures, []Claim, error) {
	f := Figures{Between: map[string]int{}}
	sums, accounts, err := b.proveAccounts(ctx)
	if err != nil {
		return f, nil, err
	}
	transfers := map[string][]side{}
	for _, bank := range b.all {
		var id string
		s := side{bank: bank.participant().Name()}
		if err := bank.read(ctx, "SELECT transfer, account, cents, peer FROM transfer.entry WHERE run_id = ?", []any{run}, []any{&id, &s.account, &s.cents, &s.peer}, func() error {
			transfers[id] = append(transfers[id], s)
			return nil
		}); err != nil {
			return f, nil, at(bank, err)
		}
	}
	f.Transfers = len(transfers)
	made := Claim{Count: f.Transfers, Of: "transfers", Text: "each is whole: what was taken at one bank was given at another, once"}
	for id, sides := range transfers {
		cents := whole(sides)
		if cents == 0 {
			made.Differences = append(made.Differences, fmt.Sprintf("transfer %s: %v", id, sides))
			continue
		}
		f.Cents += cents
		f.Between[sides[0].bank+" and "+sides[1].bank]++
	}
	recorded, err := b.proveRecords(ctx, run, transfers, &f)
	if err != nil {
		return f, nil, err
	}
	left, err := b.proveNothingLeft(ctx)
	return f, []Claim{sums, made, accounts, recorded, left}, err
}

// proveAccounts adds up what is in the accounts, and compares it with what it was at first and with the entries of all runs. What went to a bank that has gone since, or came from there, is known by the peers.
func (b *Banks) proveAccounts(ctx context.Context) (sums, accounts Claim, err error) {
	sums = Claim{Count: len(b.all), Of: "banks", Text: "together they have what they had at first"}
	accounts = Claim{Of: "accounts", Text: "in each is what was there at first and what its entries add"}
	var total int64
	gone := map[string]int64{}
	for _, bank := range b.all {
		var id int
		var has, added int64
		if err := bank.read(ctx, "SELECT a.id, a.cents, coalesce(sum(e.cents), 0) FROM transfer.account a LEFT JOIN transfer.entry e ON e.account = a.id GROUP BY a.id, a.cents", nil, []any{&id, &has, &added}, func() error {
			accounts.Count++
			total += has
			if has != Opening+added {
				accounts.Differences = append(accounts.Differences, fmt.Sprintf("%s: account %d has %d cents, its entries make %d", bank.participant().Name(), id, has, Opening+added))
			}
			return nil
		}); err != nil {
			return sums, accounts, at(bank, err)
		}
		var peer string
		if err := bank.read(ctx, "SELECT peer, sum(cents) FROM transfer.entry GROUP BY peer", nil, []any{&peer, &added}, func() error {
			if !b.has(peer) {
				gone[peer] += added
			}
			return nil
		}); err != nil {
			return sums, accounts, at(bank, err)
		}
	}
	want := int64(len(b.all) * Accounts * Opening)
	for peer, cents := range gone {
		want += cents
		sums.Text += ", but for what earlier runs have moved to " + peer + " or from there"
	}
	if total != want {
		sums.Differences = append(sums.Differences, fmt.Sprintf("%d cents, not %d", total, want))
	}
	return sums, accounts, nil
}

// proveRecords compares the records of a run with its transfers.
func (b *Banks) proveRecords(ctx context.Context, run int64, transfers map[string][]side, f *Figures) (Claim, error) {
	c := Claim{Of: "records", Text: "each is of a transfer that was made, in the transaction that decided it"}
	rows, err := b.own.Query(ctx, "SELECT transfer, cents FROM transfer.record WHERE run_id = $1", run)
	if err != nil {
		return c, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var cents int64
		if err := rows.Scan(&id, &cents); err != nil {
			return c, err
		}
		c.Count++
		if whole(transfers[id]) != cents {
			c.Differences = append(c.Differences, fmt.Sprintf("transfer %s of %d cents is recorded, and made: %v", id, cents, transfers[id]))
			continue
		}
		f.Example, f.ExampleAt = id, []string{transfers[id][0].bank, transfers[id][1].bank}
	}
	f.Recorded = c.Count
	return c, rows.Err()
}

// proveNothingLeft looks for branches that are prepared, and for such that a person must see.
func (b *Banks) proveNothingLeft(ctx context.Context) (Claim, error) {
	c := Claim{Count: len(b.all), Of: "banks", Text: "none has a prepared transaction left, and nobody need see to one"}
	for _, bank := range b.all {
		prepared, err := bank.participant().Prepared(ctx)
		if err != nil {
			return c, at(bank, err)
		}
		for _, p := range prepared {
			c.Differences = append(c.Differences, fmt.Sprintf("%s: branch %s is prepared", bank.participant().Name(), p.Branch))
		}
	}
	doubts, err := b.Manager.Doubts(ctx, false, 100)
	for _, d := range doubts {
		c.Differences = append(c.Differences, fmt.Sprintf("transaction %s at %s is %s: %s", d.Branch.ID, d.Branch.Participant, d.What, d.Detail))
	}
	return c, err
}
