//go:build unix

package devpg_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/db/devpg"
)

// fakeBinaries makes a directory whose postgres calls itself that version.
func fakeBinaries(t *testing.T, dir, version string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"initdb", "postgres"} {
		script := "#!/bin/sh\necho '" + name + " (PostgreSQL) " + version + " (Some 1:2-3)'\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// openDir returns an empty directory that the user of the servers can enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(base, "")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFind(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	for _, version := range []string{"9.6.24", "13.9", "15.3", "15.12", "16beta1"} {
		fakeBinaries(t, filepath.Join(dir, "lib", version, "bin"), version)
	}
	fakeBinaries(t, filepath.Join(dir, "cache", "postgres-14.9-any", "bin"), "14.9")
	fakeBinaries(t, filepath.Join(dir, "path"), "18.1")
	old := fakeBinaries(t, filepath.Join(dir, "old"), "13.1")
	installed := devpg.Finder{Globs: []string{filepath.Join(dir, "lib", "*", "bin")}}
	for _, c := range []struct {
		name   string
		finder devpg.Finder
		want   int
		got    string
		err    error
	}{
		{"newest", installed, 0, "16beta1", nil},
		{"as the data", installed, 15, "15.12", nil},
		{"no such major", installed, 18, "", devpg.ErrVersion},
		{"too old for us", installed, 13, "", devpg.ErrVersion},
		{"cache first", devpg.Finder{Globs: installed.Globs, CacheDir: filepath.Join(dir, "cache")}, 0, "14.9", nil},
		{"cache of another major", devpg.Finder{Globs: installed.Globs, CacheDir: filepath.Join(dir, "cache")}, 15, "15.12", nil},
		{"path", devpg.Finder{Path: "/nowhere:" + filepath.Join(dir, "path")}, 0, "18.1", nil},
		{"variable", devpg.Finder{EnvDir: filepath.Join(dir, "path"), Globs: installed.Globs}, 0, "18.1", nil},
		{"variable of another major", devpg.Finder{EnvDir: filepath.Join(dir, "path"), Globs: installed.Globs}, 15, "", devpg.ErrVersion},
		{"variable too old", devpg.Finder{EnvDir: old, Globs: installed.Globs}, 0, "", devpg.ErrVersion},
		{"variable of nothing", devpg.Finder{EnvDir: "/nowhere", Globs: installed.Globs}, 0, "", devpg.ErrNoBinaries},
		{"caller", devpg.Finder{BinDir: filepath.Join(dir, "lib", "15.3", "bin"), EnvDir: old}, 0, "15.3", nil},
		{"nothing", devpg.Finder{}, 0, "", devpg.ErrNoBinaries},
		{"nothing for the data", devpg.Finder{}, 16, "", devpg.ErrNoBinaries},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, got, err := c.finder.Find(bounded(t), c.want)
			if got != c.got || !errors.Is(err, c.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, c.got, c.err)
			}
		})
	}
}

// TestFind_error checks that the message says what to do.
func TestFind_error(t *testing.T) {
	t.Parallel()
	_, _, err := devpg.Finder{CacheDir: openDir(t), Path: "/nowhere"}.Find(bounded(t), 0)
	if !errors.Is(err, devpg.ErrNoBinaries) {
		t.Fatalf("got %v, want ErrNoBinaries", err)
	}
	for _, part := range []string{"install", "npm", "PAWL_PG_BIN", "PAWL_DATABASE_URL", "PAWL_TEST_DATABASE_URL"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not mention %s", err, part)
		}
	}
}

