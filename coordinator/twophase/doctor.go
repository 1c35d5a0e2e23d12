package twophase

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	doctorMax                 = 10 * time.Second // one participant
	serverOldest              = 14_00_00
	slotsWarn                 = 0.8         // of max_prepared_transactions
	foreignMax                = 1000        // prepared transactions looked at, the oldest first
	overdueBad                = time.Minute // past its deadline, and not settled
	preparedWarn, preparedBad = 5 * time.Minute, time.Hour

	levelOK, levelWarn, levelBad = "ok", "warn", "bad"
)

// Finding is what one check of a participant found.
type Finding struct {
	Check   string
	Level   string // "ok"; "warn": it works, and may not go on to; or "bad": a person must act
	Message string
	Remedy  string // "" if all is well
	Value   float64
	Unit    string
}

// Examined is a Participant that can be checked for what this package relies on.
type Examined interface {
	// Doctor checks it and changes nothing. ours tells whether a branch is of the coordinator that asks.
	Doctor(ctx context.Context, ours func(BranchID) bool) ([]Finding, error)
}

// Doctor checks all participants at the same time, each for up to 10 s: whether they are reached, and those that are Examined closely. It changes nothing. The error is ErrSchema, or the coordinator's database's.
func (m *Manager) Doctor(ctx context.Context) ([]Finding, error) {
	h, err := m.q.ReadGlobalHome(ctx)
	if err != nil {
		return nil, fmt.Errorf("doctor: %w", wrap(err))
	}
	ours := func(b BranchID) bool { return database(b.Home) == database(h.Home) }
	names := slices.Sorted(maps.Keys(m.participants))
	found := make([][]Finding, len(names))
	var group sync.WaitGroup
	for i, name := range names {
		group.Go(func() {
			p := m.participants[name]
			ctx, stop := context.WithTimeout(ctx, doctorMax)
			defer stop()
			var all []Finding
			var err error
			if examined, ok := p.(Examined); ok {
				all, err = examined.Doctor(ctx, ours)
			} else if _, err = p.Prepared(ctx); err == nil {
				all = []Finding{{Check: "participant " + name, Level: levelOK, Message: fmt.Sprintf("%s at %s is reached", p.Kind(), p.Address())}}
			}
			if err != nil {
				all = append(all, Finding{
					Check: "participant " + name, Level: levelBad, Remedy: "see that it runs and that its URL is right; what is prepared there stays locked until it returns",
					Message: fmt.Sprintf("%s at %s cannot be asked: %v", p.Kind(), p.Address(), err),
				})
			}
			found[i] = all
		})
	}
	group.Wait()
	return slices.Concat(found...), nil
}

// postgresFacts are what the checks of a Postgres go by.
type postgresFacts struct {
	Version    string
	VersionNum int
	Slots      int // max_prepared_transactions
	Prepared   int // in all databases
	Standby    bool
	Standbys   int
	Role       string
	Superuser  bool
	SetUp      bool
	Lacks      []string // rights on the tables
}

const postgresAsk = `
SELECT current_setting('server_version'), current_setting('server_version_num')::int, current_setting('max_prepared_transactions')::int,
  (SELECT count(*) FROM pg_catalog.pg_prepared_xacts)::int, pg_is_in_recovery(), (SELECT count(*) FROM pg_catalog.pg_stat_replication)::int,
  current_user::text, (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = current_user),
  (SELECT count(*) = 2 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'pawl_branch' AND c.relname IN ('witness', 'home')),
  ARRAY(SELECT w.what || ' on ' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN (VALUES ('witness', 'SELECT'), ('witness', 'INSERT'), ('witness', 'DELETE'), ('home', 'SELECT'), ('home', 'INSERT'), ('home', 'UPDATE')) w(name, what) ON w.name = c.relname
    WHERE n.nspname = 'pawl_branch' AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, w.what)))`

// Doctor checks the server's version and settings, the tables and rights, and what is prepared there for long, in whatever database.
func (p *PostgresDB) Doctor(ctx context.Context, ours func(BranchID) bool) ([]Finding, error) {
	var f postgresFacts
	err := p.pool.QueryRow(ctx, postgresAsk).Scan(&f.Version, &f.VersionNum, &f.Slots, &f.Prepared, &f.Standby, &f.Standbys, &f.Role, &f.Superuser, &f.SetUp, &f.Lacks)
	if err != nil {
		return nil, p.wrap("doctor", err)
	}
	prepared, err := p.checkPrepared(ctx, f, ours)
	return append([]Finding{p.checkServer(f), p.checkSlots(f), p.checkRights(f)}, prepared...), err
}

func (p *PostgresDB) checkServer(f postgresFacts) Finding {
	one := Finding{Check: "participant " + p.name, Level: levelOK, Value: float64(f.VersionNum), Message: fmt.Sprintf("PostgreSQL %s at %s", f.Version, p.Address())}
	switch {
	case f.VersionNum < serverOldest:
		one.bad("upgrade to PostgreSQL 14 or newer", "%s is older than 14", one.Message)
	case f.Standby:
		one.bad("connect to the primary: add target_session_attrs=read-write to the URL", "%s is a standby, which prepares nothing", one.Message)
	}
	return one
}

