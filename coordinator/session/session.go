// Package session keeps a process's membership: one row, renewed by one heartbeat, however many jobs, locks and relays hang on it.
//
// A session is held to be alive until
//
//	start of the last renewal that succeeded + ttl − margin
//
// by the process's monotonic clock. Postgres calls it dead at expires_at, which is later: the row was written after the renewal
// began. So a process stops before anyone else takes over. SIGSTOP, a lost network and a hung disk end in the same way.
//
//	Situation                                   | Error       | What to do
//	the heartbeat did not get through for a ttl | ErrLost     | the session's context is cancelled with it; start a new session
//	Postgres says that the session has ended    | ErrLost     | the same
//	the schema is missing                       | ErrSchema   | run "pawl migrate up"
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/db"
)

// ErrLost is the cause of everything that a session's end cancels.
var ErrLost = errors.New("session: lost")

// ErrSchema says that the database lacks Pawl's schema, or has an older one than this program needs.
var ErrSchema = errors.New(`session: schema pawl is missing or too old; run "pawl migrate up"`)

// Config configures a session. Its zero value works.
type Config struct {
	// Namespace is the number of the namespace. Default: 1, "default".
	Namespace int16
	// Name tells operators what this process is. Default: the program's name.
	Name string
	// Version of the program, for operators.
	Version string
	// TTL is how long the session lives without a heartbeat, 1 s to 1 h; it is renewed every third of it. Default: 15 s.
	TTL time.Duration
	// Listen makes the heartbeat's connection LISTEN for hints, those to this session and those to the whole namespace. Leave it off behind a
	// transaction pooler.
	Listen bool
	// ListenOwn does so for hints to this session alone.
	ListenOwn bool
	// Kinds are the kinds of steps of sagas and of branches of transactions that the process has handlers for, for operators. Optional.
	Kinds []string
	// Logger receives state changes. Default: none.
	Logger *slog.Logger

	// Held returns the ids of the claims that the process holds; others are reported to Heard as strays. Optional.
	Held func() []int64
	// Heard is called after each heartbeat with what the server told, and for each hint. It must not block. Optional.
	Heard func(News)
	// Healthy tells whether the process can do its work; while it cannot, the session is not renewed. Optional.
	Healthy func() bool
}

// News is what a heartbeat or a hint brought.
type News struct {
	Strays  []int64  // claims of this session with jobs open that Held did not name: a reply was lost
	Cancels []Cancel // attempts that were asked to cancel
	Hint    string   // the payload of a hint, or ""

	// Reconnected: the connection broke and is there again. The server may have crashed meanwhile, and undone what had committed asynchronously.
	Reconnected bool
}

// Cancel names an attempt that was asked to cancel.
type Cancel struct {
	Claim   int64
	Ordinal int32
}

// Session is a process's membership. It is safe for concurrent use.
type Session struct {
	id      int64
	conf    Config
	connect func(context.Context) (*pgx.Conn, error)
	ctx     context.Context
	cancel  context.CancelCauseFunc
	done    chan struct{}

	deadline *time.Timer // fires when the last renewal that succeeded has been trusted long enough
}

// complainEvery is how often the same trouble is logged.
const complainEvery = 10 * time.Second

// margin is what a session gives up of its ttl, so that this process stops before Postgres lets another take over.
func margin(ttl time.Duration) time.Duration { return ttl / 10 }

func (c *Config) withDefaults() Config {
	out := *c
	if out.Namespace == 0 {
		out.Namespace = 1
	}
	if out.Name == "" {
		out.Name = strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe")
	}
	if out.TTL == 0 {
		out.TTL = 15 * time.Second
	}
	if out.Logger == nil {
		out.Logger = slog.New(slog.DiscardHandler)
	}
	return out
}

// Channel is the NOTIFY channel of a namespace's hints.
func Channel(ns int16) string { return "pawl_" + strconv.Itoa(int(ns)) }

