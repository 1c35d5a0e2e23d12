//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// Processes and banks' servers are killed, and the proof holds. It stays up for a look around; what it says to try can be tried.
func TestDev_transferKill(t *testing.T) {
	if testing.Short() {
		t.Skip("initialises two servers")
	}
	t.Parallel()
	_, url := openPool(t)
	const transfers = 600
	r := runDev(t, url, &devCmd{Example: "transfer", Kill: true, Transfers: transfers, Dir: serverDir(t), command: devProcess("quick")})
	r.log.await(t, "It stays up until Ctrl-C.")
	eventually(t, func() bool { return strings.Contains(pawl(t, url, "tx", "list").err, "nothing needs a person") }, func() string { return "recovery to reach the banks" })
	r.interrupt()
	if err := r.wait(t); err != nil {
		t.Fatalf("pawl dev: %v\n%s", err, r.out.String())
	}
	var report transferReport
	if err := json.Unmarshal(r.out.Bytes(), &report); err != nil {
		t.Fatalf("%v\n%s", err, r.out.String())
	}
	if err := report.wrong(); err != nil || len(report.Claims) != 5 {
		t.Errorf("%v: %+v", err, report.Claims)
	}
	if report.Kills != devKills || report.Servers == 0 || report.Figures.Transfers < transfers || report.Figures.Recorded == 0 {
		t.Errorf("got %+v", report)
	}
	mentions(t, r.log.String(), "killed mover", "killed sweeper", "killed the server of bank")

	e := devTransfer{dev: &dev{app: r.app}, urls: []string{"postgres://east", "postgres://west"}, report: report}
	var out bytes.Buffer
	var said strings.Builder
	e.lookAround(&out, func(args, _ string) {
		a := pawl(t, url, strings.Fields(args)...)
		if a.code != exitOK {
			t.Errorf("pawl %s: exit code %d\n%s", args, a.code, a.err)
		}
		said.WriteString("pawl " + args + "\n" + a.out + a.err)
	})
	mentions(t, said.String(), "pawl tx list\nnothing needs a person", "pawl tx list --all\nTransactions that are decided", "pawl tx show "+report.Figures.Example+"\ntransaction "+report.Figures.Example+" is committed everywhere", "pawl tx participants\nNAME ")
	mentions(t, out.String(), report.Figures.Example, "postgres://east", "postgres://west")
}
