package worker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

// The sagas of worker processes. Each step leaves a row in saga_effect, those in transactions with the end of their job. An input "refused" is refused by the last step.
var (
	killedSaga = saga.Define[string]("killed")
	killedA    = saga.Step[string](killedSaga, "a", fast, saga.Undo(fast))
	killedB    = saga.Step[string](killedSaga, "b", saga.After(killedA), fast, saga.Undo(fast))
	killedC    = saga.Step[string](killedSaga, "c", saga.After(killedB), fast, saga.Undo(fast))

	// In stormSaga everything fails now and then. Behind the pivot, and back, it is tried until it works.
	stormSaga = saga.Define[string]("storm")
	stormA    = saga.Step[string](stormSaga, "a", fast, saga.MaxAttempts(3), always)
	stormB    = saga.Step[string](stormSaga, "b", saga.After(stormA), fast, saga.MaxAttempts(3), always)
	stormC    = saga.Step[string](stormSaga, "c", saga.After(stormA), fast, saga.MaxAttempts(3), always)
	stormD    = saga.Step[string](stormSaga, "d", saga.After(stormB, stormC), fast, saga.MaxAttempts(1000), saga.Pivot())
	stormE    = saga.Step[string](stormSaga, "e", saga.After(stormD), fast, saga.MaxAttempts(1000))

	always = saga.Undo(fast, saga.MaxAttempts(1000))
)

func registerSagas(w *worker.Worker) {
	effect := func(ctx context.Context, on saga.DB, c *saga.Call[string]) error {
		_, err := on.Exec(ctx, "INSERT INTO saga_effect (saga, step, undo) VALUES ($1, $2, $3)", c.Saga, c.Step, c.Compensating)
		return err
	}
	handle := func(s *saga.StepOf[string, string], inTx, undone bool, chance func(*saga.Call[string]) error) {
		act := func(ctx context.Context, on saga.DB, c *saga.Call[string]) (string, error) {
			if err := effect(ctx, on, c); err != nil {
				return "", err
			}
			return c.Key(), chance(c)
		}
		undo := func(ctx context.Context, on saga.DB, c *saga.Call[string], _ *string) error {
			if err := effect(ctx, on, c); err != nil {
				return err
			}
			return chance(c)
		}
		var back func(context.Context, *saga.Call[string], *string) error
		var backTx func(context.Context, pgx.Tx, *saga.Call[string], *string) error
		if undone {
			back = func(ctx context.Context, c *saga.Call[string], out *string) error { return undo(ctx, w.Pool(), c, out) }
			backTx = func(ctx context.Context, tx pgx.Tx, c *saga.Call[string], out *string) error {
				return undo(ctx, tx, c, out)
			}
		}
		if inTx {
			saga.HandleTx(w, s, func(ctx context.Context, tx pgx.Tx, c *saga.Call[string]) (string, error) { return act(ctx, tx, c) }, backTx)
		} else {
			saga.Handle(w, s, func(ctx context.Context, c *saga.Call[string]) (string, error) { return act(ctx, w.Pool(), c) }, back)
		}
	}
	refuse := func(c *saga.Call[string]) error {
		if c.Input == "refused" && c.Step == "c" {
			return saga.Fail(errTest)
		}
		return nil
	}
	handle(killedA, true, true, refuse)
	handle(killedB, false, true, refuse)
	handle(killedC, true, true, refuse)
	luck := func(c *saga.Call[string]) error {
		switch n := rand.N(100); {
		case n < 5:
			return errTest
		case n < 8:
			panic("out of cheese")
		case n < 11 && !c.Compensating && c.Step != "e":
			return saga.Fail(errTest)
		}
		return nil
	}
	handle(stormA, true, true, luck)
	handle(stormB, false, true, luck)
	handle(stormC, true, true, luck)
	handle(stormD, true, false, luck)
	handle(stormE, true, false, luck)
}

