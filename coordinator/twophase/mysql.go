package twophase

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pawl-dev/pawl/db"
)

const (
	mysqlFormat = 0x7061776c // "pawl": what tells our XA transactions from those of others
	mysqlBytes  = 64         // of each half of an XA transaction's name, at most

	idleMin   = 5 * time.Second // how long a connection that keeps a branch which is to be settled was idle when it is ended
	freeTries = 20              // looks whether it is gone then
	freeWait  = 50 * time.Millisecond

	forgetStep = 1000 // witnesses removed in one transaction

	// Numbers of errors: those of XA, and a few others.
	mysqlUnknownXID   = 1397 // XAER_NOTA
	mysqlInvalid      = 1398 // XAER_INVAL
	mysqlState        = 1399 // XAER_RMFAIL: not in this state
	mysqlRolledBack   = 1402 // XA_RBROLLBACK
	mysqlRolledBack2  = 1613 // XA_RBTIMEOUT
	mysqlDeadlock     = 1614 // XA_RBDEADLOCK
	mysqlDuplicate    = 1062 // of a key
	mysqlNoTable      = 1146
	mysqlNoThread     = 1094
	mysqlManagerError = 1401 // XAER_RMERR: XA RECOVER answers so where a privilege lacks
)

// MySQLDB is a participant that is a MariaDB or a MySQL database.
type MySQLDB struct {
	name string
	db   *sql.DB

	mu      sync.Mutex
	address string // as the server says; "": it was not asked yet
	maria   bool   // it is MariaDB; known with the address, and unchanged then
}

// MySQL makes a participant of a database of MariaDB 10.5, MySQL 8.0, or newer, which is the default database of the connections of db; by XA, which Galera clusters do not have. All tables that take part must be
// InnoDB's, and innodb_flush_log_at_trx_commit must be 1, or what was prepared does not outlive a crash of the machine. Who recovers must be the user who prepared, or may end its connections (MariaDB: CONNECTION
// ADMIN); on MySQL both need XA_RECOVER_ADMIN. Recovery takes connections of db: if transactions that wait for locks of a branch in doubt may use them all up, it waits as long as they do, up to
// innodb_lock_wait_timeout (50 s).
//
// Any driver will do whose errors have the server's number in a field Number or Code, as github.com/go-sql-driver/mysql's.
func MySQL(name string, db *sql.DB) *MySQLDB { return &MySQLDB{name: name, db: db} }

// MySQLTx is what a transaction's branch at a MySQLDB can be asked. After its end it refuses with sql.ErrTxDone.
type MySQLTx = db.MySQLTx

// Conn gives the transaction's branch here, which begins at the first call; READ COMMITTED. The global transaction ends it: the server refuses COMMIT, ROLLBACK, BEGIN, LOCK TABLES and what changes the schema (1399).
// It may not say XA statements, nor USE, nor change settings of its session, whose connection goes back to the pool. A statement that fails undoes only itself, as ever in MySQL, and what went before it is
// committed if the function goes on; after a deadlock nothing can be committed. A context that ends while a statement runs closes the connection, and with it the branch. Rows that are still open at the end
// may be an abort. Not safe for concurrent use; branches at different participants may be used at the same time.
//
// Who sends a statement counts as a writer, and prepares: nothing tells without a privilege that a branch has only read. What is only read is better asked elsewhere than in the branch.
func (p *MySQLDB) Conn(ctx context.Context, t *Tx) (MySQLTx, error) {
	b, err := t.enlist(ctx, p)
	if err != nil {
		return nil, err
	}
	return b.(*mysqlBranch).lent, nil
}

// Name is the participant's name.
func (p *MySQLDB) Name() string { return p.name }

// Kind is "mysql".
func (p *MySQLDB) Kind() string { return "mysql" }

// Address is host, port and database as the server says, once it was asked anything.
func (p *MySQLDB) Address() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.address
}

func (p *MySQLDB) isMaria() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.maria
}

// look asks the server once who it is, and whether it can keep what was prepared.
func (p *MySQLDB) look(ctx context.Context) error {
	if p.Address() != "" {
		return nil
	}
	var address, version string
	var database sql.NullString
	if err := p.db.QueryRowContext(ctx, "SELECT CONCAT(@@hostname, ':', @@port), DATABASE(), VERSION()").Scan(&address, &database, &version); err != nil {
		return err
	}
	if !database.Valid {
		return fmt.Errorf("%w: connections have no default database", ErrInvalid)
	}
	if !mysqlKeeps(version) {
		return fmt.Errorf("%w: version %s: MariaDB 10.5 or MySQL 8.0 is the first that keeps what was prepared when its connection ends", ErrCannotPrepare, version)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.address, p.maria = address+"/"+database.String, isMaria(version)
	return nil
}

// mysqlKeeps tells of a version whether it keeps what was prepared when its connection ends.
func mysqlKeeps(version string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return false
	}
	if isMaria(version) {
		return major > 10 || major == 10 && minor >= 5
	}
	return major >= 8
}

