//go:build unix

package devpg

import (
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// watchdogScript reads from a pipe that nobody writes to, so it goes on when
// the process at its other end has died. It then stops the server, unless that
// has ended and its process id is another's by now, and removes a temporary
// directory.
const watchdogScript = `
pid=$1 dir=$2 temporary=$3 file=$2/` + dataName + `/postmaster.pid
read -r _
[ "$(head -n 1 "$file" 2>/dev/null)" = "$pid" ] && kill -INT "$pid"
tries=0
while [ -e "$file" ] && kill -0 "$pid" 2>/dev/null && [ $tries -lt 300 ]; do
	sleep 0.1 || sleep 1
	tries=$((tries+1))
done
[ "$temporary" = true ] && [ ! -e "$dir/` + keepName + `" ] && rm -rf "$dir"
`

// watching holds the watchdogs that are not dismissed: one whose Server is
// garbage, as after a Kill, would have its pipe closed by the collector and
// take our work for our death.
var watching sync.Map

// watchdog is a small process that outlives us to clean up after us.
type watchdog struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser // held open for as long as we live
	once sync.Once
}

// watch starts a watchdog for the server with that process id.
func watch(pid int, cfg Config) (*watchdog, error) {
	cmd := exec.Command("/bin/sh", "-c", watchdogScript, "pawl-watchdog",
		strconv.Itoa(pid), cfg.Dir, strconv.FormatBool(cfg.Temporary))
	cmd.Dir = filepath.Dir(cfg.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("devpg: start watchdog: %w", err)
	}
	w := &watchdog{cmd: cmd, pipe: pipe}
	watching.Store(w, nil)
	return w, nil
}

// dismiss ends the watchdog before it does anything. It may be called again.
func (w *watchdog) dismiss() {
	if w == nil {
		return
	}
	w.once.Do(func() {
		watching.Delete(w)
		_ = w.cmd.Process.Kill() // ended already: all the better
		_ = w.cmd.Wait()         // it was killed
	})
}
