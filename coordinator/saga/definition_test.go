package saga_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

type order struct {
	Item string `json:"item"`
}

type paid struct {
	Receipt int `json:"receipt"`
}

func panics(tb testing.TB, what, says string, f func()) {
	tb.Helper()
	defer func() {
		tb.Helper()
		if p := fmt.Sprint(recover()); !strings.Contains(p, says) {
			tb.Errorf("%s: panic %q, want one with %q", what, p, says)
		}
	}()
	f()
}

func TestDefine(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("check.out_2-a", saga.Version(7), saga.Deadline(time.Minute), saga.Namespace(3))
	if d.Name() != "check.out_2-a" || d.Version() != 7 {
		t.Errorf("got %s, version %d", d.Name(), d.Version())
	}
	for _, name := range []string{"", "a b", "a/b", "a@1", "ä", strings.Repeat("a", 65)} {
		panics(t, name, "a name has 1 to 64", func() { saga.Define[order](name) })
	}
	panics(t, "version 0", "version 0 is outside", func() { saga.Define[order]("a", saga.Version(0)) })
	panics(t, "version too high", "outside 1 to 1048576", func() { saga.Define[order]("a", saga.Version(saga.VersionMax+1)) })
	panics(t, "no deadline", "deadline of 0s", func() { saga.Define[order]("a", saga.Deadline(0)) })
	panics(t, "a long deadline", "deadline of", func() { saga.Define[order]("a", saga.Deadline(saga.DurationMax+1)) })
	panics(t, "namespace 0", "namespace 0 is below 1", func() { saga.Define[order]("a", saga.Namespace(0)) })
}

