package saga

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db"
)

const (
	gatherPatience = 20 * time.Millisecond // how long starts wait for one that is under way, before each goes by itself
	gatherMax      = 30 * time.Second      // how long a statement for several callers may take
)

// starts is who starts sagas of one definition on pools: while one start is under way there, those that come go together in the next statement. Each saga costs a third of what it does alone.
type starts struct {
	mu     sync.Mutex
	byPool map[*pgxpool.Pool]*gathering
}

// gathering is the starts on one pool. Its fields are under starts.mu.
type gathering struct {
	turn    int64 // number of the statement that is under way; 0: none is
	turns   int64 // that there were
	since   int64 // when it began, by the monotonic clock
	waiting []*start
}

// start is one saga to be started.
type start struct {
	ctx     context.Context
	key     string
	input   []byte
	options *startOptions
	told    chan started // has room for one
}

// started is what became of a start.
type started struct {
	duplicate bool
	err       error
	alone     bool // nothing: it must go by itself
}

// begin gives the number of a turn, or 0 where one is under way, behind which s waits.
func (s *starts) begin(pool *pgxpool.Pool, one *start) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.byPool[pool]
	if g == nil {
		g = &gathering{}
		if s.byPool == nil {
			s.byPool = map[*pgxpool.Pool]*gathering{}
		}
		s.byPool[pool] = g
	}
	if g.turn != 0 && session.Monotonic()-g.since < int64(gatherPatience) {
		g.waiting = append(g.waiting, one)
		return 0
	}
	return g.next()
}

func (g *gathering) next() int64 {
	g.turns++
	g.turn, g.since = g.turns, session.Monotonic()
	return g.turn
}

// end ends a turn, and gives those who waited, with theirs. Nobody: the turn took too long and is another's now, or none waited.
func (s *starts) end(pool *pgxpool.Pool, turn int64) (batch []*start, next int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.byPool[pool]
	if g == nil || g.turn != turn {
		return nil, 0
	}
	bytes := 0
	for len(batch) < BatchSagasMax && len(batch) < len(g.waiting) && bytes <= BatchBytesMax {
		bytes += len(g.waiting[len(batch)].input)
		batch = g.waiting[:len(batch)+1]
	}
	if len(batch) == 0 {
		delete(s.byPool, pool)
		return nil, 0
	}
	g.waiting = slices.Clone(g.waiting[len(batch):])
	return batch, g.next()
}

// withdraw takes back a start that still waits.
func (s *starts) withdraw(pool *pgxpool.Pool, one *start) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.byPool[pool]
	if g == nil {
		return false
	}
	i := slices.Index(g.waiting, one)
	if i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	return i >= 0
}

// startOn starts a saga on a pool, where others are under way together with those that wait too.
func (d *definition) startOn(pool *pgxpool.Pool, one *start) (duplicate bool, err error) {
	if turn := d.starts.begin(pool, one); turn != 0 {
		defer d.endTurn(pool, turn)
		return d.startAlone(pool, one)
	}
	patience := time.NewTimer(gatherPatience)
	defer patience.Stop()
	select {
	case <-one.ctx.Done():
		if d.starts.withdraw(pool, one) {
			return false, context.Cause(one.ctx)
		}
	case <-patience.C:
		if d.starts.withdraw(pool, one) {
			return d.startAlone(pool, one)
		}
	case a := <-one.told:
		return d.took(pool, one, a)
	}
	select { // under way
	case <-one.ctx.Done():
		return false, context.Cause(one.ctx)
	case a := <-one.told:
		return d.took(pool, one, a)
	}
}

func (d *definition) took(pool *pgxpool.Pool, one *start, a started) (duplicate bool, err error) {
	if a.alone {
		return d.startAlone(pool, one)
	}
	return a.duplicate, a.err
}

func (d *definition) startAlone(pool *pgxpool.Pool, one *start) (duplicate bool, err error) {
	row, err := d.startBatch(one.ctx, pool, []*start{one}, false)
	return err == nil && row.Duplicates[0], err
}

// endTurn starts those who waited, in a turn of theirs. Where the server refuses one, each must go by itself.
func (d *definition) endTurn(pool *pgxpool.Pool, turn int64) {
	batch, next := d.starts.end(pool, turn)
	if next == 0 {
		return
	}
	go func() {
		defer d.endTurn(pool, next)
		ctx, stop := context.WithTimeout(context.WithoutCancel(batch[0].ctx), gatherMax)
		defer stop()
		row, err := d.startBatch(ctx, pool, batch, len(batch) > 1)
		for i, one := range batch {
			if err == nil {
				one.told <- started{duplicate: row.Duplicates[i]}
			} else {
				one.told <- started{err: err, alone: db.Code(err) != ""}
			}
		}
	}()
}
