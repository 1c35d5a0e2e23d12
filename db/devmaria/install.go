//go:build unix

package devmaria

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const advice = "install it (Debian, Ubuntu: apt-get install --no-install-recommends mariadb-server; macOS: brew install mariadb), and see that mariadbd and mariadb-install-db are in PATH or in /usr/sbin"

// binEnv names the variable that holds the directory of the programs to use.
const binEnv = "PAWL_MARIADB_BIN"

// find looks for a program by its names, of which the newest is first: in the directory that the environment names and nowhere else, or in PATH and where systems put servers.
func find(names ...string) (string, error) {
	if dir := os.Getenv(binEnv); dir != "" {
		for _, name := range names {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return filepath.Abs(path)
			}
		}
		return "", fmt.Errorf("%w: there is no %s in %s, which %s names", ErrNotInstalled, names[0], dir, binEnv)
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return filepath.Abs(path)
		}
		for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/usr/libexec"} {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%w: there is no %s; %s", ErrNotInstalled, names[0], advice)
}

// newData begins the name of a data directory that is being made.
const newData = "data.new-"

// install initialises a data directory, unless there is one. It is made under a name of its own: what a process that was killed has half made is no data directory, and may still be written to.
func (s *Server) install(ctx context.Context) error {
	if _, err := os.Stat(s.data()); err == nil {
		return nil
	}
	program, err := find("mariadb-install-db", "mysql_install_db")
	if err != nil {
		return err
	}
	made, err := os.MkdirTemp(s.dir, newData)
	if err != nil {
		return fmt.Errorf("devmaria: %w", err)
	}
	if s.account != nil {
		err = os.Chown(made, int(s.account.Uid), int(s.account.Gid))
	}
	if err == nil {
		said, failed := s.command(ctx, program, "--no-defaults", "--datadir="+made, "--auth-root-authentication-method=normal", "--skip-test-db").CombinedOutput()
		if err = failed; err != nil {
			err = fmt.Errorf("%w\n%s", err, said)
		}
	}
	if err == nil {
		err = os.Rename(made, s.data())
	}
	if err != nil {
		_ = os.RemoveAll(made)
		return fmt.Errorf("devmaria: initialise %s: %w", s.dir, err)
	}
	return nil
}

// removeHalfMade removes what it can of data directories that were not finished; the next start removes the rest.
func (s *Server) removeHalfMade() {
	entries, _ := os.ReadDir(s.dir) // unreadable: there will be other errors
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), newData) {
			_ = os.RemoveAll(filepath.Join(s.dir, entry.Name()))
		}
	}
}

// command makes one that runs as the server's account, in a group of its own, so that Ctrl-C reaches us and not it. Its temporary directory is its own: of one that it shared a server removes, as it starts, what
// others have there, those that initialise their data as well.
func (s *Server) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/usr/bin:/bin", "HOME=" + s.dir, "TMPDIR=" + s.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: s.account}
	return cmd
}

// account is who the server runs as: ourselves (nil), or, for root, whom MariaDB refuses to run as, user mysql or nobody.
func account() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"mysql", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, fmt.Errorf("devmaria: MariaDB refuses to run as root, and there is neither a user mysql nor nobody")
}
