package dbtest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db/dbtest"
	"github.com/pawl-dev/pawl/db/devpg"
	"github.com/pawl-dev/pawl/db/migrate"
)

// TestNew gets databases that are migrated, and apart.
func TestNew(t *testing.T) {
	t.Parallel()
	var names sync.Map
	for _, name := range []string{"a", "b", "c", "d"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			var database string
			if err := pool.QueryRow(bounded(t), "SELECT current_database()").Scan(&database); err != nil {
				t.Fatal(err)
			}
			if _, twice := names.LoadOrStore(database, true); twice {
				t.Errorf("database %s was given twice", database)
			}
			if _, err := pool.Exec(bounded(t), "CREATE TABLE pawl.apart ()"); err != nil {
				t.Error(err)
			}
			states, err := migrate.Status(bounded(t), pool.Config().ConnString())
			if err != nil {
				t.Fatal(err)
			}
			for _, state := range states {
				if state.AppliedAt.IsZero() {
					t.Errorf("%s is pending", state.Name)
				}
			}
		})
	}
}

// TestNew_gone checks that a database goes with its test, whoever is connected.
func TestNew_gone(t *testing.T) {
	t.Parallel()
	admin := dbtest.EmptyURL(t)
	var url, name string
	var conn *pgx.Conn
	t.Run("inner", func(t *testing.T) {
		url = dbtest.NewURL(t)
		var err error
		if conn, err = pgx.Connect(bounded(t), url); err != nil {
			t.Fatal(err)
		}
		name = conn.Config().Database
	})
	if err := conn.Ping(bounded(t)); err == nil {
		t.Error("the connection is still open")
	}
	if left, err := ask[int](bounded(t), admin, "SELECT count(*) FROM pg_database WHERE datname = $1", name); left != 0 || err != nil {
		t.Errorf("databases left: %d, %v", left, err)
	}
}

func TestEmptyURL(t *testing.T) {
	t.Parallel()
	has, err := ask[bool](bounded(t), dbtest.EmptyURL(t), "SELECT to_regnamespace('pawl') IS NOT NULL")
	if has || err != nil {
		t.Errorf("schema pawl: got %v, %v; want none", has, err)
	}
}

