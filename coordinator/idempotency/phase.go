package idempotency

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
)

// The limits of a phase.
const (
	PhaseNameBytesMax = 128
	OutputBytesMax    = 64 << 10 // of what a phase returns, as JSON
)

// PhaseTx is a phase in this database: what fn writes, what it returns and the recovery point commit together, or not at all. When the phase is over, it returns what fn
// returned then. That goes through JSON, also in the try that runs fn. fn gets a READ COMMITTED transaction, which it may not end; it should not call other services in it.
// name is the phase's alone in this request, and stays what it is from one version of the code to the next: see ErrPoint. The error is fn's, with which nothing was
// written, ErrLost, ErrUnknown (the next try finds out), ErrPoint, ErrEnded, ErrInvalid or the database's; after one that is not fn's every
// later phase, and the request, ends with it.
func PhaseTx[T any](ctx context.Context, c *Claim, name string, fn func(ctx context.Context, tx pgx.Tx) (T, error)) (out T, err error) {
	if over, err := c.come(name, &out); over || err != nil {
		return out, err
	}
	var none T
	output, err := c.inTx(ctx, name, func(tx pgx.Tx) (output string, err error) {
		made, err := fn(ctx, tx)
		if err == nil {
			output, err = roundTrip(name, made, &out)
		}
		return output, err
	})
	if err != nil {
		return none, err
	}
	c.pass(name, output)
	return out, nil
}

// Phase is a phase elsewhere: fn calls another service, in no transaction and holding no connection, and what it returns becomes the recovery point. When the phase is
// over, it returns what fn returned then, as PhaseTx does. fn may run more than once, always with the same key, DerivedKey of this request and name, which is to be
// passed on: the service has to do the same thing once for it, or be such that twice does no harm. Whoever cannot be asked twice at all, cannot be called exactly once
// by anybody. An error of fn leaves the point where it was, and says nothing of whether the call had its effect. The error is fn's, or one of PhaseTx's.
func Phase[T any](ctx context.Context, c *Claim, name string, fn func(ctx context.Context, key string) (T, error)) (out T, err error) {
	var none T
	if over, err := c.come(name, &out); over || err != nil {
		return out, err
	}
	// Whoever was frozen until now must not call.
	if still, err := c.renew(ctx, c.Lease); err != nil || !still {
		return none, c.broken(fmt.Errorf("phase %q: %w", name, cmp.Or(wrap(err), ErrLost)))
	}
	made, err := fn(ctx, c.DerivedKey(name))
	if err != nil {
		return none, err
	}
	output, err := roundTrip(name, made, &out)
	if err != nil {
		return none, err
	}
	c.fail(name + ":called")
	err = c.commit(ctx, fmt.Sprintf("phase %q", name), func(q *db.Queries) error {
		return q.AdvanceKey(ctx, db.AdvanceKeyParams{
			Ns: c.Namespace, Scope: c.key.Scope, Key: c.key.Key, Token: c.token, N: int32(len(c.points)), Name: name, Output: output,
		})
	})
	c.fail(name + ":committed")
	if err != nil {
		return none, c.broken(err)
	}
	c.pass(name, output)
	return out, nil
}

// Token is the claim's fencing token: it grows with every claim on the key, for a service that takes such a thing. DerivedKey stays the same instead.
func (c *Claim) Token() int64 { return c.token }

// Point is the name of the newest recovery point that was reached, by this claim or before it; "" if none was. It is for logs: code goes by PhaseTx and Phase.
func (c *Claim) Point() string {
	if len(c.points) == 0 {
		return ""
	}
	return c.points[len(c.points)-1].Name
}

// DerivedKey is the key to call another service with under a name, for a phase that calls several; Phase passes on the one of its own name.
func (c *Claim) DerivedKey(name string) string { return DerivedKey(c.Namespace, c.key, name) }

