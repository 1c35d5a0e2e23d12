package coordinator

import (
	"context"
	"fmt"
	"time"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

// Level says how bad a finding is.
type Level string

// The levels.
const (
	LevelOK   Level = "ok"
	LevelWarn Level = "warn" // works, and may not go on to
	LevelBad  Level = "bad"  // a person must act
)

// Finding is what one check of the doctor found.
type Finding struct {
	Check   string  `json:"check"`
	Level   Level   `json:"level"`
	Message string  `json:"message"`          // what is so, without the name of the check
	Remedy  string  `json:"remedy,omitempty"` // what to do; "" if all is well
	Value   float64 `json:"value"`            // the figure that decided, for graphs
	Unit    string  `json:"unit,omitempty"`   // of Value: s, bytes, rows, lines, …
}

// Where the doctor begins to warn, and where to call it bad.
const (
	doctorMax = time.Minute // all checks together

	transactionWarn, transactionBad = 5 * time.Minute, time.Hour // open
	idleWarn, idleBad               = time.Minute, 15 * time.Minute
	preparedWarn, preparedBad       = 5 * time.Minute, time.Hour
	sessionWarn, sessionBad         = 30 * time.Second, 2 * time.Minute // past their end
	sweepRunsLate                   = 3                                 // sweeps left out
	sweepLate                       = 30 * time.Second                  // on top
	clockWarn                       = 2 * time.Second
	roomWarn, roomBad               = 2 * time.Hour, 30 * time.Minute // until inserts fail, at the recent rate
	subscriptionsMax                = 1000
	roomUsedBad                     = 0.5                  // of the last range
	heldWarn, leavingWarn           = time.Hour, time.Hour // a range of events could have left, or is being dropped
	forgetBad                       = 3 * 24 * time.Hour   // until events are dropped before a subscription has them
	slotWarnBytes, slotBadBytes     = 1 << 30, 16 << 30
	notifyWarn, notifyBad           = 0.1, 0.5
	deadWarnRows                    = 100_000 // and more of them than live ones
	xidWarn, xidBad                 = 1_000_000_000, 1_600_000_000
	serverOldest                    = 14_00_00
)

// Doctor checks the database and what Pawl relies on in it. It changes nothing. Every check gives at least one finding, in a fixed order; what the
// role may not see is a finding too. It does not know versions of the schema; see package migrate. The error is ErrSchema, or the database's if it
// cannot be asked at all.
func (c *Coordinator) Doctor(ctx context.Context) ([]Finding, error) {
	ctx, stop := context.WithTimeout(ctx, doctorMax)
	defer stop()
	checks := []struct {
		name string
		run  func(context.Context) ([]Finding, error)
	}{
		{"server", c.checkServer},
		{"connection", c.checkConnection},
		{"clock", c.checkClock},
		{"cluster", c.checkCluster},
		{"sweep", c.checkSweeps},
		{"sessions", c.checkSessions},
		{"partitions", c.checkPartitions},
		{"events", c.checkEvents},
		{"global transactions", c.checkGlobal},
		{"transactions", c.checkTransactions},
		{"idle transactions", c.checkIdle},
		{"prepared transactions", c.checkPrepared},
		{"replication slots", c.checkSlots},
		{"notifications", c.checkNotify},
		{"dead rows", c.checkDead},
		{"transaction ids", c.checkXIDs},
	}
	var all []Finding
	for _, check := range checks {
		found, err := check.run(ctx)
		switch {
		case err == nil:
		case db.IsUnmigrated(err):
			return all, fmt.Errorf("doctor: %w", wrap(err))
		case db.Code(err) != "" && ctx.Err() == nil:
			found = []Finding{{
				Level: LevelWarn, Message: "could not be checked: " + db.Message(err),
				Remedy: "give this role what the check needs, pg_monitor for one",
			}}
		default:
			return all, fmt.Errorf("doctor: %s: %w", check.name, err)
		}
		for _, f := range found {
			if f.Check == "" {
				f.Check = check.name
			}
			all = append(all, f)
		}
	}
	return all, nil
}

// Moved counts the lines of the namespace, and those away: they were last used in another cluster, and nothing is claimed from them until Rebase.
func (c *Coordinator) Moved(ctx context.Context) (lines, away int, err error) {
	row, err := c.q.ReadLines(ctx, c.conf.Namespace)
	if err != nil {
		return 0, 0, fmt.Errorf("read lines: %w", wrap(err))
	}
	return int(row.Lines), int(row.Away), nil
}

func (c *Coordinator) checkCluster(ctx context.Context) ([]Finding, error) {
	lines, away, err := c.Moved(ctx)
	if err != nil {
		return nil, err
	}
	f := Finding{Value: float64(away), Unit: "lines"}
	f.ok("all %d lines of the queues and the outbox are at home in this cluster", lines)
	if away > 0 {
		f.bad(`stop what still uses the old database, then run "pawl doctor --rebase" once`,
			"%d of %d lines were last used in another cluster (a restore, a copy or an upgrade): nothing is enqueued to or claimed from them", away, lines)
	}
	return []Finding{f}, nil
}

// checkSweeps gives one finding if all is well, else one for each sweep that is late or fails.
func (c *Coordinator) checkSweeps(ctx context.Context) ([]Finding, error) {
	server, _, err := session.Clock(ctx, c.pool)
	if err != nil {
		return nil, err
	}
	statuses, err := c.Statuses(ctx)
	if err != nil {
		return nil, err
	}
	const remedy = `run a coordinator: "pawl serve"`
	if len(statuses) == 0 {
		f := Finding{Check: "sweeps"}
		f.bad(remedy, "none ever ran: due jobs do not start, and those of crashed workers wait")
		return []Finding{f}, nil
	}
	ran := map[string]Status{}
	for _, s := range statuses {
		ran[s.Name] = s
	}
	var (
		all    []Finding
		oldest time.Duration
	)
	for _, name := range SweepNames() {
		f := Finding{Check: "sweep " + name, Unit: "s"}
		s, found := ran[name]
		age := server.Sub(s.RanAt)
		switch {
		case !found && time.Duration(ran[SweepSessions].Runs)*c.interval(SweepSessions) < sweepRunsLate*c.interval(name)+sweepLate:
			continue // a coordinator has begun to sweep and will come to it
		case !found:
			f.warn(remedy, "never ran")
			all = append(all, f)
			continue
		case s.Error != "":
			f.bad("mend what it says; the next run tries again", "failed %s ago: %s", short(age), s.Error)
		case age > sweepRunsLate*c.interval(name)+sweepLate:
			f.bad(remedy, "last ran %s ago", short(age))
		default:
			oldest = max(oldest, age)
			continue
		}
		f.Value = age.Seconds()
		all = append(all, f)
	}
	if len(all) == 0 {
		f := Finding{Check: "sweeps", Value: oldest.Seconds(), Unit: "s"}
		f.ok("all of them ran within the last %s", short(oldest))
		all = append(all, f)
	}
	return all, nil
}

// interval is how often a sweep is to run, or to report.
func (c *Coordinator) interval(name string) time.Duration {
	spec, ok := c.conf.Specs[name]
	if !ok {
		return dueReport
	}
	schedule, err := parser.Parse(spec)
	if err != nil {
		return dueReport // validated before
	}
	var day time.Time
	first := schedule.Next(day)
	return schedule.Next(first).Sub(first)
}

func (c *Coordinator) checkSessions(ctx context.Context) ([]Finding, error) {
	s, err := c.q.ReadSessionTrouble(ctx, c.conf.Namespace)
	if err != nil {
		return nil, err
	}
	f := Finding{Value: float64(s.Expired + s.Unrescued), Unit: "sessions"}
	f.ok("%d alive, none that waits to be rescued", s.Alive)
	const remedy = `their jobs wait for the sweep "sessions": run a coordinator ("pawl serve"), or that sweep once ("pawl sweep sessions")`
	overdue := max(seconds(s.ExpiredS), seconds(s.UnrescuedS))
	text := fmt.Sprintf("%d alive, %d expired and not ended, %d ended and not rescued, for up to %s", s.Alive, s.Expired, s.Unrescued, short(overdue))
	f.grade(overdue, sessionWarn, sessionBad, remedy, text)
	return []Finding{f}, nil
}

func (c *Coordinator) checkPartitions(ctx context.Context) ([]Finding, error) {
	rows, err := c.q.ListPartitionRoom(ctx)
	if err != nil {
		return nil, err
	}
	const remedy = `ranges are made by the sweep "partitions": run a coordinator ("pawl serve"), or that sweep once ("pawl sweep partitions")`
	var all []Finding
	for _, r := range rows {
		f := Finding{Check: "partitions of " + r.Parent, Level: LevelOK, Unit: "of the last range"}
		f.Value = min(max((r.Position-r.RangeFrom)/(r.RangeTo-r.RangeFrom), 0), 1)
		left := time.Duration(1<<63 - 1)
		if rate := (r.Position - r.PositionAt) / max(r.AgeS, 60); rate > 0 {
			left = seconds((r.RangeTo - r.Position) / rate)
		}
		text := fmt.Sprintf("%.0f %% of the last range used", f.Value*100)
		if left < 30*24*time.Hour {
			text += fmt.Sprintf(", which lasts for %s at the recent rate", short(left))
		}
		switch {
		case r.Position >= r.RangeTo:
			f.bad(remedy, "no room left: inserts fail")
		case f.Value > roomUsedBad, left < roomBad:
			f.bad(remedy, "%s; past it inserts fail", text)
		case f.Value > 0, left < roomWarn:
			f.warn(remedy, "%s", text)
		default:
			continue
		}
		all = append(all, f)
	}
	if len(all) == 0 {
		f := Finding{Unit: "of the last range"}
		f.ok("each of %d tables has a whole range ahead", len(rows))
		all = append(all, f)
	}
	return all, nil
}

// checkEvents gives one finding for each subscription that has missed events, and one of what is kept.
func (c *Coordinator) checkEvents(ctx context.Context) ([]Finding, error) {
	subscriptions, err := outbox.List(ctx, c.pool, c.conf.Namespace, subscriptionsMax)
	if err != nil {
		return nil, err
	}
	kept, err := outbox.Retention(ctx, c.pool, c.conf.Namespace)
	if err != nil {
		return nil, err
	}
	server, _, err := session.Clock(ctx, c.pool)
	if err != nil {
		return nil, err
	}
	var all []Finding
	for _, s := range subscriptions {
		if s.Missed > 0 {
			f := Finding{Check: "events of " + s.Name, Value: float64(s.Missed), Unit: "events"}
			f.bad(`see what they meant to its receiver, then "pawl subscription resume --accept-gap"`,
				"%d of them, number %d to %d, were dropped before the subscription had them; it is paused", s.Missed, s.MissedFrom, s.MissedTo)
			all = append(all, f)
		}
	}
	f := Finding{Value: float64(kept.Ranges), Unit: "ranges"}
	f.ok("kept from number %d on, ranges in use: %d", kept.OldestSeq, kept.Ranges)
	var since time.Duration
	if kept.Since != nil {
		since = server.Sub(*kept.Since)
	}
	switch kept.By {
	case outbox.HeldByTransaction:
		f.grade(since, heldWarn, forgetBad, "see that it ends: COMMIT or ROLLBACK PREPARED, or pg_terminate_backend",
			fmt.Sprintf("the oldest range cannot leave: %s, open for %s, may still publish in it", kept.Who, short(since)))
	case outbox.HeldBySubscription:
		left := kept.Hold - kept.Keep - since
		text := fmt.Sprintf("the oldest range could have left %s ago, but for %s; in %s it leaves nevertheless", short(since), kept.Who, short(left))
		const remedy = `have it relayed, or remove it if nobody needs it: "pawl subscription remove"`
		f.grade(since, heldWarn, max(kept.Hold-kept.Keep-forgetBad, heldWarn), remedy, text)
	case outbox.HeldByMove:
		f.bad(`stop what still uses the old database, then run "pawl doctor --rebase" once`, "no range can leave: %s stands where another cluster's transaction ids count", kept.Who)
	case outbox.HeldByNothing, outbox.HeldByIDs, outbox.HeldByAge:
	}
	if kept.LeavingAt != nil && f.Level == LevelOK {
		f.grade(server.Sub(*kept.LeavingAt), leavingWarn, forgetBad, "end the transactions that have read it, prepared ones too",
			fmt.Sprintf("one range is being dropped since %s: an open transaction uses it", short(server.Sub(*kept.LeavingAt))))
	}
	return append(all, f), nil
}

func (f *Finding) ok(format string, args ...any) {
	f.Level, f.Message = LevelOK, fmt.Sprintf(format, args...)
}

func (f *Finding) warn(remedy, format string, args ...any) {
	f.Level, f.Remedy, f.Message = LevelWarn, remedy, fmt.Sprintf(format, args...)
}

func (f *Finding) bad(remedy, format string, args ...any) {
	f.Level, f.Remedy, f.Message = LevelBad, remedy, fmt.Sprintf(format, args...)
}

// grade warns from one limit on and calls it bad from another. Below both the finding stays as it is.
func (f *Finding) grade(d, warn, bad time.Duration, remedy, text string) {
	switch {
	case d > bad:
		f.bad(remedy, "%s", text)
	case d > warn:
		f.warn(remedy, "%s", text)
	}
}

func seconds(s float64) time.Duration {
	const longest = float64(1<<63-1) / float64(time.Second)
	return time.Duration(min(max(s, 0), longest*0.99) * float64(time.Second))
}

// short writes a duration for people to read.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	default:
		return fmt.Sprintf("%.0f days", d.Hours()/24)
	}
}
