package twophase

import (
	"context"
	"fmt"
	"time"
)

// Participant is a database, or another resource manager, that can prepare: promise to commit whatever happens, and commit or roll back later by name. twophasetest has what any must pass.
// All methods are safe for concurrent use. Errors may be of any kind but where these say otherwise.
type Participant interface {
	// Name is unique among the participants of a coordinator, for good: branches are found by it. 1 to NameBytesMax letters, digits, dots, hyphens and underscores.
	Name() string
	// Kind and Address are for people; without secrets.
	Kind() string
	Address() string
	// Setup makes what the participant needs of its own, if it is not there. It waits for no branch that is prepared.
	Setup(ctx context.Context) error
	// Begin begins a branch.
	Begin(ctx context.Context, id BranchID) (Branch, error)
	// Settle commits or rolls back a branch that was prepared, from any process: nil once it is durable, ErrAbsent, ErrBusy, or what hinders it.
	Settle(ctx context.Context, id BranchID, commit bool) error
	// Witnessed tells whether the branch was committed, by what it has left in its own transaction. Asked after Settle gave ErrAbsent.
	Witnessed(ctx context.Context, id BranchID) (bool, error)
	// Fence tells the same of a branch that may still be at work, and keeps one that was not committed from being it later.
	Fence(ctx context.Context, id BranchID) (committed bool, err error)
	// Prepared lists the prepared branches of this package's making, those of other coordinators included.
	Prepared(ctx context.Context) ([]Prepared, error)
	// See keeps the farthest that the log of a home's database was seen to be, and gives it: a lower one tells that the database was restored.
	See(ctx context.Context, home string, lsn int64) (farthest int64, err error)
	// Old lists up to limit witnesses, the oldest first, that are older than age and of branches whose names begin so. Other coordinators may share the participant.
	Old(ctx context.Context, begins string, age time.Duration, limit int) (branches []string, err error)
	// Forget removes the witnesses of these branches.
	Forget(ctx context.Context, branches []string) (removed int, err error)
}

// Branch is a branch at work. It is not safe for concurrent use.
type Branch interface {
	// ReadOnly tells whether the branch has certainly written nothing so far.
	ReadOnly(ctx context.Context) (bool, error)
	// Prepare votes: nil is yes, and from then on Settle, here or at the participant, ends it. unknown: it may have prepared all the same.
	Prepare(ctx context.Context) (unknown bool, err error)
	// Commit commits a branch that was not prepared, and leaves a witness. unknown: it may have been committed.
	Commit(ctx context.Context) (unknown bool, err error)
	// Settle ends a prepared branch, as Participant's does.
	Settle(ctx context.Context, commit bool) error
	// Close rolls back a branch that was not prepared, and gives back what it holds. It is called once, last.
	Close(ctx context.Context)
}

// Prepared is a branch that waits to be settled.
type Prepared struct {
	Branch BranchID
	At     time.Time // when it was prepared; zero: the participant does not tell
	Owner  string    // who may settle it, "" if anybody
}

func checkName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%w: participant %q: a name has 1 to %d letters, digits, dots, hyphens and underscores", ErrInvalid, name, NameBytesMax)
	}
	return nil
}
