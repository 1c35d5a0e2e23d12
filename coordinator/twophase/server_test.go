package twophase_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/db/devpg"
)

// privates is a bank whose participants are servers of their own.
type privates struct {
	*bank
	servers map[string]*devpg.Server
	confs   map[string]devpg.Config
}

func newPrivates(tb testing.TB, settings map[string]string, names ...string) *privates {
	p := &privates{bank: newBank(tb), servers: map[string]*devpg.Server{}, confs: map[string]devpg.Config{}}
	for _, name := range names {
		p.servers[name] = dbtest.Private(tb, devpg.Config{Durable: true, Settings: settings})
		p.confs[name] = p.servers[name].Config()
		pool, err := pgxpool.New(context.Background(), p.servers[name].URL("postgres"))
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(pool.Close)
		p.pools[name] = pool
		at := twophase.Postgres(name, pool)
		if err := at.Setup(context.Background()); err != nil {
			tb.Fatal(err)
		}
		p.exec(name, "CREATE TABLE account (id int PRIMARY KEY, amount int NOT NULL CONSTRAINT account_amount CHECK (amount >= 0))")
		p.exec(name, "INSERT INTO account VALUES (1, $1)", opening)
		if name == "east" {
			p.east = at
		} else {
			p.west = at
		}
	}
	return p
}

// kill ends a server as a crash does; restart starts it again on its data.
func (p *privates) kill(name string) {
	p.Helper()
	if err := p.servers[name].Kill(); err != nil {
		p.Fatal(err)
	}
	<-p.servers[name].Done()
}

func (p *privates) restart(name string) {
	p.Helper()
	server, err := devpg.Start(context.Background(), p.confs[name])
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { _ = server.Kill() })
	p.servers[name] = server
}

// A participant that dies after its yes, or is down when it should commit, does when it is there again; others do not wait for it.
func TestParticipant_killed(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"voted", "decided"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			p := newPrivates(t, nil, "west")
			m := p.manager()
			p.at[point] = func() { p.kill("west") }
			tx, err := m.Begin(t.Context())
			if err == nil {
				err = p.transfer(map[string]int{"east": 1, "west": -1})(t.Context(), tx)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatalf("got %v, want it committed", err)
			}
			if got := tx.Pending(); len(got) != 1 || got[0] != "west" {
				t.Errorf("pending: got %v, want west", got)
			}
			if got := p.amount("east"); got != opening+1 {
				t.Errorf("east: got %d while west is down, want %d", got, opening+1)
			}
			if r, err := m.Recover(t.Context(), twophase.KeepDefault); err == nil || r.Committed != 0 {
				t.Errorf("recover while west is down: got %+v, %v", r, err)
			}
			p.restart("west")
			p.settled(p.manager())
			p.want(1, -1, 0)
		})
	}
}

// Where the slots of a participant are used up it votes no, and the error says what to do; nothing is left anywhere.
func TestPrepare_slots(t *testing.T) {
	if testing.Short() {
		t.Skip("initialises two servers")
	}
	t.Parallel()
	for slots, says := range map[string]string{"0": "disabled", "1": "maximum number of prepared transactions"} {
		t.Run(slots, func(t *testing.T) {
			t.Parallel()
			p := newPrivates(t, map[string]string{"max_prepared_transactions": slots}, "west")
			if slots == "1" {
				for _, statement := range []string{"CREATE TABLE other ()", "BEGIN; INSERT INTO other DEFAULT VALUES; PREPARE TRANSACTION 'another''s'"} {
					if _, err := p.pools["west"].Exec(t.Context(), statement); err != nil {
						conn, err := p.pools["west"].Acquire(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						if _, err := conn.Conn().PgConn().Exec(t.Context(), statement).ReadAll(); err != nil {
							t.Fatal(err)
						}
						conn.Release()
					}
				}
			}
			err := p.manager().Run(t.Context(), p.transfer(map[string]int{"east": 1, "west": -1}))
			if !errors.Is(err, twophase.ErrAborted) || !errors.Is(err, twophase.ErrCannotPrepare) || !strings.Contains(err.Error(), says) {
				t.Errorf("got %v", err)
			}
			if slots == "1" {
				p.exec("west", "ROLLBACK PREPARED 'another''s'")
			}
			p.want(0, 0, 0)
		})
	}
}

// Transfers between two servers and the coordinator's database, while participants are killed and started again and processes die at any point: in the end the sum is what it was, and nothing is left.
func TestStorm(t *testing.T) {
	t.Parallel()
	const transfers, kills, workers = 200, 4, 8
	p := newPrivates(t, nil, "east", "west")
	m, err := twophase.New(p.pool, twophase.Config{Logger: slog.New(slog.DiscardHandler)}, p.east, p.west)
	if err != nil {
		t.Fatal(err)
	}
	var did, failed atomic.Int64
	var group sync.WaitGroup
	over := make(chan struct{})
	for n := range workers {
		group.Go(func() {
			pairs := []map[string]int{{"east": 1, "west": -1}, {"west": 1, "own": -1}, {"own": 1, "east": -1}, {"east": -1, "west": 2, "own": -1}}
			for i := 0; did.Load() < transfers; i++ {
				ctx, stop := context.WithTimeout(t.Context(), patience)
				err := m.Run(ctx, p.transfer(pairs[(n+i)%len(pairs)]), twophase.Timeout(2*time.Second))
				stop()
				if err == nil {
					did.Add(1)
				} else {
					failed.Add(1)
				}
				if isMixed := (*twophase.MixedError)(nil); errors.As(err, &isMixed) {
					t.Error(err)
				}
			}
		})
	}
	var sweeps sync.WaitGroup
	for range 2 {
		sweeps.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					_, _ = p.manager().Recover(t.Context(), twophase.KeepDefault) // a server may be down
				}
			}
		})
	}
	for i := range kills {
		for start := did.Load(); did.Load() < min(start+transfers/kills/2, transfers); {
			_, _ = p.pool.Exec(t.Context(), "SELECT pg_sleep(0.01)")
		}
		name := []string{"east", "west"}[i%2]
		p.kill(name)
		p.restart(name)
	}
	for _, point := range []string{"prepared east", "voted", "decided", "committed west"} {
		p.crash(point, "east", "west") // adds 7 to each where it is decided
	}
	group.Wait()
	close(over)
	sweeps.Wait()
	p.settled(p.manager())
	sum := p.amount("east") + p.amount("west") + p.amount("own")
	if want := 3*opening + 2*2*7; sum != want {
		t.Errorf("the sum is %d, want %d", sum, want)
	}
	if n := p.count("own", "SELECT count(*) FROM pawl.global_doubt"); n != 0 {
		t.Errorf("got %d doubts", n)
	}
	t.Logf("%d transfers, %d failed", did.Load(), failed.Load())
}
