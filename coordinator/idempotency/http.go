package idempotency

import (
	"bytes"
	"context"
	"crypto/sha256"
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
)

// HTTP configures Middleware. Scope is required.
type HTTP struct {
	Options

	// Scope tells whose key a request's is: the authenticated client. The method and the path are added to it.
	Scope func(*http.Request) string
	// Methods need a key; others pass through without a transaction. Default: POST and PATCH: HTTP defines GET, HEAD, OPTIONS, PUT and DELETE as idempotent.
	Methods []string
	// Headers of an answer that are stored and replayed. Default: Content-Type, Content-Language, Location, ETag, Last-Modified. Set-Cookie had better not be among them.
	Headers []string
	// RequestBytesMax bounds a request's body, which is read before the handler runs. Default: 1 MiB.
	RequestBytesMax int64
	// RetryAfter is what a client is told that finds its key in flight or whose outcome is unknown. Default: 1 s.
	RetryAfter time.Duration
	// Logger receives errors that clients see as 500 and 503; where the client has gone, for debugging only. Default: none.
	Logger *slog.Logger
}

// HeaderReplayed marks an answer that was stored before.
const HeaderReplayed = "Idempotent-Replayed"

const headerKey = "Idempotency-Key"

type txKey struct{}

// Tx is the transaction of the request, in which the handler is to write; nil for a request that passed without a key.
func Tx(ctx context.Context) pgx.Tx {
	tx, _ := ctx.Value(txKey{}).(pgx.Tx)
	return tx
}

// errNotStored carries an answer that is sent after a rollback.
var errNotStored = errors.New("idempotency: the answer is not stored")

// Middleware answers requests of the same Idempotency-Key (draft-ietf-httpapi-idempotency-key-header) once: the handler runs in a transaction, see Tx; its answer is held
// back, stored and committed, then sent, and replayed from then on with Idempotent-Replayed: true. Answers 2xx, 3xx and 4xx are stored; 408, 409, 425, 429 and 5xx are sent
// after a rollback, so that the request may be made again.
//
//	no key, or a bad one               | 400
//	another request with the same key  | 422, before anything is replayed
//	in flight                          | 409 with Retry-After; or it waits, with Options.Wait
//	the body exceeds RequestBytesMax   | 413
//	the connection lost during COMMIT  | 503 with Retry-After; asked again, the stored answer tells
//	an answer beyond BodyBytesMax      | 500, rolled back
//	anything else of the database      | 500
//
// A handler whose client has gone is cancelled with the request's context, and rolled back. The error lists every fault of conf.
func Middleware(pool *pgxpool.Pool, conf HTTP) (func(http.Handler) http.Handler, error) {
	var faults []error
	if conf.Scope == nil {
		faults = append(faults, fmt.Errorf("%w: Scope is missing: without it a client could be given another's answer", ErrInvalid))
	}
	if conf.RequestBytesMax < 0 || conf.RetryAfter < 0 || conf.TTL < 0 || conf.Wait < 0 {
		faults = append(faults, fmt.Errorf("%w: RequestBytesMax, RetryAfter, TTL and Wait may not be below 0", ErrInvalid))
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	if conf.Methods == nil {
		conf.Methods = []string{http.MethodPost, http.MethodPatch}
	}
	if conf.Headers == nil {
		conf.Headers = []string{"Content-Type", "Content-Language", "Location", "Etag", "Last-Modified"}
	}
	for i, name := range conf.Headers {
		conf.Headers[i] = http.CanonicalHeaderKey(name)
	}
	if conf.RequestBytesMax == 0 {
		conf.RequestBytesMax = 1 << 20
	}
	if conf.RetryAfter == 0 {
		conf.RetryAfter = time.Second
	}
	if conf.Logger == nil {
		conf.Logger = slog.New(slog.DiscardHandler)
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { conf.serve(pool, next, w, r) })
	}, nil
}

