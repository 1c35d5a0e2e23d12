package twophase

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

const (
	// TimeoutDefault is how long a transaction may take until its commit point.
	TimeoutDefault = 30 * time.Second
	// TimeoutMax bounds that.
	TimeoutMax = 24 * time.Hour

	homeFresh = time.Minute // how old what is known of the coordinator's database may be
)

// Config is how a Manager works. The zero value has the defaults.
type Config struct {
	// Namespace is the number of the namespace in the coordinator's database. Default: 1, "default".
	Namespace int16
	// Name is who decides, for people. Default: the host's name and the process's number.
	Name string
	// Logger gets what goes wrong. Default: slog.Default().
	Logger *slog.Logger

	failpoint func(name string) // of tests
}

// Manager begins global transactions and recovers those that were left. It is safe for concurrent use.
type Manager struct {
	pool         *pgxpool.Pool
	q            *db.Queries
	conf         Config
	participants map[string]Participant
	decider      decider

	mu   sync.Mutex
	home home
	done time.Time       // all that was decided before is committed everywhere, as recovery knows
	seen map[string]bool // names of branches that are committed, or mixed, of transactions that others keep from their end; see finishOne
}

// home is what is known of the coordinator's database.
type home struct {
	name string
	at   time.Time // its clock
	read int64     // when that was, by the monotonic clock
}

// New makes a manager whose decisions are kept in the database of pool. The error lists all that is wrong.
func New(pool *pgxpool.Pool, conf Config, participants ...Participant) (*Manager, error) {
	if conf.Namespace == 0 {
		conf.Namespace = 1
	}
	if conf.Logger == nil {
		conf.Logger = slog.Default()
	}
	if conf.Name == "" {
		host, _ := os.Hostname()
		conf.Name = fmt.Sprintf("%s:%d", host, os.Getpid())
	}
	m := &Manager{pool: pool, q: db.New(db.Spare{Pool: pool}), conf: conf, participants: map[string]Participant{}}
	m.decider.m = m
	var faults []error
	if conf.Namespace < 1 {
		faults = append(faults, fmt.Errorf("%w: namespace %d is below 1", ErrInvalid, conf.Namespace))
	}
	for _, p := range participants {
		faults = append(faults, checkName(p.Name()))
		if m.participants[p.Name()] != nil {
			faults = append(faults, fmt.Errorf("%w: two participants are named %s", ErrInvalid, p.Name()))
		}
		m.participants[p.Name()] = p
	}
	return m, errors.Join(faults...)
}

// Setup makes what participants need of their own, at all of them.
func (m *Manager) Setup(ctx context.Context) error {
	var faults []error
	for _, p := range m.participants {
		faults = append(faults, p.Setup(ctx))
	}
	return errors.Join(faults...)
}

// Run runs a function in a global transaction, and commits it if the error is nil, else rolls it back. The error is the function's, or Commit's. The function's context ends with the transaction's time: two transactions
// that wait for each other's rows at different participants, which no server sees, would else wait for ever.
func (m *Manager) Run(ctx context.Context, work func(ctx context.Context, t *Tx) error, opts ...Option) (err error) {
	t, err := m.Begin(ctx, opts...)
	if err != nil {
		return err
	}
	defer t.Rollback(ctx) // of a panic too
	bounded, stop := context.WithTimeout(ctx, t.timeout)
	defer stop()
	if err := work(bounded, t); err != nil {
		return err
	}
	return t.Commit(ctx)
}

// Option is a property of one transaction.
type Option func(*Tx) error

// Timeout is how long until the commit point the transaction may take, 1 s to TimeoutMax, rounded up to seconds. Default: TimeoutDefault. Past it, others may abort it, and what it has prepared is rolled back.
func Timeout(d time.Duration) Option {
	return func(t *Tx) error {
		if d < time.Second || d > TimeoutMax {
			return fmt.Errorf("%w: timeout of %s is outside 1 s to %s", ErrInvalid, d, TimeoutMax)
		}
		t.timeout = d
		return nil
	}
}

// Begin begins a global transaction. Nothing is written, anywhere, until participants are used.
func (m *Manager) Begin(ctx context.Context, opts ...Option) (*Tx, error) {
	t := &Tx{m: m, timeout: TimeoutDefault, branches: map[string]*branch{}}
	for _, opt := range opts {
		if err := opt(t); err != nil {
			return nil, fmt.Errorf("begin: %w", err)
		}
	}
	h, err := m.here(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin: %w", wrap(err))
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	now := h.at.Add(time.Duration(session.Monotonic() - h.read))
	t.id = BranchID{Namespace: m.conf.Namespace, Home: h.name, ID: id, Deadline: now.Add(t.timeout + time.Second - 1).Truncate(time.Second)}
	return t, nil
}

// here is the coordinator's database as it was lately.
func (m *Manager) here(ctx context.Context) (home, error) {
	m.mu.Lock()
	h := m.home
	m.mu.Unlock()
	if h.name != "" && session.Monotonic()-h.read < int64(homeFresh) {
		return h, nil
	}
	began := session.Monotonic()
	row, err := m.q.ReadGlobalHome(ctx)
	if err != nil {
		return home{}, err
	}
	h = home{row.Home, row.At, began} // the clock is behind by up to a round trip: deadlines come early, not late
	m.mu.Lock()
	m.home = h
	m.mu.Unlock()
	return h, nil
}

// leaveHome has the next transaction ask for the coordinator's database again.
func (m *Manager) leaveHome() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.home = home{}
}

// Outcome tells whether a transaction is committed, by its id: what is decided, and false with ErrNotFound where nothing is, which may still come before its deadline.
// Of one in which a single database has written, the coordinator's or a participant's, nothing is ever decided here.
func (m *Manager) Outcome(ctx context.Context, id string) (committed bool, err error) {
	if _, err := uuid.Parse(id); err != nil {
		return false, fmt.Errorf("%w: %q is no id of a global transaction", ErrInvalid, id)
	}
	rows, err := m.q.ReadGlobalDecisions(ctx, db.ReadGlobalDecisionsParams{Ns: m.conf.Namespace, IDs: []string{id}})
	switch {
	case err != nil:
		return false, fmt.Errorf("outcome of %s: %w", id, wrap(err))
	case len(rows) == 0:
		return false, fmt.Errorf("outcome of %s: %w", id, ErrNotFound)
	}
	return rows[0].Committed, nil
}

func (m *Manager) fail(point string) {
	if m.conf.failpoint != nil {
		m.conf.failpoint(point)
	}
}
