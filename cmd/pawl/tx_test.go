package main

import (
	"bytes"
	"context"
	"encoding/json"
	neturl "net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// txWorld is a coordinator's database and two participants with an account each.
type txWorld struct {
	*testing.T
	pool  *pgxpool.Pool
	url   string
	flags []string
	pools map[string]*pgxpool.Pool
}

func newTxWorld(t *testing.T) *txWorld {
	t.Helper()
	w := &txWorld{T: t, pools: map[string]*pgxpool.Pool{}}
	w.pool, w.url = openPool(t)
	for _, name := range []string{"east", "west"} {
		url := dbtest.EmptyURL(t)
		pool, err := poolOf(t, url)
		if err != nil {
			t.Fatal(err)
		}
		w.pools[name] = pool
		mustExec(t, pool, "CREATE TABLE account AS SELECT 100 AS amount")
		w.flags = append(w.flags, "--participant", name+"="+url)
	}
	t.Cleanup(func() { // what is prepared keeps a database from being dropped
		for name, pool := range w.pools {
			for _, gid := range w.prepared(name) {
				_, _ = pool.Exec(context.Background(), "ROLLBACK PREPARED '"+gid+"'")
			}
		}
	})
	return w
}

// with adds the participants to a command line.
func (w *txWorld) with(args ...string) []string { return append(args, w.flags...) }

func (w *txWorld) prepared(name string) (gids []string) {
	w.Helper()
	if err := w.pools[name].QueryRow(context.Background(), "SELECT array(SELECT gid FROM pg_prepared_xacts WHERE database = current_database())").Scan(&gids); err != nil {
		w.Fatal(err)
	}
	return gids
}

func (w *txWorld) amounts(east, west int) {
	w.Helper()
	for name, want := range map[string]int{"east": east, "west": west} {
		var got int
		if err := w.pools[name].QueryRow(w.Context(), "SELECT amount FROM account").Scan(&got); err != nil || got != want {
			w.Errorf("%s: got %d, %v, want %d", name, got, err, want)
		}
	}
}

// leave prepares a transfer of 5 from east to west, with a deadline that has passed, as a process does that dies then.
func (w *txWorld) leave() (id string) {
	w.Helper()
	b := twophase.BranchID{Namespace: 1, ID: uuid.Must(uuid.NewV7()), Deadline: time.Now().Add(-time.Minute)}
	if err := w.pool.QueryRow(w.Context(), "SELECT home FROM pawl.global_here()").Scan(&b.Home); err != nil {
		w.Fatal(err)
	}
	for name, n := range map[string]int{"east": -5, "west": 5} {
		b.Participant = name
		mustExec(w.T, w.pools[name], "BEGIN; UPDATE account SET amount = amount + "+id64(int64(n))+
			"; INSERT INTO pawl_branch.witness (branch) VALUES ('"+b.String()+"'); PREPARE TRANSACTION '"+b.String()+"'")
	}
	return b.ID.String()
}

func TestTx(t *testing.T) {
	t.Parallel()
	w := newTxWorld(t)
	refused(t, exitUsage, w.url, []string{"tx", "setup"}, "--participant", "PAWL_PARTICIPANTS")
	refused(t, exitUsage, w.url, []string{"tx", "recover"}, "--participant")
	mentions(t, pawl(t, w.url, "tx", "participants").err, "pawl serve --participant")
	mentions(t, pawl(t, w.url, "tx", "list").err, "nothing needs a person")
	for key, value := range mustJSON[map[string]any](t, exitOK, w.url, "tx", "list") {
		if list, ok := value.([]any); !ok || len(list) != 0 {
			t.Errorf("an empty listing has %v as %s", value, key)
		}
	}
	a := pawl(t, w.url, w.with("tx", "recover")...)
	check(t, a, exitFailed, w.flags, "pawl tx setup", "participant east", "participant west")
	for range 2 {
		mentions(t, must(t, exitOK, w.url, w.with("tx", "setup")...), "participant east is set up", "participant west is set up")
	}

	w.leave() // rolled back, since its deadline has passed
	mentions(t, must(t, exitOK, w.url, w.with("tx", "recover")...), "0 branches committed, 2 rolled back")
	w.amounts(100, 100)
	mentions(t, must(t, exitOK, w.url, "tx", "participants"), "east", "west", "postgres", "just now")
	mentions(t, must(t, exitOK, w.url, "tx", "list", "--all"), "aborted", "past its deadline")

	id := w.leave() // nothing is presumed of it
	a = pawl(t, w.url, "tx", "restored")
	if a.code != exitUsage || !strings.Contains(a.err, "--yes") {
		t.Errorf("unasked: %+v", a)
	}
	mentions(t, must(t, exitOK, w.url, "tx", "restored", "--yes"), "incarnation 1 begins")
	mentions(t, must(t, exitOK, w.url, w.with("tx", "recover")...), "2 branches need a person")
	mentions(t, must(t, exitOK, w.url, "tx", "list"), "These need a person", id+" at east: UNDECIDED", id+" at west: UNDECIDED", "→ find out", "pawl tx resolve "+id+" --commit")
	mentions(t, must(t, exitOK, w.url, "tx", "show", id), "is not decided", "at east: UNDECIDED")
	refused(t, exitUsage, w.url, []string{"tx", "resolve", id, "--commit", "--rollback", "--reason", "x"}, "--commit", "--rollback")
	refused(t, exitUsage, w.url, []string{"tx", "resolve", id, "--reason", "x"}, "--accept")
	refused(t, exitUsage, w.url, []string{"tx", "resolve", id, "--commit", "--reason", " "}, "--reason")
	refused(t, exitUsage, w.url, []string{"tx", "resolve", id, "--commit", "--reason", "x"}, "commits at east, west, for good", "--yes")
	refused(t, exitUsage, w.url, []string{"tx", "resolve", "nonsense", "--commit", "--reason", "x", "-y"}, "nonsense")
	refused(t, exitNotFound, w.url, []string{"tx", "resolve", uuid.NewString(), "--commit", "--reason", "x", "-y"}, "not found", "pawl tx list --all")
	refused(t, exitNotFound, w.url, []string{"tx", "resolve", id, "--accept", "--reason", "x", "-y"}, "not found")
	mentions(t, must(t, exitOK, w.url, "tx", "resolve", id, "--commit", "--reason", "the log has it", "--actor", "ada", "-y"), "is committed", "east, west")
	refused(t, exitFailed, w.url, []string{"tx", "resolve", id, "--rollback", "--reason", "x", "-y"}, "decided otherwise", "ada")
	mentions(t, must(t, exitOK, w.url, "tx", "show", id), "is committed, and not known to be so", "by ada", "the log has it")

	mustExec(t, w.pools["west"], "ROLLBACK PREPARED '"+w.prepared("west")[0]+"'") // somebody else thinks otherwise
	mustExec(t, w.pool, "UPDATE pawl.global_decision SET decided_at = decided_at - interval '1 min'")
	got := mustJSON[struct{ Committed, Doubts int }](t, exitOK, w.url, w.with("tx", "recover")...)
	if got.Committed != 1 || got.Doubts != 1 {
		t.Errorf("got %+v", got)
	}
	w.amounts(95, 100)
	mentions(t, must(t, exitOK, w.url, "tx", "list"), id+" at west: MIXED", "→ put the data at west right by hand", "--accept")
	type listing struct {
		Doubts []struct {
			ID, Participant, Branch, What string
			ToDo                          string    `json:"to_do"`
			ResolvedAt                    time.Time `json:"resolved_at"`
			ResolvedBy                    string    `json:"resolved_by"`
		}
		Transactions []twophase.Decided
	}
	list := mustJSON[listing](t, exitOK, w.url, "tx", "list")
	if len(list.Doubts) != 1 || list.Doubts[0].ID != id || list.Doubts[0].Participant != "west" || list.Doubts[0].What != "mixed" || list.Doubts[0].ToDo == "" || !strings.HasPrefix(list.Doubts[0].Branch, "pawl:1:") {
		t.Errorf("got %+v", list)
	}
	mentions(t, must(t, exitOK, w.url, "tx", "resolve", id, "--accept", "--reason", "booked by hand", "--actor", "ada", "-y"), "accepted")
	mentions(t, pawl(t, w.url, "tx", "list").err, "nothing needs a person")
	list = mustJSON[listing](t, exitOK, w.url, "tx", "list", "--all", "--limit", "1")
	if len(list.Doubts) != 1 || list.Doubts[0].ToDo != "" || list.Doubts[0].ResolvedBy != "ada" || len(list.Transactions) != 1 || list.Transactions[0].ID != id || !list.Transactions[0].Ended {
		t.Errorf("got %+v", list)
	}
	mentions(t, must(t, exitOK, w.url, "tx", "show", id), "is committed everywhere", "by ada: booked by hand")
	mentions(t, must(t, exitOK, w.url, "sweep", "in-doubt"), "sweep in-doubt: 0 branches settled")
}

// A participant that cannot be reached is named, and holds up no other.
func TestTx_unreached(t *testing.T) {
	t.Parallel()
	w := newTxWorld(t)
	must(t, exitOK, w.url, w.with("tx", "setup")...)
	w.leave()
	gone := []string{"--participant", "gone=postgres://pawl:s3cret@127.0.0.1:1/gone"}
	args := append([]string{"tx", "recover"}, append(gone, w.flags[:2]...)...)
	a := pawl(t, w.url, args...)
	check(t, a, exitFailed, args, "gone", "127.0.0.1")
	mentions(t, a.out, "1 rolled back")
	mentions(t, must(t, exitOK, w.url, "tx", "list"), "Recovery could not do all here", "gone", "never")
	a = pawl(t, w.url, append([]string{"--json", "doctor"}, gone...)...)
	mentions(t, a.out, `"participant gone"`, "cannot be asked", `"recovery at gone"`)
	for _, text := range []string{a.out, a.err, must(t, exitOK, w.url, "tx", "list", "--all"), must(t, exitOK, w.url, "--json", "tx", "participants")} {
		if strings.Contains(text, "s3cret") {
			t.Errorf("a password is printed: %s", text)
		}
	}
	mentions(t, must(t, exitFailed, w.url, w.with("doctor")...), "participant east", "prepares of east", "rights at west", "prepared at west", "1 are past their deadlines")
}

// A coordinator of the command settles what is left, with participants from its environment as well.
func TestServe_participants(t *testing.T) {
	t.Parallel()
	w := newTxWorld(t)
	must(t, exitOK, w.url, w.with("tx", "setup")...)
	w.leave()
	serve := start(t, w.url, w.with("serve")...)
	end := time.After(patience)
	for len(w.prepared("east"))+len(w.prepared("west")) > 0 {
		select {
		case <-end:
			t.Fatalf("nothing is settled:\n%s", serve.log)
		default:
		}
	}
	if code := serve.stop(t); code != exitOK {
		t.Errorf("serve: exit code %d\n%s", code, serve.log)
	}
	w.amounts(100, 100)
}

// What is wrong with a participant is said without what its URL holds.
func TestParticipantFlags(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"postgres://pawl:s3cret@host/db", "postgres://pawl:s3cret@host/db?sslmode=disable", "east=postgres://pawl:s3/cret@host/db", "east=postgres://pawl:s3cret@host:port/db",
		"east=host=x password=s3cret", "east=mongodb://pawl:s3cret@host/db", "east=mysql://pawl:s3/cret@host/db", "east=mysql://pawl:s3cret@host", "east=mysql://pawl:s3cret@host/db?tls=nonsense", "no/name=postgres://pawl:s3cret@host/db",
	} {
		_, _, err := participantFlags{Participant: []string{text}}.open(&app{ctx: t.Context(), command: "serve"})
		if exitCode(err) != exitUsage || !strings.Contains(err.Error(), "--participant") || strings.Contains(err.Error(), "s3") {
			t.Errorf("%s: got %v", text, err)
		}
	}
	t.Run("environment", func(t *testing.T) {
		a := pawl(t, "postgres://nobody@127.0.0.1:1/x", "tx", "setup", "--participant", "east=postgres://127.0.0.1:1/a", "--participant", "west=postgres://h1,h2/b?target_session_attrs=read-write", "--help")
		mentions(t, a.out, "PAWL_PARTICIPANTS")
		all, closeAll, err := participantFlags{Participant: []string{"east=postgres://127.0.0.1:1/a", "", "west=postgresql://h1,h2/b?target_session_attrs=read-write"}}.open(&app{ctx: t.Context()})
		if err != nil || len(all) != 2 || all[1].Address() != "h1:5432/b" {
			t.Errorf("got %v, %v", all, err)
		}
		closeAll()
	})
}

