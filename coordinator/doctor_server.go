package coordinator

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

func (c *Coordinator) checkServer(ctx context.Context) ([]Finding, error) {
	s, err := c.q.ReadServer(ctx)
	if err != nil {
		return nil, err
	}
	f := Finding{Value: float64(s.VersionNum)}
	f.ok("PostgreSQL %s", s.Version)
	switch {
	case s.VersionNum < serverOldest:
		f.bad("upgrade to PostgreSQL 14 or newer", "PostgreSQL %s is older than 14", s.Version)
	case s.Standby:
		f.bad("connect to the primary: add target_session_attrs=read-write to the URL", "PostgreSQL %s is a standby, which takes no writes", s.Version)
	case !s.Autovacuum:
		f.bad("set autovacuum = on", "PostgreSQL %s has autovacuum off: tables bloat, and at last it stops to save its transaction ids", s.Version)
	case !s.Fsync || !s.FullPageWrites:
		f.warn("set fsync and full_page_writes on, unless this is a database for development", "PostgreSQL %s has fsync or full_page_writes off: a crash of the machine may destroy it", s.Version)
	}
	return []Finding{f}, nil
}

// checkConnection finds a pooler: through one the process id that Postgres gave at the start is not that of the backend that answers.
func (c *Coordinator) checkConnection(ctx context.Context) ([]Finding, error) {
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	first, err := db.New(conn).ReadBackendPID(ctx)
	if err != nil {
		return nil, err
	}
	var f Finding
	f.ok("direct, without a pooler")
	if uint32(first) == conn.Conn().PgConn().PID() {
		return []Finding{f}, nil
	}
	f.ok("through a pooler that keeps one backend for a connection")
	changes, err := c.backendChanges(ctx, conn, first)
	if changes {
		f.warn("workers: poll only (Config.PollOnly, --poll-only); migrations and LISTEN: the direct URL of Postgres",
			"through a pooler in transaction mode: hints do not arrive, and what a session sets is lost")
	}
	return []Finding{f}, err
}

func (c *Coordinator) checkClock(ctx context.Context) ([]Finding, error) {
	_, ahead, err := session.Clock(ctx, c.pool)
	if err != nil {
		return nil, err
	}
	f := Finding{Value: ahead.Seconds(), Unit: "s"}
	side := "ahead of"
	if ahead < 0 {
		side = "behind"
	}
	text := fmt.Sprintf("this machine is %s %s the server", short(ahead.Abs()), side)
	f.ok("%s", text)
	if ahead.Abs() > clockWarn {
		f.warn("keep both on NTP; Pawl goes by the server's clock alone, but times given as dates and those in logs will differ", "%s", text)
	}
	return []Finding{f}, nil
}

