package saga

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db"
)

// State is what a saga is doing.
type State string

// The states. Succeeded, compensated and forced are final.
const (
	StateRunning      State = "running"
	StateCompensating State = "compensating" // undoes what it did
	StateStuck        State = "stuck"        // needs an operator
	StateSucceeded    State = "succeeded"
	StateCompensated  State = "compensated" // has undone all it did
	StateForced       State = "forced"      // ended by an operator as it stood
)

// Final tells that nothing more will happen to the saga.
func (s State) Final() bool {
	return s == StateSucceeded || s == StateCompensated || s == StateForced
}

// StepState is what a step of a saga is doing.
type StepState string

// The states of a step.
const (
	StepWaiting   StepState = "waiting" // not begun
	StepRunning   StepState = "running" // it has a job, or waits for its time, its signal, its units or its child
	StepSucceeded StepState = "succeeded"
	StepRefused   StepState = "refused" // nothing was done
	StepUnknown   StepState = "unknown" // its attempts are used up, and nobody knows whether it was done
	StepStuck     StepState = "stuck"   // it, or its compensation, needs an operator
	StepUndoing   StepState = "undoing"
	StepUndone    StepState = "undone"
	StepSkipped   StepState = "skipped" // by an operator
)

// Summary is a saga in a listing.
type Summary struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Version   int       `json:"version"`
	State     State     `json:"state"`
	StartedAt time.Time `json:"started_at"`
	At        time.Time `json:"at"` // when the state began
}

// Story is all that is known of a saga. Of one with more than EventsMax events the newest are told, and of the older ones the last of each kind and step, so that it tells how the saga and its steps stand; the state
// may have begun earlier than At then.
type Story struct {
	Summary
	StartedBy string            `json:"started_by"`
	Deadline  *time.Time        `json:"deadline,omitempty"`
	Input     json.RawMessage   `json:"input"`
	Headers   map[string]string `json:"headers,omitempty"`
	Parent    string            `json:"parent,omitempty"` // the saga that this one is a step of
	Steps     []StepStory       `json:"steps"`            // each behind those it needs
	Events    []Event           `json:"events"`           // oldest first; where some are left out, their Seq tells
	LeftOut   int               `json:"left_out"`         // events that are
	Held      []string          `json:"held,omitempty"`   // the semantic locks that it has
}

// StepStory is a step of a saga.
type StepStory struct {
	Name      string          `json:"name"`
	Kind      Kind            `json:"kind"`
	Queue     string          `json:"queue,omitempty"`
	After     []string        `json:"after,omitempty"`
	Pivot     bool            `json:"pivot,omitempty"`
	ReadOnly  bool            `json:"read_only,omitempty"`
	State     StepState       `json:"state"`
	Output    json.RawMessage `json:"output,omitempty"`
	Error     string          `json:"error,omitempty"`              // the last that is known
	JobID     int64           `json:"job_id,string,omitempty"`      // 0: it has none yet
	UndoJobID int64           `json:"undo_job_id,string,omitempty"` // 0: it has none yet
	// Attempt is the one of MaxAttempts that the last of these jobs is at or ended with; 0: there is none, or none that is kept.
	Attempt     int        `json:"attempt,omitempty"`
	MaxAttempts int        `json:"max_attempts,omitempty"`
	Until       *time.Time `json:"until,omitempty"` // when the timer that runs is over, or a signal comes too late
	Child       string     `json:"child,omitempty"` // the saga that the step is
	Served      bool       `json:"served"`          // a live worker has a handler for it, or it needs none
	Units       int        `json:"units,omitempty"`
	UnitsOver   int        `json:"units_over,omitempty"`
}

// Event is what happened to a saga: started, succeeded, refused, exhausted, withdrawn, expanded, units, undone, undo_exhausted, cancelled, expired, retried, skipped, failed, forced or signalled.
type Event struct {
	Seq    int             `json:"seq"`
	At     time.Time       `json:"at"`
	What   string          `json:"what"`
	Step   string          `json:"step,omitempty"`
	State  State           `json:"state"` // of the saga since
	Detail json.RawMessage `json:"detail,omitempty"`
	Actor  string          `json:"actor,omitempty"` // of an operator's action
	Jobs   JobIDs          `json:"jobs,omitempty"`  // that it enqueued
}

// JobIDs are ids of jobs, which are strings in JSON.
type JobIDs []int64

