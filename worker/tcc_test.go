package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/tcc"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

var _ tcc.Worker = (*worker.Worker)(nil)

// money is what moves: from an account in the coordinator's database to one in the bank's.
type money struct {
	Account string `json:"account"`
	Cents   int    `json:"cents"`
}

var (
	debit  = tcc.Define[money]("debit", tcc.Backoff(0, 0), tcc.MaxAttempts(1000))
	credit = tcc.Define[money]("credit", tcc.Backoff(0, 0), tcc.MaxAttempts(1000))
)

const accounts = "CREATE TABLE account (name text PRIMARY KEY, free int NOT NULL CHECK (free >= 0), held int NOT NULL DEFAULT 0 CHECK (held >= 0), due int NOT NULL DEFAULT 0 CHECK (due >= 0))"

// change does an update of one account.
func change(ctx context.Context, tx pgx.Tx, m money, set string) error {
	tag, err := tx.Exec(ctx, "UPDATE account SET "+set+" WHERE name = $1", m.Account, m.Cents)
	if err == nil && tag.RowsAffected() != 1 {
		err = barrier.Refuse(fmt.Errorf("no account %s", m.Account))
	}
	return err
}

func tryDebit(m money) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		var free int
		if err := tx.QueryRow(ctx, "SELECT free FROM account WHERE name = $1 FOR UPDATE", m.Account).Scan(&free); err != nil {
			return err
		}
		if free < m.Cents {
			return barrier.Refuse(errors.New("not enough money"))
		}
		return change(ctx, tx, m, "free = free - $2, held = held + $2")
	}
}

func tryCredit(m money) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error { return change(ctx, tx, m, "due = due + $2") }
}

func settle(set string) func(context.Context, pgx.Tx, *tcc.Call[money]) error {
	return func(ctx context.Context, tx pgx.Tx, c *tcc.Call[money]) error { return change(ctx, tx, c.Args, set) }
}

func registerTCC(w *worker.Worker, bank *pgxpool.Pool) {
	tcc.HandleTx(w, debit, settle("held = held - $2"), settle("held = held - $2, free = free + $2"))
	tcc.HandleOn(w, credit, bank, settle("due = due - $2, free = free + $2"), settle("due = due - $2"))
}

// transfer is an initiator.
func transfer(ctx context.Context, pool, bank *pgxpool.Pool, m money, opts ...tcc.BeginOption) (*tcc.Transaction, error) {
	t, err := tcc.Begin(ctx, pool, opts...)
	if err != nil {
		return nil, err
	}
	if err := debit.TryTx(ctx, t, pool, m, tryDebit(m)); err != nil {
		return t, err
	}
	return t, credit.TryTx(ctx, t, bank, m, tryCredit(m))
}

// ledger gives two databases with accounts: 10 of 1000 cents here, as many of none in the bank.
func ledger(tb testing.TB) (pool, bank *pgxpool.Pool) {
	tb.Helper()
	pool, bank = dbtest.New(tb), dbtest.New(tb)
	exec(tb, pool, accounts)
	exec(tb, bank, accounts)
	exec(tb, pool, "INSERT INTO account SELECT n, 1000 FROM generate_series(0, 9) n")
	exec(tb, bank, "INSERT INTO account SELECT n, 0 FROM generate_series(0, 9) n")
	return pool, bank
}

// balanced checks that nothing is held or due any more, that nothing was lost, and that so much has moved.
func balanced(tb testing.TB, pool, bank *pgxpool.Pool, moved int) {
	tb.Helper()
	for _, p := range []*pgxpool.Pool{pool, bank} {
		if n := count(tb, p, "SELECT sum(held + due) FROM account"); n != 0 {
			tb.Errorf("%d cents are held or due", n)
		}
	}
	here, there := count(tb, pool, "SELECT sum(free) FROM account"), count(tb, bank, "SELECT sum(free) FROM account")
	if here != 10_000-moved || there != moved {
		tb.Errorf("%d here and %d there, and %d were moved", here, there, moved)
	}
}

