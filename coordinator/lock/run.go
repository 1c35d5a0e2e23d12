package lock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

var (
	errEnded     = errors.New("lock: the session has ended")
	errGone      = errors.New("lock: the grant is gone")
	errAbandoned = errors.New("lock: its caller has gone")
)

// The requests of pawl.lock_ask.
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
	done   chan reply
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

// run is what one session does. A request that finds a connection free is sent by its own goroutine. Those that come meanwhile gather, and go together: they share
// a statement and its commit.
type run struct {
	locks   *Locks
	session *session.Session
	ctx     context.Context // ends with the run
	cancel  context.CancelFunc

	mu      sync.Mutex
	pending []*op
	sending int         // statements under way, at most connsMax
	crowded bool        // the last one carried several requests
	stall   *time.Timer // of a statement under way that takes long
	timed   bool        // stall runs
	resyncs int         // so far: what was done before the last one, and we do not know of, has been undone
	ended   error
	holds   map[int64]*hold // by token
	waits   map[int64]*waiting
	asking  int             // statements under way that may begin waits
	early   map[int64]int64 // grants that were hinted before the reply that names their wait, while asking
	fresh   map[int64]bool  // tokens that are on their way to who asked
	dirty   bool            // a reply was lost: the database may hold what we do not know of

	trip sync.RWMutex // held alone by a resync
}

func newRun(l *Locks) *run {
	r := &run{locks: l, holds: map[int64]*hold{}, waits: map[int64]*waiting{}, early: map[int64]int64{}, fresh: map[int64]bool{}}
	r.stall = time.AfterFunc(time.Hour, r.stalled)
	r.stall.Stop()
	return r
}

func (r *run) start(s *session.Session) {
	r.mu.Lock()
	r.session = s
	r.ctx, r.cancel = context.WithCancel(s.Context())
	r.mu.Unlock()
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
	r.mu.Unlock()
	r.cancel()
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
	if n.Reconnected {
		r.soil()
	}
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
		if token != 0 {
			r.fresh[token] = true
		}
		w.got <- token
	} else if r.asking > 0 {
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
				return nil, errors.Join(err, r.release(ctx, name, token))
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
	if got.err != nil {
		return 0, got.err
	}
	if got.status != "granted" {
		return 0, errEnded
	}
	ms, err := strconv.ParseFloat(got.info, 64)
	return time.Duration(ms * float64(time.Millisecond)), err
}

// withdraw takes a wait back, or gives back what it got meanwhile.
func (r *run) withdraw(w *waiting) {
	r.mu.Lock()
	delete(r.waits, w.id)
	r.mu.Unlock()
	select {
	case token := <-w.got:
		if token != 0 {
			_ = r.release(r.ctx, w.name, token)
		}
		return
	default:
	}
	ctx, stop := context.WithTimeout(r.ctx, closeMax)
	defer stop()
	ask := &op{kind: opCancel, name: w.name, number: w.id, done: make(chan reply, 1)}
	end := func(got reply) {
		if got.status == "granted" {
			_ = r.release(r.ctx, w.name, got.number)
		}
	}
	got, err := r.do(ctx, ask)
	if err != nil { // it is on its way, and is seen to its end
		go func() { end(<-ask.done) }()
		return
	}
	end(got)
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
	h.unhook = context.AfterFunc(h.ctx, func() {
		h.cancel(context.Cause(h.ctx))
		r.forget(h)
	})
	return h, nil
}

// release gives a grant back. While a transaction asserts it, it waits for that one.
func (r *run) release(ctx context.Context, name string, token int64) error {
	r.mu.Lock()
	delete(r.fresh, token)
	delete(r.holds, token) // from now on a resync gives it up too
	born := r.resyncs
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
		case got.status == "released" || got.status == "gone" && r.resynced(born):
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

// soil notes that the database may hold what we do not know of, and has that looked after.
func (r *run) soil() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session != nil { // else nothing was done yet
		r.dirty = true
		r.sendPending()
	}
}

// resynced tells whether the run has resynced since then.
func (r *run) resynced(born int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resyncs != born
}

