package checkout_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/checkout"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/webhook"
	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
)

const (
	ns       = 1
	secret   = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	patience = time.Minute
)

var quiet = slog.New(slog.DiscardHandler)

// newPool is a database with the example's tables.
func newPool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := dbtest.New(t)
	for range 2 { // the second finds all of it
		if err := checkout.Create(t.Context(), pool, ns); err != nil {
			t.Fatal(err)
		}
	}
	return pool
}

// serve runs a service until the test ends, and returns its URL.
func serve(t *testing.T, h http.Handler, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	background(t, func(ctx context.Context) error { return checkout.Serve(ctx, l, h) })
	return "http://" + l.Addr().String()
}

func background(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func serveShop(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	h, err := checkout.Shop(pool, ns, quiet)
	return serve(t, h, err)
}

func serveShipping(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	h, err := checkout.Shipping(pool, ns, secret, quiet)
	return serve(t, h, err)
}

func servePayments(t *testing.T, pool *pgxpool.Pool, unreliable bool) string {
	t.Helper()
	h := checkout.Payments(pool, ns, quiet)
	if unreliable {
		h = checkout.Unreliable(h)
	}
	return serve(t, h, nil)
}

// work has the steps of a service done until the test ends.
func work(t *testing.T, pool *pgxpool.Pool, service, payments string) {
	t.Helper()
	background(t, func(ctx context.Context) error {
		return checkout.Work(ctx, pool, checkout.WorkConfig{Service: service, Namespace: ns, Name: service, PaymentsURL: payments, Drain: patience, Logger: quiet})
	})
}

// relay has shipping told of confirmed orders until the test ends.
func relay(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	shipping := serveShipping(t, pool)
	background(t, func(ctx context.Context) error {
		return checkout.Relay(ctx, pool, checkout.RelayConfig{Namespace: ns, Name: "relay", URL: shipping, Secret: secret, Logger: quiet})
	})
}

// reply is what a service answered.
type reply struct {
	status         int
	location, body string
	replayed       bool
}

func ask(t *testing.T, method, url, customer, key, body string) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if customer != "" {
		r.SetBasicAuth(customer, "")
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header.Get("Location"), string(text), resp.Header.Get("Idempotent-Replayed") == "true"}
}

func scan[T any](t *testing.T, on checkout.DB, sql string, args ...any) (got T) {
	t.Helper()
	if err := on.QueryRow(t.Context(), sql, args...).Scan(&got); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return got
}

// until looks again and again until what is waited for has come.
func until(t *testing.T, what string, come func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !come() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: still waiting", what)
		}
	}
}

const (
	tea    = `{"item":"tea","cents":450}`
	coffee = `{"item":"coffee","cents":500}`
)

func TestShop(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	url := serveShop(t, pool)
	for _, c := range []struct {
		what, method, path, customer, key, body string
		status                                  int
		replayed                                bool
		location                                string
		text                                    string // of the body
	}{
		{"nobody", "POST", "/orders", "", "a", tea, 401, false, "", "who are you?"},
		{"no key", "POST", "/orders", "ada", "", tea, 400, false, "", "Idempotency-Key"},
		{"first", "POST", "/orders", "ada", "a", tea, 201, false, "/orders/1", `{"id":"1","customer":"ada","number":1,"item":"tea","cents":450,"state":"placed"}`},
		{"again", "POST", "/orders", "ada", "a", tea, 201, true, "/orders/1", `{"id":"1","customer":"ada","number":1,"item":"tea","cents":450,"state":"placed"}`},
		{"another order", "POST", "/orders", "ada", "a", coffee, 422, false, "", "used"},
		{"another key", "POST", "/orders", "ada", "b", coffee, 201, false, "/orders/2", `"number":2,"item":"coffee"`},
		{"another customer", "POST", "/orders", "alan", "a", coffee, 201, false, "/orders/3", `"customer":"alan","number":1`},
		{"for another", "POST", "/orders", "alan", "c", `{"customer":"ada","id":"9","number":9,"item":"ink","cents":1}`, 201, false, "/orders/4", `{"id":"4","customer":"alan","number":2`},
		{"no item", "POST", "/orders", "ada", "d", `{"cents":450}`, 400, false, "", "an order is of the form"},
		{"no item again", "POST", "/orders", "ada", "d", `{"cents":450}`, 400, true, "", "an order is of the form"},
		{"for nothing", "POST", "/orders", "ada", "e", `{"item":"tea","cents":0}`, 400, false, "", "an order is of the form"},
		{"no JSON", "POST", "/orders", "ada", "f", `tea`, 400, false, "", "an order is of the form"},
		{"show", "GET", "/orders/2", "ada", "", "", 200, false, "", `{"id":"2","customer":"ada","number":2,"item":"coffee","cents":500,"state":"placed"}`},
		{"of another", "GET", "/orders/2", "alan", "", "", 404, false, "", "no such order"},
		{"no number", "GET", "/orders/x", "ada", "", "", 404, false, "", "no such order"},
	} {
		got := ask(t, c.method, url+c.path, c.customer, c.key, c.body)
		if got.status != c.status || got.replayed != c.replayed || got.location != c.location || !strings.Contains(got.body, c.text) {
			t.Errorf("%s: got %+v, want %+v", c.what, got, c)
		}
	}
	story, err := saga.Get(t.Context(), pool, ns, checkout.SagaID(2))
	if err != nil {
		t.Fatal(err)
	}
	var o checkout.Order
	want := checkout.Order{ID: 2, Customer: "ada", Number: 2, Item: "coffee", Cents: 500, State: checkout.Placed}
	if err := json.Unmarshal(story.Input, &o); err != nil || o != want || story.Name != checkout.SagaName || story.State != saga.StateRunning {
		t.Errorf("the saga is %s, %s, of %+v, %v", story.Name, story.State, o, err)
	}
	if n := scan[int](t, pool, "SELECT count(*) FROM pawl.saga"); n != 4 {
		t.Errorf("%d sagas, want one for each order", n)
	}
}