// DerivedKey is the idempotency key of a call to another service that is made for a request: the same for the same namespace, scope, key and name, in every try, process and
// version of Pawl, and another for any other. It has the form of a UUID (version 8), which is 36 characters of ASCII: the first 122 bits that are free in it of the SHA-256
// of "pawl idempotency key", the namespace, the scope, the key and the name, each preceded by its length in bytes, in decimal, and a space. It does not change when
// an answer has expired and the key is used again: what the other service remembers longer, it will not do twice.
func DerivedKey(namespace int16, key Key, name string) string {
	sum := sha256.New()
	for _, part := range []string{"pawl idempotency key", fmt.Sprint(max(namespace, 1)), key.Scope, key.Key, name} {
		fmt.Fprintf(sum, "%d %s", len(part), part)
	}
	id := sum.Sum(nil)[:16]
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// come tells whether the phase that the code comes by is over, and gives its output.
func (c *Claim) come(name string, out any) (over bool, err error) {
	if c.fault != nil {
		return false, c.fault
	}
	if name == "" || len(name) > PhaseNameBytesMax || !isText(name) {
		return false, fmt.Errorf("%w: a phase's name has 1 to %d bytes, not %d, of UTF-8 without NUL", ErrInvalid, PhaseNameBytesMax, len(name))
	}
	if c.named[name] {
		return false, fmt.Errorf("%w: there are two phases %q", ErrInvalid, name)
	}
	c.named[name] = true
	if c.next == len(c.points) {
		if c.next == PointsMax {
			return false, fmt.Errorf("%w: phase %q is one more than the %d that a request may have", ErrInvalid, name, PointsMax)
		}
		return false, nil
	}
	p := c.points[c.next]
	if p.Name != name {
		return false, c.broken(fmt.Errorf("%w: %q was reached where the code has %q", ErrPoint, p.Name, name))
	}
	if p.Output != nil {
		if err := json.Unmarshal(p.Output, out); err != nil {
			return false, c.broken(fmt.Errorf("%w: the output of %q does not fit: %w", ErrPoint, name, err))
		}
	}
	c.next++
	return true, nil
}

// pass notes that the phase is over.
func (c *Claim) pass(name, output string) {
	c.points = append(c.points, point{name, json.RawMessage(output)})
	c.next++
}

// inTx runs do and records the point in one transaction.
func (c *Claim) inTx(ctx context.Context, name string, do func(pgx.Tx) (string, error)) (output string, err error) {
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return "", c.broken(fmt.Errorf("phase %q: %w", name, err))
	}
	defer conn.Release()
	var began time.Time
	tx, err := db.BeginTx(ctx, conn.Conn(), enterSQL, []any{c.Namespace, c.key.Scope, c.key.Key, c.token, c.Idle.Milliseconds()}, &began)
	if err != nil {
		return "", c.broken(fmt.Errorf("phase %q: %w", name, wrap(err)))
	}
	defer tx.Undo(ctx)
	if output, err = do(tx); err != nil {
		return "", err
	}
	c.fail(name + ":called")
	unknown, err := tx.End(ctx, advanceSQL, c.Namespace, c.key.Scope, c.key.Key, c.token, len(c.points), name, output, began)
	c.fail(name + ":committed")
	if err := ended(fmt.Sprintf("phase %q", name), unknown, err); err != nil {
		return "", c.broken(err)
	}
	return output, nil
}

// roundTrip encodes what a phase made, and gives what a later try will get of it: so a type that JSON does not bring back whole shows in the first try.
func roundTrip(name string, made, out any) (string, error) {
	text, err := json.Marshal(made)
	if err == nil {
		err = json.Unmarshal(text, out)
	}
	if err != nil {
		return "", fmt.Errorf("%w: output of phase %q: %w", ErrInvalid, name, err)
	}
	if len(text) > OutputBytesMax {
		return "", fmt.Errorf("%w: the output of phase %q has %d bytes, more than the %d that are stored", ErrInvalid, name, len(text), OutputBytesMax)
	}
	return string(text), nil
}
