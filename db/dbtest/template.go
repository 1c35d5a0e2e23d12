package dbtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db/migrate"
	"github.com/pawl-dev/pawl/migrations"
)

const (
	// templateLock is the advisory lock under which a template is made:
	// "pawl" and "tmpl" in ASCII.
	templateLock int64 = 0x7061776c746d706c

	// templateRetry is the pause between two attempts to take it. A blocking
	// attempt would be a transaction that CREATE DATABASE waits for.
	templateRetry = 20 * time.Millisecond
)

// templateName returns the name of the template for the migrations as they are.
func templateName() (string, error) {
	hash := sha256.New()
	err := fs.WalkDir(migrations.FS, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(migrations.FS, path)
		fmt.Fprintf(hash, "%s %d\n%s", path, len(text), text)
		return err
	})
	return "pawl_template_" + hex.EncodeToString(hash.Sum(nil)[:8]), err
}

// ensureTemplate makes the template unless it is there. It is made under
// another name, so that a crash in the middle leaves none that is half done.
func ensureTemplate(ctx context.Context, conn *pgx.Conn, c *cluster) error {
	if has, err := hasDatabase(ctx, conn, c.template); has || err != nil {
		return err
	}
	if err := lockTemplate(ctx, conn); err != nil {
		return err
	}
	defer conn.Exec(context.WithoutCancel(ctx), "SELECT pg_catalog.pg_advisory_unlock($1)", templateLock)
	if has, err := hasDatabase(ctx, conn, c.template); has || err != nil {
		return err
	}
	building := c.template + "_new"
	if _, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+quote(building)+" WITH (FORCE)"); err != nil {
		return err
	}
	if err := c.clone(ctx, conn, "template0", building); err != nil {
		return err
	}
	if _, err := migrate.Up(ctx, c.url(building)); err != nil {
		return err
	}
	return finishTemplate(ctx, conn, building, c.template)
}

// finishTemplate closes the database to all and gives it its name. The
// migrator's connection may take a moment to be gone.
func finishTemplate(ctx context.Context, conn *pgx.Conn, building, name string) error {
	if _, err := conn.Exec(ctx, "ALTER DATABASE "+quote(building)+" WITH ALLOW_CONNECTIONS false"); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE datname = $1", building)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "ALTER DATABASE "+quote(building)+" RENAME TO "+quote(name))
	return err
}

func lockTemplate(ctx context.Context, conn *pgx.Conn) error {
	ticker := time.NewTicker(templateRetry)
	defer ticker.Stop()
	for {
		var held bool
		err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_try_advisory_lock($1)", templateLock).Scan(&held)
		if held || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the template: %w", context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

func hasDatabase(ctx context.Context, conn *pgx.Conn, name string) (bool, error) {
	var one int
	err := conn.QueryRow(ctx, "SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1", name).Scan(&one)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}
