package twophase

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-dev/pawl/db"
)

// Kind is what is the matter with a branch.
type Kind string

// The kinds of doubts.
const (
	Undecided  Kind = "undecided"  // prepared, and nothing may be presumed: it began before the coordinator's database was restored or failed over. Resolve decides.
	Unfinished Kind = "unfinished" // decided, and its participant refuses to finish it: mend what the detail says, and recovery goes on
	Mixed      Kind = "mixed"      // its participant did the opposite of what was decided, or lost it. Put that right by hand; Accept says that it was.
)

// Doubt is a branch that a person must see.
type Doubt struct {
	Branch     BranchID  `json:"branch"`
	What       Kind      `json:"what"`
	First      time.Time `json:"first_at"` // when recovery met it,
	Last       time.Time `json:"last_at"`  // and when it last did
	Detail     string    `json:"detail"`
	ResolvedAt time.Time `json:"resolved_at,omitzero"` // when somebody dealt with it, zero: nobody has
	ResolvedBy string    `json:"resolved_by,omitempty"`
	Reason     string    `json:"reason,omitempty"`
}

// Doubts lists what a person must see, oldest first; all: also what somebody has dealt with.
func (m *Manager) Doubts(ctx context.Context, all bool, limit int) ([]Doubt, error) {
	return m.doubts(ctx, "", all, limit)
}

