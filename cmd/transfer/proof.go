package transfer

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
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
	// Example is a transfer that was recorded.
	Example string `json:"example"`
}

type entry struct {
	account int
	cents   int64
}

// Prove looks whether the tables show what they should, once a run has ended: what differs is in the claims.
func Prove(ctx context.Context, b *Banks, run int64) (Figures, []Claim, error) {
	var f Figures
	entries := make([]map[string][]entry, len(b.Pools)) // by transfer, of this run
	var accounts, sums Claim
	accounts = Claim{Of: "accounts", Text: "in each is what was there at first and what its entries add"}
	sums = Claim{Count: len(Names), Of: "banks", Text: "together they have what they had at first"}
	var total int64
	for i, pool := range b.Pools {
		rows, err := pool.Query(ctx, "SELECT transfer, account, cents FROM transfer.entry WHERE run_id = $1", run)
		if err != nil {
			return f, nil, err
		}
		entries[i] = map[string][]entry{}
		var id string
		var e entry
		if _, err := pgx.ForEachRow(rows, []any{&id, &e.account, &e.cents}, func() error {
			entries[i][id] = append(entries[i][id], e)
			return nil
		}); err != nil {
			return f, nil, err
		}
		n, sum, differ, err := balance(ctx, pool)
		if err != nil {
			return f, nil, err
		}
		accounts.Count += n
		total += sum
		for _, text := range differ {
			accounts.Differences = append(accounts.Differences, Names[i]+": "+text)
		}
	}
	if want := int64(len(Names) * Accounts * Opening); total != want {
		sums.Differences = append(sums.Differences, fmt.Sprintf("%d cents, not %d", total, want))
	}
	whole := Claim{Of: "transfers", Text: "each is whole: what was taken at one bank was given at the other, once"}
	for id, at := range entries[0] {
		other := entries[1][id]
		if len(at) != 1 || len(other) != 1 || at[0].cents+other[0].cents != 0 {
			whole.Differences = append(whole.Differences, fmt.Sprintf("transfer %s: %v at %s, %v at %s", id, at, Names[0], other, Names[1]))
			continue
		}
		f.Cents += max(at[0].cents, -at[0].cents)
	}
	for id, at := range entries[1] {
		if entries[0][id] == nil {
			whole.Differences = append(whole.Differences, fmt.Sprintf("transfer %s: nothing at %s, %v at %s", id, Names[0], at, Names[1]))
		}
	}
	f.Transfers = len(entries[0])
	whole.Count = f.Transfers
	recorded := Claim{Of: "records", Text: "each is of a transfer that was made, in the transaction that decided it"}
	rows, err := b.Own.Query(ctx, "SELECT transfer, cents FROM transfer.record WHERE run_id = $1", run)
	if err != nil {
		return f, nil, err
	}
	var id string
	var cents int64
	if _, err := pgx.ForEachRow(rows, []any{&id, &cents}, func() error {
		recorded.Count++
		if at := entries[0][id]; len(at) != 1 || at[0].cents != cents && at[0].cents != -cents {
			recorded.Differences = append(recorded.Differences, fmt.Sprintf("transfer %s of %d cents is recorded, and %v at %s", id, cents, at, Names[0]))
		}
		f.Example = id
		return nil
	}); err != nil {
		return f, nil, err
	}
	f.Recorded = recorded.Count
	left := Claim{Count: len(Names), Of: "banks", Text: "none has a prepared transaction left, and nobody need see to one"}
	prepared, err := b.Prepared(ctx)
	if err != nil {
		return f, nil, err
	}
	if prepared > 0 {
		left.Differences = append(left.Differences, fmt.Sprintf("%d prepared transactions", prepared))
	}
	doubts, err := b.Manager.Doubts(ctx, false, 100)
	if err != nil {
		return f, nil, err
	}
	for _, d := range doubts {
		left.Differences = append(left.Differences, fmt.Sprintf("transaction %s at %s is %s: %s", d.Branch.ID, d.Branch.Participant, d.What, d.Detail))
	}
	return f, []Claim{sums, whole, accounts, recorded, left}, nil
}

// balance adds up a bank's accounts, and tells which differ from what their entries add up to, of all runs.
func balance(ctx context.Context, pool *pgxpool.Pool) (n int, sum int64, differ []string, err error) {
	rows, err := pool.Query(ctx, `SELECT a.id, a.cents, $1 + coalesce(e.cents, 0) FROM transfer.account a
		LEFT JOIN (SELECT account, sum(cents)::bigint AS cents FROM transfer.entry GROUP BY 1) e ON e.account = a.id`, int64(Opening))
	if err != nil {
		return 0, 0, nil, err
	}
	var id int
	var has, should int64
	_, err = pgx.ForEachRow(rows, []any{&id, &has, &should}, func() error {
		n++
		sum += has
		if has != should {
			differ = append(differ, fmt.Sprintf("account %d has %d cents, its entries make %d", id, has, should))
		}
		return nil
	})
	return n, sum, differ, err
}