func isMaria(version string) bool { return strings.Contains(version, "MariaDB") }

// The witnesses: what a committed branch leaves behind, or (fence) what keeps one from being committed. And homes: how far the logs of coordinators' databases were seen to be. Times are UTC.
var mysqlSetup = []string{
	`CREATE TABLE IF NOT EXISTS pawl_branch_witness (branch varchar(200) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY, at datetime(6) NOT NULL, connection bigint unsigned NOT NULL,
		fence boolean NOT NULL, KEY pawl_branch_witness_at (at)) ENGINE = InnoDB`,
	"CREATE TABLE IF NOT EXISTS pawl_branch_home (home varchar(200) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY, lsn bigint NOT NULL, at datetime(6) NOT NULL) ENGINE = InnoDB",
}

// Setup makes tables pawl_branch_witness and pawl_branch_home, if they are not there.
func (p *MySQLDB) Setup(ctx context.Context) error {
	if err := p.look(ctx); err != nil {
		return p.wrap("set up", err)
	}
	for _, statement := range mysqlSetup {
		if _, err := p.db.ExecContext(ctx, statement); err != nil {
			return p.wrap("set up", err)
		}
	}
	return nil
}

func (p *MySQLDB) wrap(what string, err error) error {
	switch number := db.MySQLNumber(err); {
	case err == nil:
		return nil
	case number == mysqlNoTable && strings.Contains(err.Error(), "pawl_branch_"):
		err = fmt.Errorf("%w: run Setup, or \"pawl tx setup\", on it once (%w)", ErrNotSetUp, err)
	case number == mysqlManagerError && what == "list":
		err = fmt.Errorf("%w (does the user have XA_RECOVER_ADMIN?)", err)
	}
	return fmt.Errorf("participant %s: %s: %w", p.name, what, err)
}

// mysqlRefused tells of what XA PREPARE, or a commit in one phase, answered that it did certainly not do so: the server says so, or it was not sent.
func mysqlRefused(err error) bool {
	switch db.MySQLNumber(err) {
	case mysqlUnknownXID, mysqlInvalid, mysqlState, mysqlRolledBack, mysqlRolledBack2, mysqlDeadlock:
		return true
	}
	return errors.Is(err, driver.ErrBadConn)
}

var xidForm = regexp.MustCompile(`^[A-Za-z0-9:_.-]+$`)

// xid names a branch in XA statements, which take literals only.
func xid(id BranchID) (string, error) {
	for _, half := range []string{id.Global(), id.Branch()} {
		if len(half) > mysqlBytes || !xidForm.MatchString(half) {
			return "", fmt.Errorf("%w: branch %s: %q is no half of an XA name, 1 to %d bytes of letters, digits, colons, dots, hyphens and underscores", ErrInvalid, id, half, mysqlBytes)
		}
	}
	return fmt.Sprintf("'%s','%s',%d", id.Global(), id.Branch(), mysqlFormat), nil
}

// Begin begins a branch.
func (p *MySQLDB) Begin(ctx context.Context, id BranchID) (Branch, error) {
	name, err := xid(id)
	if err == nil {
		err = p.look(ctx)
	}
	if err != nil {
		return nil, p.wrap("begin", err)
	}
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return nil, p.wrap("begin", err)
	}
	b := &mysqlBranch{p: p, conn: conn, id: id, xid: name, lent: db.LendMySQL(conn)}
	for _, statement := range []string{"SET TRANSACTION ISOLATION LEVEL READ COMMITTED", "XA START " + name} {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			db.DropMySQL(b.conn)
			return nil, p.wrap("begin", err)
		}
	}
	b.open = true
	return b, nil
}

