package twophasetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

const (
	rounds     = 20 // of a race
	recoverers = 4
	seers      = 4
)

// setup: Setup may be called by many at the same time, and again, keeps what is there, and waits for no branch that is prepared.
func setup(ctx context.Context, t Target) error {
	errs := make([]error, seers)
	var group sync.WaitGroup
	for i := range errs {
		p := t.Open("setup")
		group.Go(func() { errs[i] = p.Setup(ctx) })
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return annotate("several at once", err)
	}
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	id, err := b.leave(ctx)
	if err != nil {
		return err
	}
	return first(
		func() error { return annotate("again, with a branch prepared", b.here.Setup(ctx)) },
		func() error { return annotate("settle", b.settle(ctx, id, true)) },
		func() error { return annotate("again", b.here.Setup(ctx)) },
		func() error { return b.has(ctx, id, true) },
	)
}

// commit: Commit commits in one go, at once, with a witness, and nothing is ever prepared.
func commit(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	for range 2 { // on what the first has given back, too
		id := b.newID()
		branch, err := b.work(ctx, id)
		if err != nil {
			return err
		}
		err = first(
			func() error { return b.has(ctx, id, false) },
			func() error {
				unknown, err := branch.Commit(ctx)
				if unknown {
					return fmt.Errorf("commit: unknown, %w", err)
				}
				return annotate("Commit", err)
			},
			func() error { return b.has(ctx, id, true) },
			func() error { return b.lists(ctx, id, false) },
		)
		branch.Close(ctx)
		if err != nil {
			return err
		}
		if err := first(
			func() error { return b.has(ctx, id, true) },
			func() error { return is("Settle", b.there.Settle(ctx, id, true), twophase.ErrAbsent) },
			func() error { return b.has(ctx, id, true) },
		); err != nil {
			return err
		}
	}
	return nil
}

// closed: Close rolls back a branch that did not prepare, and another can write what it wrote.
func closed(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	id := b.newID()
	for range 2 {
		branch, err := b.work(ctx, id)
		if err != nil {
			return err
		}
		branch.Close(ctx)
		if err := errors.Join(b.has(ctx, id, false), b.lists(ctx, id, false)); err != nil {
			return err
		}
	}
	return is("Settle", b.there.Settle(ctx, id, true), twophase.ErrAbsent)
}

// cancelled: what a context's end leaves is rolled back, and neither harms branches that come later nor keeps what they need.
func cancelled(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for range rounds {
		id := b.newID()
		branch, err := b.work(ctx, id)
		if err != nil {
			return err
		}
		unknown, err := branch.Prepare(ended)
		branch.Close(ended)
		if err == nil {
			return annotate("settle what was prepared though its context had ended", b.settle(ctx, id, false))
		}
		err = b.settle(ctx, id, false)
		if err != nil && !errors.Is(err, twophase.ErrAbsent) || err == nil && !unknown {
			return fmt.Errorf("settle what failed to prepare (unknown %t): got %w, want ErrAbsent", unknown, err)
		}
		if err := b.has(ctx, id, false); err != nil {
			return err
		}
	}
	return commit(ctx, t)
}

// settle: a branch settles what it has prepared.
func settle(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	for _, commit := range []bool{true, false, true} {
		id := b.newID()
		branch, err := b.prepare(ctx, id)
		if err != nil {
			return err
		}
		err = first(
			func() error { return b.lists(ctx, id, true) },
			func() error {
				if n, err := b.Count(ctx, key(id)); err != nil || n != 0 {
					return fmt.Errorf("what is only prepared is there %d times, %w", n, err)
				}
				return nil
			},
			func() error { return annotate("Settle", branch.Settle(ctx, commit)) },
			func() error { return b.has(ctx, id, commit) },
			func() error { return b.lists(ctx, id, false) },
		)
		branch.Close(ctx)
		if err != nil {
			return fmt.Errorf("commit %t: %w", commit, err)
		}
	}
	return nil
}

// settleElsewhere: another process settles what was left.
func settleElsewhere(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	for _, commit := range []bool{true, false, true} {
		id, err := b.leave(ctx)
		if err != nil {
			return err
		}
		err = first(
			func() error { return b.lists(ctx, id, true) },
			func() error { return annotate("Settle", b.settle(ctx, id, commit)) },
			func() error { return b.has(ctx, id, commit) },
			func() error { return b.lists(ctx, id, false) },
		)
		if err != nil {
			return fmt.Errorf("commit %t: %w", commit, err)
		}
	}
	return nil
}

