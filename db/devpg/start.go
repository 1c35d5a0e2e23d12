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
	"time"
)

const (
	// startMax bounds Start, which may have to fetch binaries.
	startMax = fetchMax + time.Minute

	// orphanStopMax bounds how long a server whose owner died may take to
	// stop, and the children of a killed one to notice. Then they are killed.
	orphanStopMax = 10 * time.Second

	// startTriesMax is how often a start is tried at most, if what keeps it
	// from succeeding will pass. Each try takes some 50 ms.
	startTriesMax = 100

	// prepareTriesMax is how often the directories are made at most, while
	// others remove them: until one of us holds its lock, it is nobody's.
	prepareTriesMax = 20
)

// places is where one server keeps and offers what it has.
type places struct {
	dir, dataDir, socketDir string
	port                    int
}

// Start returns the server in cfg.Dir: the one that runs there, else one that
// it starts. When Start returns, the server takes connections. If several
// processes call it at once, one starts the server and the others adopt it.
//
// ctx bounds the start only, the server goes on without it. A crash in the
// middle of Start leaves nothing that the next Start does not put right.
//
// Errors: ErrNoBinaries, ErrVersion, ErrUnreachable, *StartError, and the
// cause of ctx if the owner of the server did not get it ready in time.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	acct, err := serverAccount(filepath.Join(cfg.Dir, dataName))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	at, err := prepare(cfg.Dir, acct)
	if err != nil {
		return nil, err
	}

	var server *Server
	var lastErr error
	err = poll(ctx, func() (bool, error) {
		lock, err := tryLock(cfg.Dir)
		if errors.Is(err, os.ErrNotExist) { // removed by another, since it was nobody's
			_, err = prepare(cfg.Dir, acct)
			return false, err
		}
		if err != nil {
			return false, err
		}
		if lock != nil {
			server, err = startOwned(ctx, cfg, acct, at, lock)
		}
		if lock == nil || errors.Is(err, errForeign) {
			server, lastErr = adopt(ctx, cfg, at)
			return server != nil, nil
		}
		return server != nil, err
	})
	if err != nil && lastErr != nil {
		err = fmt.Errorf("%w; the server there: %w", err, lastErr)
	}
	if err != nil {
		return nil, fmt.Errorf("start server in %s: %w", cfg.Dir, err)
	}
	cfg.Logger.Info("server ready", "dir", cfg.Dir, "pid", server.pid, "version", server.version, "adopted", server.Adopted())
	return server, nil
}

// prepare makes the directories of a server, again if they are removed
// meanwhile, and tells where they are.
func prepare(dir string, acct account) (at places, err error) {
	for range prepareTriesMax {
		at, err = prepareOnce(dir, acct)
		if !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return at, err
}

func prepareOnce(dir string, acct account) (places, error) {
	if err := checkOurs(dir); err != nil {
		return places{}, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return places{}, err
	}
	perm := os.FileMode(0o700)
	if acct.cred != nil {
		perm = 0o711 // the other user passes through
	}
	if err := mkdir(dir, perm); err != nil {
		return places{}, err
	}
	if err := acct.checkReach(dir); err != nil {
		return places{}, err
	}
	at := places{dir: dir, dataDir: filepath.Join(dir, dataName), socketDir: socketDirOf(dir), port: socketPort}
	return at, makeSocketDir(at.socketDir, acct)
}

// checkOurs refuses a directory that holds something else than a server.
func checkOurs(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == lockName || e.Name() == socketName }) {
		return fmt.Errorf("%s is not empty and holds no server of ours", dir)
	}
	return nil
}

// mkdir makes dir, whatever the umask, or does nothing if it exists.
func mkdir(dir string, perm os.FileMode) error {
	err := os.Mkdir(dir, perm)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return errors.Join(err, os.Chmod(dir, perm))
}

