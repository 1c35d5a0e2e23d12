//go:build unix

package devpg

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the user a server runs as.
type account struct {
	name string
	cred *syscall.Credential // nil: ourselves
}

// serverAccount returns ourselves, unless we are root: then the owner of the
// data if there is data, else the user postgres, else nobody. initdb wants the
// user to be known to the system.
func serverAccount(dataDir string) (account, error) {
	if os.Geteuid() != 0 {
		return account{name: strconv.Itoa(os.Geteuid())}, nil
	}
	if info, err := os.Stat(dataDir); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			return account{name: strconv.Itoa(int(st.Uid)), cred: &syscall.Credential{Uid: st.Uid, Gid: st.Gid}}, nil
		}
	}
	var errs []error
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("devpg: user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("devpg: user %s: %w", name, err)
		}
		return account{name: name, cred: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, fmt.Errorf("devpg: Postgres refuses to run as root, and there is no user to run it as: %w", errors.Join(errs...))
}

func (a account) uid() int {
	if a.cred != nil {
		return int(a.cred.Uid)
	}
	return os.Geteuid()
}

// give makes the account the owner of path.
func (a account) give(path string) error {
	if a.cred == nil {
		return nil
	}
	return os.Lchown(path, int(a.cred.Uid), int(a.cred.Gid))
}

// checkReach returns ErrUnreachable unless the account can enter dir.
func (a account) checkReach(dir string) error {
	if a.cred == nil {
		return nil
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for p := resolved; ; p = filepath.Dir(p) {
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		if !a.mayEnter(info) {
			return fmt.Errorf("%w: the server runs as user %s, who cannot enter %s; choose a directory elsewhere than %s",
				ErrUnreachable, a.name, p, dir)
		}
		if p == filepath.Dir(p) {
			return nil
		}
	}
}

func (a account) mayEnter(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	switch perm := info.Mode().Perm(); {
	case st.Uid == a.cred.Uid:
		return perm&0o100 != 0
	case st.Gid == a.cred.Gid:
		return perm&0o010 != 0
	default:
		return perm&0o001 != 0
	}
}

// attr returns how a process of the account is started: in a group of its own,
// so that Ctrl-C reaches us and not it.
func (a account) attr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: a.cred}
}