// Settle ends a prepared branch. MariaDB lets only the connection that prepared do so, as long as it is there: ErrBusy. One that was idle for 5 s is ended for that: who asks knows what is decided, and the process
// at its other end hangs, or went down with its machine, which the server would notice hours later.
func (p *MySQLDB) Settle(ctx context.Context, id BranchID, commit bool) error {
	_, err := xid(id)
	if err == nil {
		err = p.look(ctx)
	}
	if err != nil {
		return p.wrap("settle", err)
	}
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return p.wrap("settle", err)
	}
	defer conn.Close()
	if !p.isMaria() {
		return p.settle(ctx, conn, id, commit)
	}
	for _, slack := range []int{-1, 1} { // a branch that is still kept was prepared since the server was started, by a connection that is there
		if err := p.free(ctx, conn, id, slack); err != nil {
			return err
		}
		if err = p.settle(ctx, conn, id, commit); !errors.Is(err, ErrBusy) {
			break
		}
	}
	if err != nil {
		return err
	}
	return p.check(ctx, conn, id, commit)
}

// free waits until no connection keeps a branch, if one does that is to be ended, else it gives ErrBusy. To look is a must: while a connection that has prepared ends, MariaDB (10.11, tried) lets others end the branch
// by name, says that it is done, and forgets the name, but not the branch, whose locks then stay until the server is started again.
func (p *MySQLDB) free(ctx context.Context, conn *sql.Conn, id BranchID, slack int) error {
	for try := 0; ; try++ {
		keeper, idle, err := p.keeper(ctx, conn, id, slack)
		switch {
		case err != nil:
			return p.wrap("look who prepared", err)
		case keeper == 0:
			return nil
		}
		if held, err := p.lists(ctx, conn, id); err != nil || !held { // the connection goes on with others
			return err
		}
		switch {
		case try == freeTries || try == 0 && !idle:
			return ErrBusy
		case try == 0:
			if _, err := conn.ExecContext(ctx, "KILL "+strconv.FormatUint(keeper, 10)); err != nil && db.MySQLNumber(err) != mysqlNoThread {
				return p.wrap("end the connection that prepared", err)
			}
		}
		pause(ctx, freeWait)
	}
}

// keeper tells which connection has prepared a branch and is still there, 0 for none: the witness says so, committed or not, unless it was written before the server was started, which numbers
// connections anew. The server tells that to the second: with a slack of -1 one that was written in the first second is not believed, with 1 one from the second before is.
func (p *MySQLDB) keeper(ctx context.Context, conn *sql.Conn, id BranchID, slack int) (keeper uint64, idle bool, err error) {
	err = dirty(ctx, conn, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `SELECT w.connection, l.command = 'Sleep' AND l.time >= ? FROM pawl_branch_witness w JOIN information_schema.processlist l ON l.id = w.connection
			WHERE w.branch = ? AND NOT w.fence AND w.at >= UTC_TIMESTAMP() - INTERVAL (SELECT variable_value + ? FROM information_schema.global_status WHERE variable_name = 'UPTIME') SECOND`,
			int(idleMin/time.Second), id.String(), slack).Scan(&keeper, &idle)
	})
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return keeper, idle, err
}

// check looks whether a branch was really settled as the server says: see free.
func (p *MySQLDB) check(ctx context.Context, conn *sql.Conn, id BranchID, commit bool) (err error) {
	var n int
	count := "SELECT COUNT(*) FROM pawl_branch_witness WHERE branch = '" + id.String() + "'"
	if commit {
		err = conn.QueryRowContext(ctx, count).Scan(&n)
	} else {
		err = dirty(ctx, conn, func(tx *sql.Tx) error { return tx.QueryRowContext(ctx, count).Scan(&n) })
	}
	if err == nil && (n == 1) != commit {
		err = errors.New("the server says that it has settled the branch, and has not: it keeps its locks, without a name, until it is started again, and lists it then")
	}
	return p.wrap("settle", err)
}

// dirty reads what is not committed, too.
func dirty(ctx context.Context, conn *sql.Conn, read func(*sql.Tx) error) error {
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadUncommitted})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	return read(tx)
}

func (p *MySQLDB) settle(ctx context.Context, conn *sql.Conn, id BranchID, commit bool) error {
	what := "XA ROLLBACK "
	if commit {
		what = "XA COMMIT "
	}
	name, err := xid(id)
	if err != nil {
		return p.wrap("settle", err)
	}
	_, err = conn.ExecContext(ctx, what+name)
	if db.MySQLNumber(err) != mysqlUnknownXID {
		return p.wrap("settle", err)
	}
	busy, err := p.lists(ctx, conn, id)
	switch {
	case err != nil:
		return err
	case busy:
		return ErrBusy
	}
	return ErrAbsent
}

