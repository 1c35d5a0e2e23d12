package barrier

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
)

const (
	// RequestBytesMax bounds the body of a call, unless HTTP says otherwise: a saga's input and a step's output of a MiB each fit.
	RequestBytesMax = 4 << 20

	idleDefault = time.Minute
	retryAfter  = time.Second // what a caller is told with 425 and 503
)

// HeaderOutcome tells with a success what became of the call, in the words of Outcome.
const HeaderOutcome = "Pawl-Outcome"

// Work does what a call asks of a branch, in the transaction that records it. It neither ends tx nor uses it once it has returned, and it had better not call other services meanwhile.
// body is the call's. The result is JSON, or nil for none.
type Work func(ctx context.Context, tx pgx.Tx, b Branch, body []byte) (json.RawMessage, error)

// HTTP configures a handler of branches. The zero value works.
type HTTP struct {
	// Namespace is the number of the namespace in this database. Default: 1, "default".
	Namespace int16
	// Idle is how long work may leave its transaction idle; then the server ends it, so that a process that was frozen or cut off does not hold the branch for ever. An
	// idle_in_transaction_session_timeout of the role or database takes precedence; on MariaDB and MySQL a shorter wait_timeout, and it is in whole seconds. Default: 1 min.
	Idle time.Duration
	// RequestBytesMax bounds the body, which is read before work begins. Default: the constant of that name, 4 MiB.
	RequestBytesMax int64
	// Logger receives errors that callers see as 500 and 503. Default: none.
	Logger *slog.Logger
}

// Handler is that of an HTTP with its defaults.
func Handler(pool *pgxpool.Pool, work Work) http.Handler { return HTTP{}.Handler(pool, work) }

// WorkMySQL is Work in a transaction of MariaDB or MySQL, see [DoMySQL].
type WorkMySQL func(ctx context.Context, tx MySQLTx, b Branch, body []byte) (json.RawMessage, error)

// HandlerMySQL is Handler for a service whose database is MariaDB or MySQL.
func HandlerMySQL(on *sql.DB, work WorkMySQL) http.Handler { return HTTP{}.HandlerMySQL(on, work) }

// Handler answers calls of branches (POST, named by the headers of FromRequest): it begins a READ COMMITTED transaction, has work done in it as Do says, commits, and answers. Values
// below those that mean something count as the defaults. It is safe for concurrent use; each call has a connection of pool for as long as it takes. Errors are problem details (RFC 9457):
//
//	done, or done before, or nothing to compensate     | 200 with the result, null for none; Pawl-Outcome tells which
//	bad headers                                        | 400 that names them
//	refused, now or before; or compensated first       | 409 with the reason
//	another method; a body beyond RequestBytesMax      | 405, 413
//	another call of the branch is in flight            | 425 with Retry-After, after WaitMax; nothing was done
//	the connection was lost during COMMIT              | 503 with Retry-After; called again, the row tells
//	the database is away, the context ended            | 503 with Retry-After; nothing was done
//	any other error of work or of the database         | 500, rolled back; the text is for the Logger alone
//
// In two round trips beside those of work. A panic of work is rolled back and goes on to the server. A caller that goes away cancels the context, and so rolls back; if he goes during the
// commit, the work is done or not, and his next call finds out.
func (h HTTP) Handler(pool *pgxpool.Pool, work Work) http.Handler {
	h = h.withDefaults()
	return h.handler(func(ctx context.Context, b Branch, body []byte) (Result, error) {
		return h.do(ctx, pool, b, func(ctx context.Context, tx pgx.Tx) (json.RawMessage, error) { return work(ctx, tx, b, body) })
	})
}

// HandlerMySQL is Handler for a service whose database is MariaDB or MySQL: it does as RunMySQL.
func (h HTTP) HandlerMySQL(on *sql.DB, work WorkMySQL) http.Handler {
	h = h.withDefaults()
	return h.handler(func(ctx context.Context, b Branch, body []byte) (Result, error) {
		return runMySQL(ctx, on, h.Idle, b, func(ctx context.Context, tx MySQLTx) (json.RawMessage, error) { return work(ctx, tx, b, body) })
	})
}

func (h HTTP) withDefaults() HTTP {
	if h.Idle <= 0 {
		h.Idle = idleDefault
	}
	if h.RequestBytesMax <= 0 {
		h.RequestBytesMax = RequestBytesMax
	}
	if h.Logger == nil {
		h.Logger = slog.New(slog.DiscardHandler)
	}
	return h
}

