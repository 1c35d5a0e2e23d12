package saga_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// raceRounds is how often a race is run.
const raceRounds = 20

// engineStep declares a step whose jobs are in the queue of these tests.
func engineStep(d *saga.Definition[order], name string, opts ...saga.StepOption) saga.AnyStep {
	return saga.Step[paid](d, name, append(opts, saga.Queue(engineQueue))...)
}

// claimEach claims n jobs, each with a claim of its own: ends of one claim wait for each other anyway.
func (e *engine) claimEach(n int) ([]attempt, error) {
	e.Helper()
	var as []attempt
	for range n {
		one, err := e.claim(e.pool, 1)
		if err != nil {
			return nil, err
		}
		if len(one) != 1 {
			return nil, fmt.Errorf("%d jobs are in line, want %d", len(as), n)
		}
		as = append(as, one...)
	}
	slices.SortFunc(as, func(a, b attempt) int { return strings.Compare(a.name(), b.name()) })
	return as, nil
}

// expect checks that the saga has come to this state, and how often things happened: "undone a".
func (e *engine) expect(key, state string, once ...string) error {
	e.Helper()
	if got := e.state(key); got != state {
		return fmt.Errorf("saga %s: got %s, want %s", key, got, state)
	}
	for _, x := range once {
		what, step, _ := strings.Cut(x, " ")
		if n := e.told(key, what, step); n != 1 {
			return fmt.Errorf("saga %s: %s %d times, want once", key, x, n)
		}
	}
	return e.none()
}

// Sixteen branches end at once, from sixteen connections: what waits for all of them is lined once.
func TestEngine_join(t *testing.T) {
	t.Parallel()
	const branches = 16
	d := saga.Define[order]("join")
	var all []saga.AnyStep
	for i := range branches {
		all = append(all, engineStep(d, fmt.Sprintf("branch%02d", i)))
	}
	engineStep(d, "join", saga.After(all...))
	prove(t, func(e *engine) error {
		registered(e, e.pool, d)
		conns := e.conns(branches)
		for round := range raceRounds {
			key := fmt.Sprint("join:", round)
			e.mustStart("join", key)
			as, err := e.claimEach(branches)
			if err != nil {
				return err
			}
			var fs []func() error
			for i, a := range as {
				fs = append(fs, func() error {
					_, _, err := e.settle(conns[i], ends("succeeded", a)...)
					return err
				})
			}
			if err := errors.Join(atOnce(fs...)...); err != nil {
				return err
			}
			joins, err := e.claim(e.pool, 100)
			if err != nil || len(joins) != 1 || joins[0].name() != "join" {
				return fmt.Errorf("round %d: joins: %v, %w", round, joins, err)
			}
			e.mustSettle("succeeded", joins...)
			if err := e.expect(key, "succeeded", "succeeded join"); err != nil {
				return err
			}
		}
		return nil
	}, without{"that sagas advance one after another", "saga_apply", "PERFORM pg_advisory_xact_lock(pawl.saga_lock_key(v_root));", "NULL;"})
}

// Two branches are refused at once: what has succeeded beside them is undone once.
func TestEngine_refusedTwice(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("refused")
	for _, name := range []string{"a", "b", "c", "d"} {
		engineStep(d, name)
	}
	prove(t, func(e *engine) error {
		registered(e, e.pool, d)
		conns := e.conns(2)
		for round := range raceRounds {
			key := fmt.Sprint("refused:", round)
			e.mustStart("refused", key)
			as, err := e.claimEach(4)
			if err != nil {
				return err
			}
			e.mustSettle("succeeded", as[2:]...)
			for _, outcome := range []string{"refused", "succeeded"} {
				err := errors.Join(atOnce(
					func() error { _, _, err := e.settle(conns[0], ends(outcome, as[0])...); return err },
					func() error { _, _, err := e.settle(conns[1], ends(outcome, as[1])...); return err },
				)...)
				if err != nil {
					return err
				}
				if outcome == "refused" {
					if as, err = e.claimEach(2); err != nil {
						return err
					}
				}
			}
			if err := e.expect(key, "compensated", "refused a", "refused b", "undone c", "undone d"); err != nil {
				return err
			}
		}
		return nil
	}, without{"that sagas advance one after another", "saga_apply", "PERFORM pg_advisory_xact_lock(pawl.saga_lock_key(v_root));", "NULL;"})
}

