package migrate

import (
	"errors"
	"fmt"
	"path"

	"github.com/pressly/goose/v3"
)

var (
	// ErrNewer means that a newer binary migrated the database.
	ErrNewer = errors.New("migrate: the database is newer than this binary")

	// ErrBusy means that another migrator held the lock for longer than a
	// migrator waits.
	ErrBusy = errors.New("migrate: another migrator holds the lock")
)

// NewerError is ErrNewer with the versions.
type NewerError struct {
	Database int64 // the newest migration the database has
	Binary   int64 // the newest migration this binary knows
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("%v: the database is at version %d, this binary knows versions up to %d; upgrade the binary",
		ErrNewer, e.Database, e.Binary)
}

// Is makes errors.Is(err, ErrNewer) true.
func (e *NewerError) Is(target error) bool { return target == ErrNewer }

// FailedError says which migration failed, and wraps why. What it did is rolled
// back, unless the migration runs without a transaction.
type FailedError struct {
	Version   int64
	Name      string // of its file
	Direction string // "up" or "down"
	Err       error
}

func (e *FailedError) Error() string {
	return fmt.Sprintf("migrate %s %s: %v", e.Direction, e.Name, e.Err)
}

func (e *FailedError) Unwrap() error { return e.Err }

// failed returns what was done before the failure, and the failure.
func failed(done []*goose.MigrationResult, err error) (Result, error) {
	var partial *goose.PartialError
	if !errors.As(err, &partial) {
		return Result{Steps: steps(done)}, fmt.Errorf("migrate: %w", err)
	}
	return Result{Steps: steps(partial.Applied)}, &FailedError{
		Version:   partial.Failed.Source.Version,
		Name:      path.Base(partial.Failed.Source.Path),
		Direction: partial.Failed.Direction,
		Err:       partial.Err,
	}
}
