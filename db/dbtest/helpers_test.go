package dbtest_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience bounds everything these tests wait for.
const patience = time.Minute

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// ask returns what one query says on a connection of its own.
func ask[T any](ctx context.Context, url, sql string, args ...any) (got T, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return got, err
	}
	defer conn.Close(ctx)
	err = conn.QueryRow(ctx, sql, args...).Scan(&got)
	return got, err
}

// inner returns a command that runs one of the tests below in another process.
// Those tests do nothing unless they are run so.
func inner(t *testing.T, test string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(bounded(t), os.Args[0], "-test.run=^"+test+"$", "-test.v", "-test.count=1")
	cmd.Env = append(append(os.Environ(), "DBTEST_INNER="+test), env...)
	return cmd
}

func isInner(t *testing.T) bool { return os.Getenv("DBTEST_INNER") == t.Name() }

// say hands a line to the outer test.
func say(what string, value any) { fmt.Printf("\ninner %s %v\n", what, value) }

// said returns what the inner test said.
func said(output, what string) string {
	for line := range strings.Lines(output) {
		if value, ok := strings.CutPrefix(line, "inner "+what+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
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