// Every rule that a definition can break, each broken once.
func TestValidate(t *testing.T) {
	t.Parallel()
	other := saga.Define[order]("other")
	foreign := saga.Step[paid](other, "foreign")
	type def = *saga.Definition[order]
	for _, c := range []struct {
		says  string // "": nothing is wrong
		build func(d def)
	}{
		{"it has no step", func(def) {}},
		{"", func(d def) { saga.Step[paid](d, strings.Repeat("a", 64)) }},
		{"a name has 1 to 64", func(d def) { saga.Step[paid](d, "a b") }},
		{"there are two of that name", func(d def) { saga.Step[paid](d, "a"); saga.Timer(d, "a", time.Second) }},
		{"", func(d def) { many(d, saga.StepsMax) }},
		{"it has 63 steps, and 62 are the most", func(d def) { many(d, saga.StepsMax+1) }},
		{`After names step "foreign" of definition "other"`, func(d def) { saga.Step[paid](d, "a", saga.After(foreign)) }},
		{"it has 2 pivots", func(d def) {
			a := saga.Step[paid](d, "a", saga.Pivot())
			saga.Step[paid](d, "b", saga.Pivot(), saga.After(a))
		}},
		{`step "c" neither comes before the pivot "b" nor behind it`, func(d def) {
			a := saga.Step[paid](d, "a")
			saga.Step[paid](d, "b", saga.Pivot(), saga.After(a))
			saga.Step[paid](d, "c", saga.After(a))
		}},
		{"", func(d def) {
			a := saga.Step[paid](d, "a")
			b := saga.Step[paid](d, "b", saga.After(a))
			c := saga.Step[paid](d, "c", saga.After(b), saga.Pivot())
			saga.Step[paid](d, "d", saga.After(c))
			saga.Timer(d, "e", time.Second, saga.After(c))
		}},
		{"Expires is for signals", func(d def) { saga.Step[paid](d, "a", saga.Expires(time.Second)) }},
		{"Expires is for signals", func(d def) { saga.Timer(d, "a", time.Second, saga.Expires(time.Second)) }},
		{"Expires of 0s is outside 1 ms", func(d def) { saga.Signal[paid](d, "a", saga.Expires(0)) }},
		{"", func(d def) { saga.Signal[paid](d, "a", saga.Expires(saga.DurationMax), saga.ReadOnly()) }},
		{"a wait of 0s is outside 1 ms", func(d def) { saga.Timer(d, "a", 0) }},
		{"Queue has no meaning for a timer", func(d def) { saga.Timer(d, "a", time.Second, saga.Queue("q")) }},
		{"Pivot has no meaning for a signal", func(d def) { saga.Signal[paid](d, "a", saga.Pivot()) }},
		{"Undo has no meaning for a signal", func(d def) { saga.Signal[paid](d, "a", saga.Undo()) }},
		{"a pivot is not ReadOnly", func(d def) { saga.Step[paid](d, "a", saga.Pivot(), saga.ReadOnly()) }},
		{"a pivot happens as a whole", func(d def) { saga.Each[int, paid](d, "a", saga.Pivot()) }},
		{"Undo, and it has nothing to undo", func(d def) { saga.Step[paid](d, "a", saga.Pivot(), saga.Undo()) }},
		{"Undo, and it has nothing to undo", func(d def) { saga.Step[paid](d, "a", saga.ReadOnly(), saga.Undo()) }},
		{"Undo, and it has nothing to undo", func(d def) {
			saga.Step[paid](d, "b", saga.After(saga.Step[paid](d, "a", saga.Pivot())), saga.Undo())
		}},
		{"", func(d def) {
			saga.Step[paid](d, "a", saga.Undo(saga.Queue("q"), saga.MaxAttempts(1000), saga.Timeout(time.Millisecond), saga.Backoff(0, 0)))
		}},
		{"Undo: Priority is not for compensations", func(d def) { saga.Step[paid](d, "a", saga.Undo(saga.Priority(1))) }},
		{"Undo: After is not for compensations", func(d def) { saga.Step[paid](d, "a", saga.Undo(saga.After())) }},
		{"Undo: max attempts of 0", func(d def) { saga.Step[paid](d, "a", saga.Undo(saga.MaxAttempts(0))) }},
		{"a queue's name has 1 to 128 bytes, not 0", func(d def) { saga.Step[paid](d, "a", saga.Queue("")) }},
		{"not 129", func(d def) { saga.Step[paid](d, "a", saga.Queue(strings.Repeat("q", 129))) }},
		{"priority 5 is outside", func(d def) { saga.Step[paid](d, "a", saga.Priority(5)) }},
		{"max attempts of 1001", func(d def) { saga.Step[paid](d, "a", saga.MaxAttempts(1001)) }},
		{"timeout of 1µs is outside", func(d def) { saga.Step[paid](d, "a", saga.Timeout(time.Microsecond)) }},
		{"a backoff from 2s to 1s", func(d def) { saga.Step[paid](d, "a", saga.Backoff(2*time.Second, time.Second)) }},
		{"up to 24 days", func(d def) { saga.Step[paid](d, "a", saga.Backoff(0, 25*24*time.Hour)) }},
		{`its child "c" is of another namespace`, func(d def) { saga.Child(d, "a", saga.Define[int]("c", saga.Namespace(2))) }},
		{`its child "validate" contains "validate"`, func(d def) { saga.Child(d, "a", d) }},
		{`its child "between" contains "validate"`, func(d def) {
			between := saga.Define[int]("between")
			saga.Child(between, "back", d)
			saga.Child(d, "a", between)
		}},
		{"", func(d def) { saga.Child(d, "a", saga.Define[int]("c")) }},
	} {
		d := saga.Define[order]("validate")
		c.build(d)
		err := d.Validate()
		switch {
		case c.says == "" && err != nil:
			t.Errorf("got %v, want no fault", err)
		case c.says != "" && (!errors.Is(err, saga.ErrInvalid) || !strings.Contains(err.Error(), c.says)):
			t.Errorf("got %v, want an ErrInvalid with %q", err, c.says)
		case c.says != "" && strings.Contains(err.Error(), "\n"):
			t.Errorf("got %v, want one fault", err)
		}
	}
}

func many(d *saga.Definition[order], n int) {
	for i := range n {
		saga.Step[paid](d, fmt.Sprintf("s%d", i))
	}
}

func TestValidate_all(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("all")
	saga.Step[paid](d, "", saga.Queue(""), saga.MaxAttempts(-1))
	saga.Step[paid](d, "p", saga.Pivot())
	saga.Timer(d, "t", -1)
	err := d.Validate()
	var faults interface{ Unwrap() []error }
	if !errors.As(err, &faults) || len(faults.Unwrap()) != 6 {
		t.Errorf("got %v, want 6 faults", err)
	}
}

func checkout(declare func(d *saga.Definition[order])) (spec, digest string) {
	d := saga.Define[order]("checkout", saga.Version(2), saga.Deadline(10*time.Minute))
	declare(d)
	return saga.Spec(d)
}