// Hint is the payload of the hint that has a session's process renew it at once, and hear thereby of attempts that were asked to cancel.
func Hint(id int64) string { return "s" + strconv.FormatInt(id, 10) }

// ownChannel is the NOTIFY channel of hints to one session.
func ownChannel(ns int16, id int64) string { return fmt.Sprintf("%s_s%d", Channel(ns), id) }

// Start registers a session and keeps it alive until Close, or until it is lost. The heartbeat has a connection of its own, with the pool's
// settings, so that handlers which use up the pool do not end the session. ctx bounds Start alone.
func Start(ctx context.Context, pool *pgxpool.Pool, conf Config) (*Session, error) {
	conf = conf.withDefaults()
	if conf.TTL < time.Second || conf.TTL > time.Hour {
		return nil, fmt.Errorf("session: ttl of %s is outside 1 s to 1 h", conf.TTL)
	}
	host, _ := os.Hostname()
	s := &Session{conf: conf, done: make(chan struct{})}
	s.connect = func(ctx context.Context) (*pgx.Conn, error) {
		return pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	}
	conn, err := s.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("session: connect: %w", err)
	}
	began := time.Now()
	s.id, err = db.New(conn).StartSession(ctx, db.StartSessionParams{
		Ns: conf.Namespace, Name: conf.Name, Host: host, Pid: int32(os.Getpid()), Version: conf.Version, TTL: conf.TTL, Kinds: append([]string{}, conf.Kinds...),
	})
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		if db.IsUnmigrated(err) {
			return nil, fmt.Errorf("%w (%s)", ErrSchema, db.Message(err))
		}
		return nil, fmt.Errorf("session: start: %w", err)
	}
	if err := s.subscribe(ctx, conn); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("session: listen: %w", err)
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.deadline = time.AfterFunc(time.Hour, func() { s.Lose("no heartbeat got through") })
	s.renewed(began)
	conf.Logger.Info("session started", "session", s.id, "ttl", conf.TTL)
	go s.run(conn)
	return s, nil
}

// ID is the session's number.
func (s *Session) ID() int64 { return s.id }

// Namespace is the number of the session's namespace.
func (s *Session) Namespace() int16 { return s.conf.Namespace }

// Context is cancelled with cause ErrLost when the session is lost, and with context.Canceled by Close.
func (s *Session) Context() context.Context { return s.ctx }

