package migrate

import (
	"context"
	"database/sql"
	"fmt"
)

// dropSchema removes the table of goose and the schema after all migrations
// were undone. It does so under the lock, and not if another migrated up again
// meanwhile. A schema that is not ours to drop, someone made it for us, stays.
func (m migrator) dropSchema(ctx context.Context, db *sql.DB) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer conn.Close()
	if err := lock(ctx, conn, m.lockWaitMax); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer unlock(ctx, conn)
	begun, err := hasTable(ctx, db)
	if err != nil || !begun {
		return err
	}
	var version int64
	if err := conn.QueryRowContext(ctx, "SELECT max(version_id) FROM pawl.migration").Scan(&version); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if version > 0 {
		return nil
	}
	if err := dropEmpty(ctx, conn); err != nil {
		return fmt.Errorf("migrate: drop schema pawl: %w", err)
	}
	return nil
}

func dropEmpty(ctx context.Context, conn *sql.Conn) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "DROP TABLE pawl.migration"); err != nil {
		return err
	}
	var owned bool
	err = tx.QueryRowContext(ctx,
		"SELECT pg_catalog.pg_has_role(nspowner, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = 'pawl'").Scan(&owned)
	if err != nil {
		return err
	}
	if owned {
		if _, err := tx.ExecContext(ctx, "DROP SCHEMA pawl"); err != nil {
			return err
		}
	}
	return tx.Commit()
}
