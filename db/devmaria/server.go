//go:build unix

package devmaria

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	socketBytesMax = 103                   // of a socket's path, the least that a Unix allows
	readyPause     = 10 * time.Millisecond // between two looks whether the server answers
	helloMax       = time.Second           // how long its greeting may take
	logBytesMax    = 4 << 10               // of its log in an error
	handshake      = 10                    // the protocol's version, with which a greeting begins
)

// Server is a private MariaDB. Its methods are safe for concurrent use, but for Restart, which goes after Kill or the server's end.
type Server struct {
	dir       string
	temporary bool
	account   *syscall.Credential // nil: ourselves
	settings  []string

	mu   sync.Mutex
	pid  int
	done chan struct{} // closed when the server has ended; nil: adopted
	dog  *watchdog
}

// Start starts a server whose data is in dir, which is made and initialised if it is not there, or adopts the one that another process has started there, and returns once it answers. An empty dir stands for a
// temporary one, which goes with the server. Settings are options of the server, such as "--log-bin". Where none is installed the error is ErrNotInstalled.
func Start(ctx context.Context, dir string, settings ...string) (*Server, error) {
	acct, err := account()
	if err != nil {
		return nil, err
	}
	if _, err := find("mariadbd"); err != nil {
		return nil, err
	}
	s := &Server{dir: dir, temporary: dir == "", account: acct, settings: settings}
	if s.temporary {
		s.dir, err = os.MkdirTemp("", "pawl-maria-")
	} else {
		s.dir, err = filepath.Abs(dir)
	}
	if err == nil && len(s.Socket()) > socketBytesMax {
		err = fmt.Errorf("%w: %s has more than %d bytes", ErrTooLong, s.Socket(), socketBytesMax)
	}
	if err == nil {
		err = os.MkdirAll(s.dir, 0o700)
	}
	if err == nil && acct != nil {
		err = os.Chown(s.dir, int(acct.Uid), int(acct.Gid))
	}
	if err == nil {
		err = s.start(ctx)
	}
	if err != nil {
		if s.temporary && s.dir != "" {
			_ = os.RemoveAll(s.dir)
		}
		return nil, err
	}
	return s, nil
}

// Dir is the server's directory.
func (s *Server) Dir() string { return s.dir }

// Socket is the path of the server's socket.
func (s *Server) Socket() string { return filepath.Join(s.dir, "sock") }

// DSN names a database of the server as github.com/go-sql-driver/mysql takes it.
func (s *Server) DSN(database string) string { return "root@unix(" + s.Socket() + ")/" + database }

// URL is the same for --participant of pawl.
func (s *Server) URL(database string) string {
	u := url.URL{Scheme: "mysql", User: url.User("root"), Host: "localhost", Path: "/" + database, RawQuery: url.Values{"socket": {s.Socket()}}.Encode()}
	return u.String()
}

// Adopted tells that another process has started the server, and will stop it.
func (s *Server) Adopted() bool { return s.Done() == nil }

// Done is closed when the server has ended; after Restart another is. Of an adopted one it is nil: its end shows in the connections only.
func (s *Server) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

func (s *Server) data() string  { return filepath.Join(s.dir, "data") }
func (s *Server) log() string   { return filepath.Join(s.dir, "mariadb.log") } // the server would add an ending to one that has none
func (s *Server) noted() string { return filepath.Join(s.dir, "pid") }

// Restart starts a server again that was killed, or has ended, unless another process was quicker. What was committed or prepared is there.
func (s *Server) Restart(ctx context.Context) error {
	if done := s.Done(); done != nil {
		<-done
	}
	return s.start(ctx)
}

// start starts the server if the lock of its directory is free, and adopts it once it answers where another process has that.
func (s *Server) start(ctx context.Context) error {
	ticker := time.NewTicker(readyPause)
	defer ticker.Stop()
	for {
		lock, err := s.lock()
		if err != nil {
			return fmt.Errorf("devmaria: %w", err)
		}
		if lock != nil {
			return s.launch(ctx, lock)
		}
		if s.answers() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.pid, s.done, s.dog = 0, nil, nil
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("devmaria: another process has the server in %s, which does not answer: %w", s.dir, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// lock takes the lock of the directory, which its owner has as long as the server runs; nil: another process has it.
func (s *Server) lock() (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return file, nil
	}
	_ = file.Close() // nothing was written
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = nil
	}
	return nil, err
}

// launch starts the server, and gives back the lock when that has ended.
func (s *Server) launch(ctx context.Context, lock *os.File) error {
	done := make(chan struct{})
	if err := s.run(ctx, done, lock); err != nil {
		_ = lock.Close()
		return err
	}
	if err := s.ready(ctx, done); err != nil {
		_ = s.Kill()
		return err
	}
	return nil
}

func (s *Server) run(ctx context.Context, done chan struct{}, lock *os.File) error {
	program, err := find("mariadbd")
	if err != nil {
		return err
	}
	if err := s.install(ctx); err != nil {
		return err
	}
	s.removeHalfMade()
	if err := s.killAnswering(ctx); err != nil { // one whose owner has died, and which is not killed yet
		return err
	}
	// Its life is not bounded by ctx.
	args := append([]string{
		"--no-defaults", "--datadir=" + s.data(), "--socket=" + s.Socket(), "--pid-file=" + s.noted(), "--log-error=" + s.log(), "--skip-networking",
		"--skip-name-resolve", "--innodb-flush-log-at-trx-commit=1", "--innodb-buffer-pool-size=32M", "--max-connections=300",
	}, s.settings...)
	cmd := s.command(context.Background(), program, args...)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("devmaria: %w", err)
	}
	dog, err := watch(cmd.Process.Pid, s.dir, s.temporary)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		return err
	}
	s.mu.Lock()
	s.pid, s.done, s.dog = cmd.Process.Pid, done, dog
	s.mu.Unlock()
	go func() {
		_ = cmd.Wait() // its log says why it ended
		dog.dismiss(s.temporary)
		_ = lock.Close()
		close(done)
	}()
	return nil
}