func tellTCC(tb testing.TB, pool *pgxpool.Pool, id string) *tcc.Story {
	tb.Helper()
	s, err := tcc.Get(context.Background(), pool, 1, id)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func untilTCC(tb testing.TB, pool *pgxpool.Pool, id string, want tcc.State) *tcc.Story {
	tb.Helper()
	var s *tcc.Story
	until(tb, "transaction "+string(want), func() bool {
		s = tellTCC(tb, pool, id)
		return s.State == want
	})
	return s
}

// sweepTCC runs the sweep once.
func sweepTCC(tb testing.TB, pool *pgxpool.Pool) coordinator.Report {
	tb.Helper()
	c, err := coordinator.New(pool, coordinator.Config{})
	if err != nil {
		tb.Error(err)
		return coordinator.Report{}
	}
	r, err := c.Sweep(context.Background(), coordinator.SweepTCC)
	if err != nil {
		tb.Error(err)
	}
	return r
}

func TestTCC(t *testing.T) {
	t.Parallel()
	pool, bank := ledger(t)
	w := newWorker(t, pool, quick())
	registerTCC(w, bank)
	run(t, w)
	ctx := t.Context()

	confirmed, err := transfer(ctx, pool, bank, money{"1", 300})
	if err != nil {
		t.Fatal(err)
	}
	if n := count(t, bank, "SELECT free FROM account WHERE name = '1'"); n != 0 {
		t.Errorf("%d cents before it was confirmed", n)
	}
	if err := errors.Join(confirmed.Confirm(ctx), tcc.Await(ctx, pool, 1, confirmed.ID())); err != nil {
		t.Fatal(err)
	}
	balanced(t, pool, bank, 300)

	cancelled, err := transfer(ctx, pool, bank, money{"1", 300})
	if err != nil {
		t.Fatal(err)
	}
	if err := cancelled.Cancel(ctx); err != nil {
		t.Fatal(err)
	}
	if err := tcc.Await(ctx, pool, 1, cancelled.ID()); !errors.Is(err, tcc.ErrCancelled) {
		t.Errorf("await: %v", err)
	}
	balanced(t, pool, bank, 300)

	refused, err := transfer(ctx, pool, bank, money{"1", 900})
	if !errors.Is(err, tcc.ErrRefused) || !strings.Contains(err.Error(), "not enough money") {
		t.Errorf("refused: %v", err)
	}
	if err := refused.Confirm(ctx); !errors.Is(err, tcc.ErrUntried) {
		t.Errorf("confirm: %v", err)
	}
	if err := refused.Cancel(ctx); err != nil {
		t.Error(err)
	}
	untilTCC(t, pool, refused.ID(), tcc.Cancelled)
	balanced(t, pool, bank, 300)

	ctx, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	left, err := tcc.Begin(ctx, pool)
	if err != nil {
		t.Fatal(err)
	}
	if err := tcc.Await(ctx, pool, 1, left.ID()); !errors.Is(err, tcc.ErrUnfinished) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("await: %v", err)
	}
	if err := tcc.Await(t.Context(), pool, 1, "none"); !errors.Is(err, tcc.ErrNotFound) {
		t.Errorf("await: %v", err)
	}
}