// makeSocketDir makes the directory that only the server's user, and root, can
// enter. If it exists it must be just that: another user may have made one
// under that name where all may write.
func makeSocketDir(dir string, acct account) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		return acct.give(dir)
	}
	if !errors.Is(err, os.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && os.Geteuid() == 0 && st.Uid == 0 { // made by a starter that has not given it away yet
		return acct.give(dir)
	}
	if !ok || !info.IsDir() || int(st.Uid) != acct.uid() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s must be a directory of user %s that nobody else can enter", dir, acct.name)
	}
	return nil
}

// errForeign means that a server runs in the directory which none of us owns.
var errForeign = errors.New("devpg: the server was started by other means")

// startOwned starts a server as its owner. It takes over lock and frees it on
// every error.
func startOwned(ctx context.Context, cfg Config, acct account, at places, lock *dirLock) (*Server, error) {
	launched := false
	defer func() {
		if !launched {
			_ = lock.release() // closing frees it, whatever it returns
		}
	}()
	if err := clearRemains(ctx, at, lock.postmaster()); err != nil {
		return nil, err
	}
	if err := makeSocketDir(at.socketDir, acct); err != nil {
		return nil, err
	}
	bin, err := dataAndBinaries(ctx, cfg, acct, at.dataDir)
	if err != nil {
		return nil, err
	}
	launched = true
	p, at, err := launchReady(ctx, cfg, bin, acct, at, lock)
	if err != nil {
		return nil, err
	}
	s := &Server{
		config: cfg, dir: at.dir, dataDir: at.dataDir, socketDir: at.socketDir,
		binDir: bin.dir, version: bin.version, port: at.port, tcp: cfg.TCP,
		pid: p.cmd.Process.Pid, own: p,
	}
	s.password, err = readPassword(at.dataDir)
	return s, err
}

// dataAndBinaries finds the binaries for the data, and makes the data if there
// is none.
func dataAndBinaries(ctx context.Context, cfg Config, acct account, dataDir string) (binaries, error) {
	source := dataDir
	major, err := dataMajor(dataDir)
	if err == nil && major == 0 && cfg.Template != "" {
		source = cfg.Template
		major, err = dataMajor(source)
	}
	if err != nil {
		return binaries{}, err
	}
	bin, err := newFinder(cfg, acct).find(ctx, major)
	if err != nil {
		return bin, err
	}
	if major != 0 && source == dataDir {
		return bin, nil
	}
	cfg.Logger.Info("making the data directory", "dir", dataDir, "version", bin.version)
	return bin, makeData(ctx, cfg, bin, acct, dataDir)
}

// launchReady launches the server, waits until it is ready, and returns it with
// the port it got. It tries again if what it met will pass: the shared memory of
// a killed server whose children have not noticed yet, where we cannot see those,
// and another process on the port we found free.
func launchReady(ctx context.Context, cfg Config, bin binaries, acct account, at places, lock *dirLock) (*postmaster, places, error) {
	for try := 1; ; try++ {
		if err := choosePort(cfg, &at); err != nil {
			return nil, at, errors.Join(err, lock.release())
		}
		p, err := launch(cfg, bin, acct, at, lock)
		if err != nil {
			return nil, at, err
		}
		err = p.awaitReady(ctx, at.dir, at.dataDir)
		var failed *StartError
		if err == nil || !errors.As(err, &failed) || try == startTriesMax || !passes(cfg, failed) {
			return p, at, err
		}
		if lock, err = tryLock(at.dir); err != nil || lock == nil {
			return nil, at, errors.Join(failed, err)
		}
	}
}

func choosePort(cfg Config, at *places) (err error) {
	switch {
	case cfg.Port != 0:
		at.port = cfg.Port
	case cfg.TCP:
		at.port, err = freePort()
	}
	return err
}

// passes reports whether a server that did not start may do so in a moment.
func passes(cfg Config, failed *StartError) bool {
	return strings.Contains(failed.Log, "pre-existing shared memory block") ||
		cfg.TCP && cfg.Port == 0 && strings.Contains(failed.Log, "could not bind")
}

func readPassword(dataDir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dataDir, passwordName))
	return string(text), err
}