// settleHeld: a branch whose process is there, and does not settle it, is settled by another, or busy until its end. It is not absent.
func settleHeld(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	for _, commit := range []bool{true, false} {
		id := b.newID()
		branch, err := b.prepare(ctx, id)
		if err != nil {
			return err
		}
		err = b.there.Settle(ctx, id, commit)
		busy := errors.Is(err, twophase.ErrBusy)
		if busy {
			err = b.lists(ctx, id, true)
		}
		branch.Close(ctx)
		if err == nil && busy {
			err = b.settle(ctx, id, commit)
		}
		if err == nil {
			err = b.has(ctx, id, commit)
		}
		if err != nil {
			return fmt.Errorf("commit %t, busy %t: %w", commit, busy, err)
		}
	}
	return nil
}

// settleTwice: who settles what was settled is told so, whatever he wants, and changes nothing.
func settleTwice(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	for _, was := range []bool{true, false} {
		id := b.newID()
		branch, err := b.prepare(ctx, id)
		if err != nil {
			return err
		}
		err = annotate("Settle", branch.Settle(ctx, was))
		for _, commit := range []bool{true, false} {
			if err == nil {
				err = first(
					func() error { return is("Settle elsewhere again", b.there.Settle(ctx, id, commit), twophase.ErrAbsent) },
					func() error { return is("Settle here again", branch.Settle(ctx, commit), twophase.ErrAbsent) },
					func() error { return b.has(ctx, id, was) },
				)
			}
		}
		branch.Close(ctx)
		if err != nil {
			return fmt.Errorf("settled with commit %t: %w", was, err)
		}
	}
	return nil
}

// settleRace: of several recoverers each is told nil, ErrBusy, or ErrAbsent, and then the witness is right at once. What was written is there once.
func settleRace(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	for round := range rounds {
		commit := round%3 > 0
		id, err := b.leave(ctx)
		if err != nil {
			return err
		}
		errs := make([]error, recoverers)
		begin := make(chan struct{})
		var group sync.WaitGroup
		for i := range errs {
			p := []twophase.Participant{b.here, b.there}[i%2]
			group.Go(func() {
				<-begin
				err := p.Settle(ctx, id, commit)
				if errors.Is(err, twophase.ErrAbsent) {
					got, fault := p.Witnessed(ctx, id)
					if err = fault; err == nil && got != commit {
						err = fmt.Errorf("one was told ErrAbsent, and the witness of a branch that is settled with commit %t was %t", commit, got)
					}
				}
				if !errors.Is(err, twophase.ErrBusy) {
					errs[i] = err
				}
			})
		}
		close(begin)
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if err := b.settle(ctx, id, commit); err != nil && !errors.Is(err, twophase.ErrAbsent) { // if all were told ErrBusy
			return err
		}
		if err := errors.Join(b.has(ctx, id, commit), b.lists(ctx, id, false)); err != nil {
			return err
		}
	}
	return nil
}

// absent: a branch that never was is absent, and left no witness.
func absent(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	id := b.newID()
	for _, commit := range []bool{true, false} {
		if err := is("Settle", b.here.Settle(ctx, id, commit), twophase.ErrAbsent); err != nil {
			return err
		}
	}
	return errors.Join(b.has(ctx, id, false), b.lists(ctx, id, false))
}

// readOnly: a branch that wrote is not said to be read-only.
func readOnly(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	branch, err := b.here.Begin(ctx, b.newID())
	if err != nil {
		return err
	}
	defer branch.Close(ctx)
	if _, err := branch.ReadOnly(ctx); err != nil {
		return annotate("ReadOnly", err)
	}
	if err := b.Write(ctx, branch, "key"); err != nil {
		return annotate("write", err)
	}
	if got, err := branch.ReadOnly(ctx); err != nil || got {
		return fmt.Errorf("a branch that wrote is read-only: got %t, %w", got, err)
	}
	return nil
}

