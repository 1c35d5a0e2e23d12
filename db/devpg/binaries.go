//go:build unix

package devpg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// majorMin is the oldest major version that will do.
const majorMin = 14

// binEnv names the variable that holds a directory of binaries.
const binEnv = "PAWL_PG_BIN"

// distributionGlobs is where installers put the programs of the server.
var distributionGlobs = []string{
	"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
	"/usr/lib/postgresql*/bin",  // SUSE
	"/usr/libexec/postgresql*",  // Alpine
	"/usr/pgsql-*/bin",          // Fedora and RHEL, from postgresql.org
	"/usr/local/pgsql/bin",      // built from source
	"/opt/homebrew/opt/*/bin",   // Homebrew on Apple silicon
	"/usr/local/opt/*/bin",      // Homebrew on Intel
	"/home/linuxbrew/.linuxbrew/opt/*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// binaries is a directory with initdb and postgres of one version.
type binaries struct {
	dir     string
	version string // "15.13"
	major   int
}

// finder looks for binaries. Its fields are the places where it looks.
type finder struct {
	binDir   string // of the caller; "" means none was given
	envDir   string // of PAWL_PG_BIN; "" means unset
	cacheDir string
	globs    []string
	path     string // as in PATH
	acct     account
	log      *slog.Logger
}

func newFinder(cfg Config, acct account) finder {
	return finder{
		binDir:   cfg.BinDir,
		envDir:   os.Getenv(binEnv),
		cacheDir: cfg.CacheDir,
		globs:    distributionGlobs,
		path:     os.Getenv("PATH"),
		acct:     acct,
		log:      cfg.Logger,
	}
}

// find returns the first binaries that serve. want is the major version of the
// data there is, 0 if there is none.
//
// A directory that was named and does not serve is an error: to go on looking
// would be to use something else than what was asked for.
func (f finder) find(ctx context.Context, want int) (binaries, error) {
	for _, named := range []struct{ by, dir string }{{"BinDir", f.binDir}, {binEnv, f.envDir}} {
		if named.dir == "" {
			continue
		}
		b, err := f.inspect(ctx, named.dir)
		if ctx.Err() != nil {
			return b, context.Cause(ctx)
		}
		if err != nil {
			return binaries{}, fmt.Errorf("%w: %s is %s: %w", ErrNoBinaries, named.by, named.dir, err)
		}
		if !b.serves(want) {
			return binaries{}, fmt.Errorf("%w: %s is %s, which holds %s; %s", ErrVersion, named.by, named.dir, b.version, needed(want))
		}
		return b, nil
	}
	var others []string
	for _, dirs := range [][]string{f.cached(), f.installed(), f.onPath()} {
		b, seen, ok := f.newest(ctx, dirs, want)
		if ok {
			return b, nil
		}
		others = append(others, seen...)
	}
	b, err := f.fetch(ctx, want)
	if err == nil {
		return b, nil
	}
	if ctx.Err() != nil { // then what there is was not looked at either
		return b, context.Cause(ctx)
	}
	if want != 0 && len(others) > 0 {
		return b, fmt.Errorf("%w: %s; here is %s; %s", ErrVersion, needed(want), strings.Join(others, ", "), advice(want))
	}
	return b, fmt.Errorf("%w: %w; %s", ErrNoBinaries, err, advice(want))
}

// newest returns the newest binaries in dirs that serve, and else what there was.
func (f finder) newest(ctx context.Context, dirs []string, want int) (binaries, []string, bool) {
	var found []binaries
	var others []string
	for _, dir := range dirs {
		b, err := f.inspect(ctx, dir)
		switch {
		case err != nil:
			f.log.Debug("binaries passed over", "dir", dir, "err", err)
		case !b.serves(want):
			others = append(others, b.version+" in "+dir)
		default:
			found = append(found, b)
		}
	}
	if len(found) == 0 {
		return binaries{}, others, false
	}
	return slices.MaxFunc(found, func(a, b binaries) int { return compareVersions(a.version, b.version) }), nil, true
}

func (f finder) cached() []string {
	dirs, _ := filepath.Glob(filepath.Join(f.cacheDir, "postgres-*", "bin")) // the pattern is well formed
	return dirs
}

func (f finder) installed() []string {
	var dirs []string
	for _, glob := range f.globs {
		found, _ := filepath.Glob(glob) // the patterns are well formed
		dirs = append(dirs, found...)
	}
	return slices.DeleteFunc(dirs, func(dir string) bool { return !isFile(filepath.Join(dir, "postgres")) })
}

func (f finder) onPath() []string {
	var dirs []string
	for _, dir := range filepath.SplitList(f.path) {
		if filepath.IsAbs(dir) && isFile(filepath.Join(dir, "postgres")) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)(\S*)`)

// inspect asks the programs in dir for their version, as the account that will
// run them: so that it may run them is seen at once.
func (f finder) inspect(ctx context.Context, dir string) (binaries, error) {
	if !isFile(filepath.Join(dir, "initdb")) {
		return binaries{}, errors.New("it holds no initdb")
	}
	out, err := f.acct.run(ctx, "/", filepath.Join(dir, "postgres"), "--version")
	if err != nil {
		return binaries{}, err
	}
	m := versionPattern.FindStringSubmatch(out)
	if m == nil {
		return binaries{}, fmt.Errorf("its postgres calls itself %q", out)
	}
	major, err := strconv.Atoi(m[1])
	if err != nil {
		return binaries{}, err
	}
	return binaries{dir: dir, version: m[1] + m[2], major: major}, nil
}

func (b binaries) serves(want int) bool {
	return b.major >= majorMin && (want == 0 || b.major == want)
}

// compareVersions compares the numbers of two versions, such as 9.6 and 17beta1.
func compareVersions(a, b string) int {
	numbers := func(s string) []int {
		var ns []int
		for _, digits := range strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
			n, _ := strconv.Atoi(digits) // digits only; too many of them count as the greatest
			ns = append(ns, n)
		}
		return ns
	}
	return cmp.Or(slices.Compare(numbers(a), numbers(b)), cmp.Compare(a, b))
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// onPathOf returns where program lies in the directories of path.
func onPathOf(path, program string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, program)
		if info, err := os.Stat(file); filepath.IsAbs(file) && err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("%s: %w", program, exec.ErrNotFound)
}