// The pivot ends, or is only claimed, while the saga is cancelled or its time runs out: it has succeeded, or it is compensated without the pivot.
func TestEngine_turnAtPivot(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("turn", saga.Deadline(time.Hour))
	a := engineStep(d, "a")
	p := engineStep(d, "p", saga.After(a), saga.Pivot(), saga.MaxAttempts(1))
	engineStep(d, "z", saga.After(p))
	e := newEngine(t)
	registered(e, e.pool, d)
	conns := e.conns(2)
	ended := map[string]int{}
	for round := range 4 * raceRounds {
		key := fmt.Sprint("turn:", round)
		e.mustStart("turn", key)
		e.mustSettle("succeeded", e.mustClaim(1, "a")...)
		var running []attempt
		if round%2 == 0 {
			running = e.mustClaim(1, "p")
		}
		outcome := []string{"succeeded", "refused"}[round/4%4/3] // most succeed
		var turned error
		errs := atOnce(func() (err error) {
			as := running
			if as == nil {
				as, err = e.claim(conns[0], 1)
			}
			if err == nil && len(as) > 0 && !as[0].undo {
				_, _, err = e.settle(conns[0], ends(outcome, as...)...)
			} else if err == nil && len(as) > 0 { // it was withdrawn, and this is the compensation
				_, _, err = e.settle(conns[0], ends("succeeded", as...)...)
			}
			return err
		}, func() error {
			if round%4 < 2 {
				if turned = e.act(conns[1], key, "cancelled", nil); code(turned) == "PW022" || code(turned) == "PW023" {
					return nil
				} else if turned != nil {
					return turned
				}
			} else if _, err := conns[1].Exec(e.ctx, "UPDATE pawl.saga_timer SET at = now() - interval '1 s' WHERE step = 0 AND saga_id = (SELECT id FROM pawl.saga WHERE key = $1)", key); err != nil {
				return err
			}
			return e.sweep(conns[1])
		})
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		e.runThrough("")
		pivot, state := e.told(key, "succeeded", "p"), e.state(key)
		want, once := "compensated", []string{"undone a"}
		if pivot == 1 {
			want, once = "succeeded", []string{"succeeded z"}
		}
		if err := e.expect(key, want, once...); err != nil {
			t.Fatalf("round %d, cancelled with %v: %v", round, turned, err)
		}
		if pivot == 1 && e.told(key, "undone", "a") > 0 || turned != nil && outcome == "succeeded" && pivot == 0 {
			t.Fatalf("round %d: pivot succeeded %d times, a was undone %d times, cancelled with %v", round, pivot, e.told(key, "undone", "a"), turned)
		}
		ended[state]++
	}
	t.Logf("%v", ended)
	if ended["succeeded"] == 0 || ended["compensated"] == 0 {
		t.Errorf("got %v: one way was never taken", ended)
	}
}

// A pivot that is claimed while its saga is being withdrawn is left alone: asked to stop, it would leave the saga stuck.
func TestEngine_withdrawPivot(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("late")
	a := engineStep(d, "a")
	engineStep(d, "p", saga.After(a), saga.Pivot())
	e := newEngine(t)
	registered(e, e.pool, d)
	e.mustStart("late", "late:1")
	e.mustSettle("succeeded", e.mustClaim(1, "a")...)
	e.mustAct("late:1", "cancelled", nil)
	conns := e.conns(2)
	tx, err := conns[0].Begin(e.ctx)
	if err != nil {
		t.Fatal(err)
	}
	as, err := e.claim(tx, 1)
	if err != nil || len(as) != 1 {
		t.Fatalf("claim: %v, %v", as, err)
	}
	done := make(chan error, 1)
	go func() { done <- e.sweep(conns[1]) }()
	e.awaitBlocked(conns[1].PgConn().PID())
	if err := errors.Join(tx.Commit(e.ctx), <-done); err != nil {
		t.Fatal(err)
	}
	if n := count(t, e.pool, "SELECT count(*) FROM pawl.cancellation"); n != 0 {
		t.Errorf("the pivot was asked to stop: %d cancellations", n)
	}
	e.mustSettle("refused", as...)
	if got := e.runThrough(""); !slices.Equal(got, []string{"a/undo"}) {
		t.Errorf("got %v, want a to be undone", got)
	}
	if err := e.expect("late:1", "compensated", "refused p", "undone a"); err != nil {
		t.Error(err)
	}
}

