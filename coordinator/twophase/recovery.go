package twophase

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-dev/pawl/db"
)

const (
	// KeepDefault is how long decisions, and the witnesses at participants, are kept.
	KeepDefault = 24 * time.Hour

	recoverMax     = 10 * time.Second    // how long a recovery is at one participant
	reachMax       = 4 * time.Second     // how long it waits for one that does not answer: less than from one pass to the next
	unfinishedWait = 5 * time.Second     // how long the manager that decided has to finish it
	doneLag        = time.Minute         // how late a decision may be visible
	unfinishedMax  = 10_000              // decisions looked at in one transaction
	seenMax        = 200_000             // branches that are not asked again while others of their transactions are
	forgetMax      = 10_000              // witnesses removed in one transaction
	othersKeep     = 90 * 24 * time.Hour // how long those of other coordinators are kept, which may be gone
)

// Recovery is what a pass of Recover found and did.
type Recovery struct {
	Committed  int `json:"committed"`   // branches committed
	RolledBack int `json:"rolled_back"` // branches rolled back
	Doubts     int `json:"doubts"`      // branches that a person must see; see Doubts
	Ended      int `json:"ended"`       // transactions that are committed everywhere now
	Removed    int `json:"removed"`     // old decisions, with all that belongs to them
}

func (r *Recovery) did() int { return r.Committed + r.RolledBack + r.Ended + r.Removed }

// Did counts what was put right.
func (r *Recovery) Did() int64 { return int64(r.did()) }

// Recover settles, at all participants, what was left prepared: committed where it is decided so, else rolled back once the deadline has passed. It goes through decisions too that are not yet known to be done
// everywhere, and removes what was decided longer ago than keep. It may run on any number of nodes at once, and die anywhere. Participants that cannot be reached hold up no others, and the pass for 4 s.
// The error is the coordinator's database's; else an [UnsettledError] with what hindered it at participants.
//
// Of a transaction that began before the coordinator's database was restored or failed over nothing is presumed: without a decision its branches are listed for a person.
func (m *Manager) Recover(ctx context.Context, keep time.Duration) (Recovery, error) {
	h, err := m.q.ReadGlobalHome(ctx)
	if err != nil {
		return Recovery{}, fmt.Errorf("recover: %w", wrap(err))
	}
	var (
		r      Recovery
		mu     sync.Mutex
		group  sync.WaitGroup
		faults []error    // of the coordinator's database
		found  []BranchID // that were rolled back
	)
	at := hindrances{errs: map[string]error{}, down: map[string]bool{}}
	for _, p := range m.participants {
		group.Go(func() {
			ctx, stop := context.WithTimeout(ctx, recoverMax)
			defer stop()
			one, aborted, n, err := m.recoverAt(ctx, p, h)
			if err == nil {
				err = m.forget(ctx, p, h.Home, keep+time.Hour)
			}
			see := db.SeeGlobalParticipantParams{Ns: m.conf.Namespace, Name: p.Name(), Kind: p.Kind(), Address: p.Address(), Prepared: int32(max(n, 0))}
			if err != nil {
				text := err.Error()
				see.Fault = &text
			}
			seen, stop := context.WithTimeout(context.WithoutCancel(ctx), reachMax)
			defer stop()
			fault := m.q.SeeGlobalParticipant(seen, see)
			mu.Lock()
			defer mu.Unlock()
			r.Committed, r.RolledBack, r.Doubts = r.Committed+one.Committed, r.RolledBack+one.RolledBack, r.Doubts+one.Doubts
			faults, found = append(faults, fault), append(found, aborted...)
			if err != nil {
				at.errs[p.Name()], at.down[p.Name()] = err, n < 0 || ctx.Err() != nil
			}
		})
	}
	group.Wait()
	faults = append(faults, m.doubtAborted(ctx, found, at, &r), m.finishDecided(ctx, h.At, at, &r), m.removeOld(ctx, keep, &r))
	switch err := errors.Join(faults...); {
	case err != nil:
		return r, fmt.Errorf("recover: %w", wrap(err))
	case len(at.errs) > 0:
		return r, &UnsettledError{at.errs}
	}
	return r, nil
}

// hindrances are what hinders a recovery at participants, by their names.
type hindrances struct {
	errs map[string]error
	down map[string]bool // those that are not asked any more in this pass, so that they hold up no others
}

