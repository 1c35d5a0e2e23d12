package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
	"github.com/pawl-dev/pawl/db/dbtest"
)

func shop(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := dbtest.New(t)
	openShop(t, pool)
	return pool
}

// A request runs through its phases once, and is replayed.
func TestPhases(t *testing.T) {
	t.Parallel()
	pool, b := shop(t), newBank(t)
	var seen []string
	out, replayed, err := buy(t.Context(), pool, b.url, idempotency.WithFail(idempotency.Options{}, func(p string) { seen = append(seen, p) }))
	checkBought(t, pool, out, err)
	if replayed || !slices.Equal(seen, buyPoints) {
		t.Errorf("replayed %t, came by %q, want %q", replayed, seen, buyPoints)
	}
	out, replayed, err = buy(t.Context(), pool, b.url, idempotency.Options{})
	checkBought(t, pool, out, err)
	if !replayed {
		t.Error("not replayed")
	}
	b.check(t, 1)
}

var errCut = errors.New("cut")

// The request ends at each boundary, by a panic, which gives the claim up; the next try goes on from the newest point.
func TestPhasesCut(t *testing.T) {
	t.Parallel()
	for i, at := range buyPoints {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			pool, b := shop(t), newBank(t)
			func() {
				defer func() {
					if p := recover(); p != errCut {
						panic(p)
					}
				}()
				_, _, err := buy(t.Context(), pool, b.url, idempotency.WithFail(idempotency.Options{}, func(p string) {
					if p == at {
						panic(errCut)
					}
				}))
				t.Errorf("not cut: %v", err)
			}()
			reached := max(i/2, 0) // phases committed by then
			if i >= 7 {
				reached = 3
			}
			if got := strings.Fields(points(t, pool)); len(got) != reached {
				t.Errorf("points %q after a cut at %s, want %d", got, at, reached)
			}
			out, replayed, err := buy(t.Context(), pool, b.url, idempotency.Options{})
			checkBought(t, pool, out, err)
			if replayed != (at == "after-answer") {
				t.Errorf("replayed %t", replayed)
			}
			calls := 1
			if at == "charge:called" {
				calls = 2
			}
			b.check(t, calls)
		})
	}
}

// The context ends at each boundary: nothing counts after that, and the next try goes on.
func TestPhasesCancelled(t *testing.T) {
	t.Parallel()
	for _, at := range buyPoints {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			pool, b := shop(t), newBank(t)
			ctx, cancel := context.WithCancel(t.Context())
			_, _, err := buy(ctx, pool, b.url, idempotency.WithFail(idempotency.Options{}, func(p string) {
				if p == at {
					cancel()
				}
			}))
			if (at == "after-answer") != (err == nil) || err != nil && (!errors.Is(err, context.Canceled) || errors.Is(err, idempotency.ErrUnknown) || errors.Is(err, idempotency.ErrLost)) {
				t.Errorf("got %v", err)
			}
			out, _, err := buy(t.Context(), pool, b.url, idempotency.Options{})
			checkBought(t, pool, out, err)
		})
	}
}

// A claimant is frozen at each boundary until another has taken its claim over and finished: it gets ErrLost and writes nothing more. In the middle of a transaction it
// keeps its claim.
func TestPhasesFrozen(t *testing.T) {
	t.Parallel()
	for _, at := range buyPoints[:8] {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			pool, b := shop(t), newBank(t)
			inTx := at == "order:called" || at == "paid:called"
			out, replayed, err := buy(t.Context(), pool, b.url, idempotency.WithFail(idempotency.Options{}, func(p string) {
				if p != at {
					return
				}
				if _, _, err := buy(t.Context(), pool, b.url, idempotency.Options{}); !errors.Is(err, idempotency.ErrInFlight) {
					t.Errorf("while it is claimed: %v", err)
				}
				runOut(t, pool)
				out, replayed, err := buy(t.Context(), pool, b.url, idempotency.Options{})
				if inTx {
					if !errors.Is(err, idempotency.ErrInFlight) {
						t.Errorf("while a phase is open: %v", err)
					}
					return
				}
				checkBought(t, pool, out, err)
				if replayed {
					t.Error("replayed")
				}
			}))
			if inTx {
				checkBought(t, pool, out, err)
			} else if !errors.Is(err, idempotency.ErrLost) || replayed {
				t.Errorf("went on: %v", err)
			}
			out, replayed, err = buy(t.Context(), pool, b.url, idempotency.Options{})
			checkBought(t, pool, out, err)
			if !replayed {
				t.Error("not replayed")
			}
			calls := 1
			if at == "charge:called" {
				calls = 2
			}
			b.check(t, calls)
		})
	}
}