// lists tells whether the server lists a branch as prepared.
func (p *MySQLDB) lists(ctx context.Context, conn *sql.Conn, id BranchID) (bool, error) {
	all, err := p.recoverable(ctx, conn)
	return slices.Contains(all, id.String()), p.wrap("list", err)
}

// Witnessed looks for the witness. It waits for a transaction that has written it and not ended: XA COMMIT by another may be on its way.
func (p *MySQLDB) Witnessed(ctx context.Context, id BranchID) (committed bool, err error) {
	var fence bool
	err = p.db.QueryRowContext(ctx, "SELECT fence FROM pawl_branch_witness WHERE branch = ? LOCK IN SHARE MODE", id.String()).Scan(&fence)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil && !fence, p.wrap("witness", err)
}

// Fence takes the witness's place, where it is free: it waits for a transaction that has written it and not ended.
func (p *MySQLDB) Fence(ctx context.Context, id BranchID) (committed bool, err error) {
	_, err = p.db.ExecContext(ctx, "INSERT INTO pawl_branch_witness (branch, at, connection, fence) VALUES (?, UTC_TIMESTAMP(6), 0, true)", id.String())
	if err != nil && db.MySQLNumber(err) != mysqlDuplicate {
		return false, p.wrap("fence", err)
	}
	return p.Witnessed(ctx, id)
}

// Prepared lists the prepared branches of this participant's name at the server, whatever their database: XA does not tell. When they were prepared it does not tell either.
func (p *MySQLDB) Prepared(ctx context.Context) ([]Prepared, error) {
	if err := p.look(ctx); err != nil {
		return nil, p.wrap("list", err)
	}
	names, err := p.recoverable(ctx, p.db)
	if err != nil {
		return nil, p.wrap("list", err)
	}
	var all []Prepared
	for _, name := range names {
		if id, err := ParseBranchID(name); err == nil && id.Participant == p.name {
			all = append(all, Prepared{Branch: id})
		}
	}
	return all, nil
}

// recoverable gives the names of the server's prepared transactions that have our format.
func (p *MySQLDB) recoverable(ctx context.Context, conn mysqlAsked) ([]string, error) {
	xids, err := xidsAt(ctx, conn)
	var all []string
	for _, x := range xids {
		if x.format == mysqlFormat {
			all = append(all, x.name())
		}
	}
	return all, err
}

// mysqlAsked is a connection, or a pool of them.
type mysqlAsked interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// mysqlXID names a prepared transaction, of whomever.
type mysqlXID struct {
	format         int64
	global, branch string
}

// name is the branch's, if the format is ours.
func (x mysqlXID) name() string { return prefix + x.global + ":" + x.branch }

// String is as XA statements take it, where it is printable.
func (x mysqlXID) String() string { return fmt.Sprintf("%q,%q,%d", x.global, x.branch, x.format) }

// xidsAt lists all that is prepared at the server.
func xidsAt(ctx context.Context, conn mysqlAsked) ([]mysqlXID, error) {
	rows, err := conn.QueryContext(ctx, "XA RECOVER")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []mysqlXID
	for rows.Next() {
		var x mysqlXID
		var global, branch int
		var data []byte
		if err := rows.Scan(&x.format, &global, &branch, &data); err != nil {
			return nil, err
		}
		if len(data) != global+branch {
			continue // no name to go by
		}
		x.global, x.branch = string(data[:global]), string(data[global:])
		all = append(all, x)
	}
	return all, rows.Err()
}

// See raises a home's farthest.
func (p *MySQLDB) See(ctx context.Context, home string, lsn int64) (farthest int64, err error) {
	_, err = p.db.ExecContext(ctx, "INSERT INTO pawl_branch_home (home, lsn, at) VALUES (?, ?, UTC_TIMESTAMP(6)) ON DUPLICATE KEY UPDATE lsn = GREATEST(lsn, ?), at = UTC_TIMESTAMP(6)", home, lsn, lsn)
	if err == nil {
		err = p.db.QueryRowContext(ctx, "SELECT lsn FROM pawl_branch_home WHERE home = ?", home).Scan(&farthest)
	}
	return farthest, p.wrap("see", err)
}

// Old lists old witnesses, without locks: those of prepared branches, which may be old, would stop it.
func (p *MySQLDB) Old(ctx context.Context, begins string, age time.Duration, limit int) ([]string, error) {
	branches, err := p.old(ctx, begins, age, limit)
	return branches, p.wrap("list witnesses", err)
}

