package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/twophase"
)

// participantFlags name the participants of global transactions.
type participantFlags struct {
	Participant []string `env:"PAWL_PARTICIPANTS" sep:" " placeholder:"NAME=URL" help:"Participant of global transactions, such as east=postgres://pawl@east/bank or west=mysql://pawl@west/bank; repeatable, in the environment with spaces between. Others see a command line: keep passwords in the environment or in PGPASSFILE."`
}

var participantName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,32}$`)

// open makes the participants that were named. It reaches none yet. No error tells what a URL holds.
func (f participantFlags) open(a *app) (all []twophase.Participant, closeAll func(), err error) {
	var closes []func()
	closeAll = func() {
		for _, f := range closes {
			f()
		}
	}
	for _, text := range f.Participant {
		if text == "" {
			continue
		}
		name, at, ok := strings.Cut(text, "=")
		if !ok || !participantName.MatchString(name) {
			closeAll()
			return nil, nil, usagef("--participant wants NAME=URL, with a name of 1 to %d letters, digits, dots, hyphens and underscores", twophase.NameBytesMax)
		}
		scheme, _, _ := strings.Cut(at, "://")
		switch scheme {
		case "postgres", "postgresql":
			pool, err := participantPool(a, "--participant "+name, at)
			if err != nil {
				closeAll()
				return nil, nil, err
			}
			closes = append(closes, pool.Close)
			all = append(all, twophase.Postgres(name, pool))
		case "mysql", "mariadb":
			db, err := participantMySQL("--participant "+name, at)
			if err != nil {
				closeAll()
				return nil, nil, err
			}
			closes = append(closes, func() { _ = db.Close() })
			all = append(all, twophase.MySQL(name, db))
		default: // another kind of participant gets a case of its own
			closeAll()
			return nil, nil, usagef("--participant %s: its URL must begin with postgres:// or mysql://", name)
		}
	}
	return all, closeAll, nil
}

// unreadable does not say why: that would quote what may be a password.
func unreadable(what string) error {
	return usagef("%s: its URL cannot be read; write special characters of a password as %%XX", what)
}

// participantPool opens a Postgres, which is called what, by its URL. It reaches nothing yet.
func participantPool(a *app, what, at string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(at)
	if err != nil {
		return nil, unreadable(what)
	}
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = a.clientName()
	}
	throughPooler(config)
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(a.ctx), config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return pool, nil
}

// participantMySQL opens mysql://user:password@host:3306/database, of MariaDB as well, which is called what. It reaches nothing yet. Parameters are those of github.com/go-sql-driver/mysql, and socket, a path in place of host and port.
func participantMySQL(what, at string) (*sql.DB, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, unreadable(what)
	}
	query := u.Query()
	config := mysql.NewConfig()
	config.Net, config.Addr, config.DBName = "tcp", u.Host, strings.TrimPrefix(u.Path, "/")
	if u.Port() == "" {
		config.Addr = net.JoinHostPort(u.Hostname(), "3306")
	}
	if socket := query.Get("socket"); socket != "" {
		config.Net, config.Addr = "unix", socket
		query.Del("socket")
	}
	config.User = u.User.Username()
	config.Passwd, _ = u.User.Password()
	dsn := config.FormatDSN()
	if len(query) > 0 {
		mark := "?"
		if strings.Contains(dsn[strings.LastIndexByte(dsn, '/'):], "?") {
			mark = "&"
		}
		dsn += mark + query.Encode()
	}
	if config, err = mysql.ParseDSN(dsn); err != nil || config.DBName == "" {
		return nil, unreadable(what)
	}
	config.Logger = &mysql.NopLogger{} // its errors come back as well
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return nil, unreadable(what)
	}
	return sql.OpenDB(connector), nil
}

// manager makes a manager of global transactions that has the participants that were named.
func (f participantFlags) manager(a *app, pool *pgxpool.Pool) (*twophase.Manager, func(), error) {
	all, closeAll, err := f.open(a)
	if err != nil {
		return nil, nil, err
	}
	m, err := twophase.New(pool, twophase.Config{Namespace: a.namespace, Name: a.clientName(), Logger: a.log}, all...)
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	return m, closeAll, nil
}

// needed refuses a command line without participants.
func (f participantFlags) needed() error {
	if len(f.Participant) == 0 {
		return usagef("no participant is named: --participant NAME=URL, or PAWL_PARTICIPANTS")
	}
	return nil
}

// manager makes a manager of global transactions that has no participants, to look at them and to decide.
func (a *app) manager(pool *pgxpool.Pool) (*twophase.Manager, error) {
	return twophase.New(pool, twophase.Config{Namespace: a.namespace, Name: a.clientName(), Logger: a.log})
}

// txParticipantsCmd is "pawl tx participants".
type txParticipantsCmd struct {
	Limit int `default:"100" placeholder:"N" help:"Rows at most, 1 to 10,000. Default: ${default}."`
}

// Help is the long help text.
func (*txParticipantsCmd) Help() string {
	return `Those that coordinators were given, and that a recovery has looked at. RECOVERED: when all was last done there. TRIED: when it was last tried, by any coordinator: longer than a minute ago says that none has it any more. PREPARED: branches that waited there for the end of their transactions.`
}

// Run lists participants.
func (c *txParticipantsCmd) Run(a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	m, err := a.manager(pool)
	if err != nil {
		return err
	}
	seen, err := m.Participants(a.ctx, c.Limit)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"participants": seen})
	}
	if len(seen) == 0 {
		fmt.Fprintln(a.err, `no coordinator was given any participant: "pawl serve --participant NAME=URL"`)
		return nil
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	l := txListing{Participants: seen, now: now}
	return l.participantTable(a)
}

// txSetupCmd is "pawl tx setup".
type txSetupCmd struct{ participantFlags }

// Help is the long help text.
func (*txSetupCmd) Help() string {
	return `Makes in each participant's database the two tables that are needed of Pawl's own, if they are not there: a row in one, written with the work, witnesses that a branch was committed. All who prepare and recover should be of the role that runs this, or be granted its tables: "pawl doctor --participant" tells.`
}

// Run sets participants up.
func (c *txSetupCmd) Run(a *app) error {
	if err := c.needed(); err != nil {
		return err
	}
	all, closeAll, err := c.open(a)
	if err != nil {
		return err
	}
	defer closeAll()
	type row struct {
		Name  string `json:"name"`
		Error string `json:"error,omitempty"`
	}
	var rows []row
	var faults []error
	for _, p := range all {
		ctx, stop := context.WithTimeout(a.ctx, connectMax)
		err := p.Setup(ctx)
		stop()
		rows = append(rows, row{Name: p.Name()})
		if err != nil {
			rows[len(rows)-1].Error = atParticipant(err).Error()
			faults = append(faults, atParticipant(err))
		} else if !a.json {
			fmt.Fprintf(a.out, "participant %s is set up, at %s\n", p.Name(), plain(p.Address()))
		}
	}
	if a.json {
		if err := a.printJSON(map[string]any{"participants": rows}); err != nil {
			return err
		}
	}
	if err := errors.Join(faults...); err != nil {
		if a.json {
			return reportedError{err}
		}
		return err
	}
	return nil
}

// txRecoverCmd is "pawl tx recover".
type txRecoverCmd struct{ participantFlags }

// Help is the long help text.
func (*txRecoverCmd) Help() string {
	return `Does once what coordinators ("pawl serve --participant") do every 5 seconds: commits what is decided, rolls back what is past its deadline, and lists for a person ("pawl tx list") what nobody may presume anything of. It may run at the same time as they. Participants that it is not given are left alone.`
}

// Run makes one pass.
func (c *txRecoverCmd) Run(a *app) error {
	if err := c.needed(); err != nil {
		return err
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	m, closeAll, err := c.manager(a, pool)
	if err != nil {
		return err
	}
	defer closeAll()
	r, err := m.Recover(a.ctx, twophase.KeepDefault)
	var unsettled *twophase.UnsettledError
	switch {
	case errors.As(err, &unsettled):
		err = atParticipant(err)
	case err != nil:
		return err
	}
	if a.json {
		hindered := map[string]string{}
		if unsettled != nil {
			for name, err := range unsettled.Errors {
				hindered[name] = atParticipant(err).Error()
			}
		}
		if err := a.printJSON(struct {
			twophase.Recovery
			Hindered map[string]string `json:"hindered"`
		}{r, hindered}); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.out, "%d branches committed, %d rolled back; %d transactions are committed everywhere now, %d old ones removed\n", r.Committed, r.RolledBack, r.Ended, r.Removed)
		if r.Doubts > 0 {
			fmt.Fprintf(a.out, "%d branches need a person: \"pawl tx list\" says what for\n", r.Doubts)
		}
	}
	if err != nil && a.json {
		return reportedError{err}
	}
	return err
}

// atParticipant is an error at a participant for people: what it says of a database is not of the one that the command works on.
func atParticipant(err error) error { return errors.New(oneLine(err.Error())) }

// participantTable prints participants.
func (l *txListing) participantTable(a *app) error {
	t := a.table("NAME", "KIND", "ADDRESS", "RECOVERED", "TRIED", "PREPARED", "ERROR")
	for _, p := range l.Participants {
		recovered := "never"
		if !p.SeenAt.IsZero() {
			recovered = ago(l.now, p.SeenAt)
		}
		t.row(p.Name, p.Kind, p.Address, recovered, ago(l.now, p.TriedAt), strconv.Itoa(p.Prepared), cut(oneLine(p.Error), 200))
	}
	return t.end()
}
