package migrate_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/db/migrate"
)

// hold takes the migrators' lock in another session.
func hold(t *testing.T, url string) (release func()) {
	t.Helper()
	conn := connect(t, url)
	if _, err := conn.Exec(bounded(t), "SELECT pg_advisory_lock($1)", migrate.LockKey); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := conn.Close(bounded(t)); err != nil {
			t.Error(err)
		}
	}
}

// TestConcurrent has many migrators meet on an empty database, with an index
// made concurrently among the migrations, for which no other may hold a
// snapshot.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	const migrators = 6
	var all sync.WaitGroup
	var mu sync.Mutex
	steps := 0
	barrier := make(chan struct{})
	for range migrators {
		all.Go(func() {
			<-barrier
			got, err := files(3, nil).Up(bounded(t), url)
			if err != nil || got.Version != 3 {
				t.Errorf("got %+v, %v; want version 3", got, err)
			}
			mu.Lock()
			defer mu.Unlock()
			steps += len(got.Steps)
		})
	}
	begin := time.Now()
	close(barrier)
	all.Wait()
	t.Logf("%d migrators took %v", migrators, time.Since(begin))
	if steps != 3 {
		t.Errorf("steps of all together: got %d, want 3", steps)
	}
	if got := ask[int](t, url, "SELECT count(*) FROM pawl.migration"); got != 4 {
		t.Errorf("records: got %d, want 3 and that of goose", got)
	}
}

// TestUpToDate migrates without the lock what needs no migration.
func TestUpToDate(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	if _, err := files(3, nil).Up(bounded(t), url); err != nil {
		t.Fatal(err)
	}
	defer hold(t, url)()
	impatient := files(3, nil)
	impatient.LockWaitMax = time.Nanosecond
	if got, err := impatient.Up(bounded(t), url); err != nil || got.Version != 3 {
		t.Errorf("Up: got %+v, %v", got, err)
	}
	if _, err := impatient.Status(bounded(t), url); err != nil {
		t.Errorf("Status: %v", err)
	}
}

func TestBusy(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	release := hold(t, url)
	impatient := files(3, nil)
	impatient.LockWaitMax = 3 * migrate.LockRetry
	if _, err := impatient.Up(bounded(t), url); !errors.Is(err, migrate.ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*migrate.LockRetry)
	defer cancel()
	if _, err := files(3, nil).Up(ctx, url); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, migrate.ErrBusy) {
		t.Errorf("got %v, want the end of the context", err)
	}
	if ask[bool](t, url, "SELECT to_regnamespace('pawl') IS NOT NULL") {
		t.Error("made the schema without the lock")
	}
	release()
	if got, err := files(3, nil).Up(bounded(t), url); err != nil || got.Version != 3 {
		t.Errorf("after release: got %+v, %v", got, err)
	}
}

// TestCrash ends a migrator in the middle of a migration, by its context and by
// its connection. The next one goes on from there.
func TestCrash(t *testing.T) {
	t.Parallel()
	slow := map[string]string{"00003_index.sql": "-- +goose Up\nCREATE TABLE pawl.half ();\nSELECT pg_sleep(600);\n\n-- +goose Down\nDROP TABLE pawl.half;\n"}
	const sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
	const terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
	for _, how := range []string{"context", "connection"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			url := newDatabase(t)
			ctx, cancel := context.WithCancel(bounded(t))
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				_, err := files(2, slow).Up(ctx, url)
				ended <- err
			}()
			eventually(t, "the migration runs", func() bool { return ask[int](t, url, sleeping) == 1 })
			if how == "context" {
				cancel()
			} else {
				ask[int](t, url, terminate)
			}
			if err := <-ended; err == nil {
				t.Error("got no error")
			}
			got, err := files(3, nil).Up(bounded(t), url)
			if err != nil || names(got.Steps) != "00003_index.sql" {
				t.Errorf("next: got %+v, %v", got, err)
			}
			if ask[bool](t, url, "SELECT to_regclass('pawl.half') IS NOT NULL") {
				t.Error("half a migration stayed")
			}
		})
	}
}

// TestRights migrates as a role that may not create schemas, into one that was
// made for it.
func TestRights(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	role := ask[string](t, url, "SELECT current_database() || '_role'") // roles are of the whole server
	exec(t, url, "CREATE ROLE "+role+"; CREATE SCHEMA pawl; GRANT ALL ON SCHEMA pawl TO "+role)
	limited := url + "&options=-crole%3D" + role
	first := map[string]string{"00001_box.sql": "-- +goose Up\nCREATE TABLE pawl.box (id bigint, note text);\n\n-- +goose Down\nDROP TABLE pawl.box;\n"}
	if got, err := files(3, first).Up(bounded(t), limited); err != nil || got.Version != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := files(3, first).Down(bounded(t), limited, 0); err != nil {
		t.Error(err)
	}
	if !ask[bool](t, url, "SELECT to_regnamespace('pawl') IS NOT NULL") {
		t.Error("dropped the schema of another")
	}
}
