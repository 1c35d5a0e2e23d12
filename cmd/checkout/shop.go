package checkout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/coordinator/saga"
)

// shop takes orders.
type shop struct {
	pool *pgxpool.Pool
	ns   int16
	saga *checkout
	log  *slog.Logger
}

// Shop is the HTTP interface of the shop. The customer is the user name of basic authentication; the example asks for no password.
//
//	POST /orders        with Idempotency-Key and {"item": "tea", "cents": 450}: 201, the order, and its Location; 400 if it is not to be had
//	GET  /orders/{id}   200 and the order, to the customer whose it is
func Shop(pool *pgxpool.Pool, ns int16, log *slog.Logger) (http.Handler, error) {
	s := &shop{pool, ns, newCheckout(ns), log}
	once, err := idempotency.Middleware(pool, idempotency.HTTP{Options: idempotency.Options{Namespace: ns}, Scope: customer, Logger: log})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /orders", once(http.HandlerFunc(s.place)))
	mux.HandleFunc("GET /orders/{id}", s.show)
	return authenticated(mux), nil
}

// place runs once for a key, in the transaction that also stores its answer.
func (s *shop) place(w http.ResponseWriter, r *http.Request) {
	var wish struct {
		Item  string `json:"item"`
		Cents int64  `json:"cents"`
	}
	if err := json.NewDecoder(r.Body).Decode(&wish); err != nil || wish.Item == "" || wish.Cents <= 0 {
		http.Error(w, `an order is of the form {"item": "tea", "cents": 450}`, http.StatusBadRequest)
		return
	}
	o := Order{Customer: customer(r), Item: wish.Item, Cents: wish.Cents, State: Placed}
	if err := s.write(r.Context(), idempotency.Tx(r.Context()), &o); err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Location", fmt.Sprintf("/orders/%d", o.ID))
	answer(w, http.StatusCreated, o)
}

// write writes an order and starts its saga.
func (s *shop) write(ctx context.Context, tx pgx.Tx, o *Order) error {
	err := tx.QueryRow(ctx, `
		INSERT INTO checkout.customer AS c (id, orders, confirmed)
		VALUES ($1, 1, 0)
		ON CONFLICT (id) DO UPDATE SET orders = c.orders + 1
		RETURNING orders`, o.Customer).Scan(&o.Number)
	if err != nil {
		return err
	}
	err = tx.QueryRow(ctx, `
		INSERT INTO checkout.orders (customer, number, item, cents, state)
		VALUES ($1, $2, $3, $4, $5)
		RETURNING id`, o.Customer, o.Number, o.Item, o.Cents, o.State).Scan(&o.ID)
	if err != nil {
		return err
	}
	_, err = s.saga.Start(ctx, tx, *o, saga.ID(SagaID(o.ID)))
	return err
}

func (s *shop) show(w http.ResponseWriter, r *http.Request) {
	id, _ := strconv.ParseInt(r.PathValue("id"), 10, 64) // 0 is nobody's
	o := Order{ID: id, Customer: customer(r)}
	err := s.pool.QueryRow(r.Context(), `
		SELECT o.number, o.item, o.cents, o.state, coalesce(o.turn, 0), o.gift
		FROM checkout.orders o
		WHERE o.id = $1 AND o.customer = $2`, o.ID, o.Customer).Scan(&o.Number, &o.Item, &o.Cents, &o.State, &o.Turn, &o.Gift)
	if err == nil && o.State == Placed {
		o.State, err = s.begun(r.Context(), o.ID)
	}
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		http.Error(w, "no such order", http.StatusNotFound)
	case err != nil:
		s.fail(w, r, err)
	default:
		answer(w, http.StatusOK, o)
	}
}

// begun tells how an order is whose saga has not accepted it: one whose saga has ended is cancelled, since that was cancelled before its first step, and what has not begun is not undone either. A saga that is
// kept no more has ended too: it was written with its order.
func (s *shop) begun(ctx context.Context, order int64) (State, error) {
	story, err := saga.Get(ctx, s.pool, s.ns, SagaID(order))
	switch {
	case errors.Is(err, saga.ErrNotFound), err == nil && story.State.Final():
		return Cancelled, nil
	default:
		return Placed, err
	}
}

// fail asks the client to try again. Of a place, the transaction is rolled back.
func (s *shop) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil { // else it is the client that has gone
		s.log.Error("request failed", "err", err)
	}
	http.Error(w, "try again", http.StatusServiceUnavailable)
}

func answer(w http.ResponseWriter, status int, o Order) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(o)
}

func authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if customer(r) == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="shop"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func customer(r *http.Request) string {
	name, _, _ := r.BasicAuth()
	return name
}
