//go:build unix

package main

import (
	"encoding/json"
	"testing"
)

// Processes and banks' servers are killed, and the proof holds.
func TestDev_transferKill(t *testing.T) {
	if testing.Short() {
		t.Skip("initialises two servers")
	}
	t.Parallel()
	_, url := openPool(t)
	const transfers = 600
	r := runDev(t, url, &devCmd{Example: "transfer", Exit: true, Kill: true, Transfers: transfers, Dir: serverDir(t), command: devProcess("quick")})
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
}