// An order whose saga cannot be started, or whose answer cannot be stored, is not placed. The client asks again, which helps once the reason is gone.
func TestShop_together(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	url := serveShop(t, pool)
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, table := range []string{"pawl.saga", "pawl.idempotency_key"} {
		exec("ALTER TABLE " + table + " ADD CONSTRAINT is_full CHECK (false) NOT VALID")
		if got := ask(t, "POST", url+"/orders", "ada", table, tea); got.status < 500 {
			t.Errorf("%s is full: got %+v", table, got)
		}
		exec("ALTER TABLE " + table + " DROP CONSTRAINT is_full")
	}
	n := scan[int](t, pool, "SELECT (SELECT count(*) FROM checkout.orders) + (SELECT count(*) FROM checkout.customer) + (SELECT count(*) FROM pawl.saga)")
	if n != 0 {
		t.Errorf("%d rows are left", n)
	}
	for _, key := range []string{"pawl.saga", "pawl.idempotency_key"} {
		if got := ask(t, "POST", url+"/orders", "ada", key, tea); got.status != 201 || got.replayed {
			t.Errorf("got %+v, want an order", got)
		}
	}
}

// An event that comes again is known; one that is no order is given up; who does not know the secret is refused.
func TestShipping(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	url := serveShipping(t, pool)
	deliver := func(secret string, e outbox.Event) error {
		sink, err := webhook.New(webhook.Config{URL: url, Secrets: []string{secret}, AllowPrivate: true})
		if err != nil {
			t.Fatal(err)
		}
		_, err = sink.Send(t.Context(), []outbox.Event{e})
		return err
	}
	event := func(id string, payload string) outbox.Event {
		return outbox.Event{ID: "01a210cf-3336-787a-aee3-00000000000" + id, Topic: checkout.Topic, Key: "ada", Type: checkout.OrderConfirmed, Payload: []byte(payload)}
	}
	for range 3 {
		if err := deliver(secret, event("1", `{"id":"7","customer":"ada","number":1,"cents":450,"turn":1}`)); err != nil {
			t.Fatal(err)
		}
	}
	if err := deliver(secret, event("2", `{"id":"9","customer":"ada","number":4,"cents":50,"turn":2}`)); err != nil {
		t.Fatal(err)
	}
	other := event("3", `{}`)
	other.Type = "order.forgotten"
	if err := deliver(secret, other); err != nil {
		t.Errorf("another type of event: %v, want that it is passed over", err)
	}
	if err := deliver(secret, event("4", `[]`)); !outbox.IsPermanent(err) {
		t.Errorf("no order: got %v, want a permanent error", err)
	}
	if err := deliver(strings.Replace(secret, "M", "N", 1), event("5", `{"id":"10","customer":"ada","number":3,"cents":50}`)); err == nil {
		t.Error("an event with another secret was taken")
	}
	got := scan[string](t, pool, "SELECT string_agg(order_id || '/' || turn || '/' || number, ' ' ORDER BY number) FROM checkout.parcel")
	if want := "7/1/1 9/2/2"; got != want {
		t.Errorf("packed %q, want %q", got, want)
	}
	if got := scan[string](t, pool, "SELECT customer || ' ' || parcels || ' ' || cents FROM checkout.recipient"); got != "ada 2 500" {
		t.Errorf("counted %q", got)
	}
	if n := scan[int](t, pool, "SELECT count(*) FROM checkout.repeat"); n != 2 {
		t.Errorf("%d events came again, want 2", n)
	}
}