// handler reads a call, has it done, and answers.
func (h HTTP) handler(call func(ctx context.Context, b Branch, body []byte) (Result, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			problem(w, http.StatusMethodNotAllowed, "Method not allowed", "A branch is called with POST.")
			return
		}
		b, err := FromRequest(r)
		if err != nil {
			problem(w, http.StatusBadRequest, "Branch is not named as it should be", strings.ReplaceAll(err.Error(), "\n", "; "))
			return
		}
		b.Namespace = h.Namespace
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.RequestBytesMax))
		if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
			problem(w, http.StatusRequestEntityTooLarge, "Request is too large", fmt.Sprintf("The body exceeds %d bytes.", h.RequestBytesMax))
			return
		}
		if err != nil { // cut short, by the caller or on the way
			problem(w, http.StatusBadRequest, "Request is incomplete", "The body could not be read to its end.")
			return
		}
		out, err := call(r.Context(), b, body)
		h.answer(w, r, b, out, err)
	})
}

var (
	errUnknown = errors.New("barrier: outcome unknown, the connection was lost during COMMIT")
	errAway    = errors.New("barrier: the database is away")
)

// do is Do in a transaction of its own. Its first question goes with BEGIN, its last with COMMIT.
func (h HTTP) do(ctx context.Context, pool *pgxpool.Pool, b Branch, work func(context.Context, pgx.Tx) (json.RawMessage, error)) (out Result, err error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", errAway, err)
	}
	defer conn.Release()
	defer func() {
		if err != nil && conn.Conn().IsClosed() {
			err = fmt.Errorf("%w: %w", errAway, err)
		}
	}()
	var e entry
	tx, err := db.BeginTx(ctx, conn.Conn(), enterSQL, b.enter(ctx, h.Idle), e.into()...)
	if err != nil {
		return Result{}, b.wrap("enter", err)
	}
	defer tx.Undo(ctx)
	out, leave, err := b.run(ctx, e, func(ctx context.Context) (json.RawMessage, error) { return work(ctx, tx) })
	if err != nil || !leave {
		return out, err
	}
	if out.Outcome == Refused {
		tx.Undo(ctx)
		return refuse(ctx, conn, b, out)
	}
	args, err := b.leave(out, e)
	if err != nil {
		return Result{}, err
	}
	unknown, err := tx.End(ctx, leaveSQL, args...)
	if unknown {
		return Result{}, fmt.Errorf("%w: %w", errUnknown, err)
	}
	if err != nil {
		return Result{}, b.wrap("leave", err)
	}
	return out, nil
}

// refuse records a refusal in a transaction of its own, unless another call of the branch has come to something meanwhile. After any error nothing was done.
func refuse(ctx context.Context, conn *pgxpool.Conn, b Branch, said Result) (out Result, err error) {
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		out, err = Do(ctx, tx, b, func(context.Context) (json.RawMessage, error) { return nil, Refuse(errors.New(said.Reason)) })
		return err
	})
	return out, err
}

func (h HTTP) answer(w http.ResponseWriter, r *http.Request, b Branch, out Result, err error) {
	complain := func(message string) { h.Logger.Error(message, "saga", b.ID, "step", b.Branch, "op", b.Op, "err", err) }
	switch {
	case err == nil && out.Outcome == Refused:
		problem(w, http.StatusConflict, "Refused", out.Reason)
	case err == nil:
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set(HeaderOutcome, string(out.Outcome))
		if out.Value == nil {
			out.Value = json.RawMessage("null")
		}
		_, _ = w.Write(out.Value)
	case errors.Is(err, ErrTooLate):
		problem(w, http.StatusConflict, "Too late", "The branch was compensated before it was called. Nothing was done.")
	case errors.Is(err, ErrInFlight):
		retry(w, http.StatusTooEarly, "In flight", "Another call of this branch is being worked on.")
	case errors.Is(err, errUnknown):
		complain("outcome of a branch unknown")
		retry(w, http.StatusServiceUnavailable, "Outcome unknown", "Make the same call again to learn what became of it.")
	case r.Context().Err() != nil: // nobody listens, or a deadline of the server's own
		retry(w, http.StatusServiceUnavailable, "Call was given up", "Nothing was done; the call may be made again.")
	case passes(err):
		complain("branch failed for now and was rolled back")
		retry(w, http.StatusServiceUnavailable, "Service is unavailable", "Nothing was done; the call may be made again.")
	default:
		complain("branch failed and was rolled back")
		problem(w, http.StatusInternalServerError, "Call failed", "The branch failed, and does not say more to its callers.")
	}
}

func retry(w http.ResponseWriter, status int, title, detail string) {
	w.Header().Set("Retry-After", strconv.Itoa(int(retryAfter/time.Second)))
	problem(w, status, title, detail)
}

// problem answers with problem details (RFC 9457).
func problem(w http.ResponseWriter, status int, title, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{title, status, detail})
}

// passes tells errors that go away by themselves: of the connection, a lack of resources, a lock, a server that stops or starts or is a standby.
func passes(err error) bool {
	code := db.Code(err)
	return errors.Is(err, errAway) || code == "25006" || code != "" && slices.Contains([]string{"08", "40", "53", "55", "57"}, code[:2]) || slices.Contains(mysqlPassing, db.MySQLNumber(err))
}