func (p *MySQLDB) old(ctx context.Context, begins string, age time.Duration, limit int) (branches []string, err error) {
	rows, err := p.db.QueryContext(ctx, "SELECT branch FROM pawl_branch_witness WHERE at < UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND AND LEFT(branch, CHAR_LENGTH(?)) = ? ORDER BY at LIMIT ?",
		age.Microseconds(), begins, begins, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var branch string
		if err := rows.Scan(&branch); err != nil {
			return nil, err
		}
		branches = append(branches, branch)
	}
	return branches, rows.Err()
}

// Forget removes witnesses one by one: the server may look for several by going through the table, and meet the locks of prepared branches.
func (p *MySQLDB) Forget(ctx context.Context, branches []string) (removed int, err error) {
	for some := range slices.Chunk(branches, forgetStep) {
		gone, err := p.remove(ctx, some)
		if err != nil {
			return removed, p.wrap("forget", err)
		}
		removed += gone
	}
	return removed, nil
}

func (p *MySQLDB) remove(ctx context.Context, branches []string) (removed int, err error) {
	tx, err := p.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	one, err := tx.PrepareContext(ctx, "DELETE FROM pawl_branch_witness WHERE branch = ?")
	if err != nil {
		return 0, err
	}
	defer one.Close()
	for _, branch := range branches {
		res, err := one.ExecContext(ctx, branch)
		if err != nil {
			return 0, err
		}
		gone, err := res.RowsAffected()
		if err != nil {
			return 0, err
		}
		removed += int(gone)
	}
	return removed, tx.Commit()
}

// mysqlBranch is a branch of a MySQL. Its connection goes back to the pool only if nothing is left on it: one that keeps a prepared branch is closed, so that others may settle that.
type mysqlBranch struct {
	p    *MySQLDB
	conn *sql.Conn
	id   BranchID
	xid  string
	lent *db.LentMySQL
	open bool // to be rolled back
	left bool // there may be a prepared branch on it
}

// Tx is the transaction that is lent for the branch.
func (b *mysqlBranch) Tx() MySQLTx { return b.lent }

// ReadOnly is true as long as no statement was sent.
func (b *mysqlBranch) ReadOnly(context.Context) (bool, error) {
	return !b.lent.Used(), nil
}

// Prepare prepares.
func (b *mysqlBranch) Prepare(ctx context.Context) (unknown bool, err error) {
	unknown, err = b.end(ctx, "XA PREPARE "+b.xid)
	b.left = unknown || err == nil
	return unknown, err
}

// Commit commits in one phase.
func (b *mysqlBranch) Commit(ctx context.Context) (unknown bool, err error) {
	return b.end(ctx, "XA COMMIT "+b.xid+" ONE PHASE")
}

// end writes the witness and sends the statement that ends the transaction. What is not sent the server rolls back when the connection ends.
func (b *mysqlBranch) end(ctx context.Context, statement string) (unknown bool, err error) {
	b.lent.Reclaim()
	witness := "INSERT INTO pawl_branch_witness (branch, at, connection, fence) VALUES ('" + b.id.String() + "', UTC_TIMESTAMP(6), CONNECTION_ID(), false)"
	for _, one := range []string{witness, "XA END " + b.xid} {
		if _, err := b.conn.ExecContext(ctx, one); err != nil {
			return false, b.p.wrap("vote", err)
		}
	}
	_, err = b.conn.ExecContext(ctx, statement)
	unknown = err != nil && !mysqlRefused(err)
	b.open = err != nil && !unknown
	if unknown { // its place in the pool is for who asks what became of it
		b.left = true
		db.DropMySQL(b.conn)
	}
	return unknown, b.p.wrap("vote", err)
}

// Settle ends the prepared branch on the connection that prepared it.
func (b *mysqlBranch) Settle(ctx context.Context, commit bool) error {
	err := b.p.settle(ctx, b.conn, b.id, commit)
	b.left = err != nil && !errors.Is(err, ErrAbsent)
	if b.left { // others may settle it now
		db.DropMySQL(b.conn)
	}
	return err
}

// Close rolls back what is open.
func (b *mysqlBranch) Close(ctx context.Context) {
	b.lent.Reclaim()
	if b.open {
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), rollbackMax)
		defer stop()
		_, _ = b.conn.ExecContext(ctx, "XA END "+b.xid) // it may have ended, or failed
		_, err := b.conn.ExecContext(ctx, "XA ROLLBACK "+b.xid)
		b.left = err != nil && db.MySQLNumber(err) != mysqlUnknownXID
	}
	if b.left {
		db.DropMySQL(b.conn)
	}
	_ = b.conn.Close() // back to the pool, if it was not dropped
}