// recoverAt settles what a participant has prepared: first that is listed, then what is decided is read. n is how many of this coordinator's it has; below 0: it could not be asked.
func (m *Manager) recoverAt(ctx context.Context, p Participant, h db.ReadGlobalHomeRow) (r Recovery, aborted []BranchID, n int, err error) {
	first, stop := context.WithTimeout(ctx, reachMax)
	defer stop()
	prepared, err := p.Prepared(first)
	if err != nil {
		return r, nil, -1, err
	}
	prepared = slices.DeleteFunc(prepared, func(one Prepared) bool {
		return database(one.Branch.Home) != database(h.Home) || one.Branch.Namespace != m.conf.Namespace
	})
	farthest, err := p.See(first, h.Home, h.Lsn)
	if err == nil && farthest > h.Lsn {
		err = m.lookRestored(ctx, h.Home, farthest)
	}
	if err != nil {
		return r, nil, len(prepared), err
	}
	decided, err := m.decisions(ctx, prepared)
	if err != nil {
		return r, nil, len(prepared), err
	}
	still := []string{}
	var faults []error
	for _, one := range prepared {
		id := one.Branch.ID.String()
		d, known := decided[id]
		if !known {
			if one.Branch.Deadline.After(h.At) {
				continue
			}
			got, err := m.q.PresumeGlobal(ctx, db.PresumeGlobalParams{Ns: m.conf.Namespace, ID: id, Home: one.Branch.Home, DecidedBy: m.conf.Name, Reason: "recovery found it prepared past its deadline"})
			switch {
			case db.Code(err) == "55P03": // somebody is deciding it
				continue
			case err != nil:
				return r, aborted, len(prepared), err
			case !got.Known:
				still = append(still, id)
				faults = append(faults, m.doubt(ctx, one.Branch, "undecided", fmt.Sprintf("prepared for a coordinator's database as it was at %s, which was restored or failed over since: a decision may be lost", one.Branch.Home)))
				continue
			}
			d = got.Committed
		}
		_, err := m.settle(ctx, p, one.Branch, d)
		switch {
		case err == nil && d:
			r.Committed++
		case err == nil:
			r.RolledBack++
			aborted = append(aborted, one.Branch)
		case errors.Is(err, ErrBusy):
		case isNoted(err):
			r.Doubts++
		default:
			still = append(still, id)
			faults = append(faults, fmt.Errorf("branch %s: %w", one.Branch, err), m.doubt(ctx, one.Branch, "unfinished", fmt.Sprintf("it should %s: %v", map[bool]string{true: "commit", false: "roll back"}[d], err)))
		}
	}
	r.Doubts += len(still)
	faults = append(faults, m.q.ClearGlobalDoubts(ctx, db.ClearGlobalDoubtsParams{Ns: m.conf.Namespace, Participant: p.Name(), Still: still}))
	return r, aborted, len(prepared), errors.Join(faults...)
}

// forget removes witnesses that are older than keep. Those of transactions that are not known to be committed everywhere stay: who has committed is asked again and again until all have. Other coordinators', of whose
// transactions nobody here knows, stay for othersKeep.
func (m *Manager) forget(ctx context.Context, p Participant, home string, keep time.Duration) error {
	ours := prefix + strconv.Itoa(int(m.conf.Namespace)) + ":" + database(home) + "."
	others, err := p.Old(ctx, prefix, othersKeep, forgetMax)
	if others = slices.DeleteFunc(others, func(name string) bool { return strings.HasPrefix(name, ours) }); err == nil && len(others) > 0 {
		_, err = p.Forget(ctx, others)
	}
	if err != nil {
		return err
	}
	old, err := p.Old(ctx, ours, keep, forgetMax)
	if err != nil || len(old) == 0 {
		return err
	}
	ids := make([]string, len(old))
	for i, name := range old {
		b, _ := ParseBranchID(name)
		ids[i] = b.ID.String()
	}
	open, err := m.q.ReadGlobalOpen(ctx, db.ReadGlobalOpenParams{Ns: m.conf.Namespace, IDs: ids})
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, id := range open {
		kept[id] = true
	}
	var gone []string
	for i, name := range old {
		if !kept[ids[i]] {
			gone = append(gone, name)
		}
	}
	_, err = p.Forget(ctx, gone)
	return err
}

