//go:build unix

package devpg

import (
	"context"
	"log/slog"
	"os/exec"
)

// Finder lets tests say where binaries are looked for.
type Finder struct {
	BinDir, EnvDir, CacheDir, Path string
	Globs                          []string
}

// Find returns the directory and version of what the finder finds.
func (f Finder) Find(ctx context.Context, want int) (dir, version string, err error) {
	acct, err := serverAccount("")
	if err != nil {
		return "", "", err
	}
	b, err := finder{
		binDir: f.BinDir, envDir: f.EnvDir, cacheDir: f.CacheDir, globs: f.Globs, path: f.Path,
		acct: acct, log: slog.New(slog.DiscardHandler),
	}.find(ctx, want)
	return b.dir, b.version, err
}

// RunAsServer makes the command run as the user of the servers.
func RunAsServer(cmd *exec.Cmd) error {
	acct, err := serverAccount("")
	cmd.SysProcAttr = acct.attr()
	cmd.Env = environment()
	return err
}

// ServerUID returns the user of the servers.
func ServerUID() (int, error) {
	acct, err := serverAccount("")
	return acct.uid(), err
}

// Prepare makes the directories of a server.
func Prepare(dir string) error {
	acct, err := serverAccount("")
	if err == nil {
		_, err = prepare(dir, acct)
	}
	return err
}

var (
	AdviceFor         = adviceFor
	CheckHash         = checkHash
	CompareVersions   = compareVersions
	DistributionGlobs = distributionGlobs
	PinnedArchives    = pinnedArchives
	ServerProcesses   = serverProcesses
	Unpack            = unpack
)

const PinnedMajor = pinnedMajor
