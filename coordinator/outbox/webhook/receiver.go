package webhook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

const bodyBytesMaxDefault = 2 << 20

// Receiver takes events that a Sink posts. Secrets and Handle are required.
type Receiver struct {
	// Secrets are those that an event may be signed with.
	Secrets []string
	// Handle is given each event, and may be given it again: idempotency.Once, in the transaction of its effect, tells. Its error becomes the answer from which the sink learns
	// how to go on: see Handler. Its calls run at once, never two for the same key of one relay.
	Handle func(context.Context, outbox.Event) error
	// Tolerance is how long after an event was signed, or before, by this machine's clock, it is taken. Default: 5 minutes.
	Tolerance time.Duration
	// BodyBytesMax bounds a request's body. Default: 2 MiB, enough for any payload of up to outbox.PayloadBytesMax.
	BodyBytesMax int64
	// Logger receives the errors of Handle and of Verify, of which the sender is told nothing but the status. Default: none.
	Logger *slog.Logger
}

// Handler returns the HTTP handler of a receiver. It answers
//
//	no error of Handle           | 204
//	outbox.Permanent             | 422
//	outbox.ErrGone               | 410
//	outbox.Unavailable           | 503, with Retry-After if it has a time
//	outbox.RetryAfter            | 429, with Retry-After
//	any other                    | 500
//	ErrSignature, ErrStale       | 401
//	ErrMalformed                 | 400
//	a body beyond BodyBytesMax   | 413
//	another method than POST     | 405
//
// The error is outbox.ErrInvalid and lists every fault.
func Handler(r Receiver) (http.Handler, error) {
	keys, err := parseSecrets(r.Secrets)
	faults := []error{err}
	if len(r.Secrets) == 0 {
		faults = append(faults, fmt.Errorf("%w: webhook: Secrets are missing", outbox.ErrInvalid))
	}
	if r.Handle == nil {
		faults = append(faults, fmt.Errorf("%w: webhook: Handle is missing", outbox.ErrInvalid))
	}
	if r.Tolerance < 0 || r.BodyBytesMax < 0 {
		faults = append(faults, fmt.Errorf("%w: webhook: Tolerance and BodyBytesMax may not be below 0", outbox.ErrInvalid))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if r.BodyBytesMax == 0 {
		r.BodyBytesMax = bodyBytesMaxDefault
	}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.serve(keys, w, req) }), nil
}

func (r Receiver) serve(keys [][]byte, w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		answer(w, http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, r.BodyBytesMax))
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		answer(w, http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		return // the sender has gone
	}
	e, err := verify(keys, req.Header, body, r.Tolerance)
	switch {
	case errors.Is(err, ErrMalformed):
		r.Logger.Warn("event refused", "err", err)
		answer(w, http.StatusBadRequest)
		return
	case err != nil:
		r.Logger.Warn("event refused", "err", err)
		answer(w, http.StatusUnauthorized)
		return
	}
	if err = r.Handle(req.Context(), e); err == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	level := slog.LevelWarn
	if req.Context().Err() != nil {
		level = slog.LevelDebug // the sender has gone
	}
	r.Logger.Log(context.WithoutCancel(req.Context()), level, "event failed", "event", e.ID, "err", err)
	after, down := outbox.IsUnavailable(err)
	wait, later := outbox.IsRetryAfter(err)
	switch {
	case errors.Is(err, outbox.ErrGone):
		answer(w, http.StatusGone)
	case outbox.IsPermanent(err):
		answer(w, http.StatusUnprocessableEntity)
	case down:
		answerLater(w, http.StatusServiceUnavailable, after)
	case later:
		answerLater(w, http.StatusTooManyRequests, wait)
	default:
		answer(w, http.StatusInternalServerError)
	}
}

func answer(w http.ResponseWriter, status int) { http.Error(w, http.StatusText(status), status) }

func answerLater(w http.ResponseWriter, status int, after time.Duration) {
	if after > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
	}
	answer(w, status)
}
