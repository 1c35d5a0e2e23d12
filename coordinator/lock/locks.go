package lock

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

const (
	connsMax     = 2 // of the requests; the session has one more
	batchMax     = 200
	batchTimeout = 10 * time.Second
	closeMax     = 5 * time.Second
	startMax     = 10 * time.Second // of a session
)

// Config configures Locks. Its zero value works.
type Config struct {
	// Namespace is the number of the namespace. Default: 1, "default".
	Namespace int16
	// Name and Version tell operators what this process is. Default: the program's name.
	Name, Version string
	// TTL is how long what this process holds stays its own after its last heartbeat, 1 s to 1 h. Default: 15 s.
	TTL time.Duration
	// PollOnly does without LISTEN, as behind a pooler in transaction mode.
	PollOnly bool
	// PollInterval is how often waits are looked at when no hint comes. Default: 1 s; with PollOnly 50 ms.
	PollInterval time.Duration
	// Logger receives state changes. Default: none.
	Logger *slog.Logger
}

// Locks acquires locks for a process: one session with one heartbeat, however many locks it holds, and at most three connections, of its own. It is safe for
// concurrent use.
type Locks struct {
	conf   Config
	pool   *pgxpool.Pool
	prefix string
	count  atomic.Int64
	trips  atomic.Int64 // round trips of requests

	mu       sync.Mutex
	owners   map[string]*owner
	now      *run
	starting *starting // nil: none is
	closed   bool
}

// starting is a session on its way; many may wait for it.
type starting struct {
	done chan struct{}
	err  error
}

// Open starts a session for locks. pool gives the settings of the connections only, so that a pool that is used up keeps nobody from releasing. The error is
// ErrSchema, ErrInvalid or the database's.
func Open(ctx context.Context, pool *pgxpool.Pool, conf Config) (*Locks, error) {
	if conf.Namespace == 0 {
		conf.Namespace = 1
	}
	if conf.Logger == nil {
		conf.Logger = slog.New(slog.DiscardHandler)
	}
	if conf.PollInterval == 0 {
		conf.PollInterval = time.Second
		if conf.PollOnly {
			conf.PollInterval = 50 * time.Millisecond
		}
	}
	if conf.PollInterval < time.Millisecond {
		return nil, fmt.Errorf("%w: poll interval of %s is less than 1 ms", ErrInvalid, conf.PollInterval)
	}
	own := pool.Config()
	own.MaxConns, own.MinConns, own.MinIdleConns = connsMax, 0, 0
	p, err := pgxpool.NewWithConfig(ctx, own)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	l := &Locks{conf: conf, pool: p, prefix: rand.Text()[:8], owners: map[string]*owner{}}
	if _, err := l.current(ctx); err != nil {
		p.Close()
		return nil, err
	}
	return l, nil
}

func (l *Locks) next() string { return strconv.FormatInt(l.count.Add(1), 36) }

// RoundTrips tells how many statements requests have taken so far. Those of one moment share them.
func (l *Locks) RoundTrips() int64 { return l.trips.Load() }

// SessionID is the number of the session that holds what is acquired now.
func (l *Locks) SessionID() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now.session.ID()
}

