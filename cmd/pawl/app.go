package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db/devpg"
)

const (
	// devName is the name of the private Postgres of "pawl dev", as devpg.DefaultDir takes it.
	devName = "dev"
	// devDatabase is the database in it.
	devDatabase = "pawl"
	// connectMax bounds how long a command waits for the database to answer for the first time.
	connectMax = 10 * time.Second
	// clientNameMax is how long an application_name may be, in bytes.
	clientNameMax = 63
)

// errUnreachable means that the database did not answer.
var errUnreachable = errors.New("database not reachable")

// app is what every sub-command's Run gets: the global flags, and where to read and write.
type app struct {
	ctx           context.Context // ends at the first interrupt
	in            io.Reader
	out           io.Writer
	err           io.Writer
	json          bool
	databaseURL   string // "": the private Postgres of "pawl dev", if it runs
	namespace     int16
	namespaceName string // not yet looked up: pool sets namespace
	command       string // the sub-command, such as "job list"
	log           *slog.Logger
}

// url returns the database to work on. The error says what to set.
func (a *app) url() (string, error) {
	if a.databaseURL != "" {
		return a.databaseURL, nil
	}
	dir, err := devpg.DefaultDir(devName)
	if err != nil {
		return "", err
	}
	if u := privateURL(dir); u != "" {
		return u, nil
	}
	return "", fmt.Errorf(`%w: set --database-url or PAWL_DATABASE_URL, or start a private Postgres with "pawl dev"`, errNoDatabase)
}

// pool connects to that database, makes sure that it answers, and looks the namespace up. It is for commands that ask a few things, or now and then:
// it works through a pooler in transaction mode, at the price of not preparing statements. Close the pool.
func (a *app) pool(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := a.config()
	if err != nil {
		return nil, err
	}
	throughPooler(config)
	return a.connect(ctx, config)
}

// throughPooler makes connections prepare nothing that a pooler in transaction mode would lose, unless the URL says how they are to do it.
func throughPooler(config *pgxpool.Config) {
	if config.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
}

// checkURL is url for package migrate to look at the schema, as throughPooler has it.
func (a *app) checkURL() (string, error) {
	const mode = "default_query_exec_mode"
	u, err := a.url()
	if err != nil || strings.Contains(u, mode) {
		return u, err
	}
	parsed, err := url.Parse(u)
	if err != nil {
		return u, nil // whoever connects says what is wrong
	}
	if parsed.Scheme == "" { // keywords and values
		return u + " " + mode + "=cache_describe", nil
	}
	query := parsed.Query()
	query.Set(mode, "cache_describe")
	parsed.RawQuery = query.Encode()
	return parsed.String(), nil
}

func (a *app) config() (*pgxpool.Config, error) {
	u, err := a.url()
	if err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(u)
	if err != nil {
		return nil, err
	}
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = a.clientName()
	}
	return config, nil
}

func (a *app) connect(ctx context.Context, config *pgxpool.Config) (*pgxpool.Pool, error) {
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	ping, stop := context.WithTimeout(ctx, connectMax)
	defer stop()
	if err := pool.Ping(ping); err != nil {
		pool.Close()
		return nil, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	if err := a.findNamespace(ctx, pool); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

// findNamespace turns the name of a namespace into its number. Of "default" both are known.
func (a *app) findNamespace(ctx context.Context, pool *pgxpool.Pool) error {
	if a.namespaceName == "" {
		return nil
	}
	ns, err := session.FindNamespace(ctx, pool, a.namespaceName)
	if err != nil {
		return err
	}
	a.namespace, a.namespaceName = ns, ""
	return nil
}

// clientName is what Postgres and those who look at a job are told of this process.
func (a *app) clientName() string {
	name := "pawl " + a.command
	if u, err := user.Current(); err == nil {
		name += " " + u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name[:min(len(name), clientNameMax)]
}

// confirm asks before something that cannot be undone, unless yes says so already.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if f, ok := a.in.(*os.File); !ok || !isTerminal(f) {
		return usagef("%s Say so with --yes", question)
	}
	fmt.Fprintf(a.err, "%s Type yes to go on: ", question)
	answer, _ := bufio.NewReader(a.in).ReadString('\n') // an end of input is a no
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

// isTerminal tells whether a person may answer. /dev/null is a character device as well.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err == nil && !os.SameFile(info, null)
}

// privateURL returns the URL of the private Postgres in dir, or "" if none takes connections there. It starts nothing.
func privateURL(dir string) string {
	text, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		return ""
	}
	lines := strings.Split(string(text), "\n") // pid, data directory, start time, port, socket directory, …
	if len(lines) < 5 || lines[4] == "" {
		return ""
	}
	socket := filepath.Join(lines[4], ".s.PGSQL."+lines[3])
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return "" // a dead server leaves the file behind
	}
	_ = conn.Close()
	query := url.Values{"host": {lines[4]}, "port": {lines[3]}}
	return (&url.URL{Scheme: "postgres", User: url.User(devpg.Superuser), Path: "/" + devDatabase, RawQuery: query.Encode()}).String()
}