// do sees to a request and returns when the reply is there or ctx has ended; then a reply comes into o.done all the same.
func (r *run) do(ctx context.Context, o *op) (reply, error) {
	r.mu.Lock()
	if r.ended != nil {
		r.mu.Unlock()
		return reply{err: errEnded}, nil
	}
	alone := r.sending < connsMax && !r.crowded && len(r.pending) == 0 && !r.dirty
	if alone {
		r.sending++
	} else {
		r.pending = append(r.pending, o)
		r.sendPending()
	}
	r.mu.Unlock()
	if alone {
		r.send(ctx, []*op{o})
		r.next()
	}
	select {
	case got := <-o.done:
		if errors.Is(got.err, errAbandoned) {
			o.done <- got
			return reply{}, context.Cause(ctx)
		}
		return got, nil
	default:
	}
	select {
	case got := <-o.done:
		return got, nil
	case <-ctx.Done():
		return reply{}, context.Cause(ctx)
	}
}

const retryPause = 50 * time.Millisecond

// sendPending sends what has gathered, if nothing is under way; r.mu is held. One statement at a time: those that its reply wakes then ask together. One that
// takes long, since it waits for a lock's key, is not waited for.
func (r *run) sendPending() {
	switch {
	case r.ended != nil || !r.dirty && len(r.pending) == 0:
	case r.sending == 0:
		r.sending++
		go r.work()
	case !r.timed:
		r.timed = true
		r.stall.Reset(stallAfter)
	}
}

const stallAfter = 20 * time.Millisecond

func (r *run) stalled() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.timed = false
	if len(r.pending) > 0 && r.sending < connsMax {
		r.sending++
		go r.work()
	}
}

// next ends a statement.
func (r *run) next() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sending--
	r.sendPending()
}

// work sends what has gathered.
func (r *run) work() {
	defer r.next()
	runtime.Gosched() // let those ask that the last reply has woken
	r.mu.Lock()
	dirty := r.dirty
	r.mu.Unlock()
	if dirty && !r.clean() {
		pause(r.ctx, retryPause)
		return
	}
	r.mu.Lock()
	batch := r.take()
	r.mu.Unlock()
	if len(batch) > 0 {
		r.send(r.ctx, batch)
	}
}

// take takes what goes together: the releases, which mostly do not wait for the disk, or else all. Each name once, since the requests of a batch do not see each
// other. r.mu is held.
func (r *run) take() []*op {
	releases := slices.ContainsFunc(r.pending, func(o *op) bool { return o.kind == opRelease })
	names := make(map[string]bool, len(r.pending))
	var batch, rest []*op
	for _, o := range r.pending {
		if len(batch) == batchMax || names[o.name] || releases && o.kind != opRelease {
			rest = append(rest, o)
			continue
		}
		names[o.name] = true
		batch = append(batch, o)
	}
	r.pending, r.crowded = rest, len(batch) > 1
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
	r.resyncs++
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
	p := db.ResyncLocksParams{Ns: r.locks.conf.Namespace, SessionID: r.session.ID(), Tokens: tokens, Waiters: waiters, AfterKey: math.MinInt64, NamesMax: namesMax}
	for {
		last, err := db.New(r.locks.pool).ResyncLocks(ctx, p)
		if err != nil || last == nil {
			return err
		}
		p.AfterKey = *last
	}
}

// told takes the session for lost if Postgres said so.
func (r *run) told(err error) {
	if db.Code(err) == db.CodeSessionEnded {
		r.session.Lose("a lock was refused")
	}
}

// again puts requests in front once more, after a pause.
func (r *run) again(ctx context.Context, batch []*op) {
	r.mu.Lock()
	if r.ended != nil {
		for _, o := range batch {
			o.done <- reply{err: errEnded}
		}
	} else {
		r.pending = append(batch, r.pending...)
	}
	r.mu.Unlock()
	pause(ctx, retryPause)
}

// send sends requests together, and tells each what became of it. When ctx ends before the reply they are abandoned, with the connection.
func (r *run) send(ctx context.Context, batch []*op) {
	r.trip.RLock()
	r.mu.Lock()
	r.asking++
	r.mu.Unlock()
	replies, err := r.ask(ctx, batch)
	r.locks.trips.Add(1)
	r.mu.Lock()
	if r.asking--; err == nil {
		for i, o := range batch {
			got := replies[i]
			if o.kind == opAcquire && got.status == "granted" {
				r.fresh[got.number] = true
			} else if o.kind == opAcquire && got.status == "waiting" {
				got.wait = r.expect(got.number, o.name)
			}
			o.done <- got
		}
	} else if unanswered(err) {
		r.dirty = true
	}
	if r.asking == 0 {
		clear(r.early)
	}
	r.mu.Unlock()
	r.trip.RUnlock() // only now: a resync knows of what was granted
	if err == nil {
		return
	}
	switch code := db.Code(err); {
	case unanswered(err) && ctx.Err() != nil && r.ctx.Err() == nil:
		err = errAbandoned
	case unanswered(err):
		r.again(ctx, batch)
		return
	case code == db.CodeSessionEnded:
		r.told(err)
		err = errEnded
	case len(batch) > 1: // one of them is to blame
		for _, o := range batch {
			r.send(ctx, []*op{o})
		}
		return
	case code == "40001" || code == "40P01" || code == "55P03":
		r.again(ctx, batch)
		return
	case batch[0].kind == opRelease || batch[0].kind == opCancel: // whatever was wrong, it is given up
		r.soil()
		fallthrough
	default:
		err = wrap(err)
	}
	for _, o := range batch {
		o.done <- reply{err: err}
	}
}