// MarshalJSON writes them.
func (ids JobIDs) MarshalJSON() ([]byte, error) {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = strconv.FormatInt(id, 10)
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads them.
func (ids *JobIDs) UnmarshalJSON(text []byte) error {
	var in []json.Number
	if err := json.Unmarshal(bytes.ReplaceAll(text, []byte(`"`), nil), &in); err != nil {
		return err
	}
	*ids = make(JobIDs, len(in))
	for i, n := range in {
		id, err := n.Int64()
		if err != nil {
			return err
		}
		(*ids)[i] = id
	}
	return nil
}

// Filter selects sagas for List. Its zero value selects all.
type Filter struct {
	State  State  // "": any
	Name   string // of the definition; "": any
	Before string // only those started before the saga of this id; "": from the newest
	Limit  int    // rows, at most 1,000; default 50
}

// Registered is a definition that the database knows.
type Registered struct {
	Name         string           `json:"name"`
	Version      int              `json:"version"`
	Digest       string           `json:"digest"`
	RegisteredAt time.Time        `json:"registered_at"`
	Deadline     time.Duration    `json:"deadline_ns,omitempty"` // 0: none
	Steps        []RegisteredStep `json:"steps"`
	Open         int64            `json:"open"`          // sagas that have not ended,
	OpenAtLeast  bool             `json:"open_at_least"` // and there may be more: only the newest ListScanMax sagas of the namespace are looked at, and it has others
}

// RegisteredStep is a step of a definition that the database knows.
type RegisteredStep struct {
	Name     string   `json:"name"`
	Kind     Kind     `json:"kind"`
	Queue    string   `json:"queue,omitempty"`
	After    []string `json:"after,omitempty"`
	Pivot    bool     `json:"pivot,omitempty"`
	ReadOnly bool     `json:"read_only,omitempty"`
	Served   bool     `json:"served"` // a live worker has a handler for it, or it needs none
}

const (
	// EventsMax is how many events of a saga a story has, the newest; of older ones it has the last of each kind and step.
	EventsMax = 10_000
	// HeldMax is how many semantic locks of a saga a story has.
	HeldMax = 1000
	// DefinitionsMax is how many definitions are listed.
	DefinitionsMax = 10_000
)

// Get tells a saga's whole story. The error is ErrNotFound if there is no such saga.
func Get(ctx context.Context, on DB, ns int16, id string) (*Story, error) {
	s, err := get(ctx, db.New(on), ns, id)
	if err != nil {
		return nil, fmt.Errorf("saga %s: %w", id, wrap(err))
	}
	return s, nil
}

func get(ctx context.Context, q *db.Queries, ns int16, id string) (*Story, error) {
	r, err := q.ReadSaga(ctx, db.ReadSagaParams{Ns: ns, Key: id})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNotFound
	} else if err != nil {
		return nil, err
	}
	s := &Story{
		Summary:   Summary{ID: id, Name: r.Name, Version: int(r.Version), StartedAt: r.StartedAt, At: r.StartedAt},
		StartedBy: r.StartedBy, Deadline: r.DeadlineAt, Input: r.Input, Parent: r.Parent,
	}
	if s.Headers, err = job.ParseHeaders(r.Headers); err != nil {
		return nil, err
	}
	var def spec
	if err := json.Unmarshal(r.Spec, &def); err != nil {
		return nil, fmt.Errorf("definition: %w", err)
	}
	events, err := q.ListSagaEvents(ctx, db.ListSagaEventsParams{Ns: ns, SagaID: r.ID, NewestRows: EventsMax})
	if err != nil {
		return nil, err
	}
	served, err := q.ListServedKinds(ctx, ns)
	if err != nil {
		return nil, err
	}
	s.tell(def, events)
	for i := range s.Steps {
		s.Steps[i].Served = def.isServed(&def.Steps[i], served, s.Steps[i].UndoJobID != 0)
	}
	children, err := q.ListSagaChildren(ctx, db.ListSagaChildrenParams{Ns: ns, SagaID: r.ID, LimitRows: StepsMax})
	if err != nil {
		return nil, err
	}
	for _, c := range children {
		s.Steps[c.Step-1].Child = c.Key
	}
	timers, err := q.ListSagaTimers(ctx, db.ListSagaTimersParams{Ns: ns, SagaID: r.ID, LimitRows: StepsMax})
	if err != nil {
		return nil, err
	}
	for _, t := range timers {
		if st := &s.Steps[t.Step-1]; st.State == StepRunning {
			st.Until = &t.At
		}
	}
	if err := s.readAttempts(ctx, q, ns); err != nil {
		return nil, err
	}
	s.Held, err = q.ListSagaHolds(ctx, db.ListSagaHoldsParams{Ns: ns, SagaID: r.ID, LimitRows: HeldMax})
	return s, err
}

