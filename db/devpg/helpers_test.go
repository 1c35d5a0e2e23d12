//go:build unix

package devpg_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db/devpg"
)

// patience bounds everything these tests wait for.
const patience = time.Minute

// base is where all servers of this test binary live: short, and open to the
// user that a root's servers run as.
var base string

func TestMain(m *testing.M) {
	if dir := os.Getenv("DEVPG_TEST_OWNER_OF"); dir != "" {
		os.Exit(beOwner(dir))
	}
	var err error
	base, err = os.MkdirTemp("", "devpg-")
	if err == nil {
		err = os.Chmod(base, 0o711)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	if err := os.RemoveAll(base); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// beOwner is what this binary does when a test runs it as another process: it
// starts a server, says so, and lives until it is killed or its input ends.
func beOwner(dir string) int {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	server, err := devpg.Start(ctx, devpg.Config{
		Dir:       dir,
		Template:  os.Getenv("DEVPG_TEST_TEMPLATE"),
		Temporary: os.Getenv("DEVPG_TEST_TEMPORARY") == "true",
		Settings:  map[string]string{"synchronous_commit": "on"},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(server.PID(), server.Adopted())
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := server.Stop(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// owner is another process that started a server.
type owner struct {
	cmd     *exec.Cmd
	input   io.Closer
	pid     int // of the postmaster
	adopted bool
}

func startOwner(t *testing.T, dir string, temporary bool) *owner {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "DEVPG_TEST_OWNER_OF="+dir, "DEVPG_TEST_TEMPLATE="+template(t),
		"DEVPG_TEST_TEMPORARY="+strconv.FormatBool(temporary))
	cmd.Stderr = os.Stderr
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	o := &owner{cmd: cmd, input: input}
	t.Cleanup(o.kill)
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatalf("owner: %v", err)
	}
	if _, err := fmt.Sscan(line, &o.pid, &o.adopted); err != nil {
		t.Fatalf("owner said %q: %v", line, err)
	}
	return o
}

// kill kills the owner, not its server.
func (o *owner) kill() {
	_ = o.cmd.Process.Kill()
	_ = o.cmd.Wait()
}

// quit has the owner stop its server and end.
func (o *owner) quit(t *testing.T) {
	t.Helper()
	if err := errors.Join(o.input.Close(), o.cmd.Wait()); err != nil {
		t.Errorf("owner: %v", err)
	}
}

// newDir returns a name for a server's directory, which goes with the test.
func newDir(t *testing.T) string {
	t.Helper()
	parent, err := os.MkdirTemp(base, "")
	if err == nil {
		err = os.Chmod(parent, 0o711)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dirs, _ := filepath.Glob(filepath.Join(parent, "*"))
		for _, dir := range dirs {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			if err := devpg.Remove(ctx, dir); err != nil {
				t.Errorf("clean up: %v", err)
			}
			cancel()
		}
		if err := os.RemoveAll(parent); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return filepath.Join(parent, "pg")
}

// template returns a data directory to copy, for initdb takes its time.
func template(t *testing.T) string {
	t.Helper()
	dataDir, err := makeTemplate()
	if err != nil {
		t.Fatal(err)
	}
	return dataDir
}

var makeTemplate = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	server, err := devpg.Start(ctx, devpg.Config{Dir: filepath.Join(base, "template")})
	if err != nil {
		return "", err
	}
	return server.DataDir(), server.Stop(ctx)
})

// start starts a server from the template and stops it with the test.
func start(t *testing.T, cfg devpg.Config) *devpg.Server {
	t.Helper()
	if cfg.Template == "" {
		cfg.Template = template(t)
	}
	server, err := devpg.Start(bounded(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, server) })
	return server
}

func stop(t *testing.T, server *devpg.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Stop(ctx); err != nil {
		t.Errorf("Stop: %v", err)
	}
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// ask connects, runs a query for one text, and leaves.
func ask(ctx context.Context, url, query string) (string, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return "", err
	}
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return strings.Join(texts, " "), err
}

func mustAsk(t *testing.T, server *devpg.Server, query string) string {
	t.Helper()
	text, err := ask(bounded(t), server.URL("postgres"), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return text
}

// eventually waits until done.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for ctx := bounded(t); !done(); {
		select {
		case <-ctx.Done():
			t.Fatalf("still not: %s", what)
		case <-ticker.C:
		}
	}
}
