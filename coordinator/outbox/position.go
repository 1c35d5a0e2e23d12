package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/pawl-dev/pawl/db"
)

// place is one shard of a subscription.
type place struct {
	ns     int16
	id     int32
	shard  int16
	shards int
}

// position is where a shard stands. Seen are the events of earlier epochs and, of this one, those of transactions below xid that are not in late; every id that a
// transaction from xid on draws is above floor. mark is a floor for every snapshot taken after the position was committed. Whoever does not go on from the newest position
// cannot append one.
type position struct {
	id    int64
	epoch int16
	xid   uint64
	late  []string
	floor int64
	mark  int64
	batch *batch // open, or nil
	// since is the incarnation of the server in which it was read: after a crash its transaction ids may be others', so it must be read again.
	since int64
	age   time.Duration // when it was read
}

// sinceThisTx stands in position.since for one that was read in the transaction that opens its batch.
const sinceThisTx = -1

// batch is what was committed by a later snapshot and not seen, in the order of ids, none above ceiling; those up to done are settled.
type batch struct {
	epoch   int16
	xid     uint64
	late    []string
	floor   int64
	mark    int64
	ceiling int64
	done    int64
}

func (p place) read(ctx context.Context, q *db.Queries) (position, error) {
	row, err := q.ReadPosition(ctx, db.ReadPositionParams{Ns: p.ns, SubscriptionID: p.id, Shard: p.shard})
	if err != nil {
		return position{}, fmt.Errorf("read position: %w", wrap(err))
	}
	out := position{id: row.ID, epoch: row.Epoch, xid: row.SeenXID, late: row.Late, floor: row.Floor, mark: row.Mark, since: row.Incarnation, age: time.Duration(row.AgeMs) * time.Millisecond}
	if row.Done >= 0 {
		out.batch = &batch{row.ToEpoch, row.ToXID, row.ToLate, row.ToFloor, row.ToMark, row.Ceiling, row.Done}
	}
	return out, nil
}

// open opens a batch after a position. empty: nothing can be in it.
func (p place) open(ctx context.Context, q *db.Queries, at *position) (topics []string, paused, empty bool, err error) {
	row, err := q.OpenBatch(ctx, db.OpenBatchParams{Ns: p.ns, SubscriptionID: p.id, Epoch: at.epoch, SeenXID: at.xid})
	if err != nil {
		return nil, false, false, fmt.Errorf("open batch: %w", wrap(err))
	}
	if at.since == sinceThisTx {
		at.since = row.Incarnation
	}
	if row.Incarnation != at.since {
		return nil, false, false, fmt.Errorf("open batch: the server has recovered from a crash: %w", ErrLost)
	}
	at.batch = &batch{row.ToEpoch, row.ToXID, row.ToLate, at.mark, row.ToMark, row.Ceiling, 0}
	empty = row.ToEpoch == at.epoch && row.Ceiling <= at.floor && !slices.ContainsFunc(at.late, func(x string) bool { return !slices.Contains(row.ToLate, x) })
	return row.Topics, row.Paused, empty, nil
}

// next is the position behind the open batch, to be settled.
func (at position) next() position {
	b := at.batch
	if b.epoch > at.epoch {
		return position{id: at.id, epoch: b.epoch, late: []string{}, since: at.since}
	}
	return position{id: at.id, epoch: b.epoch, xid: b.xid, late: b.late, floor: b.floor, mark: b.mark, since: at.since}
}

// skip is the same for a batch that held nothing and is not settled: its mark is no floor yet.
func (at position) skip() position {
	out := at.next()
	if out.epoch == at.epoch {
		out.mark = at.mark
	}
	return out
}

// page reads up to limit events of the open batch, fewer if they reach PageBytesMax. last: nothing is left of it.
func (p place) page(ctx context.Context, on DB, at position, topics []string, limit int) (events []Event, last bool, err error) {
	b, bounded := at.batch, &db.Bounded{DBTX: on, Bytes: PageBytesMax}
	rows, err := db.New(bounded).ReadPage(ctx, db.ReadPageParams{
		Ns: p.ns, Topics: topics, Shards: int32(p.shards), Shard: int32(p.shard), Epoch: at.epoch, SeenXID: at.xid, Late: at.late, Floor: at.floor,
		ToXID: b.xid, ToLate: b.late, Ceiling: b.ceiling, Done: b.done, LimitEvents: int32(limit),
	})
	if err != nil {
		return nil, false, fmt.Errorf("read events: %w", wrap(err))
	}
	events = make([]Event, len(rows))
	for i, r := range rows {
		events[i] = Event{
			ID: r.EventID, Topic: r.Topic, Key: r.Key, Type: r.Type, Payload: r.Payload, ContentType: contentType(r.ContentType), Headers: headers(r.Headers), Seq: r.ID,
			CreatedAt: r.CreatedAt, Attempt: 1,
		}
	}
	return events, len(rows) < limit && !bounded.Cut, nil
}

func contentType(stored string) string {
	if stored == "" {
		return "application/json"
	}
	return stored
}

// headers reads what publish wrote; what SQL wrote otherwise is kept as the text of its values.
func headers(stored []byte) map[string]string {
	if len(stored) == 0 || string(stored) == "null" {
		return nil
	}
	var out map[string]string
	if json.Unmarshal(stored, &out) == nil {
		return out
	}
	var raw map[string]json.RawMessage
	if json.Unmarshal(stored, &raw) != nil {
		return nil
	}
	out = map[string]string{}
	for name, value := range raw {
		var text string
		if json.Unmarshal(value, &text) != nil {
			text = string(value)
		}
		out[name] = text
	}
	return out
}

// parks are events to put aside with a settled page.
type parks struct {
	keys     []string
	ids      []int64
	attempts []int32
	retryMS  []int64 // -1: not tried on its own
	dead     []bool
	errors   []string
}

func (a *parks) add(e Event, retryMS int64, dead bool, text string) {
	attempt := e.Attempt
	if retryMS < 0 && !dead {
		attempt = 0 // it was not tried
	}
	a.keys = append(a.keys, e.Key)
	a.ids = append(a.ids, e.Seq)
	a.attempts = append(a.attempts, int32(attempt))
	a.retryMS = append(a.retryMS, retryMS)
	a.dead = append(a.dead, dead)
	a.errors = append(a.errors, text)
}

// settle appends a position that follows at.id, and puts events aside in the same transaction. durable: that has effects of its own, and is not to commit asynchronously.
func (p place) settle(ctx context.Context, q *db.Queries, at *position, events int, aside parks, skip, durable bool) error {
	arg := db.SettleBatchParams{
		Ns: p.ns, SubscriptionID: p.id, Shard: p.shard, FromID: at.id, Epoch: at.epoch, SeenXID: at.xid, Late: at.late, Floor: at.floor, Mark: at.mark, Done: -1, ToLate: []string{},
		Events: int64(events), IDs: aside.ids, Attempts: aside.attempts, RetryMs: aside.retryMS, Dead: aside.dead, Errors: aside.errors, Skip: skip, Durable: durable, Incarnation: at.since,
	}
	if b := at.batch; b != nil {
		arg.ToEpoch, arg.ToXID, arg.ToLate, arg.ToFloor, arg.ToMark, arg.Ceiling, arg.Done = b.epoch, b.xid, b.late, b.floor, b.mark, b.ceiling, b.done
	}
	id, err := q.SettleBatch(ctx, arg)
	if err != nil {
		return fmt.Errorf("settle: %w", wrap(err))
	}
	at.id = id
	return nil
}
