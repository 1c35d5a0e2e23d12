package saga_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// engineEach declares a step that is split into units, in the queue of these tests.
func engineEach(d *saga.Definition[order], name string, opts ...saga.StepOption) saga.AnyStep {
	return saga.Each[int, paid](d, name, append(opts, saga.Queue(engineQueue))...)
}

// split claims the one job in line, that of an each step, and splits it into units 0 to n-1.
func (e *engine) split(step string, n int) {
	e.Helper()
	units := make([]string, n)
	for i := range units {
		units[i] = fmt.Sprint(i)
	}
	x := ends("succeeded", e.mustClaim(1, step)...)
	x[0].result = "[" + strings.Join(units, ",") + "]"
	if _, _, err := e.settle(e.pool, x...); err != nil {
		e.Fatalf("split %s: %v", step, err)
	}
}

// settleUnits claims and settles units from four connections, in batches, until none is in line; bad tells how one ends that does not succeed. It gives the numbers of the units that ran, in order, and the first
// job that is not a unit, with how many of those there were.
func (e *engine) settleUnits(outcome string, bad func(unit int) bool) (units []int, other []attempt, err error) {
	e.Helper()
	const workers, batch = 4, 100
	ran := make(chan []attempt, 1000)
	var fs []func() error
	for _, c := range e.conns(workers) {
		fs = append(fs, func() error {
			for {
				as, err := e.claim(c, batch)
				if err != nil || len(as) == 0 {
					return err
				}
				ran <- as
				var es []ending
				for _, a := range as {
					if a.unit == nil {
						continue
					}
					x := ending{attempt: a, outcome: "succeeded", result: fmt.Sprintf(`{"receipt":%d}`, *a.unit)}
					if bad != nil && bad(*a.unit) {
						x.outcome, x.result = outcome, ""
					}
					es = append(es, x)
				}
				if len(es) == 0 {
					continue
				}
				if _, _, err := e.settle(c, es...); err != nil {
					return err
				}
			}
		})
	}
	if err := errors.Join(atOnce(fs...)...); err != nil {
		return nil, nil, err
	}
	close(ran)
	for as := range ran {
		for _, a := range as {
			if a.unit != nil {
				units = append(units, *a.unit)
			} else {
				other = append(other, a)
			}
		}
	}
	slices.Sort(units)
	return units, other, nil
}

func (e *engine) mustSettleUnits(outcome string, bad func(unit int) bool) (units []int, other []attempt) {
	e.Helper()
	units, other, err := e.settleUnits(outcome, bad)
	if err != nil {
		e.Fatalf("settle units: %v", err)
	}
	return units, other
}

// upTo is 0 to n-1, of which keep says which; nil: all.
func upTo(n int, keep func(int) bool) (is []int) {
	for i := range n {
		if keep == nil || keep(i) {
			is = append(is, i)
		}
	}
	return is
}

const manyUnits = 3000

// Thousands of units end in batches on four connections: the step behind them is lined once, and not before the last.
func TestEngine_units(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("units")
	engineStep(d, "join", saga.After(engineEach(d, "parts")))
	prove(t, func(e *engine) error {
		registered(e, e.pool, d)
		e.mustStart("units", "units:1")
		e.split("parts", manyUnits)
		var over atomic.Int64
		units, joins, err := e.settleUnits("", func(int) bool { over.Add(1); return false })
		if err != nil {
			return err
		}
		if !slices.Equal(units, upTo(manyUnits, nil)) || len(joins) != 1 || joins[0].name() != "join" || over.Load() != manyUnits {
			return fmt.Errorf("%d units ran, joins: %v", len(units), joins)
		}
		outputs := value[int](e, `SELECT count(DISTINCT k) FROM pawl.saga_event x CROSS JOIN LATERAL json_each(x.detail->'outputs') o(k, v) WHERE x.what = 'units' AND o.v->>'receipt' = k`)
		if outputs != manyUnits {
			return fmt.Errorf("%d units have their output, want %d", outputs, manyUnits)
		}
		e.mustSettle("succeeded", joins...)
		return e.expect("units:1", "succeeded", "succeeded join")
	}, without{"that sagas advance one after another", "saga_apply", "PERFORM pg_advisory_xact_lock(pawl.saga_lock_key(v_root));", "NULL;"})
}

func thousandth(unit int) bool { return unit%1000 == 7 }

