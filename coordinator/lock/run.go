package lock

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

var (
	errEnded = errors.New("lock: the session has ended")
	errGone  = errors.New("lock: the grant is gone")
)

// The requests of pawl.lock_batch.
const (
	opAcquire = "acquire"
	opRelease = "release"
	opPoll    = "poll"
	opCancel  = "cancel"
)

// op is a request on its way to the database.
type op struct {
	kind   string
	name   string
	owner  string
	req    request
	wait   bool
	holds  bool
	number int64

	again bool // it was asked before and the reply was lost; what that did has been undone
	done  chan reply
}

type reply struct {
	status string
	number int64
	info   string
	wait   *waiting
	err    error
}

// waiting is a wait that the database knows of.
type waiting struct {
	id   int64
	name string
	got  chan int64 // the token, 0: it is gone
}

// run is what one session does. Requests gather while others are under way, and go together: those of one moment share a statement and its commit.
type run struct {
	locks   *Locks
	session *session.Session

	mu      sync.Mutex
	pending []*op
	workers int
	ended   error
	holds   map[int64]*hold // by token
	waits   map[int64]*waiting
	early   map[int64]int64 // grants that were hinted before the reply that names their wait
	asking  map[*pgxpool.Conn]bool
	fresh   map[int64]bool // tokens that are on their way to who asked
	dirty   bool           // a reply was lost: the database may hold what we do not know of

	trip sync.RWMutex // held alone by a resync
}

func newRun(l *Locks) *run {
	return &run{locks: l, holds: map[int64]*hold{}, waits: map[int64]*waiting{}, early: map[int64]int64{}, fresh: map[int64]bool{}, asking: map[*pgxpool.Conn]bool{}}
}

func (r *run) start(s *session.Session) {
	r.session = s
	context.AfterFunc(s.Context(), func() { r.end(ErrLost) })
	go r.poll()
}

// end ends all that hangs on the session.
func (r *run) end(cause error) {
	r.mu.Lock()
	if r.ended != nil {
		r.mu.Unlock()
		return
	}
	r.ended = cause
	pending, holds, waits := r.pending, r.holds, r.waits
	r.pending, r.holds, r.waits = nil, map[int64]*hold{}, map[int64]*waiting{}
	for conn := range r.asking {
		_ = conn.Conn().PgConn().Conn().SetDeadline(time.Unix(1, 0))
	}
	r.mu.Unlock()
	for _, h := range holds {
		h.end(cause)
	}
	for _, o := range pending {
		o.done <- reply{err: errEnded}
	}
	for _, w := range waits {
		w.got <- 0
	}
}

// close gives back all that the session holds.
func (r *run) close(ctx context.Context) error {
	r.end(ErrClosed)
	r.trip.Lock()
	defer r.trip.Unlock()
	if r.session.Context().Err() != nil {
		return nil
	}
	return r.resync(ctx)
}

// heard takes a hint.
func (r *run) heard(n session.News) {
	kind, rest := n.Hint, ""
	if kind != "" {
		kind, rest = n.Hint[:1], n.Hint[1:]
	}
	switch kind {
	case "l": // a wait was granted
		a, b, _ := strings.Cut(rest, " ")
		id, err1 := strconv.ParseInt(a, 10, 64)
		token, err2 := strconv.ParseInt(b, 10, 64)
		if err1 == nil && err2 == nil {
			r.granted(id, token)
		}
	case "f": // a lock was taken away
		token, _ := strconv.ParseInt(rest, 10, 64)
		r.mu.Lock()
		h := r.holds[token]
		r.mu.Unlock()
		if h != nil {
			h.end(ErrForced)
		}
	}
}

// granted hands a grant to who waits for it.
func (r *run) granted(id, token int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.waits[id]; w != nil {
		delete(r.waits, id)
		r.fresh[token] = true
		w.got <- token
	} else if r.ended == nil {
		r.early[id] = token
	}
}

// expect registers a wait; r.mu is held.
func (r *run) expect(id int64, name string) *waiting {
	w := &waiting{id: id, name: name, got: make(chan int64, 1)}
	if token, ok := r.early[id]; ok {
		delete(r.early, id)
		r.fresh[token] = true
		w.got <- token
	} else if r.ended != nil {
		w.got <- 0
	} else {
		r.waits[id] = w
	}
	return w
}