func TestSpec(t *testing.T) {
	t.Parallel()
	child := saga.Define[int]("pack", saga.Version(4))
	got, digest := checkout(func(d *saga.Definition[order]) {
		reserve := saga.Step[paid](d, "reserve", saga.Queue("inventory"), saga.Priority(1), saga.MaxAttempts(3), saga.Timeout(2*time.Second), saga.Backoff(0, time.Second), saga.Undo(saga.MaxAttempts(9), saga.Timeout(time.Minute)))
		check := saga.Step[paid](d, "check", saga.ReadOnly())
		wait := saga.Timer(d, "wait", 90*time.Second, saga.After(reserve, check, reserve))
		charge := saga.Step[paid](d, "charge", saga.After(wait), saga.Pivot())
		saga.Each[int, paid](d, "tell", saga.After(charge))
		pack := saga.Child(d, "pack", child, saga.Queue("shipping"), saga.After(charge))
		saga.Signal[paid](d, "arrived", saga.After(pack), saga.Expires(time.Hour))
	})
	want := `{"name":"checkout","version":2,"deadline_ms":600000,"steps":[` +
		`{"name":"reserve","kind":"step","queue":"inventory","max_attempts":3,"timeout_ms":2000,"backoff_ms":0,"backoff_ms_max":1000,"priority":1,"undo":{"queue":"inventory","max_attempts":9,"timeout_ms":60000}},` +
		`{"name":"check","kind":"step","read_only":true,"queue":"default","max_attempts":5,"priority":2},` +
		`{"name":"wait","kind":"timer","after":["check","reserve"],"read_only":true,"wait_ms":90000},` +
		`{"name":"charge","kind":"step","after":["wait"],"pivot":true,"queue":"default","max_attempts":5,"priority":2},` +
		`{"name":"tell","kind":"each","after":["charge"],"queue":"default","max_attempts":25,"priority":2},` +
		`{"name":"pack","kind":"child","after":["charge"],"queue":"shipping","max_attempts":25,"priority":2,"child":{"name":"pack","version":4}},` +
		`{"name":"arrived","kind":"signal","after":["pack"],"read_only":true,"wait_ms":3600000}]}`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if len(digest) != 64 {
		t.Errorf("digest: got %q, want 64 hexadecimal digits", digest)
	}
}

// The digest is the same wherever the same is declared, and another where anything is not.
func TestSpec_digest(t *testing.T) {
	t.Parallel()
	_, first := checkout(func(d *saga.Definition[order]) {
		a := saga.Step[paid](d, "a")
		b := saga.Step[paid](d, "b")
		saga.Step[paid](d, "c", saga.After(a, b))
	})
	_, same := checkout(func(d *saga.Definition[order]) {
		b := saga.Step[paid](d, "b", saga.MaxAttempts(saga.AttemptsDefault))
		a := saga.Step[order](d, "a") // types are not part of it
		saga.Step[paid](d, "c", saga.After(b, a, b))
	})
	if first != same {
		t.Error("the digest tells declarations apart that mean the same")
	}
	_, changed := checkout(func(d *saga.Definition[order]) {
		a := saga.Step[paid](d, "a")
		saga.Step[paid](d, "b")
		saga.Step[paid](d, "c", saga.After(a))
	})
	if first == changed {
		t.Error("the digest does not tell what a step needs")
	}
}

func TestDifference(t *testing.T) {
	t.Parallel()
	ours, _ := checkout(func(d *saga.Definition[order]) {
		a := saga.Step[paid](d, "a", saga.MaxAttempts(7))
		saga.Step[paid](d, "c", saga.After(a), saga.Timeout(time.Second), saga.Undo(saga.Queue("other")))
	})
	theirs, _ := checkout(func(d *saga.Definition[order]) {
		saga.Step[paid](d, "a")
		saga.Step[paid](d, "b")
		saga.Step[paid](d, "c")
	})
	got := saga.Difference(ours, theirs)
	want := []string{
		"step a: max_attempts is 7, was 5",
		"step b is missing",
		`step c: after is ["a"], was none`,
		"step c: timeout_ms is 1000, was none",
		`step c: undo is {"max_attempts":25,"queue":"other"}, was {"max_attempts":25,"queue":"default"}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := saga.Difference(ours, ours); len(got) != 0 {
		t.Errorf("got %q of the same, want nothing", got)
	}
}

func TestStep_late(t *testing.T) {
	t.Parallel()
	d := saga.Define[order]("late")
	saga.Step[paid](d, "a")
	if err := d.Validate(); err != nil {
		t.Fatal(err)
	}
	saga.Step[paid](d, "b") // Validate does not seal
	saga.Spec(d)
	panics(t, "a step after the first use", "declared after the definition was used", func() { saga.Step[paid](d, "c") })
}