func withSagas(tb testing.TB) (url string, pool *pgxpool.Pool) {
	tb.Helper()
	url = dbtest.NewURL(tb)
	pool = connect(tb, url)
	exec(tb, pool, "CREATE TABLE saga_effect (id bigint GENERATED ALWAYS AS IDENTITY, saga text, step text, undo boolean)")
	sweep(tb, pool)
	return url, pool
}

// A worker process is killed at each of its failpoints, in a saga that goes forward and in one that goes back. Another brings them to their ends: what was done in transactions was done once.
func TestSagaKilled(t *testing.T) {
	t.Parallel()
	for _, input := range []string{"good", "refused"} {
		for _, point := range []string{"after-claim", "before-flush", "after-flush", "before-commit", "after-commit"} {
			for _, how := range []string{"KILL", "STOP"} {
				if how == "STOP" && !strings.HasPrefix(point, "before-") {
					continue // in the others it does nothing more
				}
				t.Run(input+" "+point+" "+how, func(t *testing.T) {
					t.Parallel()
					killSaga(t, input, point, how)
				})
			}
		}
	}
}

func killSaga(t *testing.T, input, point, how string) {
	url, pool := withSagas(t)
	registered(t, pool, killedSaga)
	const sagas = 4
	var ids []string
	for range sagas {
		ids = append(ids, start(t, pool, killedSaga, input))
	}
	p := startProcess(t, url, point, how)
	if how == "KILL" {
		if err := receive(t, "the process to die", p.done); err == nil {
			t.Fatal("the failpoint was not reached")
		}
		p.done <- nil
	} else {
		p.waitStopped(t)
	}
	startProcess(t, url, "", "")
	for _, id := range ids {
		if _, err := await(t, pool, killedSaga, id); input == "good" && err != nil || input != "good" && !errors.Is(err, saga.ErrCompensated) {
			t.Errorf("saga %s: got %v", id, err)
		}
	}
	if how == "STOP" {
		p.wake(t, pool)
	}
	want := map[string]int{"a": sagas, "c": sagas}
	if input == "refused" {
		want = map[string]int{"a": sagas, "a undone": sagas}
	}
	for _, step := range []string{"a", "c", "a undone", "c undone"} {
		name, undo := step[:1], len(step) > 1
		n := count(t, pool, "SELECT count(*) FROM saga_effect WHERE step = $1 AND undo = $2", name, undo)
		each := count(t, pool, "SELECT count(DISTINCT saga) FROM saga_effect WHERE step = $1 AND undo = $2", name, undo)
		if n != want[step] || each != n {
			t.Errorf("%s: %d times, in %d sagas, want %d, each once", step, n, each, want[step])
		}
	}
	if n := count(t, pool, "SELECT count(DISTINCT saga) FROM saga_effect WHERE step = 'b' AND NOT undo"); n != sagas {
		t.Errorf("b was done in %d sagas, want %d", n, sagas)
	}
}

// Worker processes are killed at random, while all that steps and compensations do fails now and then. Every saga ends, either with all of its effects or with those it had undone, each after what was built on it.
func TestSagaStorm(t *testing.T) {
	t.Parallel()
	const processes, kills = 3, 8
	sagas := 1000
	if testing.Short() {
		sagas = 200
	}
	url, pool := withSagas(t)
	registered(t, pool, stormSaga)
	n, err := stormSaga.StartMany(t.Context(), pool, func(yield func(string, string) bool) {
		for i := range sagas {
			if !yield(fmt.Sprint("s", i), "") {
				return
			}
		}
	})
	if err != nil || n != sagas {
		t.Fatalf("started %d: %v", n, err)
	}
	var running []*process
	for range processes {
		running = append(running, startProcess(t, url, "", ""))
	}
	ended := func() int {
		return count(t, pool, "SELECT count(*) FROM pawl.saga_event WHERE state IN ('succeeded', 'compensated', 'forced')")
	}
	untilEnded := func(least int) {
		t.Helper()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		end := time.After(patience)
		for ended() < least {
			select {
			case <-tick.C:
			case <-end:
				t.Fatalf("%d of %d sagas have ended, and no more do", ended(), sagas)
			}
		}
	}
	for i := range kills {
		untilEnded(sagas * i / (kills + 1))
		victim := rand.N(processes)
		if err := running[victim].cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		running[victim] = startProcess(t, url, "", "")
	}
	untilEnded(sagas)
	stormEnded(t, pool, sagas)
}

