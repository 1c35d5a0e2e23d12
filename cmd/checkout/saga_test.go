package checkout_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/checkout"
	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/saga"
)

// call calls payments as the worker of a saga does.
func call(t *testing.T, h http.Handler, order int64, op barrier.Op, cents int64) (status int, outcome, body string) {
	t.Helper()
	input := fmt.Sprintf(`{"input":{"id":"%d","customer":"ada","cents":%d}}`, order, cents)
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/charge", strings.NewReader(input))
	barrier.Branch{ID: checkout.SagaID(order), Branch: "charge", Op: op}.SetHeaders(r.Header)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Header().Get(barrier.HeaderOutcome), strings.TrimSpace(w.Body.String())
}

// Calls that come twice, for nothing, or after their compensation.
func TestPayments(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	h := checkout.Payments(pool, ns, quiet)
	for _, c := range []struct {
		order   int64
		op      barrier.Op
		cents   int64
		status  int
		outcome string
		body    string // holds this
	}{
		{1, barrier.Action, 450, 200, "done", `{"id":"1"}`},
		{1, barrier.Action, 450, 200, "duplicate", `{"id":"1"}`},
		{2, barrier.Action, checkout.CentsMax, 200, "done", `{"id":"2"}`},
		{3, barrier.Action, checkout.CentsMax + 1, 409, "", "does not pay that much"},
		{3, barrier.Undo, checkout.CentsMax + 1, 200, "null", "null"},
		{1, barrier.Undo, 450, 200, "done", `{"id":"3"}`},
		{1, barrier.Undo, 450, 200, "duplicate", `{"id":"3"}`},
		{1, barrier.Action, 450, 200, "duplicate", `{"id":"1"}`},
		{4, barrier.Undo, 450, 200, "null", "null"},
		{4, barrier.Action, 450, 409, "", "Too late"},
	} {
		status, outcome, body := call(t, h, c.order, c.op, c.cents)
		if status != c.status || outcome != c.outcome || !strings.Contains(body, c.body) {
			t.Errorf("%s of order %d: got %d %q %s, want %+v", c.op, c.order, status, outcome, body, c)
		}
	}
	if got := scan[string](t, pool, "SELECT string_agg(order_id || '/' || cents, ' ' ORDER BY id) FROM checkout.payment"); got != "1/450 2/9000 1/-450" {
		t.Errorf("payments %q", got)
	}
	if got := scan[string](t, pool, "SELECT customer || ' ' || cents FROM checkout.account"); got != "ada 9000" {
		t.Errorf("account %q", got)
	}
	if n := scan[int](t, pool, "SELECT count(*) FROM checkout.payment_repeat"); n != 3 {
		t.Errorf("%d calls came again, want 3", n)
	}
}

// place places an order and returns its id.
func place(t *testing.T, shop, customer, item string, cents int64, key string) int64 {
	t.Helper()
	got := ask(t, "POST", shop+"/orders", customer, key, fmt.Sprintf(`{"item":%q,"cents":%d}`, item, cents))
	id, err := strconv.ParseInt(strings.TrimPrefix(got.location, "/orders/"), 10, 64)
	if got.status != 201 || err != nil {
		t.Fatalf("got %+v", got)
	}
	return id
}

// await waits until the saga of an order has ended and gives its story, and how the order then is.
func await(t *testing.T, pool *pgxpool.Pool, order int64) (story *saga.Story, state string) {
	t.Helper()
	until(t, fmt.Sprintf("order %d", order), func() (over bool) {
		var err error
		if story, err = saga.Get(t.Context(), pool, ns, checkout.SagaID(order)); err != nil {
			t.Fatal(err)
		}
		return story.State.Final()
	})
	return story, scan[string](t, pool, "SELECT state FROM checkout.orders WHERE id = $1", order)
}

func deliver(t *testing.T, pool *pgxpool.Pool, item string, pieces int) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), "INSERT INTO checkout.stock (item, delivered, pieces) VALUES ($1, $2, $2)", item, pieces); err != nil {
		t.Fatal(err)
	}
}