func (p *PostgresDB) checkSlots(f postgresFacts) Finding {
	const remedy = "set max_prepared_transactions to at least max_connections, on standbys first, and restart"
	one := Finding{Check: "prepares of " + p.name, Level: levelOK, Unit: "of max_prepared_transactions"}
	if f.Slots == 0 {
		one.bad(remedy, "max_prepared_transactions is 0: nothing can be prepared, and every transaction over it and another is aborted")
		return one
	}
	one.Value = float64(f.Prepared) / float64(f.Slots)
	one.Message = fmt.Sprintf("%d of %d are in use (max_prepared_transactions)", f.Prepared, f.Slots)
	if f.Standbys > 0 {
		one.Message += fmt.Sprintf("; %d read its log: on standbys it must be at least %d too, else they stop", f.Standbys, f.Slots)
	}
	if one.Value >= slotsWarn {
		one.Level, one.Remedy = levelWarn, remedy+"; see what stays prepared for long"
	}
	return one
}

func (p *PostgresDB) checkRights(f postgresFacts) Finding {
	one := Finding{Check: "rights at " + p.name, Level: levelOK, Message: fmt.Sprintf("role %s may do all that is needed", f.Role)}
	switch {
	case !f.SetUp:
		one.bad(`run "pawl tx setup" with this participant once, as the role that is to own the tables`, "schema pawl_branch with its tables is missing: nothing can be prepared")
	case len(f.Lacks) > 0:
		one.bad("GRANT USAGE ON SCHEMA pawl_branch and SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pawl_branch to it", "role %s lacks %s", f.Role, strings.Join(f.Lacks, ", "))
	}
	return one
}

// checkPrepared gives one finding of this coordinator's branches here, and one of all others on the server.
func (p *PostgresDB) checkPrepared(ctx context.Context, f postgresFacts, ours func(BranchID) bool) ([]Finding, error) {
	rows, err := p.pool.Query(ctx, `SELECT gid, owner::text, database::text, database = current_database(), extract(epoch FROM clock_timestamp() - prepared)::float8, clock_timestamp()
		FROM pg_catalog.pg_prepared_xacts ORDER BY prepared, gid LIMIT $1`, foreignMax)
	if err != nil {
		return nil, p.wrap("doctor", err)
	}
	defer rows.Close()
	own := Finding{Check: "prepared at " + p.name, Level: levelOK, Unit: "s", Message: "nothing is past its deadline"}
	foreign := Finding{Check: "others' prepared at " + p.name, Level: levelOK, Unit: "s", Message: "none for long"}
	overdue, locked, old := 0, 0, 0
	for rows.Next() {
		var gid, owner, database string
		var here bool
		var age float64
		var now time.Time
		if err := rows.Scan(&gid, &owner, &database, &here, &age, &now); err != nil {
			return nil, p.wrap("doctor", err)
		}
		b, err := ParseBranchID(gid)
		switch {
		case err == nil && ours(b) && (!here || b.Participant != p.name): // another participant's of this coordinator
		case err == nil && ours(b):
			if late := now.Sub(b.Deadline); late > overdueBad {
				overdue++
				own.overdue(overdue, late)
			}
			if owner != f.Role && !f.Superuser {
				locked++
				own.bad(`have all who prepare and recover connect as one role, or recover as a superuser; these: "pawl tx recover --participant" once as their role`,
					"%d were prepared by other roles, such as %s: role %s may not settle them", locked, owner, f.Role)
			}
		case age > preparedWarn.Seconds():
			old++
			if old > 1 {
				continue // the oldest comes first
			}
			foreign.Value = age
			foreign.Level = levelWarn
			if age > preparedBad.Seconds() {
				foreign.Level = levelBad
			}
			foreign.Remedy = "find who prepared it and have it settled; by hand, in its database and as its owner, COMMIT PREPARED or ROLLBACK PREPARED"
			foreign.Message = fmt.Sprintf("%q of role %s in database %s is prepared for %s: it keeps its locks, and what was deleted since from being vacuumed", gid, owner, database,
				time.Duration(age*float64(time.Second)).Round(time.Second))
		}
	}
	if old > 1 {
		foreign.Message += fmt.Sprintf("; %d more are old", old-1)
	}
	return []Finding{own, foreign}, p.wrap("doctor", rows.Err())
}

func (f *Finding) bad(remedy, format string, args ...any) {
	f.Level, f.Remedy, f.Message = levelBad, remedy, fmt.Sprintf(format, args...)
}

// overdue tells that n branches are past their deadlines, one of them for so long.
func (f *Finding) overdue(n int, late time.Duration) {
	f.Value = max(f.Value, late.Seconds())
	f.bad(`give it to a coordinator: "pawl serve --participant", or recover once: "pawl tx recover --participant"; "pawl tx list" tells what hinders it`,
		"%d are past their deadlines and not settled, the oldest for %s: their rows stay locked", n, time.Duration(f.Value*float64(time.Second)).Round(time.Second))
}