func (c *Coordinator) checkTransactions(ctx context.Context) ([]Finding, error) {
	s, err := c.q.ReadServer(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := c.q.ListOldTransactions(ctx)
	if err != nil {
		return nil, err
	}
	f := Finding{Unit: "s"}
	f.ok("none open")
	for _, r := range rows {
		age := seconds(r.AgeS)
		f.Value = r.AgeS
		text := fmt.Sprintf("the oldest is open for %s (%s)", short(age), holder(r.Pid, r.Database, r.Role, r.Application, r.State))
		f.ok("%s", text)
		f.grade(age, transactionWarn, transactionBad, fmt.Sprintf("end it (SELECT pg_terminate_backend(%d)), and see why it stays open", r.Pid),
			text+": nothing that was deleted since can be vacuumed")
	}
	if !s.SeesAll && f.Level == LevelOK {
		f.warn("GRANT pg_monitor to this role", "only those of this role can be seen")
	}
	return []Finding{f}, nil
}

func (c *Coordinator) checkIdle(ctx context.Context) ([]Finding, error) {
	rows, err := c.q.ListIdleTransactions(ctx)
	if err != nil {
		return nil, err
	}
	f := Finding{Unit: "s"}
	f.ok("none")
	for _, r := range rows {
		idle := seconds(r.IdleS)
		f.Value = r.IdleS
		text := fmt.Sprintf("one does nothing in an open transaction for %s (%s)", short(idle), holder(r.Pid, r.Database, r.Role, r.Application, ""))
		f.ok("%s", text)
		f.grade(idle, idleWarn, idleBad, fmt.Sprintf("end it (SELECT pg_terminate_backend(%d)), or set idle_in_transaction_session_timeout", r.Pid), text)
	}
	return []Finding{f}, nil
}

func (c *Coordinator) checkPrepared(ctx context.Context) ([]Finding, error) {
	p, err := c.q.ReadPreparedTransactions(ctx)
	if err != nil {
		return nil, err
	}
	f := Finding{Value: p.OldestS, Unit: "s"}
	f.ok("none")
	if p.Prepared > 0 {
		age := seconds(p.OldestS)
		text := fmt.Sprintf("%d, the oldest for %s", p.Prepared, short(age))
		f.ok("%s", text)
		f.grade(age, preparedWarn, preparedBad, "find its coordinator in pg_prepared_xacts and have it settled; by hand COMMIT PREPARED or ROLLBACK PREPARED",
			text+": they hold their locks until they are settled")
	}
	return []Finding{f}, nil
}

func (c *Coordinator) checkSlots(ctx context.Context) ([]Finding, error) {
	slots, err := c.q.ListSlots(ctx)
	if err != nil {
		return nil, err
	}
	f := Finding{Unit: "bytes"}
	f.ok("%d, none holds much back", len(slots))
	if len(slots) == 0 {
		f.ok("none")
	}
	for _, s := range slots { // those that keep the most first
		f.Value = max(f.Value, s.RetainedBytes)
		const remedy = "bring its reader back, or drop it (SELECT pg_drop_replication_slot(…))"
		switch {
		case f.Level != LevelOK:
		case s.WalStatus == "lost":
			f.warn("drop it (SELECT pg_drop_replication_slot(…)) and set its reader up anew", "slot %s has lost what its reader needs", s.Name)
		case s.RetainedBytes > slotBadBytes:
			f.bad(remedy, "slot %s keeps %.1f GB of WAL from being removed", s.Name, s.RetainedBytes/(1<<30))
		case s.RetainedBytes > slotWarnBytes, !s.Active:
			f.warn(remedy, "slot %s (active: %t) keeps %.1f MB of WAL from being removed", s.Name, s.Active, s.RetainedBytes/(1<<20))
		}
	}
	return []Finding{f}, nil
}

func (c *Coordinator) checkNotify(ctx context.Context) ([]Finding, error) {
	used, err := c.q.ReadNotifyQueue(ctx)
	if err != nil {
		return nil, err
	}
	f := Finding{Value: used, Unit: "of the queue"}
	f.ok("%.1f %% of the server's queue used", used*100)
	const remedy = "a session that listens does not read, or is in an open transaction for long: end it (pg_stat_activity). When the queue is full every NOTIFY fails"
	switch {
	case used > notifyBad:
		f.bad(remedy, "%.0f %% of the server's queue used", used*100)
	case used > notifyWarn:
		f.warn(remedy, "%.0f %% of the server's queue used", used*100)
	}
	return []Finding{f}, nil
}

func (c *Coordinator) checkDead(ctx context.Context) ([]Finding, error) {
	tables, err := c.q.ListDeadRows(ctx)
	if err != nil {
		return nil, err
	}
	f := Finding{Unit: "rows"}
	f.ok("none to speak of")
	for _, t := range tables { // those with the most first
		f.Value = max(f.Value, float64(t.Dead))
		vacuumed := "never"
		if t.VacuumedS >= 0 {
			vacuumed = short(seconds(t.VacuumedS)) + " ago"
		}
		if t.Dead > deadWarnRows && t.Dead > t.Live && f.Level == LevelOK {
			f.warn("see what holds vacuum up: old transactions, prepared ones and slots, above; else VACUUM the table",
				"pawl.%s has %d dead rows and %d live ones, last vacuumed: %s", t.Name, t.Dead, t.Live, vacuumed)
		}
	}
	return []Finding{f}, nil
}

func (c *Coordinator) checkXIDs(ctx context.Context) ([]Finding, error) {
	age, err := c.q.ReadXIDAge(ctx)
	if err != nil {
		return nil, err
	}
	f := Finding{Value: float64(age), Unit: "transactions"}
	text := fmt.Sprintf("the oldest row that is not frozen is %d million transactions old", age/1_000_000)
	f.ok("%s", text)
	const remedy = "VACUUM FREEZE the database, and see what held autovacuum up; at 2,000 million Postgres takes no more writes"
	switch {
	case age > xidBad:
		f.bad(remedy, "%s", text)
	case age > xidWarn:
		f.warn(remedy, "%s", text)
	}
	return []Finding{f}, nil
}

// backendChanges tells whether another backend answers on a connection once a second connection, in a transaction, uses the one that answered before.
func (c *Coordinator) backendChanges(ctx context.Context, conn *pgxpool.Conn, before int32) (bool, error) {
	tx, err := c.pool.Begin(ctx)
	if err != nil {
		return false, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := db.New(tx).ReadBackendPID(ctx); err != nil {
		return false, err
	}
	now, err := db.New(conn).ReadBackendPID(ctx)
	return now != before, err
}

// holder names who holds a transaction open.
func holder(pid int32, database, role, application, state string) string {
	parts := []string{fmt.Sprintf("pid %d", pid)}
	for _, p := range []struct{ what, is string }{{"database", database}, {"role", role}, {"application", application}, {"state", state}} {
		if p.is != "" {
			parts = append(parts, p.what+" "+p.is)
		}
	}
	return strings.Join(parts, ", ")
}