// ask sends requests. pgx is not given ctx, for it would start a goroutine to watch it: its end, as that of the run, breaks the connection.
func (r *run) ask(ctx context.Context, batch []*op) ([]reply, error) {
	conn, err := r.locks.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	socket := conn.Conn().PgConn().Conn()
	for _, c := range []context.Context{ctx, r.ctx} {
		unhook := context.AfterFunc(c, func() { _ = socket.SetDeadline(time.Unix(1, 0)) })
		defer func() {
			if !unhook() {
				_ = conn.Conn().Close(c)
			}
		}()
	}
	if len(batch) == 1 {
		o := batch[0]
		row, err := db.New(conn).AskLock(context.Background(), db.AskLockParams{
			Ns: r.locks.conf.Namespace, SessionID: r.session.ID(), Op: o.kind, Name: o.name, Owner: o.owner, Mode: cmp.Or(o.req.mode, "exclusive"), Permits: o.req.permits,
			Waits: o.wait, Holds: o.holds, HoldMs: int32(o.req.hold.Milliseconds()), DelayMs: int32(o.req.delay.Milliseconds()), NumberIn: o.number,
		})
		return []reply{{status: row.Status, number: row.Number, info: row.Info}}, err
	}
	p := db.LockBatchParams{Ns: r.locks.conf.Namespace, SessionID: r.session.ID()}
	for _, o := range batch {
		p.Ops, p.Names, p.Owners, p.Modes = append(p.Ops, o.kind), append(p.Names, o.name), append(p.Owners, o.owner), append(p.Modes, cmp.Or(o.req.mode, "exclusive"))
		p.Permits, p.Waits, p.Holds = append(p.Permits, o.req.permits), append(p.Waits, o.wait), append(p.Holds, o.holds)
		p.HoldMs, p.DelayMs = append(p.HoldMs, int32(o.req.hold.Milliseconds())), append(p.DelayMs, int32(o.req.delay.Milliseconds()))
		p.NumbersIn = append(p.NumbersIn, o.number)
	}
	row, err := db.New(conn).LockBatch(context.Background(), p)
	if err == nil && len(row.Statuses) != len(batch) {
		err = fmt.Errorf("lock: %d replies to %d requests", len(row.Statuses), len(batch))
	}
	if err != nil {
		return nil, err
	}
	replies := make([]reply, len(batch))
	for i := range batch {
		replies[i] = reply{status: row.Statuses[i], number: row.Numbers[i]}
		if i < len(row.Infos) {
			replies[i].info = row.Infos[i]
		}
	}
	return replies, nil
}

// unanswered tells that the statement may have committed, since its connection or the server ended.
func unanswered(err error) bool {
	code := db.Code(err)
	return code == "" || strings.HasPrefix(code, "57P") || strings.HasPrefix(code, "08")
}

// poll asks now and then after the first wait of each name, and the next ones of those that are over, in case a hint was lost, and has done what time has made due.
func (r *run) poll() {
	every := r.locks.conf.PollInterval
	for pause(r.ctx, every-every/5+rand.N(every*2/5+1)) {
		r.mu.Lock()
		queues := map[string][]int64{}
		for _, w := range r.waits {
			queues[w.name] = append(queues[w.name], w.id)
		}
		r.mu.Unlock()
		for name, ids := range queues {
			slices.Sort(ids)
			for _, id := range ids {
				if !r.look(name, id) {
					break
				}
			}
		}
	}
}

// look asks after a wait. True: it is over.
func (r *run) look(name string, id int64) bool {
	ask := &op{kind: opPoll, name: name, number: id, done: make(chan reply, 1)}
	switch got, err := r.do(r.ctx, ask); {
	case err != nil || got.err != nil:
	case got.status == "granted":
		r.granted(id, got.number)
		return true
	case got.status == "gone":
		r.granted(id, 0)
		return true
	}
	return false
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