// A frozen claimant wakes up while the one who took its claim over is still at work: it is fenced by its token.
func TestPhasesTakenOver(t *testing.T) {
	t.Parallel()
	pool, b := shop(t), newBank(t)
	claimed, woken := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	_, _, err := buy(t.Context(), pool, b.url, idempotency.WithFail(idempotency.Options{}, func(p string) {
		if p != "charge:called" {
			return
		}
		runOut(t, pool)
		group.Go(func() {
			out, _, err := buy(t.Context(), pool, b.url, idempotency.WithFail(idempotency.Options{}, func(p string) {
				if p == "claimed" {
					close(claimed)
					<-woken
				}
			}))
			checkBought(t, pool, out, err)
		})
		<-claimed
	}))
	if !errors.Is(err, idempotency.ErrLost) {
		t.Errorf("got %v", err)
	}
	if got := points(t, pool); got != "order" {
		t.Errorf("points %q", got)
	}
	close(woken)
	group.Wait()
	b.check(t, 2)
}

// Of concurrent requests one runs; the others are refused, or wait and are answered as it was.
func TestPhasesConcurrent(t *testing.T) {
	t.Parallel()
	for name, wait := range map[string]time.Duration{"refuse": 0, "wait": patience} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, b := shop(t), newBank(t)
			var ran, refused atomic.Int32
			var group sync.WaitGroup
			for range 20 {
				group.Go(func() {
					out, replayed, err := buy(t.Context(), pool, b.url, idempotency.Options{Wait: wait})
					switch {
					case errors.Is(err, idempotency.ErrInFlight):
						refused.Add(1)
					case err != nil || out.Status != 201:
						t.Errorf("got %d, %v", out.Status, err)
					case !replayed:
						ran.Add(1)
					}
				})
			}
			group.Wait()
			if ran.Load() != 1 || wait > 0 && refused.Load() != 0 {
				t.Errorf("%d ran, %d refused", ran.Load(), refused.Load())
			}
			out, _, err := buy(t.Context(), pool, b.url, idempotency.Options{})
			checkBought(t, pool, out, err)
			b.check(t, 1)
		})
	}
}

// phases runs a request of given phases that do nothing, and fails where told to.
func phases(t *testing.T, pool *pgxpool.Pool, fingerprint string, names ...string) error {
	t.Helper()
	_, _, err := idempotency.Phases(t.Context(), pool, key, []byte(fingerprint), idempotency.Options{}, func(ctx context.Context, c *idempotency.Claim) (idempotency.Response, error) {
		for _, name := range names {
			if name == "fail" {
				return idempotency.Response{}, errCut
			}
			got, err := idempotency.Phase(ctx, c, name, func(context.Context, string) (string, error) { return "did " + name, nil })
			if err != nil {
				return idempotency.Response{}, err
			}
			if got != "did "+name || c.Point() == "" {
				t.Errorf("%s: got %q at %q", name, got, c.Point())
			}
		}
		return idempotency.Response{Status: 200}, nil
	})
	return err
}