// ready waits until the server answers.
func (s *Server) ready(ctx context.Context, done <-chan struct{}) error {
	ticker := time.NewTicker(readyPause)
	defer ticker.Stop()
	for !s.answers() {
		select {
		case <-done:
			return fmt.Errorf("devmaria: the server in %s has ended as it started:\n%s", s.dir, s.lastSaid())
		case <-ctx.Done():
			return fmt.Errorf("devmaria: start the server in %s: %w", s.dir, context.Cause(ctx))
		case <-ticker.C:
		}
	}
	return nil
}

// answers tells whether the server greets who connects.
func (s *Server) answers() bool {
	conn, err := net.DialTimeout("unix", s.Socket(), helloMax)
	if err != nil {
		return false
	}
	defer conn.Close()
	stop := time.AfterFunc(helloMax, func() { _ = conn.Close() })
	defer stop.Stop()
	hello := make([]byte, 5) // length and number of the packet, then the first byte
	_, err = io.ReadFull(conn, hello)
	return err == nil && hello[4] == handshake
}

func (s *Server) lastSaid() string {
	text, err := os.ReadFile(s.log())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-logBytesMax):])
}

// Kill kills the server, an adopted one too, as the end of a machine would, and returns when it is gone. Its directory stays.
func (s *Server) Kill() error {
	if s.Adopted() {
		return s.killAnswering(context.Background())
	}
	return s.signal(context.Background(), syscall.SIGKILL)
}

// killAnswering kills the server that answers, if one does, by the process id that it has noted before it did, and waits until it does not answer.
func (s *Server) killAnswering(ctx context.Context) error {
	ticker := time.NewTicker(readyPause)
	defer ticker.Stop()
	for s.answers() {
		text, err := os.ReadFile(s.noted())
		if err != nil {
			return fmt.Errorf("devmaria: a server answers in %s: %w", s.dir, err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || pid <= 1 {
			return fmt.Errorf("devmaria: a server answers in %s: %s holds no process id: %q", s.dir, s.noted(), text)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("devmaria: end the server in %s: %w", s.dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("devmaria: end the server in %s: %w", s.dir, context.Cause(ctx))
		case <-ticker.C:
		}
	}
	return nil
}

// Stop shuts the server down, unless it is adopted, and removes a temporary directory. It may be called again, and after Kill. If ctx ends first, the server goes on stopping. Branches that are prepared stay so.
func (s *Server) Stop(ctx context.Context) error {
	if s.Adopted() {
		return nil
	}
	if err := s.signal(ctx, syscall.SIGTERM); err != nil {
		return err
	}
	if !s.temporary {
		return nil
	}
	s.mu.Lock()
	s.dog.dismiss(false)
	s.mu.Unlock()
	return os.RemoveAll(s.dir)
}

func (s *Server) signal(ctx context.Context, sig syscall.Signal) error {
	s.mu.Lock()
	pid, done := s.pid, s.done
	s.mu.Unlock()
	select {
	case <-done: // the process id may be another's by now
		return nil
	default:
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("devmaria: end the server in %s: %w", s.dir, err)
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("devmaria: stop the server in %s: %w", s.dir, context.Cause(ctx))
	}
}

// watchdogScript reads from a pipe that nobody writes to, so it goes on when the process at its other end has died. It then kills the server, unless that is known to have ended, and removes a temporary directory.
// A line before the end of the pipe says that the server has ended.
const watchdogScript = `
pid=$1 dir=$2 temporary=$3
read -r ended || kill -KILL "$pid"
[ -z "$ended" ] || read -r _
[ "$temporary" != true ] || while [ -e "$dir" ]; do rm -rf "$dir" || sleep 1; done
`

// watching holds the watchdogs that are not dismissed: the pipe of one that is garbage would be closed by the collector.
var watching sync.Map

// watchdog is a small process that outlives us to clean up after us.
type watchdog struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser // held open for as long as we live
	once sync.Once
}

func watch(pid int, dir string, temporary bool) (*watchdog, error) {
	cmd := exec.Command("/bin/sh", "-c", watchdogScript, "pawl-watchdog", strconv.Itoa(pid), dir, strconv.FormatBool(temporary))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("devmaria: start watchdog: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("devmaria: start watchdog: %w", err)
	}
	w := &watchdog{cmd: cmd, pipe: pipe}
	watching.Store(w, nil)
	return w, nil
}

// dismiss tells the watchdog that the server has ended. With stay it still waits to remove the directory.
func (w *watchdog) dismiss(stay bool) {
	if stay {
		_, _ = io.WriteString(w.pipe, "ended\n") // if it has died there is none to tell
		return
	}
	w.once.Do(func() {
		watching.Delete(w)
		_ = w.cmd.Process.Kill() // ended already: all the better
		_ = w.cmd.Wait()         // it was killed
	})
}
