package saga

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

// Call is what a handler is called with.
type Call[In any] struct {
	Saga         string // the saga's id
	Step         string
	Version      int // of the definition that the saga started with
	Input        In  // of the saga
	Attempt      int // from 1
	MaxAttempts  int
	Compensating bool              // the step is to be undone
	Headers      map[string]string // of the saga, such as traceparent
	Unit         int               // its number, from 0, in a handler of a unit

	ref
	job  int64 // that does it
	unit bool
}

// ref is how a handler's call reaches the saga's rows.
type ref struct {
	ns  int16
	id  int64
	key string
	on  DB
}

func (r ref) self() ref { return r }

// Caller is a handler's call, a [Call] of any type.
type Caller interface{ self() ref }

// Key is the idempotency key of what the handler does: "<saga>/<step>", with "/undo" behind it for the compensation, or "/<n>" for a unit. It is the same at every attempt. In it the saga's id is
// percent-encoded where it holds what a segment of a path cannot, such as a slash: no two have the same key.
func (c *Call[In]) Key() string {
	key := url.PathEscape(c.Saga) + "/" + c.Step
	switch {
	case c.Compensating:
		return key + "/undo"
	case c.unit:
		return fmt.Sprintf("%s/%d", key, c.Unit)
	}
	return key
}

// Fail is a definite refusal: the step did nothing, and will not. The saga is compensated without it, or is stuck where it cannot be any more. Anything that may have been done is another error.
func Fail(err error) error {
	if err == nil {
		err = errors.New("no reason given")
	}
	return &job.Ending{Outcome: job.Discarded, Refused: true, Err: err}
}

// Hold takes a semantic lock for the saga, in a handler's transaction (HandleTx): no other saga can hold it until this one has ended, and with its last transaction it is free. It is how sagas keep each
// other from what they have not finished ("account:7": its money is moving). A saga that has it already gets it again. The error is ErrHeld, a [HeldError], at once if another has it: return job.Snooze to
// wait for it, or Fail; the transaction goes on. Only those who ask are kept out.
func Hold(ctx context.Context, tx pgx.Tx, c Caller, name string) error {
	r := c.self()
	holder, err := db.New(tx).HoldForSaga(ctx, db.HoldForSagaParams{Ns: r.ns, Key: r.key, Name: name})
	if err != nil {
		return fmt.Errorf("hold %q: %w", name, wrap(err))
	}
	if holder != "" {
		return &HeldError{name, holder}
	}
	return nil
}

const (
	goingKeep = 100 * time.Millisecond // how long it is taken for granted that a saga goes forward, or does not
	goingMax  = 1024                   // sagas of which it is known
)

// going knows which sagas go forward, for units that need not begin any more.
type going struct {
	mu   sync.Mutex
	last map[int64]*seen // by the saga
}

type seen struct {
	at      int64 // by the monotonic clock
	forward bool
}

// forward tells whether a unit of a saga is worth beginning. While one asks, and where it cannot be asked, the last answer counts, at first yes.
func (g *going) forward(ctx context.Context, r ref) bool {
	g.mu.Lock()
	now := session.Monotonic()
	s := g.last[r.id]
	if s != nil && now-s.at < int64(goingKeep) {
		defer g.mu.Unlock()
		return s.forward
	}
	if s == nil {
		if g.last == nil || len(g.last) >= goingMax {
			g.last = map[int64]*seen{}
		}
		s = &seen{forward: true}
		g.last[r.id] = s
	}
	s.at = now
	was := s.forward
	g.mu.Unlock()
	forward, err := db.New(r.on).ReadSagaForward(ctx, db.ReadSagaForwardParams{Ns: r.ns, SagaID: r.id})
	if err != nil {
		return was
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s.forward = forward
	return forward
}
