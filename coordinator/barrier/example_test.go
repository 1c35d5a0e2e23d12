package barrier_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// A service of payments that sagas call. Its own writes and the note that the branch was done are one transaction: what comes twice is answered as the first time, what comes
// after its compensation is refused, and a compensation of what never happened does nothing.
func ExampleHandler() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		if _, err := pool.Exec(ctx, "CREATE TABLE account AS SELECT 'ada' AS name, 1000 AS cents"); err != nil {
			log.Fatal(err)
		}

		charge := barrier.Handler(pool, func(ctx context.Context, tx pgx.Tx, b barrier.Branch, body []byte) (json.RawMessage, error) {
			var call struct {
				Input struct {
					Account string
					Cents   int
				}
			}
			if err := json.Unmarshal(body, &call); err != nil {
				return nil, err
			}
			cents := call.Input.Cents
			if b.Op == barrier.Undo {
				cents = -cents
			}
			var left int
			err := tx.QueryRow(ctx, "UPDATE account SET cents = cents - $2 WHERE name = $1 AND cents >= $2 RETURNING cents", call.Input.Account, cents).Scan(&left)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil, barrier.Refuse(errors.New("not enough money"))
			}
			return fmt.Appendf(nil, `{"left":%d}`, left), err
		})

		// What the worker of a saga does to it.
		server := httptest.NewServer(charge)
		defer server.Close()
		for _, c := range []struct {
			saga  string
			op    barrier.Op
			cents int
		}{
			{"checkout:1", barrier.Action, 300},
			{"checkout:1", barrier.Action, 300}, // its answer was lost
			{"checkout:1", barrier.Undo, 300},
			{"checkout:1", barrier.Undo, 300},
			{"checkout:2", barrier.Action, 5000},
			{"checkout:3", barrier.Undo, 300},
			{"checkout:3", barrier.Action, 300}, // which was under way for longer
		} {
			body := strings.NewReader(fmt.Sprintf(`{"input":{"account":"ada","cents":%d}}`, c.cents))
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, body)
			if err != nil {
				log.Fatal(err)
			}
			barrier.Branch{ID: c.saga, Branch: "charge", Op: c.op}.SetHeaders(r.Header)
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				log.Fatal(err)
			}
			answer, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			fmt.Printf("%s %s: %d %s %s\n", c.saga, c.op, resp.StatusCode, resp.Header.Get(barrier.HeaderOutcome), strings.TrimSpace(string(answer)))
		}
	})
	// Output:
	// checkout:1 action: 200 done {"left":700}
	// checkout:1 action: 200 duplicate {"left":700}
	// checkout:1 undo: 200 done {"left":1000}
	// checkout:1 undo: 200 duplicate {"left":1000}
	// checkout:2 action: 409  {"title":"Refused","status":409,"detail":"not enough money"}
	// checkout:3 undo: 200 null null
	// checkout:3 action: 409  {"title":"Too late","status":409,"detail":"The branch was compensated before it was called. Nothing was done."}
}

// The same for calls that come another way, such as by messages: in the service's own transaction.
func ExampleDo() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx := context.Background()
		if _, err := pool.Exec(ctx, "CREATE TABLE parcel (saga text)"); err != nil {
			log.Fatal(err)
		}

		pack := func(saga string, op barrier.Op) (out barrier.Result, err error) {
			err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
				b := barrier.Branch{ID: saga, Branch: "pack", Op: op}
				out, err = barrier.Do(ctx, tx, b, func(ctx context.Context) (json.RawMessage, error) {
					sql := "INSERT INTO parcel VALUES ($1)"
					if op == barrier.Undo {
						sql = "DELETE FROM parcel WHERE saga = $1"
					}
					_, err := tx.Exec(ctx, sql, saga)
					return nil, err
				})
				return err
			})
			return out, err
		}
		for _, op := range []barrier.Op{barrier.Undo, barrier.Action} {
			out, err := pack("checkout:1", op)
			fmt.Println(op, out.Outcome, err)
		}
	})
	// Output:
	// undo null <nil>
	// action  action of checkout:1/pack: barrier: the branch was compensated before it was called
}

// A service on MariaDB or MySQL. Its table is made once, here or by "pawl migrate barrier mysql://…".
func ExampleRunMySQL() {
	ctx := context.Background()
	shop, err := sql.Open("mysql", "shop@tcp(db:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	if err := barrier.SetupMySQL(ctx, shop); err != nil {
		log.Fatal(err)
	}
	reserve := func(saga, item string, op barrier.Op) (barrier.Result, error) {
		b := barrier.Branch{ID: saga, Branch: "reserve", Op: op}
		return barrier.RunMySQL(ctx, shop, b, func(ctx context.Context, tx barrier.MySQLTx) (json.RawMessage, error) {
			if op == barrier.Undo {
				_, err := tx.ExecContext(ctx, "UPDATE stock SET pieces = pieces + 1 WHERE item = ?", item)
				return nil, err
			}
			done, err := tx.ExecContext(ctx, "UPDATE stock SET pieces = pieces - 1 WHERE item = ? AND pieces > 0", item)
			if err != nil {
				return nil, err
			}
			n, err := done.RowsAffected()
			if err == nil && n == 0 {
				err = barrier.Refuse(errors.New("sold out"))
			}
			return nil, err
		})
	}
	_, _ = reserve("checkout:1", "book", barrier.Action)
}
