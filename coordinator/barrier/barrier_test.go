package barrier_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// patience bounds every wait of these tests; what is waited for comes much earlier.
const patience = time.Minute

// open gives a database with a table of effects.
func open(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool := dbtest.New(t)
	exec(t, pool, "CREATE TABLE effect (id bigint GENERATED ALWAYS AS IDENTITY, saga text, step text, op text)")
	return pool
}

func exec(t testing.TB, on db.DBTX, sql string, args ...any) {
	t.Helper()
	if _, err := on.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func count(t testing.TB, on db.DBTX, sql string, args ...any) (n int) {
	t.Helper()
	if err := on.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// until polls for a condition that no signal announces.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// untilWaiting waits until n transactions of the database wait for a lock.
func untilWaiting(t testing.TB, pool *pgxpool.Pool, n int) {
	t.Helper()
	until(t, "somebody to wait", func() bool {
		return count(t, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == n
	})
}

func branch(op barrier.Op) barrier.Branch {
	return barrier.Branch{ID: "checkout:4711", Branch: "charge", Op: op}
}

// effect is work that writes a row and says which.
func effect(tx pgx.Tx, b barrier.Branch) func(context.Context) (json.RawMessage, error) {
	return func(ctx context.Context) (out json.RawMessage, err error) {
		var n int
		err = tx.QueryRow(ctx, "WITH e AS (INSERT INTO effect (saga, step, op) VALUES ($1, $2, $3)) SELECT count(*) + 1 FROM effect", b.ID, b.Branch, b.Op).Scan(&n)
		return answer(n), err
	}
}

// do calls a branch in a transaction of its own.
func do(t testing.TB, pool *pgxpool.Pool, b barrier.Branch) (out barrier.Result, err error) {
	t.Helper()
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		out, err = barrier.Do(t.Context(), tx, b, effect(tx, b))
		return err
	})
	return out, err
}

// effects lists the ops that had an effect, in their order.
func effects(t testing.TB, pool *pgxpool.Pool) string {
	t.Helper()
	var all string
	if err := pool.QueryRow(t.Context(), "SELECT coalesce(string_agg(op, ' ' ORDER BY id), '') FROM effect").Scan(&all); err != nil {
		t.Fatal(err)
	}
	return all
}

// Every order in which two or three calls of a branch may arrive.
func TestDo(t *testing.T) { onEach(t, testDo) }

func testDo(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	for calls, want := range map[string]struct{ outcomes, effects string }{
		"action":                    {"done", "action"},
		"action action":             {"done duplicate", "action"},
		"action undo":               {"done done", "action undo"},
		"action undo undo":          {"done done duplicate", "action undo"},
		"action undo action":        {"done done duplicate", "action undo"},
		"action action undo action": {"done duplicate done duplicate", "action undo"},
		"undo":                      {"null", ""},
		"undo undo":                 {"null duplicate", ""},
		"undo action":               {"null late", ""},
		"undo action undo action":   {"null late duplicate late", ""},
		"try confirm confirm try":   {"done done duplicate duplicate", "try confirm"},
		"try cancel cancel try":     {"done done duplicate duplicate", "try cancel"},
		"cancel try cancel":         {"null late duplicate", ""},
	} {
		t.Run(calls, func(t *testing.T) {
			var outcomes []string
			values := map[string]string{}
			for op := range strings.FieldsSeq(calls) {
				out, err := has(t, s, barrier.Branch{ID: calls, Branch: "charge", Op: barrier.Op(op)})
				switch {
				case errors.Is(err, barrier.ErrTooLate):
					out.Outcome = "late"
				case err != nil:
					t.Fatal(err)
				case values[op] == "":
					values[op] = string(out.Value)
				case values[op] != string(out.Value):
					t.Errorf("%s came to %s, now to %s", op, values[op], out.Value)
				}
				if (out.Value != nil) != (out.Outcome == barrier.Done || out.Outcome == barrier.Duplicate && strings.Contains(want.effects, op)) {
					t.Errorf("%s, %s: value %s", op, out.Outcome, out.Value)
				}
				outcomes = append(outcomes, string(out.Outcome))
			}
			if got := strings.Join(outcomes, " "); got != want.outcomes {
				t.Errorf("outcomes %s, want %s", got, want.outcomes)
			}
			if got := s.effects(t); got != want.effects {
				t.Errorf("effects %q, want %q", got, want.effects)
			}
			s.exec(t, "DELETE FROM effect")
		})
	}
}

// Other sagas, steps and namespaces have nothing to do with it, nor ids that are the same but for case or blanks, and a result may be nothing at all.
func TestDoApart(t *testing.T) { onEach(t, testDoApart) }

func testDoApart(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	s.otherNamespace(t)
	branches := []barrier.Branch{
		{ID: "a", Branch: "b", Op: barrier.Action},
		{ID: "b", Branch: "a", Op: barrier.Action},
		{ID: "a", Branch: "c", Op: barrier.Action},
		{ID: "a", Branch: "b", Op: barrier.Try},
		{ID: "a", Branch: "b", Op: barrier.Action, Namespace: 2},
		{ID: "A", Branch: "b", Op: barrier.Action},
		{ID: "a ", Branch: "b", Op: barrier.Action},
		{ID: "a", Branch: "B", Op: barrier.Action},
		{ID: "a", Branch: "b ", Op: barrier.Action},
		{ID: "ä", Branch: "b", Op: barrier.Action},
		{ID: "a\u0308", Branch: "b", Op: barrier.Action},
		{ID: `a'"\%_`, Branch: "日本🐎", Op: barrier.Action},
	}
	for i, b := range branches {
		for j, want := range []barrier.Outcome{barrier.Done, barrier.Duplicate} {
			out, err := callIn(t.Context(), s, b, func(ctx context.Context, tx transaction) (json.RawMessage, error) {
				_, err := tx.effect(ctx, b)
				return nil, err
			})
			if err != nil || out.Outcome != want || out.Value != nil {
				t.Errorf("%d, %d: %+v, %v", i, j, out, err)
			}
		}
	}
	if n := s.count(t, "SELECT count(*) FROM effect"); n != len(branches) {
		t.Errorf("%d effects", n)
	}
}

// What fails leaves nothing behind, and may come again and succeed.
func TestDoFails(t *testing.T) { onEach(t, testDoFails) }

func testDoFails(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	oh := errors.New("oh")
	fail := func(work func(ctx context.Context, tx transaction) (json.RawMessage, error)) error {
		t.Helper()
		_, err := callIn(t.Context(), s, branch(barrier.Action), func(ctx context.Context, tx transaction) (json.RawMessage, error) {
			if _, err := tx.effect(ctx, branch(barrier.Action)); err != nil {
				t.Error(err)
			}
			return work(ctx, tx)
		})
		if n := s.count(t, "SELECT count(*) FROM effect") + s.rows(t); n != 0 {
			t.Errorf("%v: %d rows were left behind", err, n)
		}
		return err
	}
	returns := func(value string, err error) func(context.Context, transaction) (json.RawMessage, error) {
		return func(context.Context, transaction) (json.RawMessage, error) { return json.RawMessage(value), err }
	}
	sql := func(statement string) func(context.Context, transaction) (json.RawMessage, error) {
		return func(ctx context.Context, tx transaction) (json.RawMessage, error) {
			_ = tx.exec(ctx, statement) // work does not look
			return nil, nil
		}
	}
	type failure struct {
		work func(context.Context, transaction) (json.RawMessage, error)
		want error
	}
	failures := map[string]failure{
		"error":       {returns("", oh), oh},
		"no JSON":     {returns("{", nil), barrier.ErrInvalid},
		"empty":       {returns("", nil), barrier.ErrInvalid},
		"no UTF-8":    {returns("\"\xff\"", nil), barrier.ErrInvalid},
		"large":       {returns(`"`+strings.Repeat("x", barrier.ResultBytesMax)+`"`, nil), barrier.ErrInvalid},
		"rolled back": {sql("ROLLBACK"), barrier.ErrEnded},
		"begun anew":  {sql("ROLLBACK AND CHAIN"), barrier.ErrEnded},
		"within itself": {func(ctx context.Context, tx transaction) (json.RawMessage, error) {
			_, err := tx.do(ctx, branch(barrier.Action), func(ctx context.Context) (json.RawMessage, error) { return tx.effect(ctx, branch(barrier.Action)) })
			return nil, err
		}, nil},
	}
	if _, ok := s.(onPostgres); ok {
		s.exec(t, "CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
		failures["failed"] = failure{sql("SELECT 1/0"), nil}
		failures["fails at end"] = failure{sql("INSERT INTO late VALUES (1), (1)"), nil}
	}
	for what, c := range failures {
		if err := fail(c.work); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	func() {
		defer func() { _ = recover() }()
		_ = fail(func(context.Context, transaction) (json.RawMessage, error) { panic("oh") })
	}()
	if out, err := has(t, s, branch(barrier.Action)); err != nil || out.Outcome != barrier.Done {
		t.Errorf("after all that: %v, %v", out, err)
	}
}

// refusing calls a branch that refuses, after it has written something.
func refusing(t *testing.T, s service, b barrier.Branch, reason error) (barrier.Result, error) {
	t.Helper()
	return callIn(t.Context(), s, b, func(ctx context.Context, tx transaction) (json.RawMessage, error) {
		if _, err := tx.effect(ctx, b); err != nil {
			t.Error(err)
		}
		return nil, reason
	})
}

// A refusal is the answer to every copy of the call, and to those of earlier attempts; a later attempt may succeed, unless there was a compensation.
func TestDoRefused(t *testing.T) { onEach(t, testDoRefused) }

func testDoRefused(t *testing.T, open func(testing.TB) service) {
	for _, ops := range [][2]barrier.Op{{barrier.Action, barrier.Undo}, {barrier.Try, barrier.Cancel}} {
		s := open(t)
		at := func(job int64, attempt int) barrier.Branch {
			b := branch(ops[0])
			b.Job, b.Attempt = job, attempt
			return b
		}
		no := barrier.Refuse(errors.New("no money"))
		for i, c := range []struct {
			job     int64
			attempt int
			refuses bool
			want    barrier.Outcome
		}{
			{7, 2, true, barrier.Refused},
			{7, 2, false, barrier.Refused},
			{7, 1, false, barrier.Refused},
			{6, 9, false, barrier.Refused},
			{0, 0, false, barrier.Refused},
			{7, 3, true, barrier.Refused},
			{7, 3, false, barrier.Refused},
			{8, 1, true, barrier.Refused},
			{7, 4, false, barrier.Refused},
			{8, 2, false, barrier.Done},
			{7, 2, true, barrier.Duplicate},
			{9, 1, true, barrier.Duplicate},
		} {
			var out barrier.Result
			var err error
			if c.refuses {
				out, err = refusing(t, s, at(c.job, c.attempt), no)
			} else {
				out, err = has(t, s, at(c.job, c.attempt))
			}
			if err != nil || out.Outcome != c.want || (out.Reason == "no money") != (c.want == barrier.Refused) || (out.Value == nil) != (c.want == barrier.Refused) {
				t.Errorf("%d: %+v, %v; want %s", i, out, err, c.want)
			}
		}
		if got := s.effects(t); got != string(ops[0]) {
			t.Errorf("effects %q", got)
		}
		other := at(1, 1)
		other.ID = "checkout:4712"
		if out, err := refusing(t, s, other, no); err != nil || out.Outcome != barrier.Refused {
			t.Errorf("%+v, %v", out, err)
		}
		undo := other
		undo.Op = ops[1]
		for _, want := range []barrier.Outcome{barrier.Null, barrier.Duplicate} {
			if out, err := has(t, s, undo); err != nil || out.Outcome != want {
				t.Errorf("compensation of what was refused: %+v, %v; want %s", out, err, want)
			}
		}
		for _, other.Attempt = range []int{1, 2} {
			if _, err := has(t, s, other); !errors.Is(err, barrier.ErrTooLate) {
				t.Errorf("attempt %d, after that: %v", other.Attempt, err)
			}
		}
	}
}

// Who does not say which attempt it is has one try. What may not be refused is an error.
func TestDoRefusedWithoutAttempt(t *testing.T) { onEach(t, testDoRefusedWithoutAttempt) }

func testDoRefusedWithoutAttempt(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	long := strings.Repeat("ü", barrier.ReasonBytesMax)
	for range 2 {
		out, err := refusing(t, s, branch(barrier.Action), barrier.Refuse(errors.New("\x00\xff"+long)))
		if err != nil || out.Outcome != barrier.Refused || out.Reason != "\uFFFD\uFFFD"+long[:barrier.ReasonBytesMax-6] {
			t.Errorf("%+v, %v", out, err)
		}
	}
	oh := errors.New("oh")
	for _, op := range []barrier.Op{barrier.Undo, barrier.Confirm} {
		b := branch(op)
		b.ID = "other"
		if op == barrier.Undo {
			if _, err := has(t, s, barrier.Branch{ID: b.ID, Branch: b.Branch, Op: barrier.Action}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := refusing(t, s, b, barrier.Refuse(oh)); !errors.Is(err, oh) || !strings.Contains(err.Error(), "may not be refused") {
			t.Errorf("%s: %v", op, err)
		}
	}
	if got := s.effects(t); got != "action" {
		t.Errorf("effects %q", got)
	}
}

// What cannot be meant is refused before anything is asked, or by the functions.
func TestDoInvalid(t *testing.T) { onEach(t, testDoInvalid) }

func testDoInvalid(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	for what, b := range map[string]barrier.Branch{
		"no id":       {Branch: "b", Op: barrier.Action},
		"long id":     {ID: strings.Repeat("i", barrier.IDBytesMax+1), Branch: "b", Op: barrier.Action},
		"NUL":         {ID: "a\x00", Branch: "b", Op: barrier.Action},
		"no UTF-8":    {ID: "\xff", Branch: "b", Op: barrier.Action},
		"no branch":   {ID: "a", Op: barrier.Action},
		"long branch": {ID: "a", Branch: strings.Repeat("b", barrier.BranchBytesMax+1), Op: barrier.Action},
		"no op":       {ID: "a", Branch: "b"},
		"another op":  {ID: "a", Branch: "b", Op: "compensate"},
		"job":         {ID: "a", Branch: "b", Op: barrier.Action, Job: -1},
		"attempt":     {ID: "a", Branch: "b", Op: barrier.Action, Attempt: 1 << 31},
	} {
		if _, err := has(t, s, b); !errors.Is(err, barrier.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := has(t, s, barrier.Branch{ID: strings.Repeat("ü", 512), Branch: strings.Repeat("b", 255), Op: "all"})
	if err == nil || strings.Contains(err.Error(), "ID") || !strings.Contains(err.Error(), `"all" is not one of "action", "undo", "try", "confirm", "cancel"`) {
		t.Errorf("got %v", err)
	}
	for _, want := range []barrier.Outcome{barrier.Done, barrier.Duplicate} {
		out, err := callIn(t.Context(), s, barrier.Branch{ID: strings.Repeat("ü", 512), Branch: strings.Repeat("b", 255), Op: barrier.Action}, func(ctx context.Context, tx transaction) (json.RawMessage, error) {
			return json.RawMessage(`"` + strings.Repeat("ü", barrier.ResultBytesMax/2-1) + `"`), nil
		})
		if err != nil || out.Outcome != want || len(out.Value) != barrier.ResultBytesMax {
			t.Errorf("the largest: %s, %d bytes, %v", out.Outcome, len(out.Value), err)
		}
	}
	if n := s.count(t, "SELECT count(*) FROM effect"); n != 0 {
		t.Errorf("%d effects", n)
	}
}

// What Postgres refuses by itself: another isolation level, a namespace that is not there, and what others than this package ask its functions.
func TestDoInvalidPostgres(t *testing.T) {
	t.Parallel()
	pool := open(t)
	if _, err := do(t, pool, barrier.Branch{ID: "a", Branch: "b", Op: barrier.Action, Namespace: 77}); !errors.Is(err, barrier.ErrInvalid) {
		t.Errorf("namespace: %v", err)
	}
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		err := pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
			_, err := barrier.Do(t.Context(), tx, branch(barrier.Action), effect(tx, branch(barrier.Action)))
			return err
		})
		if !errors.Is(err, barrier.ErrInvalid) || !strings.Contains(err.Error(), "READ COMMITTED") {
			t.Errorf("%s: %v", level, err)
		}
	}
	if n := count(t, pool, "SELECT count(*) FROM effect"); n != 0 {
		t.Errorf("%d effects", n)
	}
	for _, args := range [][2]string{{"", "b"}, {"a", ""}, {strings.Repeat("a", 1025), "b"}, {"a", strings.Repeat("b", 256)}} {
		_, err := pool.Exec(t.Context(), "SELECT pawl.barrier_enter(1::smallint, $1, $2, 'action', 0, 0, 1000, 0)", args[0], args[1])
		if db.Code(err) != "22023" {
			t.Errorf("%.5q: %v", args, err)
		}
	}
}

// What a caller elsewhere counts on is not lost in a crash, whatever the database does with other transactions.
func TestDoDurable(t *testing.T) {
	t.Parallel()
	pool := open(t)
	for before, want := range map[string]string{"off": "local", "on": "on", "remote_apply": "remote_apply"} {
		for _, op := range []barrier.Op{barrier.Try, barrier.Confirm, barrier.Cancel} {
			err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				exec(t, tx, "SET LOCAL synchronous_commit = "+before)
				b := branch(op)
				b.ID = before
				if _, err := barrier.Do(t.Context(), tx, b, effect(tx, b)); err != nil {
					return err
				}
				var got string
				if err := tx.QueryRow(t.Context(), "SHOW synchronous_commit").Scan(&got); err != nil || got != want {
					t.Errorf("%s, %s: got %s, want %s", op, before, got, want)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
}

func TestDoWithoutSchema(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	exec(t, pool, "DROP SCHEMA pawl CASCADE")
	if _, err := do(t, pool, branch(barrier.Action)); !errors.Is(err, barrier.ErrSchema) {
		t.Errorf("got %v", err)
	}
}

// A savepoint that is rolled back takes the branch with it; calls of several branches in one transaction, also within each other, know nothing of each other.
func TestDoSavepoint(t *testing.T) { onEach(t, testDoSavepoint) }

func testDoSavepoint(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	tx, err := s.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.rollback(t.Context())
	say := func(sql string) {
		t.Helper()
		if err := tx.exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	action, other := branch(barrier.Action), barrier.Branch{ID: "other", Branch: "b", Op: barrier.Action}
	for i, want := range []barrier.Outcome{barrier.Done, barrier.Done, barrier.Duplicate} {
		say("SAVEPOINT mine")
		out, err := tx.do(t.Context(), action, func(ctx context.Context) (json.RawMessage, error) {
			out, err := tx.do(ctx, other, func(ctx context.Context) (json.RawMessage, error) { return tx.effect(ctx, other) })
			if err != nil || out.Outcome != barrier.Done {
				t.Errorf("%d, within: %+v, %v", i, out, err)
			}
			return tx.effect(ctx, action)
		})
		if err != nil || out.Outcome != want {
			t.Errorf("%d: %+v, %v", i, out, err)
		}
		if i == 0 {
			say("ROLLBACK TO SAVEPOINT mine")
		}
		say("RELEASE SAVEPOINT mine")
	}
	if err := tx.commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.effects(t); got != "action action" {
		t.Errorf("effects %q", got)
	}
}

// A call that meets another of its branch, not committed yet, waits: a compensation is real if the action commits, and null if it does not; an action that meets a compensation
// is too late if that commits.
func TestDoConcurrent(t *testing.T) { onEach(t, testDoConcurrent) }

func testDoConcurrent(t *testing.T, open func(testing.TB) service) {
	for calls, want := range map[string]struct{ commits, rollsBack string }{
		"action undo":   {"done", "null"},
		"action action": {"duplicate", "done"},
		"undo action":   {"late", "done"},
		"undo undo":     {"duplicate", "null"},
		"try cancel":    {"done", "null"},
		"cancel try":    {"late", "done"},
		"try confirm":   {"done", "done"},
	} {
		for _, commits := range []bool{true, false} {
			t.Run(calls, func(t *testing.T) {
				t.Parallel()
				s := open(t)
				first, second, _ := strings.Cut(calls, " ")
				tx, err := s.begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer tx.rollback(t.Context())
				b := branch(barrier.Op(first))
				if _, err := tx.do(t.Context(), b, func(ctx context.Context) (json.RawMessage, error) { return tx.effect(ctx, b) }); err != nil {
					t.Fatal(err)
				}
				var (
					out   barrier.Result
					fault error
					group sync.WaitGroup
				)
				group.Go(func() { out, fault = has(t, s, branch(barrier.Op(second))) })
				s.untilWaiting(t, 1)
				expected := want.commits
				if commits {
					err = tx.commit(t.Context())
				} else {
					expected = want.rollsBack
					err = tx.rollback(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
				group.Wait()
				if errors.Is(fault, barrier.ErrTooLate) {
					out.Outcome, fault = "late", nil
				}
				if fault != nil || string(out.Outcome) != expected {
					t.Errorf("committed %t: %s, %v; want %s", commits, out.Outcome, fault, expected)
				}
				var effected []string
				if commits && first != "undo" && first != "cancel" {
					effected = append(effected, first)
				}
				if expected == "done" {
					effected = append(effected, second)
				}
				if got := s.effects(t); got != strings.Join(effected, " ") {
					t.Errorf("committed %t: effects %q, want %q", commits, got, effected)
				}
			})
		}
	}
}

// Of many concurrent duplicates, with compensations among them, each op runs once at most, and all of one op are told the same.
func TestDoStorm(t *testing.T) { onEach(t, testDoStorm) }

func testDoStorm(t *testing.T, open func(testing.TB) service) {
	s := open(t)
	const steps, calls = 20, 12
	type answer struct{ undone, late, done, duplicate, null atomic.Int32 }
	var (
		answers [steps]answer
		group   sync.WaitGroup
		gate    = make(chan struct{})
	)
	for step := range steps {
		for call := range calls {
			group.Go(func() {
				<-gate
				b := barrier.Branch{ID: "storm", Branch: string(rune('a' + step)), Op: barrier.Action}
				if call%4 == 3 {
					b.Op = barrier.Undo
				}
				out, err := has(t, s, b)
				a := &answers[step]
				switch {
				case errors.Is(err, barrier.ErrTooLate) && b.Op == barrier.Action:
					a.late.Add(1)
				case err != nil:
					t.Error(err)
				case out.Outcome == barrier.Null && b.Op == barrier.Undo:
					a.null.Add(1)
				case out.Outcome == barrier.Done && b.Op == barrier.Undo:
					a.undone.Add(1)
				case out.Outcome == barrier.Done:
					a.done.Add(1)
				case out.Outcome == barrier.Duplicate && b.Op == barrier.Action:
					a.duplicate.Add(1)
				}
			})
		}
	}
	close(gate)
	group.Wait()
	nulls := 0
	for i := range answers {
		a := &answers[i]
		switch done, undone, null, late, duplicate := a.done.Load(), a.undone.Load(), a.null.Load(), a.late.Load(), a.duplicate.Load(); {
		case done == 1 && undone == 1 && null == 0 && late == 0 && duplicate == calls*3/4-1: // the action was first
		case done == 0 && undone == 0 && null == 1 && late == calls*3/4 && duplicate == 0: // its compensation
			nulls++
		default:
			t.Errorf("step %d: %d done, %d duplicates, %d late; %d undone, %d null", i, done, duplicate, late, undone, null)
		}
	}
	if n := s.count(t, "SELECT count(*) FROM effect"); n != 2*(steps-nulls) {
		t.Errorf("%d effects, want %d", n, 2*(steps-nulls))
	}
}

// Who waits for another transaction gives up before its context ends, and no later than lock_timeout says, which it leaves as it was.
func TestDoLockTimeout(t *testing.T) {
	t.Parallel()
	pool := open(t)
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(t.Context()) }()
	if _, err := barrier.Do(t.Context(), holder, branch(barrier.Action), effect(holder, branch(barrier.Action))); err != nil {
		t.Fatal(err)
	}
	wait := func(ctx context.Context, setting string) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			exec(t, tx, "SELECT set_config('lock_timeout', $1, true)", setting)
			_, err := barrier.Do(ctx, tx, branch(barrier.Undo), effect(tx, branch(barrier.Undo)))
			return err
		})
	}
	// A context that is about to end: an answer, and no broken connection.
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	if err := wait(ctx, "0"); !errors.Is(err, barrier.ErrInFlight) || ctx.Err() != nil {
		t.Errorf("got %v, the context has %v", err, ctx.Err())
	}
	// WaitMax, which is far below this context and this setting.
	ctx, stop = context.WithTimeout(t.Context(), patience)
	defer stop()
	if err := wait(ctx, "1h"); !errors.Is(err, barrier.ErrInFlight) {
		t.Errorf("got %v", err)
	}
	// A shorter lock_timeout counts: the one below ends while the server's statement_timeout has not.
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		exec(t, tx, "SET LOCAL lock_timeout = '20ms'; SET LOCAL statement_timeout = '2s'")
		_, err := barrier.Do(t.Context(), tx, branch(barrier.Undo), effect(tx, branch(barrier.Undo)))
		return err
	})
	if !errors.Is(err, barrier.ErrInFlight) {
		t.Errorf("got %v", err)
	}
	// And it is as before for who has waited and got it.
	for _, before := range []string{"0", "1h", "2800ms"} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		exec(t, tx, "SELECT set_config('lock_timeout', $1, true)", before)
		var (
			after string
			group sync.WaitGroup
		)
		group.Go(func() {
			b := branch(barrier.Undo)
			if _, err := barrier.Do(t.Context(), tx, b, func(context.Context) (json.RawMessage, error) { return nil, nil }); err != nil {
				t.Error(err)
			}
			if err := tx.QueryRow(t.Context(), "SHOW lock_timeout").Scan(&after); err != nil {
				t.Error(err)
			}
		})
		untilWaiting(t, pool, 1)
		if err := holder.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		group.Wait()
		if after != before {
			t.Errorf("lock_timeout was %s and is %s", before, after)
		}
		holder = tx // it has the branch now
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.barrier"); n != 0 {
		t.Errorf("%d rows", n)
	}
}