// A saga is forced while its jobs are being withdrawn: they do not wait for each other in a circle, and what is to be withdrawn once more is not forgotten.
func TestEngine_withdrawForced(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("forced")
	engineStep(d, "a")
	engineStep(d, "b")
	e := newEngine(t)
	registered(e, e.pool, d)
	e.mustStart("forced", "forced:1")
	e.mustAct("forced:1", "cancelled", nil)
	conns := e.conns(3)
	tx, err := conns[0].Begin(e.ctx)
	if err != nil {
		t.Fatal(err)
	}
	as, err := e.claim(tx, 1)
	if err != nil || len(as) != 1 {
		t.Fatalf("claim: %v, %v", as, err)
	}
	withdrawn, forced := make(chan error, 1), make(chan error, 1)
	go func() { withdrawn <- e.sweep(conns[1]) }()
	e.awaitBlocked(conns[1].PgConn().PID())
	go func() { forced <- e.act(conns[2], "forced:1", "forced", nil) }()
	blocked, err := e.blockedOrDone(conns[2].PgConn().PID(), forced)
	if err := errors.Join(err, tx.Commit(e.ctx), <-withdrawn); err != nil {
		t.Fatal(err)
	}
	if blocked {
		if err := <-forced; err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, e.pool, "SELECT count(*) FROM pawl.saga_timer WHERE step = -1"); n != 1 {
		t.Errorf("%d sagas have jobs to be withdrawn, want 1", n)
	}
	e.mustSweep()
	if n := count(t, e.pool, "SELECT count(*) FROM pawl.saga_timer"); n != 0 {
		t.Errorf("%d timers are left", n)
	}
	e.mustSettle("failed", as...)
	if err := e.expect("forced:1", "forced"); err != nil {
		t.Error(err)
	}
}

// Jobs are withdrawn that are held by several claims, which end at the same time: nobody waits in a circle.
func TestEngine_withdrawClaims(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("claims")
	engineStep(d, "a")
	engineStep(d, "b")
	e := newEngine(t)
	registered(e, e.pool, d)
	e.mustStart("claims", "claims:1")
	again := ends("returned", e.mustClaim(1, "a")...)
	again[0].delay = new(int64)
	if _, _, err := e.settle(e.pool, again...); err != nil {
		t.Fatal(err)
	}
	as := append(e.mustClaim(1, "b"), e.mustClaim(1, "a")...) // not in the order of the steps
	e.mustAct("claims:1", "cancelled", nil)
	conns := e.conns(3)
	tx, err := conns[0].Begin(e.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(e.ctx, "SELECT pg_advisory_xact_lock(pawl.claim_key($1))", as[1].claim); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- e.sweep(conns[1]) }()
	e.awaitBlocked(conns[1].PgConn().PID())
	go func() {
		_, _, err := e.settle(conns[2], ends("refused", as...)...)
		done <- err
	}()
	e.awaitBlocked(conns[2].PgConn().PID())
	if err := errors.Join(tx.Commit(e.ctx), <-done, <-done); err != nil {
		t.Fatal(err)
	}
	if err := e.expect("claims:1", "compensated", "refused a", "refused b"); err != nil {
		t.Error(err)
	}
}