// readAttempts tells how often the steps have been tried.
func (s *Story) readAttempts(ctx context.Context, q *db.Queries, ns int16) error {
	step := map[int64]*StepStory{}
	for i := range s.Steps {
		if st := &s.Steps[i]; st.JobID != 0 || st.UndoJobID != 0 {
			step[cmp.Or(st.UndoJobID, st.JobID)] = st
		}
	}
	jobs, err := q.ListAttemptsOfJobs(ctx, db.ListAttemptsOfJobsParams{Ns: ns, JobIDs: slices.Collect(maps.Keys(step)), LimitRows: StepsMax})
	for _, j := range jobs {
		step[j.ID].Attempt, step[j.ID].MaxAttempts = int(j.Attempt), int(j.MaxAttempts)
	}
	return err
}

// tell makes the steps and the events out of what was appended.
func (s *Story) tell(def spec, events []db.ListSagaEventsRow) {
	var now db.ListSagaEventsRow
	for _, d := range def.Steps {
		s.Steps = append(s.Steps, StepStory{Name: d.Name, Kind: d.Kind, Queue: d.Queue, After: d.After, Pivot: d.Pivot, ReadOnly: d.ReadOnly})
	}
	skipped := make([]bool, len(s.Steps))
	for _, e := range events {
		if state := State(e.State); state != s.State {
			s.State, s.At = state, e.At
		}
		told := Event{Seq: int(e.Seq), At: e.At, What: e.What, State: s.State, Detail: e.Detail, Actor: e.Actor, Jobs: e.Jobs}
		now = e
		for i, id := range e.Jobs {
			switch n := e.JobSteps[i]; {
			case n < 0:
				s.Steps[-n-1].UndoJobID = id
			case e.What != "expanded" && e.Units == 0: // else they are its units'
				s.Steps[n-1].JobID = id
			}
		}
		if e.Step > 0 {
			st := &s.Steps[e.Step-1]
			told.Step = st.Name
			st.tell(e)
			skipped[e.Step-1] = e.What == "skipped"
		}
		s.Events = append(s.Events, told)
	}
	s.LeftOut = int(now.Seq) - len(events)
	for i := range s.Steps {
		s.Steps[i].State = stepState(now, int64(1)<<i, skipped[i])
	}
}

// tell takes up what an event says of the step.
func (st *StepStory) tell(e db.ListSagaEventsRow) {
	var d struct {
		Error  string          `json:"error"`
		Output json.RawMessage `json:"output"`
	}
	switch e.What {
	case "succeeded":
		st.Output, st.Error = e.Detail, ""
	case "skipped":
		_ = json.Unmarshal(e.Detail, &d) // is an object
		if st.Error = ""; st.UndoJobID == 0 {
			st.Output = d.Output
		}
	case "undone":
		st.Error = ""
	default:
		if json.Unmarshal(e.Detail, &d) == nil && d.Error != "" {
			st.Error = d.Error
		}
	}
	if e.Units > 0 {
		st.Units, st.UnitsOver = int(e.Units), int(e.UnitsOver)
	}
}

// stepState reads the state of a step from the newest event.
func stepState(now db.ListSagaEventsRow, bit int64, skipped bool) StepState {
	switch {
	case now.Stuck&bit != 0:
		return StepStuck
	case skipped && (now.Ok|now.Undone)&bit != 0:
		return StepSkipped
	case now.Undone&bit != 0:
		return StepUndone
	case now.Undoing&bit != 0:
		return StepUndoing
	case now.Ok&bit != 0:
		return StepSucceeded
	case now.Refused&bit != 0:
		return StepRefused
	case now.Unknown&bit != 0:
		return StepUnknown
	case now.Lined&bit != 0:
		return StepRunning
	}
	return StepWaiting
}