// TestPrivate kills the server of a test and starts it again.
func TestPrivate(t *testing.T) {
	t.Parallel()
	var dir string
	t.Run("inner", func(t *testing.T) {
		server := dbtest.Private(t, devpg.Config{Settings: map[string]string{"max_connections": "33"}})
		dir = server.Dir()
		url := server.URL(dbtest.PrivateDatabase)
		_, err := ask[bool](bounded(t), url, "WITH made AS (SELECT 1) SELECT to_regclass('pawl.migration') IS NOT NULL FROM made")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(bounded(t), url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(bounded(t), "CREATE TABLE pawl.kept AS SELECT 1"); err != nil {
			t.Fatal(err)
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := devpg.Start(bounded(t), server.Config()); err != nil {
			t.Fatal(err)
		}
		got, err := ask[string](bounded(t), url, "SELECT count(*)::text || ' ' || current_setting('max_connections') FROM pawl.kept")
		if got != "1 33" || err != nil {
			t.Errorf("after a restart: got %q, %v", got, err)
		}
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("directory: %v, want it gone", err)
	}
}

// TestInnerKept fails on purpose, in another process.
func TestInnerKept(t *testing.T) {
	if !isInner(t) {
		return
	}
	pool := dbtest.New(t)
	if _, err := pool.Exec(bounded(t), "CREATE TABLE evidence AS SELECT 'seen'::text AS what"); err != nil {
		t.Fatal(err)
	}
	say("server", os.Getpid())
	t.Fail()
}

// TestKept starts the server of a failed test again, as its log says.
func TestKept(t *testing.T) {
	t.Parallel()
	output, err := inner(t, "TestInnerKept", "PAWL_TEST_DATABASE_URL=").CombinedOutput()
	if err == nil {
		t.Fatal("the inner test did not fail")
	}
	_, rest, found := strings.Cut(string(output), "the database is kept: ")
	url, rest, _ := strings.Cut(rest, ";")
	_, command, _ := strings.Cut(rest, "start it again with: ")
	fields := strings.Fields(command)
	if !found || len(fields) < 7 {
		t.Fatalf("the log does not say where the database is:\n%s", output)
	}
	dataDir := fields[2]
	eventually(t, "the server has ended", func() bool {
		_, err := os.Stat(filepath.Join(dataDir, "postmaster.pid"))
		return os.IsNotExist(err)
	})
	server, err := devpg.Start(bounded(t), devpg.Config{Dir: filepath.Dir(dataDir)})
	if err != nil {
		t.Fatal(err)
	}
	defer devpg.Remove(bounded(t), server.Dir())
	if got, err := ask[string](bounded(t), url, "SELECT what FROM evidence"); got != "seen" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestInnerURL uses the server it was given.
func TestInnerURL(t *testing.T) {
	if !isInner(t) {
		return
	}
	pool := dbtest.New(t)
	var port, database string
	err := pool.QueryRow(bounded(t), "SELECT current_setting('cluster_name'), current_database()").Scan(&port, &database)
	if err != nil {
		t.Fatal(err)
	}
	say("cluster", port)
	say("database", database)
}

// TestURL has processes use, at once, a server that has no template yet, as a
// role that may create databases and no more.
func TestURL(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, devpg.Config{Settings: map[string]string{"cluster_name": "given"}})
	conn, err := pgx.Connect(bounded(t), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(bounded(t))
	var template string
	if err := conn.QueryRow(bounded(t), "SELECT datname FROM pg_database WHERE datname LIKE 'pawl\\_template\\_%'").Scan(&template); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{"DROP DATABASE " + template, "CREATE ROLE tester LOGIN CREATEDB"} {
		if _, err := conn.Exec(bounded(t), sql); err != nil {
			t.Fatal(err)
		}
	}
	given := strings.Replace(server.URL("postgres"), "//postgres@", "//tester@", 1)
	var all sync.WaitGroup
	for range 3 {
		cmd := inner(t, "TestInnerURL", "PAWL_TEST_DATABASE_URL="+given)
		all.Go(func() {
			output, err := cmd.CombinedOutput()
			if err != nil || said(string(output), "cluster") != "given" {
				t.Errorf("%v:\n%s", err, output)
			}
		})
	}
	all.Wait()
	rows, err := conn.Query(bounded(t), "SELECT datname FROM pg_database WHERE datname LIKE 'pawl\\_%' ORDER BY 1")
	if err != nil {
		t.Fatal(err)
	}
	left, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || strings.Join(left, " ") != template {
		t.Errorf("databases left: got %v, %v; want %s", left, err, template)
	}
}

// TestInnerHang makes a database and waits to be killed.
func TestInnerHang(t *testing.T) {
	if !isInner(t) {
		return
	}
	pool := dbtest.New(t)
	var dataDir string
	if err := pool.QueryRow(bounded(t), "SELECT current_setting('data_directory')").Scan(&dataDir); err != nil {
		t.Fatal(err)
	}
	say("data", dataDir)
	<-t.Context().Done()
}

// TestKilled kills a test binary: its server ends and leaves nothing.
func TestKilled(t *testing.T) {
	t.Parallel()
	cmd := inner(t, "TestInnerHang", "PAWL_TEST_DATABASE_URL=")
	dataDir := killOnce(t, cmd)
	eventually(t, "the directory is removed", func() bool {
		_, err := os.Stat(filepath.Dir(dataDir))
		return os.IsNotExist(err)
	})
}

// killOnce runs the command until it says where its server is, and kills it.
func killOnce(t *testing.T, cmd *exec.Cmd) (dataDir string) {
	t.Helper()
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the inner test has a database", func() bool {
		text, err := os.ReadFile(output.Name())
		dataDir = said(string(text), "data")
		return err == nil && dataDir != ""
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return dataDir
}

// TestInnerServerKilled loses the server between two tests.
func TestInnerServerKilled(t *testing.T) {
	if !isInner(t) {
		return
	}
	var before, after string
	for _, dataDir := range []*string{&before, &after} {
		t.Run("test", func(t *testing.T) {
			url := dbtest.NewURL(t)
			var err error
			if *dataDir, err = ask[string](bounded(t), url, "SELECT current_setting('data_directory')"); err != nil {
				t.Fatal(err)
			}
			if before == *dataDir {
				kill(t, before)
			}
		})
	}
	if before == after {
		t.Errorf("both used %s", before)
	}
}

func TestServerKilled(t *testing.T) {
	t.Parallel()
	if output, err := inner(t, "TestInnerServerKilled", "PAWL_TEST_DATABASE_URL=").CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, output)
	}
}

func kill(t *testing.T, dataDir string) {
	t.Helper()
	server, err := devpg.Start(bounded(t), devpg.Config{Dir: filepath.Dir(dataDir)})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkNew is what a test pays for its database.
func BenchmarkNew(b *testing.B) {
	dbtest.NewURL(b) // the server has started
	for b.Loop() {
		(&lone{TB: b}).run(func(tb testing.TB) { dbtest.New(tb) })
	}
}

// lone is a test within a benchmark: it cleans up when it ends.
type lone struct {
	testing.TB
	cleanups []func()
}

func (l *lone) Cleanup(f func()) { l.cleanups = append(l.cleanups, f) }

func (l *lone) run(test func(testing.TB)) {
	test(l)
	for _, cleanup := range slices.Backward(l.cleanups) {
		cleanup()
	}
}
