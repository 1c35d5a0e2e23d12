package sagatest_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/coordinator/saga/sagatest"
	"github.com/pawl-dev/pawl/db/dbtest"
)

var write = flag.Bool("write", false, "write what comes of the stories into testdata, to be read by a person")

// TestStories acts out testdata. A line is a command and, behind the arrow, what comes of it; lines below it that are set in are what it tells.
//
//	saga NAME[@VERSION] [deadline TIME]
//	step|tx|each|child|timer|signal NAME [of SAGA] [lasts TIME] [units N] [after A,B] [pivot] [readonly] [attempts N] [undo N] [expires TIME] [holds LOCK] [own]
//	                               of the saga above. tx: by a transactional handler. own: the version's own handler, else that of the first version serves all
//	register                       the saga above, and its handlers
//	start ID NAME[@VERSION] [INPUT] [deadline TIME]   in a transaction, which "lost start" rolls back
//	fail|refuse STEP [N times]     the next attempts at it
//	snooze STEP TIME
//	crash STEP before|after|committed
//	within STEP COMMAND            a command that is given while the step runs
//	run                            what can be done
//	advance TIME
//	cancel|retry|force ID
//	skip ID STEP done|not-done [OUTPUT]
//	send ID SIGNAL VALUE
//	history ID
//	effects                        what handlers did, in order, those of transactions that committed; #2 is the second attempt
//	alerts                         for operators, in the outbox
//
// Attempts that fail go again at once. ID is of whom is spoken, the saga's input its own id unless it is given.
func TestStories(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			pool := dbtest.New(t)
			if _, err := pool.Exec(t.Context(), "CREATE TABLE effect (n int GENERATED ALWAYS AS IDENTITY, what text)"); err != nil {
				t.Fatal(err)
			}
			s := &story{t: t, pool: pool, b: sagatest.New(t, pool), defs: map[string]*saga.Definition[string]{}, handled: map[string]bool{}, within: map[string][]string{}}
			var got []string
			for line := range strings.Lines(string(text)) {
				line = strings.TrimSuffix(line, "\n")
				switch {
				case strings.HasPrefix(line, "\t"): // what came of the last
					continue
				case line == "" || line[0] == '#':
					got = append(got, line)
					continue
				}
				command, _, _ := strings.Cut(line, "→")
				command = strings.TrimRight(command, " ")
				result, told := s.act(strings.Fields(command))
				if result != "" {
					command = fmt.Sprintf("%-40s → %s", command, result)
				}
				got = append(append(got, command), told...)
			}
			if out := strings.Join(got, "\n") + "\n"; out != string(text) && *write {
				if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if out != string(text) {
				t.Errorf("%s: got\n%s", file, difference(strings.Split(string(text), "\n"), strings.Split(out, "\n")))
			}
		})
	}
}

// difference shows where two texts part.
func difference(want, got []string) string {
	i := 0
	for i < len(want) && i < len(got) && want[i] == got[i] {
		i++
	}
	return strings.Join(got[:i], "\n") + "\n≠ want\n" + strings.Join(want[i:min(i+12, len(want))], "\n") + "\n≠ got\n" + strings.Join(got[i:min(i+12, len(got))], "\n")
}

type story struct {
	t       *testing.T
	pool    *pgxpool.Pool
	b       *sagatest.Bench
	def     *saga.Definition[string]
	defs    map[string]*saga.Definition[string] // by name@version
	steps   map[string]saga.AnyStep             // of def
	handle  []func()                            // registers handlers of def's steps
	handled map[string]bool                     // steps that have a handler
	within  map[string][]string
}

func (s *story) act(words []string) (result string, told []string) {
	ctx := s.t.Context()
	switch verb, args := words[0], words[1:]; verb {
	case "saga":
		s.define(args)
	case "step", "tx", "each", "child", "timer", "signal":
		s.declare(verb, args[0], options(args[1:]))
	case "register":
		return s.register(), nil
	case "start", "lost":
		return s.start(verb == "lost", args), nil
	case "fail", "refuse":
		n := 1
		if len(args) > 1 {
			n = s.number(args[1])
		}
		for range n {
			if verb == "fail" {
				s.b.FailAt(args[0], errors.New("no answer"))
			} else {
				s.b.RefuseAt(args[0], errors.New("no"))
			}
		}
	case "snooze":
		s.b.FailAt(args[0], job.Snooze(s.span(args[1])))
	case "crash":
		s.b.CrashAt(args[0], map[string]sagatest.Point{"before": sagatest.BeforeAction, "after": sagatest.AfterAction, "committed": sagatest.AfterCommit}[args[1]])
	case "within":
		s.within[args[0]] = args[1:]
	case "run":
		s.b.Run(ctx)
	case "advance":
		s.b.Advance(s.span(args[0]))
	case "cancel":
		return s.outcome(saga.Cancel(ctx, s.pool, 1, args[0], "ann", "changed her mind")), nil
	case "retry":
		return s.outcome(saga.Retry(ctx, s.pool, 1, args[0], "bob", "it is mended")), nil
	case "force":
		return s.outcome(saga.Force(ctx, s.pool, 1, args[0], "bob", "enough")), nil
	case "skip":
		var out json.RawMessage
		if len(args) > 3 {
			out = json.RawMessage(strconv.Quote(args[3]))
		}
		return s.outcome(saga.Skip(ctx, s.pool, 1, args[0], args[1], saga.Verdict(args[2]), out, "bob", "he looked")), nil
	case "send":
		return s.outcome(saga.SendByName(ctx, s.pool, 1, args[0], args[1], json.RawMessage(strconv.Quote(args[2])))), nil
	case "history":
		for line := range strings.SplitSeq(s.b.History(args[0]), "\n") {
			told = append(told, "\t"+line)
		}
		return "", told
	case "effects":
		return s.list("SELECT what FROM effect ORDER BY n"), nil
	case "alerts":
		return s.list("SELECT convert_from(e.payload, 'UTF8')::json->>'step' FROM pawl.outbox_event e WHERE e.topic = 'pawl.saga' AND e.type = 'saga.stuck' ORDER BY e.id"), nil
	default:
		s.t.Fatalf("no command is called %s", verb)
	}
	return "", nil
}

