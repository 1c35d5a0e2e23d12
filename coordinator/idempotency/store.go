package idempotency

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
)

// state is what a key is to a request, as pawl.idempotency_look says.
type state string

const (
	free      state = "free"
	busy      state = "busy"      // a transaction is at work on it
	answered  state = "answered"  // and kept
	expired   state = "expired"   // answered, and its time is over
	mismatch  state = "mismatch"  // another request's
	claimed   state = "claimed"   // by a phased request
	abandoned state = "abandoned" // claimed, and the claim has run out
	held      state = "held"      // by another's claim
)

// outcome says what a state means to who cannot have the key.
func (r request) outcome(s state, status int32, headers, body []byte) (out Response, replayed bool, err error) {
	switch s {
	case answered:
		out = Response{Status: int(status), Body: body}
		if err := json.Unmarshal(headers, &out.Headers); err != nil {
			return Response{}, false, fmt.Errorf("look up key: headers: %w", err)
		}
		return out, true, nil
	case mismatch:
		return out, false, ErrMismatch
	case busy, claimed, held:
		return out, false, ErrInFlight
	case abandoned:
		return out, false, fmt.Errorf("%w: a phased request with this key was not finished", ErrPoint)
	default:
		return out, false, fmt.Errorf("idempotency: unknown state %q", s)
	}
}

// taken is a transaction that has the key.
type taken struct {
	request
	conn  *pgxpool.Conn
	tx    *db.Tx
	began time.Time
}

const (
	takeSQL = `SELECT what::text, coalesce(status, 0)::int, coalesce(headers, 'null')::json, body::bytea, began::timestamptz
FROM pawl.idempotency_take($1::smallint, $2::text, $3::text, $4::bytea, $5::int)`
	storeSQL   = "SELECT pawl.idempotency_store($1::smallint, $2::text, $3::text, $4::bytea, $5::int, nullif($6::text, '')::json, $7::bytea, $8::interval, $9::timestamptz)"
	boundSQL   = "SELECT now() FROM pawl.idempotency_bound($1::int)"
	intactSQL  = "SELECT pawl.idempotency_intact($1::timestamptz)"
	enterSQL   = "SELECT pawl.idempotency_enter($1::smallint, $2::text, $3::text, $4::bigint, $5::int)"
	advanceSQL = "SELECT pawl.idempotency_advance($1::smallint, $2::text, $3::text, $4::bigint, $5::int, $6::text, nullif($7::text, '')::json, $8::timestamptz)"
)

// take begins a transaction that has the key, unless there is an answer.
func (r request) take(ctx context.Context) (out Response, replayed bool, t *taken, err error) {
	conn, err := r.pool.Acquire(ctx)
	if err != nil {
		return out, false, nil, fmt.Errorf("idempotency: %w", err)
	}
	defer func() {
		if t == nil {
			conn.Release()
		}
	}()
	// What is committed is final until it expires: it needs no lock, and no transaction.
	seen, err := db.New(conn).LookKey(ctx, db.LookKeyParams{Ns: r.Namespace, Scope: r.key.Scope, Key: r.key.Key, Fingerprint: r.fingerprint})
	if err != nil {
		return out, false, nil, fmt.Errorf("look up key: %w", wrap(err))
	}
	if s := state(seen.What); s != free && s != expired {
		out, replayed, err = r.outcome(s, seen.Status, seen.Headers, seen.Body)
		return out, replayed, nil, err
	}
	var (
		s             state
		status        int32
		headers, body []byte
		began         time.Time
	)
	tx, err := db.BeginTx(ctx, conn.Conn(), takeSQL, []any{r.Namespace, r.key.Scope, r.key.Key, r.fingerprint, r.Idle.Milliseconds()}, &s, &status, &headers, &body, &began)
	if err != nil {
		return out, false, nil, fmt.Errorf("take key: %w", wrap(err))
	}
	if s != free { // since it was looked at
		tx.Undo(ctx)
		out, replayed, err = r.outcome(s, status, headers, body)
		return out, replayed, nil, err
	}
	return out, false, &taken{r, conn, tx, began}, nil
}

// store stores the answer and commits.
func (t *taken) store(ctx context.Context, out Response) error {
	headers, body, err := t.encode(out)
	if err != nil {
		return err
	}
	t.fail("before-commit")
	unknown, err := t.tx.End(ctx, storeSQL, t.Namespace, t.key.Scope, t.key.Key, t.fingerprint, out.Status, headers, body, t.TTL, t.began)
	t.fail("after-commit")
	return ended("store answer", unknown, err)
}

// release rolls back what was not committed.
func (t *taken) release(ctx context.Context) {
	t.tx.Undo(ctx)
	t.conn.Release()
}

// ended says how a transaction ended that was lent to a function.
func ended(what string, unknown bool, err error) error {
	if !unknown && db.Code(err) == db.CodeMisuse { // see pawl.idempotency_intact
		return fmt.Errorf("%s: %w", what, ErrEnded)
	}
	return committed(what, unknown, err)
}

// committed says how a transaction of ours ended.
func committed(what string, unknown bool, err error) error {
	if unknown {
		return fmt.Errorf("%s: %w: %w", what, ErrUnknown, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, wrap(err))
	}
	return nil
}

// encode gives the headers and the body of an answer as they are stored.
func (o Options) encode(out Response) (headers string, body []byte, err error) {
	if len(out.Body) > o.BodyBytesMax {
		return "", nil, fmt.Errorf("%w: an answer of %d bytes exceeds the %d that are stored", ErrInvalid, len(out.Body), o.BodyBytesMax)
	}
	if len(out.Headers) > 0 {
		text, err := json.Marshal(out.Headers)
		if err != nil {
			return "", nil, fmt.Errorf("%w: headers: %w", ErrInvalid, err)
		}
		headers = string(text)
	}
	if len(headers) > HeaderBytesMax {
		return "", nil, fmt.Errorf("%w: headers of %d bytes exceed the %d that are stored", ErrInvalid, len(headers), HeaderBytesMax)
	}
	if out.Body == nil {
		out.Body = []byte{}
	}
	return headers, out.Body, nil
}

func wrap(err error) error {
	switch code := db.Code(err); {
	case code == db.CodeLost:
		return fmt.Errorf("%w: %s", ErrLost, db.Message(err))
	case code == "22023", code == "22021", code == db.CodeMisuse:
		return fmt.Errorf("%w: %s", ErrInvalid, db.Message(err))
	case db.IsUnmigrated(err):
		return fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
	}
	return err
}
