package main

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/worker"
)

// checkoutOrder says what goes wrong with a checkout.
type checkoutOrder struct {
	Refuse string `json:"refuse,omitempty"` // the step that refuses
	Break  string `json:"break,omitempty"`  // the step that fails until it is mended
	Undo   string `json:"undo,omitempty"`   // the step whose compensation does
}

type checkoutOutput struct {
	Done string `json:"done"`
}

// checkoutService is a diamond of steps with a pivot, and a step behind it.
type checkoutService struct {
	*saga.Definition[checkoutOrder]

	steps  map[string]*saga.StepOf[checkoutOrder, checkoutOutput]
	mended atomic.Bool
}

func newCheckout(t *testing.T, pool *pgxpool.Pool) *checkoutService {
	t.Helper()
	c := &checkoutService{Definition: saga.Define[checkoutOrder]("checkout", saga.Version(2)), steps: map[string]*saga.StepOf[checkoutOrder, checkoutOutput]{}}
	fast := saga.Backoff(time.Millisecond, time.Millisecond)
	tries := saga.MaxAttempts(2)
	add := func(name string, opts ...saga.StepOption) saga.AnyStep {
		s := saga.Step[checkoutOutput](c.Definition, name, append(opts, fast, tries, saga.Queue("shop"))...)
		c.steps[name] = s
		return s
	}
	undo := saga.Undo(fast, tries)
	reserve := add("reserve", undo)
	charge, label := add("charge", undo, saga.After(reserve)), add("label", undo, saga.After(reserve))
	ship := add("ship", saga.Pivot(), saga.After(charge, label))
	add("thank", saga.After(ship))
	if err := c.Register(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	return c
}

// serve runs a worker that serves some of the steps until the test ends.
func (c *checkoutService) serve(t *testing.T, pool *pgxpool.Pool, steps ...string) {
	t.Helper()
	w, err := worker.New(pool, worker.Config{Queues: map[string]int{"shop": 10}, Name: "shop", UnknownDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range steps {
		act := func(_ context.Context, call *saga.Call[checkoutOrder]) (checkoutOutput, error) {
			switch {
			case call.Input.Refuse == name:
				return checkoutOutput{}, saga.Fail(errors.New("not with us"))
			case call.Input.Break == name && !c.mended.Load():
				return checkoutOutput{}, errors.New("out of order")
			}
			return checkoutOutput{name}, nil
		}
		undo := func(_ context.Context, call *saga.Call[checkoutOrder], _ *checkoutOutput) error {
			if call.Input.Undo == name && !c.mended.Load() {
				return errors.New("no way back")
			}
			return nil
		}
		if name == "ship" || name == "thank" {
			undo = nil
		}
		saga.Handle(w, c.steps[name], act, undo)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// startSaga starts a checkout and waits until it is in a state.
func startSaga(t *testing.T, url, id, input string, state saga.State) {
	t.Helper()
	got := mustJSON[struct {
		ID        string
		Duplicate bool
	}](t, exitOK, url, "saga", "start", "checkout", "--id", id, "--input", input)
	if got.ID != id || got.Duplicate {
		t.Fatalf("got %+v", got)
	}
	awaitSaga(t, url, id, state)
}

// awaitSaga waits until a saga is in a state.
func awaitSaga(t *testing.T, url, id string, state saga.State) (s saga.Story) {
	t.Helper()
	eventually(t, func() bool {
		s = mustJSON[saga.Story](t, exitOK, url, "saga", "show", id)
		return s.State == state
	}, func() string {
		return fmt.Sprintf("saga %s to be %s:\n%s", id, state, must(t, exitOK, url, "saga", "show", id))
	})
	return s
}

// awaitStep waits until a step of a saga, by its number from 0, has succeeded.
func awaitStep(t *testing.T, url, id string, step int) {
	t.Helper()
	eventually(t, func() bool {
		return mustJSON[saga.Story](t, exitOK, url, "saga", "show", id).Steps[step].State == saga.StepSucceeded
	}, func() string {
		return fmt.Sprintf("step %d of saga %s to succeed:\n%s", step, id, must(t, exitOK, url, "saga", "show", id))
	})
}

// awaitText waits until a command prints something.
func awaitText(t *testing.T, url, text string, args ...string) {
	t.Helper()
	eventually(t, func() bool { return strings.Contains(must(t, exitOK, url, args...), text) }, func() string {
		return fmt.Sprintf("%q in:\n%s", text, must(t, exitOK, url, args...))
	})
}

// eventually waits until ok; else what says for what it was in vain.
func eventually(t *testing.T, ok func() bool, what func() string) {
	t.Helper()
	tick, end := time.NewTicker(10*time.Millisecond), time.After(patience)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain for %s", what())
		}
	}
}

// advised returns the arguments of the command that "saga show" says to run.
func advised(t *testing.T, url, id, command string) []string {
	t.Helper()
	out := must(t, exitOK, url, "saga", "show", id)
	for line := range strings.Lines(out) {
		if args, ok := strings.CutPrefix(strings.TrimSpace(line), "pawl "); ok && strings.HasPrefix(args, command+" ") {
			args = strings.NewReplacer("'WHY'", "because", "OUTPUT", `{"done":"by-hand"}`, "VALUE", "true").Replace(args)
			return strings.Fields(args)
		}
	}
	t.Fatalf("show advises no %q:\n%s", command, out)
	return nil
}

func TestSagaStart(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	refused(t, exitNotFound, url, []string{"saga", "start", "checkout"}, "checkout", "not registered")
	newCheckout(t, pool)
	mentions(t, must(t, exitOK, url, "saga", "start", "checkout", "--id", "a b", "--input", `{"refuse": "x"}`), "saga a b started")
	mentions(t, must(t, exitOK, url, "saga", "start", "checkout", "--id", "a b", "--input", ` {"refuse" : "x"}`, "--version", "2"), "nothing started", "a b")
	args := []string{"saga", "start", "checkout", "--input", "-", "--json"}
	if a := pawlIn(t, url, strings.NewReader(`{"refuse": "ä"}`), args...); a.code != exitOK || strings.Count(a.out, "-") != 4 {
		t.Errorf("without an id: got %+v", a)
	}
	refused(t, exitFailed, url, []string{"saga", "start", "checkout", "--id", "a b"}, "a b", "another input")
	refused(t, exitNotFound, url, []string{"saga", "start", "checkout", "--version", "3"}, "version 3", "not registered")
	for _, c := range []struct {
		flags []string
		want  []string
	}{
		{[]string{"--input", "{bad"}, []string{"--input is not JSON", "byte 2"}},
		{[]string{"--input", "@/no/such/file"}, []string{"/no/such/file"}},
		{[]string{"--input", `"` + strings.Repeat("x", 300_000) + `"`}, []string{"payload too large", "262144"}},
		{[]string{"--version=-1"}, []string{"version -1"}},
		{[]string{"--version", "new"}, []string{"new"}},
		{[]string{"--id", strings.Repeat("i", 257)}, []string{"256 characters"}},
	} {
		refused(t, exitUsage, url, slices.Concat([]string{"saga", "start", "checkout"}, c.flags), c.want...)
	}
	if got := mustJSON[struct{ Sagas []saga.Summary }](t, exitOK, url, "saga", "list"); len(got.Sagas) != 2 {
		t.Errorf("bad input left sagas: %+v", got.Sagas)
	}
}

func TestSagaList(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	type listing struct {
		Sagas []saga.Summary
		Next  string
	}
	if got := mustJSON[map[string]any](t, exitOK, url, "saga", "list"); got["sagas"] == nil {
		t.Errorf("an empty listing has no list: %v", got)
	}
	c := newCheckout(t, pool)
	start(t, url, "serve")
	c.serve(t, pool, "reserve", "charge", "label", "ship", "thank")
	startSaga(t, url, "good", `{}`, saga.StateSucceeded)
	startSaga(t, url, "stuck", `{"break": "thank"}`, saga.StateStuck)
	startSaga(t, url, "bad", `{"refuse": "charge"}`, saga.StateCompensated)
	for _, x := range []struct {
		flags []string
		want  string
	}{
		{nil, "bad stuck good, next "},
		{[]string{"--state", "stuck"}, "stuck, next "},
		{[]string{"--state", "succeeded", "--name", "checkout"}, "good, next "},
		{[]string{"--name", "nope"}, ", next "},
		{[]string{"--limit", "2"}, "bad stuck, next stuck"},
		{[]string{"--before", "stuck"}, "good, next "},
	} {
		got := mustJSON[listing](t, exitOK, url, append([]string{"saga", "list"}, x.flags...)...)
		var ids []string
		for _, s := range got.Sagas {
			ids = append(ids, s.ID)
		}
		if text := strings.Join(ids, " ") + ", next " + got.Next; text != x.want {
			t.Errorf("list %v: got %q, want %q", x.flags, text, x.want)
		}
	}
	a := pawl(t, url, "saga", "list", "--limit", "2")
	mentions(t, a.out, "ID", "STUCK", "compensated", "checkout", "SINCE")
	mentions(t, a.err, "1 of these is stuck", "pawl saga show", "--before stuck")
	mentions(t, pawl(t, url, "saga", "list", "--state", "forced").err, "no such sagas")
	refused(t, exitNotFound, url, []string{"saga", "list", "--before", "nope"}, "nope", "not found")
	refused(t, exitUsage, url, []string{"saga", "list", "--state", "nope"}, "nope", "stuck")
	refused(t, exitUsage, url, []string{"saga", "list", "--limit", "1001"}, "--limit")
}

func TestSagaDefinitions(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	if got := mustJSON[map[string]any](t, exitOK, url, "saga", "definitions"); got["definitions"] == nil {
		t.Errorf("an empty listing has no list: %v", got)
	}
	mentions(t, pawl(t, url, "saga", "definitions").err, "services register them")
	c := newCheckout(t, pool)
	out := must(t, exitOK, url, "saga", "definitions")
	mentions(t, out, "NAME", "UNSERVED", "all")
	startSaga(t, url, "one", `{}`, saga.StateRunning)
	mentions(t, must(t, exitOK, url, "saga", "show", "one"), "NOT SERVED  reserve waits in queue shop", "AHEAD       No live worker serves charge, label, ship, thank")
	c.serve(t, pool, "reserve", "charge", "thank")
	awaitText(t, url, "label,ship", "saga", "definitions")
	type listing struct{ Definitions []saga.Registered }
	got := mustJSON[listing](t, exitOK, url, "saga", "definitions")
	if d := got.Definitions; len(d) != 1 || d[0].Name != "checkout" || d[0].Version != 2 || d[0].Open != 1 || len(d[0].Steps) != 5 || !d[0].Steps[0].Served || d[0].Steps[2].Served {
		t.Errorf("got %+v", got)
	}
	if got.Definitions[0].OpenAtLeast {
		t.Errorf("not all were looked at: %+v", got)
	}
	awaitText(t, url, "NOT SERVED  label waits in queue shop", "saga", "show", "one")
	mentions(t, must(t, exitOK, url, "saga", "show", "one"), "AHEAD       No live worker serves ship;", "✓      reserve       succeeded  shop", "1/2", `{"done":"reserve"}`)

	// More sagas than are looked at: what is counted is the least.
	mustExec(t, pool, fmt.Sprintf(`INSERT INTO pawl.saga (ns, id, root_id, definition_id, started_at, key, started_by, input)
		SELECT x.ns, nextval('pawl.saga_id'), x.id, x.definition_id, now(), 'more ' || i, 'test', '{}' FROM pawl.saga x, generate_series(1, %d) i`, saga.ListScanMax))
	startSaga(t, url, "two", `{}`, saga.StateRunning)
	if d := mustJSON[listing](t, exitOK, url, "saga", "definitions").Definitions[0]; d.Open != 1 || !d.OpenAtLeast {
		t.Errorf("of too many: got %d, %t", d.Open, d.OpenAtLeast)
	}
	mentions(t, must(t, exitOK, url, "saga", "definitions"), "  1+  ")
}

// TestSagaStuck gets sagas that are stuck to their ends by the commands that show says.
func TestSagaStuck(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	c := newCheckout(t, pool)
	start(t, url, "serve")
	c.serve(t, pool, "reserve", "charge", "label", "ship", "thank")
	const noWayBack, broken = `{"refuse": "ship", "undo": "charge"}`, `{"break": "ship"}`
	for _, id := range []string{"undo-skip", "undo-force", "undo-retry"} {
		startSaga(t, url, id, noWayBack, saga.StateStuck)
	}
	startSaga(t, url, "pivot-done", broken, saga.StateStuck)
	startSaga(t, url, "pivot-not-done", broken, saga.StateStuck)

	out := must(t, exitOK, url, "saga", "show", "undo-skip")
	mentions(t, out, "saga undo-skip  checkout version 2  STUCK for", "because     ship refused: not with us", "STUCK       the compensation of charge used up its attempts (2 of 2)", "no way back",
		"not undone before it is: reserve", "✓      reserve       succeeded  shop", "├─!─┐  charge        stuck      shop   2/2", "└─↶─┤  label         undone     shop   1/2",
		"✗      ship (pivot)  refused    shop   1/2", "·      thank         not begun  shop   -", "undo_exhausted", "→ STUCK; no way back")
	mentions(t, must(t, exitOK, url, advised(t, url, "undo-skip", "job show")...), "saga:checkout@2/charge/undo", "no way back")

	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	type acted struct {
		ID, Did    string
		Was, State saga.State
	}
	skip := advised(t, url, "undo-skip", "saga skip")
	refused(t, exitUsage, url, skip, "charge is undone", "--yes")
	refused(t, exitFailed, url, []string{"saga", "skip", "undo-skip", "charge", "--as", "not-done", "--reason", "x", "--yes"}, "no way back behind the pivot")
	refused(t, exitFailed, url, []string{"saga", "skip", "undo-skip", "label", "--as", "done", "--reason", "x", "--yes"}, "label", "not stuck")
	if got := mustJSON[acted](t, exitOK, url, append(skip, "--yes")...); got.ID != "undo-skip" || got.Did != "skipped" || got.Was != saga.StateStuck || got.State == saga.StateStuck {
		t.Errorf("got %+v", got)
	}
	s := awaitSaga(t, url, "undo-skip", saga.StateCompensated)
	if i := slices.IndexFunc(s.Events, func(e saga.Event) bool { return e.What == "skipped" }); i < 0 || s.Events[i].Actor != me.Username || s.Events[i].Step != "charge" {
		t.Errorf("got %+v", s.Events)
	}
	mentions(t, must(t, exitOK, url, "saga", "show", "undo-skip"), "»─┐  charge        skipped", "by "+me.Username+"; because", "compensated")

	force := append(advised(t, url, "undo-force", "saga force"), "--actor", "mia")
	refused(t, exitUsage, url, force, "ends as it stands", "Done, and stays so: reserve.", "nobody knows: charge.", "Never begun: thank.", "--yes")
	mentions(t, must(t, exitOK, url, append(force, "--yes")...), "saga undo-force was stuck, and is forced now\n")
	mentions(t, must(t, exitOK, url, "saga", "show", "undo-force"), "forced to an end as it stood by mia: because", "  forced ")
	refused(t, exitFailed, url, append(force, "--yes"), "ended", "forced")

	done := append(advised(t, url, "pivot-done", "saga skip"), "--yes")
	mentions(t, must(t, exitOK, url, done...), "saga pivot-done was stuck, and is ")
	s = awaitSaga(t, url, "pivot-done", saga.StateSucceeded)
	if st := s.Steps[3]; st.State != saga.StepSkipped || inline(st.Output) != `{"done":"by-hand"}` {
		t.Errorf("got %+v", st)
	}

	refused(t, exitUsage, url, []string{"saga", "skip", "pivot-not-done", "ship", "--as", "not-done", "--output", "1", "--reason", "x"}, "--output needs --as done")
	refused(t, exitUsage, url, []string{"saga", "skip", "pivot-not-done", "ship", "--as", "perhaps", "--reason", "x"}, `"done","not-done"`)
	refused(t, exitNotFound, url, []string{"saga", "skip", "pivot-not-done", "nope", "--as", "done", "--reason", "x", "--yes"}, "no step nope")
	out = must(t, exitOK, url, "saga", "show", "pivot-not-done")
	mentions(t, out, "ship, the pivot, used up its attempts, and nobody knows whether it was done (2 of 2); the last error: ", "pawl saga skip pivot-not-done ship --as not-done --reason 'WHY'")
	mentions(t, must(t, exitOK, url, "saga", "skip", "pivot-not-done", "ship", "--as", "not-done", "--reason", "the carrier says so", "--yes"), "saga pivot-not-done was stuck, and is compensat")
	awaitSaga(t, url, "pivot-not-done", saga.StateCompensated)
	mentions(t, must(t, exitOK, url, "saga", "show", "pivot-not-done"), "ship was not done, as was said by "+me.Username+": the carrier says so")

	c.mended.Store(true)
	retry := advised(t, url, "undo-retry", "saga retry")
	refused(t, exitUsage, url, []string{"saga", "retry", "undo-retry"}, "--reason")
	refused(t, exitUsage, url, []string{"saga", "retry", "undo-retry", "--reason", " "}, "--reason is empty")
	mentions(t, must(t, exitOK, url, retry...), "saga undo-retry was stuck, and is ")
	awaitSaga(t, url, "undo-retry", saga.StateCompensated)
	refused(t, exitFailed, url, retry, "has ended", "compensated")
	refused(t, exitNotFound, url, []string{"saga", "retry", "nope", "--reason", "x"}, "nope", "not found")
	refused(t, exitNotFound, url, []string{"saga", "show", "nope"}, "nope", "not found")
}

func TestSagaCancel(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	c := newCheckout(t, pool)
	start(t, url, "serve")
	c.serve(t, pool, "reserve", "charge", "ship") // not label
	startSaga(t, url, "early", `{}`, saga.StateRunning)
	awaitStep(t, url, "early", 1)
	refused(t, exitFailed, url, []string{"saga", "retry", "early", "--reason", "x"}, "not stuck", "running")
	awaitRow(t, pool, "SELECT count(*) > 0 FROM pawl.receipt WHERE outcome = 'returned'")
	mustExec(t, pool, "UPDATE pawl.receipt SET detail = NULL WHERE outcome = 'returned'") // as by a worker that stopped when it had begun
	cancel := []string{"saga", "cancel", "early", "--reason", "the customer called", "--actor", "mia"}
	mentions(t, must(t, exitOK, url, cancel...), "saga early was running, and is compensating now: running label\n")
	mentions(t, must(t, exitOK, url, cancel...), "saga early is left as it is: it is compensating now")
	awaitText(t, url, "NOT SERVED  the compensation of label waits in queue shop", "saga", "show", "early") // whose job was looked at, and so may have begun
	c.serve(t, pool, "label")
	awaitSaga(t, url, "early", saga.StateCompensated)
	mentions(t, must(t, exitOK, url, "saga", "show", "early"), "because     it was cancelled by mia: the customer called", "→ compensating; by mia; the customer called")
	refused(t, exitFailed, url, cancel, "has ended", "compensated")

	startSaga(t, url, "late", `{}`, saga.StateRunning)
	awaitStep(t, url, "late", 3)
	refused(t, exitFailed, url, []string{"saga", "cancel", "late", "--reason", "x"}, "passed its pivot", "goes forward")
	refused(t, exitNotFound, url, []string{"saga", "cancel", "nope", "--reason", "x"}, "nope", "not found")
}

// TestSagaNamespace works in another namespace, and says commands for it.
func TestSagaNamespace(t *testing.T) {
	t.Parallel()
	url := dbtest.NewURL(t)
	pool, err := poolOf(t, url)
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, pool, "INSERT INTO pawl.namespace (ns, name) VALUES (7, 'billing')")
	d := saga.Define[checkoutOrder]("bill", saga.Namespace(7))
	saga.Step[checkoutOutput](d, "a")
	if err := d.Register(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	must(t, exitOK, url, "saga", "start", "bill", "--id", "x", "--namespace", "billing")
	mentions(t, must(t, exitOK, url, "saga", "show", "x", "--namespace", "billing"), "NOT SERVED  a waits in queue default")
	refused(t, exitNotFound, url, []string{"saga", "show", "x"}, "x", "not found")
	mentions(t, fmt.Sprint(mustJSON[map[string]any](t, exitOK, url, "saga", "force", "x", "--reason", "r", "--yes", "--namespace", "7")), "did:forced", "state:forced", "was:running")
}

// TestSagaParts shows a saga whose steps are units, another saga, a time and a signal.
func TestSagaParts(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	start(t, url, "serve")
	fast, once := saga.Backoff(time.Millisecond, time.Millisecond), saga.MaxAttempts(1)
	bill := saga.Define[checkoutOrder]("bill")
	print := saga.Step[checkoutOutput](bill, "print", saga.Pivot(), fast, once)
	order := saga.Define[checkoutOrder]("order")
	child := saga.Child(order, "bill", bill, saga.ReadOnly())
	parcels := saga.Each[int, checkoutOutput](order, "parcels", saga.ReadOnly(), fast, once)
	saga.Timer(order, "cool-down", time.Hour)
	saga.Signal[bool](order, "approval", saga.Expires(2*time.Hour))
	top := saga.Define[checkoutOrder]("top")
	orders := saga.Child(top, "orders", order, saga.ReadOnly())
	for _, register := range []func(context.Context, saga.DB) error{bill.Register, order.Register, top.Register} {
		if err := register(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
	}
	w, err := worker.New(pool, worker.Config{Queues: map[string]int{"default": 10}, Name: "parts"})
	if err != nil {
		t.Fatal(err)
	}
	saga.Handle(w, print, func(context.Context, *saga.Call[checkoutOrder]) (out checkoutOutput, err error) {
		return out, errors.New("no paper")
	}, nil)
	saga.HandleChild(w, child, func(_ context.Context, c *saga.Call[checkoutOrder]) (checkoutOrder, error) { return c.Input, nil }, nil)
	saga.HandleChild(w, orders, func(_ context.Context, c *saga.Call[checkoutOrder]) (checkoutOrder, error) { return c.Input, nil }, nil)
	saga.HandleEach(w, parcels, func(context.Context, *saga.Call[checkoutOrder]) ([]int, error) { return []int{1, 2, 3}, nil },
		func(context.Context, *saga.Call[checkoutOrder], int) (out checkoutOutput, err error) { return out, nil }, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	must(t, exitOK, url, "saga", "start", "top", "--id", "t") // which says what is stuck two sagas below it
	awaitText(t, url, "STUCK       orders waits for saga t/orders/bill, which is stuck. See what it needs:\n      pawl saga show t/orders/bill\n", "saga", "show", "t")
	mentions(t, must(t, exitOK, url, "saga", "show", "t"), "saga t/orders running")

	must(t, exitOK, url, "saga", "start", "order", "--id", "o 1")
	awaitText(t, url, "saga o 1/bill", "saga", "show", "o 1")
	awaitSaga(t, url, "o 1/bill", saga.StateStuck)
	awaitStep(t, url, "o 1", 1)
	out := must(t, exitOK, url, "saga", "show", "o 1")
	mentions(t, out, "STUCK       bill waits for saga o 1/bill, which is stuck. See what it needs:\n      pawl saga show 'o 1/bill'\n", "running    default  -        saga o 1/bill STUCK",
		"3 of 3 units over", "over in 59m", "WAITS       approval waits for its signal, which somebody must send; without it, the step fails in 1h59m", "\n      pawl saga signal 'o 1' approval VALUE\n", "waits for its signal, and fails in 1h59m",
		"into 3 units", "is saga o 1/bill")
	mentions(t, must(t, exitOK, url, "saga", "show", "o 1/bill"), "no paper", "part of  saga o 1, which waits for it", "pawl saga skip 'o 1/bill' print --as done")
	must(t, exitOK, url, "saga", "force", "o 1/bill", "--reason", "no paper anywhere", "--yes")
	s := awaitSaga(t, url, "o 1", saga.StateCompensated)
	if s.Steps[0].State != saga.StepUnknown || s.Steps[3].State != saga.StepRefused {
		t.Errorf("got %+v", s.Steps)
	}
}
