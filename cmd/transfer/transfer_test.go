package transfer_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/transfer"
	"github.com/pawl-dev/pawl/db/dbtest"
)

func open(t *testing.T) *transfer.Banks {
	t.Helper()
	b, err := transfer.Open(context.Background(), dbtest.New(t), 1, "test", dbtest.EmptyURL(t), dbtest.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// A run is proved right, and each way to tamper with what it left is found.
func TestProve(t *testing.T) {
	t.Parallel()
	const wanted = 60
	b := open(t)
	run, err := transfer.Create(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		if err := transfer.Sweep(ctx, b, 10*time.Millisecond); err != nil {
			t.Error(err)
		}
	})
	if err := transfer.Move(t.Context(), b, run, wanted); err != nil {
		t.Fatal(err)
	}
	stop()
	sweeper.Wait()
	f, claims, err := transfer.Prove(t.Context(), b, run)
	if err != nil {
		t.Fatal(err)
	}
	if f.Transfers < wanted || f.Recorded == 0 || f.Recorded == f.Transfers || f.Cents <= 0 || f.Example == "" {
		t.Errorf("got %+v", f)
	}
	for i, c := range claims {
		if c.Count == 0 || len(c.Differences) != 0 {
			t.Errorf("claim %d: got %+v", i, c)
		}
	}
	for name, tamper := range map[string]struct {
		at    *pgxpool.Pool
		sql   string
		undo  string
		claim []int // that find it
	}{
		"a cent too many":       {b.Pools[0], "UPDATE transfer.account SET cents = cents + 1 WHERE id = 7", "UPDATE transfer.account SET cents = cents - 1 WHERE id = 7", []int{0, 2}},
		"half a transfer":       {b.Pools[1], "CREATE TABLE kept AS SELECT * FROM transfer.entry; DELETE FROM transfer.entry WHERE transfer = (SELECT min(transfer) FROM transfer.entry)", "TRUNCATE transfer.entry; INSERT INTO transfer.entry SELECT * FROM kept; DROP TABLE kept", []int{1, 2}},
		"a transfer made twice": {b.Pools[0], "CREATE TABLE kept AS SELECT * FROM transfer.entry; INSERT INTO transfer.entry SELECT * FROM transfer.entry LIMIT 1", "TRUNCATE transfer.entry; INSERT INTO transfer.entry SELECT * FROM kept; DROP TABLE kept", []int{1, 2}},
		"a record of nothing":   {b.Own, "INSERT INTO transfer.record SELECT id, 'nothing', 1 FROM transfer.run", "DELETE FROM transfer.record WHERE transfer = 'nothing'", []int{3}},
		"a branch left": {
			b.Pools[0], "BEGIN; CREATE TABLE left_over (); PREPARE TRANSACTION 'pawl:1:home:01a212c8250f7392b59e88b41c56300c:ffffffff:east'",
			"ROLLBACK PREPARED 'pawl:1:home:01a212c8250f7392b59e88b41c56300c:ffffffff:east'",
			[]int{4},
		},
	} {
		exec(t, tamper.at, tamper.sql)
		_, claims, err := transfer.Prove(t.Context(), b, run)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, i := range tamper.claim {
			if len(claims[i].Differences) == 0 {
				t.Errorf("%s: claim %d, %q, did not find it", name, i, claims[i].Text)
			}
		}
		exec(t, tamper.at, tamper.undo)
	}
}

// exec runs statements that may not be prepared.
func exec(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Conn().PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
