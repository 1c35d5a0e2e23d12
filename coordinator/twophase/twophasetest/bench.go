package twophasetest

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

const (
	home     = "00c0ffee00c0ffee.1.0"
	deadline = 4_000_000_000 // Unix seconds, far ahead
	retry    = 10 * time.Millisecond
)

// bench is a target with two participants of one name, as two processes have them.
type bench struct {
	Target
	here, there twophase.Participant
}

func newBench(ctx context.Context, t Target) (*bench, error) {
	name := "p-" + hex.EncodeToString(random()[:6])
	b := &bench{Target: t, here: t.Open(name), there: t.Open(name)}
	return b, annotate("set up", b.here.Setup(ctx))
}

func random() []byte {
	id := uuid.New()
	return id[:]
}

// newID names a branch of another transaction.
func (b *bench) newID() twophase.BranchID {
	return twophase.BranchID{Namespace: 1, Home: home, ID: uuid.New(), Deadline: time.Unix(deadline, 0), Participant: b.here.Name()}
}

// key is where a branch writes.
func key(id twophase.BranchID) string { return hex.EncodeToString(id.ID[:]) }

// work begins a branch that has written.
func (b *bench) work(ctx context.Context, id twophase.BranchID) (twophase.Branch, error) {
	branch, err := b.here.Begin(ctx, id)
	if err != nil {
		return nil, annotate("begin", err)
	}
	if err := b.Write(ctx, branch, key(id)); err != nil {
		branch.Close(ctx)
		return nil, annotate("write", err)
	}
	return branch, nil
}

// prepare gives a branch that has written and is prepared.
func (b *bench) prepare(ctx context.Context, id twophase.BranchID) (twophase.Branch, error) {
	branch, err := b.work(ctx, id)
	if err != nil {
		return nil, err
	}
	if unknown, err := branch.Prepare(ctx); err != nil {
		branch.Close(ctx)
		return nil, fmt.Errorf("prepare (unknown %t): %w", unknown, err)
	}
	return branch, nil
}

// leave gives a prepared branch whose process is gone.
func (b *bench) leave(ctx context.Context) (twophase.BranchID, error) {
	id := b.newID()
	branch, err := b.prepare(ctx, id)
	if err == nil {
		branch.Close(ctx)
	}
	return id, err
}

// settle settles a branch from elsewhere, once the participant has noticed the end of who prepared it.
func (b *bench) settle(ctx context.Context, id twophase.BranchID, commit bool) error {
	for {
		err := b.there.Settle(ctx, id, commit)
		if !errors.Is(err, twophase.ErrBusy) || ctx.Err() != nil {
			return err
		}
		pause(ctx)
	}
}

// has checks how often was written in a branch that is committed, and the witness.
func (b *bench) has(ctx context.Context, id twophase.BranchID, committed bool) error {
	want := 0
	if committed {
		want = 1
	}
	n, err := b.Count(ctx, key(id))
	switch {
	case err != nil:
		return annotate("count", err)
	case n != want:
		return fmt.Errorf("what the branch wrote is there %d times, want %d", n, want)
	}
	for _, p := range []twophase.Participant{b.here, b.there} {
		if got, err := p.Witnessed(ctx, id); err != nil || got != committed {
			return fmt.Errorf("witnessed: got %t, %w; want %t", got, err, committed)
		}
	}
	return nil
}

// lists checks whether both participants list a branch as prepared, and none of another name.
func (b *bench) lists(ctx context.Context, id twophase.BranchID, want bool) error {
	for _, p := range []twophase.Participant{b.here, b.there} {
		all, err := p.Prepared(ctx)
		if err != nil {
			return annotate("Prepared", err)
		}
		n := 0
		for _, one := range all {
			if one.Branch.Participant != p.Name() {
				return fmt.Errorf("prepared lists %s, which is another participant's", one.Branch)
			}
			if one.Branch.String() == id.String() {
				n++
			}
		}
		if n != map[bool]int{true: 1}[want] {
			return fmt.Errorf("prepared lists %s %d times, want %t", id, n, want)
		}
	}
	return nil
}

// is checks an error.
func is(what string, got, want error) error {
	if !errors.Is(got, want) {
		return fmt.Errorf("%s: got %v, want %v", what, got, want)
	}
	return nil
}

func annotate(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// first gives the first error of steps, each done only if those before had none.
func first(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context) {
	t := time.NewTimer(retry)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// longest are names that have all letters which names may have, as long as they may be.
func longest() []string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
	var all []string
	for from := 0; from < len(letters); from += twophase.NameBytesMax {
		name := letters[from:min(len(letters), from+twophase.NameBytesMax)]
		all = append(all, name+strings.Repeat("-", twophase.NameBytesMax-len(name)))
	}
	return all
}
