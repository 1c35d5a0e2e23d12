package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// TestSagaHints has every error of the saga commands say what to do next.
func TestSagaHints(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	start(t, url, "serve")
	newCheckout(t, pool).serve(t, pool, "reserve", "charge", "label", "ship", "thank")
	startSaga(t, url, "over", `{}`, saga.StateSucceeded)
	startSaga(t, url, "stuck", `{"break": "thank"}`, saga.StateStuck)
	why := []string{"--reason", "why", "--yes"}
	for _, c := range []struct {
		args []string // after "saga"
		code int
		want []string
	}{
		{[]string{"show", "nobody"}, exitNotFound, []string{"saga nobody: not found", `"pawl saga list"`}},
		{[]string{"list", "--before", "nobody"}, exitNotFound, []string{"nobody", "not found", `"pawl saga list"`}},
		{[]string{"force", "nobody"}, exitNotFound, []string{"saga nobody: not found", `"pawl saga list"`}},
		{[]string{"skip", "stuck", "boat", "--as", "done"}, exitNotFound, []string{"no step boat", `"pawl saga show ID"`}},
		{[]string{"force", "over"}, exitFailed, []string{"has ended", "succeeded", `"pawl saga show ID" tells how it went`}},
		{[]string{"skip", "over", "ship", "--as", "done"}, exitFailed, []string{"has ended", "succeeded", `"pawl saga show ID" tells how it went`}},
		{[]string{"skip", "stuck", "label", "--as", "done"}, exitFailed, []string{"label", "is not stuck", `"pawl saga show ID" says what it waits for`}},
		{[]string{"skip", "stuck", "thank", "--as", "not-done"}, exitFailed, []string{"thank", "must be done", "skip it as done, or force the saga"}},
		{[]string{"start", "nope"}, exitNotFound, []string{"nope", "not registered", `"pawl saga definitions"`}},
		{[]string{"start", "checkout", "--version", "7"}, exitNotFound, []string{"version 7", "not registered", `"pawl saga definitions"`}},
		{[]string{"start", "checkout", "--id", "over", "--input", "[]"}, exitFailed, []string{"id is taken", "another --id"}},
		{[]string{"cancel", "stuck"}, exitFailed, []string{"has passed its pivot", "It goes forward"}},
	} {
		args := append([]string{"saga"}, c.args...)
		switch c.args[0] {
		case "force", "skip":
			args = append(args, why...)
		case "cancel":
			args = append(args, why[:2]...)
		}
		refused(t, c.code, url, args, c.want...)
	}
	for _, verb := range []string{"cancel", "retry", "force"} {
		refused(t, exitUsage, url, []string{"saga", verb, "stuck"}, "--reason")
		refused(t, exitUsage, url, []string{"saga", verb, "stuck", "--reason", " "}, "--reason is empty: whoever looks at this later wants to know")
	}
	if s := mustJSON[saga.Story](t, exitOK, url, "saga", "show", "stuck"); s.State != saga.StateStuck || s.Steps[4].State != saga.StepStuck {
		t.Errorf("what was refused was done: %+v", s)
	}
}

// TestSagaBehindPivot has a step stuck that must be done: it is not offered to undo the saga, and each way on that is offered leads on.
func TestSagaBehindPivot(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	start(t, url, "serve")
	c := newCheckout(t, pool)
	c.serve(t, pool, "reserve", "charge", "label", "ship", "thank")
	for _, id := range []string{"retry", "skip", "force"} {
		startSaga(t, url, id, `{"break": "thank"}`, saga.StateStuck)
	}
	out := must(t, exitOK, url, "saga", "show", "retry")
	mentions(t, out, "thank used up its attempts, though it must be done: the saga has passed its pivot", "out of order")
	if strings.Contains(out, "not-done") {
		t.Errorf("a step behind the pivot cannot be skipped as not done, and that is offered:\n%s", out)
	}
	must(t, exitOK, url, append(advised(t, url, "force", "saga force"), "--yes")...)
	if s := awaitSaga(t, url, "force", saga.StateForced); s.Steps[4].State != saga.StepStuck || s.Steps[3].State != saga.StepSucceeded {
		t.Errorf("forced: %+v", s.Steps)
	}
	must(t, exitOK, url, append(advised(t, url, "skip", "saga skip"), "--yes")...)
	if s := awaitSaga(t, url, "skip", saga.StateSucceeded); s.Steps[4].State != saga.StepSkipped || inline(s.Steps[4].Output) != `{"done":"by-hand"}` {
		t.Errorf("skipped: %+v", s.Steps)
	}
	must(t, exitOK, url, append(advised(t, url, "retry", "saga retry"), "--actor", "mia")...) // broken still: it is stuck again
	retried := func(e saga.Event) bool {
		return e.What == "retried" && e.Actor == "mia" && strings.Contains(string(e.Detail), "because")
	}
	if s := awaitSaga(t, url, "retry", saga.StateStuck); !slices.ContainsFunc(s.Events, retried) {
		t.Errorf("not in the history: %+v", s.Events)
	}
	c.mended.Store(true)
	must(t, exitOK, url, advised(t, url, "retry", "saga retry")...)
	if s := awaitSaga(t, url, "retry", saga.StateSucceeded); s.Steps[4].State != saga.StepSucceeded || inline(s.Steps[4].Output) != `{"done":"thank"}` {
		t.Errorf("retried: %+v", s.Steps)
	}
}
