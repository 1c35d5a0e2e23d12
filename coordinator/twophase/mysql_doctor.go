package twophase

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-dev/pawl/db"
)

const (
	mysqlDenied      = 1142 // a right on a table lacks
	mysqlDeniedAll   = 1227 // a privilege lacks
	mysqlLockWaitMax = 5 * time.Minute
	mysqlTablesMax   = 100 // of other engines that are counted
	mysqlTablesShown = 3
)

// mysqlFacts are what the checks of a MariaDB or a MySQL go by.
type mysqlFacts struct {
	variables map[string]string
	user      string
	database  string
	now       time.Time
	other     []string // tables of other engines than InnoDB, by name
	setUp     bool
	lacks     []string // rights on our tables, and privileges
}

// product is what the server is, and its version.
func (f mysqlFacts) product() string {
	if version := f.variables["version"]; !isMaria(version) {
		return "MySQL " + version
	}
	return "MariaDB " + strings.Replace(f.variables["version"], "-MariaDB", "", 1)
}

// Doctor checks the server's version and settings, the engines of tables, our tables and the user's rights, and what is prepared there for long, in whatever database. It needs no privilege; with PROCESS it also tells
// for how long others' transactions are prepared.
func (p *MySQLDB) Doctor(ctx context.Context, ours func(BranchID) bool) ([]Finding, error) {
	if err := p.look(ctx); err != nil && !errors.Is(err, ErrCannotPrepare) { // of which the first finding tells
		return nil, p.wrap("doctor", err)
	}
	f, err := p.facts(ctx)
	if err != nil {
		return nil, p.wrap("doctor", err)
	}
	all := append([]Finding{p.checkRights(f)}, p.checkServer(f)...)
	xids, err := xidsAt(ctx, p.db)
	if slices.Contains([]uint64{mysqlManagerError, mysqlDeniedAll}, db.MySQLNumber(err)) {
		f.lacks = append(f.lacks, "XA_RECOVER_ADMIN")
		all[0], err = p.checkRights(f), nil
	} else if err == nil {
		var prepared []Finding
		prepared, err = p.checkPrepared(ctx, f, xids, ours)
		all = append(all, prepared...)
	}
	return all, p.wrap("doctor", err)
}

// facts asks the server.
func (p *MySQLDB) facts(ctx context.Context) (mysqlFacts, error) {
	f := mysqlFacts{variables: map[string]string{}}
	err := eachRow(ctx, p.db, func(rows *sql.Rows) error {
		var name, value string
		err := rows.Scan(&name, &value)
		f.variables[strings.ToLower(name)] = value
		return err
	}, `SHOW VARIABLES WHERE Variable_name IN ('version', 'hostname', 'port', 'read_only', 'wsrep_on', 'innodb_flush_log_at_trx_commit', 'log_bin', 'sync_binlog', 'innodb_lock_wait_timeout', 'default_storage_engine')`)
	if err != nil {
		return f, err
	}
	var now float64
	if err := p.db.QueryRowContext(ctx, "SELECT CURRENT_USER(), DATABASE(), UNIX_TIMESTAMP(NOW(6))").Scan(&f.user, &f.database, &now); err != nil {
		return f, err
	}
	f.now = time.UnixMicro(int64(now * 1e6))
	err = eachRow(ctx, p.db, func(rows *sql.Rows) error {
		var name, engine string
		err := rows.Scan(&name, &engine)
		f.other = append(f.other, name+" ("+engine+")")
		return err
	}, "SELECT table_name, COALESCE(engine, '?') FROM information_schema.tables WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' AND COALESCE(engine, '?') <> 'InnoDB' ORDER BY table_name LIMIT ?", mysqlTablesMax)
	if err != nil {
		return f, err
	}
	return f, p.askRights(ctx, &f)
}