func (m *Manager) doubts(ctx context.Context, id string, all bool, limit int) ([]Doubt, error) {
	rows, err := m.q.ListGlobalDoubts(ctx, db.ListGlobalDoubtsParams{Ns: m.conf.Namespace, ID: id, Every: all, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("doubts: %w", wrap(err))
	}
	out := make([]Doubt, len(rows))
	for i, r := range rows {
		b, err := ParseBranchID(r.Branch)
		if err != nil {
			return nil, err
		}
		out[i] = Doubt{Branch: b, What: Kind(r.What), First: r.FirstAt, Last: r.LastAt, Detail: r.Detail, ResolvedBy: r.ResolvedBy, Reason: r.Reason}
		if r.ResolvedAt != nil {
			out[i].ResolvedAt = *r.ResolvedAt
		}
	}
	return out, nil
}

// Decided is a transaction whose outcome is decided.
type Decided struct {
	ID           string    `json:"id"`
	DecidedAt    time.Time `json:"decided_at"`
	Committed    bool      `json:"committed"`
	Participants []string  `json:"participants"` // that had prepared
	DecidedBy    string    `json:"decided_by"`
	Reason       string    `json:"reason,omitempty"` // of an abort, or a person's
	Ended        bool      `json:"ended"`            // committed everywhere, as is known
}

// List gives decisions, newest first, below the id before ("" for the newest); unfinished: only those that are not known to be committed everywhere.
func (m *Manager) List(ctx context.Context, before string, unfinished bool, limit int) ([]Decided, error) {
	if before == "" {
		before = uuid.Max.String()
	}
	if _, err := uuid.Parse(before); err != nil {
		return nil, fmt.Errorf("%w: %q is no id of a global transaction", ErrInvalid, before)
	}
	rows, err := m.q.ListGlobalDecisions(ctx, db.ListGlobalDecisionsParams{Ns: m.conf.Namespace, BeforeID: before, Unfinished: unfinished, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("list: %w", wrap(err))
	}
	out := make([]Decided, len(rows))
	for i, r := range rows {
		out[i] = Decided(r)
	}
	return out, nil
}

// FirstID is an id above those of all transactions that began before a time, and below those of later ones, for List.
func FirstID(at time.Time) string {
	ms := at.UnixMilli()
	var id uuid.UUID
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id.String()
}

// Story is what is known of one transaction.
type Story struct {
	Decided *Decided `json:"decided,omitempty"` // nil: nothing is decided
	Doubts  []Doubt  `json:"doubts"`
}

// Get tells what is known of a transaction. ErrNotFound: nothing is, as of one that has not come to its commit point.
func (m *Manager) Get(ctx context.Context, id string) (Story, error) {
	if _, err := uuid.Parse(id); err != nil {
		return Story{}, fmt.Errorf("%w: %q is no id of a global transaction", ErrInvalid, id)
	}
	var s Story
	rows, err := m.q.ReadGlobalDecisions(ctx, db.ReadGlobalDecisionsParams{Ns: m.conf.Namespace, IDs: []string{id}})
	if err != nil {
		return s, fmt.Errorf("get %s: %w", id, wrap(err))
	}
	if len(rows) > 0 {
		d := Decided(rows[0])
		s.Decided = &d
	}
	s.Doubts, err = m.doubts(ctx, id, true, len(m.participants)+100)
	if err == nil && s.Decided == nil && len(s.Doubts) == 0 {
		err = fmt.Errorf("get %s: %w", id, ErrNotFound)
	}
	return s, err
}

// Resolve decides a transaction that recovery may not presume anything of: one with doubts that are Undecided. Recovery then does as decided. Others get ErrNotFound, those decided otherwise ErrDecided: also one that a participant
// has committed, as its witness says, which cannot be rolled back.
func (m *Manager) Resolve(ctx context.Context, id string, commit bool, actor, reason string) error {
	if actor == "" || reason == "" {
		return fmt.Errorf("%w: an actor and a reason are needed", ErrInvalid)
	}
	s, err := m.Get(ctx, id)
	if err != nil {
		return fmt.Errorf("resolve: %w", err)
	}
	p := db.DecideGlobalByHandParams{Ns: m.conf.Namespace, ID: id, Committed: commit, Participants: []string{}, Actor: actor, Reason: reason}
	for _, d := range s.Doubts {
		if d.What == Undecided {
			p.Branch = d.Branch.at("").String()
			p.Participants = append(p.Participants, d.Branch.Participant)
		}
	}
	if len(p.Participants) == 0 && s.Decided == nil {
		return fmt.Errorf("resolve %s: %w: it is not in doubt", id, ErrNotFound)
	}
	if s.Decided != nil {
		if s.Decided.Committed != commit {
			return fmt.Errorf("resolve %s: %w by %s at %s", id, ErrDecided, s.Decided.DecidedBy, s.Decided.DecidedAt.UTC().Format(time.DateTime))
		}
		return nil
	}
	if !commit {
		for b := range m.witnessed(ctx, []BranchID{s.Doubts[0].Branch}, nil) {
			return fmt.Errorf("resolve %s: %w: %s has committed it", id, ErrDecided, b.Participant)
		}
	}
	if err := m.q.DecideGlobalByHand(ctx, p); err != nil {
		return fmt.Errorf("resolve %s: %w", id, wrap(err))
	}
	committed, err := m.Outcome(ctx, id)
	switch {
	case err != nil:
		return fmt.Errorf("resolve: %w", err)
	case committed != commit:
		return fmt.Errorf("resolve %s: %w just now", id, ErrDecided)
	}
	return nil
}

// Accept notes that somebody has dealt with a transaction that was Mixed. ErrNotFound: there is none of that id that anybody must see.
func (m *Manager) Accept(ctx context.Context, id, actor, reason string) error {
	if actor == "" || reason == "" {
		return fmt.Errorf("%w: an actor and a reason are needed", ErrInvalid)
	}
	if _, err := uuid.Parse(id); err != nil {
		return fmt.Errorf("%w: %q is no id of a global transaction", ErrInvalid, id)
	}
	n, err := m.q.ResolveGlobalDoubt(ctx, db.ResolveGlobalDoubtParams{Ns: m.conf.Namespace, ID: id, Actor: actor, Reason: reason})
	if err == nil && n == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("accept %s: %w", id, wrap(err))
	}
	return nil
}

// Restored says that the coordinator's database was restored, so that decisions may be lost: from now on nothing is presumed of transactions that began before. It returns the number of the new incarnation.
func (m *Manager) Restored(ctx context.Context) (incarnation int, err error) {
	n, err := m.q.RaiseGlobalIncarnation(ctx)
	if err != nil {
		return 0, fmt.Errorf("restored: %w", wrap(err))
	}
	m.leaveHome()
	return int(n), nil
}

// Seen is a participant, as coordinators know it.
type Seen struct {
	Name     string    `json:"name"`
	Kind     string    `json:"kind"`
	Address  string    `json:"address"`
	SeenAt   time.Time `json:"seen_at,omitzero"` // when recovery last did all it should there; zero: never
	TriedAt  time.Time `json:"tried_at"`
	Prepared int       `json:"prepared"` // branches of this coordinator's that it had prepared
	Error    string    `json:"error,omitempty"`
}

// Participants lists the participants that coordinators were given, by name.
func (m *Manager) Participants(ctx context.Context, limit int) ([]Seen, error) {
	rows, err := m.q.ListGlobalParticipants(ctx, db.ListGlobalParticipantsParams{Ns: m.conf.Namespace, LimitRows: int32(limit)})
	if err != nil {
		return nil, fmt.Errorf("participants: %w", wrap(err))
	}
	out := make([]Seen, len(rows))
	for i, r := range rows {
		out[i] = Seen{Name: r.Name, Kind: r.Kind, Address: r.Address, TriedAt: r.TriedAt, Prepared: int(r.Prepared), Error: r.Error}
		if r.SeenAt != nil {
			out[i].SeenAt = *r.SeenAt
		}
	}
	return out, nil
}