// left is what the services have of an order: pieces, cents, and rows of both.
func left(t *testing.T, pool *pgxpool.Pool, order int64) string {
	t.Helper()
	return scan[string](t, pool, `
		SELECT (SELECT coalesce(sum(r.pieces), 0) || ' pieces in ' || count(*) FROM checkout.reservation r WHERE r.order_id = $1) || ', '
		  || (SELECT coalesce(sum(p.cents), 0) || ' cents in ' || count(*) FROM checkout.payment p WHERE p.order_id = $1)`, order)
}

// An order is confirmed; or it is refused by inventory or the bank, and nothing is left of it.
func TestSaga(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	deliver(t, pool, "tea", 2)
	shop, payments := serveShop(t, pool), servePayments(t, pool, false)
	for _, service := range []string{checkout.ServiceShop, checkout.ServiceInventory, checkout.ServicePayments} {
		work(t, pool, service, payments)
	}
	for i, c := range []struct {
		item  string
		cents int64
		state string
		left  string
		show  string // GET answers with this, among others
	}{
		{"tea", checkout.CentsMax + 1, "cancelled", "0 pieces in 2, 0 cents in 0", `"state":"cancelled"}`},
		{"tea", 450, "confirmed", "1 pieces in 1, 450 cents in 1", `"state":"confirmed","turn":1,"gift":true}`},
		{"coffee", 450, "cancelled", "0 pieces in 0, 0 cents in 0", `"state":"cancelled"}`},
		{"tea", 450, "confirmed", "1 pieces in 1, 450 cents in 1", `"state":"confirmed","turn":2}`},
		{"tea", 450, "cancelled", "0 pieces in 0, 0 cents in 0", `"state":"cancelled"}`},
	} {
		id := place(t, shop, "ada", c.item, c.cents, strconv.Itoa(i))
		_, state := await(t, pool, id)
		if got := left(t, pool, id); state != c.state || got != c.left {
			t.Errorf("order %d is %s with %s, want %+v", id, state, got, c)
		}
		if got := ask(t, "GET", fmt.Sprintf("%s/orders/%d", shop, id), "ada", "", ""); !strings.Contains(got.body, c.show) {
			t.Errorf("order %d is shown as %s, want %s", id, got.body, c.show)
		}
	}
}

// Of a customer's orders that are at work at once one has the gift; when it is cancelled, a later one gets it.
func TestSaga_gift(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	deliver(t, pool, "tea", 10)
	shop := serveShop(t, pool)
	work(t, pool, checkout.ServiceShop, "")
	dear := place(t, shop, "ada", "tea", checkout.CentsMax+1, "a")
	gift := func(order int64) string { // what welcome has found out
		story, err := saga.Get(t.Context(), pool, ns, checkout.SagaID(order))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range story.Steps {
			if s.Name == "welcome" {
				return string(s.Output)
			}
		}
		return ""
	}
	until(t, "the first", func() bool { return gift(dear) != "" })
	other := place(t, shop, "ada", "tea", 450, "b")
	alan := place(t, shop, "alan", "tea", 450, "c")
	until(t, "the others", func() bool { return gift(other) != "" && gift(alan) != "" })
	if a, b, c := gift(dear), gift(other), gift(alan); !strings.Contains(a, "true") || !strings.Contains(b, "false") || !strings.Contains(c, "true") {
		t.Errorf("while all are at work the gift is %s, %s, %s", a, b, c)
	}
	payments := servePayments(t, pool, false)
	work(t, pool, checkout.ServiceInventory, payments)
	work(t, pool, checkout.ServicePayments, payments)
	for order, want := range map[int64]string{dear: "cancelled", other: "confirmed", alan: "confirmed"} {
		if _, state := await(t, pool, order); state != want {
			t.Errorf("order %d is %s, want %s", order, state, want)
		}
	}
	later := place(t, shop, "ada", "tea", 450, "d")
	await(t, pool, later)
	got := scan[string](t, pool, "SELECT string_agg(id::text, ' ' ORDER BY id) FROM checkout.orders WHERE gift")
	if want := fmt.Sprintf("%d %d", alan, later); got != want {
		t.Errorf("orders %s have a gift, want %s", got, want)
	}
}

