//go:build unix

package devpg

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	// killMax bounds how long killed processes may take to be gone.
	killMax = 10 * time.Second

	// recoverMax bounds the recovery of a killed server before its removal.
	recoverMax = 10 * time.Second
)

// Stop shuts the server down fast: it ends all connections, writes everything
// down, and Stop returns when it is gone, with the directory if that is
// temporary. The server of another owner it leaves running. Stop may be called
// again, and after Kill. If ctx ends first, the server goes on stopping.
func (s *Server) Stop(ctx context.Context) error {
	if s.own == nil {
		return nil
	}
	s.own.signal(syscall.SIGINT)
	select {
	case <-s.own.done:
	case <-ctx.Done():
		return fmt.Errorf("stop server in %s: %w", s.dir, context.Cause(ctx))
	}
	if !s.config.Temporary {
		return nil
	}
	defer s.own.watchdog.dismiss()
	if _, err := os.Stat(filepath.Join(s.dir, keepName)); err == nil {
		return nil
	}
	_, err := RemoveUnowned(ctx, s.dir)
	return err
}

// Keep keeps the directory of a temporary server, for a look at it later.
func (s *Server) Keep() error {
	return os.WriteFile(filepath.Join(s.dir, keepName), nil, 0o600)
}

// Kill kills the server, the postmaster first, as the end of a machine would.
// When it returns, none of its processes is left and Start may be called
// again. What was committed is still there then, unless the server was not
// durable or the session did not want to wait for its commits. Kill does not
// remove a temporary directory. An adopted server is killed too.
func (s *Server) Kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), killMax)
	defer cancel()
	pids := serverProcesses(s.dataDir, s.pid)
	if s.own != nil {
		s.own.signal(syscall.SIGKILL)
	} else if slices.Contains(pids, s.pid) {
		signalAll([]int{s.pid}, syscall.SIGKILL)
	}
	err := killAll(ctx, func() []int { return survivors(s.dataDir, pids) })
	if err != nil {
		return fmt.Errorf("kill server in %s: %w", s.dir, err)
	}
	if s.own != nil {
		<-s.own.done
	}
	return nil
}

// killAll kills processes until there are none.
func killAll(ctx context.Context, left func() []int) error {
	return poll(ctx, func() (bool, error) {
		pids := left()
		signalAll(pids, syscall.SIGKILL)
		return len(pids) == 0, nil
	})
}

// Remove stops the server in dir, whoever owns it, and removes dir and all
// that belongs to it elsewhere.
func Remove(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	err = poll(ctx, func() (bool, error) {
		removed, err := RemoveUnowned(ctx, dir)
		if err != nil || removed {
			return removed, err
		}
		dataDir := filepath.Join(dir, dataName)
		pid := readPidFile(dataDir).pid
		if slices.Contains(serverProcesses(dataDir, pid), pid) {
			signalAll([]int{pid}, syscall.SIGINT)
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("remove server in %s: %w", dir, err)
	}
	return nil
}

// RemoveUnowned does what Remove does if no living process owns the server in
// dir, nor somebody started it by hand, and reports whether that was so. A directory that is not there counts
// as removed.
func RemoveUnowned(ctx context.Context, dir string) (bool, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false, err
	}
	lock, err := tryLock(dir)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if lock == nil || err != nil {
		return false, err
	}
	defer lock.release()
	dataDir := filepath.Join(dir, dataName)
	err = endOrphans(ctx, dataDir, lock.postmaster())
	if errors.Is(err, errForeign) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	releaseMemory(ctx, dataDir)
	if socketDir := socketDirOf(dir); filepath.Dir(socketDir) != dir {
		if err := os.RemoveAll(socketDir); err != nil {
			return false, err
		}
	}
	// Renamed first: nobody then starts a server in what is half removed.
	doomed := dir + ".removed-" + rand.Text()[:8]
	if err := os.Rename(dir, doomed); err != nil {
		return false, err
	}
	// Again if something has come in meanwhile: whoever looks for what runs have left behind puts a lock into what he finds.
	ctx, cancel := context.WithTimeout(ctx, recoverMax)
	defer cancel()
	var left error
	err = poll(ctx, func() (bool, error) {
		left = os.RemoveAll(doomed)
		return !errors.Is(left, syscall.ENOTEMPTY), nil
	})
	return true, cmp.Or(left, err)
}

// releaseTriesMax is how often releaseMemory tries.
const releaseTriesMax = 10

// releaseMemory gives back what a killed server left in the system, shared
// memory, which nobody else would find once its data directory is gone. A
// server for a single user does so when it starts, unless a killed process is
// still on its way out: then it is tried again. If that cannot be done, a few
// bytes stay behind until the machine is started again.
func releaseMemory(ctx context.Context, dataDir string) {
	if _, err := os.Stat(pidFileName(dataDir)); err != nil {
		return
	}
	acct, err := serverAccount(dataDir)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, recoverMax)
	defer cancel()
	tries := 0
	_ = poll(ctx, func() (bool, error) {
		cmd := exec.CommandContext(ctx, filepath.Join(binDirOf(dataDir), "postgres"), "--single", "-D", dataDir, "-c", "fsync=off", "postgres")
		cmd.Dir = dataDir
		cmd.Env = environment()
		cmd.SysProcAttr = acct.attr()
		cmd.WaitDelay = commandWait
		tries++
		return cmd.Run() == nil || tries == releaseTriesMax, nil
	})
}
