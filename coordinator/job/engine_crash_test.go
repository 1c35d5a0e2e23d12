package job_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/db/devpg"
)

const (
	// crashLoad is how long there is load before the server is killed.
	crashLoad = 700 * time.Millisecond

	// crashBurst is how many claims are made just before it is killed, with nothing after them that would write them down.
	crashBurst = 30
)

// crash is what clients know that have been told something by the server.
type crash struct {
	*engine
	queue    int32
	mu       sync.Mutex
	enqueued map[int64]bool // commits that were answered
	finished map[int64]bool // endings that were answered: they count
	held     []claimed      // claims that were answered, of which nobody knows an end
}

// TestEngineCrash kills a server under load. What it answered stays true: no job is lost, none finished twice. Claims commit asynchronously: those that are
// lost are made again, and who held them finds out, also when their ids were given to others.
func TestEngineCrash(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, devpg.Config{Durable: true, Settings: map[string]string{"wal_writer_delay": "10s"}})
	c := &crash{enqueued: map[int64]bool{}, finished: map[int64]bool{}}
	kill := func() {
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	restart := func() {
		c.pool.Close()
		var err error
		if server, err = devpg.Start(t.Context(), server.Config()); err != nil {
			t.Fatal(err)
		}
		c.open(t, server)
	}
	c.open(t, server)
	c.load(kill)
	restart()
	lost := c.comeBack()
	c.load(func() {})
	c.burst()
	kill()
	restart()
	lost += c.comeBack()
	c.workOff()
	t.Logf("%d jobs, %d of them finished before a crash, %d claims lost", len(c.enqueued), len(c.finished), lost)
}

func (c *crash) open(t *testing.T, server *devpg.Server) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), server.URL(dbtest.PrivateDatabase))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	c.engine = &engine{TB: t, ctx: t.Context(), pool: pool, changed: map[string]string{}}
	c.queue = c.engine.queue("q")
}

// load has writers and workers at it for a while, then calls kill in the middle of it and waits until all have noticed.
func (c *crash) load(kill func()) {
	var over atomic.Bool
	var group sync.WaitGroup
	for i := range 6 {
		conn, session := c.conn(), int64(0)
		if i%2 == 0 {
			session = c.session()
		}
		step := c.write
		if session != 0 {
			step = func(conn *pgx.Conn) error { return c.work(conn, session) }
		}
		group.Go(func() {
			for {
				err := step(conn)
				if err != nil && !over.Load() {
					c.Errorf("under load: %v", err)
				}
				if err != nil || over.Load() {
					return
				}
			}
		})
	}
	timer := time.NewTimer(crashLoad)
	<-timer.C
	over.Store(true)
	kill()
	group.Wait()
}

func (c *crash) write(conn *pgx.Conn) error {
	n := 1 + rand.N(20)
	var first int64
	err := conn.QueryRow(c.ctx, "SELECT first_id FROM pawl.enqueue_many(1::smallint, 'q', 'test', array_fill('{}'::json, ARRAY[$1::int]))", n).Scan(&first)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := first; id < first+int64(n); id++ {
		c.enqueued[id] = true
	}
	return nil
}

func (c *crash) work(conn *pgx.Conn, session int64) error {
	held, err := c.tryClaim(conn, session, c.queue, 1+rand.N(15))
	if err != nil || held.id == 0 {
		return err
	}
	slow := rand.N(4) == 0 // it still runs when the server dies
	lost := ""
	if !slow {
		lost, err = c.tryFinish(conn, held, fmt.Sprintf("{[0,%d)}", len(held.jobs)))
	}
	if slow || err != nil { // or nobody knows whether it counted
		c.mu.Lock()
		defer c.mu.Unlock()
		c.held = append(c.held, held)
		return err
	}
	if lost != "{}" {
		return fmt.Errorf("finish: lost %s", lost)
	}
	c.note(held)
	return nil
}

func (c *crash) note(held claimed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range held.jobs {
		if c.finished[id] {
			c.Errorf("job %d was finished twice, and both were told that it counts", id)
		}
		c.finished[id] = true
	}
}

// burst claims, and ends with what no commit has forced to the disk.
func (c *crash) burst() {
	conn, session := c.conn(), c.session()
	for range 5 {
		if err := c.write(conn); err != nil {
			c.Error(err)
		}
	}
	for range crashBurst {
		if h := c.claim(conn, session, c.queue, 1); h.id != 0 {
			c.held = append(c.held, h)
		}
	}
}

// comeBack is what processes do that have outlived the server: others claim first, so that ids are given out again, then they end what they think they hold.
// It returns how many claims were lost.
func (c *crash) comeBack() (gone int) {
	if missing := all[int64](c.engine, c.pool, "SELECT id FROM unnest($1::bigint[]) id EXCEPT SELECT id FROM pawl.job", slices.Collect(maps.Keys(c.enqueued))); len(missing) > 0 {
		c.Errorf("jobs that were committed and are gone: got %v, want none", missing)
	}
	var again []claimed
	session := c.session()
	for range 2 * crashBurst {
		if h := c.claim(c.pool, session, c.queue, 1); h.id != 0 {
			again = append(again, h)
		}
	}
	old := c.held
	c.held = again
	for _, h := range old {
		whole := fmt.Sprintf("{[0,%d)}", len(h.jobs))
		switch lost := c.finish(c.pool, h, whole); lost {
		case "{}":
			c.note(h)
		case whole, "{[0,1)}":
			gone++
		default:
			c.Errorf("finish of claim %d: got lost %s, want all or nothing", h.id, lost)
		}
	}
	return gone
}

// workOff ends all sessions, works off the rest, and counts.
func (c *crash) workOff() {
	for _, session := range all[int64](c.engine, c.pool, "SELECT id FROM pawl.session WHERE ended_at IS NULL") {
		c.exec(c.pool, "SELECT pawl.session_end(1::smallint, $1, 'test')", session)
		c.exec(c.pool, "SELECT pawl.session_rescue(1::smallint, $1, 100000)", session)
	}
	session := c.session()
	for h := c.claim(c.pool, session, c.queue, 500); h.id != 0; h = c.claim(c.pool, session, c.queue, 500) {
		c.finishAll(c.pool, h)
	}
	succeeded := map[int64]bool{}
	for _, id := range all[int64](c.engine, c.pool, `SELECT j.job_id FROM (
			SELECT r.first + i AS job_id, row_number() OVER (PARTITION BY k.id ORDER BY r.o, i) - 1 AS ordinal, k.id AS claim
			FROM pawl.claim k
			CROSS JOIN LATERAL ROWS FROM (unnest(k.job_ids), unnest(k.job_counts)) WITH ORDINALITY r(first, n, o)
			CROSS JOIN LATERAL generate_series(0, r.n - 1) i) j
		JOIN pawl.receipt p ON p.ns = 1 AND p.claim_id = j.claim AND p.jobs @> j.ordinal::int AND p.outcome = 'succeeded'`) {
		if succeeded[id] {
			c.Errorf("job %d has two receipts of success", id)
		}
		succeeded[id] = true
	}
	for id := range c.enqueued {
		if !succeeded[id] {
			c.Errorf("job %d was committed and never finished", id)
		}
	}
	for id := range c.finished {
		if !succeeded[id] {
			c.Errorf("job %d was finished and is not any more", id)
		}
	}
}
