// Package idempotency makes an effect happen once however often it is asked for: by the key that a client gives a request ([Do]), or by the id of a message ([Once]).
//
//	Situation                                     | Error       | What to do
//	another transaction is at work on the key     | ErrInFlight | try again soon; or wait, with Options.Wait
//	the key was used for another request          | ErrMismatch | a mistake of the client; nothing was replayed
//	the connection was lost during COMMIT         | ErrUnknown  | try again with the same key: the stored answer tells
//	bad key, scope, consumer or option            | ErrInvalid  | nothing was changed
//	the schema is missing                         | ErrSchema   | run "pawl migrate up"
package idempotency

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

var (
	// ErrInFlight: another transaction is at work on the key.
	ErrInFlight = errors.New("idempotency: a request with this key is in flight")
	// ErrMismatch: the key was used for another request.
	ErrMismatch = errors.New("idempotency: the key was used for another request")
	// ErrUnknown: the connection was lost during COMMIT. The effect happened or did not; asking again with the same key finds out.
	ErrUnknown = errors.New("idempotency: outcome unknown, the connection was lost during COMMIT")
	// ErrInvalid: a key, scope, consumer or option is outside what is documented.
	ErrInvalid = errors.New("idempotency: invalid")
	// ErrSchema: the database lacks Pawl's schema or has an older one.
	ErrSchema = session.ErrSchema
)

// The limits of what is stored.
const (
	ScopeBytesMax = 1024
	KeyBytesMax   = 255
	BodyBytesMax  = 1 << 20
)

// Key names a request. Scope tells whose key it is and for what, such as the authenticated client and the route: without it one client could be answered with what
// another was.
type Key struct {
	Scope string
	Key   string
}

// Response is what is stored and replayed.
type Response struct {
	Status  int
	Headers map[string][]string
	Body    []byte
}

// Options of Do. Their zero value works.
type Options struct {
	// Namespace is the number of the namespace. Default: 1, "default".
	Namespace int16
	// TTL is how long an answer is kept. Default: 24 h.
	TTL time.Duration
	// Wait is how long to wait for another request with the same key. Default: not at all.
	Wait time.Duration
}

const ttlDefault = 24 * time.Hour