// Another request is refused before anything is run, also when the claim has run out.
func TestPhasesMismatch(t *testing.T) {
	t.Parallel()
	pool := shop(t)
	if err := phases(t, pool, "a", "one", "fail"); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	if err := phases(t, pool, "b", "never"); !errors.Is(err, idempotency.ErrMismatch) {
		t.Errorf("in progress: %v", err)
	}
	if _, _, err := idempotency.Do(t.Context(), pool, key, []byte("b"), idempotency.Options{}, nil); !errors.Is(err, idempotency.ErrMismatch) {
		t.Errorf("in progress, Do: %v", err)
	}
	if got := points(t, pool); got != "one" {
		t.Errorf("points %q", got)
	}
	if err := phases(t, pool, "a", "one", "two"); err != nil {
		t.Error(err)
	}
	if err := phases(t, pool, "b"); !errors.Is(err, idempotency.ErrMismatch) {
		t.Errorf("answered: %v", err)
	}
}

// Code that does not come by a stored point is refused by the point's name, and loses nothing.
func TestPhasesUnknownPoint(t *testing.T) {
	t.Parallel()
	pool := shop(t)
	if err := phases(t, pool, "a", "one", "two", "fail"); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	for _, names := range [][]string{{"one", "zwei"}, {"two"}, {"two", "one"}, {"one"}, {"zero", "one", "two"}} {
		err := phases(t, pool, "a", names...)
		if !errors.Is(err, idempotency.ErrPoint) || !strings.Contains(err.Error(), `"one"`) && !strings.Contains(err.Error(), `"two"`) {
			t.Errorf("%q: %v", names, err)
		}
	}
	_, _, err := idempotency.Phases(t.Context(), pool, key, []byte("a"), idempotency.Options{}, func(ctx context.Context, c *idempotency.Claim) (idempotency.Response, error) {
		_, err := idempotency.PhaseTx(ctx, c, "one", func(context.Context, pgx.Tx) (int, error) { return 0, errors.New("ran") })
		if !errors.Is(err, idempotency.ErrPoint) {
			t.Errorf("a text where a number is wanted: %v", err)
		}
		return idempotency.Response{}, nil // it ends with that all the same
	})
	if !errors.Is(err, idempotency.ErrPoint) {
		t.Errorf("ignored: %v", err)
	}
	if _, _, err := idempotency.Do(t.Context(), pool, key, []byte("a"), idempotency.Options{}, nil); !errors.Is(err, idempotency.ErrPoint) {
		t.Errorf("Do: %v", err)
	}
	if got := points(t, pool); got != "one two" {
		t.Errorf("points %q", got)
	}
	if err := phases(t, pool, "a", "one", "two", "three"); err != nil {
		t.Error(err)
	}
}

