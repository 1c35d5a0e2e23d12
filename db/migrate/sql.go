package migrate

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strings"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	"github.com/pawl-dev/pawl/migrations"
)

// SQL writes what Up does to an empty database as one script for psql, the
// records of the migrations included: where a person ran it, Up finds nothing
// to do. It does not look at any database.
func SQL(w io.Writer) error { return writeSQL(w, migrations.FS) }

func writeSQL(w io.Writer, files fs.FS) error {
	names, err := fs.Glob(files, "*.sql") // sorted, and so is what goose makes of them
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	create, err := createTable()
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "CREATE SCHEMA IF NOT EXISTS pawl;\n\n%s;\n\n%s\n", create, recordSQL(0))
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return fmt.Errorf("migrate: %s: %w", name, err)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
		begin, commit := "BEGIN;\n", "COMMIT;\n"
		body, inTx := upPart(text)
		if !inTx {
			begin, commit = "", ""
		}
		fmt.Fprintf(out, "\n-- %s\n%s%s%s\n%s", name, begin, body, recordSQL(version), commit)
	}
	return out.Flush()
}

func recordSQL(version int64) string {
	return fmt.Sprintf("INSERT INTO %s (version_id, is_applied) VALUES (%d, true);", table, version)
}

// mark is a line meant for goose.
var mark = regexp.MustCompile(`^--\s*\+goose\s+(.*?)\s*$`)

// upPart returns what a file holds for the way up, without the marks meant for
// goose, and whether it is to run in a transaction.
func upPart(text []byte) (body string, inTx bool) {
	var part strings.Builder
	inTx = true
	up := false
	for line := range bytes.Lines(text) {
		found := mark.FindSubmatch(line)
		switch {
		case found == nil && up:
			part.Write(line)
		case found == nil: // before the way up, or on the way down
		case strings.EqualFold(string(found[1]), "up"):
			up = true
		case strings.EqualFold(string(found[1]), "down"):
			up = false
		case strings.EqualFold(string(found[1]), "no transaction"):
			inTx = false
		}
	}
	return strings.TrimSpace(part.String()) + "\n\n", inTx
}

// createTable returns the statement with which goose makes its table.
func createTable() (string, error) {
	store, err := database.NewStore(goose.DialectPostgres, table)
	if err != nil {
		return "", err
	}
	var rec recorder
	err = store.CreateVersionTable(context.Background(), &rec)
	return strings.ReplaceAll(rec.query, "\n\t", "\n"), err
}

// recorder stands in for a database and keeps the statement it is given.
type recorder struct {
	database.DBTxConn
	query string
}

func (r *recorder) ExecContext(_ context.Context, query string, _ ...any) (sql.Result, error) {
	r.query = query
	return nil, nil
}