// mariaURL gives the URL of a fresh database on MariaDB.
func mariaURL(t *testing.T) string {
	t.Helper()
	config, err := mysql.ParseDSN(dbtest.MariaDB(t))
	if err != nil {
		t.Fatal(err)
	}
	query := neturl.Values{"timeout": {"7s"}}
	at := neturl.URL{Scheme: "mysql", User: neturl.UserPassword(config.User, config.Passwd), Host: config.Addr, Path: "/" + config.DBName}
	if config.Net == "unix" {
		at.Host = "localhost"
		query.Set("socket", config.Addr)
	}
	at.RawQuery = query.Encode()
	return at.String()
}

// A MariaDB takes part as well: it is set up, recovered and listed.
func TestTx_mariaDB(t *testing.T) {
	t.Parallel()
	_, url := openPool(t)
	flags := []string{"--participant", "north=" + mariaURL(t)}
	mentions(t, must(t, exitOK, url, append([]string{"tx", "setup"}, flags...)...), "participant north is set up")
	mentions(t, must(t, exitOK, url, append([]string{"tx", "recover"}, flags...)...), "0 branches committed")
	mentions(t, must(t, exitOK, url, "tx", "participants"), "north", "mysql", "just now")
	mentions(t, pawl(t, url, append([]string{"doctor"}, flags...)...).out, "participant north", "MariaDB 1", "durability of north", "engines of north", "rights at north", "prepared at north")
}

