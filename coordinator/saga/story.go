package saga

import (
	"context"
	"encoding/json"
	"errors"
	"time"
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

// Story is all that is known of a saga.
type Story struct {
	Summary
	StartedBy string            `json:"started_by"`
	Deadline  *time.Time        `json:"deadline,omitempty"`
	Input     json.RawMessage   `json:"input"`
	Headers   map[string]string `json:"headers,omitempty"`
	Parent    string            `json:"parent,omitempty"` // the saga that this one is a step of
	Steps     []StepStory       `json:"steps"`            // each behind those it needs
	Events    []Event           `json:"events"`           // oldest first
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
	Child     string          `json:"child,omitempty"`              // the saga that the step is
	Served    bool            `json:"served"`                       // a live worker has a handler for it, or it needs none
	Units     int             `json:"units,omitempty"`
	UnitsOver int             `json:"units_over,omitempty"`
}

// Event is what happened to a saga: started, succeeded, refused, exhausted, withdrawn, expanded, units, undone, undo_exhausted, cancelled, expired, retried, skipped, failed, forced, held or signalled.
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
	Open         int64            `json:"open"` // sagas that have not ended
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

// Get tells a saga's whole story. The error is ErrNotFound if there is no such saga.
func Get(ctx context.Context, on DB, ns int16, id string) (*Story, error) {
	return nil, errors.ErrUnsupported
}

// List returns sagas, newest first.
func List(ctx context.Context, on DB, ns int16, f Filter) ([]Summary, error) {
	return nil, errors.ErrUnsupported
}

// Definitions lists what is registered, by name, the newest version first.
func Definitions(ctx context.Context, on DB, ns int16) ([]Registered, error) {
	return nil, errors.ErrUnsupported
}