// A branch that was registered and not tried has nothing to cancel, and what comes of the try later is refused: in this database and in another.
func TestTCC_late(t *testing.T) {
	t.Parallel()
	pool, bank := ledger(t)
	w := newWorker(t, pool, quick())
	registerTCC(w, bank)
	run(t, w)
	for _, p := range []struct {
		kind *tcc.Kind[money]
		on   *pgxpool.Pool
		try  func(money) func(context.Context, pgx.Tx) error
	}{{debit, pool, tryDebit}, {credit, bank, tryCredit}} {
		x, err := tcc.Begin(t.Context(), pool)
		if err != nil {
			t.Fatal(err)
		}
		m := money{"1", 100}
		err = p.kind.Try(t.Context(), x, m, func(ctx context.Context, b barrier.Branch) error {
			if err := x.Cancel(ctx); err != nil {
				return err
			}
			untilTCC(t, pool, x.ID(), tcc.Cancelled)
			return pgx.BeginFunc(ctx, p.on, func(tx pgx.Tx) error {
				_, err := barrier.Do(ctx, tx, b, func(ctx context.Context) (json.RawMessage, error) {
					t.Error("tried after it was cancelled")
					return nil, p.try(m)(ctx, tx)
				})
				return err
			})
		})
		if !errors.Is(err, barrier.ErrTooLate) {
			t.Errorf("%s: %v", p.kind.Name(), err)
		}
		if n := count(t, p.on, "SELECT count(*) FROM pawl.barrier WHERE gid = $1 AND (op, reason) IN (('try', 'cancel'), ('cancel', 'cancel'))", x.ID()); n != 2 {
			t.Errorf("%s: %d rows", p.kind.Name(), n)
		}
	}
	balanced(t, pool, bank, 0)
}

