package twophase_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/pawl-dev/pawl/db/dbtest"
)

// What a call reads does not depend on how many decisions are kept, with statistics of the time when there were few.
func TestPlans(t *testing.T) {
	t.Parallel()
	const rows = 200_000
	pool := dbtest.New(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	buffers := func(call string) int {
		t.Helper()
		var text []byte
		if err := conn.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+call).Scan(&text); err != nil {
			t.Fatalf("%s: %v", call, err)
		}
		var plan []struct{ Plan map[string]any }
		if err := json.Unmarshal(text, &plan); err != nil {
			t.Fatal(err)
		}
		return int(plan[0].Plan["Shared Hit Blocks"].(float64) + plan[0].Plan["Shared Read Blocks"].(float64))
	}
	n := 0
	calls := []struct {
		name string
		most int
		call func() string
	}{
		{"decide", 60, func() string {
			n++
			return fmt.Sprintf("SELECT pawl.global_decide(1::smallint, ARRAY['ffffffff-0000-7000-8000-%012d'::uuid], ARRAY[now() + interval '1 min'], ARRAY['pawl:1:h:x:0:'], ARRAY['east,west'], 'test')", n)
		}},
		{"decide again, and note an end", 60, func() string {
			id := fmt.Sprintf("ffffffff-0000-7000-8000-%012d", n)
			return fmt.Sprintf("SELECT pawl.global_decide(1::smallint, ARRAY['%s'::uuid], ARRAY[now() + interval '1 min'], ARRAY['pawl:1:h:x:0:'], ARRAY['east,west'], 'test'), pawl.global_ended(1::smallint, ARRAY['%s'::uuid])", id, id)
		}},
		{"abort", 60, func() string {
			return fmt.Sprintf("SELECT pawl.global_abort(1::smallint, ARRAY['fffffffe-0000-7000-8000-%012d'::uuid], 'test', 'test')", n)
		}},
		{"unfinished", 200, func() string {
			return "SELECT * FROM pawl.global_unfinished(1::smallint, now() - interval '1 min', '00000000-0000-0000-0000-000000000000', '5 s', 10000)"
		}},
		{"old", 60, func() string {
			return "SELECT * FROM pawl.sweep_global_old(1::smallint, '30 d', '-infinity', '00000000-0000-0000-0000-000000000000', 10000)"
		}},
	}
	for i := range 8 {
		for _, c := range calls {
			buffers(c.call())
		}
		if i == 2 {
			exec("VACUUM (ANALYZE) pawl.global_decision, pawl.global_end, pawl.global_doubt")
		}
	}
	exec(fmt.Sprintf(`INSERT INTO pawl.global_decision (ns, id, decided_at, committed, branch, participants, decided_by)
		SELECT 1, gen_random_uuid(), now() - interval '1 d' + i * interval '400 ms', true, 'pawl:1:h:x:0:', '{east,west}', 'fill' FROM generate_series(1, %d) i`, rows))
	exec("INSERT INTO pawl.global_end (ns, id, ended_at) SELECT ns, id, now() FROM pawl.global_decision WHERE decided_by = 'fill'")
	fewest := map[string]int{} // of some rounds: in one the server may have to read its catalogs anew
	for range 3 {
		for _, c := range calls {
			got := buffers(c.call())
			if was, ok := fewest[c.name]; !ok || got < was {
				fewest[c.name] = got
			}
		}
	}
	for _, c := range calls {
		t.Logf("%s: %d buffers", c.name, fewest[c.name])
		if fewest[c.name] > c.most {
			t.Errorf("%s: got %d buffers with %d decisions, want at most %d", c.name, fewest[c.name], rows, c.most)
		}
	}
}
