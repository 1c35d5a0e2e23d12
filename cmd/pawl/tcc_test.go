package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/tcc"
	"github.com/pawl-dev/pawl/worker"
)

type tccHold struct {
	Item string `json:"item"`
}

var (
	tccGoods = tcc.Define[tccHold]("goods.hold", tcc.Queue("goods"), tcc.MaxAttempts(2), tcc.Backoff(0, 0))
	tccMoney = tcc.Define[tccHold]("money.hold", tcc.Queue("money"), tcc.MaxAttempts(2), tcc.Backoff(0, 0))
)

// beginTCC begins a transaction, and tries a branch of each kind.
func beginTCC(t *testing.T, pool *pgxpool.Pool, id string, kinds ...*tcc.Kind[tccHold]) *tcc.Transaction {
	t.Helper()
	tx, err := tcc.Begin(t.Context(), pool, tcc.ID(id), tcc.Timeout(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		if err := k.Try(t.Context(), tx, tccHold{"book"}, func(context.Context, barrier.Branch) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	return tx
}

// serveTCC runs a worker that confirms and cancels what it can: no money before it is mended.
func serveTCC(t *testing.T, pool *pgxpool.Pool, mended *atomic.Bool) {
	t.Helper()
	w, err := worker.New(pool, worker.Config{Queues: map[string]int{"goods": 2, "money": 2}})
	if err != nil {
		t.Fatal(err)
	}
	done := func(context.Context, *tcc.Call[tccHold]) error { return nil }
	tcc.Handle(w, tccGoods, done, done)
	tcc.Handle(w, tccMoney, func(context.Context, *tcc.Call[tccHold]) error {
		if !mended.Load() {
			return errors.New("the bank is closed")
		}
		return nil
	}, done)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func awaitTCC(t *testing.T, url, id string, state tcc.State) (s tcc.Story) {
	t.Helper()
	eventually(t, func() bool {
		s = mustJSON[tcc.Story](t, exitOK, url, "tcc", "show", id)
		return s.State == state
	}, func() string {
		return fmt.Sprintf("%s to be %s:\n%s", id, state, must(t, exitOK, url, "tcc", "show", id))
	})
	return s
}

// A branch that is stuck is shown, with why, and brought on as is said there.
func TestTCC_stuck(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	tx := beginTCC(t, pool, "order 1", tccGoods, tccMoney)
	mentions(t, must(t, exitOK, url, "tcc", "show", "order 1"), "transaction order 1  active for", "WAITS", "cancelled at its deadline, in 59m", "pawl tcc cancel 'order 1' --reason 'WHY'", "money.hold.2  active", `{"item":"book"}`)
	refused(t, exitFailed, url, []string{"tcc", "retry", "order 1", "--reason", "x"}, "no branch", "stuck", `"pawl tcc show ID"`)
	if err := tx.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	mentions(t, must(t, exitOK, url, "tcc", "show", "order 1"), "transaction order 1  confirming for", "NOT SERVED  goods.hold.1 waits in queue goods", "NOT SERVED  money.hold.2 waits in queue money", "no worker serves it; in line for")

	var mended atomic.Bool
	serveTCC(t, pool, &mended)
	awaitTCC(t, url, "order 1", tcc.Stuck)
	eventually(t, func() bool {
		return mustJSON[tcc.Story](t, exitOK, url, "tcc", "show", "order 1").Branches[0].State == tcc.Confirmed
	}, func() string { return "the goods" })
	mentions(t, must(t, exitOK, url, "sweep", "tcc"), "sweep tcc")
	out := must(t, exitOK, url, "tcc", "show", "order 1")
	mentions(t, out, "transaction order 1  STUCK, to confirm for", "STUCK       money.hold.2 could not be confirmed: it used up its attempts (2 of 2); the last error: the bank is closed", "goods.hold.1  confirmed  goods  1/2", "money.hold.2  STUCK      money  2/2",
		"stuck           money.hold.2  job ", "decided   to confirm, ")
	if strings.Contains(out, "NOT SERVED") || strings.Contains(out, "no live worker") {
		t.Errorf("it is served:\n%s", out)
	}
	stuck := awaitTCC(t, url, "order 1", tcc.Stuck).Branches[1]
	mentions(t, must(t, exitOK, url, "job", "show", id64(stuck.JobID)), "tcc:money.hold/confirm", "the bank is closed")
	a := pawl(t, url, "tcc", "list")
	mentions(t, a.out, "order 1  STUCK  1/2", "confirm, ", "initiator")
	mentions(t, a.err, `1 of these is stuck and needs a person: "pawl tcc show ID"`)

	refused(t, exitUsage, url, []string{"tcc", "retry", "order 1"}, "--reason")
	refused(t, exitUsage, url, []string{"tcc", "retry", "order 1", "--reason", " "}, "--reason is empty")
	refused(t, exitFailed, url, []string{"tcc", "cancel", "order 1", "--reason", "x"}, "confirmed", "nobody can take that back")
	refused(t, exitNotFound, url, []string{"tcc", "retry", "order 2", "--reason", "x"}, "order 2", "not found", "pawl tcc list")
	refused(t, exitNotFound, url, []string{"tcc", "show", "order 2"}, "order 2", "not found", "pawl tcc list")

	mended.Store(true)
	mentions(t, out, "      pawl tcc retry 'order 1' --reason 'WHY'\n")
	type acted struct {
		ID, Did    string
		Was, State tcc.State
	}
	if got := mustJSON[acted](t, exitOK, url, "tcc", "retry", "order 1", "--reason", "it is open again", "--actor", "ada"); got.ID != "order 1" || got.Did != "retried" || got.Was != tcc.Stuck || got.State == tcc.Stuck {
		t.Errorf("got %+v", got)
	}
	s := awaitTCC(t, url, "order 1", tcc.Confirmed)
	if i := slices.IndexFunc(s.Events, func(e tcc.Event) bool { return e.What == "retried" }); i < 0 || s.Events[i].Actor != "ada" || s.Events[i].Branch != "money.hold.2" || s.Events[i].JobID == stuck.JobID {
		t.Errorf("got %+v", s.Events)
	}
	mentions(t, must(t, exitOK, url, "tcc", "show", "order 1"), "transaction order 1  confirmed", "retried         money.hold.2  by ada; it is open again; job ")
	refused(t, exitFailed, url, []string{"tcc", "retry", "order 1", "--reason", "x"}, "no branch", "stuck")
}

func TestTCCCancel(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	tx := beginTCC(t, pool, "order:1", tccGoods)
	cancel := []string{"tcc", "cancel", "order:1", "--reason", "it hangs", "--actor", "ada"}
	mentions(t, must(t, exitOK, url, cancel...), "transaction order:1 was active, and is cancelling now: cancelling goods.hold.1\n")
	mentions(t, must(t, exitOK, url, cancel...), "transaction order:1 is left as it is: it is cancelling now")
	if err := tx.Confirm(t.Context()); !errors.Is(err, tcc.ErrCancelled) {
		t.Errorf("its initiator: %v", err)
	}
	mentions(t, must(t, exitOK, url, "tcc", "show", "order:1"), "because     it was cancelled by ada: it hangs, ", "cancelling                    by ada; it hangs")
	serveTCC(t, pool, new(atomic.Bool))
	awaitTCC(t, url, "order:1", tcc.Cancelled)
	refused(t, exitNotFound, url, []string{"tcc", "cancel", "order:2", "--reason", "x"}, "order:2", "not found")
}

func TestTCCList(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	mentions(t, pawl(t, url, "tcc", "list").err, "no such transactions")
	type listing struct {
		Transactions []tcc.Summary
		Next         string
	}
	if out := must(t, exitOK, url, "--json", "tcc", "list"); !strings.Contains(out, `"transactions": []`) {
		t.Errorf("got %s", out)
	}
	for i := range 5 {
		tx := beginTCC(t, pool, fmt.Sprint("order:", i), tccGoods)
		if i == 3 {
			if err := tx.Confirm(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := beginTCC(t, pool, "empty").Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for before := []string{}; ; {
		l := mustJSON[listing](t, exitOK, url, append([]string{"tcc", "list", "--limit", "2"}, before...)...)
		for _, s := range l.Transactions {
			got = append(got, s.ID+" "+string(s.State))
		}
		if before = []string{"--before", l.Next}; l.Next == "" {
			break
		}
	}
	if want := []string{"empty confirmed", "order:4 active", "order:3 confirming", "order:2 active", "order:1 active", "order:0 active"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	mentions(t, pawl(t, url, "tcc", "list", "--limit", "2").err, "there may be more: --before order:4\n")
	for flag, want := range map[string]int{"--open": 5, "--state=active": 4, "--state=confirmed": 1, "--state=stuck": 0} {
		if l := mustJSON[listing](t, exitOK, url, "tcc", "list", flag); len(l.Transactions) != want {
			t.Errorf("%s: %d transactions, want %d", flag, len(l.Transactions), want)
		}
	}
	mustExec(t, pool, "UPDATE pawl.tcc SET deadline_at = clock_timestamp() - interval '1 minute' WHERE id = 'order:1'")
	mentions(t, pawl(t, url, "tcc", "list").err, "1 of these should have been cancelled at the deadline", "pawl serve")
	mentions(t, must(t, exitOK, url, "tcc", "show", "order:1"), "OVERDUE", "pawl serve")
	refused(t, exitUsage, url, []string{"tcc", "list", "--limit", "0"}, "--limit 0 is outside 1 to 1,000")
	refused(t, exitUsage, url, []string{"tcc", "list", "--state", "nope"}, `"nope" is none of active confirming`)
	refused(t, exitNotFound, url, []string{"tcc", "list", "--before", "nope"}, "nope", "not found")
	mustExec(t, pool, "INSERT INTO pawl.namespace (ns, name) VALUES (7, 'billing')")
	mentions(t, pawl(t, url, "tcc", "list", "--namespace", "billing").err, "no such transactions")
}

// TestTCCStory compares what is printed of transactions with testdata/tcc; "go test -run TestTCCStory -update" writes it.
func TestTCCStory(t *testing.T) {
	t.Parallel()
	begin := time.Date(2027, 1, 31, 2, 50, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { v := begin.Add(d); return &v }
	branch := func(name string, state tcc.State, jobID int64, attempt int, err string) tcc.Branch {
		return tcc.Branch{Name: name, Queue: strings.Split(name, ".")[0], State: state, RegisteredAt: begin, Args: json.RawMessage(`{"item": "book"}`), JobID: jobID, Attempt: attempt, MaxAttempts: 25, Error: err, Served: true}
	}
	story := func(state tcc.State, decision barrier.Op, reason string, branches ...tcc.Branch) *tccStory {
		s := &tcc.Story{Summary: tcc.Summary{ID: "order:4711", State: state, BegunAt: begin, BegunBy: "shop@web-1", Deadline: begin.Add(30 * time.Second), Decision: decision, Reason: reason}, Branches: branches}
		s.Events = []tcc.Event{{At: begin, What: "begun", Actor: "shop@web-1"}}
		for _, b := range branches {
			s.Events = append(s.Events, tcc.Event{At: *at(2 * time.Millisecond), What: "registered", Branch: b.Name})
		}
		if decision != "" {
			s.DecidedAt, s.DecidedBy = at(time.Second), "initiator"
			s.Events = append(s.Events, tcc.Event{At: *s.DecidedAt, What: map[barrier.Op]string{barrier.Confirm: "confirming", barrier.Cancel: "cancelling"}[decision], Actor: "initiator", Reason: reason})
		}
		return &tccStory{Story: s, page: page{now: begin.Add(17 * time.Minute), zone: time.UTC, width: pageWidth}, jobs: map[int64]*job.Story{}}
	}
	jobOf := func(id int64, state job.State, when time.Duration) *job.Story {
		return &job.Story{Summary: job.Summary{ID: id, State: state, Attempt: 3, MaxAttempts: 25, At: *at(when)}, Attempts: []job.Attempt{
			{Number: 2, Outcome: job.Failed, Detail: json.RawMessage(`{"error": "out of order"}`)}, {Number: 3, Host: "pay-2", PID: 77},
		}}
	}
	const refused = "post https://bank.example/holds/4711: dial tcp 10.0.0.7:443: connect:\n\x1b[2Jconnection refused"
	stuck := story(tcc.Stuck, barrier.Confirm, "", branch("goods.hold.1", tcc.Confirmed, 990, 1, ""), branch("payments.hold.2", tcc.Stuck, 991, 25, refused), branch("points.hold.3", tcc.Stuck, 992, 0, ""), branch("mail.4", tcc.Stuck, 993, 3, ""))
	stuck.jobs[991], stuck.jobs[993] = jobOf(991, job.StateDiscarded, time.Minute), jobOf(993, job.StateCancelled, time.Minute)
	stuck.jobs[993].Cancels = []job.Cancellation{{Reason: "by mistake"}}
	stuck.Branches[3].Served = false
	stuck.Events = append(stuck.Events, tcc.Event{At: *at(2 * time.Second), What: "confirmed", Branch: "goods.hold.1"}, tcc.Event{At: *at(9 * time.Minute), What: "stuck", Branch: "payments.hold.2", JobID: 991},
		tcc.Event{At: *at(11 * time.Minute), What: "retried", Branch: "payments.hold.2", Actor: "ada", Reason: "the bank is back", JobID: 994})

	late := story(tcc.Active, "", "", branch("goods.hold.1", tcc.Active, 0, 0, ""))
	young := story(tcc.Active, "", "")
	young.Deadline, young.flags = young.now.Add(20*time.Second), " --namespace 7"
	going := story(tcc.Cancelling, barrier.Cancel, "its deadline has passed", branch("goods.hold.1", tcc.Cancelling, 1, 3, "out of order"), branch("payments.hold.2", tcc.Cancelling, 2, 3, "out of order"),
		branch("points.hold.3", tcc.Cancelling, 3, 3, "out of order"), branch("mail.4", tcc.Cancelling, 4, 1, ""), branch("mail.5", tcc.Cancelling, 5, 1, ""))
	going.DecidedBy, going.Events[6].Actor = "pawl", "pawl"
	going.jobs = map[int64]*job.Story{
		1: jobOf(1, job.StateRunning, 16*time.Minute), 2: jobOf(2, job.StateRetrying, 18*time.Minute), 3: jobOf(3, job.StateRetrying, 10*time.Minute), 4: jobOf(4, job.StateAvailable, 15*time.Minute), 5: jobOf(5, job.StateAvailable, 15*time.Minute),
	}
	going.Branches[3].Served = false
	done := story(tcc.Cancelled, barrier.Cancel, "wrong order", branch("goods.hold.1", tcc.Cancelled, 1, 1, ""))
	done.DecidedBy, done.Branches[0].EndedAt = "ada", at(2*time.Second)
	many := story(tcc.Stuck, barrier.Cancel, "its initiator cancelled it")
	for i := range 12 {
		many.Branches = append(many.Branches, branch(fmt.Sprintf("goods.%d", i+1), tcc.Stuck, 0, 25, "full"))
		for range 20 {
			many.Events = append(many.Events, tcc.Event{At: *at(time.Duration(i) * time.Second), What: "retried", Branch: fmt.Sprintf("goods.%d", i+1), Actor: "ada", Reason: "again", JobID: 1})
		}
	}
	for name, s := range map[string]*tccStory{"stuck": stuck, "late": late, "young": young, "going": going, "done": done, "many": many} {
		t.Run(name, func(t *testing.T) { golden(t, filepath.Join("testdata", "tcc", name+".txt"), s.text(), s.width) })
	}
}
