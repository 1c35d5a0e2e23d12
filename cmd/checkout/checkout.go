// Package checkout is an example of effects that happen once, in services that may be killed at any moment. "pawl dev --example checkout" runs it:
//
//	clients ──POST /orders──▶ shop ──────────────event──▶ relay ──webhook──▶ shipping
//	                           └─saga─▶ inventory, payments
//
// [Shop] takes orders. A client that got no answer asks again with the same Idempotency-Key, as often as it likes: the order, the start of its saga and the answer are one transaction,
// so there is one order, and each client of the key gets that one answer.
//
// The saga of an order ends in one of two ways: the order is confirmed, or it is cancelled and nothing is left of it. Three services do its steps ([Work]), each in its own tables:
//
//	accept    shop        the order is at work                          | undone: it is cancelled
//	welcome   shop        a gift, with one order of each customer       | nothing to undo; a semantic lock keeps a customer's other orders from it meanwhile
//	reserve   inventory   a piece from the stock; refused: none is left | undone: back in stock
//	charge    payments    over HTTP, see [Payments]; refused: too dear  | undone: a refund
//	confirm   shop        the order is confirmed, and told of           | the pivot: from here on there is no way back
//
// What has not begun is not undone: an order whose saga is cancelled ("pawl saga cancel") before accept has no step that says so in its row. It stays placed there, and counts as cancelled since its saga has ended:
// so does the shop show it, and so does the proof.
//
// Steps in this database commit with the advance of the saga. [Payments] is another service, which calls reach twice, late, or after their compensation ([Unreliable]): the barrier
// keeps them apart.
//
// [Relay] hands the events of confirmed orders to shipping: at least once, those of a customer in their order. [Shipping] packs a parcel for each and notes the event's id in the same
// transaction, so that an event that comes again is known.
//
// [Load] plays the clients, who are impatient, and [Prove] looks into the tables afterwards. None of the tables has a unique key that would keep an order, a reservation, a payment or a
// parcel from being there twice, on purpose: nothing but Pawl does.
//
// # Order
//
// The events of a customer arrive in the order in which their transactions committed, since each writer locks the customer's row before it publishes: it counts the customer's
// confirmed orders there. Shipping counts the parcels of each customer too, and both numbers must be the same for every order.
package checkout

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"
)

// Topic is the topic of the shop's events, whose key is the customer, and OrderConfirmed the type of those of confirmed orders, whose payload is an Order.
const (
	Topic          = "checkout.order"
	OrderConfirmed = "order.confirmed"
)

// State is how far an order is.
type State string

// The states.
const (
	Placed    State = "placed"   // cancelled, if its saga has ended
	Accepted  State = "accepted" // its saga is at work
	Confirmed State = "confirmed"
	Cancelled State = "cancelled"
)

// Order is an order as the shop answers with it and tells others of it.
type Order struct {
	ID       int64  `json:"id,string"`
	Customer string `json:"customer"`
	Number   int    `json:"number"` // among the customer's orders, from 1
	Item     string `json:"item"`
	Cents    int64  `json:"cents"`
	State    State  `json:"state"`
	Turn     int    `json:"turn,omitempty"` // among the customer's confirmed orders, from 1
	Gift     bool   `json:"gift,omitempty"` // one comes with it
}

const (
	headerTimeout = 10 * time.Second // for the first lines of a request
	drain         = 5 * time.Second  // for requests at work when a service is to stop
)

// Serve serves until ctx ends, lets requests at work finish, and returns nil.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout}
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		_ = server.Shutdown(ctx) // who is not finished is cut off with the process, and asks again
	})()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}