// What a phase may not do.
func TestPhaseRefused(t *testing.T) {
	t.Parallel()
	pool := open(t)
	many := make([]string, idempotency.PointsMax+1)
	for i := range many {
		many[i] = fmt.Sprint("p", i)
	}
	for _, names := range [][]string{{"one", "one"}, {""}, {strings.Repeat("n", idempotency.PhaseNameBytesMax+1)}, {"a\x00"}, many} {
		exec(t, pool, "DELETE FROM pawl.idempotency_claim")
		exec(t, pool, "DELETE FROM pawl.idempotency_point")
		if err := phases(t, pool, "a", names...); !errors.Is(err, idempotency.ErrInvalid) {
			t.Errorf("%.20q: %v", names, err)
		}
	}
	if n := count(t, pool, "SELECT count(*) FROM pawl.idempotency_point"); n != idempotency.PointsMax {
		t.Errorf("%d points, want %d", n, idempotency.PointsMax)
	}
	exec(t, pool, "DELETE FROM pawl.idempotency_claim")
	exec(t, pool, "DELETE FROM pawl.idempotency_point")

	insert := func(ctx context.Context, tx pgx.Tx) {
		if _, err := tx.Exec(ctx, "INSERT INTO effect VALUES (1)"); err != nil {
			t.Error(err)
		}
	}
	try := func(fn func(ctx context.Context, tx pgx.Tx) (any, error)) error {
		_, _, err := idempotency.Phases(t.Context(), pool, key, nil, idempotency.Options{}, func(ctx context.Context, c *idempotency.Claim) (idempotency.Response, error) {
			_, err := idempotency.PhaseTx(ctx, c, "one", fn)
			return idempotency.Response{}, err
		})
		return err
	}
	for what, c := range map[string]struct {
		fn   func(ctx context.Context, tx pgx.Tx) (any, error)
		want error
	}{
		"large output": {func(ctx context.Context, tx pgx.Tx) (any, error) {
			insert(ctx, tx)
			return strings.Repeat("x", idempotency.OutputBytesMax), nil
		}, idempotency.ErrInvalid},
		"output that is no JSON": {func(ctx context.Context, tx pgx.Tx) (any, error) {
			insert(ctx, tx)
			return func() {}, nil
		}, idempotency.ErrInvalid},
		"error": {func(ctx context.Context, tx pgx.Tx) (any, error) {
			insert(ctx, tx)
			return nil, errCut
		}, errCut},
		"rollback by SQL": {func(ctx context.Context, tx pgx.Tx) (any, error) {
			insert(ctx, tx)
			_, err := tx.Exec(ctx, "ROLLBACK")
			return nil, err
		}, idempotency.ErrEnded},
		"another transaction": {func(ctx context.Context, tx pgx.Tx) (any, error) {
			insert(ctx, tx)
			_, err := tx.Exec(ctx, "ROLLBACK AND CHAIN")
			return nil, err
		}, idempotency.ErrEnded},
	} {
		if err := try(c.fn); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
		if n := count(t, pool, "SELECT count(*) FROM effect") + count(t, pool, "SELECT count(*) FROM pawl.idempotency_point"); n != 0 {
			t.Errorf("%s: something was written", what)
		}
	}
}

// A phase that takes longer than the lease keeps its claim: it is renewed, and others are refused.
func TestPhasesRenewed(t *testing.T) {
	t.Parallel()
	pool := shop(t)
	o := idempotency.Options{Lease: 2 * time.Second}
	_, _, err := idempotency.Phases(t.Context(), pool, key, nil, o, func(ctx context.Context, c *idempotency.Claim) (idempotency.Response, error) {
		_, err := idempotency.Phase(ctx, c, "long", func(context.Context, string) (any, error) {
			var first time.Time
			if err := pool.QueryRow(ctx, "SELECT until FROM pawl.idempotency_claim").Scan(&first); err != nil {
				return nil, err
			}
			until(t, "the first lease to be over", func() bool { return count(t, pool, "SELECT (clock_timestamp() > $1)::int", first) == 1 })
			if _, _, err := idempotency.Phases(ctx, pool, key, nil, o, nil); !errors.Is(err, idempotency.ErrInFlight) {
				t.Errorf("got %v", err)
			}
			return nil, ctx.Err()
		})
		return idempotency.Response{Status: 200}, err
	})
	if err != nil {
		t.Error(err)
	}
}

// Who cannot renew stops before another may go on, and who finds his claim taken over stops at once: the context ends with ErrLost.
func TestPhasesLost(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"cut off", "taken over"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			pool := shop(t)
			p, through := dbtest.NewProxy(t, pool, 4)
			o := idempotency.Options{Lease: 5 * time.Second}
			_, _, err := idempotency.Phases(t.Context(), through, key, nil, o, func(ctx context.Context, c *idempotency.Claim) (idempotency.Response, error) {
				out, err := idempotency.Phase(ctx, c, "long", func(ctx context.Context, _ string) (any, error) {
					if how == "cut off" {
						p.CutAll()
					} else {
						exec(t, pool, "UPDATE pawl.idempotency_claim SET token = token + 1")
					}
					<-ctx.Done()
					if !errors.Is(context.Cause(ctx), idempotency.ErrLost) {
						t.Errorf("cause %v", context.Cause(ctx))
					}
					if n := count(t, pool, "SELECT count(*) FROM pawl.idempotency_claim WHERE until > clock_timestamp()"); n != 1 {
						t.Error("the claim has run out before its holder knew")
					}
					return "done all the same", nil
				})
				if err == nil {
					t.Errorf("phase: %v", out)
				}
				return idempotency.Response{Status: 200}, nil
			})
			if !errors.Is(err, idempotency.ErrLost) {
				t.Errorf("got %v", err)
			}
			if n := count(t, pool, "SELECT count(*) FROM pawl.idempotency_point") + count(t, pool, "SELECT count(*) FROM pawl.idempotency_key"); n != 0 {
				t.Error("something was written")
			}
		})
	}
}