// fence: a fence is told the truth of a branch that was committed, and keeps any other from it for good.
func fence(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	id := b.newID()
	branch, err := b.work(ctx, id)
	if err == nil {
		_, err = branch.Commit(ctx)
		branch.Close(ctx)
	}
	if err != nil {
		return err
	}
	fenced := func(id twophase.BranchID, want bool) error {
		for _, p := range []twophase.Participant{b.there, b.here} {
			if got, err := p.Fence(ctx, id); err != nil || got != want {
				return fmt.Errorf("fence: got %t, %w; want %t", got, err, want)
			}
		}
		return b.has(ctx, id, want)
	}
	if err := fenced(id, true); err != nil {
		return annotate("of a branch that is committed", err)
	}
	for what, end := range map[string]func(twophase.Branch) (bool, error){
		"Commit": func(b twophase.Branch) (bool, error) { return b.Commit(ctx) }, "Prepare": func(b twophase.Branch) (bool, error) { return b.Prepare(ctx) },
	} {
		id := b.newID()
		branch, err := b.work(ctx, id)
		if err != nil {
			return err
		}
		err = fenced(id, false)
		if err == nil {
			if unknown, fault := end(branch); fault == nil || unknown {
				err = fmt.Errorf("%s after a fence: got unknown %t, %w; want an error", what, unknown, fault)
			}
		}
		branch.Close(ctx)
		err = errors.Join(err, is("Settle after a fence", b.there.Settle(ctx, id, true), twophase.ErrAbsent), b.has(ctx, id, false))
		if err != nil {
			return err
		}
	}
	return nil
}

// fenceRace: a fence beside a commit: either is right, and both agree.
func fenceRace(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	for range rounds {
		id := b.newID()
		branch, err := b.work(ctx, id)
		if err != nil {
			return err
		}
		var committed, fenced bool
		var fault error
		begin := make(chan struct{})
		var group sync.WaitGroup
		group.Go(func() {
			<-begin
			fenced, fault = b.there.Fence(ctx, id)
		})
		close(begin)
		unknown, err := branch.Commit(ctx)
		committed = err == nil
		branch.Close(ctx) // before the fence is done: it may wait for this
		group.Wait()
		switch {
		case fault != nil:
			return annotate("Fence", fault)
		case unknown:
			return fmt.Errorf("commit: unknown, %w", err)
		case fenced != committed:
			return fmt.Errorf("fence: got %t, Commit: got %w", fenced, err)
		}
		if err := b.has(ctx, id, committed); err != nil {
			return err
		}
	}
	return nil
}

// prepared: all prepared branches are listed, of whatever coordinator and namespace, by their exact names.
func prepared(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	var ids []twophase.BranchID
	for i := range 6 {
		id := b.newID()
		id.Namespace += int16(i % 2)
		if i > 2 {
			id.Home = "ffffffffffffffff.2.1"
		}
		branch, err := b.prepare(ctx, id)
		if err != nil {
			return err
		}
		branch.Close(ctx)
		ids = append(ids, id)
	}
	other, err := b.work(ctx, b.newID()) // only at work
	if err != nil {
		return err
	}
	defer other.Close(ctx)
	all, err := b.there.Prepared(ctx)
	if err != nil || len(all) != len(ids) {
		return fmt.Errorf("prepared: got %d branches, %w; want %d", len(all), err, len(ids))
	}
	for _, id := range ids {
		if err := b.lists(ctx, id, true); err != nil {
			return err
		}
	}
	for _, one := range all {
		if !one.At.IsZero() && one.At.After(time.Unix(deadline, 0)) {
			return fmt.Errorf("prepared: %s at %s", one.Branch, one.At)
		}
	}
	for _, id := range ids {
		if err := b.settle(ctx, id, false); err != nil {
			return annotate("Settle", err)
		}
	}
	return nil
}

// foreign: what others prepared is not listed.
func foreign(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	if t.Foreign != nil {
		t.Foreign()
	}
	aside := t.Open(b.here.Name() + "2") // its name begins with the other's
	another := &bench{Target: t, here: aside, there: aside}
	id, err := another.leave(ctx)
	if err != nil {
		return err
	}
	all, err := b.there.Prepared(ctx)
	if err != nil || len(all) != 0 {
		err = fmt.Errorf("prepared: got %v, %w; want none", all, err)
	}
	return errors.Join(err, annotate("Settle", another.settle(ctx, id, false)))
}

