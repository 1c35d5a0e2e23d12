//go:build unix

package devpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// pollInterval is the pause between two looks at a file, a lock or a process.
const pollInterval = 5 * time.Millisecond

// dirLock is held by the owner of the server in a directory. The kernel frees
// it when the owner dies. In the file stands the process id of the postmaster
// that the last owner started.
type dirLock struct {
	file *os.File
}

// tryLock returns nil without an error if another holds the lock.
func tryLock(dir string) (*dirLock, error) {
	file, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, file.Close()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", file.Name(), err), file.Close())
	}
	if !isNamed(file) { // removed, with its directory, before we had the lock
		return nil, file.Close()
	}
	return &dirLock{file: file}, nil
}

// isNamed reports whether the open file still goes by its name.
func isNamed(file *os.File) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(file.Name())
	return err == nil && os.SameFile(opened, named)
}

// postmaster returns the process id the last owner noted, 0 if none did.
func (l *dirLock) postmaster() int {
	text, err := io.ReadAll(io.NewSectionReader(l.file, 0, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return pid
}

// note records the postmaster we started.
func (l *dirLock) note(pid int) error {
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	_, err := l.file.WriteAt([]byte(strconv.Itoa(pid)+"\n"), 0)
	return err
}

func (l *dirLock) release() error { return l.file.Close() }

// poll asks until done says yes or an error, or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}