// An order whose charge got no answer is cancelled, whether payments did it, did not, or is asked for it after its compensation.
func TestSaga_noAnswer(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		done bool // payments does what it is asked for, before the answer is lost
		left string
	}{
		"done": {true, "0 pieces in 2, 0 cents in 2"},
		"late": {false, "0 pieces in 2, 0 cents in 0"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			deliver(t, pool, "tea", 1)
			behind := checkout.Payments(pool, ns, quiet)
			var held, calls atomic.Int64
			payments := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Header.Get(barrier.HeaderOp) == string(barrier.Undo):
					behind.ServeHTTP(w, r)
				case c.done:
					calls.Add(1)
					behind.ServeHTTP(httptest.NewRecorder(), r)
					panic(http.ErrAbortHandler)
				default:
					held.Add(1)
					http.Error(w, "too long", http.StatusGatewayTimeout)
				}
			}), nil)
			shop := serveShop(t, pool)
			relay(t, pool) // is a coordinator too, which has what failed done again
			for _, service := range []string{checkout.ServiceShop, checkout.ServiceInventory, checkout.ServicePayments} {
				work(t, pool, service, payments)
			}
			id := place(t, shop, "ada", "tea", 450, "a")
			if story, state := await(t, pool, id); state != "cancelled" || story.State != saga.StateCompensated {
				t.Errorf("the order is %s, its saga %s", state, story.State)
			}
			if n := calls.Load() + held.Load(); n != 2 {
				t.Errorf("payments was asked %d times, want 2", n)
			}
			if !c.done { // and now the call comes that was held up
				if status, _, body := call(t, behind, id, barrier.Action, 450); status != http.StatusConflict || !strings.Contains(body, "Too late") {
					t.Errorf("after the compensation: got %d, %s", status, body)
				}
			}
			if got := left(t, pool, id); got != c.left {
				t.Errorf("left are %s, want %s", got, c.left)
			}
			if n := scan[int](t, pool, "SELECT pieces FROM checkout.stock"); n != 1 {
				t.Errorf("%d pieces in stock, want 1", n)
			}
		})
	}
}

func TestWork_unknown(t *testing.T) {
	t.Parallel()
	err := checkout.Work(context.Background(), newPool(t), checkout.WorkConfig{Service: "shipping", Namespace: ns})
	if err == nil || !strings.Contains(err.Error(), `no service "shipping"`) {
		t.Errorf("got %v", err)
	}
}

// Whatever the way does to a call, payments gets it whole, at once or later, or not at all; and what the caller hears is never a refusal.
func TestUnreliable(t *testing.T) {
	t.Parallel()
	const calls = 800
	var got, bad atomic.Int64
	url := serve(t, checkout.Unreliable(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body [8]byte
		if n, _ := r.Body.Read(body[:]); string(body[:n]) != "the body" || r.Header.Get("Idempotency-Key") != "k" {
			bad.Add(1)
		}
		got.Add(1)
		w.WriteHeader(http.StatusCreated)
	})), nil)
	heard := map[int]int{}
	for range calls {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("the body"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Idempotency-Key", "k")
		r.GetBody = nil
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			heard[0]++
			continue
		}
		_ = resp.Body.Close()
		heard[resp.StatusCode]++
	}
	until(t, "late calls", func() bool { return int(got.Load()) == calls-heard[http.StatusServiceUnavailable] })
	for _, status := range []int{0, 201, 500, 503, 504} {
		if heard[status] == 0 {
			t.Errorf("never heard %d: %v", status, heard)
		}
	}
	if len(heard) != 5 || bad.Load() > 0 {
		t.Errorf("heard %v; %d calls did not come whole", heard, bad.Load())
	}
}
