package idempotency_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
)

// bank is a service elsewhere: it charges once for each key that it is called with.
type bank struct {
	url string

	mu      sync.Mutex
	calls   int
	charges map[string]string // by key
}

func newBank(t *testing.T) *bank {
	b := &bank{charges: map[string]string{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.calls++
		key := r.Header.Get("Idempotency-Key")
		if b.charges[key] == "" {
			b.charges[key] = fmt.Sprintf("ch_%d", len(b.charges)+1)
		}
		_, _ = io.WriteString(w, b.charges[key])
	}))
	t.Cleanup(server.Close)
	b.url = server.URL
	return b
}

// check checks how often the bank was called, and that it charged once.
func (b *bank) check(t *testing.T, calls int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.calls != calls || len(b.charges) != 1 || b.charges[idempotency.DerivedKey(1, key, "charge")] != "ch_1" {
		t.Errorf("%d calls, want %d; charges %v", b.calls, calls, b.charges)
	}
}

func charge(ctx context.Context, url, key string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return "", err
	}
	r.Header.Set("Idempotency-Key", key)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return string(text), err
}

type ordered struct{ ID int }

// openShop makes a database with orders.
func openShop(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, "CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY, charge text)")
	exec(t, pool, "CREATE TABLE paid (id int, charge text)")
}

// buy is the request of these tests: an order, its charge elsewhere, and a note of that.
func buy(ctx context.Context, pool *pgxpool.Pool, bankURL string, o idempotency.Options) (idempotency.Response, bool, error) {
	return idempotency.Phases(ctx, pool, key, []byte("f"), o, func(ctx context.Context, c *idempotency.Claim) (idempotency.Response, error) {
		order, err := idempotency.PhaseTx(ctx, c, "order", func(ctx context.Context, tx pgx.Tx) (o ordered, err error) {
			err = tx.QueryRow(ctx, "INSERT INTO orders DEFAULT VALUES RETURNING id").Scan(&o.ID)
			return o, err
		})
		if err != nil {
			return idempotency.Response{}, err
		}
		id, err := idempotency.Phase(ctx, c, "charge", func(ctx context.Context, key string) (string, error) { return charge(ctx, bankURL, key) })
		if err != nil {
			return idempotency.Response{}, err
		}
		_, err = idempotency.PhaseTx(ctx, c, "paid", func(ctx context.Context, tx pgx.Tx) (none struct{}, err error) {
			_, err = tx.Exec(ctx, "INSERT INTO paid VALUES ($1, $2)", order.ID, id)
			return none, err
		})
		return idempotency.Response{Status: 201, Body: fmt.Appendf(nil, "order %d charged as %s", order.ID, id)}, err
	})
}

// buyPoints are the failpoints of buy, in their order.
var buyPoints = []string{
	"claimed", "order:called", "order:committed", "charge:called", "charge:committed", "paid:called", "paid:committed", "before-answer", "after-answer",
}

// checkBought checks that the request was carried out, once.
func checkBought(t *testing.T, pool *pgxpool.Pool, out idempotency.Response, err error) {
	t.Helper()
	var id int
	if err := pool.QueryRow(t.Context(), "SELECT max(id) FROM orders").Scan(&id); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("order %d charged as ch_1", id); err != nil || out.Status != 201 || string(out.Body) != want {
		t.Errorf("got %d %q, %v, want %q", out.Status, out.Body, err, want)
	}
	for what, sql := range map[string]string{
		"orders":  "SELECT count(*) FROM orders",
		"paid":    "SELECT count(*) FROM paid p JOIN orders o USING (id) WHERE p.charge = 'ch_1'",
		"notes":   "SELECT count(*) FROM paid",
		"answers": "SELECT count(*) FROM pawl.idempotency_key",
	} {
		if n := count(t, pool, sql); n != 1 {
			t.Errorf("%d %s, want 1", n, what)
		}
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.idempotency_claim"); n != 0 {
		t.Errorf("%d claims are left", n)
	}
	if got := points(t, pool); got != "order charge paid" {
		t.Errorf("points %q", got)
	}
}

func points(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	found, err := idempotency.Find(t.Context(), pool, 1, key.Key, 10)
	if err != nil || len(found) != 1 {
		t.Fatalf("%d found, %v", len(found), err)
	}
	var names []string
	for _, p := range found[0].Points {
		names = append(names, p.Name)
		if !json.Valid(p.Output) {
			t.Errorf("output of %s: %q", p.Name, p.Output)
		}
	}
	return strings.Join(names, " ")
}

// runOut moves the claim's row, as time does.
func runOut(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, "UPDATE pawl.idempotency_claim SET until = clock_timestamp() - interval '1 s'")
}
