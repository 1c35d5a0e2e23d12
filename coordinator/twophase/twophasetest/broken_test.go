package twophasetest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/coordinator/twophase/twophasetest"
)

// broken is a participant that does something wrong; what is nil it does right.
type broken struct {
	twophase.Participant
	settle    func(p twophase.Participant, id twophase.BranchID, commit bool) error
	witnessed func(twophase.BranchID) (bool, error)
	fence     func(twophase.BranchID) (bool, error)
	prepared  func([]twophase.Prepared) []twophase.Prepared
	see       func(lsn int64) int64
	old       func(p twophase.Participant, begins string, age time.Duration, limit int) ([]string, error)
	forget    func(p twophase.Participant, branches []string) (int, error)
	branch    func(twophase.Branch) twophase.Branch
}

func (b *broken) Settle(ctx context.Context, id twophase.BranchID, commit bool) error {
	if b.settle != nil {
		return b.settle(b.Participant, id, commit)
	}
	return b.Participant.Settle(ctx, id, commit)
}

func (b *broken) Witnessed(ctx context.Context, id twophase.BranchID) (bool, error) {
	if b.witnessed != nil {
		return b.witnessed(id)
	}
	return b.Participant.Witnessed(ctx, id)
}

func (b *broken) Fence(ctx context.Context, id twophase.BranchID) (bool, error) {
	if b.fence != nil {
		return b.fence(id)
	}
	return b.Participant.Fence(ctx, id)
}

func (b *broken) Prepared(ctx context.Context) ([]twophase.Prepared, error) {
	all, err := b.Participant.Prepared(ctx)
	if b.prepared != nil {
		all = b.prepared(all)
	}
	return all, err
}

func (b *broken) See(ctx context.Context, home string, lsn int64) (int64, error) {
	if b.see != nil {
		return b.see(lsn), nil
	}
	return b.Participant.See(ctx, home, lsn)
}

func (b *broken) Old(ctx context.Context, begins string, age time.Duration, limit int) ([]string, error) {
	if b.old != nil {
		return b.old(b.Participant, begins, age, limit)
	}
	return b.Participant.Old(ctx, begins, age, limit)
}

func (b *broken) Forget(ctx context.Context, branches []string) (int, error) {
	if b.forget != nil {
		return b.forget(b.Participant, branches)
	}
	return b.Participant.Forget(ctx, branches)
}

func (b *broken) Begin(ctx context.Context, id twophase.BranchID) (twophase.Branch, error) {
	one, err := b.Participant.Begin(ctx, id)
	if err == nil && b.branch != nil {
		one = b.branch(one)
	}
	return one, err
}

// brokenBranch is one that does something wrong.
type brokenBranch struct {
	twophase.Branch
	readOnly bool
	prepare  func(twophase.Branch) (bool, error)
}

func (b *brokenBranch) Tx() pgx.Tx { return b.Branch.(interface{ Tx() pgx.Tx }).Tx() }

func (b *brokenBranch) ReadOnly(context.Context) (bool, error) { return b.readOnly, nil }

func (b *brokenBranch) Prepare(ctx context.Context) (bool, error) {
	if b.prepare != nil {
		return b.prepare(b.Branch)
	}
	return b.Branch.Prepare(ctx)
}

// Each check fails with a participant that is wrong in what it is about.
func TestConform_broken(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		check string
		p     broken
	}{
		{"absent", broken{settle: func(twophase.Participant, twophase.BranchID, bool) error { return nil }}},
		{"settle/elsewhere", broken{settle: func(twophase.Participant, twophase.BranchID, bool) error { return nil }}},
		{"settle/elsewhere", broken{settle: func(p twophase.Participant, id twophase.BranchID, _ bool) error {
			return p.Settle(context.Background(), id, true)
		}}},
		{"settle/twice", broken{settle: func(p twophase.Participant, id twophase.BranchID, commit bool) error {
			if err := p.Settle(context.Background(), id, commit); !errors.Is(err, twophase.ErrAbsent) {
				return err
			}
			return nil
		}}},
		{"settle/held", broken{settle: func(twophase.Participant, twophase.BranchID, bool) error { return twophase.ErrAbsent }}},
		{"settle/race", broken{witnessed: func(twophase.BranchID) (bool, error) { return false, nil }}},
		{"absent", broken{witnessed: func(twophase.BranchID) (bool, error) { return true, nil }}},
		{"commit", broken{witnessed: func(twophase.BranchID) (bool, error) { return false, nil }}},
		{"close", broken{witnessed: func(twophase.BranchID) (bool, error) { return true, nil }}},
		{"fence", broken{fence: func(twophase.BranchID) (bool, error) { return false, nil }}},
		{"fence/race", broken{fence: func(twophase.BranchID) (bool, error) { return false, nil }}},
		{"prepared", broken{prepared: func([]twophase.Prepared) []twophase.Prepared { return nil }}},
		{"prepared/foreign", broken{prepared: func(all []twophase.Prepared) []twophase.Prepared { return append(all, twophase.Prepared{}) }}},
		{"names", broken{prepared: func([]twophase.Prepared) []twophase.Prepared { return nil }}},
		{"see", broken{see: func(lsn int64) int64 { return lsn }}},
		{"forget", broken{old: func(p twophase.Participant, begins string, _ time.Duration, limit int) ([]string, error) {
			return p.Old(context.Background(), begins, 0, limit)
		}}},
		{"forget", broken{old: func(p twophase.Participant, begins string, age time.Duration, _ int) ([]string, error) {
			return p.Old(context.Background(), begins, age, 1000)
		}}},
		{"forget", broken{old: func(p twophase.Participant, _ string, age time.Duration, limit int) ([]string, error) {
			return p.Old(context.Background(), "", age, limit)
		}}},
		{"forget", broken{forget: func(_ twophase.Participant, branches []string) (int, error) { return len(branches), nil }}},
		{"read-only", broken{branch: func(b twophase.Branch) twophase.Branch { return &brokenBranch{Branch: b, readOnly: true} }}},
		{"settle", broken{branch: func(b twophase.Branch) twophase.Branch {
			return &brokenBranch{Branch: b, prepare: func(b twophase.Branch) (bool, error) { return b.Commit(context.Background()) }}
		}}},
		{"cancelled", broken{branch: func(b twophase.Branch) twophase.Branch {
			return &brokenBranch{Branch: b, prepare: func(b twophase.Branch) (bool, error) {
				_, _ = b.Commit(context.Background())
				return false, errors.New("it says no and commits")
			}}
		}}},
	} {
		target := postgres(t)
		right := target.Open
		var opened []twophase.Participant
		target.Open = func(name string) twophase.Participant {
			p := test.p
			p.Participant = right(name)
			opened = append(opened, p.Participant)
			return &p
		}
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
		if err := twophasetest.Check(ctx, test.check, target); err == nil {
			t.Errorf("%s: got no error", test.check)
		} else if ctx.Err() != nil {
			t.Errorf("%s: timed out: %v", test.check, err)
		}
		stop()
		for _, p := range opened { // what it left would keep its database
			all, err := p.Prepared(t.Context())
			for _, one := range all {
				err = errors.Join(err, p.Settle(t.Context(), one.Branch, false))
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
}