func (r *run) forget(h *hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.holds, h.token)
}

// acquire asks for the lock and waits for it. The error is errEnded when the session ended first.
func (r *run) acquire(ctx context.Context, o *owner, name string, req request) (*hold, error) {
	began := time.Now()
	ask := &op{kind: opAcquire, name: name, owner: o.name, req: req, wait: req.wait != 0, holds: req.wait != 0 && (o.holding() || req.owner != ""), done: make(chan reply, 1)}
	got, err := r.do(ctx, ask)
	if err != nil {
		go func() { // it cannot be called back; what it gets is given back
			switch got := <-ask.done; {
			case got.err != nil:
			case got.status == "granted":
				_ = r.release(context.Background(), name, got.number)
			case got.status == "waiting":
				r.withdraw(got.wait)
			}
		}()
		return nil, err
	}
	switch {
	case got.err != nil:
		return nil, got.err
	case got.status == "held":
		return nil, &HeldError{Name: name, Holder: got.info}
	case got.status == "deadlock":
		return nil, &DeadlockError{Name: name, Ring: got.info}
	case got.status == "granted":
		return r.hold(o, name, req, got.number, began, req.hold)
	}
	select {
	case token := <-got.wait.got:
		if token == 0 {
			return nil, errEnded
		}
		left, err := req.hold, error(nil)
		if left > 0 { // it began to run out while the hint was under way
			began = time.Now()
			if left, err = r.left(name, got.number); err != nil {
				return nil, err
			}
		}
		return r.hold(o, name, req, token, began, left)
	case <-ctx.Done():
		r.withdraw(got.wait)
		return nil, context.Cause(ctx)
	}
}

// left asks how much is left of the maximum hold of a wait that was granted.
func (r *run) left(name string, waiter int64) (time.Duration, error) {
	ask := &op{kind: opPoll, name: name, number: waiter, done: make(chan reply, 1)}
	got, _ := r.do(context.Background(), ask)
	if got.err != nil || got.status != "granted" {
		return 0, errEnded
	}
	ms, err := strconv.ParseFloat(got.info, 64)
	return time.Duration(ms * float64(time.Millisecond)), err
}

// withdraw takes a wait back, or gives back what it got meanwhile.
func (r *run) withdraw(w *waiting) {
	ctx, stop := context.WithTimeout(context.Background(), closeMax)
	defer stop()
	r.mu.Lock()
	delete(r.waits, w.id)
	r.mu.Unlock()
	ask := &op{kind: opCancel, name: w.name, number: w.id, done: make(chan reply, 1)}
	if got, err := r.do(ctx, ask); err == nil && got.err == nil && got.status == "granted" {
		_ = r.release(ctx, w.name, got.number)
	}
	r.mu.Lock()
	delete(r.early, w.id)
	r.mu.Unlock()
}

// hold registers a grant. asked is a moment at which no more than left of its maximum hold was left.
func (r *run) hold(o *owner, name string, req request, token int64, asked time.Time, left time.Duration) (*hold, error) {
	h := &hold{locks: r.locks, owner: o, name: name, token: token, mode: req.mode, run: r, count: 1}
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	if req.hold > 0 {
		inner, stop := context.WithDeadlineCause(h.ctx, asked.Add(left-req.hold/10), ErrExpired)
		h.ctx = inner
		_ = stop // the end of the outer one frees it
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.fresh, token)
	if r.ended != nil {
		h.cancel(r.ended)
		return nil, errEnded
	}
	r.holds[token] = h
	context.AfterFunc(h.ctx, func() {
		h.cancel(context.Cause(h.ctx))
		r.forget(h)
	})
	return h, nil
}

