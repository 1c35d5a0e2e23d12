package saga_test

import (
	"encoding/json"
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