// The reply to a phase's COMMIT is lost, or the COMMIT itself: the next try finds out which, and nothing happens twice.
func TestPhaseCommitLost(t *testing.T) {
	t.Parallel()
	for name, commit := range map[string]int32{"not applied": dbtest.DropCommit, "applied": dbtest.DropReply} {
		for _, at := range []string{"order:called", "paid:called"} {
			t.Run(name+" "+at, func(t *testing.T) {
				t.Parallel()
				pool, b := shop(t), newBank(t)
				p, through := dbtest.NewProxy(t, pool, 4)
				_, _, err := buy(t.Context(), through, b.url, idempotency.WithFail(idempotency.Options{}, func(point string) {
					if point == at {
						p.Commit.Store(commit)
					}
				}))
				if !errors.Is(err, idempotency.ErrUnknown) {
					t.Errorf("got %v", err)
				}
				out, _, err := buy(t.Context(), pool, b.url, idempotency.Options{Wait: patience})
				checkBought(t, pool, out, err)
				b.check(t, 1)
			})
		}
	}
}

// A function that ignores what became of a phase stores no answer.
func TestPhaseIgnored(t *testing.T) {
	t.Parallel()
	pool := open(t)
	p, through := dbtest.NewProxy(t, pool, 4)
	_, _, err := idempotency.Phases(t.Context(), through, key, nil, idempotency.Options{}, func(ctx context.Context, c *idempotency.Claim) (idempotency.Response, error) {
		for _, name := range []string{"one", "two"} {
			_, err := idempotency.PhaseTx(ctx, c, name, func(ctx context.Context, tx pgx.Tx) (any, error) {
				p.Commit.Store(dbtest.DropCommit)
				_, err := effect(ctx, tx)
				return nil, err
			})
			if !errors.Is(err, idempotency.ErrUnknown) {
				t.Errorf("%s: %v", name, err)
			}
		}
		return idempotency.Response{Status: 200}, nil
	})
	if !errors.Is(err, idempotency.ErrUnknown) || count(t, pool, "SELECT count(*) FROM effect")+count(t, pool, "SELECT count(*) FROM pawl.idempotency_key") != 0 {
		t.Errorf("got %v", err)
	}
}