// lookRestored looks whether the coordinator's database is really behind what a participant has seen of it, and not only this pass behind another. Then it was restored, which is noted for good: its log will be as far again.
func (m *Manager) lookRestored(ctx context.Context, at string, farthest int64) error {
	h, err := m.q.ReadGlobalHome(ctx)
	if err != nil || h.Home != at || h.Lsn >= farthest {
		return err
	}
	n, err := m.q.RaiseGlobalIncarnationOf(ctx, at)
	if n > 0 {
		m.conf.Logger.Error("coordinator's database is behind what participants have seen of it, so it was restored: nothing is presumed of transactions that began before", "home", at)
		m.leaveHome()
	}
	return err
}

// decisions reads what is decided of branches.
func (m *Manager) decisions(ctx context.Context, prepared []Prepared) (map[string]bool, error) {
	decided := map[string]bool{}
	ids := make([]string, len(prepared))
	for i, one := range prepared {
		ids[i] = one.Branch.ID.String()
	}
	rows, err := m.q.ReadGlobalDecisions(ctx, db.ReadGlobalDecisionsParams{Ns: m.conf.Namespace, IDs: ids})
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range rows {
		decided[d.ID] = d.Committed
		if d.Committed && !d.Ended && !d.DecidedAt.After(m.done) { // it was visible too late, or the clock was set back
			m.done = d.DecidedAt.Add(-time.Microsecond)
		}
	}
	return decided, err
}

// doubtAborted looks whether somebody has committed by hand, at any participant, what was rolled back at another. It comes last: a participant may let nobody look while the branch is prepared there.
func (m *Manager) doubtAborted(ctx context.Context, aborted []BranchID, at hindrances, r *Recovery) error {
	var faults []error
	for b := range m.witnessed(ctx, aborted, at.down) {
		r.Doubts++
		faults = append(faults, m.doubt(ctx, b, "mixed", "it was committed there by hand, and is aborted"))
	}
	return errors.Join(faults...)
}

// witnessed gives the branches of these transactions that participants have certainly committed. It takes 4 s at most, and then knows less.
func (m *Manager) witnessed(ctx context.Context, transactions []BranchID, down map[string]bool) map[BranchID]bool {
	ctx, stop := context.WithTimeout(ctx, reachMax)
	defer stop()
	var mu sync.Mutex
	var group sync.WaitGroup
	committed := map[BranchID]bool{}
	for name, p := range m.participants {
		if down[name] {
			continue
		}
		group.Go(func() {
			for _, b := range transactions {
				done, err := p.Witnessed(ctx, b.at(name))
				if err != nil {
					return
				}
				if done {
					mu.Lock()
					committed[b.at(name)] = true
					mu.Unlock()
				}
			}
		})
	}
	group.Wait()
	return committed
}

// settle ends a prepared branch, and says what became of one that is not there: nil where it is as decided, else a MixedError, which is written down (isNoted), unless it says why not. did: it was there, and is ended now.
func (m *Manager) settle(ctx context.Context, p Participant, b BranchID, commit bool) (did bool, err error) {
	err = p.Settle(ctx, b, commit)
	if !errors.Is(err, ErrAbsent) {
		return err == nil, err
	}
	done, err := p.Witnessed(ctx, b)
	if err != nil || done == commit {
		return false, err
	}
	detail := "it was committed there by hand, and is aborted"
	if commit {
		rows, err := m.q.ReadGlobalDecisions(ctx, db.ReadGlobalDecisionsParams{Ns: m.conf.Namespace, IDs: []string{b.ID.String()}})
		if err != nil || len(rows) == 0 || rows[0].Ended { // another has seen to it meanwhile, and the witness is forgotten
			return false, err
		}
		detail = "it is committed, but not there: it was rolled back by hand, or lost with a restore"
	}
	m.conf.Logger.Error("global transaction is mixed: a participant did the opposite of what was decided", "id", b.ID, "participant", p.Name(), "detail", detail)
	mixed := &MixedError{b.ID.String(), commit, []string{p.Name()}}
	if err := m.doubt(ctx, b, "mixed", detail); err != nil {
		return false, errors.Join(mixed, err)
	}
	return false, mixed
}

