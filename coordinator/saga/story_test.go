package saga_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// What a story tells of steps that wait: for a worker, for a time, for a signal until then, for other steps.
func TestGet_waiting(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := t.Context()
	d := saga.Define[order]("waiting")
	a := saga.Step[paid](d, "a", saga.MaxAttempts(7))
	saga.Timer(d, "rest", time.Hour)
	yes := saga.Signal[bool](d, "yes", saga.Expires(2*time.Hour))
	saga.Step[paid](d, "b", saga.After(a, yes))
	registered(t, pool, d)
	started, err := d.Start(ctx, pool, order{})
	if err != nil {
		t.Fatal(err)
	}
	s := tell(t, pool, started.ID)
	if st := s.Steps[0]; st.Attempt != 1 || st.MaxAttempts != 7 || st.Until != nil {
		t.Errorf("a step in line: got %+v", st)
	}
	for i, want := range []time.Duration{1: time.Hour, 2: 2 * time.Hour} {
		if st := s.Steps[i]; want != 0 && (st.Until == nil || st.Until.Sub(s.StartedAt).Round(time.Minute) != want || st.Attempt != 0) {
			t.Errorf("%s: got %+v, want it to be over %s after the start", st.Name, st, want)
		}
	}
	if st := s.Steps[3]; st.State != saga.StepWaiting || st.Attempt != 0 || st.MaxAttempts != 0 {
		t.Errorf("a step that has not begun: got %+v", st)
	}
	if err := saga.Send(ctx, pool, yes, started.ID, true); err != nil {
		t.Fatal(err)
	}
	if st := tell(t, pool, started.ID).Steps[2]; st.State != saga.StepSucceeded || st.Until != nil {
		t.Errorf("a signal that came: got %+v", st)
	}
	text, err := json.Marshal(s.Steps[1])
	if err != nil {
		t.Fatal(err)
	}
	var back saga.StepStory
	if err := json.Unmarshal(text, &back); err != nil || back.Until == nil || !back.Until.Equal(*s.Steps[1].Until) {
		t.Errorf("got %+v, %v out of %s", back, err, text)
	}
}

// A story of more events than it has room for tells how the saga stands now, what each step came to, and how many events are left out.
func TestGet_long(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ctx := t.Context()
	d := saga.Define[order]("long")
	a := saga.Step[paid](d, "a", saga.Pivot())
	saga.Step[paid](d, "b", saga.After(a))
	registered(t, pool, d)
	started, err := d.Start(ctx, pool, order{})
	if err != nil {
		t.Fatal(err)
	}
	// a has succeeded; b was stuck and retried, again and again, and is stuck now.
	const last = saga.EventsMax + 502
	_, err = pool.Exec(ctx, `
		INSERT INTO pawl.saga_event (ns, saga_id, seq, at, what, state, step, backward, lined, ok, refused, unknown, expanded, signalled, undoing, undone, stuck, jobs, job_steps, detail)
		SELECT e.ns, e.saga_id, i, e.at + i * interval '1 s', w.what::pawl.saga_what, (CASE WHEN i > 2 AND i % 2 = 0 THEN 'stuck' ELSE 'running' END)::pawl.saga_state, CASE i WHEN 2 THEN 1 ELSE 2 END,
		  false, 3, 1, 0, 0, 0, 0, 0, 0, CASE WHEN i > 2 AND i % 2 = 0 THEN 2 ELSE 0 END, CASE w.what WHEN 'exhausted' THEN NULL ELSE ARRAY[1000 + i] END, CASE w.what WHEN 'exhausted' THEN NULL ELSE '{2}'::smallint[] END,
		  CASE w.what WHEN 'succeeded' THEN '{"cents":7}'::json ELSE '{"error":"no"}' END
		FROM pawl.saga_event e, generate_series(2, $1::int) i, LATERAL (SELECT CASE WHEN i = 2 THEN 'succeeded' WHEN i % 2 = 0 THEN 'exhausted' ELSE 'retried' END AS what) w`, last)
	if err != nil {
		t.Fatal(err)
	}
	s := tell(t, pool, started.ID)
	if end := s.StartedAt.Add(last * time.Second); s.State != saga.StateStuck || s.At.Sub(end).Abs() > time.Second {
		t.Errorf("it is %s since %s, want stuck since %s", s.State, s.At, end)
	}
	if st := s.Steps[0]; st.State != saga.StepSucceeded || string(st.Output) != `{"cents":7}` || st.JobID == 0 {
		t.Errorf("what happened long ago: got %+v", st)
	}
	if st := s.Steps[1]; st.State != saga.StepStuck || st.Error != "no" || st.JobID != 1000+last-1 {
		t.Errorf("what happens now: got %+v", st)
	}
	var seqs []int
	for _, e := range s.Events[:5] {
		seqs = append(seqs, e.Seq)
	}
	n, first := len(s.Events), last-saga.EventsMax+1
	if want := []int{1, 2, first - 2, first - 1, first}; !slices.Equal(seqs, want) || s.Events[n-1].Seq != last || n != saga.EventsMax+4 || s.LeftOut != last-n {
		t.Errorf("%d events, the first %v, the last %d, and %d left out; want the first %v", n, seqs, s.Events[n-1].Seq, s.LeftOut, want)
	}
}