// names: names may have all letters that are allowed, and be as long.
func names(ctx context.Context, t Target) error {
	for _, name := range longest() {
		b := &bench{Target: t, here: t.Open(name), there: t.Open(name)}
		if b.here.Name() != name {
			return fmt.Errorf("name: got %q, want %q", b.here.Name(), name)
		}
		if err := b.here.Setup(ctx); err != nil {
			return err
		}
		for _, commit := range []bool{true, false} {
			id := b.newID()
			id.Namespace, id.Home, id.Deadline = math.MaxInt16, "0123456789abcdef.ff.ffff", time.Unix(253_402_300_799, 0) // the end of the year 9999
			branch, err := b.prepare(ctx, id)
			if err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
			branch.Close(ctx)
			err = first(
				func() error { return b.lists(ctx, id, true) },
				func() error { return annotate("Settle", b.settle(ctx, id, commit)) },
				func() error { return b.has(ctx, id, commit) },
			)
			if err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
		}
	}
	// Two that differ in case only are two.
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	id := b.newID()
	id.Home = "abcdef"
	upper := id
	upper.Home = strings.ToUpper(id.Home)
	branch, err := b.work(ctx, id)
	if err == nil {
		_, err = branch.Commit(ctx)
		branch.Close(ctx)
	}
	if err != nil {
		return err
	}
	if got, err := b.there.Witnessed(ctx, upper); err != nil || got {
		return fmt.Errorf("witnessed of %s, where %s is committed: got %t, %w", upper, id, got, err)
	}
	return nil
}

// see: what was seen of a home grows only, and homes are apart.
func see(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	for _, one := range []struct {
		home      string
		lsn, want int64
	}{{home, 5, 5}, {home, 3, 5}, {home, 9, 9}, {"other", 1, 1}, {home, 9, 9}, {home, 0, 9}, {home, math.MaxInt64 - 100, math.MaxInt64 - 100}, {"other", 0, 1}} {
		for _, p := range []twophase.Participant{b.here, b.there} {
			if got, err := p.See(ctx, one.home, one.lsn); err != nil || got != one.want {
				return fmt.Errorf("see(%q, %d): got %d, %w; want %d", one.home, one.lsn, got, err, one.want)
			}
		}
	}
	errs := make([]error, seers)
	var group sync.WaitGroup
	for i := range errs {
		p := []twophase.Participant{b.here, b.there}[i%2]
		group.Go(func() {
			var before int64
			for n := range rounds {
				lsn := int64(n*seers + i)
				got, err := p.See(ctx, "raced", lsn)
				if err != nil || got < lsn || got < before {
					errs[i] = fmt.Errorf("see(%d) beside others: got %d after %d, %w", lsn, got, before, err)
					return
				}
				before = got
			}
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if got, err := b.here.See(ctx, "raced", 0); err != nil || got != rounds*seers-1 {
		return fmt.Errorf("see in the end: got %d, %w; want %d", got, err, rounds*seers-1)
	}
	return nil
}

// forget: Old lists old witnesses of some coordinator, as many as it is told to, and Forget removes what it is told to. Neither is hindered by nor harms what is prepared or at work.
func forget(ctx context.Context, t Target) error {
	b, err := newBench(ctx, t)
	if err != nil {
		return err
	}
	var ids []twophase.BranchID
	for i := range 5 {
		id := b.newID()
		if i == 0 {
			_, err = b.here.Fence(ctx, id)
		} else {
			var branch twophase.Branch
			if branch, err = b.work(ctx, id); err == nil {
				_, err = branch.Commit(ctx)
				branch.Close(ctx)
			}
		}
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	waits, err := b.leave(ctx)
	if err != nil {
		return err
	}
	pause(ctx) // they are older than 0 then
	for _, step := range []struct {
		begins      string
		age         time.Duration
		limit, want int
	}{{"pawl:1:", time.Hour, 100, 0}, {"pawl:2:", 0, 100, 0}, {"pawl:1:", 0, 2, 2}, {"pawl:1:", 0, 100, 3}, {"pawl:1:", 0, 100, 0}} {
		old, err := b.there.Old(ctx, step.begins, step.age, step.limit)
		if err != nil || len(old) != step.want {
			return fmt.Errorf("old(%s, %s, %d): got %d, %w; want %d", step.begins, step.age, step.limit, len(old), err, step.want)
		}
		if n, err := b.there.Forget(ctx, old); err != nil || n != step.want {
			return fmt.Errorf("forget of %d: got %d, %w", step.want, n, err)
		}
	}
	for _, id := range ids {
		if got, err := b.here.Witnessed(ctx, id); err != nil || got {
			return fmt.Errorf("witnessed of what is forgotten: got %t, %w", got, err)
		}
	}
	return first(
		func() error { return annotate("Settle", b.settle(ctx, waits, true)) },
		func() error { return b.has(ctx, waits, true) },
	)
}
