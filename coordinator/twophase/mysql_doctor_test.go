package twophase_test

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// finds checks that of all findings one has a level and says all of want; "ok" says no remedy.
func finds(t *testing.T, all []twophase.Finding, check, level string, want ...string) {
	t.Helper()
	for _, f := range all {
		if f.Check != check {
			continue
		}
		text := f.Message + " → " + f.Remedy
		if f.Level != level || (f.Level == "ok") != (f.Remedy == "") {
			t.Errorf("%s: got %s: %s, want %s", check, f.Level, text, level)
		}
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: %q is missing in: %s", check, w, text)
			}
		}
		return
	}
	t.Errorf("there is no check %s in %+v", check, all)
}

// What a server's version and settings come to.
func TestMySQL_settings(t *testing.T) {
	t.Parallel()
	well := map[string]string{
		"version": "10.11.6-MariaDB-0+deb12u1-log", "hostname": "db1", "port": "3306", "read_only": "OFF", "wsrep_on": "OFF", "innodb_flush_log_at_trx_commit": "1", "log_bin": "OFF", "sync_binlog": "0",
		"innodb_lock_wait_timeout": "50", "default_storage_engine": "InnoDB",
	}
	for _, c := range []struct {
		change       map[string]string
		check, level string
		want         []string
	}{
		{nil, "participant south", "ok", []string{"MariaDB 10.11.6", "at db1:3306/bank"}},
		{nil, "durability of south", "ok", nil},
		{nil, "lock waits at south", "ok", []string{"50 s"}},
		{nil, "engines of south", "ok", nil},
		{map[string]string{"version": "10.5.0-MariaDB"}, "participant south", "ok", nil},
		{map[string]string{"version": "10.4.33-MariaDB"}, "participant south", "bad", []string{"MariaDB 10.4.33", "upgrade to MariaDB 10.5"}},
		{map[string]string{"version": "8.0.36"}, "participant south", "ok", []string{"MySQL 8.0.36"}},
		{map[string]string{"version": "5.7.44-log"}, "participant south", "bad", []string{"MySQL 5.7.44", "MySQL 8.0"}},
		{map[string]string{"wsrep_on": "ON"}, "participant south", "bad", []string{"Galera", "another server"}},
		{map[string]string{"read_only": "ON"}, "participant south", "bad", []string{"replicas", "primary"}},
		{map[string]string{"innodb_flush_log_at_trx_commit": "2"}, "durability of south", "bad", []string{"is 2", "SET GLOBAL innodb_flush_log_at_trx_commit = 1"}},
		{map[string]string{"innodb_flush_log_at_trx_commit": "3"}, "durability of south", "ok", nil},
		{map[string]string{"innodb_flush_log_at_trx_commit": "0", "version": "8.4.0"}, "durability of south", "bad", []string{"is 0"}},
		{map[string]string{"log_bin": "ON"}, "durability of south", "bad", []string{"sync_binlog is 0", "SET GLOBAL sync_binlog = 1"}},
		{map[string]string{"log_bin": "ON", "sync_binlog": "1"}, "durability of south", "ok", nil},
		{map[string]string{"innodb_lock_wait_timeout": "300"}, "lock waits at south", "ok", nil},
		{map[string]string{"innodb_lock_wait_timeout": "301"}, "lock waits at south", "warn", []string{"301 s", "SET GLOBAL innodb_lock_wait_timeout = 50"}},
		{map[string]string{"default_storage_engine": "MyISAM"}, "engines of south", "warn", []string{"MyISAM", "SET GLOBAL default_storage_engine = InnoDB"}},
	} {
		v := maps.Clone(well)
		maps.Copy(v, c.change)
		finds(t, twophase.CheckMySQL(v), c.check, c.level, c.want...)
	}
}

