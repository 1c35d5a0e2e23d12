//go:build unix && !linux

package devpg

import (
	"errors"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// diesWithUs does nothing here: a watchdog stops the server.
func diesWithUs(*syscall.SysProcAttr) {}

const kernelStopsOrphans = false

// serverProcesses returns the postmaster of dataDir and the processes it
// started. A process id in a file proves nothing, it may have been given to
// another since; so the process must also be a postgres started for dataDir.
func serverProcesses(dataDir string, postmaster int) []int {
	if postmaster <= 0 {
		return nil
	}
	out, err := exec.Command("ps", "-axo", "pid=,ppid=,stat=,command=").Output()
	if err != nil {
		return nil
	}
	var pids []int
	alive := false
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || strings.HasPrefix(fields[2], "Z") {
			continue
		}
		pid, errPid := strconv.Atoi(fields[0])
		parent, errParent := strconv.Atoi(fields[1])
		if errPid != nil || errParent != nil {
			continue
		}
		switch {
		case pid == postmaster:
			alive = strings.Contains(line, "postgres") && strings.Contains(line, dataDir)
			pids = append(pids, pid)
		case parent == postmaster:
			pids = append(pids, pid)
		}
	}
	if !alive {
		return nil
	}
	return pids
}

// survivors returns which of the processes are still there.
func survivors(_ string, pids []int) []int {
	return slices.DeleteFunc(slices.Clone(pids), func(pid int) bool {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	})
}
