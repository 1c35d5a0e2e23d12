package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/db/dbtest"
)

func mustExec(ctx context.Context, pool *pgxpool.Pool, sql string) {
	if _, err := pool.Exec(ctx, sql); err != nil {
		log.Fatal(err)
	}
}

// The effect and the answer are one transaction: asked for again, the answer comes from the table.
func ExampleDo() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		mustExec(ctx, pool, "CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY, item text)")

		key := idempotency.Key{Scope: "client 7 order", Key: "2f1c"} // whose, and what for; the client's own key
		for range 2 {
			answer, replayed, err := idempotency.Do(ctx, pool, key, []byte("a book"), idempotency.Options{}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
				var id int
				err := tx.QueryRow(ctx, "INSERT INTO orders (item) VALUES ('a book') RETURNING id").Scan(&id)
				return idempotency.Response{Status: 201, Body: fmt.Appendf(nil, "order %d", id)}, err
			})
			fmt.Printf("%d %s, replayed: %t, %v\n", answer.Status, answer.Body, replayed, err)
		}
		_, _, err := idempotency.Do(ctx, pool, key, []byte("two books"), idempotency.Options{}, nil)
		fmt.Println(err)
	})
	// Output:
	// 201 order 1, replayed: false, <nil>
	// 201 order 1, replayed: true, <nil>
	// idempotency: the key was used for another request
}

// cardBank is a service elsewhere that charges cards, once for each key.
type cardBank struct{ charges map[string]string }

func (b *cardBank) Charge(_ context.Context, key string, cents int) (id string, err error) {
	if b.charges[key] == "" {
		b.charges[key] = fmt.Sprintf("charge %d of %d cents", len(b.charges)+1, cents)
	}
	fmt.Println("the bank is called")
	return b.charges[key], nil
}

// A card is charged elsewhere, between two transactions here. The process crashes after the bank has charged it and before it could note that: the next try goes on where that
// one stood, and calls the bank with the same key.
func ExamplePhases() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		mustExec(ctx, pool, "CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY, charge text)")
		bank := &cardBank{map[string]string{}}
		crash := true

		type Order struct{ ID, Cents int }
		buy := func(ctx context.Context, c *idempotency.Claim) (idempotency.Response, error) {
			var none idempotency.Response
			order, err := idempotency.PhaseTx(ctx, c, "order", func(ctx context.Context, tx pgx.Tx) (o Order, err error) {
				o.Cents = 250
				err = tx.QueryRow(ctx, "INSERT INTO orders DEFAULT VALUES RETURNING id").Scan(&o.ID)
				return o, err
			})
			if err != nil {
				return none, err
			}
			charge, err := idempotency.Phase(ctx, c, "charge", func(ctx context.Context, key string) (string, error) {
				id, err := bank.Charge(ctx, key, order.Cents)
				if crash {
					return "", errors.New("crashed")
				}
				return id, err
			})
			if err != nil {
				return none, err
			}
			_, err = idempotency.PhaseTx(ctx, c, "paid", func(ctx context.Context, tx pgx.Tx) (any, error) {
				_, err := tx.Exec(ctx, "UPDATE orders SET charge = $2 WHERE id = $1", order.ID, charge)
				return nil, err
			})
			return idempotency.Response{Status: 201, Body: fmt.Appendf(nil, "order %d: %s", order.ID, charge)}, err
		}

		key := idempotency.Key{Scope: "client 7 buy", Key: "2f1c"}
		for range 3 {
			answer, replayed, err := idempotency.Phases(ctx, pool, key, []byte("a book"), idempotency.Options{}, buy)
			fmt.Printf("%d %s, replayed: %t, %v\n", answer.Status, answer.Body, replayed, err)
			crash = false
		}
	})
	// Output:
	// the bank is called
	// 0 , replayed: false, crashed
	// the bank is called
	// 201 order 1: charge 1 of 250 cents, replayed: false, <nil>
	// 201 order 1: charge 1 of 250 cents, replayed: true, <nil>
}

// The handler writes in the transaction of its request, and its answer is stored with that.
func ExampleMiddleware() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		mustExec(ctx, pool, "CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY, item text)")

		once, err := idempotency.Middleware(pool, idempotency.HTTP{
			Scope: func(r *http.Request) string { return r.Header.Get("X-Client") }, // whom an outer handler has authenticated
			Docs:  "https://shop.example/docs/idempotency",
		})
		if err != nil {
			log.Fatal(err)
		}
		routes := http.NewServeMux()
		routes.Handle("POST /orders", once(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			item, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			var id int
			err = idempotency.Tx(r.Context()).QueryRow(r.Context(), "INSERT INTO orders (item) VALUES ($1) RETURNING id", string(item)).Scan(&id)
			if err != nil {
				http.Error(w, "", http.StatusInternalServerError) // rolled back
				return
			}
			w.Header().Set("Location", fmt.Sprintf("/orders/%d", id))
			w.WriteHeader(http.StatusCreated)
		})))

		for _, r := range []struct{ key, item string }{{"", "a book"}, {"2f1c", "a book"}, {"2f1c", "a book"}, {"2f1c", "two books"}} {
			request := httptest.NewRequest("POST", "/orders", strings.NewReader(r.item))
			request.Header.Set("X-Client", "7")
			if r.key != "" {
				request.Header.Set("Idempotency-Key", r.key)
			}
			w := httptest.NewRecorder()
			routes.ServeHTTP(w, request)
			fmt.Printf("%d %q %q\n", w.Code, w.Header().Get("Location"), w.Header().Get(idempotency.HeaderReplayed))
		}
	})
	// Output:
	// 400 "" ""
	// 201 "/orders/1" ""
	// 201 "/orders/1" "true"
	// 422 "" ""
}

