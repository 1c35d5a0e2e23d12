package devpg

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Names in the directory of a server.
const (
	dataName     = "data"
	socketName   = "run"
	lockName     = "lock"
	logName      = "postgres.log"
	keepName     = "keep"
	passwordName = "pawl.password" // in the data directory, so that it goes where that goes
)

// socketPathMax is the longest path of a socket, in bytes, that every system
// takes: macOS takes 103, Linux 107.
const socketPathMax = 103

// DefaultDir returns where a development server of that name is kept: in the
// user's state directory, for root in /var/lib/pawl.
func DefaultDir(name string) (string, error) {
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/pawl", name), nil
	}
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "pawl", name), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("devpg: default directory: %w", err)
	}
	if runtime.GOOS == "darwin" {
		return filepath.Join(home, "Library", "Application Support", "pawl", name), nil
	}
	return filepath.Join(home, ".local", "state", "pawl", name), nil
}

// defaultCacheDir returns where fetched binaries are kept. A root's own cache
// would be out of reach for the user the server runs as.
func defaultCacheDir() string {
	if os.Geteuid() == 0 {
		return "/var/cache/pawl"
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "pawl")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("pawl-cache-%d", os.Geteuid()))
}

// socketDirOf returns the directory of the socket of the server in dir: in
// dir, or in /tmp under a name made from dir where that would be too long.
func socketDirOf(dir string) string {
	inside := filepath.Join(dir, socketName)
	if len(filepath.Join(inside, longestSocket)) <= socketPathMax {
		return inside
	}
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join("/tmp", "pawl-"+hex.EncodeToString(sum[:8]))
}

// longestSocket stands for the name of a socket file, which ends in a port.
const longestSocket = ".s.PGSQL.65535"
