package saga_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/db/dbtest"
)

// faulty stands before a service and fails in every way: before the service is asked, after it was, and by asking it once more when nobody expects that any longer.
type faulty struct {
	service http.Handler
	late    chan *http.Request // copies that are still under way
}

func (f *faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	again := func() *http.Request {
		c := r.Clone(context.WithoutCancel(r.Context()))
		c.Body = io.NopCloser(bytes.NewReader(body))
		return c
	}
	switch fault := rand.N(16); fault {
	case 0: // nobody is there
		panic(http.ErrAbortHandler)
	case 1:
		http.Error(w, "bad gateway", http.StatusBadGateway)
	case 2:
		w.WriteHeader(http.StatusTooEarly)
	case 3:
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusServiceUnavailable)
	case 4: // it was done, and the answer is lost
		f.service.ServeHTTP(httptest.NewRecorder(), again())
		panic(http.ErrAbortHandler)
	case 5: // and a gateway says something else
		f.service.ServeHTTP(httptest.NewRecorder(), again())
		w.WriteHeader(http.StatusGatewayTimeout)
	case 6: // and the answer is cut short
		w.Header().Set("Content-Length", "1000")
		f.service.ServeHTTP(w, again())
	case 7, 8: // nobody knows where it is, and it arrives at last
		f.late <- again()
		panic(http.ErrAbortHandler)
	case 9: // twice at once
		var group sync.WaitGroup
		group.Go(func() { f.service.ServeHTTP(httptest.NewRecorder(), again()) })
		f.service.ServeHTTP(w, again())
		group.Wait()
	case 10: // the caller has gone
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		f.service.ServeHTTP(httptest.NewRecorder(), again().WithContext(ctx))
		panic(http.ErrAbortHandler)
	default:
		f.service.ServeHTTP(w, again())
	}
}

// Steps against a service that fails in every way, which has the barrier: what a step comes to is what the service's tables say, also after all that was late has arrived.
func TestHandleHTTP_storm(t *testing.T) {
	t.Parallel()
	const sagas = 150
	pool := dbtest.New(t)
	if _, err := pool.Exec(t.Context(), "CREATE TABLE stock AS SELECT 0 AS n; CREATE TABLE effect (saga text, op text)"); err != nil {
		t.Fatal(err)
	}
	f := &faulty{late: make(chan *http.Request, 100*sagas)}
	f.service = barrier.Handler(pool, func(ctx context.Context, tx pgx.Tx, b barrier.Branch, _ []byte) (json.RawMessage, error) {
		if b.Op == barrier.Action && rand.N(4) == 0 { // it may be there next time
			return nil, barrier.Refuse(errors.New("not in stock"))
		}
		if rand.N(10) == 0 {
			return nil, errors.New("oops")
		}
		_, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1, $2)", b.ID, b.Op)
		return json.RawMessage(`{"id": "` + b.ID + `"}`), err
	})
	server := serveBranch(t, f.ServeHTTP)
	step := newHTTPStep[charged](saga.Branch{URL: server.URL})
	ctx := bounded(t)
	run := func(id string) (done bool) {
		b := step
		b.saga = id
		output := "null"
		for b.attempt = 1; b.attempt <= 4; {
			out, err := b.call(ctx, false, "")
			switch e := job.EndingOf(err); {
			case err == nil && rand.N(3) > 0: // else something after it fails
				if string(out) != fmt.Sprintf(`{"id":%q}`, id) {
					t.Errorf("%s: output %s", id, out)
				}
				return true
			case err == nil:
				output, b.attempt = string(out), 5
			case e.Outcome == job.Discarded:
				return false // nothing was done, and nothing will be, whatever is still under way
			case e.Outcome != job.Snoozed:
				b.attempt++
			}
		}
		for b.attempt = 1; ; b.attempt++ {
			if _, err := b.call(ctx, true, output); err == nil {
				return false
			} else if job.EndingOf(err).Outcome == job.Discarded || ctx.Err() != nil {
				t.Errorf("%s: a compensation ends with %v", id, err)
				return false
			}
		}
	}
	var (
		mu    sync.Mutex
		group sync.WaitGroup
		done  = map[string]bool{}
		slots = make(chan struct{}, 16)
	)
	for i := range sagas {
		slots <- struct{}{}
		group.Go(func() {
			id := fmt.Sprint("checkout:", i)
			ok := run(id)
			mu.Lock()
			done[id] = ok
			mu.Unlock()
			<-slots
		})
	}
	group.Wait()
	close(f.late)
	late := 0
	for r := range f.late {
		late++
		f.service.ServeHTTP(httptest.NewRecorder(), r)
	}
	rows, err := pool.Query(ctx, "SELECT saga, count(*) FILTER (WHERE op = 'action'), count(*) FILTER (WHERE op = 'undo') FROM effect GROUP BY 1")
	if err != nil {
		t.Fatal(err)
	}
	var (
		id            string
		actions, undo int
		undone        int
		left          = len(done)
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &actions, &undo}, func() error {
		left--
		undone += undo
		if ok := done[id]; actions != 1 || (undo == 0) != ok || undo > 1 {
			t.Errorf("%s came to %t, with %d actions and %d compensations", id, ok, actions, undo)
		}
		delete(done, id)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, ok := range done {
		if ok {
			t.Errorf("%s is done, and has no effect", id)
		}
	}
	if late == 0 || undone == 0 || left == 0 || left == sagas {
		t.Errorf("%d copies were late, %d steps compensated, %d without any effect: nothing is proved", late, undone, left)
	}
}
