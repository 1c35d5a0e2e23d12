package saga_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
)

func act(context.Context, *saga.Call[order]) (paid, error)      { return paid{}, nil }
func undo(context.Context, *saga.Call[order], *paid) error      { return nil }
func split(context.Context, *saga.Call[order]) ([]int, error)   { return nil, nil }
func undoEach(context.Context, *saga.Call[order]) error         { return nil }
func input(context.Context, *saga.Call[order]) (int, error)     { return 0, nil }
func none(context.Context, *saga.Call[order], *saga.None) error { return nil }
func undoChild(context.Context, *saga.Call[order], *saga.Instance) error {
	return nil
}

func each(context.Context, *saga.Call[order], int) (paid, error) { return paid{}, nil }

func actTx(context.Context, pgx.Tx, *saga.Call[order]) (paid, error) { return paid{}, nil }
func undoTx(context.Context, pgx.Tx, *saga.Call[order], *paid) error { return nil }

func TestHandle(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("d", saga.Version(4))
	child := saga.Define[int]("child")
	saga.Step[paid](child, "x")
	a := saga.Step[paid](d, "a")
	b := saga.Step[paid](d, "b")
	e := saga.Each[int, paid](d, "e")
	c := saga.Child(d, "c", child)
	r := saga.Step[paid](d, "r", saga.ReadOnly())
	p := saga.Step[paid](d, "p", saga.After(a, b, e, c, r), saga.Pivot())
	after := saga.Step[paid](d, "after", saga.After(p))
	wait := saga.Signal[paid](d, "wait", saga.After(p))
	w := &fakeWorker{}
	saga.Handle(w, a, act, undo)
	saga.HandleTx(w, b.AtVersion(), actTx, undoTx)
	saga.HandleEach(w, e, split, each, undoEach)
	saga.HandleChild(w, c.AtVersion(), input, undoChild)
	saga.Handle(w, r, act, nil)
	saga.HandleTx(w, p, actTx, nil)
	saga.Handle(w, after.AtVersion(), act, nil)
	want := []string{
		"saga:d/a", "saga:d/a/undo", "saga:d/e", "saga:d/e/undo", "saga:d/p", "saga:d/r", "saga:d@4/after", "saga:d@4/b", "saga:d@4/b/undo", "saga:d@4/c", "saga:d@4/c/undo",
	}
	if got := slices.Sorted(maps.Keys(w.kinds)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for says, f := range map[string]func(){
		`step "a" of "d": undo is missing`:                 func() { saga.Handle(w, a, act, nil) },
		`step "b" of "d": undo is missing`:                 func() { saga.HandleTx(w, b, actTx, nil) },
		`step "e" of "d": undo is missing`:                 func() { saga.HandleEach(w, e, split, each, nil) },
		`step "c" of "d": undo is missing`:                 func() { saga.HandleChild(w, c, input, nil) },
		`step "r" of "d": undo is given`:                   func() { saga.Handle(w, r, act, undo) },
		`step "p" of "d": undo is given`:                   func() { saga.HandleTx(w, p, actTx, undoTx) },
		`step "after" of "d": undo is given`:               func() { saga.Handle(w, after, act, undo) },
		`step "wait" of "d": a signal has no such handler`: func() { saga.Handle(w, wait, act, nil) },
		`step "a" of "d": no handler is given`:             func() { saga.Handle(w, a, nil, undo) },
		`step "e" of "d": no handler is given`:             func() { saga.HandleEach(w, e, split, nil, undoEach) },
		`step "t" of "bad": saga: invalid: definition "bad", ver`: func() {
			bad := saga.Define[order]("bad")
			s := saga.Step[saga.None](bad, "t", saga.Priority(9))
			saga.Handle(w, s, func(context.Context, *saga.Call[order]) (saga.None, error) { return saga.None{}, nil }, none)
		},
	} {
		panics(t, says, says, f)
	}
}

// raw is a job of a step with these args.
func raw(args string) *saga.Raw {
	return &saga.Raw{Attempt: 2, MaxAttempts: 5, Headers: map[string]string{"a": "1"}, Args: json.RawMessage(args)}
}

func TestCall(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("d")
	a := saga.Step[paid](d, "a")
	e := saga.Each[int, int](d, "e")
	var calls []saga.Call[order]
	var outs []*paid
	w := &fakeWorker{}
	saga.Handle(w, a, func(_ context.Context, c *saga.Call[order]) (paid, error) {
		calls = append(calls, *c)
		return paid{c.Attempt}, nil
	}, func(_ context.Context, c *saga.Call[order], out *paid) error {
		calls, outs = append(calls, *c), append(outs, out)
		return nil
	})
	saga.HandleEach(w, e, func(_ context.Context, c *saga.Call[order]) ([]int, error) {
		return make([]int, len(c.Input.Item)), nil
	},
		func(context.Context, *saga.Call[order], int) (int, error) { return 0, nil }, undoEach)
	ctx := t.Context()
	for _, c := range []struct {
		kind, args, want, key string
		compensating          bool
	}{
		{"saga:d/a", `{"saga":"x/1","id":"7","step":"a","version":3,"input":{"item":"pen"}}`, `{"receipt":2}`, "x%2F1/a", false},
		{"saga:d/a/undo", `{"saga":"x","id":"7","step":"a","version":3,"input":{"item":"pen"},"output":{"receipt":9}}`, "null", "x/a/undo", true},
		{"saga:d/a/undo", `{"saga":"x","id":"7","step":"a","version":3,"input":{"item":"pen"},"output":null}`, "null", "x/a/undo", true},
	} {
		got, err := w.kinds[c.kind](ctx, raw(c.args))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: got %s, %v, want %s", c.kind, got, err, c.want)
		}
		call := calls[len(calls)-1]
		if call.Key() != c.key || call.Compensating != c.compensating || call.Step != "a" || call.Version != 3 || call.Input.Item != "pen" || call.Attempt != 2 || call.MaxAttempts != 5 || call.Headers["a"] != "1" {
			t.Errorf("%s: got %+v", c.kind, call)
		}
	}
	if len(outs) != 2 || outs[0] == nil || outs[0].Receipt != 9 || outs[1] != nil {
		t.Errorf("outputs for compensations: got %+v", outs)
	}
	for says, args := range map[string]string{"args do not fit": `7`, "input does not fit": `{"id":"1","input":7}`} {
		if _, err := w.kinds["saga:d/a"](ctx, raw(args)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	if _, err := w.kinds["saga:d/a/undo"](ctx, raw(`{"id":"1","input":{},"output":7}`)); err == nil || !strings.Contains(err.Error(), "output does not fit") {
		t.Errorf("got %v", err)
	}
	for item, want := range map[string]string{"": "[]", "ab": "[0,0]"} {
		if got, err := w.kinds["saga:d/e"](ctx, raw(`{"id":"1","input":{"item":"`+item+`"}}`)); err != nil || string(got) != want {
			t.Errorf("units: got %s, %v, want %s", got, err, want)
		}
	}
}

func TestFail(t *testing.T) {
	t.Parallel()
	cause := errors.New("no stock")
	e := job.EndingOf(saga.Fail(cause))
	if e.Outcome != job.Discarded || !e.Refused || !errors.Is(&e, cause) {
		t.Errorf("got %+v", e)
	}
	if e := job.EndingOf(saga.Fail(nil)); e.Err == nil || !e.Refused {
		t.Errorf("without a reason: got %+v", e)
	}
	if e := job.EndingOf(job.Discard(cause)); e.Refused {
		t.Error("Discard is no refusal: it may have been done")
	}
}
