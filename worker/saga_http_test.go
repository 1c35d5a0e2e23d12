package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// faultyNetwork stands before a service and fails in every way: before the service is asked, after it was, and by asking it once more when nobody expects that any longer.
type faultyNetwork struct {
	service http.Handler
	mu      sync.Mutex
	late    []*http.Request // copies that are still under way
	faults  atomic.Int32
}

func (f *faultyNetwork) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	again := func() *http.Request {
		c := r.Clone(context.WithoutCancel(r.Context()))
		c.Body = io.NopCloser(bytes.NewReader(body))
		return c
	}
	f.faults.Add(1)
	switch rand.N(24) {
	case 0: // nobody is there
		panic(http.ErrAbortHandler)
	case 1:
		http.Error(w, "bad gateway", http.StatusBadGateway)
	case 2: // it is being worked on
		w.Header().Set("Retry-After", "0")
		w.WriteHeader([]int{http.StatusAccepted, http.StatusConflict, http.StatusTooEarly}[rand.N(3)])
	case 3:
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusServiceUnavailable)
	case 4: // it was done, and the answer is lost
		f.service.ServeHTTP(httptest.NewRecorder(), again())
		panic(http.ErrAbortHandler)
	case 5: // and a gateway says something else
		f.service.ServeHTTP(httptest.NewRecorder(), again())
		w.WriteHeader(http.StatusGatewayTimeout)
	case 6: // and the answer is cut short
		w.Header().Set("Content-Length", "1000")
		f.service.ServeHTTP(w, again())
	case 7, 8, 9: // nobody knows where it is, and it arrives at last
		f.mu.Lock()
		f.late = append(f.late, again())
		f.mu.Unlock()
		panic(http.ErrAbortHandler)
	case 10, 11: // twice at once
		var group sync.WaitGroup
		group.Go(func() { f.service.ServeHTTP(httptest.NewRecorder(), again()) })
		f.service.ServeHTTP(w, again())
		group.Wait()
	case 12: // the caller has gone
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		f.service.ServeHTTP(httptest.NewRecorder(), again().WithContext(ctx))
		panic(http.ErrAbortHandler)
	default:
		f.faults.Add(-1)
		f.service.ServeHTTP(w, again())
	}
}

// serviceDB is the database of a service, and its own.
func serviceDB(tb testing.TB) *pgxpool.Pool {
	tb.Helper()
	pool := dbtest.New(tb)
	exec(tb, pool, "CREATE TABLE effect (id bigint GENERATED ALWAYS AS IDENTITY, saga text, step text, op text)")
	return pool
}

func writeEffect(ctx context.Context, tx pgx.Tx, b barrier.Branch) (json.RawMessage, error) {
	_, err := tx.Exec(ctx, "INSERT INTO effect (saga, step, op) VALUES ($1, $2, $3)", b.ID, b.Branch, b.Op)
	return json.RawMessage(`{"text": "` + b.Branch + ` of ` + b.ID + `"}`), err
}

func serveHTTP(tb testing.TB, h http.Handler) *httptest.Server {
	tb.Helper()
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.Start()
	tb.Cleanup(server.Close)
	return server
}

