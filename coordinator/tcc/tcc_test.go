package tcc_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/tcc"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
)

type hold struct {
	Item string `json:"item"`
}

var (
	inventory = tcc.Define[hold]("inventory.hold", tcc.Queue("inventory"), tcc.MaxAttempts(3), tcc.AttemptTimeout(time.Second), tcc.Backoff(0, time.Minute))
	payment   = tcc.Define[hold]("payment.hold")
	errTest   = errors.New("out of cheese")
)

func begin(tb testing.TB, pool *pgxpool.Pool, opts ...tcc.BeginOption) *tcc.Transaction {
	tb.Helper()
	t, err := tcc.Begin(context.Background(), pool, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

func ok(context.Context, barrier.Branch) error { return nil }

func try(tb testing.TB, t *tcc.Transaction, k *tcc.Kind[hold]) {
	tb.Helper()
	if err := k.Try(context.Background(), t, hold{"book"}, ok); err != nil {
		tb.Fatal(err)
	}
}

func exec(tb testing.TB, on db.DBTX, sql string, args ...any) {
	tb.Helper()
	if _, err := on.Exec(context.Background(), sql, args...); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

func count(tb testing.TB, on db.DBTX, sql string, args ...any) (n int) {
	tb.Helper()
	if err := on.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	return n
}

func tell(tb testing.TB, pool *pgxpool.Pool, id string) *tcc.Story {
	tb.Helper()
	s, err := tcc.Get(context.Background(), pool, 1, id)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// jobs lists the kinds of all jobs.
func jobs(tb testing.TB, pool *pgxpool.Pool) string {
	tb.Helper()
	var all string
	if err := pool.QueryRow(context.Background(), "SELECT coalesce(string_agg(kind, ' ' ORDER BY id), '') FROM pawl.job").Scan(&all); err != nil {
		tb.Fatal(err)
	}
	return all
}

// expire moves a transaction's deadline.
func expire(tb testing.TB, pool *pgxpool.Pool, t *tcc.Transaction) {
	tb.Helper()
	exec(tb, pool, "UPDATE pawl.tcc SET deadline_at = clock_timestamp() WHERE id = $1", t.ID())
}

func sweep(tb testing.TB, pool *pgxpool.Pool) db.SweepTCCRow {
	tb.Helper()
	row, err := db.New(pool).SweepTCC(context.Background(), db.SweepTCCParams{Ns: 1, LimitRows: 100})
	if err != nil {
		tb.Fatal(err)
	}
	return row
}

// What each call comes to, in whatever order they come.
func TestDecide(t *testing.T) {
	t.Parallel()
	for calls, want := range map[string]struct{ outcomes, state, jobs string }{
		"confirm":                       {"ok", "confirmed", ""},
		"cancel":                        {"ok", "cancelled", ""},
		"try":                           {"ok", "active", ""},
		"try try2 confirm":              {"ok ok ok", "confirming", "tcc:inventory.hold/confirm tcc:payment.hold/confirm"},
		"try try2 cancel":               {"ok ok ok", "cancelling", "tcc:inventory.hold/cancel tcc:payment.hold/cancel"},
		"try confirm confirm":           {"ok ok ok", "confirming", "tcc:inventory.hold/confirm"},
		"try cancel cancel":             {"ok ok ok", "cancelling", "tcc:inventory.hold/cancel"},
		"try confirm cancel":            {"ok ok confirmed", "confirming", "tcc:inventory.hold/confirm"},
		"try cancel confirm":            {"ok ok cancelled", "cancelling", "tcc:inventory.hold/cancel"},
		"try confirm try2":              {"ok ok confirmed", "confirming", "tcc:inventory.hold/confirm"},
		"try cancel try2":               {"ok ok cancelled", "cancelling", "tcc:inventory.hold/cancel"},
		"try fail confirm cancel":       {"ok failed untried ok", "cancelling", "tcc:inventory.hold/cancel tcc:payment.hold/cancel"},
		"try expire confirm":            {"ok ok expired", "active", ""},
		"try expire try2":               {"ok ok expired", "active", ""},
		"try expire cancel":             {"ok ok ok", "cancelling", "tcc:inventory.hold/cancel"},
		"try expire sweep confirm":      {"ok ok ok cancelled", "cancelling", "tcc:inventory.hold/cancel"},
		"fail expire sweep sweep":       {"failed ok ok ok", "cancelling", "tcc:payment.hold/cancel"},
		"try sweep confirm":             {"ok ok ok", "confirming", "tcc:inventory.hold/confirm"},
		"try confirm expire sweep":      {"ok ok ok ok", "confirming", "tcc:inventory.hold/confirm"},
		"try operator confirm":          {"ok ok cancelled", "cancelling", "tcc:inventory.hold/cancel"},
		"try confirm operator operator": {"ok ok confirmed confirmed", "confirming", "tcc:inventory.hold/confirm"},
	} {
		t.Run(calls, func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			ctx := t.Context()
			tx := begin(t, pool)
			var outcomes []string
			for call := range strings.FieldsSeq(calls) {
				var err error
				switch call {
				case "try":
					err = inventory.Try(ctx, tx, hold{"book"}, ok)
				case "try2":
					err = payment.Try(ctx, tx, hold{"book"}, ok)
				case "fail":
					err = payment.Try(ctx, tx, hold{"book"}, func(context.Context, barrier.Branch) error { return errTest })
				case "confirm":
					err = tx.Confirm(ctx)
				case "cancel":
					err = tx.Cancel(ctx)
				case "expire":
					expire(t, pool, tx)
				case "sweep":
					sweep(t, pool)
				case "operator":
					err = tcc.CancelByID(ctx, pool, 1, tx.ID(), "ada", "it hangs")
				}
				outcomes = append(outcomes, outcome(err))
			}
			if got := strings.Join(outcomes, " "); got != want.outcomes {
				t.Errorf("outcomes %s, want %s", got, want.outcomes)
			}
			if s := tell(t, pool, tx.ID()); string(s.State) != want.state {
				t.Errorf("state %s, want %s", s.State, want.state)
			}
			if got := jobs(t, pool); got != want.jobs {
				t.Errorf("jobs %q, want %q", got, want.jobs)
			}
		})
	}
}

func outcome(err error) string {
	for what, target := range map[string]error{
		"ok": nil, "failed": errTest, "confirmed": tcc.ErrConfirmed, "cancelled": tcc.ErrCancelled, "expired": tcc.ErrExpired, "untried": tcc.ErrUntried, "busy": tcc.ErrBusy,
	} {
		if errors.Is(err, target) {
			return what
		}
	}
	return err.Error()
}

// The branch is there, for all to see, when its try begins; and its args and policy are those of its job.
func TestTry(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	tx := begin(t, pool, tcc.ID("order:1"), tcc.Header("traceparent", "00-1"))
	for i := range 2 {
		err := inventory.Try(t.Context(), tx, hold{"book"}, func(ctx context.Context, b barrier.Branch) error {
			if want := (barrier.Branch{Namespace: 1, ID: "order:1", Branch: fmt.Sprintf("inventory.hold.%d", i+1), Op: barrier.Try}); b != want {
				t.Errorf("branch %+v, want %+v", b, want)
			}
			if s := tell(t, pool, "order:1"); len(s.Branches) != i+1 || s.Branches[i].Name != b.Branch {
				t.Errorf("not registered: %+v", s)
			}
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > tcc.TimeoutDefault {
				t.Errorf("deadline %s", deadline)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, `SELECT count(*) FROM pawl.job j JOIN pawl.queue q ON q.id = j.queue_id WHERE q.name = 'inventory' AND j.kind = 'tcc:inventory.hold/confirm' AND j.max_attempts = 3 AND j.timeout_ms = 1000
		AND j.backoff_ms = 0 AND j.backoff_ms_max = 60000 AND j.headers->>'traceparent' = '00-1' AND j.args->'args'->>'item' = 'book'`); n != 2 {
		t.Errorf("%d jobs as they should be", n)
	}
	if _, err := tcc.Begin(t.Context(), pool, tcc.ID("order:1")); !errors.Is(err, tcc.ErrExists) {
		t.Errorf("begun twice: %v", err)
	}
	if _, err := tcc.Get(t.Context(), pool, 1, "order:2"); !errors.Is(err, tcc.ErrNotFound) {
		t.Errorf("no such: %v", err)
	}
	if err := tcc.CancelByID(t.Context(), pool, 1, "order:2", "ada", "why"); !errors.Is(err, tcc.ErrNotFound) {
		t.Errorf("no such: %v", err)
	}
}

func TestTry_limits(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	tx := begin(t, pool)
	called := false
	call := func(context.Context, barrier.Branch) error { called = true; return nil }
	if err := inventory.Try(t.Context(), tx, hold{strings.Repeat("x", 1<<20)}, call); !errors.Is(err, tcc.ErrPayloadTooLarge) {
		t.Errorf("too large: %v", err)
	}
	for range tcc.BranchesMax {
		try(t, tx, inventory)
	}
	if err := inventory.Try(t.Context(), tx, hold{}, call); !errors.Is(err, tcc.ErrTooMany) {
		t.Errorf("too many: %v", err)
	}
	if called {
		t.Error("a try was called that was not registered")
	}
	if err := tx.Confirm(t.Context()); err != nil {
		t.Error(err)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.job"); n != tcc.BranchesMax {
		t.Errorf("%d jobs", n)
	}
	for _, opt := range []tcc.BeginOption{tcc.Timeout(0), tcc.Timeout(tcc.TimeoutMax + 1), tcc.ID(""), tcc.ID(strings.Repeat("x", 257)), tcc.ID("a\xff"), tcc.ID("a\x00"), tcc.Namespace(77)} {
		if _, err := tcc.Begin(t.Context(), pool, opt); !errors.Is(err, tcc.ErrInvalid) {
			t.Errorf("invalid: %v", err)
		}
	}
}

// A try that does not end by the deadline is told so.
func TestTry_deadline(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	tx := begin(t, pool, tcc.Timeout(300*time.Millisecond))
	err := inventory.Try(t.Context(), tx, hold{}, func(ctx context.Context, _ barrier.Branch) error {
		<-ctx.Done()
		return ctx.Err()
	})
	if !errors.Is(err, tcc.ErrExpired) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// Branches that are tried at the same time get numbers of their own.
func TestTry_parallel(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	tx := begin(t, pool)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		names []string
	)
	for range 20 {
		wg.Go(func() {
			if err := inventory.Try(t.Context(), tx, hold{}, func(_ context.Context, b barrier.Branch) error {
				mu.Lock()
				defer mu.Unlock()
				names = append(names, b.Branch)
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(names)
	if n := len(slices.Compact(names)); n != 20 {
		t.Errorf("%d names", n)
	}
	if err := tx.Confirm(t.Context()); err != nil {
		t.Error(err)
	}
}

// A try that is registered while its transaction is confirmed is either confirmed or refused, and is never left out.
func TestTry_concurrentDecision(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for i := range 40 {
		tx := begin(t, pool)
		try(t, tx, inventory)
		var (
			wg                sync.WaitGroup
			tried, decided    error
			called, confirmed = false, i%2 == 0
		)
		wg.Go(func() {
			tried = payment.Try(t.Context(), tx, hold{}, func(context.Context, barrier.Branch) error { called = true; return nil })
		})
		wg.Go(func() {
			if confirmed {
				decided = tx.Confirm(t.Context())
			} else {
				decided = tx.Cancel(t.Context())
			}
		})
		wg.Wait()
		s := tell(t, pool, tx.ID())
		n := count(t, pool, "SELECT count(*) FROM pawl.tcc_job WHERE id = $1", tx.ID())
		switch got := outcome(decided); {
		case got == "untried" && tried == nil && s.State == tcc.Active && n == 0:
		case got == "ok" && n == len(s.Branches) && called == (tried == nil) && (tried == nil) == (n == 2):
		default:
			t.Errorf("decided %v, tried %v, called %t, %d branches, %d jobs", decided, tried, called, len(s.Branches), n)
		}
	}
}

// Confirmations, cancellations, an operator and the sweep of several nodes at once, at the deadline: one wins, and all hear of it.
func TestDecide_concurrent(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	won := map[string]int{}
	for i := range 40 {
		tx := begin(t, pool)
		try(t, tx, inventory)
		try(t, tx, payment)
		if i%2 == 0 {
			exec(t, pool, "UPDATE pawl.tcc SET deadline_at = clock_timestamp() + $2 * interval '100 us' WHERE id = $1", tx.ID(), i)
		}
		var (
			wg   sync.WaitGroup
			errs [6]error
		)
		for j := range errs {
			wg.Go(func() {
				switch j {
				case 0, 1, 2:
					errs[j] = tx.Confirm(t.Context())
				case 3:
					errs[j] = tcc.CancelByID(t.Context(), pool, 1, tx.ID(), "ada", "it hangs")
				default:
					if row := sweep(t, pool); len(row.Failed) > 0 {
						t.Errorf("%+v", row)
					}
				}
			})
		}
		wg.Wait()
		sweep(t, pool)
		s := tell(t, pool, tx.ID())
		won[string(s.State)]++
		want := map[tcc.State]string{tcc.Confirming: "ok ok ok confirmed", tcc.Cancelling: "cancelled cancelled cancelled ok"}[s.State]
		var got []string
		for _, err := range errs[:4] {
			o := outcome(err)
			if o == "expired" {
				o = "cancelled"
			}
			got = append(got, o)
		}
		if strings.Join(got, " ") != want || count(t, pool, "SELECT count(*) FROM pawl.tcc_job WHERE id = $1", tx.ID()) != 2 {
			t.Errorf("%s: %v", s.State, errs)
		}
	}
	t.Log(won)
}

// A decision rides in the caller's transaction with his own rows; until that ends, nobody else decides.
func TestConfirmTx(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "CREATE TABLE orders (id text)")
	ctx := t.Context()
	for _, commit := range []bool{false, true} {
		tx := begin(t, pool)
		try(t, tx, inventory)
		own, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = own.Rollback(ctx) }()
		exec(t, own, "INSERT INTO orders VALUES ($1)", tx.ID())
		if err := tx.ConfirmTx(ctx, own); err != nil {
			t.Fatal(err)
		}
		expire(t, pool, tx)
		if row := sweep(t, pool); row.Did != 0 || len(row.Failed) > 0 {
			t.Error("the sweep decided what another is deciding")
		}
		cancelled := make(chan error, 1)
		go func() { cancelled <- tx.Cancel(ctx) }()
		if commit {
			err = own.Commit(ctx)
		} else {
			err = own.Rollback(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		want, orders, state := "ok", 0, tcc.Cancelling
		if commit {
			want, orders, state = "confirmed", 1, tcc.Confirming
		}
		if got := outcome(<-cancelled); got != want {
			t.Errorf("cancel: %s, want %s", got, want)
		}
		sweep(t, pool)
		if s := tell(t, pool, tx.ID()); s.State != state {
			t.Errorf("state %s, want %s", s.State, state)
		}
		if n := count(t, pool, "SELECT count(*) FROM orders WHERE id = $1", tx.ID()); n != orders {
			t.Errorf("%d orders", n)
		}
	}
	tx := begin(t, pool)
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(own pgx.Tx) error { return tx.ConfirmTx(ctx, own) })
	if !errors.Is(err, tcc.ErrInvalid) {
		t.Errorf("repeatable read: %v", err)
	}
}

// Whoever waits for a ConfirmTx that does not end is told so, and nothing is done.
func TestDecide_busy(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	tx := begin(t, pool)
	err := pgx.BeginFunc(t.Context(), pool, func(own pgx.Tx) error {
		if err := tx.ConfirmTx(t.Context(), own); err != nil {
			return err
		}
		if got := outcome(tx.Cancel(t.Context())); got != "busy" {
			t.Errorf("cancel: %s", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if s := tell(t, pool, tx.ID()); s.State != tcc.Confirmed {
		t.Errorf("state %s", s.State)
	}
}

// A decision whose reply is lost is asked for again, and so known.
func TestDecide_lostReply(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for how, name := range map[int32]string{dbtest.DropCommit: "not arrived", dbtest.DropReply: "no reply", dbtest.CutClient: "cut"} {
		for _, confirm := range []bool{true, false} {
			t.Run(fmt.Sprint(name, confirm), func(t *testing.T) {
				t.Parallel()
				proxy, through := dbtest.NewProxy(t, pool, 4)
				proxy.Take("tcc_decide")
				tx := begin(t, through)
				try(t, tx, inventory)
				proxy.Commit.Store(how)
				decide, want := tx.Cancel, tcc.Cancelling
				if confirm {
					decide, want = tx.Confirm, tcc.Confirming
				}
				if err := decide(t.Context()); err != nil {
					t.Error(err)
				}
				if proxy.Commit.Load() != dbtest.PassCommit {
					t.Error("nothing was lost")
				}
				if s := tell(t, pool, tx.ID()); s.State != want {
					t.Errorf("state %s", s.State)
				}
				if n := count(t, pool, "SELECT count(*) FROM pawl.tcc_job WHERE id = $1", tx.ID()); n != 1 {
					t.Errorf("%d jobs", n)
				}
			})
		}
	}
}

// A branch whose registration's reply was lost is registered, and cancelled with the others.
func TestTry_lostReply(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	proxy, through := dbtest.NewProxy(t, pool, 4)
	proxy.Take("tcc_register")
	tx := begin(t, through)
	proxy.Commit.Store(dbtest.DropReply)
	if err := inventory.Try(t.Context(), tx, hold{}, func(context.Context, barrier.Branch) error { t.Error("tried"); return nil }); err == nil {
		t.Error("no error")
	}
	if got := outcome(tx.Confirm(t.Context())); got != "untried" {
		t.Errorf("confirm: %s", got)
	}
	if got := outcome(tx.Cancel(t.Context())); got != "ok" || jobs(t, pool) != "tcc:inventory.hold/cancel" {
		t.Errorf("cancel: %s, %s", got, jobs(t, pool))
	}
}

// One that cannot be cancelled does not keep the sweep from the others, and is not forgotten.
func TestSweep_failed(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bad, good := begin(t, pool), begin(t, pool)
	if err := inventory.Try(t.Context(), bad, hold{strings.Repeat("x", 100)}, ok); err != nil {
		t.Fatal(err)
	}
	try(t, good, inventory)
	exec(t, pool, "UPDATE pawl.queue SET payload_bytes_max = 150")
	exec(t, pool, "UPDATE pawl.tcc SET deadline_at = clock_timestamp() - interval '1 hour'")
	for _, did := range []int32{1, 0} {
		if row := sweep(t, pool); row.Did != did || len(row.Failed) != 1 || !strings.Contains(row.Failed[0], bad.ID()) {
			t.Errorf("%+v", row)
		}
	}
	exec(t, pool, "UPDATE pawl.queue SET payload_bytes_max = 1000")
	if row := sweep(t, pool); row.Did != 1 || len(row.Failed) != 0 {
		t.Errorf("%+v", row)
	}
	if row := sweep(t, pool); row.Did != 0 {
		t.Errorf("%+v", row)
	}
}

// As many that cannot be cancelled as the sweep looks at in one transaction do not keep it from those behind.
func TestSweep_manyFailed(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for range 4 {
		if err := inventory.Try(t.Context(), begin(t, pool), hold{strings.Repeat("x", 100)}, ok); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, pool, "UPDATE pawl.queue SET payload_bytes_max = 150")
	exec(t, pool, "UPDATE pawl.tcc SET deadline_at = clock_timestamp() - interval '1 hour'")
	good := begin(t, pool)
	try(t, good, inventory)
	exec(t, pool, "UPDATE pawl.tcc SET deadline_at = clock_timestamp() - interval '10 minutes' WHERE id = $1", good.ID())
	for _, want := range []int32{1, 0, 0} {
		var did int32
		failed, p := 0, db.SweepTCCParams{Ns: 1, LimitRows: 2}
		for {
			row, err := db.New(pool).SweepTCC(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			did, failed = did+row.Did, failed+len(row.Failed)
			if row.Last == nil {
				break
			}
			p.AfterAt, p.AfterID = *row.Last, row.LastID
		}
		if did != want || failed != 4 {
			t.Errorf("%d cancelled, %d failed; want %d and 4", did, failed, want)
		}
	}
	if s := tell(t, pool, good.ID()); s.State != tcc.Cancelling {
		t.Errorf("state %s", s.State)
	}
}

// The sweep does not look again at what it has decided long ago, but goes on where it had to stop.
func TestSweep_floor(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for range 5 {
		try(t, begin(t, pool), inventory)
	}
	exec(t, pool, "UPDATE pawl.tcc SET deadline_at = clock_timestamp() - n * interval '1 hour' FROM (SELECT id AS i, row_number() OVER () AS n FROM pawl.tcc) x WHERE i = id")
	for _, did := range []int32{2, 2, 1, 0} {
		row, err := db.New(pool).SweepTCC(t.Context(), db.SweepTCCParams{Ns: 1, LimitRows: 2})
		if err != nil || row.Did != did {
			t.Errorf("%+v, %v; want %d", row, err, did)
		}
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.tcc_floor WHERE at BETWEEN clock_timestamp() - interval '6 minutes' AND clock_timestamp() - interval '4 minutes'"); n != 1 {
		t.Error("the floor is elsewhere")
	}
}

// What is done is removed when it has been so for long, and nothing else.
func TestSweep_old(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	done, undone, undecided, empty := begin(t, pool), begin(t, pool), begin(t, pool), begin(t, pool)
	for _, tx := range []*tcc.Transaction{done, undone, undecided} {
		try(t, tx, inventory)
	}
	for _, tx := range []*tcc.Transaction{done, undone, empty} {
		if err := tx.Confirm(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.New(pool).EndTCCBranch(t.Context(), db.EndTCCBranchParams{Ns: 1, ID: done.ID(), N: 1}); err != nil {
		t.Fatal(err)
	}
	remove := func() int32 {
		row, err := db.New(pool).SweepTCCOld(t.Context(), db.SweepTCCOldParams{Ns: 1, Keep: tcc.Keep, LimitRows: 100})
		if err != nil || row.Last != nil {
			t.Errorf("%+v, %v", row, err)
		}
		return row.Removed
	}
	for _, table := range []string{"tcc SET deadline_at", "tcc_decision SET decided_at", "tcc_end SET at"} {
		if n := remove(); n != 0 && table != "tcc_end SET at" {
			t.Errorf("%d removed before %s", n, table)
		} else if n != 1 && table == "tcc_end SET at" { // the empty one
			t.Errorf("%d removed before %s", n, table)
		}
		exec(t, pool, "UPDATE pawl."+table+" = clock_timestamp() - interval '101 days'")
	}
	if n := remove(); n != 1 {
		t.Errorf("%d removed", n)
	}
	if _, err := tcc.Get(t.Context(), pool, 1, done.ID()); !errors.Is(err, tcc.ErrNotFound) {
		t.Errorf("it is there: %v", err)
	}
	tell(t, pool, undone.ID())
	tell(t, pool, undecided.ID())
	if n := count(t, pool, "SELECT count(*) FROM pawl.tcc_branch b WHERE NOT EXISTS (SELECT FROM pawl.tcc t WHERE t.id = b.id)") +
		count(t, pool, "SELECT count(*) FROM pawl.tcc_job b WHERE NOT EXISTS (SELECT FROM pawl.tcc t WHERE t.id = b.id)"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	var ids []string
	for i := range 7 {
		tx := begin(t, pool, tcc.ID(fmt.Sprint("order:", i)), tcc.Timeout(time.Duration(i+1)*time.Minute))
		try(t, tx, inventory)
		try(t, tx, payment)
		var err error
		switch i % 3 {
		case 0:
			err = tx.Confirm(t.Context())
		case 1:
			err = tx.Cancel(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append([]string{tx.ID()}, ids...)
	}
	end := func(id string, n int32) {
		if err := db.New(pool).EndTCCBranch(t.Context(), db.EndTCCBranchParams{Ns: 1, ID: id, N: n}); err != nil {
			t.Fatal(err)
		}
	}
	end("order:0", 1)
	end("order:0", 2)
	end("order:1", 1)
	end("order:1", 2)
	end("order:4", 1)
	takeJob(t, pool, "order:4", 2)
	takeJob(t, pool, "order:3", 1)
	takeJob(t, pool, "order:3", 2)
	for _, c := range []struct {
		f    tcc.Filter
		want []string
	}{
		{tcc.Filter{}, ids},
		{tcc.Filter{Limit: 3}, ids},
		{tcc.Filter{Limit: 2, State: tcc.Confirming}, []string{"order:6"}},
		{tcc.Filter{State: tcc.Confirmed}, []string{"order:0"}},
		{tcc.Filter{State: tcc.Active}, []string{"order:5", "order:2"}},
		{tcc.Filter{State: tcc.Stuck}, []string{"order:4", "order:3"}},
		{tcc.Filter{Limit: 2, Open: true}, []string{"order:6", "order:5", "order:4", "order:3", "order:2"}},
		{tcc.Filter{State: tcc.Cancelled, Open: true}, nil},
	} {
		var got []string
		for f := c.f; ; {
			page, next, err := tcc.List(t.Context(), pool, 1, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range page {
				got = append(got, s.ID)
				if told := tell(t, pool, s.ID); !reflect.DeepEqual(told.Summary, s) {
					t.Errorf("List has %+v, Get %+v", s, told.Summary)
				}
			}
			if f.Before = next; next == "" {
				break
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.f, got, c.want)
		}
	}
	if s := tell(t, pool, "order:4"); s.Count != 2 || s.Done != 1 || s.Stuck != 1 || s.Decision != barrier.Cancel || s.DecidedBy != "initiator" {
		t.Errorf("got %+v", s.Summary)
	}
	if _, _, err := tcc.List(t.Context(), pool, 1, tcc.Filter{Before: "order:7"}); !errors.Is(err, tcc.ErrNotFound) {
		t.Errorf("before what is not there: %v", err)
	}
}

// takeJob cancels the job of a branch, which is then stuck.
func takeJob(tb testing.TB, pool *pgxpool.Pool, id string, n int) {
	tb.Helper()
	exec(tb, pool, "SELECT pawl.job_cancel(1::smallint, max(j.job_id), 'taken') FROM pawl.tcc_job j WHERE j.id = $1 AND j.n = $2", id, n)
}

// A story tells what happened, in order, by whom and why.
func TestGet_events(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	tx := begin(t, pool, tcc.ID("order:1"))
	try(t, tx, inventory)
	try(t, tx, payment)
	if err := tcc.CancelByID(t.Context(), pool, 1, tx.ID(), "ada", "it hangs"); err != nil {
		t.Fatal(err)
	}
	takeJob(t, pool, tx.ID(), 2)
	if _, err := db.New(pool).SweepTCCStuck(t.Context(), db.SweepTCCStuckParams{Ns: 1, LimitRows: 100}); err != nil {
		t.Fatal(err)
	}
	if err := tcc.Retry(t.Context(), pool, 1, tx.ID(), "bob", "mended"); err != nil {
		t.Fatal(err)
	}
	if err := db.New(pool).EndTCCBranch(t.Context(), db.EndTCCBranchParams{Ns: 1, ID: tx.ID(), N: 2}); err != nil {
		t.Fatal(err)
	}
	s := tell(t, pool, tx.ID())
	var got []string
	for i, e := range s.Events {
		text := strings.Join([]string{e.What, e.Branch, e.Actor, e.Reason}, "|")
		if i == 0 {
			text = strings.Replace(text, s.BegunBy, "somebody", 1)
		}
		if (e.JobID != 0) != (e.What == "stuck" || e.What == "retried") || e.At.IsZero() {
			t.Errorf("got %+v", e)
		}
		got = append(got, text)
	}
	want := []string{
		"begun||somebody|", "registered|inventory.hold.1||", "registered|payment.hold.2||", "cancelling||ada|it hangs", "stuck|payment.hold.2||", "retried|payment.hold.2|bob|mended", "cancelled|payment.hold.2||",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if b := s.Branches[0]; b.Attempt != 1 || b.MaxAttempts != 3 || b.Error != "" || b.Served || b.State != tcc.Cancelling {
		t.Errorf("got %+v", b)
	}
}

func TestDefine(t *testing.T) {
	t.Parallel()
	for says, f := range map[string]func(){
		"a name has":            func() { tcc.Define[hold]("a/b") },
		"a queue's name":        func() { tcc.Define[hold]("a", tcc.Queue("")) },
		"priority 5":            func() { tcc.Define[hold]("a", tcc.Priority(5)) },
		"max attempts of 0":     func() { tcc.Define[hold]("a", tcc.MaxAttempts(0)) },
		"timeout of 0s":         func() { tcc.Define[hold]("a", tcc.AttemptTimeout(0)) },
		"longest backoff of 0s": func() { tcc.Define[hold]("a", tcc.Backoff(time.Second, 0)) },
	} {
		func() {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.Contains(p, says) {
					t.Errorf("panic %q does not say %q", p, says)
				}
			}()
			f()
		}()
	}
}

// What is decided while the sweep is at work on another is left alone.
func TestSweep_decidedMeanwhile(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	first, second := begin(t, pool), begin(t, pool)
	try(t, first, inventory)
	expire(t, pool, first)
	expire(t, pool, second)
	lock, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Rollback(t.Context()) }()
	exec(t, lock, "LOCK TABLE pawl.tcc_job IN SHARE MODE") // the first waits here; the second has no jobs
	swept := make(chan db.SweepTCCRow, 1)
	go func() {
		row, err := db.New(pool).SweepTCC(context.Background(), db.SweepTCCParams{Ns: 1, LimitRows: 100})
		if err != nil {
			t.Error(err)
		}
		swept <- row
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for count(t, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 0 {
		<-tick.C
	}
	if err := errors.Join(second.Cancel(t.Context()), lock.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	if row := <-swept; row.Did != 1 || len(row.Failed) > 0 {
		t.Errorf("%+v", row)
	}
}
