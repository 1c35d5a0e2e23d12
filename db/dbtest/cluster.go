package dbtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db/devpg"
)

const (
	// endMax is how long the end of a server that died may take to be noticed.
	endMax = time.Second

	// leavePause and leaveTriesMax bound the wait for closed connections to
	// be gone before a database is dropped.
	leavePause    = 2 * time.Millisecond
	leaveTriesMax = 25
)

// urlEnv names the variable that holds the URL of a server to use.
const urlEnv = "PAWL_TEST_DATABASE_URL"

// cluster is a server on which tests get their databases.
type cluster struct {
	adminURL string
	server   *devpg.Server // nil if the server was given by URL
	template string        // the database that is cloned
	strategy string        // how, a clause of CREATE DATABASE

	mu    sync.Mutex
	admin *pgx.Conn // on the maintenance database; nil or closed: to be made
}

// running is the cluster of this test binary. There is no other place for it:
// tests do not know of each other.
var running struct {
	sync.Mutex
	cluster *cluster
}

// current returns the cluster of this test binary, and starts it when it is
// first asked for, and again if the server has died.
func current(ctx context.Context) (*cluster, error) {
	running.Lock()
	defer running.Unlock()
	if c := running.cluster; c != nil {
		if !c.ended() {
			return c, nil
		}
		_ = c.close(ctx)                           // nobody is at the other end
		if err := c.server.Stop(ctx); err != nil { // it has ended; this removes its directory
			return nil, err
		}
	}
	c, err := startCluster(ctx)
	if err != nil {
		return nil, err
	}
	running.cluster = c
	return c, nil
}

func (c *cluster) ended() bool {
	if c.server == nil {
		return false
	}
	select {
	case <-c.server.Done():
		return true
	default:
		return false
	}
}

// errEnded means that the server has died, with all databases.
var errEnded = errors.New("the server has ended")

// do has work done on the connection to the maintenance database, by one at a
// time. It is kept, for to connect takes as long as to clone.
//
// If it breaks, do waits a moment for news of the server's end: with errEnded
// the caller knows that another server is to be started.
func (c *cluster) do(ctx context.Context, work func(*pgx.Conn) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.admin == nil || c.admin.IsClosed() {
		c.admin, err = pgx.Connect(ctx, c.adminURL)
	}
	if err == nil {
		err = work(c.admin)
	}
	if err == nil || c.server == nil || c.admin != nil && !c.admin.IsClosed() {
		return err
	}
	timer := time.NewTimer(endMax)
	defer timer.Stop()
	select {
	case <-c.server.Done():
		return fmt.Errorf("%w: %w", errEnded, err)
	case <-timer.C:
		return err
	}
}

func startCluster(ctx context.Context) (*cluster, error) {
	name, err := templateName()
	if err != nil {
		return nil, err
	}
	c := &cluster{adminURL: os.Getenv(urlEnv), template: name}
	if c.adminURL == "" {
		if c.server, err = startFromTemplate(ctx, name, devpg.Config{Temporary: true}); err != nil {
			return nil, err
		}
		c.adminURL = c.server.URL("postgres")
	}
	return c, c.open(ctx)
}

// open looks how the server clones databases, and makes the template if the
// server does not have it.
func (c *cluster) open(ctx context.Context) error {
	return c.do(ctx, func(conn *pgx.Conn) error {
		var version int
		err := conn.QueryRow(ctx, "SELECT pg_catalog.current_setting('server_version_num')::int").Scan(&version)
		if err != nil {
			return err
		}
		if version >= 150000 { // older ones know no other way
			c.strategy = " STRATEGY FILE_COPY"
		}
		return ensureTemplate(ctx, conn, c)
	})
}

// close closes the connection.
func (c *cluster) close(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.admin == nil {
		return nil
	}
	return c.admin.Close(ctx)
}

// url returns the URL of another database on the same server.
func (c *cluster) url(database string) string {
	u, err := url.Parse(c.adminURL)
	if err != nil || u.Scheme == "" { // keywords and values: the last one counts
		return c.adminURL + " dbname=" + database
	}
	u.Path = "/" + database
	return u.String()
}

// create makes a database and returns its name.
func (c *cluster) create(ctx context.Context, migrated bool) (string, error) {
	template := "template0"
	if migrated {
		template = c.template
	}
	name := fmt.Sprintf("pawl_test_%d_%s", os.Getpid(), strings.ToLower(rand.Text()[:10]))
	return name, c.do(ctx, func(conn *pgx.Conn) error { return c.clone(ctx, conn, template, name) })
}

func (c *cluster) clone(ctx context.Context, conn *pgx.Conn, template, name string) error {
	sql := "CREATE DATABASE " + quote(name) + " TEMPLATE " + quote(template) + c.strategy
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("create database from %s: %w", template, err)
	}
	return nil
}

// drop drops a database, with what is connected to it.
func (c *cluster) drop(ctx context.Context, name string) error {
	err := c.do(ctx, func(conn *pgx.Conn) error {
		if err := awaitLeft(ctx, conn, name); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+quote(name)+" WITH (FORCE)")
		return err
	})
	if errors.Is(err, errEnded) { // with all that was on it
		return nil
	}
	return err
}

// awaitLeft gives connections that were just closed a moment to be gone. DROP
// DATABASE would look again after 100 ms only.
func awaitLeft(ctx context.Context, conn *pgx.Conn, name string) error {
	ticker := time.NewTicker(leavePause)
	defer ticker.Stop()
	for range leaveTriesMax {
		var left int
		err := conn.QueryRow(ctx, "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datname = $1", name).Scan(&left)
		if left == 0 || err != nil {
			return err
		}
		<-ticker.C
	}
	return nil
}

// keep keeps the server's directory beyond this run, and returns how to get at
// it.
func (c *cluster) keep() string {
	if c.server == nil {
		return ""
	}
	return keepServer(c.server)
}

// keepServer keeps the directory of a server, and says how to start it again.
func keepServer(s *devpg.Server) string {
	if err := s.Keep(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Sprintf(" until this binary ends: %v", err)
	}
	return fmt.Sprintf("; the server ends with this binary, as the owner of its data start it again with: %s/postgres -D %s -k %s -c listen_addresses=",
		s.BinDir(), s.DataDir(), s.SocketDir())
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
