package idempotency

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
)

// RequestBytesMax bounds the body of a request, unless HTTP says otherwise.
const RequestBytesMax = 1 << 20

// HTTP configures Middleware. Scope is required. Routes that differ in something take a middleware each.
type HTTP struct {
	Options

	// Scope tells whose key it is: the authenticated client or tenant, and the host if that matters. The method and the path, as the client sent it, are added. Answers are replayed without asking the handler, so who may make
	// the request is to be checked before, outside of the middleware.
	Scope func(*http.Request) string
	// Methods are those that take a key; others pass through without a transaction. Default: POST and PATCH, since HTTP defines GET, HEAD, OPTIONS, PUT and DELETE as idempotent.
	Methods []string
	// Optional lets a request without a key through: it has its transaction, which is committed before the answer is sent, and nothing is stored. Default: a key is demanded.
	Optional bool
	// Phases has the handler run under a claim, see ClaimOf, in place of a transaction. A key is demanded then.
	Phases bool
	// Stored tells by its status whether an answer is stored; if not, it is sent after a rollback (or with the claim given up at its newest point), so that the request may be made again.
	// Default: 2xx, 3xx and 4xx are, but for those that another try may have other luck with, though the request is the same: 401, 407, 408, 409, 412, 421, 423, 425 and 429.
	Stored func(status int) bool
	// Headers of an answer that are stored and replayed. Default: Content-Type, Content-Encoding, Content-Language, Content-Disposition, Content-Location, Location, ETag,
	// Last-Modified and Link. Set-Cookie had better not be among them; those of one connection, Content-Length and Date cannot be.
	Headers []string
	// RequestBytesMax bounds a request's body, which is read before the handler runs. Default: the constant of that name, 1 MiB.
	RequestBytesMax int64
	// RetryAfter is what a client is told with 409 and 503, in whole seconds, rounded up. Default: 1 s.
	RetryAfter time.Duration
	// Docs is the URL of the page that tells the API's clients about idempotency. It is the type of the problem details that are sent, with a fragment: #key-missing,
	// #key-invalid, #key-reused, #in-flight, #outcome-unknown, #unavailable, #request-invalid, #request-too-large, #failed. Default: no type, as RFC 9457 has it for problems
	// that the status says all about.
	Docs string
	// Logger receives errors that clients see as 500 and 503; where the client has gone, for debugging only. Default: none.
	Logger *slog.Logger
}

// HeaderReplayed marks an answer that was stored before.
const HeaderReplayed = "Idempotent-Replayed"

const headerKey = "Idempotency-Key"

type (
	txKey    struct{}
	claimKey struct{}
)

// Tx is the transaction of the request, in which the handler is to write; nil for a request that takes no key, and under HTTP.Phases. It is the same one each time. The handler
// may not end it, nor use it from several goroutines at once, nor after it has returned.
func Tx(ctx context.Context) pgx.Tx {
	tx, _ := ctx.Value(txKey{}).(pgx.Tx)
	return tx
}

// ClaimOf is the claim of the request under HTTP.Phases, for PhaseTx and Phase; nil otherwise.
func ClaimOf(ctx context.Context) *Claim {
	c, _ := ctx.Value(claimKey{}).(*Claim)
	return c
}

// Middleware answers requests of the same Idempotency-Key (draft-ietf-httpapi-idempotency-key-header) once: the handler runs in a transaction, see Tx, or in phases, see
// ClaimOf; its answer is held back, stored and committed, then sent, and replayed from then on with Idempotent-Replayed: true. Requests are the same if their method, path,
// query, Content-Type and body are. The error lists every fault of conf. Errors are problem details (RFC 9457):
//
//	no key, or a bad one                               | 400
//	another request with the same key                  | 422, before anything is replayed
//	in flight                                          | 409 with Retry-After; or it waits, with Options.Wait
//	the body exceeds RequestBytesMax, the path a scope | 413, 414
//	the connection lost during COMMIT                  | 503 with Retry-After; asked again, what is stored tells
//	the database is away, the context ended            | 503 with Retry-After; nothing was changed
//	an answer too large, a transaction ended within    | 500; nothing is stored
//	a recovery point that the code does not know       | 500; nothing was changed
//	anything else of the database                      | 500, rolled back
//
// Under Phases an error of PhaseTx or Phase that is not the handler's own is answered like that too, whatever the handler writes.
//
// What the handler writes is held back until the commit: it can neither flush nor hijack (http.ResponseController says that it is not supported), and 1xx answers and trailers
// are dropped. A handler that panics is rolled back, and the panic goes on to the server, http.ErrAbortHandler too. A handler whose client has gone is cancelled with
// the request's context, and rolled back. If the client goes during the commit, the answer is stored, or not, and the retry finds out.
//
// The body must not have been read before, by an outer handler that calls FormValue for one: the middleware could not tell requests apart, and answers 500.
func Middleware(pool *pgxpool.Pool, conf HTTP) (func(http.Handler) http.Handler, error) {
	if err := conf.validate(); err != nil {
		return nil, err
	}
	conf = conf.withDefaults()
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { conf.serve(pool, next, w, r) })
	}, nil
}