// What a real server is found to lack, and to have left prepared.
func TestMySQL_doctor(t *testing.T) {
	t.Parallel()
	server := dbtest.PrivateMariaDB(t, "--log-bin", "--sync-binlog=1")
	dsn := server.DSN(dbtest.PrivateDatabase)
	open := func(dsn string) *sql.DB {
		db, err := sql.Open("mysql", dsn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		return db
	}
	db := open(dsn)
	exec := func(statements ...string) {
		t.Helper()
		for _, s := range statements {
			if _, err := db.ExecContext(t.Context(), s); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
	}
	const home = "00000000000000aa.1.0"
	examine := func(db *sql.DB) []twophase.Finding {
		t.Helper()
		all, err := twophase.MySQL("south", db).Doctor(t.Context(), func(b twophase.BranchID) bool { return b.Home == home })
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	finds(t, examine(db), "rights at south", "bad", "pawl_branch_witness", "pawl tx setup")
	p := twophase.MySQL("south", db)
	if err := p.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, f := range examine(db) {
		finds(t, []twophase.Finding{f}, f.Check, "ok")
	}
	finds(t, examine(db), "participant south", "ok", "MariaDB 1", "/"+dbtest.PrivateDatabase)
	finds(t, examine(db), "rights at south", "ok", "root@localhost")

	exec("SET GLOBAL sync_binlog = 0")
	finds(t, examine(db), "durability of south", "bad", "sync_binlog is 0, and log_bin is on")
	exec("SET GLOBAL sync_binlog = 1", "SET GLOBAL innodb_flush_log_at_trx_commit = 2", "SET GLOBAL read_only = ON")
	finds(t, examine(db), "durability of south", "bad", "innodb_flush_log_at_trx_commit is 2")
	finds(t, examine(db), "participant south", "bad", "read only")
	exec("SET GLOBAL read_only = OFF", "CREATE TABLE memo (i int) ENGINE = MyISAM", "CREATE TABLE cache (i int) ENGINE = MEMORY", "CREATE SEQUENCE counter", "CREATE VIEW v AS SELECT * FROM memo")
	finds(t, examine(db), "engines of south", "warn", "2 tables", "cache (MEMORY), memo (MyISAM)", "ENGINE = InnoDB")
	exec("ALTER TABLE pawl_branch_home ENGINE = Aria")
	finds(t, examine(db), "engines of south", "bad", "pawl_branch_home (Aria) is Pawl's own")
	exec("ALTER TABLE pawl_branch_home ENGINE = InnoDB", "DROP TABLE memo, cache")

	exec("CREATE USER clerk", "GRANT SELECT, INSERT ON pawl.pawl_branch_witness TO clerk", "GRANT ALL ON pawl.pawl_branch_home TO clerk")
	clerk := open("clerk" + strings.TrimPrefix(dsn, "root"))
	finds(t, examine(clerk), "rights at south", "bad", "user clerk@% lacks DELETE on pawl_branch_witness → GRANT")

	// What is prepared: ours, past its deadline and not; another coordinator's; somebody else's. Their connections have ended.
	prepare := func(home, participant string, deadline time.Duration) {
		t.Helper()
		b, err := twophase.MySQL(participant, db).Begin(t.Context(), twophase.BranchID{Namespace: 1, Home: home, ID: uuid.New(), Deadline: time.Now().Add(deadline), Participant: participant})
		if err == nil {
			defer b.Close(t.Context())
			_, err = b.Prepare(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	prepare(home, "south", time.Hour)
	prepare(home, "north", -time.Hour) // that participant's
	finds(t, examine(db), "prepared at south", "ok")
	finds(t, examine(db), "others' prepared at south", "ok", "none")
	prepare(home, "south", -70*time.Minute)
	finds(t, examine(db), "prepared at south", "bad", "1 are past their deadlines and not settled, the oldest for 1h10m", "pawl serve --participant")

	theirs := open(dsn)
	theirs.SetMaxOpenConns(1)
	var id int64
	if err := theirs.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"XA START 'theirs','',1", "INSERT INTO pawl_branch_home VALUES ('x', 0, NOW())", "XA END 'theirs','',1", "XA PREPARE 'theirs','',1"} {
		if _, err := theirs.ExecContext(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	for n := 1; n > 0; { // the server takes note of it
		if err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM information_schema.processlist WHERE id = ?", id).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	finds(t, examine(db), "others' prepared at south", "ok", `1, such as "theirs","",1, none for long`)
	finds(t, examine(clerk), "others' prepared at south", "ok", "since when is not known: user clerk@% lacks PROCESS")
	later := func(d time.Duration) *sql.DB {
		return open(fmt.Sprintf("%s?timestamp=%d", dsn, time.Now().Add(d).Unix())) // its clock goes ahead
	}
	finds(t, examine(later(10*time.Minute)), "others' prepared at south", "warn", "theirs", "keep their locks", "XA ROLLBACK")
	finds(t, examine(later(2*time.Hour)), "others' prepared at south", "bad", "for up to 2h0m")
	prepare("00000000000000bb.1.0", "south", -90*time.Minute)
	finds(t, examine(db), "others' prepared at south", "bad", "2, such as", "for up to 1h30m")
	finds(t, examine(clerk), "others' prepared at south", "bad", "2, such as", "for up to 1h30m")
}