// A cancel that meets a try which is not committed yet waits for it, and then undoes it.
func TestTCC_uncommittedTry(t *testing.T) {
	t.Parallel()
	pool, bank := ledger(t)
	w := newWorker(t, pool, quick())
	registerTCC(w, bank)
	run(t, w)
	x, err := tcc.Begin(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	m := money{"1", 100}
	err = credit.TryTx(t.Context(), x, bank, m, func(ctx context.Context, tx pgx.Tx) error {
		if err := tryCredit(m)(ctx, tx); err != nil {
			return err
		}
		if err := x.Cancel(ctx); err != nil {
			return err
		}
		until(t, "the cancel to wait", func() bool {
			return count(t, bank, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 1
		})
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	untilTCC(t, pool, x.ID(), tcc.Cancelled)
	balanced(t, pool, bank, 0)
}

// A cancel that waits for its try in vain asks again, however long that takes, and uses no attempt.
func TestTCC_tryInFlight(t *testing.T) {
	t.Parallel()
	pool, bank := ledger(t)
	here, there := tcc.Define[money]("here", tcc.MaxAttempts(1)), tcc.Define[money]("there", tcc.MaxAttempts(1))
	w := newWorker(t, pool, quick())
	tcc.HandleTx(w, here, settle(""), settle("due = due - $2"))
	tcc.HandleOn(w, there, bank, settle(""), settle("due = due - $2"))
	run(t, w)
	sweep(t, pool)
	x, err := tcc.Begin(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	m := money{"1", 100}
	err = here.TryTx(t.Context(), x, pool, m, func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(tryCredit(m)(ctx, tx), there.TryTx(ctx, x, bank, m, func(ctx context.Context, tx pgx.Tx) error {
			if err := errors.Join(tryCredit(m)(ctx, tx), x.Cancel(ctx)); err != nil {
				return err
			}
			for _, b := range tellTCC(t, pool, x.ID()).Branches {
				until(t, "a cancel to ask again", func() bool {
					s := story(t, pool, b.JobID)
					return len(s.Attempts) > 0 && s.Attempts[0].Outcome == job.Snoozed
				})
			}
			return nil
		}))
	})
	if err != nil {
		t.Error(err)
	}
	untilTCC(t, pool, x.ID(), tcc.Cancelled)
	balanced(t, pool, bank, 0)
}

// A branch that cannot be confirmed is stuck when its attempts are used up: that is told of once, and an operator has it tried again.
func TestTCC_stuck(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := t.Context()
	kinds := map[string]*tcc.Kind[money]{}
	var broken atomic.Bool
	broken.Store(true)
	w := newWorker(t, pool, quick())
	fail := func(err error) func(context.Context, *tcc.Call[money]) error {
		return func(context.Context, *tcc.Call[money]) error {
			if broken.Load() {
				return err
			}
			return nil
		}
	}
	inTx := func(err error) func(context.Context, pgx.Tx, *tcc.Call[money]) error {
		return func(ctx context.Context, _ pgx.Tx, c *tcc.Call[money]) error { return fail(err)(ctx, c) }
	}
	for name, err := range map[string]error{"error": errTest, "discard": job.Discard(errTest), "cancel": job.Cancel(errTest), "refuse": barrier.Refuse(errTest), "later": job.RetryAfter(0, errTest)} {
		k := tcc.Define[money](name, tcc.Backoff(0, 0), tcc.MaxAttempts(2))
		tcc.Handle(w, k, fail(err), fail(err))
		tx := tcc.Define[money](name+".tx", tcc.Backoff(0, 0), tcc.MaxAttempts(2))
		tcc.HandleTx(w, tx, inTx(err), inTx(err))
		kinds[name], kinds[name+".tx"] = k, tx
	}
	run(t, w)
	x, err := tcc.Begin(ctx, pool)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		if err := k.Try(ctx, x, money{}, func(context.Context, barrier.Branch) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Confirm(ctx); err != nil {
		t.Fatal(err)
	}
	stuck := func() *tcc.Story {
		var s *tcc.Story
		until(t, "all to be stuck", func() bool {
			s = tellTCC(t, pool, x.ID())
			for _, b := range s.Branches {
				if b.State != tcc.Stuck {
					return false
				}
			}
			return true
		})
		return s
	}
	s := stuck()
	for _, b := range s.Branches {
		if st := story(t, pool, b.JobID); st.Attempt != 2 || st.State != job.StateDiscarded {
			t.Errorf("%s: %s at attempt %d", b.Kind, st.State, st.Attempt)
		}
		if b.Attempt != 2 || b.MaxAttempts != 2 || !b.Served || !strings.Contains(b.Error, errTest.Error()) {
			t.Errorf("got %+v", b)
		}
	}
	for _, did := range []int64{int64(len(kinds)), 0} {
		if r := sweepTCC(t, pool); r.Did != did {
			t.Errorf("%d found, want %d", r.Did, did)
		}
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.outbox_event WHERE topic = 'pawl.tcc' AND type = 'tcc.stuck'"); n != len(kinds) {
		t.Errorf("%d events", n)
	}
	if err := tcc.Retry(ctx, pool, 1, x.ID(), "", ""); !errors.Is(err, tcc.ErrInvalid) {
		t.Errorf("nobody: %v", err)
	}
	if err := tcc.Retry(ctx, pool, 1, x.ID(), "ada", "try that"); err != nil {
		t.Fatal(err)
	}
	if got := stuck(); got.Branches[0].JobID == s.Branches[0].JobID {
		t.Error("it was not tried again")
	}
	if r := sweepTCC(t, pool); r.Did != int64(len(kinds)) {
		t.Errorf("%d found", r.Did)
	}
	broken.Store(false)
	if err := tcc.Retry(ctx, pool, 1, x.ID(), "ada", "mended"); err != nil {
		t.Fatal(err)
	}
	if err := tcc.Await(ctx, pool, 1, x.ID()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.tcc_job WHERE actor = 'ada' AND reason = 'mended'"); n != len(kinds) {
		t.Errorf("%d retries", n)
	}
	if err := tcc.Retry(ctx, pool, 1, x.ID(), "ada", "again"); !errors.Is(err, tcc.ErrNotStuck) {
		t.Errorf("not stuck: %v", err)
	}
}

// An operator who takes a branch's job away does not take the branch.
func TestTCC_jobCancelled(t *testing.T) {
	t.Parallel()
	pool, bank := ledger(t)
	x, err := transfer(t.Context(), pool, bank, money{"1", 100})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := job.CancelByID(t.Context(), pool, 1, tellTCC(t, pool, x.ID()).Branches[0].JobID, "why not"); err != nil {
		t.Fatal(err)
	}
	w := newWorker(t, pool, quick())
	registerTCC(w, bank)
	run(t, w)
	untilTCC(t, pool, x.ID(), tcc.Stuck)
	if err := tcc.Retry(t.Context(), pool, 1, x.ID(), "ada", "it must be"); err != nil {
		t.Fatal(err)
	}
	untilTCC(t, pool, x.ID(), tcc.Confirmed)
	balanced(t, pool, bank, 100)
}

// lossy is a way to services on which requests and replies are lost.
type lossy struct {
	http.RoundTripper
	n    atomic.Int64
	lose func(n int64, op string) (request, reply bool)
}

func (l *lossy) RoundTrip(r *http.Request) (*http.Response, error) {
	request, reply := l.lose(l.n.Add(1), r.Header.Get(barrier.HeaderOp))
	if request {
		return nil, errors.New("lost on the way")
	}
	resp, err := l.RoundTripper.RoundTrip(r)
	if err == nil && reply {
		_ = resp.Body.Close()
		return nil, errors.New("lost on the way back")
	}
	return resp, err
}

// service is the bank over HTTP.
func service(tb testing.TB, bank *pgxpool.Pool) string {
	tb.Helper()
	server := httptest.NewServer(barrier.Handler(bank, func(ctx context.Context, tx pgx.Tx, b barrier.Branch, body []byte) (json.RawMessage, error) {
		var call struct{ Args money }
		if err := json.Unmarshal(body, &call); err != nil {
			return nil, err
		}
		set := map[barrier.Op]string{barrier.Try: "due = due + $2", barrier.Confirm: "due = due - $2, free = free + $2", barrier.Cancel: "due = due - $2"}[b.Op]
		return json.RawMessage(`"` + b.Op + `"`), change(ctx, tx, call.Args, set)
	}))
	tb.Cleanup(server.Close)
	return server.URL
}

// A participant over HTTP, with every second request or reply lost.
func TestTCC_http(t *testing.T) {
	t.Parallel()
	pool, bank := ledger(t)
	way := &lossy{RoundTripper: http.DefaultTransport, lose: func(n int64, _ string) (request, reply bool) { return n%4 == 1, n%4 == 3 }}
	s := &tcc.Service{URL: service(t, bank), Transport: way}
	w := newWorker(t, pool, quick())
	tcc.HandleTx(w, debit, settle("held = held - $2"), settle("held = held - $2, free = free + $2"))
	tcc.HandleHTTP(w, credit, s)
	run(t, w)
	ctx := t.Context()
	moved := 0
	for i := range 10 {
		x, err := tcc.Begin(ctx, pool, tcc.ID(fmt.Sprint("order/", i)))
		if err != nil {
			t.Fatal(err)
		}
		m := money{"1", 10}
		if err := debit.TryTx(ctx, x, pool, m, tryDebit(m)); err != nil {
			t.Fatal(err)
		}
		answer, err := credit.TryHTTP(ctx, x, m, s)
		if err != nil || string(answer) != `"try"` {
			t.Fatalf("%s, %v", answer, err)
		}
		if i%2 == 0 {
			err = x.Confirm(ctx)
			moved += 10
		} else {
			err = x.Cancel(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		until(t, "its end", func() bool { return tellTCC(t, pool, x.ID()).State.Final() })
	}
	balanced(t, pool, bank, moved)
}

// What a service answers to a try, and what never arrives.
func TestTCC_tryHTTP(t *testing.T) {
	t.Parallel()
	pool, bank := ledger(t)
	url := service(t, bank)
	w := newWorker(t, pool, quick())
	tcc.HandleHTTP(w, credit, &tcc.Service{URL: url, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	run(t, w)
	for name, c := range map[string]struct {
		account string
		lose    func(n int64, op string) (request, reply bool)
		want    error
		calls   int64
	}{
		"refused":  {"none", func(int64, string) (request, reply bool) { return false, false }, tcc.ErrRefused, 1},
		"no way":   {"1", func(int64, string) (request, reply bool) { return true, false }, nil, tcc.TriesMax},
		"no reply": {"1", func(int64, string) (request, reply bool) { return false, true }, nil, tcc.TriesMax},
	} {
		t.Run(name, func(t *testing.T) {
			way := &lossy{RoundTripper: http.DefaultTransport, lose: c.lose}
			x, err := tcc.Begin(t.Context(), pool)
			if err != nil {
				t.Fatal(err)
			}
			_, err = credit.TryHTTP(t.Context(), x, money{c.account, 10}, &tcc.Service{URL: url, Transport: way})
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v", err)
			}
			if n := way.n.Load(); n != c.calls {
				t.Errorf("%d calls", n)
			}
			if err := x.Confirm(t.Context()); !errors.Is(err, tcc.ErrUntried) {
				t.Errorf("confirm: %v", err)
			}
			if err := x.Cancel(t.Context()); err != nil {
				t.Error(err)
			}
			untilTCC(t, pool, x.ID(), tcc.Cancelled)
		})
	}
	balanced(t, pool, bank, 0)
	x, err := tcc.Begin(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := credit.TryHTTP(t.Context(), x, money{}, &tcc.Service{URL: "ftp://x"}); !errors.Is(err, tcc.ErrInvalid) || len(tellTCC(t, pool, x.ID()).Branches) != 0 {
		t.Errorf("got %v", err)
	}
}

// Initiators that confirm, cancel, go away, are refused, or lose replies, at short deadlines, with workers that fail now and then and sweeps of two nodes: at the end all adds up.
func TestTCC_storm(t *testing.T) {
	t.Parallel()
	pool, bank := ledger(t)
	for range 2 {
		w := newWorker(t, pool, quick())
		luck := func(h func(context.Context, pgx.Tx, *tcc.Call[money]) error) func(context.Context, pgx.Tx, *tcc.Call[money]) error {
			return func(ctx context.Context, tx pgx.Tx, c *tcc.Call[money]) error {
				err := h(ctx, tx, c)
				switch n := rand.N(100); {
				case n < 10:
					return errTest
				case n < 15:
					panic("out of cheese")
				}
				return err
			}
		}
		tcc.HandleTx(w, debit, luck(settle("held = held - $2")), luck(settle("held = held - $2, free = free + $2")))
		tcc.HandleOn(w, credit, bank, luck(settle("due = due - $2, free = free + $2")), luck(settle("due = due - $2")))
		run(t, w)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		ids   = map[string]error{}
		moved atomic.Int64
		over  = make(chan struct{})
		swept sync.WaitGroup
	)
	for range 2 {
		swept.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					sweepTCC(t, pool)
				}
			}
		})
	}
	transfers := 25
	if testing.Short() {
		transfers = 5
	}
	for range 8 {
		wg.Go(func() {
			for range transfers {
				ctx := t.Context()
				m := money{fmt.Sprint(rand.N(10)), 1 + rand.N(300)}
				timeout, n := 30*time.Second, rand.N(10)
				if n > 3 {
					timeout = time.Duration(10+rand.N(500)) * time.Millisecond // in time, or not
				}
				x, err := transfer(ctx, pool, bank, m, tcc.Timeout(timeout))
				switch {
				case n < 6:
					if own := x.Confirm(ctx); own == nil {
						moved.Add(int64(m.Cents))
						err = nil
					} else {
						err = errors.Join(err, own)
					}
				case n < 8:
					err = errors.Join(errTest, x.Cancel(ctx))
				default:
					err = errors.Join(errTest, err)
				}
				mu.Lock()
				ids[x.ID()] = err
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	tally := map[tcc.State]int{}
	for id, err := range ids {
		until(t, "the end of "+id, func() bool { return tellTCC(t, pool, id).State.Final() })
		s := tellTCC(t, pool, id)
		tally[s.State]++
		if (s.State == tcc.Confirmed) != (err == nil) {
			t.Errorf("%s is %s, and its initiator was told %v", id, s.State, err)
		}
	}
	close(over)
	swept.Wait()
	balanced(t, pool, bank, int(moved.Load()))
	t.Log(tally, moved.Load())
}