// TestTxListing compares what is printed of global transactions with testdata/tx; "go test -run TestTxListing -update" writes it.
func TestTxListing(t *testing.T) {
	t.Parallel()
	now := time.Date(2027, 1, 31, 3, 0, 0, 0, time.UTC)
	branch := func(n byte, participant string) twophase.BranchID {
		return twophase.BranchID{Namespace: 1, Home: "68a1f00000000001.1.2", ID: uuid.UUID{1, 0x94, 0xb9, n, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, n}, Deadline: now.Add(-time.Hour), Participant: participant}
	}
	doubt := func(n byte, participant string, what twophase.Kind, detail string) twophase.Doubt {
		return twophase.Doubt{Branch: branch(n, participant), What: what, First: now.Add(-70 * time.Minute), Last: now.Add(-3 * time.Second), Detail: detail}
	}
	done := doubt(4, "west", twophase.Mixed, "it was committed there by hand, and is aborted")
	done.ResolvedAt, done.ResolvedBy, done.Reason = now.Add(-time.Minute), "ada", "booked back"
	decided := func(n byte, committed, ended bool, reason string) twophase.Decided {
		d := twophase.Decided{ID: branch(n, "").ID.String(), DecidedAt: now.Add(-time.Duration(n) * time.Minute), Committed: committed, Participants: []string{"east", "west"}, DecidedBy: "shop-1:77", Reason: reason, Ended: ended}
		if !committed {
			d.Participants = nil
		}
		return d
	}
	hostile := doubt(5, "east", twophase.Unfinished, "it should commit: \x1b[2Jcleared\nand more")
	for name, l := range map[string]*txListing{
		"doubts": {Doubts: newTxDoubts([]twophase.Doubt{
			doubt(1, "east", twophase.Undecided, "prepared for a coordinator's database as it was at 68a1f00000000001.1.2, which is now at 68a1f00000000001.2.3: it was restored or failed over, and a decision may be lost"),
			doubt(2, "west", twophase.Unfinished, "it should commit: participant west: settle: ERROR: permission denied to finish prepared transaction (SQLSTATE 42501)"),
			doubt(3, "west", twophase.Mixed, "it is committed, but not there: it was rolled back by hand, or lost with a restore"), hostile,
		}), Transactions: []twophase.Decided{decided(2, true, false, "")}, Participants: []twophase.Seen{
			{Name: "north", Kind: "postgres", Address: "10.0.0.9:5432/bank", SeenAt: now.Add(-3 * time.Hour), TriedAt: now.Add(-3 * time.Second), Prepared: 2, Error: "participant north: list: dial error\nconnection refused"},
			{Name: "south", Kind: "mysql", Address: "10.0.0.10:3306", TriedAt: now.Add(-26 * time.Hour)},
		}},
		"unfinished": {Transactions: []twophase.Decided{decided(1, true, false, ""), decided(9, true, false, "the log has it")}},
		"all": {all: true, Doubts: newTxDoubts([]twophase.Doubt{done}), Transactions: []twophase.Decided{
			decided(1, true, false, ""), decided(2, true, true, ""), decided(4, false, false, "recovery found it prepared past its deadline"),
		}, Next: branch(4, "").ID.String()},
		"nothing": {},
	} {
		t.Run(name, func(t *testing.T) {
			l.now = now
			var out bytes.Buffer
			if err := l.print(&app{out: &out, err: &out}); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", "tx", name+".txt")
			if *update {
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if text, err := json.Marshal(l); err != nil || !json.Valid(text) {
				t.Errorf("%s, %v", text, err)
			}
		})
	}
}
