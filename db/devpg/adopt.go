//go:build unix

package devpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// errNotReady means that there is no server to adopt, yet.
var errNotReady = errors.New("it is not ready")

// adopt returns the server that another owns, if it answers.
func adopt(ctx context.Context, cfg Config, at places) (*Server, error) {
	pf := readPidFile(at.dataDir)
	if !pf.ready || pf.socketDir == "" {
		return nil, errNotReady
	}
	s := &Server{
		config: cfg, dir: at.dir, dataDir: at.dataDir, socketDir: pf.socketDir,
		binDir: binDirOf(at.dataDir), port: pf.port, tcp: cfg.TCP && pf.address != "", pid: pf.pid,
	}
	if s.tcp {
		var err error
		if s.password, err = readPassword(at.dataDir); err != nil {
			return nil, err
		}
	}
	version, err := s.ping(ctx)
	if err != nil {
		return nil, err
	}
	s.version, _, _ = strings.Cut(version, " ") // the distribution's name follows
	return s, nil
}

// binDirOf returns where the running server of dataDir came from. The first
// line of postmaster.opts is its command line, each argument in quotes.
func binDirOf(dataDir string) string {
	text, err := os.ReadFile(filepath.Join(dataDir, "postmaster.opts"))
	if err != nil {
		return ""
	}
	program, _, _ := strings.Cut(string(text), ` "`)
	return filepath.Dir(strings.TrimSpace(program))
}

// clearRemains makes way for a new server in a directory whose lock we hold. A
// server that we owned in an earlier life is stopped. The files that keep
// Postgres from starting are removed, but only when no process works there.
//
// It returns errForeign if a postmaster works there that is not ours.
func clearRemains(ctx context.Context, at places, ours int) error {
	if err := endOrphans(ctx, at.dataDir, ours); err != nil {
		return err
	}
	stale := []string{pidFileName(at.dataDir)}
	sockets, err := filepath.Glob(globQuote(at.socketDir) + "/.s.PGSQL.*")
	if err != nil {
		return err
	}
	for _, file := range append(stale, sockets...) {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// endOrphans stops our postmaster if it works in dataDir, waits until all that
// do have ended, and kills those that have not in good time: children of a
// killed one. It returns errForeign if there is a postmaster that is not ours.
func endOrphans(ctx context.Context, dataDir string, ours int) error {
	pids := serverProcesses(dataDir, ours)
	if slices.Contains(pids, ours) {
		signalAll([]int{ours}, syscall.SIGINT)
	}
	left := func() []int { // also those it started since
		return append(survivors(dataDir, pids), serverProcesses(dataDir, ours)...)
	}
	patience, cancel := context.WithTimeout(ctx, orphanStopMax)
	defer cancel()
	err := poll(patience, func() (bool, error) {
		// Looked up each time: one that was just started has yet to say so.
		if pid := readPidFile(dataDir).pid; pid != ours && slices.Contains(serverProcesses(dataDir, pid), pid) {
			return false, errForeign
		}
		return len(left()) == 0, nil
	})
	if err == nil || errors.Is(err, errForeign) {
		return err
	}
	if err := killAll(ctx, left); err != nil {
		return fmt.Errorf("processes %v work in %s and do not end: %w", left(), dataDir, err)
	}
	return nil
}

func signalAll(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig) // ended: nothing is left to be told
	}
}
