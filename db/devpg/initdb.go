//go:build unix

package devpg

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// dataMajor returns the major version of the data in dataDir, 0 if it has none.
func dataMajor(dataDir string) (int, error) {
	text, err := os.ReadFile(filepath.Join(dataDir, "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("%w: %s holds data of version %q", ErrVersion, dataDir, text)
	}
	return major, nil
}

// makeData makes the data directory, by initdb or from the template. It gets
// its name when it is complete; what a crash leaves behind is removed first.
func makeData(ctx context.Context, cfg Config, bin binaries, acct account, dataDir string) error {
	leftovers, err := filepath.Glob(globQuote(dataDir) + ".new-*")
	if err != nil {
		return err
	}
	for _, dir := range leftovers {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	work, err := os.MkdirTemp(filepath.Dir(dataDir), filepath.Base(dataDir)+".new-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) // renamed away if all went well
	if err := acct.give(work); err != nil {
		return err
	}
	if cfg.Template != "" {
		err = copyData(cfg.Template, work, acct)
	} else {
		err = initdb(ctx, cfg, bin, acct, work)
	}
	if err != nil {
		return err
	}
	return os.Rename(work, dataDir)
}

// initdb makes a cluster that trusts whoever reaches its socket, which only
// its own user and root can, and wants a password over TCP.
func initdb(ctx context.Context, cfg Config, bin binaries, acct account, dataDir string) error {
	password := rand.Text()
	passwordFile := dataDir + ".password"
	if err := os.WriteFile(passwordFile, []byte(password), 0o600); err != nil {
		return err
	}
	defer os.Remove(passwordFile)
	if err := acct.give(passwordFile); err != nil {
		return err
	}
	args := []string{
		"--pgdata=" + dataDir, "--username=" + Superuser, "--pwfile=" + passwordFile,
		"--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions",
	}
	if !cfg.Durable {
		args = append(args, "--no-sync")
	}
	if _, err := acct.run(ctx, dataDir, filepath.Join(bin.dir, "initdb"), args...); err != nil {
		return fmt.Errorf("devpg: %w", err)
	}
	return os.WriteFile(filepath.Join(dataDir, passwordName), []byte(password), 0o600)
}

// copyData copies the data directory of a stopped server.
func copyData(from, to string, acct account) error {
	if _, err := os.Stat(pidFileName(from)); err == nil {
		return fmt.Errorf("devpg: template %s: its server runs, or was killed", from)
	}
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil || name == "." {
			return err
		}
		dest := filepath.Join(to, name)
		switch {
		case entry.IsDir():
			err = os.Mkdir(dest, 0o700)
		case entry.Type().IsRegular():
			err = copyFile(path, dest)
		default:
			err = fmt.Errorf("%s is neither a file nor a directory", path)
		}
		if err != nil {
			return err
		}
		return acct.give(dest)
	})
	if err != nil {
		return fmt.Errorf("devpg: template %s: %w", from, err)
	}
	return nil
}

func copyFile(from, to string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// globQuote makes a path match only itself as a pattern.
func globQuote(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