func TestAdvice(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		goos, release string
		want          int
		advice        string
	}{
		{"linux", "NAME=x\nID=debian\n", 0, "apt-get install postgresql,"},
		{"linux", "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", 16, "apt-get install postgresql-16,"},
		{"linux", "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", 0, "dnf install postgresql-server,"},
		{"linux", "ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", 15, "zypper install postgresql15-server,"},
		{"linux", "ID=alpine\n", 17, "apk add postgresql17,"},
		{"linux", "ID=arch\n", 0, "pacman -S postgresql,"},
		{"linux", "", 0, "install the server package of PostgreSQL with"},
		{"freebsd", "", 16, "install the server package of PostgreSQL 16 with"},
		{"darwin", "", 0, "brew install postgresql@17,"},
		{"darwin", "", 15, "brew install postgresql@15,"},
	} {
		if got := devpg.AdviceFor(c.goos, c.release, c.want); !strings.HasPrefix(got, c.advice) {
			t.Errorf("%s %q %d: got %q, want %q", c.goos, c.release, c.want, got, c.advice)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	t.Parallel()
	versions := []string{"17.10", "9.6.24", "17beta1", "17.9", "15", "18devel"}
	slices.SortFunc(versions, devpg.CompareVersions)
	want := []string{"9.6.24", "15", "17beta1", "17.9", "17.10", "18devel"}
	if !slices.Equal(versions, want) {
		t.Errorf("got %v, want %v", versions, want)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	_, err := devpg.Start(bounded(t), devpg.Config{
		Port: 70000, Settings: map[string]string{"port": "1", "a b": "", "work_mem": "1MB"},
	})
	if err == nil {
		t.Fatal("got no error")
	}
	for _, part := range []string{"Dir", "70000", "TCP", "setting port", `"a b"`} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not mention %s", err, part)
		}
	}
	if strings.Contains(err.Error(), "work_mem") {
		t.Errorf("%q mentions work_mem", err)
	}
}

func TestStart_errors(t *testing.T) {
	t.Parallel()
	t.Run("setting", func(t *testing.T) {
		t.Parallel()
		cfg := devpg.Config{Dir: newDir(t), Template: template(t), Settings: map[string]string{"shared_buffers": "plenty"}}
		_, err := devpg.Start(bounded(t), cfg)
		var failed *devpg.StartError
		if !errors.As(err, &failed) || !strings.Contains(failed.Log, "plenty") || !strings.Contains(err.Error(), failed.Log) {
			t.Errorf("got %v, want a StartError with the log", err)
		}
		cfg.Settings = nil
		start(t, cfg)
	})
	t.Run("version", func(t *testing.T) {
		t.Parallel()
		server := start(t, devpg.Config{Dir: newDir(t)})
		stop(t, server)
		if err := os.WriteFile(filepath.Join(server.DataDir(), "PG_VERSION"), []byte("13\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := devpg.Start(bounded(t), server.Config()); !errors.Is(err, devpg.ErrVersion) {
			t.Errorf("got %v, want ErrVersion", err)
		}
	})
	t.Run("full directory", func(t *testing.T) {
		t.Parallel()
		dir := openDir(t)
		mine := filepath.Join(dir, "mine")
		if err := os.WriteFile(mine, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := devpg.Start(bounded(t), devpg.Config{Dir: dir, Temporary: true}); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("got %v, want an error about %s", err, dir)
		}
		if entries, err := os.ReadDir(dir); len(entries) != 1 {
			t.Errorf("the directory was changed: %v, %v", entries, err)
		}
	})
	t.Run("running template", func(t *testing.T) {
		t.Parallel()
		server := start(t, devpg.Config{Dir: newDir(t)})
		if _, err := devpg.Start(bounded(t), devpg.Config{Dir: newDir(t), Template: server.DataDir()}); err == nil {
			t.Error("got no error")
		}
	})
	t.Run("out of reach", func(t *testing.T) {
		t.Parallel()
		parent := openDir(t)
		if err := os.Chmod(parent, 0o700); err != nil {
			t.Fatal(err)
		}
		server, err := devpg.Start(bounded(t), devpg.Config{Dir: filepath.Join(parent, "pg"), Template: template(t)})
		if os.Geteuid() == 0 {
			if !errors.Is(err, devpg.ErrUnreachable) || !strings.Contains(err.Error(), parent) {
				t.Errorf("got %v, want ErrUnreachable of %s", err, parent)
			}
			return
		}
		if err != nil {
			t.Fatalf("the server runs as ourselves, yet: %v", err)
		}
		stop(t, server)
	})
}

// TestDistribution checks that what is installed here is found without help.
func TestDistribution(t *testing.T) {
	t.Parallel()
	installed, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		t.Fatal(err)
	}
	dir, version, err := devpg.Finder{Globs: devpg.DistributionGlobs, CacheDir: openDir(t), Path: "/nowhere"}.Find(bounded(t), 0)
	if len(installed) > 0 && (err != nil || !strings.HasPrefix(dir, "/usr/lib/postgresql/")) {
		t.Errorf("got %s %s, %v; want one of %v", dir, version, err, installed)
	}
}

func npmPath(t *testing.T) string {
	t.Helper()
	var dirs []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if _, err := exec.LookPath(filepath.Join(dir, "postgres")); err != nil {
			dirs = append(dirs, dir)
		}
	}
	return strings.Join(dirs, string(filepath.ListSeparator))
}