func (h HTTP) validate() error {
	faults := []error{h.Options.validate()}
	if h.Scope == nil {
		faults = append(faults, fmt.Errorf("%w: Scope is missing: without it a client could be given another's answer", ErrInvalid))
	}
	if h.RequestBytesMax < 0 || h.RetryAfter < 0 {
		faults = append(faults, fmt.Errorf("%w: RequestBytesMax and RetryAfter may not be below 0", ErrInvalid))
	}
	if h.Optional && h.Phases {
		faults = append(faults, fmt.Errorf("%w: Phases need a key: it cannot be Optional", ErrInvalid))
	}
	for _, name := range h.Headers {
		if slices.Contains(neverStored, http.CanonicalHeaderKey(name)) {
			faults = append(faults, fmt.Errorf("%w: header %s is of one connection or answer and cannot be replayed", ErrInvalid, name))
		}
	}
	if u, err := url.Parse(h.Docs); err != nil || u.Fragment != "" {
		faults = append(faults, fmt.Errorf("%w: Docs %q is not a URL without fragment", ErrInvalid, h.Docs))
	}
	return errors.Join(faults...)
}

func (h HTTP) withDefaults() HTTP {
	h.Options = h.Options.withDefaults()
	if h.Methods == nil {
		h.Methods = []string{http.MethodPost, http.MethodPatch}
	}
	if h.Stored == nil {
		h.Stored = storedByDefault
	}
	if h.Headers == nil {
		h.Headers = []string{
			"Content-Type", "Content-Encoding", "Content-Language", "Content-Disposition", "Content-Location", "Location", "Etag", "Last-Modified", "Link",
		}
	}
	if h.RequestBytesMax == 0 {
		h.RequestBytesMax = RequestBytesMax
	}
	if h.RetryAfter == 0 {
		h.RetryAfter = time.Second
	}
	if h.Logger == nil {
		h.Logger = slog.New(slog.DiscardHandler)
	}
	return h
}

func storedByDefault(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusProxyAuthRequired, http.StatusRequestTimeout, http.StatusConflict, http.StatusPreconditionFailed, http.StatusMisdirectedRequest,
		http.StatusLocked, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return status < 500
}

// errNotStored carries an answer that is sent after a rollback.
var errNotStored = errors.New("idempotency: the answer is not stored")

func (h HTTP) serve(pool *pgxpool.Pool, next http.Handler, w http.ResponseWriter, r *http.Request) {
	if !slices.Contains(h.Methods, r.Method) {
		next.ServeHTTP(w, r)
		return
	}
	values := r.Header.Values(headerKey)
	if len(values) == 0 && !h.Optional {
		h.problem(w, http.StatusBadRequest, "key-missing", "Idempotency-Key is missing", "This request needs an Idempotency-Key: a value of the client's own choice, the same in every try of one request.")
		return
	}
	name, err := readKey(values)
	if err != nil && len(values) > 0 {
		h.problem(w, http.StatusBadRequest, "key-invalid", "Idempotency-Key is malformed", err.Error())
		return
	}
	body, ok := h.readBody(w, r)
	if !ok {
		return
	}
	path, _, _ := strings.Cut(target(r), "?")
	// Neither the method nor the path holds a space: what comes after the second one is Scope's.
	key := Key{Scope: r.Method + " " + path + " " + h.Scope(r), Key: name}
	if len(key.Scope) > ScopeBytesMax && len(path) > ScopeBytesMax/2 {
		h.problem(w, http.StatusRequestURITooLong, "request-invalid", "Path is too long", "The path is too long for a request with an Idempotency-Key.")
		return
	}
	if !isText(path) {
		h.problem(w, http.StatusBadRequest, "request-invalid", "Path is malformed", "The path must be UTF-8, percent-encoded where that is needed.")
		return
	}
	held := newRecorder(h.BodyBytesMax)
	handle := func(ctx context.Context) (Response, error) {
		inner := r.WithContext(ctx)
		inner.Body, inner.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		next.ServeHTTP(held, inner)
		return held.response(h.Headers, h.Stored)
	}
	inTx := func(ctx context.Context, tx pgx.Tx) (Response, error) {
		return handle(context.WithValue(ctx, txKey{}, tx))
	}
	var (
		out      Response
		replayed bool
	)
	switch sum := fingerprint(r, body); {
	case len(values) == 0:
		err = unkeyed(r.Context(), pool, h.Options, inTx)
	case h.Phases:
		out, replayed, err = Phases(r.Context(), pool, key, sum, h.Options, func(ctx context.Context, c *Claim) (Response, error) {
			out, err := handle(context.WithValue(ctx, claimKey{}, c))
			if c.fault != nil { // whatever the handler made of it
				err = c.fault
			}
			return out, err
		})
	default:
		out, replayed, err = Do(r.Context(), pool, key, sum, h.Options, inTx)
	}
	h.answer(w, r, held, out, replayed, err)
}

