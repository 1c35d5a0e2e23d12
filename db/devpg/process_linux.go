package devpg

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// diesWithUs makes the kernel stop the process, by fast shutdown, when the
// thread that started it ends.
func diesWithUs(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGINT }

// kernelStopsOrphans says that diesWithUs works here.
const kernelStopsOrphans = true

// serverProcesses returns the processes of Postgres that work in dataDir: its
// postmaster and all that it started. A process id in a file proves nothing, it
// may have been given to another since; where a process works does.
func serverProcesses(dataDir string, _ int) []int {
	want, err := os.Stat(dataDir)
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		proc := filepath.Join("/proc", entry.Name())
		exe, err := os.Readlink(filepath.Join(proc, "exe"))
		if err != nil || !isPostgres(exe) { // not ours to look at, or a zombie
			continue
		}
		cwd, err := os.Stat(filepath.Join(proc, "cwd"))
		if err == nil && os.SameFile(want, cwd) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func isPostgres(exe string) bool {
	return filepath.Base(strings.TrimSuffix(exe, " (deleted)")) == "postgres"
}

// survivors returns which of the processes still work in dataDir.
func survivors(dataDir string, pids []int) []int {
	now := serverProcesses(dataDir, 0)
	return slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return !slices.Contains(now, pid) })
}
