package db

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// The SQLSTATEs that Pawl's functions raise.
const (
	CodeLost            = "PW001" // the attempt was lost: its session ended or it was ended before
	CodePayloadTooLarge = "PW002" // args exceed what the queue allows
	CodeMoved           = "PW003" // the database was moved to another cluster
	CodeSessionEnded    = "PW004" // the session has ended
	CodeMisuse          = "PW005" // a transaction of its own, or READ COMMITTED, is needed
	CodeGap             = "PW006" // events were dropped before a subscription had them

	CodeSagaConflict     = "PW020" // a saga of that id has another input or definition
	CodeSagaUnregistered = "PW021" // the definition, or its version, is not registered
	CodeSagaTooLate      = "PW022" // the saga has passed its pivot
	CodeSagaEnded        = "PW023" // the saga has ended
	CodeSagaNotFound     = "PW024" // there is no such saga
	CodeSagaNotWaiting   = "PW025" // the saga, or its step, does not wait for this

	CodeTCCExists    = "PW040" // there is a transaction of that id
	CodeTCCNotFound  = "PW041" // there is no such transaction
	CodeTCCCancelled = "PW042" // it is cancelled
	CodeTCCConfirmed = "PW043" // it is confirmed
	CodeTCCExpired   = "PW044" // its deadline has passed
	CodeTCCUntried   = "PW045" // a branch was not tried with success
	CodeTCCTooMany   = "PW046" // it has as many branches as it may have
	CodeTCCNotStuck  = "PW047" // nothing of it is stuck
)

// Code returns the SQLSTATE of err, or "" if Postgres did not raise it.
func Code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// Message returns what Postgres said, with its hint, or err's own text.
func Message(err error) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err.Error()
	}
	if pg.Hint != "" {
		return pg.Message + ". " + pg.Hint
	}
	return pg.Message
}

// IsUnmigrated tells that the schema pawl, or something in it, does not exist.
func IsUnmigrated(err error) bool {
	switch Code(err) {
	case "3F000", "42P01", "42883", "42703", "42704":
		return true
	}
	return false
}