// isServed tells whether a live worker has a handler for a step, or for its compensation; kinds are sorted.
func (s *spec) isServed(d *specStep, kinds []string, undo bool) bool {
	if d.Kind == KindTimer || d.Kind == KindSignal {
		return true
	}
	rest := "/" + d.Name
	if undo {
		rest += "/undo"
	}
	kind := fmt.Sprintf("saga:%s@%d%s", s.Name, s.Version, rest)
	_, own := slices.BinarySearch(kinds, kind)
	_, all := slices.BinarySearch(kinds, AnyVersion(kind))
	return own || all
}

// ListScanMax is how many sagas List looks at for one page when it filters by state.
const ListScanMax = 20_000

// List returns sagas, newest first. A state is derived, so a filter by state looks at up to ListScanMax sagas; next is where to go on (Filter.Before), "" where there are no more. The error is ErrNotFound if there
// is no saga Filter.Before.
func List(ctx context.Context, on DB, ns int16, f Filter) (sagas []Summary, next string, err error) {
	q := db.New(on)
	limit := min(cmp.Or(max(f.Limit, 0), 50), 1000)
	p := db.ListSagasParams{Ns: ns, Name: f.Name, BeforeID: math.MaxInt64, LimitRows: int32(limit)}
	if f.Before != "" {
		if p.BeforeID, err = q.FindSaga(ctx, db.FindSagaParams{Ns: ns, Key: f.Before}); errors.Is(err, pgx.ErrNoRows) {
			return nil, "", fmt.Errorf("list sagas before %s: %w", f.Before, ErrNotFound)
		} else if err != nil {
			return nil, "", fmt.Errorf("list sagas: %w", wrap(err))
		}
	}
	for scanned := 0; scanned < ListScanMax; {
		rows, err := listPage(ctx, q, p, f.State == StateStuck)
		if err != nil {
			return nil, "", fmt.Errorf("list sagas: %w", wrap(err))
		}
		for _, r := range rows {
			p.BeforeID, next = r.ID, r.Key
			if f.State != "" && State(r.State) != f.State || f.Name != "" && r.Name != f.Name {
				continue
			}
			sagas = append(sagas, Summary{ID: r.Key, Name: r.Name, Version: int(r.Version), State: State(r.State), StartedAt: r.StartedAt, At: r.At})
			if len(sagas) == limit {
				return sagas, next, nil
			}
		}
		if len(rows) < int(p.LimitRows) {
			return sagas, "", nil
		}
		scanned += len(rows)
		p.LimitRows = 1000
	}
	return sagas, next, nil
}

func listPage(ctx context.Context, q *db.Queries, p db.ListSagasParams, stuck bool) ([]db.ListSagasRow, error) {
	if !stuck {
		return q.ListSagas(ctx, p)
	}
	rows, err := q.ListStuckSagas(ctx, db.ListStuckSagasParams{Ns: p.Ns, BeforeID: p.BeforeID, LimitRows: p.LimitRows})
	var out []db.ListSagasRow
	for _, r := range rows {
		out = append(out, db.ListSagasRow(r))
	}
	return out, err
}

// Definitions lists what is registered, by name, the newest version first.
func Definitions(ctx context.Context, on DB, ns int16) ([]Registered, error) {
	q := db.New(on)
	rows, err := q.ListSagaDefinitions(ctx, db.ListSagaDefinitionsParams{Ns: ns, ScanRows: ListScanMax, LimitRows: DefinitionsMax})
	if err != nil {
		return nil, fmt.Errorf("list definitions: %w", wrap(err))
	}
	served, err := q.ListServedKinds(ctx, ns)
	if err != nil {
		return nil, fmt.Errorf("list definitions: %w", wrap(err))
	}
	out := make([]Registered, len(rows))
	for i, r := range rows {
		var def spec
		if err := json.Unmarshal(r.Spec, &def); err != nil {
			return nil, fmt.Errorf("definition %s, version %d: %w", r.Name, r.Version, err)
		}
		out[i] = Registered{
			Name: r.Name, Version: int(r.Version), Digest: r.Digest, RegisteredAt: r.RegisteredAt, Deadline: time.Duration(def.DeadlineMs) * time.Millisecond, Open: r.Open, OpenAtLeast: r.Older,
		}
		for k := range def.Steps {
			d := &def.Steps[k]
			out[i].Steps = append(out[i].Steps, RegisteredStep{
				Name: d.Name, Kind: d.Kind, Queue: d.Queue, After: d.After, Pivot: d.Pivot, ReadOnly: d.ReadOnly, Served: def.isServed(d, served, false) && (d.Undo == nil || def.isServed(d, served, true)),
			})
		}
	}
	return out, nil
}
