package saga_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// trip registers a saga of two steps, hotel and then flight, and one of which that is a step, between book and pay; pay is the pivot, or book is.
func (e *engine) trip(early bool) {
	e.Helper()
	child := saga.Define[order]("trip")
	hotel := lined(child, "hotel", engineQueue)
	lined(child, "flight", engineQueue, saga.After(hotel))
	registered(e, e.pool, child)
	d := saga.Define[order]("holiday")
	var opts []saga.StepOption
	if early {
		opts = append(opts, saga.Pivot())
	}
	book := lined(d, "book", engineQueue, opts...)
	trip := saga.Child(d, "trip", child, saga.Queue(engineQueue), saga.After(book))
	opts = []saga.StepOption{saga.After(trip)}
	if !early {
		opts = append(opts, saga.Pivot())
	}
	lined(d, "pay", engineQueue, opts...)
	registered(e, e.pool, d)
	e.mustStart("holiday", "1")
}

// ended checks where the saga and its part have come to, and that nothing is left of them.
func (e *engine) ended(parent, child string) error {
	e.Helper()
	states := values[string](e, "SELECT x.state::text FROM pawl.saga y CROSS JOIN LATERAL pawl.saga_now(1::smallint, y.id) x WHERE y.ns = 1 ORDER BY y.key")
	if got := strings.Join(states, " "); got != strings.TrimSpace(parent+" "+child) {
		return fmt.Errorf("saga and part: got %s, want %s %s", got, parent, child)
	}
	e.mustSweep()
	if f := e.forgotten(); len(f) > 0 {
		return fmt.Errorf("forgotten: %v", f)
	}
	return e.none()
}

// What becomes of a saga and of one that is a step of it.
func TestEngine_parts(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name          string
		early         bool
		scenario      func(e *engine)
		parent, child string
		after         []string // what runs when the scenario is over, in this order
	}{
		{"succeeds", false, func(*engine) {}, "succeeded", "succeeded", []string{"book", "trip", "hotel", "flight", "pay"}},
		{"is refused", false, func(e *engine) {
			e.reach("hotel")
			e.mustSettle("refused", e.mustClaim(1, "hotel")...)
		}, "compensated", "compensated", []string{"book/undo"}},
		{"compensates", false, func(e *engine) {
			e.reach("flight")
			e.mustSettle("refused", e.mustClaim(1, "flight")...)
		}, "compensated", "compensated", []string{"hotel/undo", "book/undo"}},
		{"succeeds and is undone", false, func(e *engine) {
			e.reach("pay")
			e.mustSettle("refused", e.mustClaim(1, "pay")...)
		}, "compensated", "succeeded", []string{"trip/undo", "book/undo"}},
		{"is called off", false, func(e *engine) {
			e.reach("flight")
			flight := e.mustClaim(1, "flight")
			e.mustAct("1", "cancelled", nil)
			e.mustSweep()
			e.mustSettle("failed", flight...) // it was asked to stop, and nobody knows what it did
		}, "compensated", "compensated", []string{"flight/undo", "hotel/undo", "book/undo"}},
		{"is called off in line", false, func(e *engine) {
			e.reach("flight")
			e.mustAct("1", "cancelled", nil)
			e.mustSweep()
		}, "compensated", "compensated", []string{"hotel/undo", "book/undo"}},
		{"is called off before it begins", false, func(e *engine) {
			e.reach("trip")
			trip := e.mustClaim(1, "trip")
			e.mustAct("1", "cancelled", nil)
			e.succeed("{}", trip...)
		}, "compensated", "", []string{"book/undo"}},
		{"is forced", false, func(e *engine) {
			e.reach("flight")
			e.mustAct("1/trip", "forced", nil)
			e.mustSweep()
		}, "compensated", "forced", []string{"trip/undo", "book/undo"}},
		{"is forced with the whole", false, func(e *engine) {
			e.reach("flight")
			e.mustAct("1", "forced", nil)
			e.mustSweep()
		}, "forced", "forced", nil},
		{"is refused behind the pivot", true, func(e *engine) {
			e.reach("flight")
			e.mustSettle("refused", e.mustClaim(1, "flight")...)
			e.mustSettle("succeeded", e.mustClaim(1, "hotel/undo")...)
			if got := e.state("1"); got != "stuck" {
				e.Errorf("state: got %s, want stuck", got)
			}
			e.mustAct("1", "skipped", "trip")
		}, "succeeded", "compensated", []string{"pay"}},
		{"begins anew behind the pivot", true, func(e *engine) {
			for _, key := range []string{"1/trip", "1/trip/2"} {
				e.succeed("{}", e.mustClaim(1, map[string]string{"1/trip": "book", "1/trip/2": "trip"}[key])...)
				if key == "1/trip" {
					e.succeed("{}", e.mustClaim(1, "trip")...)
				}
				e.mustSettle("refused", e.mustClaim(1, "hotel")...)
				if got := e.state(key) + " " + e.state("1"); got != "compensated stuck" {
					e.Errorf("child %s and saga: got %s, want compensated stuck", key, got)
				}
				e.mustAct("1", "retried", nil)
			}
		}, "succeeded", "compensated compensated succeeded", []string{"trip", "hotel", "flight", "pay"}},
		{"is called off begun anew", true, func(e *engine) {
			e.reach("hotel")
			e.mustSettle("refused", e.mustClaim(1, "hotel")...)
			e.mustAct("1", "retried", nil)
			e.succeed("{}", e.mustClaim(1, "trip")...)
			e.mustAct("1", "forced", nil)
			e.mustSweep()
		}, "forced", "compensated forced", nil},
		{"does not begin anew when it was forced", true, func(e *engine) {
			e.reach("hotel")
			e.mustAct("1/trip", "forced", nil)
			e.mustSweep()
			if err := e.act(e.pool, "1", "retried", nil); code(err) != "PW025" {
				e.Errorf("retry: got %v, want PW025", err)
			}
			e.mustAct("1", "skipped", "trip")
		}, "succeeded", "forced", []string{"pay"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			e.trip(x.early)
			x.scenario(e)
			if got := e.runThrough(`{}`); !slices.Equal(got, x.after) {
				t.Errorf("then ran %v, want %v", got, x.after)
			}
			if err := e.ended(x.parent, x.child); err != nil {
				t.Error(err)
			}
		})
	}
}

