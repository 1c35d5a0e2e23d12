//go:build unix

package devpg

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// logBytesMax is the size from which on a log is begun anew at the next start.
const logBytesMax = 8 << 20

// logTailBytes is how much of the log a StartError holds at most.
const logTailBytes = 4 << 10

// postmaster is a server process that we started and wait for.
type postmaster struct {
	cmd      *exec.Cmd
	log      *os.File
	logStart int64 // where in the log this process began
	lock     *dirLock
	watchdog *watchdog
	done     chan struct{} // closed when it ended and the lock is free

	lastWords string // the end of its log; read after done
}

// launch starts a postmaster. It takes over lock and frees it when the process
// has ended. A goroutine of its own starts it and stays until it has ended,
// locked to its thread, for the kernel takes the death of that thread for ours.
func launch(cfg Config, bin binaries, acct account, lay places, lock *dirLock) (*postmaster, error) {
	log, start, err := openLog(cfg.Dir)
	if err != nil {
		return nil, errors.Join(err, lock.release())
	}
	cmd := exec.Command(filepath.Join(bin.dir, "postgres"), arguments(cfg, lay)...)
	cmd.Dir = lay.dataDir
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = acct.attr()
	diesWithUs(cmd.SysProcAttr)
	p := &postmaster{cmd: cmd, log: log, logStart: start, lock: lock, done: make(chan struct{})}
	started := make(chan error, 1)
	go p.run(cfg, started)
	if err := <-started; err != nil {
		<-p.done
		return nil, err
	}
	return p, nil
}

// run is the goroutine of the process.
func (p *postmaster) run(cfg Config, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	defer p.lock.release()
	defer p.log.Close()
	if err := p.cmd.Start(); err != nil {
		started <- err
		return
	}
	err := p.lock.note(p.cmd.Process.Pid)
	if err == nil && (!kernelStopsOrphans || cfg.Temporary) {
		p.watchdog, err = watch(p.cmd.Process.Pid, cfg)
	}
	if err != nil {
		err = errors.Join(err, p.cmd.Process.Kill())
	}
	started <- err
	_ = p.cmd.Wait() // how it ended is in ProcessState
	p.lastWords = p.tail()
	p.reapChildren()
	if !cfg.Temporary { // then it also removes the directory, still
		p.watchdog.dismiss()
	}
}

// reapChildren ends what a killed postmaster leaves behind, so that the next
// owner finds the directory at rest. What does not end is left to that owner.
func (p *postmaster) reapChildren() {
	ctx, cancel := context.WithTimeout(context.Background(), killMax)
	defer cancel()
	_ = killAll(ctx, func() []int { return serverProcesses(p.cmd.Dir, p.cmd.Process.Pid) })
}

// arguments returns the command line of the server.
func arguments(cfg Config, lay places) []string {
	settings := cfg.settings()
	settings["unix_socket_directories"] = quoteListItem(lay.socketDir)
	settings["listen_addresses"] = ""
	settings["port"] = strconv.Itoa(lay.port)
	if cfg.TCP {
		settings["listen_addresses"] = "127.0.0.1"
	}
	args := []string{"-D", lay.dataDir}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

// quoteListItem quotes a path for a setting that is a list.
func quoteListItem(path string) string {
	return `"` + strings.ReplaceAll(path, `"`, `""`) + `"`
}

// freePort returns a port nobody listens on now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func openLog(dir string) (*os.File, int64, error) {
	log, err := os.OpenFile(filepath.Join(dir, logName), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, 0, err
	}
	info, err := log.Stat()
	if err == nil && info.Size() > logBytesMax {
		err = log.Truncate(0)
	}
	if err == nil {
		info, err = log.Stat()
	}
	if err != nil {
		return nil, 0, errors.Join(err, log.Close())
	}
	return log, info.Size(), nil
}

// tail returns the end of what this process wrote into its log.
func (p *postmaster) tail() string {
	info, err := p.log.Stat()
	if err != nil {
		return err.Error()
	}
	from := max(p.logStart, info.Size()-logTailBytes)
	text := make([]byte, max(0, info.Size()-from))
	n, _ := p.log.ReadAt(text, from) // as much as there is
	return strings.TrimSpace(string(text[:n]))
}

// awaitReady returns when the server takes connections. If it ends instead, or
// ctx does, the process is gone when awaitReady returns its StartError.
func (p *postmaster) awaitReady(ctx context.Context, dir, dataDir string) error {
	err := poll(ctx, func() (bool, error) {
		select {
		case <-p.done:
			return false, fmt.Errorf("it ended: %v", p.cmd.ProcessState)
		default:
		}
		pf := readPidFile(dataDir)
		return pf.ready && pf.pid == p.cmd.Process.Pid, nil
	})
	if err == nil {
		return nil
	}
	p.signal(syscall.SIGQUIT)
	<-p.done
	return &StartError{Dir: dir, Log: p.lastWords, Err: err}
}

// signal signals the process unless it has ended.
func (p *postmaster) signal(sig os.Signal) {
	_ = p.cmd.Process.Signal(sig) // ended: nothing is left to be told
}