// Do and Phases know each other's keys, as when a route goes from one to the other.
func TestPhasesAndDo(t *testing.T) {
	t.Parallel()
	pool := open(t)
	again := func(ctx context.Context) error {
		_, _, err := idempotency.Phases(ctx, pool, key, nil, idempotency.Options{}, nil)
		return err
	}
	out, _, err := idempotency.Do(t.Context(), pool, key, nil, idempotency.Options{}, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		if err := again(ctx); !errors.Is(err, idempotency.ErrInFlight) {
			t.Errorf("Phases during Do: %v", err)
		}
		return effect(ctx, tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	got, replayed, err := idempotency.Phases(t.Context(), pool, key, nil, idempotency.Options{}, nil)
	if err != nil || !replayed || got.Status != out.Status {
		t.Errorf("Phases after Do: %v, replayed %t, %v", got, replayed, err)
	}
	exec(t, pool, "UPDATE pawl.idempotency_key SET expires_at = now() - interval '1 s'")
	_, _, err = idempotency.Phases(t.Context(), pool, key, nil, idempotency.Options{}, func(ctx context.Context, c *idempotency.Claim) (idempotency.Response, error) {
		if _, _, err := idempotency.Do(ctx, pool, key, nil, idempotency.Options{}, effect); !errors.Is(err, idempotency.ErrInFlight) {
			t.Errorf("Do during Phases: %v", err)
		}
		_, err := idempotency.Phase(ctx, c, "one", func(context.Context, string) (int, error) { return 1, nil })
		return idempotency.Response{Status: 200}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Its points are of the life that is over.
	exec(t, pool, "UPDATE pawl.idempotency_key SET expires_at = now() - interval '1 s'")
	if err := phases(t, pool, "b", "two", "fail"); !errors.Is(err, errCut) {
		t.Error(err)
	}
	if got := points(t, pool); got != "two" {
		t.Errorf("points %q", got)
	}
}

// Tokens grow, also when nothing is left of the key.
func TestPhasesToken(t *testing.T) {
	t.Parallel()
	pool := shop(t)
	var last int64
	for range 3 {
		for range 2 {
			_, _, err := idempotency.Phases(t.Context(), pool, key, nil, idempotency.Options{}, func(_ context.Context, c *idempotency.Claim) (idempotency.Response, error) {
				if c.Token() <= last {
					t.Errorf("token %d after %d", c.Token(), last)
				}
				last = c.Token()
				return idempotency.Response{}, errCut
			})
			if !errors.Is(err, errCut) {
				t.Fatal(err)
			}
		}
		exec(t, pool, "DELETE FROM pawl.idempotency_claim")
	}
}

// What is committed before a call elsewhere is durable, whatever the connection has set.
func TestPhasesDurable(t *testing.T) {
	t.Parallel()
	pool := shop(t)
	for _, call := range []string{
		"SELECT pawl.idempotency_claim(1::smallint, 's', 'k', '', 'me', '1 min')",
		"SELECT pawl.idempotency_advance(1::smallint, 's', 'k', (SELECT token FROM pawl.idempotency_claim), 0, 'one', NULL, NULL)",
		"SELECT pawl.idempotency_finish(1::smallint, 's', 'k', (SELECT token FROM pawl.idempotency_claim), 200, NULL, '', '1 min')",
	} {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			var got string
			if _, err := tx.Exec(t.Context(), "SET LOCAL synchronous_commit = off"); err != nil {
				return err
			}
			if _, err := tx.Exec(t.Context(), call); err != nil {
				return err
			}
			if err := tx.QueryRow(t.Context(), "SHOW synchronous_commit").Scan(&got); err != nil || got != "local" {
				t.Errorf("%s: synchronous_commit %s, %v", call, got, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Derived keys stay what they are: services elsewhere remember them.
func TestDerivedKey(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ns   int16
		key  idempotency.Key
		name string
		want string
	}{
		{1, idempotency.Key{Scope: "POST /orders client 7", Key: "k"}, "charge", "0a8cad96-9143-8703-895f-a0d59f850e17"},
		{0, idempotency.Key{Scope: "POST /orders client 7", Key: "k"}, "charge", "0a8cad96-9143-8703-895f-a0d59f850e17"},
		{2, idempotency.Key{Scope: "POST /orders client 7", Key: "k"}, "charge", "1bc67bdd-2d2f-87d3-b1f2-6426134cbb44"},
		{1, idempotency.Key{Scope: "POST /orders client 7", Key: "kc"}, "harge", "9e970b38-e680-8e44-98aa-bb9a4fc7daed"},
		{1, idempotency.Key{Scope: "POST /orders client 7k", Key: ""}, "charge", "9482aa82-4ac3-89de-887f-079a9c5c6e3a"},
	} {
		if got := idempotency.DerivedKey(c.ns, c.key, c.name); got != c.want {
			t.Errorf("%d %v %s: got %s, want %s", c.ns, c.key, c.name, got, c.want)
		}
	}
}