func (h HTTP) serve(pool *pgxpool.Pool, next http.Handler, w http.ResponseWriter, r *http.Request) {
	if !slices.Contains(h.Methods, r.Method) {
		next.ServeHTTP(w, r)
		return
	}
	name, err := readKey(r.Header.Values(headerKey))
	if err != nil {
		problem(w, http.StatusBadRequest, "Idempotency-Key is missing or malformed", err.Error())
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.RequestBytesMax))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		problem(w, http.StatusRequestEntityTooLarge, "Request is too large", fmt.Sprintf("The body exceeds %d bytes.", h.RequestBytesMax))
		return
	}
	if err != nil {
		return // the client has gone
	}
	var held *recorder
	key := Key{Scope: h.Scope(r) + " " + r.Method + " " + r.URL.Path, Key: name}
	out, replayed, err := Do(r.Context(), pool, key, fingerprint(r, body), h.Options, func(ctx context.Context, tx pgx.Tx) (Response, error) {
		held = &recorder{header: http.Header{}}
		inner := r.WithContext(context.WithValue(ctx, txKey{}, tx))
		inner.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(held, inner)
		return held.response(h.Headers)
	})
	switch {
	case errors.Is(err, errNotStored):
		held.send(w)
	case errors.Is(err, ErrInFlight):
		h.retry(w, http.StatusConflict, "Request is in flight", "Another request with this Idempotency-Key is being worked on.")
	case errors.Is(err, ErrMismatch):
		problem(w, http.StatusUnprocessableEntity, "Idempotency-Key was used already", "The key was used for another request.")
	case errors.Is(err, ErrUnknown):
		h.complain(r, "outcome of a request unknown", err)
		h.retry(w, http.StatusServiceUnavailable, "Outcome unknown", "Make the same request again, with the same Idempotency-Key, to learn what became of it.")
	case err != nil:
		h.complain(r, "request failed and was rolled back", err)
		problem(w, http.StatusInternalServerError, "Request failed", "Nothing was changed.")
	case replayed:
		for name, values := range out.Headers {
			w.Header()[name] = values
		}
		w.Header().Set(HeaderReplayed, "true")
		w.WriteHeader(out.Status)
		_, _ = w.Write(out.Body)
	default:
		held.send(w)
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

// readKey reads the field's value: a string of structured fields, in quotes, or bare.
func readKey(values []string) (string, error) {
	if len(values) != 1 {
		return "", fmt.Errorf("the request must have one Idempotency-Key, not %d", len(values))
	}
	key := strings.TrimSpace(values[0])
	if strings.HasPrefix(key, `"`) {
		inner, ok := strings.CutSuffix(key[1:], `"`)
		if !ok || strings.ContainsAny(inner, `"\`) {
			return "", errors.New("the key must be one string in quotes, without quotes and backslashes in it")
		}
		key = inner
	}
	if key == "" || len(key) > KeyBytesMax {
		return "", fmt.Errorf("the key must have 1 to %d characters, not %d", KeyBytesMax, len(key))
	}
	for _, c := range []byte(key) {
		if c < ' ' || c > '~' {
			return "", errors.New("the key may hold printable ASCII characters only")
		}
	}
	return key, nil
}

// fingerprint tells requests apart. Each part is preceded by its length.
func fingerprint(r *http.Request, body []byte) []byte {
	sum := sha256.New()
	for _, part := range []string{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Get("Content-Type"), string(body)} {
		fmt.Fprintf(sum, "%d %s", len(part), part)
	}
	return sum.Sum(nil)
}

func (h HTTP) retry(w http.ResponseWriter, status int, title, detail string) {
	w.Header().Set("Retry-After", strconv.Itoa(int((h.RetryAfter+time.Second-1)/time.Second)))
	problem(w, status, title, detail)
}

// problem answers with problem details (RFC 9457).
func problem(w http.ResponseWriter, status int, title, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"title": title, "status": status, "detail": detail})
}

// recorder holds an answer back. It is no Flusher: nothing goes out before the commit.
type recorder struct {
	header http.Header
	sent   http.Header // as it was when the status was written
	status int
	body   bytes.Buffer
	fault  error
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= 200 {
		r.status, r.sent = status, r.header.Clone()
	}
}

func (r *recorder) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	if r.body.Len()+len(p) > BodyBytesMax {
		r.fault = fmt.Errorf("%w: an answer may have %d bytes", ErrInvalid, BodyBytesMax)
		return 0, r.fault
	}
	return r.body.Write(p)
}

// response is what is stored.
func (r *recorder) response(headers []string) (Response, error) {
	r.WriteHeader(http.StatusOK)
	switch {
	case r.fault != nil:
		return Response{}, r.fault
	case r.status >= 500, slices.Contains([]int{http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, http.StatusTooManyRequests}, r.status):
		return Response{}, errNotStored
	}
	out := Response{Status: r.status, Headers: map[string][]string{}, Body: r.body.Bytes()}
	for _, name := range headers {
		if values := r.sent.Values(name); len(values) > 0 {
			out.Headers[name] = values
		}
	}
	return out, nil
}

func (r *recorder) send(w http.ResponseWriter) {
	for name, values := range r.sent {
		w.Header()[name] = values
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body.Bytes())
}
