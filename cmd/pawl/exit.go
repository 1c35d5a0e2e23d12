package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/coordinator/tcc"
	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/migrate"
)

// The exit codes, as --help lists them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitUnreachable = 4
	exitSchema      = 5
	exitInterrupted = 130
)

var (
	// errNoDatabase means that no database was named and no private one runs.
	errNoDatabase = errors.New("no database to work on")
	// errPending means that the database lacks migrations of this binary.
	errPending = errors.New("the schema is missing or too old")
)

// usageError is wrong usage or input.
type usageError struct{ message string }

func (e usageError) Error() string { return e.message }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// reportedError is the end of a command that has already said what is wrong.
type reportedError struct{ cause error }

func (e reportedError) Error() string { return e.cause.Error() }
func (e reportedError) Unwrap() error { return e.cause }

// codeError is an end with an exit code of its own; cause nil: there is nothing to say.
type codeError struct {
	code  int
	cause error
}

func (e codeError) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.cause.Error()
}
func (e codeError) Unwrap() error { return e.cause }

// exitCode translates what a command returned.
func exitCode(err error) int {
	var (
		own     codeError
		use     usageError
		connect *pgconn.ConnectError
		badURL  *pgconn.ParseConfigError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &own):
		return own.code
	case errors.As(err, &use), errors.As(err, &badURL), errors.Is(err, job.ErrInvalid), errors.Is(err, job.ErrPayloadTooLarge), errors.Is(err, lock.ErrInvalid),
		errors.Is(err, outbox.ErrInvalid), errors.Is(err, saga.ErrInvalid), errors.Is(err, saga.ErrPayloadTooLarge), errors.Is(err, twophase.ErrInvalid), errors.Is(err, tcc.ErrInvalid), errors.Is(err, coordinator.ErrUnknownSweep):
		return exitUsage
	case errors.Is(err, job.ErrNotFound), errors.Is(err, outbox.ErrNotFound), errors.Is(err, saga.ErrNotFound), errors.Is(err, saga.ErrUnregistered), errors.Is(err, twophase.ErrNotFound), errors.Is(err, tcc.ErrNotFound), errors.Is(err, session.ErrNamespace):
		return exitNotFound
	case errors.Is(err, errPending), errors.Is(err, migrate.ErrNewer), errors.Is(err, session.ErrSchema), errors.Is(err, job.ErrSchema), lacksSchema(err):
		return exitSchema
	case errors.Is(err, errNoDatabase), errors.Is(err, errUnreachable), errors.As(err, &connect):
		return exitUnreachable
	default:
		return exitFailed
	}
}

// lacksSchema tells that something of the schema is not there, or not as this binary knows it.
func lacksSchema(err error) bool {
	return db.IsUnmigrated(err) || db.Code(err) == "42703" // a column
}

// complain prints err on one line, with what to do about it.
func (a *app) complain(err error) {
	var reported reportedError
	var own codeError
	if errors.As(err, &reported) || errors.As(err, &own) && own.cause == nil {
		return
	}
	fmt.Fprintln(a.err, "pawl: "+message(err))
}

// message is what a person is told of err, on one line.
func message(err error) string {
	text := oneLine(err.Error())
	var connect *pgconn.ConnectError
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.As(err, &connect):
		text = errUnreachable.Error() + ": " + lastTry(connect)
	case lacksSchema(err) && !strings.Contains(text, "pawl migrate up"):
		text = db.Message(err) + `; run "pawl migrate up"`
	case db.Code(err) != "":
		text = strings.TrimSuffix(text, " (SQLSTATE "+db.Code(err)+")")
	}
	for _, h := range hints {
		if errors.Is(err, h.err) {
			text = strings.TrimSuffix(text, ".") + "; " + h.hint
		}
	}
	return withoutTags(text)
}

// hints say what to do about errors that do not say it themselves.
var hints = []struct {
	err  error
	hint string
}{
	{saga.ErrNotFound, `"pawl saga list" lists sagas, "pawl saga show ID" the steps of one`},
	{saga.ErrUnregistered, `"pawl saga definitions" lists those that are`},
	{saga.ErrConflict, `"pawl saga show ID" tells which one has it: give another --id`},
	{saga.ErrEnded, `nothing is left to do, "pawl saga show ID" tells how it went`},
	{twophase.ErrNotFound, `"pawl tx list --all" lists those that are known: one that has not come to its commit point is not`},
	{twophase.ErrDecided, `nobody can change that; "pawl tx show ID" tells what it waits for`},
	{tcc.ErrNotFound, `"pawl tcc list" lists those that are known; over databases: "pawl tx list"`},
	{tcc.ErrNotStuck, `"pawl tcc show ID" says what it waits for`},
	{tcc.ErrConfirmed, `nobody can take that back; "pawl tcc show ID" tells how far it is`},
	{tcc.ErrBusy, `nothing was done: try again`},
	{tcc.ErrUnknown, `"pawl tcc show ID" tells whether it was done`},
	{saga.ErrNotWaiting, `"pawl saga show ID" says what it waits for, and what can be done`},
}

// lastTry is why the last of the tries to connect failed, which says more than those before it: with TLS, to the other address of a name.
func lastTry(err *pgconn.ConnectError) string {
	text := strings.TrimSpace(err.Error())
	last := strings.TrimSpace(text[strings.LastIndexByte(text, '\n')+1:])
	if _, after, ok := strings.Cut(last, "): "); ok { // host:port twice, once resolved
		last = after
	}
	where := err.Config.Host
	if !strings.HasPrefix(where, "/") {
		where = net.JoinHostPort(where, strconv.Itoa(int(err.Config.Port)))
	}
	return fmt.Sprintf("%s, database %s, user %s: %s; see that Postgres runs there and that --database-url or PAWL_DATABASE_URL is right",
		where, err.Config.Database, err.Config.User, last)
}

// tags are where an error comes from, which tells a user nothing.
var tags = []string{"job: ", "lock: ", "outbox: ", "saga: ", "session: ", "coordinator: ", "worker: ", "twophase: ", "tcc: ", "migrate: ", "pawl: "}

func withoutTags(text string) string {
	for _, tag := range tags {
		text = strings.ReplaceAll(strings.ReplaceAll(text, ": "+tag, ": "), "; "+tag, "; ")
		text = strings.TrimPrefix(text, tag)
	}
	return text
}

// oneLine folds the lines of an error into one.
func oneLine(text string) string {
	var parts []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.ReplaceAll(strings.Join(parts, "; "), ":; ", ": ")
}