// Sagas whose steps a service does behind a network that fails in every way: what a saga came to is what the service's tables say, and is still after all that was late has arrived.
func TestSagaHTTP_storm(t *testing.T) {
	t.Parallel()
	sagas := 150
	if testing.Short() {
		sagas = 30
	}
	pool, service := dbtest.New(t), serviceDB(t)
	sweep(t, pool)
	network := &faultyNetwork{service: barrier.Handler(service, func(ctx context.Context, tx pgx.Tx, b barrier.Branch, _ []byte) (json.RawMessage, error) {
		out, err := writeEffect(ctx, tx, b)
		switch {
		case rand.N(12) == 0:
			return nil, errors.New("oops")
		case b.Op == barrier.Action && b.Branch != "ship" && rand.N(4) == 0: // another time it may be there
			return nil, barrier.Refuse(errors.New("not today"))
		}
		return out, err
	})}
	server := serveHTTP(t, network)
	d := saga.Define[order]("storm")
	opts := func(more ...saga.StepOption) []saga.StepOption {
		return append(more, fast, saga.Timeout(10*time.Second))
	}
	reserve := saga.Step[note](d, "reserve", opts(saga.MaxAttempts(3), saga.Undo(saga.MaxAttempts(100), fast))...)
	charge := saga.Step[note](d, "charge", opts(saga.After(reserve), saga.Pivot(), saga.MaxAttempts(100))...)
	ship := saga.Step[note](d, "ship", opts(saga.After(charge), saga.MaxAttempts(100))...)
	registered(t, pool, d)
	w := newWorker(t, pool, worker.Config{Queues: map[string]int{"default": 16}})
	for _, s := range []*saga.StepOf[order, note]{reserve, charge, ship} {
		saga.HandleHTTP(w, s, saga.Branch{URL: server.URL, Allow: loopback})
	}
	run(t, w)
	for i := range sagas {
		start(t, pool, d, order{"book", 100}, saga.ID(fmt.Sprint("storm:", i)))
	}
	ended := map[string]saga.State{}
	for i := range sagas {
		id := fmt.Sprint("storm:", i)
		in, err := await(t, pool, d, id)
		if err != nil && !errors.Is(err, saga.ErrCompensated) {
			t.Fatal(err)
		}
		ended[id] = in.State
	}
	network.mu.Lock()
	defer network.mu.Unlock()
	for _, r := range network.late {
		network.service.ServeHTTP(httptest.NewRecorder(), r)
	}
	rows, err := service.Query(t.Context(), `SELECT saga, string_agg(step || ' ' || op, ', ' ORDER BY id) FROM effect GROUP BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	var id, did string
	seen := map[string]int{}
	_, err = pgx.ForEachRow(rows, []any{&id, &did}, func() error {
		want := map[saga.State][]string{
			saga.StateSucceeded:   {"reserve action, charge action, ship action"},
			saga.StateCompensated: {"reserve action, reserve undo"},
		}[ended[id]]
		if len(want) != 1 || did != want[0] {
			t.Errorf("%s is %s: %s", id, ended[id], did)
		}
		seen[did]++
		delete(ended, id)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, state := range ended { // without any effect
		if state != saga.StateCompensated {
			t.Errorf("%s is %s, and has no effect", id, state)
		}
	}
	if len(seen) != 2 || len(ended) == 0 || len(network.late) == 0 {
		t.Errorf("%v, %d without effect, %d late copies: nothing is proved", seen, len(ended), len(network.late))
	}
	t.Logf("%d faults, %d late copies; %v, %d without effect", network.faults.Load(), len(network.late), seen, len(ended))
}

// A step behind the pivot is refused, and the saga stuck. When the operator has it tried again, the barrier lets it; copies of the call that was refused it does not.
func TestSagaHTTP_refusedThenRetried(t *testing.T) {
	t.Parallel()
	pool, service := dbtest.New(t), serviceDB(t)
	var (
		stock  atomic.Bool
		copied atomic.Pointer[http.Request]
	)
	h := barrier.Handler(service, func(ctx context.Context, tx pgx.Tx, b barrier.Branch, _ []byte) (json.RawMessage, error) {
		if b.Branch == "ship" && !stock.Load() {
			return nil, barrier.Refuse(errors.New("not in stock"))
		}
		return writeEffect(ctx, tx, b)
	})
	server := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(barrier.HeaderStep) == "ship" && copied.Load() == nil {
			c := r.Clone(context.WithoutCancel(r.Context()))
			c.Body = http.NoBody
			copied.Store(c)
		}
		h.ServeHTTP(w, r)
	}))
	d := saga.Define[order]("shop")
	charge := saga.Step[note](d, "charge", saga.Pivot())
	ship := saga.Step[note](d, "ship", saga.After(charge))
	registered(t, pool, d)
	w := newWorker(t, pool, quick())
	for _, s := range []*saga.StepOf[order, note]{charge, ship} {
		saga.HandleHTTP(w, s, saga.Branch{URL: server.URL, Allow: loopback})
	}
	run(t, w)
	id := start(t, pool, d, order{"book", 100})
	untilStuck(t, pool, id)
	if s := tell(t, pool, id); !strings.Contains(s.Steps[1].Error, "not in stock") {
		t.Errorf("got %+v", s.Steps[1])
	}
	stock.Store(true)
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, copied.Load())
	if answer.Code != http.StatusConflict || !strings.Contains(answer.Body.String(), "not in stock") {
		t.Errorf("a copy of the call that was refused: %d %s", answer.Code, answer.Body)
	}
	if err := saga.Retry(t.Context(), pool, 1, id, "ada", "stock was filled"); err != nil {
		t.Fatal(err)
	}
	i, err := await(t, pool, d, id)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := ship.From(i); err != nil || out.Text != "ship of "+id {
		t.Errorf("got %+v, %v", out, err)
	}
	if n := count(t, service, "SELECT count(*) FROM effect"); n != 2 {
		t.Errorf("%d effects, want 2", n)
	}
}

// A step is done by a service with a database of its own, over HTTP. The worker of the saga calls it until it answers; the service's barrier makes that happen once.
func Example_sagaHTTP() {
	dbtest.Example(func(pool *pgxpool.Pool) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if _, err := pool.Exec(ctx, "CREATE TABLE account AS SELECT 'ada' AS name, 1000 AS cents"); err != nil {
			log.Fatal(err)
		}
		type Order struct {
			Account string `json:"account"`
			Cents   int    `json:"cents"`
		}
		type Charged struct {
			Left int `json:"left"`
		}

		// In the service of payments.
		payments := httptest.NewServer(barrier.Handler(pool, func(ctx context.Context, tx pgx.Tx, b barrier.Branch, body []byte) (json.RawMessage, error) {
			var call struct{ Input Order }
			if err := json.Unmarshal(body, &call); err != nil {
				return nil, err
			}
			cents := call.Input.Cents
			if b.Op == barrier.Undo {
				cents = -cents
			}
			var out Charged
			err := tx.QueryRow(ctx, "UPDATE account SET cents = cents - $2 WHERE name = $1 AND cents >= $2 RETURNING cents", call.Input.Account, cents).Scan(&out.Left)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil, barrier.Refuse(errors.New("not enough money"))
			}
			if err != nil {
				return nil, err
			}
			return json.Marshal(out)
		}))
		defer payments.Close()

		// In a worker of the shop.
		checkout := saga.Define[Order]("checkout")
		charge := saga.Step[Charged](checkout, "charge")
		if err := checkout.Register(ctx, pool); err != nil {
			log.Fatal(err)
		}
		w, err := worker.New(pool, worker.Config{Queues: map[string]int{"default": 10}})
		if err != nil {
			log.Fatal(err)
		}
		saga.HandleHTTP(w, charge, saga.Branch{
			URL:    payments.URL,
			Header: http.Header{"Authorization": {"Bearer " + "of the configuration"}},
			Allow:  []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, // services on private addresses are to be named
		})
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()

		// In the shop.
		for _, o := range []Order{{"ada", 300}, {"ada", 5000}} {
			s, err := checkout.Start(ctx, pool, o, saga.ID(fmt.Sprint("checkout:", o.Cents)))
			if err != nil {
				log.Fatal(err)
			}
			ended, err := checkout.Await(ctx, pool, s.ID)
			if err != nil {
				fmt.Println(err)
				continue
			}
			out, err := charge.From(ended)
			fmt.Println(s.ID, out.Left, err)
		}
		cancel()
		if err := <-done; err != nil {
			log.Fatal(err)
		}
	})
	// Output:
	// checkout:300 700 <nil>
	// saga checkout:5000: compensated, since step "charge" failed: not enough money
}

// Two steps over HTTP, waiting for the result.
func BenchmarkSagaHTTP(b *testing.B) {
	for _, parallel := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) {
			pool := dbtest.New(b)
			server := serveHTTP(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, "{}")
			}))
			d := saga.Define[order]("bench")
			first := saga.Step[saga.None](d, "first")
			second := saga.Step[saga.None](d, "second", saga.After(first))
			registered(b, pool, d)
			w := newWorker(b, pool, worker.Config{Queues: map[string]int{"default": 64}})
			saga.HandleHTTP(w, first, saga.Branch{URL: server.URL, Allow: loopback})
			saga.HandleHTTP(w, second, saga.Branch{URL: server.URL, Allow: loopback})
			run(b, w)
			var group sync.WaitGroup
			var n atomic.Int64
			b.ResetTimer()
			for range parallel {
				group.Go(func() {
					for n.Add(1) <= int64(b.N) {
						s, err := d.Start(context.Background(), pool, order{"book", 1})
						if err == nil {
							w.Wake("default")
							_, err = d.Await(context.Background(), pool, s.ID)
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			group.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sagas/s")
		})
	}
}
