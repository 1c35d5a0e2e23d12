//go:build unix

package dbtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pawl-dev/pawl/db/devpg"
)

const (
	// keptMax is how many directories of failed runs are kept, templatesMax
	// how many templates; the oldest go first.
	keptMax      = 3
	templatesMax = 3

	// lockPause is the pause between two attempts to lock the templates.
	lockPause = 20 * time.Millisecond
)

// root returns the directory, one for each user, that holds the templates and
// the servers of running tests.
func root() (string, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("pawl-test-%d", os.Geteuid()))
	perm := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		perm = 0o711 // the user a root's server runs as passes through
	}
	err := os.Mkdir(dir, perm)
	if err == nil {
		return dir, os.Chmod(dir, perm)
	}
	if !errors.Is(err, os.ErrExist) {
		return "", err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("%s must be a directory of ours that nobody else may write to", dir)
	}
	return dir, nil
}

// startFromTemplate starts a server in a directory of its own, with a copy of
// the data directory that holds the template database of that name.
func startFromTemplate(ctx context.Context, name string, cfg devpg.Config) (*devpg.Server, error) {
	dir, err := root()
	if err != nil {
		return nil, err
	}
	sweep(ctx, dir)
	server, err := startCopy(ctx, dir, name, cfg)
	if errors.Is(err, devpg.ErrVersion) { // the binaries it was made with are gone
		if err := withTemplates(ctx, dir, syscall.LOCK_EX, func() error { return os.RemoveAll(templateDir(dir, name)) }); err != nil {
			return nil, err
		}
		server, err = startCopy(ctx, dir, name, cfg)
	}
	return server, err
}

// startCopy starts a copy of the template, and makes that first if there is none.
func startCopy(ctx context.Context, dir, name string, cfg devpg.Config) (*devpg.Server, error) {
	server, err := copyTemplate(ctx, dir, name, cfg)
	if server != nil || err != nil {
		return server, err
	}
	err = withTemplates(ctx, dir, syscall.LOCK_EX, func() error { return buildTemplate(ctx, dir, name) })
	if err != nil {
		return nil, fmt.Errorf("make template: %w", err)
	}
	server, err = copyTemplate(ctx, dir, name, cfg)
	if server == nil && err == nil {
		err = fmt.Errorf("template %s was removed as soon as it was made", name)
	}
	return server, err
}

// copyTemplate starts a server on a copy of the template; nil if there is none.
// The lock is shared, so that many can copy at once and nobody removes it
// meanwhile.
func copyTemplate(ctx context.Context, dir, name string, cfg devpg.Config) (*devpg.Server, error) {
	var server *devpg.Server
	err := withTemplates(ctx, dir, syscall.LOCK_SH, func() (err error) {
		cfg.Template = templateDir(dir, name)
		if _, err := os.Stat(cfg.Template); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		cfg.Dir = filepath.Join(dir, fmt.Sprintf("run-%d-%s", os.Getpid(), strings.ToLower(rand.Text()[:8])))
		server, err = devpg.Start(ctx, cfg)
		return err
	})
	return server, err
}

// templateDir returns the data directory that holds the template of that name.
// Other binaries make another one.
func templateDir(dir, name string) string {
	sum := sha256.Sum256([]byte(os.Getenv("PAWL_PG_BIN")))
	return filepath.Join(dir, name+"-"+hex.EncodeToString(sum[:4]))
}

// buildTemplate makes the data directory with the template, unless another has
// made it since we looked. It gets its name when it is complete.
func buildTemplate(ctx context.Context, dir, name string) error {
	dest := templateDir(dir, name)
	if _, err := os.Stat(dest); err == nil {
		return nil
	}
	removeOldest(filepath.Join(dir, "pawl_template_*"), templatesMax-1, os.RemoveAll)
	work := filepath.Join(dir, fmt.Sprintf("run-%d-template-%s", os.Getpid(), strings.ToLower(rand.Text()[:8])))
	server, err := devpg.Start(ctx, devpg.Config{Dir: work})
	if err != nil {
		return err
	}
	defer devpg.Remove(context.WithoutCancel(ctx), work)
	c := &cluster{adminURL: server.URL("postgres"), template: name}
	if err := errors.Join(c.open(ctx), c.close(ctx), server.Stop(ctx)); err != nil {
		return err
	}
	return os.Rename(server.DataDir(), dest)
}

// withTemplates runs work under the lock of the templates.
func withTemplates(ctx context.Context, dir string, how int, work func() error) error {
	file, err := os.OpenFile(filepath.Join(dir, "templates.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer file.Close() // and with it the lock
	ticker := time.NewTicker(lockPause)
	defer ticker.Stop()
	for {
		err := syscall.Flock(int(file.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			return work()
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock %s: %w", file.Name(), context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// sweep removes what killed runs have left behind, and all but the newest of
// what failed ones keep. It is not needed for anything but the space, so what
// cannot be removed stays.
func sweep(ctx context.Context, dir string) {
	remove := func(run string) error {
		_, err := devpg.RemoveUnowned(ctx, run)
		return err
	}
	runs, _ := filepath.Glob(filepath.Join(dir, "run-*"))
	for _, run := range runs {
		if _, err := os.Stat(filepath.Join(run, "keep")); err != nil && !lives(run) {
			_ = remove(run)
		}
	}
	removeOldest(filepath.Join(dir, "run-*", "keep"), keptMax, func(keep string) error { return remove(filepath.Dir(keep)) })
}

// lives tells whether the process whose run this is, as its name tells, is alive: between a Kill of its server and the next Start nobody owns the directory. Another process
// may have that number by now; then the directory stays until the next time.
func lives(run string) bool {
	var pid int
	_, err := fmt.Sscanf(filepath.Base(run), "run-%d-", &pid)
	return err == nil && syscall.Kill(pid, 0) == nil
}

// removeOldest removes all that matches but the n newest.
func removeOldest(pattern string, n int, remove func(string) error) {
	type aged struct {
		path    string
		changed time.Time
	}
	var all []aged
	matches, _ := filepath.Glob(pattern) // ours, well formed
	for _, path := range matches {
		if info, err := os.Stat(path); err == nil {
			all = append(all, aged{path, info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b aged) int { return b.changed.Compare(a.changed) })
	for i := n; i < len(all); i++ {
		_ = remove(all[i].path)
	}
}
