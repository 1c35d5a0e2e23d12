package checkout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
)

// CentsMax is what a customer can pay for one order; what is dearer is refused.
const CentsMax = 9_000

var errTooDear = errors.New("the bank does not pay that much for one order")

// payment is what a charge or refund is answered with.
type payment struct {
	ID int64 `json:"id,string"`
}

// Payments is the HTTP interface of payments, which knows nothing of sagas' tables: what it does for a branch commits in its own tables, with the barrier's row.
//
//	POST /charge   a branch of a saga: charges the customer what the order in the body costs, or refunds it; 409 if the bank refuses
func Payments(pool *pgxpool.Pool, ns int16, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/charge", repeats(pool, log, barrier.HTTP{Namespace: ns, Logger: log}.Handler(pool, pay)))
	return mux
}

// pay does what would be wrong if it were done twice: it adds up, it adds a row. The barrier sees to it that it does not run twice, nor after its compensation, nor as the compensation of nothing.
func pay(ctx context.Context, tx pgx.Tx, b barrier.Branch, body []byte) (json.RawMessage, error) {
	var call struct{ Input Order }
	if err := json.Unmarshal(body, &call); err != nil {
		return nil, err
	}
	o := call.Input
	cents := o.Cents
	switch {
	case b.Op == barrier.Undo:
		cents = -cents
	case cents > CentsMax:
		return nil, barrier.Refuse(errTooDear)
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO checkout.account AS a (customer, cents)
		VALUES ($1, $2)
		ON CONFLICT (customer) DO UPDATE SET cents = a.cents + excluded.cents`, o.Customer, cents)
	if err != nil {
		return nil, err
	}
	var p payment
	if err := tx.QueryRow(ctx, "INSERT INTO checkout.payment (order_id, customer, cents) VALUES ($1, $2, $3) RETURNING id", o.ID, o.Customer, cents).Scan(&p.ID); err != nil {
		return nil, err
	}
	return json.Marshal(p)
}

// repeats notes calls that came again and were known, for the report only.
func repeats(pool *pgxpool.Pool, log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r)
		outcome := w.Header().Get(barrier.HeaderOutcome)
		if outcome != string(barrier.Duplicate) {
			return
		}
		if _, err := pool.Exec(context.WithoutCancel(r.Context()), "INSERT INTO checkout.payment_repeat (saga) VALUES ($1)", r.Header.Get(barrier.HeaderSaga)); err != nil {
			log.Warn("a repeated call was not noted", "err", err)
		}
	})
}

// What goes wrong on the way to payments, of every wayCalls calls.
const (
	wayCalls = 40
	wayBusy  = 1 // are not passed on: 503
	wayLost  = 2 // are done, and the connection is cut before the answer
	wayWrong = 1 // are done, and answered with 500
	wayLate  = 4 // are answered with 504, and done up to lateMax later, maybe after their compensation
	lateMax  = time.Second

	wayBodyMax = 1 << 20
)

// Unreliable is a bad way to a service.
func Unreliable(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := rand.IntN(wayCalls); {
		case n < wayBusy:
			http.Error(w, "busy", http.StatusServiceUnavailable)
		case n < wayBusy+wayLost:
			next.ServeHTTP(nowhere{http.Header{}}, r)
			panic(http.ErrAbortHandler) // cuts the connection
		case n < wayBusy+wayLost+wayWrong:
			next.ServeHTTP(nowhere{http.Header{}}, r)
			http.Error(w, "something went wrong", http.StatusInternalServerError)
		case n < wayBusy+wayLost+wayWrong+wayLate:
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wayBodyMax))
			if err != nil {
				http.Error(w, "cut short", http.StatusBadRequest)
				return
			}
			late := r.Clone(context.WithoutCancel(r.Context()))
			late.Body = io.NopCloser(bytes.NewReader(body))
			time.AfterFunc(rand.N(lateMax), func() { next.ServeHTTP(nowhere{http.Header{}}, late) })
			http.Error(w, "it takes too long", http.StatusGatewayTimeout)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// nowhere is where answers get lost.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header            { return n.header }
func (n nowhere) Write(text []byte) (int, error) { return len(text), nil }
func (n nowhere) WriteHeader(int)                {}
