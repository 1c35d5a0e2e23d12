package db

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Bounded runs queries whose rows end early, after the one that makes their bytes reach a bound. To count them in Postgres would take longer than to read them. What is
// left is still sent and read over, so ask for no more rows than are likely to fit. It is for one query.
type Bounded struct {
	DBTX
	Bytes int
	// Cut tells afterwards whether the bound was reached.
	Cut bool
}

// Query is that of pgx.
func (b *Bounded) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	rows, err := b.DBTX.Query(ctx, sql, args...)
	return &boundedRows{rows, b}, err
}

type boundedRows struct {
	pgx.Rows
	b *Bounded
}

func (r *boundedRows) Next() bool {
	if r.b.Cut || !r.Rows.Next() {
		return false
	}
	for _, v := range r.RawValues() {
		r.b.Bytes -= len(v)
	}
	r.b.Cut = r.b.Bytes <= 0
	return true
}
