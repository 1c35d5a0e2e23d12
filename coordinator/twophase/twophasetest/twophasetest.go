// Package twophasetest checks that a participant does what twophase.Participant promises to coordinators and to recovery, whatever they do at the same time:
//
//	func TestConform(t *testing.T) {
//		twophasetest.Conform(t, func(t *testing.T) twophasetest.Target {
//			db := newDatabase(t)
//			return twophasetest.Target{
//				Open:  func(name string) twophase.Participant { return mine.New(name, db.connect(t)) },
//				Write: func(ctx context.Context, b twophase.Branch, key string) error { return b.(*mine.Branch).Put(ctx, key) },
//				Count: func(ctx context.Context, key string) (int, error) { return db.count(ctx, key) },
//			}
//		})
//	}
//
// What it cannot check is what only a crash shows: that a branch which has voted yes is there after the participant was killed and started again. Do that beside it.
package twophasetest

import (
	"context"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

const patience = time.Minute // bounds a check

// Target is a database, or another resource, that nobody else uses. Its functions may be called at the same time.
type Target struct {
	// Open gives a participant of that name on it, with connections of its own, as another process would have it. Conform calls Setup.
	Open func(name string) twophase.Participant
	// Write adds to what is kept under a key, as part of a branch of such a participant: 1 to 100 letters and digits.
	Write func(ctx context.Context, b twophase.Branch, key string) error
	// Count tells how often there was added to a key, of what is committed.
	Count func(ctx context.Context, key string) (int, error)
	// Foreign prepares a transaction as others than this package would, and ends it when the test ends. nil: there cannot be one.
	Foreign func()
}

// Conform checks a participant, in sub-tests, each with a target of its own; open registers its end with Cleanup. Up to 7 branches are prepared at the same time in each.
func Conform(t *testing.T, open func(*testing.T) Target) {
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, stop := context.WithTimeout(t.Context(), patience)
			defer stop()
			if err := c.check(ctx, open(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

var checks = []struct {
	name  string
	check func(context.Context, Target) error
}{
	{"setup", setup},
	{"commit", commit},
	{"close", closed},
	{"cancelled", cancelled},
	{"settle", settle},
	{"settle/elsewhere", settleElsewhere},
	{"settle/held", settleHeld},
	{"settle/twice", settleTwice},
	{"settle/race", settleRace},
	{"absent", absent},
	{"read-only", readOnly},
	{"fence", fence},
	{"fence/race", fenceRace},
	{"prepared", prepared},
	{"prepared/foreign", foreign},
	{"names", names},
	{"see", see},
	{"forget", forget},
}
