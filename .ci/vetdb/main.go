// Vetdb runs a command with PAWL_VET_DATABASE_URL naming a migrated database:
//
//	go run ./.ci/vetdb .ci/tool sqlc vet
//
// The database is on a private Postgres that is gone afterwards, unless the variable already names one; that one is
// migrated and left.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/pawl-dev/pawl/db/devpg"
	"github.com/pawl-dev/pawl/db/migrate"
)

const variable = "PAWL_VET_DATABASE_URL"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vetdb:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, command []string) error {
	if len(command) == 0 {
		return errors.New("no command given")
	}
	url := os.Getenv(variable)
	if url == "" {
		server, err := devpg.Start(ctx, devpg.Config{
			Dir:       filepath.Join(os.TempDir(), "pawl-vet-"+strconv.Itoa(os.Getpid())),
			Temporary: true,
		})
		if err != nil {
			return err
		}
		defer server.Stop(context.WithoutCancel(ctx))
		url = server.URL("postgres")
	}
	if _, err := migrate.Up(ctx, url); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), variable+"="+url)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %q: %w", command, err)
	}
	return nil
}