func (s *story) list(sql string) string {
	rows, err := s.pool.Query(s.t.Context(), sql)
	if err != nil {
		s.t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		s.t.Fatal(err)
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

// options reads words that are followed by a word, and those that are not.
func options(words []string) map[string]string {
	out := map[string]string{}
	for i := 0; i < len(words); i++ {
		if slices.Contains([]string{"pivot", "readonly", "own"}, words[i]) || i+1 == len(words) {
			out[words[i]] = "yes"
			continue
		}
		out[words[i]] = words[i+1]
		i++
	}
	return out
}

func (s *story) number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *story) span(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *story) define(args []string) {
	name, version, _ := strings.Cut(args[0], "@")
	var opts []saga.Option
	if version != "" {
		opts = append(opts, saga.Version(s.number(version)))
	}
	if d := options(args[1:])["deadline"]; d != "" {
		opts = append(opts, saga.Deadline(s.span(d)))
	}
	s.def, s.steps, s.handle = saga.Define[string](name, opts...), map[string]saga.AnyStep{}, nil
}

func (s *story) register() string {
	if err := s.def.Register(s.t.Context(), s.pool); err != nil {
		return s.outcome(err)
	}
	for _, f := range s.handle {
		f()
	}
	s.defs[fmt.Sprintf("%s@%d", s.def.Name(), s.def.Version())] = s.def
	return "registered"
}

func (s *story) start(lost bool, args []string) string {
	if lost {
		args = args[1:]
	}
	name := args[1]
	if !strings.Contains(name, "@") {
		name += "@1"
	}
	input, opts := args[0], []saga.StartOption{saga.ID(args[0])}
	for rest := args[2:]; len(rest) > 0; rest = rest[1:] {
		if rest[0] == "deadline" {
			opts = append(opts, saga.DeadlineIn(s.span(rest[1])))
			break
		}
		input = rest[0]
	}
	result := ""
	err := pgx.BeginFunc(s.t.Context(), s.pool, func(tx pgx.Tx) error {
		got, err := s.defs[name].Start(s.t.Context(), tx, input, opts...)
		result = "started"
		if got.Duplicate {
			result = "is there"
		}
		if lost && err == nil {
			return errors.New("rolled back")
		}
		return err
	})
	if err != nil {
		return s.outcome(err)
	}
	return result
}

func (s *story) outcome(err error) string {
	if err == nil {
		return "done"
	}
	if changed := (*saga.ChangedError)(nil); errors.As(err, &changed) {
		return "changed: " + strings.Join(changed.Difference, "; ")
	}
	for text, one := range map[string]error{
		"too late": saga.ErrTooLate, "has ended": saga.ErrEnded, "not waiting": saga.ErrNotWaiting, "not found": saga.ErrNotFound, "conflict": saga.ErrConflict, "unregistered": saga.ErrUnregistered,
	} {
		if errors.Is(err, one) {
			return text
		}
	}
	return err.Error()
}

// declare adds a step to the saga at hand, and what registers its handlers.
func (s *story) declare(kind, name string, o map[string]string) {
	opts := []saga.StepOption{}
	if kind != "timer" && kind != "signal" {
		opts = append(opts, saga.Backoff(0, 0))
	}
	for word, value := range o {
		switch word {
		case "after":
			for a := range strings.SplitSeq(value, ",") {
				opts = append(opts, saga.After(s.steps[a]))
			}
		case "pivot":
			opts = append(opts, saga.Pivot())
		case "readonly":
			opts = append(opts, saga.ReadOnly())
		case "attempts":
			opts = append(opts, saga.MaxAttempts(s.number(value)))
		case "undo":
			opts = append(opts, saga.Undo(saga.Backoff(0, 0), saga.MaxAttempts(s.number(value))))
		case "expires":
			opts = append(opts, saga.Expires(s.span(value)))
		case "of", "lasts", "units", "own", "holds":
		default:
			s.t.Fatalf("step %s: no option is called %s", name, word)
		}
	}
	def := s.def
	first := func() bool { // else another version's handler serves it
		key := def.Name() + "/" + name
		was := s.handled[key]
		s.handled[key] = true
		return !was
	}
	undoable := o["readonly"] == "" && o["pivot"] == "" && !strings.Contains(o["after"], "sure") // steps behind the pivot are called sure…
	undoable = undoable && !strings.HasPrefix(name, "sure")
	switch kind {
	case "step", "tx":
		st := saga.Step[string](def, name, opts...)
		s.steps[name] = st
		s.handle = append(s.handle, func() {
			if !first() {
				if o["own"] == "" {
					return
				}
				st = st.AtVersion()
			}
			s.handleStep(st, kind == "tx", undoable, o)
		})
	case "timer":
		s.steps[name] = saga.Timer(def, name, s.span(o["lasts"]), opts...)
	case "signal":
		s.steps[name] = saga.Signal[string](def, name, opts...)
	case "each":
		st := saga.Each[int, string](def, name, opts...)
		s.steps[name] = st
		var undo func(context.Context, *saga.Call[string]) error
		if undoable {
			undo = func(ctx context.Context, c *saga.Call[string]) error { return note(ctx, s.pool, c) }
		}
		s.handle = append(s.handle, func() {
			saga.HandleEach(s.b, st, func(context.Context, *saga.Call[string]) ([]int, error) {
				return make([]int, s.number(o["units"])), nil
			},
				func(ctx context.Context, c *saga.Call[string], _ int) (string, error) {
					return fmt.Sprint(name, " ", c.Unit), note(ctx, s.pool, c)
				}, undo)
		})
	case "child":
		st := saga.Child(def, name, s.defs[o["of"]+"@1"], opts...)
		s.steps[name] = st
		var undo func(context.Context, *saga.Call[string], *saga.Instance) error
		if undoable {
			undo = func(ctx context.Context, c *saga.Call[string], child *saga.Instance) error {
				if child == nil {
					return errors.New("no child")
				}
				return note(ctx, s.pool, c)
			}
		}
		s.handle = append(s.handle, func() {
			saga.HandleChild(s.b, st, func(_ context.Context, c *saga.Call[string]) (string, error) { return "child of " + c.Saga, nil }, undo)
		})
	}
}

func (s *story) handleStep(st *saga.StepOf[string, string], inTx, undoable bool, o map[string]string) {
	act := func(ctx context.Context, on saga.DB, c *saga.Call[string]) (string, error) {
		if words := s.within[c.Step]; words != nil {
			delete(s.within, c.Step)
			if result, _ := s.act(words); result != "done" {
				return "", fmt.Errorf("%s: %s", words[0], result)
			}
		}
		out := c.Step
		if o["own"] != "" {
			out += fmt.Sprintf(" of version %d", c.Version)
		}
		return out, note(ctx, on, c)
	}
	undo := func(ctx context.Context, on saga.DB, c *saga.Call[string], out *string) error {
		if out == nil {
			return note(ctx, on, c, "unknown")
		}
		return note(ctx, on, c)
	}
	if !inTx {
		var back func(context.Context, *saga.Call[string], *string) error
		if undoable {
			back = func(ctx context.Context, c *saga.Call[string], out *string) error { return undo(ctx, s.pool, c, out) }
		}
		saga.Handle(s.b, st, func(ctx context.Context, c *saga.Call[string]) (string, error) { return act(ctx, s.pool, c) }, back)
		return
	}
	var back func(context.Context, pgx.Tx, *saga.Call[string], *string) error
	if undoable {
		back = func(ctx context.Context, tx pgx.Tx, c *saga.Call[string], out *string) error {
			return undo(ctx, tx, c, out)
		}
	}
	saga.HandleTx(s.b, st, func(ctx context.Context, tx pgx.Tx, c *saga.Call[string]) (string, error) {
		if name := o["holds"]; name != "" {
			held := (*saga.HeldError)(nil)
			if err := saga.Hold(ctx, tx, c, name); errors.As(err, &held) {
				return "", saga.Fail(held)
			} else if err != nil {
				return "", err
			}
		}
		return act(ctx, tx, c)
	}, back)
}

// note writes down that a handler did its work.
func note(ctx context.Context, on saga.DB, c *saga.Call[string], more ...string) error {
	what := c.Key()
	if c.Attempt > 1 {
		what += fmt.Sprint("#", c.Attempt)
	}
	for _, m := range more {
		what += " " + m
	}
	_, err := on.Exec(ctx, "INSERT INTO effect (what) VALUES ($1)", what)
	return err
}