// current returns the run of the living session, and has one started if the last was lost.
func (l *Locks) current(ctx context.Context) (*run, error) {
	for {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return nil, ErrClosed
		}
		if l.now != nil && l.now.session.Context().Err() == nil {
			defer l.mu.Unlock()
			return l.now, nil
		}
		s := l.starting
		if s == nil {
			s = &starting{done: make(chan struct{})}
			l.starting = s
			go l.start(s)
		}
		l.mu.Unlock()
		select {
		case <-s.done:
			if s.err != nil {
				return nil, fmt.Errorf("lock: %w", s.err)
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (l *Locks) start(s *starting) {
	ctx, stop := context.WithTimeout(context.Background(), startMax)
	defer stop()
	r := newRun(l)
	var began *session.Session
	began, s.err = session.Start(ctx, l.pool, session.Config{
		Namespace: l.conf.Namespace, Name: l.conf.Name, Version: l.conf.Version, TTL: l.conf.TTL, ListenOwn: !l.conf.PollOnly, Logger: l.conf.Logger, Heard: r.heard,
	})
	l.mu.Lock()
	l.starting = nil
	closed := l.closed
	if s.err == nil && !closed {
		r.start(began)
		l.now = r
	}
	l.mu.Unlock()
	if s.err == nil && closed {
		_ = began.Close(ctx)
	}
	close(s.done)
}

// Close releases what is held, ends the session and the connections. Leases end with cause ErrClosed.
func (l *Locks) Close(ctx context.Context) error {
	l.mu.Lock()
	r, was := l.now, l.closed
	l.closed = true
	l.mu.Unlock()
	if was {
		return nil
	}
	ctx, stop := context.WithTimeout(ctx, closeMax)
	defer stop()
	err := r.close(ctx)
	err = errors.Join(err, r.session.Close(ctx))
	l.pool.Close()
	return err
}

// Acquire waits for the lock until ctx ends or Wait is over. What its owner holds is granted again at once, without a round trip. ctx also bounds the lease: its context is
// a child. Errors: ErrInvalid, ErrTimeout, ErrDeadlock, ErrSchema, ErrClosed, the cause of ctx, or the database's; after any of them nothing is held and nobody waits.
func (l *Locks) Acquire(ctx context.Context, name string, opts ...Option) (*Lease, error) {
	req, err := newRequest(name, opts)
	if err != nil {
		return nil, err
	}
	return l.acquire(ctx, name, req)
}

// TryAcquire takes the lock if it is free, and does not wait: the error is a *HeldError then, and nothing was written.
func (l *Locks) TryAcquire(ctx context.Context, name string, opts ...Option) (*Lease, error) {
	req, err := newRequest(name, append(slices.Clone(opts), Wait(0)))
	if err != nil {
		return nil, err
	}
	return l.acquire(ctx, name, req)
}

func (l *Locks) acquire(ctx context.Context, name string, req request) (*Lease, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("lock %s: %w", name, context.Cause(ctx))
	}
	o := l.ownerOf(ctx, req.owner)
	lease, err := o.again(ctx, name, req.mode)
	if lease != nil || err != nil {
		return lease, err
	}
	wctx := ctx
	if req.wait > 0 {
		var stop context.CancelFunc
		wctx, stop = context.WithTimeoutCause(ctx, req.wait, ErrTimeout)
		defer stop()
	}
	for {
		r, err := l.current(wctx)
		if err != nil {
			return nil, err
		}
		h, err := r.acquire(wctx, o, name, req)
		if errors.Is(err, errEnded) {
			continue // the session was lost; a new one asks again
		}
		if err != nil {
			l.tidy(o)
			if errors.Is(err, ErrHeld) || errors.Is(err, ErrDeadlock) { // they say which
				return nil, err
			}
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.holds[name] = append(o.holds[name], h)
		return h.lease(ctx), nil
	}
}

// Leases are what AcquireAll has acquired.
type Leases []*Lease

// Release releases all of them.
func (ls Leases) Release(ctx context.Context) error {
	var errs []error
	for _, l := range slices.Backward(ls) {
		errs = append(errs, l.Release(ctx))
	}
	return errors.Join(errs...)
}

// AcquireAll acquires all names, each once, or none. It waits in the order of the names, so that those who acquire several so never wait for each other in a ring.
func (l *Locks) AcquireAll(ctx context.Context, names []string, opts ...Option) (Leases, error) {
	began := time.Now()
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	ctx = context.WithValue(ctx, ownerKey{l}, l.ownerOf(ctx, ""))
	var got Leases
	for _, name := range names {
		req, err := newRequest(name, opts)
		if err == nil {
			if req.wait > 0 {
				req.wait = max(req.wait-time.Since(began), time.Nanosecond)
			}
			var lease *Lease
			if lease, err = l.acquire(ctx, name, req); err == nil {
				got = append(got, lease)
				continue
			}
		}
		rctx, stop := context.WithTimeout(context.WithoutCancel(ctx), closeMax)
		defer stop()
		return nil, errors.Join(err, got.Release(rctx))
	}
	return got, nil
}

// Do runs f while it holds the lock, and releases it. f's context ends with the lease; its cause is then the error that Do returns, joined with f's.
func (l *Locks) Do(ctx context.Context, name string, f func(context.Context, *Lease) error, opts ...Option) (err error) {
	lease, err := l.Acquire(ctx, name, opts...)
	if err != nil {
		return err
	}
	defer func() {
		rctx, stop := context.WithTimeout(context.WithoutCancel(ctx), closeMax)
		defer stop()
		err = errors.Join(err, lease.Release(rctx))
	}()
	return f(lease.Context(), lease)
}

// Force takes a lock away from all who hold it, for a reason that is kept with it, and grants it to who waits first, under a higher token. It tells how many held it. The
// error is ErrAsserted while an open transaction asserts the lock: try again. In a transaction of yours nobody gets or gives back that lock before it ends.
func Force(ctx context.Context, on DB, ns int16, name, reason string) (int, error) {
	n, err := db.New(on).ForceLock(ctx, db.ForceLockParams{Ns: ns, Name: name, Reason: reason})
	if db.Code(err) == "55P03" {
		return 0, fmt.Errorf("%w: %s", ErrAsserted, db.Message(err))
	}
	if err != nil {
		return 0, fmt.Errorf("force lock %s: %w", name, wrap(err))
	}
	return int(n), nil
}
