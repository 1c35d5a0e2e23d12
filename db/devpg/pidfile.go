//go:build unix

package devpg

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// pidFile is what a postmaster writes about itself into its data directory.
// The file stays when the postmaster is killed.
type pidFile struct {
	pid       int
	port      int
	socketDir string // "" without a socket
	address   string // "" without TCP
	ready     bool
}

// The lines of the file, counted from 0.
const (
	pidLine, portLine, socketLine, addressLine, statusLine = 0, 3, 4, 5, 7
)

func pidFileName(dataDir string) string { return filepath.Join(dataDir, "postmaster.pid") }

// readPidFile returns the zero pidFile if there is none, and one with less in
// it if the postmaster is still writing.
func readPidFile(dataDir string) pidFile {
	text, err := os.ReadFile(pidFileName(dataDir))
	if err != nil {
		return pidFile{}
	}
	lines := strings.Split(string(text), "\n")
	line := func(n int) string {
		if n >= len(lines) {
			return ""
		}
		return strings.TrimSpace(lines[n])
	}
	number := func(n int) int {
		i, _ := strconv.Atoi(line(n)) // not written yet: 0
		return i
	}
	return pidFile{
		pid:       number(pidLine),
		port:      number(portLine),
		socketDir: line(socketLine),
		address:   line(addressLine),
		ready:     line(statusLine) == "ready",
	}
}