// Do runs fn in a transaction (READ COMMITTED) that also stores its answer under the key, and returns the answer once both are committed. If the key has an answer, that is
// returned with replayed true, and fn does not run. fingerprint tells requests apart, such as a hash of the payload: another than the stored one is ErrMismatch, before
// anything is replayed. An error or a panic of fn rolls all back, and so does a crash anywhere before the commit: then the key is free again, and nothing need be waited for.
// A key whose answer has expired is like one never used. The error is fn's, ErrInFlight, ErrMismatch, ErrUnknown, ErrInvalid, ErrSchema or the database's.
func Do(ctx context.Context, pool *pgxpool.Pool, key Key, fingerprint []byte, o Options, fn func(context.Context, pgx.Tx) (Response, error)) (out Response, replayed bool, err error) {
	o.Namespace = max(o.Namespace, 1)
	if o.TTL == 0 {
		o.TTL = ttlDefault
	}
	if fingerprint == nil {
		fingerprint = []byte{}
	}
	if o.TTL < 0 || o.Wait < 0 || len(key.Scope) > ScopeBytesMax || key.Key == "" || len(key.Key) > KeyBytesMax {
		return out, false, fmt.Errorf("%w: a scope has up to %d bytes, not %d, a key 1 to %d, not %d; TTL %s and Wait %s are not below 0", ErrInvalid, ScopeBytesMax, len(key.Scope),
			KeyBytesMax, len(key.Key), o.TTL, o.Wait)
	}
	// A committed answer is final until it expires: it needs no lock.
	if out, replayed, err = look(ctx, db.New(pool), o, key, fingerprint); replayed || err != nil {
		return out, replayed, err
	}
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return out, false, fmt.Errorf("idempotency: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	q := db.New(tx)
	taken, err := q.TakeKey(ctx, db.TakeKeyParams{Ns: o.Namespace, Scope: key.Scope, Key: key.Key, WaitMs: int32(min(o.Wait.Milliseconds(), 1<<31-1))})
	if err != nil {
		return out, false, fmt.Errorf("take key: %w", wrap(err))
	}
	if !taken {
		return out, false, ErrInFlight
	}
	// A statement after the one that locked: it sees what was committed under the lock before.
	if out, replayed, err = look(ctx, q, o, key, fingerprint); replayed || err != nil {
		return out, replayed, err
	}
	if out, err = fn(ctx, tx); err != nil {
		return Response{}, false, err
	}
	if err := store(ctx, q, o, key, fingerprint, out); err != nil {
		return Response{}, false, err
	}
	if err := tx.Commit(ctx); err != nil {
		if db.Code(err) != "" || errors.Is(err, pgx.ErrTxCommitRollback) {
			return Response{}, false, fmt.Errorf("commit: %w", err)
		}
		return Response{}, false, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return out, false, nil
}

func look(ctx context.Context, q *db.Queries, o Options, key Key, fingerprint []byte) (Response, bool, error) {
	row, err := q.LookKey(ctx, db.LookKeyParams{Ns: o.Namespace, Scope: key.Scope, Key: key.Key})
	if errors.Is(err, pgx.ErrNoRows) {
		return Response{}, false, nil
	}
	if err != nil {
		return Response{}, false, fmt.Errorf("look up key: %w", wrap(err))
	}
	if !bytes.Equal(row.Fingerprint, fingerprint) {
		return Response{}, false, ErrMismatch
	}
	out := Response{Status: int(row.Status), Body: row.Body}
	if err := json.Unmarshal(row.Headers, &out.Headers); err != nil {
		return Response{}, false, fmt.Errorf("look up key: headers: %w", err)
	}
	return out, true, nil
}

func store(ctx context.Context, q *db.Queries, o Options, key Key, fingerprint []byte, r Response) error {
	if len(r.Body) > BodyBytesMax {
		return fmt.Errorf("%w: an answer of %d bytes exceeds the %d that are stored", ErrInvalid, len(r.Body), BodyBytesMax)
	}
	headers := ""
	if len(r.Headers) > 0 {
		text, err := json.Marshal(r.Headers)
		if err != nil {
			return fmt.Errorf("%w: headers: %w", ErrInvalid, err)
		}
		headers = string(text)
	}
	if r.Body == nil {
		r.Body = []byte{}
	}
	err := q.StoreKey(ctx, db.StoreKeyParams{
		Ns: o.Namespace, Scope: key.Scope, Key: key.Key, Fingerprint: fingerprint, Status: int32(r.Status), Headers: headers, Body: r.Body, TTL: o.TTL,
	})
	if err != nil {
		return fmt.Errorf("store answer: %w", wrap(err))
	}
	return nil
}

// InboxKeep is how long the id of a message is remembered.
const InboxKeep = 7 * 24 * time.Hour

// DB is what Once runs on: the consumer's own transaction.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Once notes in the consumer's own transaction that it sees a message, before anything else, and tells whether it is the first time: if not, its effect has been committed,
// and the consumer only acknowledges. While another transaction has noted the same message, it waits for its end. Ids are kept for InboxKeep. The error is ErrInvalid or the
// database's.
func Once(ctx context.Context, tx pgx.Tx, ns int16, consumer, messageID string) (first bool, err error) {
	first, err = db.New(tx).SeeMessage(ctx, db.SeeMessageParams{Ns: max(ns, 1), Consumer: consumer, MessageID: messageID, Keep: InboxKeep})
	if err != nil {
		return false, fmt.Errorf("note message %q of %s: %w", messageID, consumer, wrap(err))
	}
	return first, nil
}

// Stored is an answer as an operator sees it.
type Stored struct {
	Key
	Response

	CreatedAt, ExpiresAt time.Time
}

// Find returns the stored answers of a key in up to limit scopes.
func Find(ctx context.Context, on DB, ns int16, key string, limit int) ([]Stored, error) {
	rows, err := db.New(on).FindKeys(ctx, db.FindKeysParams{Ns: ns, Key: key, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("find key: %w", wrap(err))
	}
	out := make([]Stored, len(rows))
	for i, r := range rows {
		out[i] = Stored{Key: Key{r.Scope, r.Key}, Response: Response{Status: int(r.Status), Body: r.Body}, CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt}
		if err := json.Unmarshal(r.Headers, &out[i].Headers); err != nil {
			return nil, fmt.Errorf("find key: headers: %w", err)
		}
	}
	return out, nil
}

func wrap(err error) error {
	switch {
	case db.Code(err) == "22023", db.Code(err) == db.CodeMisuse:
		return fmt.Errorf("%w: %s", ErrInvalid, db.Message(err))
	case db.IsUnmigrated(err):
		return fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
	}
	return err
}
