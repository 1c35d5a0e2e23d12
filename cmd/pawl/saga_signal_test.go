package main

import (
	"context"
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/worker"
)

// TestSagaSignal brings signals by the command that show says, before their turn, at it, and when it is too late.
func TestSagaSignal(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	d := saga.Define[checkoutOrder]("review")
	approval := saga.Signal[bool](d, "approval")
	price := saga.Signal[int](d, "price", saga.After(approval))
	done := saga.Step[int](d, "done", saga.Pivot(), saga.After(price))
	if err := d.Register(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	type sent struct {
		ID, Signal string
		Kept       bool
		State      saga.State
	}
	signal := func(args ...string) []string { return append([]string{"saga", "signal"}, args...) }
	for _, id := range []string{"r 1", "r2", "r3"} {
		must(t, exitOK, url, "saga", "start", "review", "--id", id)
	}
	mentions(t, must(t, exitOK, url, "saga", "show", "r 1"), "WAITS       approval waits for its signal, which somebody must send. VALUE is what it brings, as JSON:\n      pawl saga signal 'r 1' approval VALUE\n")

	if got := mustJSON[sent](t, exitOK, url, signal("r 1", "price", "--", "-5")...); got != (sent{"r 1", "price", true, saga.StateRunning}) {
		t.Errorf("got %+v", got)
	}
	mentions(t, must(t, exitOK, url, signal("r2", "price", "12")...), "signal price is kept for saga r2 until it is its turn; the saga is running now: running approval\n")
	refused(t, exitFailed, url, signal("r2", "price", "13"), "r2 does not wait for signal price", "had one before", `"pawl saga show ID"`)
	mentions(t, must(t, exitOK, url, advised(t, url, "r2", "saga signal")...), "signal approval came to saga r2, which is running now: running done\n")
	if got := mustJSON[sent](t, exitOK, url, signal("r 1", "approval")...); got != (sent{"r 1", "approval", false, saga.StateRunning}) {
		t.Errorf("got %+v", got)
	}
	for id, want := range map[string]string{"r 1": "null -5", "r2": "true 12"} {
		s := mustJSON[saga.Story](t, exitOK, url, "saga", "show", id)
		if got := inline(s.Steps[0].Output) + " " + inline(s.Steps[1].Output); got != want {
			t.Errorf("%s: signals of %s, want %s", id, got, want)
		}
	}

	must(t, exitOK, url, "saga", "cancel", "r3", "--reason", "x")
	refused(t, exitFailed, url, signal("r3", "approval"), "has ended", "compensated")
	refused(t, exitNotFound, url, signal("nobody", "approval"), "nobody", "not found", `"pawl saga list"`)
	refused(t, exitNotFound, url, signal("r2", "done"), "no signal done", `"pawl saga show ID" the steps`)
	refused(t, exitUsage, url, signal("r2", "price", "{bad"), "the value is not JSON", "byte 2")
	refused(t, exitUsage, url, signal("r2", "price", "@/no/such/file"), "/no/such/file")
	refused(t, exitUsage, url, signal("r2"), "<signal>")

	must(t, exitOK, url, "saga", "start", "review", "--id", "r4")
	refused(t, exitUsage, url, signal("r4", "approval", `"`+strings.Repeat("x", 131_000)+`"`, "extra"), "extra")
	if a := pawlIn(t, url, strings.NewReader(`"`+strings.Repeat("x", 262_144)+`"`), signal("r4", "approval", "-")...); a.code != exitUsage || !strings.Contains(a.err, "payload too large") {
		t.Errorf("a value of 256 KiB and more: got %d, %s", a.code, a.err)
	}
	if a := pawlIn(t, url, strings.NewReader(`true`), signal("r4", "approval", "-")...); a.code != exitOK {
		t.Errorf("from standard input: got %+v", a)
	}

	w, err := worker.New(pool, worker.Config{Queues: map[string]int{"default": 10}, Name: "review"})
	if err != nil {
		t.Fatal(err)
	}
	saga.Handle(w, done, func(ctx context.Context, c *saga.Call[checkoutOrder]) (int, error) { return price.Output(ctx, c) }, nil)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if s := awaitSaga(t, url, "r 1", saga.StateSucceeded); inline(s.Steps[2].Output) != "-5" {
		t.Errorf("the step behind a signal had %s, want -5", s.Steps[2].Output)
	}
}