// release gives a grant back. While a transaction asserts it, it waits for that one.
func (r *run) release(ctx context.Context, name string, token int64) error {
	r.mu.Lock()
	delete(r.fresh, token)
	r.mu.Unlock()
	for {
		ask := &op{kind: opRelease, name: name, number: token, done: make(chan reply, 1)}
		got, err := r.do(ctx, ask)
		switch {
		case err != nil: // it is on its way, and is seen to its end
			go func() {
				if got := <-ask.done; got.status == "asserted" || got.err != nil && !errors.Is(got.err, errEnded) {
					_ = r.release(r.session.Context(), name, token)
				}
			}()
			return err
		case errors.Is(got.err, errEnded):
			return errGone
		case got.err != nil:
			return got.err
		case got.status == "released" || got.status == "gone" && ask.again:
			return nil
		case got.status == "gone":
			return errGone
		}
		if !pause(ctx, assertPause) { // an open transaction asserts it
			go func() { _ = r.release(r.session.Context(), name, token) }()
			return ErrAsserted
		}
	}
}

// assertPause is how often a release looks whether the transaction that asserts the grant has ended.
const assertPause = 20 * time.Millisecond

// do sends a request and returns when the reply is there or ctx has ended; then the reply comes into o.done all the same.
func (r *run) do(ctx context.Context, o *op) (reply, error) {
	r.mu.Lock()
	if r.ended != nil {
		r.mu.Unlock()
		return reply{err: errEnded}, nil
	}
	r.pending = append(r.pending, o)
	if r.workers < connsMax {
		r.workers++
		go r.work()
	}
	r.mu.Unlock()
	select {
	case got := <-o.done:
		return got, nil
	case <-ctx.Done():
		return reply{}, context.Cause(ctx)
	}
}

const retryPause = 50 * time.Millisecond

// work sends what is pending until there is nothing more.
func (r *run) work() {
	for {
		runtime.Gosched() // those that one reply has woken ask together
		r.mu.Lock()
		if len(r.pending) == 0 {
			r.workers--
			r.mu.Unlock()
			return
		}
		batch := r.take()
		dirty := r.dirty
		r.mu.Unlock()
		if dirty && !r.clean() {
			r.back(batch)
			pause(r.session.Context(), retryPause)
			continue
		}
		r.send(batch)
	}
}

// take takes what goes together: each name once, since the requests of a batch do not see each other. r.mu is held.
func (r *run) take() []*op {
	names := make(map[string]bool, len(r.pending))
	batch := make([]*op, 0, min(len(r.pending), batchMax))
	var rest []*op
	for i, o := range r.pending {
		if len(batch) == batchMax {
			rest = append(rest, r.pending[i:]...)
			break
		}
		if names[o.name] {
			rest = append(rest, o)
			continue
		}
		names[o.name] = true
		batch = append(batch, o)
	}
	r.pending = rest
	return batch
}

