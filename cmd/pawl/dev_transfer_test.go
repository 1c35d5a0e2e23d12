//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Processes and banks' servers are killed, a MariaDB among them where one is installed, and the proof holds. It stays up for a look around; what it says to try can be tried. The next run, without the MariaDB, finds the other banks'
// data, and its proof holds too.
func TestDev_transferKill(t *testing.T) {
	if testing.Short() {
		t.Skip("initialises three servers")
	}
	t.Parallel()
	_, url := openPool(t)
	const transfers = 600
	dir := serverDir(t)
	r := runDev(t, url, &devCmd{Example: "transfer", Kill: true, Transfers: transfers, Dir: dir, command: devProcess("quick")})
	r.log.await(t, "It stays up until Ctrl-C.")
	eventually(t, func() bool { return strings.Contains(pawl(t, url, "tx", "list").err, "nothing needs a person") }, func() string { return "recovery to reach the banks" })
	r.interrupt()
	err := r.wait(t)
	report := readTransferReport(t, err, r.out.Bytes())
	if report.Kills != devKills || report.Servers != devKills/devServerKillEach || report.Figures.Transfers < transfers || report.Figures.Recorded == 0 {
		t.Errorf("got %+v", report)
	}
	mentions(t, r.log.String(), "killed mover", "killed sweeper", "killing the server of bank east", "killing the server of bank west", "bank west is back")
	banks := 3
	if strings.Contains(r.log.String(), "Bank south is left out") && os.Getenv("CI") != "true" {
		banks = 2
	} else {
		mentions(t, r.log.String(), "Bank south: MariaDB", "killing the server of bank south", "bank south is back")
	}
	if got, between := report.Claims[0].Count, report.Figures.Between; got != banks || len(between) != banks*(banks-1)/2 {
		t.Errorf("got %d banks, and transfers %v, want %d", got, between, banks)
	}
	for _, pid := range []string{"data/postmaster.pid", "pid"} { // of a Postgres, of a MariaDB
		if left, err := filepath.Glob(dir + "-*/" + pid); err != nil || len(left) > 0 {
			t.Errorf("servers that go on: %v, %v", left, err)
		}
	}

	tryTransfers(t, r.app, url, report)

	second, err := devProcess("quick")("dev", "--example=transfer", "--exit", "--json", "--transfers=50", "--dir="+dir, "--database-url="+url)
	if err != nil {
		t.Fatal(err)
	}
	second.Env = append(second.Env, "PAWL_MARIADB_BIN="+t.TempDir())
	var said strings.Builder
	second.Stderr = &said
	out, err := second.Output()
	report = readTransferReport(t, err, out)
	if report.Run != 2 || report.Claims[0].Count != 2 || report.Kills+report.Servers != 0 {
		t.Errorf("got %+v", report)
	}
	mentions(t, said.String(), "Bank south is left out, which would be a MariaDB: no MariaDB is installed", "between accounts at 2 banks")
	if banks == 3 {
		mentions(t, report.Claims[0].Text, "earlier runs have moved to south")
	}
	if t.Failed() {
		t.Logf("the second run:\n%s", said.String())
	}
}

// readTransferReport reads the report of a run that is right.
func readTransferReport(t *testing.T, err error, out []byte) (r transferReport) {
	t.Helper()
	if err != nil {
		t.Fatalf("pawl dev: %v\n%s", err, out)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := r.wrong(); err != nil || len(r.Claims) != 5 {
		t.Errorf("%v: %+v", err, r.Claims)
	}
	return r
}

// tryTransfers runs the commands that are said to be tried.
func tryTransfers(t *testing.T, a *app, url string, report transferReport) {
	t.Helper()
	e := devTransfer{dev: &dev{app: a}, report: report}
	for _, name := range report.Figures.ExampleAt {
		e.servers = append(e.servers, devBank{name: name, client: "client of " + name})
	}
	var out bytes.Buffer
	var said strings.Builder
	e.lookAround(&out, func(args, _ string) {
		a := pawl(t, url, strings.Fields(args)...)
		if a.code != exitOK {
			t.Errorf("pawl %s: exit code %d\n%s", args, a.code, a.err)
		}
		said.WriteString("pawl " + args + "\n" + a.out + a.err)
	})
	id := report.Figures.Example
	mentions(t, said.String(), "pawl tx list\nnothing needs a person", "pawl tx list --all\nTransactions that are decided", "pawl tx show "+id+"\ntransaction "+id+" is committed everywhere", "pawl tx participants\nNAME ")
	for _, name := range report.Figures.ExampleAt {
		mentions(t, out.String(), "client of "+name+" \"SELECT * FROM transfer.entry WHERE transfer = '"+id)
	}
}