// A consumer of messages, which come at least once: the note that it has seen one commits with its effect.
func ExampleOnce() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		mustExec(ctx, pool, "CREATE TABLE balance AS SELECT 0 AS cents")

		receive := func(messageID string, cents int) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				first, err := idempotency.Once(ctx, tx, 1, "balances", messageID)
				if err != nil || !first {
					return err // nil: acknowledge it again
				}
				_, err = tx.Exec(ctx, "UPDATE balance SET cents = cents + $1", cents)
				return err
			})
		}
		for _, id := range []string{"m1", "m2", "m1"} {
			if err := receive(id, 100); err != nil {
				log.Fatal(err)
			}
		}
		var cents int
		if err := pool.QueryRow(ctx, "SELECT cents FROM balance").Scan(&cents); err != nil {
			log.Fatal(err)
		}
		fmt.Println(cents)
	})
	// Output: 200
}

// PUT and DELETE need no key: made again, they find what the first try did; clients that changed the same page meanwhile find out by its tag. The middleware gives them a
// transaction and sends the answer when that is committed; a client that sends a key all the same is replayed.
func ExamplePrecondition() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		mustExec(ctx, pool, "CREATE TABLE page (name text PRIMARY KEY, text text)")

		once, err := idempotency.Middleware(pool, idempotency.HTTP{
			Scope: func(r *http.Request) string { return r.Header.Get("X-Client") }, Methods: []string{"PUT", "DELETE"}, Optional: true,
		})
		if err != nil {
			log.Fatal(err)
		}
		// ready locks the page and checks the precondition; after is what the request makes of it.
		ready := func(w http.ResponseWriter, r *http.Request, after string) bool {
			var text, tag string
			err := idempotency.Tx(r.Context()).QueryRow(r.Context(), "SELECT text FROM page WHERE name = $1 FOR UPDATE", r.PathValue("name")).Scan(&text)
			if err == nil {
				tag = idempotency.ETag([]byte(text))
			}
			status := idempotency.Precondition(r, tag, idempotency.ETag([]byte(after)))
			if err != nil && !errors.Is(err, pgx.ErrNoRows) {
				status = http.StatusInternalServerError // rolled back
			}
			if status != 0 {
				w.WriteHeader(status)
			}
			return status == 0
		}
		routes := http.NewServeMux()
		routes.Handle("PUT /pages/{name}", once(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			text, err := io.ReadAll(r.Body)
			if err != nil || !ready(w, r, string(text)) {
				return
			}
			var created bool
			err = idempotency.Tx(r.Context()).QueryRow(r.Context(),
				"INSERT INTO page VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET text = excluded.text RETURNING xmax = 0", r.PathValue("name"), string(text)).Scan(&created)
			if err != nil {
				http.Error(w, "", http.StatusInternalServerError)
				return
			}
			idempotency.AnswerPut(w, created, idempotency.ETag(text))
		})))
		routes.Handle("DELETE /pages/{name}", once(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !ready(w, r, "") {
				return
			}
			if _, err := idempotency.Tx(r.Context()).Exec(r.Context(), "DELETE FROM page WHERE name = $1", r.PathValue("name")); err != nil {
				http.Error(w, "", http.StatusInternalServerError)
				return
			}
			idempotency.AnswerDelete(w)
		})))

		first := idempotency.ETag([]byte("first"))
		for _, r := range []struct{ method, text, match, what string }{
			{"PUT", "first", "", "created"},
			{"PUT", "first", "", "the answer was lost: once more"},
			{"PUT", "second", first, "replaced"},
			{"PUT", "second", first, "the answer was lost: once more"},
			{"PUT", "third", first, "by another, who has not seen the second"},
			{"DELETE", "", "", "deleted"},
			{"DELETE", "", "", "the answer was lost: once more"},
		} {
			request := httptest.NewRequest(r.method, "/pages/home", strings.NewReader(r.text))
			if r.match != "" {
				request.Header.Set("If-Match", r.match)
			}
			w := httptest.NewRecorder()
			routes.ServeHTTP(w, request)
			fmt.Println(w.Code, r.what)
		}
	})
	// Output:
	// 201 created
	// 204 the answer was lost: once more
	// 204 replaced
	// 204 the answer was lost: once more
	// 412 by another, who has not seen the second
	// 204 deleted
	// 204 the answer was lost: once more
}