// Units that fail have the step compensated as a whole, once, after the others are through.
func TestEngine_unitsUndone(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("units")
	a := engineStep(d, "a")
	engineStep(d, "join", saga.After(engineEach(d, "parts", saga.After(a))))
	for _, outcome := range []string{"discarded", "refused"} {
		t.Run(outcome, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			registered(e, e.pool, d)
			e.mustStart("units", "units:1")
			e.mustSettle("succeeded", e.mustClaim(1, "a")...)
			e.split("parts", manyUnits)
			units, undo := e.mustSettleUnits(outcome, thousandth)
			if !slices.Equal(units, upTo(manyUnits, nil)) || len(undo) != 1 || undo[0].name() != "parts/undo" {
				t.Fatalf("%d units ran, then %v", len(units), undo)
			}
			e.mustSettle("succeeded", undo...)
			e.mustSettle("succeeded", e.mustClaim(2, "a/undo")...)
			if err := e.expect("units:1", "compensated", "undone parts", "undone a"); err != nil {
				t.Error(err)
			}
		})
	}
}

// stuckUnits registers a definition with each steps behind its pivot and starts a saga, up to where they are split.
func stuckUnits(t *testing.T, n int, steps ...string) *engine {
	t.Helper()
	d := saga.Define[order]("stuck")
	p := engineStep(d, "p", saga.Pivot())
	var all []saga.AnyStep
	for _, s := range steps {
		all = append(all, engineEach(d, s, saga.After(p)))
	}
	engineStep(d, "join", saga.After(all...))
	e := newEngine(t)
	registered(e, e.pool, d)
	e.mustStart("stuck", "stuck:1")
	e.mustSettle("succeeded", e.mustClaim(1, "p")...)
	units := make([]string, n)
	for i := range units {
		units[i] = fmt.Sprint(i)
	}
	es := ends("succeeded", e.mustClaim(len(steps))...)
	for i := range es {
		es[i].result = "[" + strings.Join(units, ",") + "]"
	}
	if _, _, err := e.settle(e.pool, es...); err != nil || len(es) != len(steps) {
		t.Fatalf("%d steps are split: %v", len(es), err)
	}
	return e
}

// Behind the pivot units that fail leave the saga stuck, and a retry runs these only, as often as need be.
func TestEngine_unitsRetried(t *testing.T) {
	t.Parallel()
	e := stuckUnits(t, manyUnits, "parts")
	e.mustSettleUnits("discarded", thousandth)
	if state := e.state("stuck:1"); state != "stuck" {
		t.Fatalf("got %s, want stuck", state)
	}
	failing := thousandth
	for _, again := range []func(int) bool{func(u int) bool { return u == 7 || u == 1007 }, func(u int) bool { return u == 7 }, func(int) bool { return false }} {
		e.mustAct("stuck:1", "retried", nil)
		if f := e.forgotten(); len(f) > 0 {
			t.Errorf("forgotten: %v", f)
		}
		units, joins := e.mustSettleUnits("discarded", again)
		if want := upTo(manyUnits, failing); !slices.Equal(units, want) {
			t.Fatalf("retried: got units %v, want %v", units, want)
		}
		failing = again
		if len(upTo(manyUnits, again)) == 0 {
			if len(joins) != 1 || joins[0].name() != "join" {
				t.Fatalf("got %v behind the units, want the join", joins)
			}
			e.mustSettle("succeeded", joins...)
		}
	}
	if err := e.expect("stuck:1", "succeeded", "succeeded join"); err != nil {
		t.Error(err)
	}
}

// Two split steps are stuck at once: one retry runs the failed units of both.
func TestEngine_unitsRetriedTogether(t *testing.T) {
	t.Parallel()
	e := stuckUnits(t, 3, "odd", "even")
	var good, failed []attempt
	for _, a := range e.mustClaim(10, "even#0", "even#1", "even#2", "odd#0", "odd#1", "odd#2") {
		if (*a.unit%2 == 1) == (a.step == "odd") {
			failed = append(failed, a)
		} else {
			good = append(good, a)
		}
	}
	e.mustSettle("succeeded", good...)
	e.mustSettle("discarded", failed...)
	e.mustAct("stuck:1", "retried", nil)
	e.mustSettle("succeeded", e.mustClaim(10, "even#0", "even#2", "odd#1")...)
	e.mustSettle("succeeded", e.mustClaim(10, "join")...)
	if err := e.expect("stuck:1", "succeeded", "succeeded join"); err != nil {
		t.Error(err)
	}
}

// A step is retried while units of another are out, some of which have failed: these still go again when their step is stuck in turn.
func TestEngine_unitsRetriedBetween(t *testing.T) {
	t.Parallel()
	e := stuckUnits(t, 2, "first", "second")
	as := e.mustClaim(10, "first#0", "first#1", "second#0", "second#1")
	slices.SortFunc(as, func(a, b attempt) int { return strings.Compare(a.name(), b.name()) })
	e.mustSettle("succeeded", as[1])
	e.mustSettle("discarded", as[0], as[2])
	e.mustAct("stuck:1", "retried", nil)
	e.mustSettle("succeeded", as[3])
	again := e.mustClaim(10, "first#0")
	e.mustAct("stuck:1", "retried", nil)
	e.mustSettle("succeeded", append(again, e.mustClaim(10, "second#0")...)...)
	e.mustSettle("succeeded", e.mustClaim(10, "join")...)
	if err := e.expect("stuck:1", "succeeded", "succeeded join"); err != nil {
		t.Error(err)
	}
}