// Close ends the session in the database, so that nothing of it need be waited for, and stops the heartbeat. What the session still held
// is given to others by the next sweep.
func (s *Session) Close(ctx context.Context) error {
	s.cancel(context.Canceled)
	<-s.done
	s.deadline.Stop()
	if context.Cause(s.ctx) != context.Canceled {
		return nil // lost before
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return fmt.Errorf("session: close: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := db.New(conn).EndSession(ctx, db.EndSessionParams{Ns: s.conf.Namespace, SessionID: s.id, Why: "closed"}); err != nil {
		return fmt.Errorf("session: close: %w", err)
	}
	return nil
}

func (s *Session) open(ctx context.Context) (*pgx.Conn, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.subscribe(ctx, conn); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return conn, nil
}

// subscribe makes conn LISTEN. The own channel has a name once the session has.
func (s *Session) subscribe(ctx context.Context, conn *pgx.Conn) error {
	var sql string
	if s.conf.Listen {
		sql = "LISTEN " + Channel(s.conf.Namespace) + ";"
	}
	if s.hears() && s.id != 0 {
		sql += "LISTEN " + ownChannel(s.conf.Namespace, s.id) + ";"
	}
	if sql == "" {
		return nil
	}
	_, err := conn.Exec(ctx, sql)
	return err
}

// hears tells whether the session listens at all.
func (s *Session) hears() bool { return s.conf.Listen || s.conf.ListenOwn }

func (s *Session) renewed(began time.Time) {
	s.deadline.Reset(time.Until(began.Add(s.conf.TTL - margin(s.conf.TTL))))
}

// Lose ends the session in this process: somebody was told by the server that it is over. What it held is cancelled with cause ErrLost.
func (s *Session) Lose(why string) {
	if s.ctx.Err() == nil {
		s.conf.Logger.Warn("session lost", "session", s.id, "why", why)
	}
	s.cancel(ErrLost)
}

// run is the heartbeat. It owns conn, and replaces it when it breaks.
func (s *Session) run(conn *pgx.Conn) {
	defer close(s.done)
	defer func() {
		if conn != nil {
			ctx, stop := context.WithTimeout(context.WithoutCancel(s.ctx), time.Second)
			defer stop()
			_ = conn.Close(ctx)
		}
	}()
	every := s.conf.TTL / 3
	var complained time.Time
	next := time.Now().Add(every)
	for s.ctx.Err() == nil {
		if conn == nil || conn.IsClosed() {
			var err error
			ctx, stop := context.WithTimeout(s.ctx, every)
			conn, err = s.open(ctx)
			stop()
			if err != nil {
				conn = nil
				if time.Since(complained) > complainEvery && s.ctx.Err() == nil {
					complained = time.Now()
					s.conf.Logger.Warn("session connection failed, trying again", "session", s.id, "err", err)
				}
				s.pause(every / 10)
				continue
			}
			next = time.Now() // a hint may have been missed
			if s.conf.Heard != nil {
				s.conf.Heard(News{Reconnected: true})
			}
		}
		s.listen(conn, time.Until(next))
		if s.ctx.Err() != nil {
			return
		}
		if s.conf.Healthy != nil && !s.conf.Healthy() {
			next = time.Now().Add(every / 10)
			continue
		}
		if !s.beat(conn, every) {
			_ = conn.Close(s.ctx)
			continue
		}
		next = time.Now().Add(every)
	}
}

// beat renews the session once. False: the connection is of no use any more.
func (s *Session) beat(conn *pgx.Conn, bound time.Duration) bool {
	ctx, stop := context.WithTimeout(s.ctx, bound)
	defer stop()
	held := []int64{}
	if s.conf.Held != nil {
		held = append(held, s.conf.Held()...)
	}
	began := time.Now()
	row, err := db.New(conn).RenewSession(ctx, db.RenewSessionParams{Ns: s.conf.Namespace, SessionID: s.id, Held: held})
	if err != nil {
		if s.ctx.Err() == nil {
			s.conf.Logger.Warn("heartbeat failed, trying again", "session", s.id, "err", err)
			s.pause(bound / 20)
		}
		return false
	}
	if !row.Alive {
		s.Lose("ended by a sweep or an operator")
		return true
	}
	s.renewed(began)
	if s.conf.Heard != nil && (len(row.StrayClaims) > 0 || len(row.CancelClaims) > 0) {
		news := News{Strays: row.StrayClaims}
		for i, claim := range row.CancelClaims {
			news.Cancels = append(news.Cancels, Cancel{claim, row.CancelOrdinals[i]})
		}
		s.conf.Heard(news)
	}
	return true
}

// listen waits until the next heartbeat is due, or a hint asks for one, and passes hints on meanwhile.
func (s *Session) listen(conn *pgx.Conn, wait time.Duration) {
	ctx, stop := context.WithTimeout(s.ctx, max(wait, time.Millisecond))
	defer stop()
	if !s.hears() {
		<-ctx.Done()
		return
	}
	for ctx.Err() == nil {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return
		}
		if n.Payload == Hint(s.id) {
			return // somebody asks us to look at once
		}
		if s.conf.Heard != nil {
			s.conf.Heard(News{Hint: n.Payload})
		}
	}
}

func (s *Session) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.ctx.Done():
	case <-t.C:
	}
}

var started = time.Now()

// Monotonic is the process's monotonic clock in nanoseconds. It tells how long something took, never what time it is.
func Monotonic() int64 { return int64(time.Since(started)) }
