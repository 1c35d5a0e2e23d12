// Package migrate brings the schema pawl of a database up to the migrations in
// this binary, and down again. It is the one package that knows goose.
//
// Any number of processes may migrate the same database at once: they take
// turns by an advisory lock, and those who come late find nothing to do. A
// database that is up to date costs two queries and no lock. A crash in the
// middle leaves the migrations that were finished; each runs in a transaction
// of its own together with its record in the table pawl.migration, unless it
// says otherwise itself.
//
// The lock belongs to a session, so the database URL must be a direct one, not
// that of a pooler in transaction mode.
//
// # Errors
//
//	Situation                                 Error                    What to do
//	the database has migrations this binary   ErrNewer, *NewerError    run a binary at least as new
//	does not know
//	another migrator holds the lock           ErrBusy                  look what it does, then try again
//	a migration failed                        *FailedError             it was rolled back; see what it wraps
package migrate

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/pawl-dev/pawl/migrations"
)

// table is where goose records what was applied.
const table = "pawl.migration"

// Result says what Up or Down did.
type Result struct {
	Version int64  // of the database afterwards
	Steps   []Step // in the order they were taken; none if there was nothing to do
}

// Step is one migration that was applied or undone.
type Step struct {
	Version  int64
	Name     string // of its file
	Duration time.Duration
}

// Migration is one migration of this binary as a database stands to it.
type Migration struct {
	Version   int64
	Name      string    // of its file
	AppliedAt time.Time // zero if it is pending
}

// Up applies all migrations the database does not have yet. If one fails, the
// Result still tells of those before it.
//
// Errors: ErrNewer, ErrBusy, *FailedError.
func Up(ctx context.Context, databaseURL string) (Result, error) {
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return Result{}, fmt.Errorf("migrate: %w", err)
	}
	return newMigrator(config).up(ctx)
}

// UpPool is Up for the database of a pool. It opens a connection of its own.
func UpPool(ctx context.Context, pool *pgxpool.Pool) (Result, error) {
	return newMigrator(pool.Config().ConnConfig).up(ctx)
}

// Down undoes, newest first, the migrations after version to. Down to 0 leaves
// nothing of Pawl behind, the schema included; if there is something in the
// schema that no migration made, Down fails and leaves that.
//
// Errors: ErrNewer, ErrBusy, *FailedError.
func Down(ctx context.Context, databaseURL string, to int64) (Result, error) {
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return Result{}, fmt.Errorf("migrate: %w", err)
	}
	return newMigrator(config).down(ctx, to)
}

// Status returns the migrations of this binary, oldest first, and which of them
// the database has. It changes nothing and takes no lock.
//
// Errors: ErrNewer, together with the migrations, all applied.
func Status(ctx context.Context, databaseURL string) ([]Migration, error) {
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	return newMigrator(config).status(ctx)
}

// migrator holds what a migration needs besides a context.
type migrator struct {
	config      *pgx.ConnConfig
	files       fs.FS
	lockWaitMax time.Duration
}

func newMigrator(config *pgx.ConnConfig) migrator {
	return migrator{config: config, files: migrations.FS, lockWaitMax: lockWaitMax}
}

func (m migrator) up(ctx context.Context) (Result, error) {
	db, provider, err := m.open(goose.WithSessionLocker(locker{waitMax: m.lockWaitMax}))
	if err != nil {
		return Result{}, err
	}
	defer db.Close()
	begun, err := hasTable(ctx, db)
	if err != nil {
		return Result{}, err
	}
	if !begun {
		// goose makes its table where it first looks. This look takes the
		// lock, so only one of us makes the schema and the table.
		if _, err := provider.GetDBVersion(ctx); err != nil {
			return Result{}, fmt.Errorf("migrate: %w", err)
		}
	}
	if err := checkNotNewer(ctx, provider); err != nil {
		return Result{}, err
	}
	applied, err := provider.Up(ctx) // asks for pending ones without a lock first
	if err != nil {
		return failed(applied, err)
	}
	// While we waited for the lock, another may have gone further than we can.
	return finished(ctx, provider, applied)
}

func (m migrator) down(ctx context.Context, to int64) (Result, error) {
	db, provider, err := m.open(goose.WithSessionLocker(locker{waitMax: m.lockWaitMax}))
	if err != nil {
		return Result{}, err
	}
	defer db.Close()
	begun, err := hasTable(ctx, db)
	if err != nil || !begun {
		return Result{}, err
	}
	if err := checkNotNewer(ctx, provider); err != nil {
		return Result{}, err
	}
	undone, err := provider.DownTo(ctx, to)
	if err != nil {
		return failed(undone, err)
	}
	if to > 0 {
		return finished(ctx, provider, undone)
	}
	return Result{Steps: steps(undone)}, m.dropSchema(ctx, db)
}

func (m migrator) status(ctx context.Context) ([]Migration, error) {
	db, provider, err := m.open() // without a locker, for goose would take the lock
	if err != nil {
		return nil, err
	}
	defer db.Close()
	var all []Migration
	begun, err := hasTable(ctx, db)
	if err != nil {
		return nil, err
	}
	if !begun { // goose would make its table in order to look into it
		for _, source := range provider.ListSources() {
			all = append(all, Migration{Version: source.Version, Name: path.Base(source.Path)})
		}
		return all, nil
	}
	states, err := provider.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	for _, state := range states {
		all = append(all, Migration{
			Version: state.Source.Version, Name: path.Base(state.Source.Path), AppliedAt: state.AppliedAt,
		})
	}
	return all, checkNotNewer(ctx, provider)
}

// open returns a database with connections of its own and goose on it.
func (m migrator) open(options ...goose.ProviderOption) (*sql.DB, *goose.Provider, error) {
	config := m.config.Copy()
	config.RuntimeParams["timezone"] = "UTC" // goose records times without a zone
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "pawl migrate"
	}
	if config.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		config.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe // works behind a transaction pooler too
	}
	db := stdlib.OpenDB(*config)
	options = append(options,
		goose.WithTableName(table),
		goose.WithDisableGlobalRegistry(true),
		goose.WithLogger(goose.NopLogger()),
	)
	provider, err := goose.NewProvider(goose.DialectPostgres, db, m.files, options...)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("migrate: %w", err), db.Close())
	}
	return db, provider, nil
}

// hasTable reports whether the database was ever migrated.
func hasTable(ctx context.Context, db *sql.DB) (bool, error) {
	var has bool
	err := db.QueryRowContext(ctx, "SELECT pg_catalog.to_regclass($1) IS NOT NULL", table).Scan(&has)
	if err != nil {
		return false, fmt.Errorf("migrate: %w", err)
	}
	return has, nil
}

func checkNotNewer(ctx context.Context, provider *goose.Provider) error {
	database, binary, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if database > binary {
		return &NewerError{Database: database, Binary: binary}
	}
	return nil
}

func finished(ctx context.Context, provider *goose.Provider, results []*goose.MigrationResult) (Result, error) {
	database, binary, err := provider.GetVersions(ctx)
	if err != nil {
		return Result{Steps: steps(results)}, fmt.Errorf("migrate: %w", err)
	}
	result := Result{Version: database, Steps: steps(results)}
	if database > binary {
		return result, &NewerError{Database: database, Binary: binary}
	}
	return result, nil
}

func steps(results []*goose.MigrationResult) []Step {
	var all []Step
	for _, r := range results {
		all = append(all, Step{Version: r.Source.Version, Name: path.Base(r.Source.Path), Duration: r.Duration})
	}
	return all
}