// A signal behind the pivot that does not come in time leaves the saga stuck. What comes then is refused, until a retry has it waited for anew.
func TestEngine_signalRetried(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("signal")
	p := engineStep(d, "p", saga.Pivot())
	saga.Signal[int](d, "go", saga.After(p), saga.Expires(time.Hour))
	e := newEngine(t)
	registered(e, e.pool, d)
	e.mustStart("signal", "signal:1")
	e.mustSettle("succeeded", e.mustClaim(1, "p")...)
	for range 2 {
		e.exec("UPDATE pawl.saga_timer SET at = now() - interval '1 s'")
		e.mustSweep()
		if state := e.state("signal:1"); state != "stuck" {
			t.Fatalf("got %s, want stuck", state)
		}
		if err := e.send(e.pool, "signal:1", "go"); code(err) != "PW025" {
			t.Errorf("send to a signal whose time is over: got %v, want PW025", err)
		}
		e.mustAct("signal:1", "retried", nil)
	}
	if err := e.send(e.pool, "signal:1", "go"); err != nil {
		t.Error(err)
	}
	if err := e.expect("signal:1", "succeeded", "succeeded go"); err != nil {
		t.Error(err)
	}
}

// A step that is a saga: it succeeds with it, is refused when it is compensated, and is compensated when its parent is cancelled.
func TestEngine_child(t *testing.T) {
	t.Parallel()
	child := saga.Define[order]("child")
	engineStep(child, "y", saga.After(engineStep(child, "x")))
	d := saga.Define[order]("parent")
	engineStep(d, "z", saga.After(saga.Child(d, "sub", child, saga.After(engineStep(d, "a")), saga.Queue(engineQueue))))
	e := newEngine(t)
	registered(e, e.pool, child)
	registered(e, e.pool, d)
	begin := func(key string) {
		t.Helper()
		e.mustStart("parent", key)
		e.mustSettle("succeeded", e.mustClaim(1, "a")...)
		es := ends("succeeded", e.mustClaim(1, "sub")...)
		es[0].result = `{"item":"ball"}`
		if _, _, err := e.settle(e.pool, es...); err != nil {
			t.Fatal(err)
		}
	}
	both := func(key, parent, sub string, once ...string) {
		t.Helper()
		if err := errors.Join(e.expect(key+"/sub", sub), e.expect(key, parent, once...)); err != nil {
			t.Error(err)
		}
		if f := e.forgotten(); len(f) > 0 {
			t.Errorf("forgotten: %v", f)
		}
	}
	run := func(names ...string) {
		t.Helper()
		if got := e.runThrough("{}"); !slices.Equal(got, names) {
			t.Errorf("got %v, want %v", got, names)
		}
	}

	begin("success")
	run("x", "y", "z")
	both("success", "succeeded", "succeeded", "expanded sub", "succeeded sub")

	begin("refused")
	e.mustSettle("succeeded", e.mustClaim(1, "x")...)
	e.mustSettle("refused", e.mustClaim(1, "y")...)
	run("x/undo", "a/undo")
	both("refused", "compensated", "compensated", "refused sub", "undone a")

	begin("cancelled in line")
	e.mustAct("cancelled in line", "cancelled", nil)
	e.mustSweep()
	run("a/undo")
	both("cancelled in line", "compensated", "compensated", "refused sub", "undone a")

	begin("cancelled running")
	e.mustSettle("succeeded", e.mustClaim(1, "x")...)
	y := e.mustClaim(1, "y")
	e.mustAct("cancelled running", "cancelled", nil)
	e.mustSweep()
	if err := e.none(); err != nil {
		t.Error(err) // its child has not answered
	}
	e.mustSettle("succeeded", y...)
	run("y/undo", "x/undo", "a/undo")
	both("cancelled running", "compensated", "compensated", "refused sub", "undone a")

	begin("later")
	x := e.mustClaim(1, "x")
	e.mustSettle("succeeded", x...)
	e.mustSettle("succeeded", e.mustClaim(1, "y")...)
	e.mustSettle("refused", e.mustClaim(1, "z")...)
	run("sub/undo", "a/undo") // what has succeeded is for the parent to undo
	both("later", "compensated", "succeeded", "succeeded sub", "undone sub", "undone a")

	begin("forced")
	e.mustAct("forced", "forced", nil) // and nothing of its child runs either
	e.mustSweep()
	both("forced", "forced", "forced")
}