// All of it in one process: orders are decided by their sagas, and the confirmed ones come to shipping by the relay.
func TestRun(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	run := finish(t, pool, 40, nil)
	figures, claims, err := checkout.Prove(t.Context(), pool, ns, run)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range claims {
		for _, line := range c.Differences {
			t.Error(line)
		}
		if c.Count == 0 {
			t.Errorf("nothing was proved of %s", c.Of)
		}
	}
	f := figures
	if f.Keys != 40 || f.Orders != 40 || f.Parcels != f.Confirmed || f.Confirmed+f.Cancelled != 40 || f.Refused == 0 || f.Short+f.Refused+f.Unanswered != f.Cancelled || f.Others != 4 || f.Clients < 2*40 || f.ExampleKey == "" || f.ExampleOrder == 0 || f.ExampleCustomer == "" {
		t.Errorf("got %+v", f)
	}
}

// An order whose saga is cancelled before its first step is cancelled, though no step was there to write so: to its customer, to who waits for the run to end, and in the proof.
func TestExample_stopped(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	run := finish(t, pool, 10, func(run int64, shop string) {
		order := scan[int64](t, pool, "SELECT min(id) FROM checkout.orders")
		before, err := checkout.ReadProgress(t.Context(), pool, ns, run)
		if err != nil || before.Open != 10 || before.Decided != 0 {
			t.Errorf("before: got %+v, %v", before, err)
		}
		if err := saga.Cancel(t.Context(), pool, ns, checkout.SagaID(order), "mia", "the customer called"); err != nil {
			t.Fatal(err)
		}
		if story, state := await(t, pool, order); story.State != saga.StateCompensated || story.Steps[0].State != saga.StepRefused || state != "placed" {
			t.Errorf("the order is %s, its saga %s, its step %+v", state, story.State, story.Steps[0])
		}
		after, err := checkout.ReadProgress(t.Context(), pool, ns, run)
		if err != nil || after.Open != 9 || after.Decided != 1 {
			t.Errorf("after: got %+v, %v", after, err)
		}
		for id, want := range map[int64]string{order: "cancelled", order + 1: "placed"} {
			customer := scan[string](t, pool, "SELECT customer FROM checkout.orders WHERE id = $1", id)
			if got := ask(t, "GET", fmt.Sprintf("%s/orders/%d", shop, id), customer, "", ""); !strings.Contains(got.body, `"state":"`+want+`"`) {
				t.Errorf("the shop shows order %d as %+v, want %s", id, got, want)
			}
		}
	})
	f, claims, err := checkout.Prove(t.Context(), pool, ns, run)
	if err != nil || f.Stopped != 1 || f.Confirmed+f.Cancelled != 10 || f.Short+f.Refused+f.Unanswered+f.Stopped != f.Cancelled {
		t.Errorf("got %+v, %v", f, err)
	}
	for _, c := range claims {
		for _, line := range c.Differences {
			t.Error(line)
		}
	}
}

// finish runs the example until nothing is left to do, and returns the run. With before, no step is done until all orders are placed and before has returned.
func finish(t *testing.T, pool *pgxpool.Pool, orders int, before func(run int64, shop string)) int64 {
	t.Helper()
	relay(t, pool)
	payments := servePayments(t, pool, true)
	serve := func() {
		for _, service := range []string{checkout.ServiceShop, checkout.ServiceInventory, checkout.ServicePayments} {
			work(t, pool, service, payments)
		}
	}
	if before == nil {
		serve()
	}
	run, requests, err := checkout.Start(t.Context(), pool, orders)
	if err != nil {
		t.Fatal(err)
	}
	shop := serveShop(t, pool)
	load := checkout.NewLoad(shop)
	answers, err := load.Run(t.Context(), requests)
	if err != nil {
		t.Fatal(err)
	}
	if tally := load.Tally(); load.Done() != orders || tally.Answers != len(answers) || tally.Replayed == 0 {
		t.Errorf("%d of %d orders placed, %+v", load.Done(), orders, tally)
	}
	if err := checkout.Record(t.Context(), pool, run, answers); err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before(run, shop)
		serve()
	}
	until(t, "shipping", func() bool {
		p, err := checkout.ReadProgress(t.Context(), pool, ns, run)
		if err != nil {
			t.Fatal(err)
		}
		return p.Waiting == 0 && p.Open == 0 && p.Decided == orders
	})
	return run
}