// reach has steps succeed until this one is in line.
func (e *engine) reach(step string) {
	e.Helper()
	for value[int](e, "SELECT count(*) FROM pawl.job WHERE kind LIKE '%/' || $1", step) == 0 {
		for _, a := range e.mustClaim(1) {
			if _, _, err := e.settle(e.pool, ending{attempt: a, outcome: "succeeded", result: "{}"}); err != nil {
				e.Fatalf("settle: %v", err)
			}
		}
	}
}

// A part cannot be begun since another saga has its id. Before the pivot that is a refusal; behind it the saga is stuck, since it goes forward, until the other is gone.
func TestEngine_childTaken(t *testing.T) {
	t.Parallel()
	for _, early := range []bool{false, true} {
		t.Run(fmt.Sprintf("behind the pivot=%t", early), func(t *testing.T) {
			t.Parallel()
			prove(t, func(e *engine) error {
				e.trip(early)
				e.mustStart("trip", "1/trip")
				e.mustAct("1/trip", "forced", nil)
				e.mustSweep()
				e.reach("trip")
				e.succeed("{}", e.mustClaim(10, "trip")...)
				if !early {
					if got := e.runThrough("{}"); !slices.Equal(got, []string{"book/undo"}) {
						return fmt.Errorf("then ran %v, want [book/undo]", got)
					}
					return e.ended("compensated", "forced")
				}
				if got := e.state("1"); got != "stuck" {
					return fmt.Errorf("state: got %s, want stuck", got)
				}
				e.exec("DELETE FROM pawl.saga_event WHERE saga_id = $1", e.id("1/trip"))
				e.exec("DELETE FROM pawl.saga WHERE key = '1/trip'")
				e.mustAct("1", "retried", nil)
				if got, want := e.runThrough("{}"), []string{"trip", "hotel", "flight", "pay"}; !slices.Equal(got, want) {
					return fmt.Errorf("then ran %v, want %v", got, want)
				}
				return e.ended("succeeded", "succeeded")
			}, map[bool][]without{true: {{"behind the pivot it goes forward", "saga_apply", "v_bit & d.sure & ~d.pivot <> 0", "false"}}}[early]...)
		})
	}
}

// succeed has attempts succeed with a result.
func (e *engine) succeed(result string, as ...attempt) {
	e.Helper()
	es := ends("succeeded", as...)
	for i := range es {
		es[i].result = result
	}
	if _, _, err := e.settle(e.pool, es...); err != nil {
		e.Fatalf("settle: %v", err)
	}
}

// The job of a step that is split, or is a saga, gives what no unit and no saga can be made of: the step is refused, and what else ends in the same transaction ends.
func TestEngine_expandedWrong(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	child := saga.Define[order]("child")
	lined(child, "x", engineQueue)
	registered(e, e.pool, child)
	each := saga.Define[order]("each")
	engineEach(each, "s", saga.MaxAttempts(1))
	lined(each, "a", engineQueue)
	registered(e, e.pool, each)
	whole := saga.Define[order]("whole")
	saga.Child(whole, "s", child, saga.Queue(engineQueue))
	lined(whole, "a", engineQueue)
	registered(e, e.pool, whole)
	for _, x := range []struct{ name, result string }{{"each", ""}, {"each", "null"}, {"each", "{}"}, {"each", "7"}, {"whole", ""}} {
		key := x.name + x.result
		e.mustStart(x.name, key)
		e.succeed(x.result, e.mustClaim(10, "a", "s")...)
		if got := e.runThrough(""); !slices.Equal(got, []string{"a/undo"}) {
			t.Errorf("%s: then ran %v, want [a/undo]", key, got)
		}
		if err := e.expect(key, "compensated", "refused s", "undone a"); err != nil {
			t.Error(err)
		}
	}
}