// Two transactions end steps of the same two sagas, named in opposite orders: neither waits for the other in a circle, and none of the four is lost.
func TestEngine_crossed(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("crossed")
	a, b := engineStep(d, "a"), engineStep(d, "b")
	engineStep(d, "join", saga.After(a, b))
	prove(t, func(e *engine) error {
		registered(e, e.pool, d)
		conns := e.conns(3)
		if _, err := conns[1].Exec(e.ctx, "SET application_name = 'backward'"); err != nil {
			return err
		}
		for round := range 3 {
			keys := []string{fmt.Sprint("x:", round), fmt.Sprint("y:", round)}
			e.mustStart("crossed", keys[0])
			e.mustStart("crossed", keys[1])
			as, err := e.claimEach(4) // a a b b
			if err != nil {
				return err
			}
			// Both wait for the first saga, unless one of them has the second then.
			tx, err := conns[2].Begin(e.ctx)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(e.ctx, "SELECT pg_advisory_xact_lock(pawl.saga_lock_key(root_id)) FROM pawl.saga WHERE key = $1", keys[0]); err != nil {
				return err
			}
			done := make(chan error, 2)
			for i, c := range conns[:2] {
				go func() {
					_, _, err := e.settle(c, ends("succeeded", as[2*i:2*i+2]...)...)
					done <- err
				}()
				e.awaitBlocked(c.PgConn().PID())
			}
			if err := errors.Join(tx.Commit(e.ctx), <-done, <-done); err != nil {
				return err
			}
			joins, err := e.claim(e.pool, 10)
			if err != nil || len(joins) != 2 {
				return fmt.Errorf("round %d: joins: %v, %w", round, joins, err)
			}
			e.mustSettle("succeeded", joins...)
			for _, key := range keys {
				if err := e.expect(key, "succeeded", "succeeded a", "succeeded b", "succeeded join"); err != nil {
					return err
				}
			}
		}
		return nil
	}, without{
		"that locks are taken in one order", "saga_apply",
		"SELECT DISTINCT x.root_id FROM unnest(p_sagas) u CROSS JOIN LATERAL (SELECT y.root_id FROM pawl.saga y WHERE y.ns = p_ns AND y.id = u OFFSET 0) x ORDER BY 1",
		`SELECT x.root_id FROM unnest(p_sagas) u CROSS JOIN LATERAL (SELECT y.root_id FROM pawl.saga y WHERE y.ns = p_ns AND y.id = u OFFSET 0) x GROUP BY 1
			ORDER BY x.root_id * CASE current_setting('application_name') WHEN 'backward' THEN -1 ELSE 1 END`,
	})
}

// One id is started by eight connections at once: one starts it, the others learn that it is there; those with another input are told so.
func TestEngine_startAtOnce(t *testing.T) {
	t.Parallel()
	const starters = 8
	d := saga.Define[order]("same")
	engineStep(d, "a")
	e := newEngine(t)
	registered(e, e.pool, d)
	conns := e.conns(starters)
	for round := range raceRounds {
		key := fmt.Sprint("same:", round)
		duplicates := make([]bool, starters)
		start := func(i int, c *pgx.Conn, input string) func() error {
			return func() (err error) {
				duplicates[i], err = e.start(c, "same", key, input)
				return err
			}
		}
		var fs []func() error
		for i, c := range conns {
			fs = append(fs, start(i, c, `{"item": "ball"}`))
		}
		if err := errors.Join(atOnce(fs...)...); err != nil {
			t.Fatal(err)
		}
		if count(t, e.pool, "SELECT count(*) FROM pawl.saga WHERE key = $1", key) != 1 || trues(duplicates) != starters-1 {
			t.Fatalf("round %d: duplicates: got %v, want all but one", round, duplicates)
		}
		for i, c := range conns {
			fs[i] = start(i, c, fmt.Sprintf(`{"item": "bat %d"}`, i))
		}
		for _, err := range atOnce(fs...) {
			if code(err) != "PW020" {
				t.Fatalf("round %d: another input: got %v, want PW020", round, err)
			}
		}
		e.mustSettle("succeeded", e.mustClaim(10, "a")...)
		if err := e.expect(key, "succeeded", "succeeded a"); err != nil {
			t.Fatal(err)
		}
	}
}

func trues(bs []bool) (n int) {
	for _, b := range bs {
		if b {
			n++
		}
	}
	return n
}
