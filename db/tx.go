package db

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Guard is tx for code that may not end it: Commit and Rollback return why. Savepoints, by Begin, are free.
func Guard(tx pgx.Tx, why error) pgx.Tx { return guardedTx{tx, why} }

type guardedTx struct {
	pgx.Tx
	why error
}

func (t guardedTx) Commit(context.Context) error   { return t.why }
func (t guardedTx) Rollback(context.Context) error { return t.why }