// isNoted tells of settle's error whether the branch is mixed, and written down as such: nothing more can be done of it here.
func isNoted(err error) bool {
	_, mixed := err.(*MixedError) //nolint:errorlint // joined with another it is not
	return mixed
}

func (m *Manager) doubt(ctx context.Context, b BranchID, what, detail string) error {
	return m.q.DoubtGlobal(ctx, db.DoubtGlobalParams{Ns: m.conf.Namespace, ID: b.ID.String(), Participant: b.Participant, Branch: b.String(), What: what, Detail: detail})
}

// finishDecided commits what is decided and not known to be committed everywhere. It goes through the decisions from the first on that was not, when it last looked.
func (m *Manager) finishDecided(ctx context.Context, now time.Time, at hindrances, r *Recovery) error {
	m.mu.Lock()
	p := db.ReadGlobalUnfinishedParams{Ns: m.conf.Namespace, AfterAt: m.done, AfterID: uuid.Nil.String(), Grace: unfinishedWait, LimitRows: unfinishedMax}
	m.mu.Unlock()
	done := now.Add(-doneLag) // a decision may be visible later than its time
	var faults []error
	for {
		page, err := m.q.ReadGlobalUnfinished(ctx, p)
		if err != nil {
			return errors.Join(append(faults, err)...)
		}
		if page.OpenAt != nil && page.OpenAt.Before(done) {
			done = *page.OpenAt
		}
		var ended []string
		for i, id := range page.IDs {
			if m.finishOne(ctx, page.Branches[i], strings.Split(page.Participants[i], ","), at, r) {
				ended = append(ended, id)
			}
		}
		if len(ended) > 0 {
			faults = append(faults, m.q.EndGlobal(ctx, db.EndGlobalParams{Ns: m.conf.Namespace, IDs: ended}))
			r.Ended += len(ended)
		}
		if page.Last == nil {
			break
		}
		p.AfterAt, p.AfterID = *page.Last, page.LastID
	}
	m.mu.Lock()
	m.done = done.Add(-time.Microsecond)
	m.mu.Unlock()
	return errors.Join(faults...)
}

// finishOne has the participants of a transaction commit. done: all have, or did the opposite for good. Those of which that is known are not asked again: while one participant is down, transactions gather that wait for it.
func (m *Manager) finishOne(ctx context.Context, branch string, names []string, at hindrances, r *Recovery) (done bool) {
	done = true
	var settled []string
	defer func() { m.see(settled, done) }()
	for _, name := range names {
		b, err := ParseBranchID(branch + name)
		p := m.participants[name]
		if m.isSeen(branch + name) {
			settled = append(settled, branch+name)
			continue
		}
		if err != nil || p == nil || at.down[name] { // another coordinator has it, or the next pass
			done = false
			continue
		}
		ctx, stop := context.WithTimeout(ctx, reachMax)
		did, err := m.settle(ctx, p, b, true)
		late := ctx.Err() != nil
		stop()
		switch {
		case err == nil && did:
			r.Committed++
		case err == nil:
		case isNoted(err):
			r.Doubts++
		case errors.Is(err, ErrBusy):
			done = false
			continue
		default:
			done = false
			at.errs[name], at.down[name] = fmt.Errorf("branch %s: %w", b, err), late
			continue
		}
		settled = append(settled, branch+name)
	}
	return done
}

func (m *Manager) isSeen(branch string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[branch]
}

// see remembers the branches that are settled of a transaction, until that is done.
func (m *Manager) see(branches []string, done bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen == nil || len(m.seen) > seenMax {
		m.seen = map[string]bool{}
	}
	for _, b := range branches {
		if done {
			delete(m.seen, b)
		} else {
			m.seen[b] = true
		}
	}
}

// removeOld removes what was decided long ago.
func (m *Manager) removeOld(ctx context.Context, keep time.Duration, r *Recovery) error {
	p := db.SweepGlobalOldParams{Ns: m.conf.Namespace, Keep: keep, AfterID: uuid.Nil.String(), LimitRows: unfinishedMax}
	for {
		row, err := m.q.SweepGlobalOld(ctx, p)
		if err != nil {
			return err
		}
		r.Removed += int(row.Removed)
		if row.Last == nil {
			return nil
		}
		p.AfterAt, p.AfterID = *row.Last, row.LastID
	}
}