// clean undoes what the database did and we do not know of.
func (r *run) clean() bool {
	r.trip.Lock()
	defer r.trip.Unlock()
	r.mu.Lock()
	dirty := r.dirty
	r.mu.Unlock()
	if !dirty {
		return true
	}
	ctx, stop := context.WithTimeout(r.session.Context(), batchTimeout)
	defer stop()
	if err := r.resync(ctx); err != nil {
		r.told(err)
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirty = false
	clear(r.early)
	for _, o := range r.pending {
		o.again = true
	}
	return true
}

// resync releases all that the session holds or waits for, but what we know of.
func (r *run) resync(ctx context.Context) error {
	const namesMax = 100
	r.mu.Lock()
	tokens, waiters := []int64{}, []int64{}
	for t := range r.holds {
		tokens = append(tokens, t)
	}
	for t := range r.fresh {
		tokens = append(tokens, t)
	}
	for w := range r.waits {
		waiters = append(waiters, w)
	}
	r.mu.Unlock()
	for {
		n, err := db.New(r.locks.pool).ResyncLocks(ctx, db.ResyncLocksParams{
			Ns: r.locks.conf.Namespace, SessionID: r.session.ID(), Tokens: tokens, Waiters: waiters, NamesMax: namesMax,
		})
		if err != nil || n < namesMax {
			return err
		}
	}
}

// told takes the session for lost if Postgres said so.
func (r *run) told(err error) {
	if db.Code(err) == db.CodeSessionEnded {
		r.session.Lose("a lock was refused")
	}
}

// back puts requests in front again.
func (r *run) back(batch []*op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended != nil {
		for _, o := range batch {
			o.done <- reply{err: errEnded}
		}
		return
	}
	for _, o := range batch {
		o.again = true
	}
	r.pending = append(batch, r.pending...)
}

// send sends requests together, and tells each what became of it.
func (r *run) send(batch []*op) {
	p := db.LockBatchParams{Ns: r.locks.conf.Namespace, SessionID: r.session.ID()}
	for _, o := range batch {
		mode := o.req.mode
		if mode == "" {
			mode = "exclusive"
		}
		p.Ops, p.Names, p.Owners, p.Modes = append(p.Ops, o.kind), append(p.Names, o.name), append(p.Owners, o.owner), append(p.Modes, mode)
		p.Permits, p.Waits, p.Holds = append(p.Permits, o.req.permits), append(p.Waits, o.wait), append(p.Holds, o.holds)
		p.HoldMs, p.DelayMs = append(p.HoldMs, int32(o.req.hold.Milliseconds())), append(p.DelayMs, int32(o.req.delay.Milliseconds()))
		p.NumbersIn = append(p.NumbersIn, o.number)
	}
	r.trip.RLock()
	row, err := r.ask(p)
	r.locks.trips.Add(1)
	if err == nil && len(row.Statuses) == len(batch) {
		r.mu.Lock()
		for i, o := range batch {
			got := reply{status: row.Statuses[i], number: row.Numbers[i]}
			if i < len(row.Infos) {
				got.info = row.Infos[i]
			}
			if o.kind == opAcquire && got.status == "granted" {
				r.fresh[got.number] = true
			} else if o.kind == opAcquire && got.status == "waiting" {
				got.wait = r.expect(got.number, o.name)
			}
			o.done <- got
		}
		r.mu.Unlock()
		r.trip.RUnlock() // only now: a resync knows of what was granted
		return
	}
	if unanswered(err) {
		r.mu.Lock()
		r.dirty = true
		r.mu.Unlock()
	}
	r.trip.RUnlock()
	if unanswered(err) || db.Code(err) == "40001" || db.Code(err) == "40P01" || db.Code(err) == "55P03" {
		r.back(batch)
		pause(r.session.Context(), retryPause)
		return
	}
	r.told(err)
	if db.Code(err) == db.CodeSessionEnded {
		err = errEnded
	}
	for _, o := range batch {
		o.done <- reply{err: wrap(err)}
	}
}

// ask sends a batch. Its context does not end, for pgx would start a goroutine to watch one that may: the session's end breaks the connection.
func (r *run) ask(p db.LockBatchParams) (row db.LockBatchRow, err error) {
	conn, err := r.locks.pool.Acquire(r.session.Context())
	if err != nil {
		return row, err
	}
	defer conn.Release()
	r.mu.Lock()
	r.asking[conn] = true
	ended := r.ended != nil
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.asking, conn)
		r.mu.Unlock()
	}()
	if ended {
		return row, errEnded
	}
	return db.New(conn).LockBatch(context.Background(), p)
}

// unanswered tells that the statement may have committed, since its connection or the server ended.
func unanswered(err error) bool {
	code := db.Code(err)
	return code == "" || strings.HasPrefix(code, "57P") || strings.HasPrefix(code, "08")
}

// poll asks now and then after the first wait of each name, in case a hint was lost, and has done what time has made due.
func (r *run) poll() {
	every := r.locks.conf.PollInterval
	for pause(r.session.Context(), every-every/5+rand.N(every*2/5+1)) {
		r.mu.Lock()
		first := map[string]*waiting{}
		for _, w := range r.waits {
			if f := first[w.name]; f == nil || w.id < f.id {
				first[w.name] = w
			}
		}
		r.mu.Unlock()
		for _, w := range first {
			ask := &op{kind: opPoll, name: w.name, number: w.id, done: make(chan reply, 1)}
			switch got, _ := r.do(context.Background(), ask); {
			case got.err != nil:
			case got.status == "granted":
				r.granted(w.id, got.number)
			case got.status == "gone":
				r.granted(w.id, 0)
			}
		}
	}
}

// pause waits for d. False: ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