// stormEnded checks what is left of a storm.
func stormEnded(t *testing.T, pool *pgxpool.Pool, sagas int) {
	t.Helper()
	const each = `WITH s AS (
		SELECT s.key, n.state, (SELECT count(*) FROM pawl.saga_event e WHERE e.saga_id = s.id AND e.state IN ('succeeded', 'compensated', 'forced')) AS ends, f.*
		FROM pawl.saga s CROSS JOIN LATERAL pawl.saga_now(1::smallint, s.id) n
		CROSS JOIN LATERAL (
			SELECT count(*) FILTER (WHERE f.step = 'a' AND NOT f.undo) AS a, count(*) FILTER (WHERE f.step = 'b' AND NOT f.undo) AS b, count(*) FILTER (WHERE f.step = 'c' AND NOT f.undo) AS c,
				count(*) FILTER (WHERE f.step = 'd') AS d, count(*) FILTER (WHERE f.step = 'e') AS e,
				count(*) FILTER (WHERE f.step = 'a' AND f.undo) AS not_a, count(*) FILTER (WHERE f.step = 'b' AND f.undo) AS not_b, count(*) FILTER (WHERE f.step = 'c' AND f.undo) AS not_c,
				max(f.id) FILTER (WHERE f.step <> 'a') AS last_other, max(f.id) FILTER (WHERE f.step = 'a' AND f.undo) AS last_a
			FROM saga_effect f WHERE f.saga = s.key) f)
		SELECT count(*) FROM s WHERE `
	for what, where := range map[string]string{
		"have ended":                "ends = 1",
		"are as told":               "state = 'succeeded' AND a = 1 AND b > 0 AND c = 1 AND d = 1 AND e = 1 AND not_a + not_b + not_c = 0 OR state = 'compensated' AND a <= 1 AND c <= 1 AND d + e = 0 AND not_a <= 1 AND not_c <= 1",
		"have undone what they did": "state = 'succeeded' OR (a = 0 OR not_a = 1) AND (c = 0 OR not_c = 1)",
		"have undone it in order":   "state = 'succeeded' OR not_a = 0 OR last_other IS NULL OR last_a > last_other",
	} {
		if n := count(t, pool, each+where); n != sagas {
			t.Errorf("%d of %d sagas %s", n, sagas, what)
		}
	}
	succeeded, compensated := count(t, pool, each+"state = 'succeeded'"), count(t, pool, each+"state = 'compensated'")
	t.Logf("%d succeeded, %d compensated; attempts lost: %d", succeeded, compensated, count(t, pool, "SELECT count(*) FROM pawl.receipt WHERE outcome = 'lost'"))
	if succeeded == 0 || compensated == 0 {
		t.Error("they all ended in the same way: the storm proves nothing")
	}
	row, err := db.New(pool).SweepSagasForgotten(t.Context(), db.SweepSagasForgottenParams{Ns: 1, LimitRows: 10_000})
	if err != nil || len(row.Forgotten) > 0 {
		t.Errorf("forgotten: %v, %v", row.Forgotten, err)
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.job j CROSS JOIN LATERAL pawl.job_state(j.ns, j.id) s WHERE s.state NOT IN ('succeeded', 'cancelled', 'discarded')"); n != 0 {
		t.Errorf("%d jobs are left of sagas that ended", n)
	}
}