// askRights asks what the user may do with our tables: to explain a statement takes the rights that it takes, and changes nothing.
func (p *MySQLDB) askRights(ctx context.Context, f *mysqlFacts) error {
	f.setUp = true
	for _, of := range []struct{ right, table, statement string }{
		{"SELECT", "witness", "SELECT branch FROM pawl_branch_witness"},
		{"INSERT", "witness", "INSERT INTO pawl_branch_witness (branch, at, connection, fence) VALUES ('', NOW(), 0, false)"},
		{"DELETE", "witness", "DELETE FROM pawl_branch_witness WHERE branch = ''"},
		{"SELECT", "home", "SELECT lsn FROM pawl_branch_home"},
		{"INSERT", "home", "INSERT INTO pawl_branch_home (home, lsn, at) VALUES ('', 0, NOW())"},
		{"UPDATE", "home", "UPDATE pawl_branch_home SET lsn = 0 WHERE home = ''"},
	} {
		err := eachRow(ctx, p.db, func(*sql.Rows) error { return nil }, "EXPLAIN "+of.statement)
		switch db.MySQLNumber(err) {
		case mysqlNoTable:
			f.setUp = false
		case mysqlDenied:
			f.lacks = append(f.lacks, of.right+" on pawl_branch_"+of.table)
		default:
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// eachRow calls for every row.
func eachRow(ctx context.Context, on *sql.DB, row func(*sql.Rows) error, query string, args ...any) error {
	rows, err := on.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// checkServer gives findings of the server, its settings and its tables.
func (p *MySQLDB) checkServer(f mysqlFacts) []Finding {
	v := f.variables
	server := Finding{Check: "participant " + p.name, Level: levelOK, Message: fmt.Sprintf("%s at %s:%s/%s", f.product(), v["hostname"], v["port"], f.database)}
	switch {
	case !mysqlKeeps(v["version"]):
		server.bad("upgrade to MariaDB 10.5, MySQL 8.0, or newer", "%s rolls back what was prepared when its connection ends", server.Message)
	case v["wsrep_on"] == "ON":
		server.bad("let another server take part, or only read here: Galera has no XA", "%s is of a Galera cluster (wsrep_on), which cannot prepare", server.Message)
	case v["read_only"] != "OFF" && v["read_only"] != "":
		server.bad("connect to the primary", "%s is read only (read_only), as replicas are", server.Message)
	}

	const lost = "a crash of the machine can lose what was prepared or committed before it"
	disk := Finding{Check: "durability of " + p.name, Level: levelOK, Message: "what is prepared is on the disk"}
	flush := v["innodb_flush_log_at_trx_commit"]
	if flushed := flush == "1" || flush == "3" && isMaria(v["version"]); !flushed { // 3 flushes more often
		disk.bad("SET GLOBAL innodb_flush_log_at_trx_commit = 1, and in the server's configuration", "innodb_flush_log_at_trx_commit is %s: %s", flush, lost)
	} else if v["log_bin"] == "ON" && v["sync_binlog"] != "1" {
		disk.bad("SET GLOBAL sync_binlog = 1, and in the server's configuration", "sync_binlog is %s, and log_bin is on: %s", v["sync_binlog"], lost)
	}

	wait := Finding{Check: "lock waits at " + p.name, Level: levelOK, Unit: "s", Message: fmt.Sprintf("given up after %s s (innodb_lock_wait_timeout)", v["innodb_lock_wait_timeout"])}
	if seconds, err := strconv.Atoi(v["innodb_lock_wait_timeout"]); err == nil {
		wait.Value = float64(seconds)
		if time.Duration(seconds)*time.Second > mysqlLockWaitMax {
			wait.Level, wait.Remedy = levelWarn, "SET GLOBAL innodb_lock_wait_timeout = 50, which is the default, and in the server's configuration"
			wait.Message += ": who meets a row of a branch that is prepared, and cannot be settled, waits as long, and keeps what it has locked"
		}
	}
	return []Finding{server, disk, wait, p.checkEngines(f)}
}

// checkEngines tells of what does not roll back.
func (p *MySQLDB) checkEngines(f mysqlFacts) Finding {
	const stays = "what a transaction writes there stays when it is rolled back"
	one := Finding{Check: "engines of " + p.name, Level: levelOK, Message: "all tables are InnoDB's"}
	if engine := f.variables["default_storage_engine"]; !strings.EqualFold(engine, "InnoDB") {
		one.Level, one.Remedy = levelWarn, "SET GLOBAL default_storage_engine = InnoDB, and in the server's configuration"
		one.Message = fmt.Sprintf("default_storage_engine is %s: new tables are not InnoDB's, and %s", engine, stays)
	}
	if n := len(f.other); n > 0 {
		one.Level, one.Value, one.Unit = levelWarn, float64(n), "tables"
		one.Remedy = "ALTER TABLE … ENGINE = InnoDB, before they take part"
		names := strings.Join(f.other[:min(n, mysqlTablesShown)], ", ")
		if n > mysqlTablesShown {
			names += ", …"
		}
		one.Message = fmt.Sprintf("%d tables are not InnoDB's: %s; %s", n, names, stays)
	}
	if i := slices.IndexFunc(f.other, func(name string) bool { return strings.HasPrefix(name, "pawl_branch_") }); i >= 0 {
		one.bad("ALTER TABLE … ENGINE = InnoDB", "%s is Pawl's own: witnesses there do not tell what was committed", f.other[i])
	}
	return one
}

func (p *MySQLDB) checkRights(f mysqlFacts) Finding {
	one := Finding{Check: "rights at " + p.name, Level: levelOK, Message: fmt.Sprintf("user %s may do all that is needed", f.user)}
	switch {
	case !f.setUp:
		one.bad(`run "pawl tx setup" with this participant once`, "tables pawl_branch_witness and pawl_branch_home are missing: nothing can be prepared")
	case len(f.lacks) > 0:
		one.bad("GRANT it to the user", "user %s lacks %s", f.user, strings.Join(f.lacks, ", "))
	}
	return one
}

// checkPrepared gives one finding of this coordinator's branches here, and one of all others on the server. Since when they are prepared the server does not tell: our branches have their deadline in their names, and InnoDB tells
// when transactions began whose connections have ended.
func (p *MySQLDB) checkPrepared(ctx context.Context, f mysqlFacts, xids []mysqlXID, ours func(BranchID) bool) ([]Finding, error) {
	own := Finding{Check: "prepared at " + p.name, Level: levelOK, Unit: "s", Message: "nothing is past its deadline"}
	foreign := Finding{Check: "others' prepared at " + p.name, Level: levelOK, Unit: "s", Message: "none"}
	overdue, others := 0, []mysqlXID{}
	var oldest time.Duration // of others
	for _, x := range xids {
		b, err := ParseBranchID(x.name())
		late := f.now.Sub(b.Deadline)
		switch {
		case x.format != mysqlFormat || err != nil:
			others = append(others, x)
		case !ours(b):
			others, oldest = append(others, x), max(oldest, late)
		case b.Participant == p.name && late > overdueBad: // else another participant's of this coordinator
			overdue++
			own.overdue(overdue, late)
		}
	}
	if len(others) == 0 {
		return []Finding{own, foreign}, nil
	}
	since, known, err := p.detached(ctx)
	if err != nil {
		return nil, err
	}
	foreign.Message = fmt.Sprintf("%d, such as %s", len(others), others[0])
	switch oldest = max(oldest, since); {
	case oldest > preparedWarn:
		foreign.Level, foreign.Value = levelWarn, oldest.Seconds()
		if oldest > preparedBad {
			foreign.Level = levelBad
		}
		foreign.Message += fmt.Sprintf(", for up to %s: they keep their locks", oldest.Round(time.Second))
		foreign.Remedy = "find who prepared them and have them settled; by hand, XA COMMIT or XA ROLLBACK with a name that XA RECOVER lists"
	case !known:
		foreign.Message += fmt.Sprintf("; since when is not known: user %s lacks PROCESS", f.user)
	default:
		foreign.Message += ", none for long"
	}
	return []Finding{own, foreign}, nil
}

// detached is for how long the oldest transaction is at work that no connection has, as those do that were prepared by one that has ended; the server's start counts as their begin. known: the user may see that.
func (p *MySQLDB) detached(ctx context.Context) (age time.Duration, known bool, err error) {
	var seconds sql.NullFloat64
	err = p.db.QueryRowContext(ctx, "SELECT MAX(TIMESTAMPDIFF(SECOND, trx_started, NOW())) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = 0").Scan(&seconds)
	if db.MySQLNumber(err) == mysqlDeniedAll {
		return 0, false, nil
	}
	return time.Duration(seconds.Float64) * time.Second, err == nil, err
}