// readBody reads the request's body, or answers.
func (h HTTP) readBody(w http.ResponseWriter, r *http.Request) (body []byte, ok bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.RequestBytesMax))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		h.problem(w, http.StatusRequestEntityTooLarge, "request-too-large", "Request is too large", fmt.Sprintf("The body exceeds %d bytes.", h.RequestBytesMax))
	case err != nil: // cut short, by the client or on the way
		h.problem(w, http.StatusBadRequest, "request-invalid", "Request is incomplete", "The body could not be read to its end.")
	case len(body) == 0 && r.ContentLength > 0:
		h.Logger.Error("the body of a request was read before the idempotency middleware", "method", r.Method, "path", r.URL.Path)
		h.problem(w, http.StatusInternalServerError, "failed", "Request failed", "Nothing was changed.")
	default:
		return body, true
	}
	return nil, false
}

// answer sends what came of a request.
func (h HTTP) answer(w http.ResponseWriter, r *http.Request, held *recorder, out Response, replayed bool, err error) {
	switch {
	case errors.Is(err, ErrInFlight), errors.Is(err, ErrLost): // whatever the handler made of that
		h.retry(w, http.StatusConflict, "in-flight", "Request is in flight", "Another request with this Idempotency-Key is being worked on.")
	case err == nil && !replayed, errors.Is(err, errNotStored):
		held.send(w)
	case err == nil:
		replay(w, out)
	case errors.Is(err, ErrMismatch):
		h.problem(w, http.StatusUnprocessableEntity, "key-reused", "Idempotency-Key was used already", "The key was used for another request.")
	case errors.Is(err, ErrUnknown):
		h.complain(r, "outcome of a request unknown", err)
		h.retry(w, http.StatusServiceUnavailable, "outcome-unknown", "Outcome unknown", "Make the same request again, with the same Idempotency-Key, to learn what became of it.")
	case r.Context().Err() != nil: // nobody listens, or a deadline of the server's own
		h.retry(w, http.StatusServiceUnavailable, "unavailable", "Request was given up", "It may be made again.")
	case passes(err):
		h.Logger.Error("request failed for now and was rolled back", "err", err)
		h.retry(w, http.StatusServiceUnavailable, "unavailable", "Service is unavailable", "The request may be made again.")
	default:
		h.Logger.Error("request failed and was rolled back", "err", err)
		h.problem(w, http.StatusInternalServerError, "failed", "Request failed", "The request was not carried out.")
	}
}

// complain logs an error, unless it is only that the client has gone.
func (h HTTP) complain(r *http.Request, message string, err error) {
	level := slog.LevelError
	if r.Context().Err() != nil {
		level = slog.LevelDebug
	}
	h.Logger.Log(context.WithoutCancel(r.Context()), level, message, "err", err)
}

// unkeyed runs a request without a key in a transaction of its own.
func unkeyed(ctx context.Context, pool *pgxpool.Pool, o Options, fn func(context.Context, pgx.Tx) (Response, error)) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("idempotency: %w", err)
	}
	defer conn.Release()
	var began time.Time
	tx, err := db.BeginTx(ctx, conn.Conn(), boundSQL, []any{o.Idle.Milliseconds()}, &began)
	if err != nil {
		return fmt.Errorf("idempotency: %w", wrap(err))
	}
	defer tx.Undo(ctx)
	if _, err := fn(ctx, tx); err != nil {
		return err
	}
	unknown, err := tx.End(ctx, intactSQL, began)
	return ended("commit", unknown, err)
}

// passes tells errors that go away by themselves: of the connection, a lack of resources, a lock, a server that stops or starts or is a
// standby.
func passes(err error) bool {
	if errors.Is(err, ErrInvalid) || errors.Is(err, ErrSchema) || errors.Is(err, ErrPoint) || errors.Is(err, ErrEnded) {
		return false
	}
	code := db.Code(err)
	return code == "" || code == "25006" || slices.Contains([]string{"08", "40", "53", "55", "57"}, code[:2])
}
