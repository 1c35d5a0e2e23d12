package kafkasink_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/kafkasink"
	"github.com/pawl-dev/pawl/coordinator/outbox/sinktest"
)

const (
	patience   = 30 * time.Second
	partitions = 3
)

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	t.Cleanup(stop)
	return ctx
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// cluster starts three brokers with the topic "order".
func cluster(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(3)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.CreateTopic("order", partitions, map[string]string{"max.message.bytes": "8000000"}); err != nil {
		t.Fatal(err)
	}
	return c
}

func sink(t *testing.T, c *kfake.Cluster, conf kafkasink.Config, opts ...kgo.Opt) *kafkasink.Sink {
	t.Helper()
	// Uncompressed, so that a test finds an ID in a batch.
	conf.Client = append([]kgo.Opt{kgo.SeedBrokers(c.ListenAddrs()...), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(4_000_000)}, opts...)
	s, err := kafkasink.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// records returns what a topic holds, partition by partition.
func records(ctx context.Context, c *kfake.Cluster, topic string) ([]*kgo.Record, error) {
	from, left := map[int32]kgo.Offset{}, int64(0)
	for _, p := range c.PartitionInfos(topic) {
		from[p.Partition] = kgo.NewOffset().AtStart()
		left += p.HighWatermark - p.LogStartOffset
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}), kgo.FetchMaxBytes(64<<20))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var all [partitions][]*kgo.Record
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			all[r.Partition] = append(all[r.Partition], r)
			left--
		})
	}
	var out []*kgo.Record
	for _, records := range all {
		out = append(out, records...)
	}
	return out, nil
}

func events(ctx context.Context, c *kfake.Cluster) ([]outbox.Event, error) {
	all, err := records(ctx, c, "order")
	if err != nil {
		return nil, err
	}
	out := make([]outbox.Event, len(all))
	for i, r := range all {
		if out[i], err = kafkasink.Event(r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ids returns those of the events of each key, in order.
func ids(t *testing.T, c *kfake.Cluster) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, e := range must(events(within(t), c)) {
		out[e.Key] = strings.TrimSpace(out[e.Key] + " " + e.ID)
	}
	return out
}

func event(id int, key string) outbox.Event {
	return outbox.Event{ID: fmt.Sprintf("<%d>", id), Topic: "order", Key: key, Type: "order.paid", Payload: fmt.Append(nil, id), ContentType: "application/json"}
}

// kind names what the relay makes of an error.
func kind(err error) string {
	switch _, down := outbox.IsUnavailable(err); {
	case err == nil:
		return "accepted"
	case outbox.IsPermanent(err):
		return "permanent"
	case down:
		return "unavailable"
	default:
		return "failed"
	}
}

// holds tells whether a request produces an event.
func holds(req kmsg.Request, id string) bool {
	produce, ok := req.(*kmsg.ProduceRequest)
	if !ok {
		return false
	}
	for _, topic := range produce.Topics {
		for _, p := range topic.Partitions {
			if bytes.Contains(p.Records, []byte(id)) {
				return true
			}
		}
	}
	return false
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, inFlight := range map[string]int{"one": 1, "many": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sinktest.Run(t, func(t *testing.T) sinktest.Target {
				c := cluster(t)
				w := &wire{c: c}
				t.Cleanup(w.mend)
				return sinktest.Target{
					Sink: sink(t, c, kafkasink.Config{InFlight: inFlight}, kgo.Dialer(w.dial)), Break: w.breakAt, Mend: w.mend,
					Received: func() ([]outbox.Event, error) { return events(within(t), c) },
				}
			})
		})
	}
}

// wire is between a client and the brokers, and breaks what they answer.
type wire struct {
	c      *kfake.Cluster
	mu     sync.Mutex
	fault  sinktest.Fault
	mended chan struct{}
	remove func()
}

func (w *wire) breakAt(f sinktest.Fault, id string) <-chan struct{} {
	met := make(chan struct{})
	var once sync.Once
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mended = make(chan struct{})
	w.remove = w.c.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.InvalidRecord, Count: -1, Observe: f != sinktest.Refuse,
		When: func(req kmsg.Request) bool {
			if !holds(req, id) {
				return false
			}
			w.mu.Lock()
			w.fault = f
			w.mu.Unlock()
			once.Do(func() { close(met) })
			return true
		},
	}).Remove
	return met
}

func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.remove == nil {
		return
	}
	w.remove()
	w.remove, w.fault = nil, ""
	close(w.mended)
}

func (w *wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &end{Conn: conn, w: w, closed: make(chan struct{})}, nil
}

type end struct {
	net.Conn
	w      *wire
	once   sync.Once
	closed chan struct{}
}

func (e *end) Close() error {
	e.once.Do(func() { close(e.closed) })
	return e.Conn.Close()
}

func (e *end) Read(b []byte) (int, error) {
	n, err := e.Conn.Read(b)
	e.w.mu.Lock()
	fault, mended := e.w.fault, e.w.mended
	e.w.mu.Unlock()
	switch fault {
	case sinktest.Garble:
		for i := range b[:n] {
			b[i] ^= 0x55
		}
	case sinktest.Hang:
		select {
		case <-mended:
		case <-e.closed:
			return 0, net.ErrClosed
		}
	case sinktest.Lose:
		_ = e.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

// What is in a record, for those who read it without Event.
func TestSend_record(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	c := cluster(t)
	e := event(1, "Zürich")
	e.Seq, e.CreatedAt, e.Payload = 7, time.Date(2027, 1, 1, 9, 30, 0, 0, time.UTC), nil
	e.Headers = map[string]string{"traceparent": "00-1", "ce_id": "own", "Content-Type": "own", "x": "a\nb"}
	for range 3 {
		if n, err := sink(t, c, kafkasink.Config{Source: "shop"}).Send(ctx, []outbox.Event{e, event(2, "")}); n != 2 {
			t.Fatal(err)
		}
	}
	if n, err := sink(t, c, kafkasink.Config{Topic: func(e outbox.Event) string { return e.Headers["to"] }}).Send(ctx, []outbox.Event{{
		ID: "<3>", Topic: "t", Type: "y", Headers: map[string]string{"to": "order"},
	}}); n != 1 {
		t.Fatal(err)
	}
	all := must(records(ctx, c, "order"))
	partition, keyed := int32(-1), 0
	for _, r := range all {
		headers := map[string]string{}
		for _, h := range r.Headers {
			headers[h.Key] = string(h.Value)
		}
		if headers["ce_id"] != "<1>" {
			if r.Key != nil {
				t.Errorf("the key of %s is %q", headers["ce_id"], r.Key)
			}
			continue
		}
		keyed++
		if partition >= 0 && r.Partition != partition {
			t.Errorf("the key is in partitions %d and %d", partition, r.Partition)
		}
		partition = r.Partition
		if string(r.Key) != "Zürich" || r.Value == nil || len(r.Value) > 0 {
			t.Errorf("key %q, value %v", r.Key, r.Value)
		}
		for name, want := range map[string]string{
			"ce_id": "<1>", "ce_specversion": "1.0", "ce_source": "shop", "ce_type": "order.paid", "ce_subject": "Zürich", "ce_time": "2027-01-01T09:30:00Z",
			"content-type": "application/json", "ce_datacontenttype": "", "ce_pawltopic": "order", "ce_pawlseq": "7", "traceparent": "00-1", "x": "a\nb", "Content-Type": "",
			"ce_pawlheaders": `{"Content-Type":"own","ce_id":"own"}`,
		} {
			if headers[name] != want {
				t.Errorf("%s is %q, want %q", name, headers[name], want)
			}
		}
	}
	if len(all) != 7 || keyed != 3 {
		t.Errorf("%d records, %d with the key", len(all), keyed)
	}
	for name, r := range map[string]*kgo.Record{"none": {}, "not ours": {Headers: []kgo.RecordHeader{{Key: "a", Value: []byte("b")}}}} {
		if e, err := kafkasink.Event(r); !errors.Is(err, kafkasink.ErrMalformed) {
			t.Errorf("%s: %+v, %v; want ErrMalformed", name, e, err)
		}
	}
}

func TestNew_faults(t *testing.T) {
	t.Parallel()
	for _, conf := range []kafkasink.Config{
		{InFlight: -1},
		{InFlight: 5000},
		{Timeout: -1},
		{Client: []kgo.Opt{kgo.DisableIdempotentWrite()}},
		{Client: []kgo.Opt{kgo.TransactionalID("x")}},
		{Client: []kgo.Opt{kgo.ProducerBatchMaxBytes(1)}},
	} {
		if s, err := kafkasink.New(conf); !errors.Is(err, outbox.ErrInvalid) {
			t.Errorf("%+v: %v, %v", conf, s, err)
		}
	}
	s := must(kafkasink.New(kafkasink.Config{Client: []kgo.Opt{kgo.RequiredAcks(kgo.LeaderAck())}})) // which the sink's own option replaces
	s.Close()
}

// A batch that is refused for one record takes nothing else with it.
func TestSend_refused(t *testing.T) {
	t.Parallel()
	for want, refusal := range map[string]*kerr.Error{"permanent": kerr.InvalidRecord, "failed": kerr.UnknownServerError} {
		c := cluster(t)
		c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: refusal, Count: -1, When: func(req kmsg.Request) bool { return holds(req, "<30>") }})
		var sent []outbox.Event
		for i := range 60 {
			sent = append(sent, event(i, fmt.Sprint(i%20)))
		}
		n, err := sink(t, c, kafkasink.Config{}).Send(within(t), sent)
		if n != 30 || kind(err) != want {
			t.Errorf("%s: %d accepted, %s, %v; want 30", refusal.Message, n, kind(err), err)
		}
		for key, got := range ids(t, c) {
			first := 0
			_, _ = fmt.Sscan(key, &first)
			all := fmt.Sprintf("<%d> <%d> <%d>", first, first+20, first+40)
			if !strings.HasPrefix(all, got) || key == "10" && got != "<10>" || len(strings.Fields(got)) < 1 || first < 10 && len(strings.Fields(got)) < 2 {
				t.Errorf("%s: of key %s it has %s", refusal.Message, key, got)
			}
		}
	}
}

// Several records that are too much for a topic together are not too large each.
func TestSend_tooLarge(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	c := cluster(t)
	if err := c.CreateTopic("small", 1, map[string]string{"max.message.bytes": "2000"}); err != nil {
		t.Fatal(err)
	}
	s := sink(t, c, kafkasink.Config{Topic: func(outbox.Event) string { return "small" }})
	var sent []outbox.Event
	for i := range 40 {
		e := event(i, fmt.Sprint(i%20))
		e.Payload = make([]byte, 1000)
		sent = append(sent, e)
	}
	if n, err := s.Send(ctx, sent); n != 40 || err != nil {
		t.Fatalf("%d accepted, %v", n, err)
	}
	for size, want := range map[int]string{3000: "permanent", 4_000_000: "permanent"} { // the topic's limit, the client's
		sent[3].Payload = make([]byte, size)
		n, err := s.Send(ctx, sent[:10])
		if n != 3 || kind(err) != want || !errors.Is(err, kerr.MessageTooLarge) {
			t.Errorf("%d bytes: %d accepted, %s, %v", size, n, kind(err), err)
		}
	}
	for _, topic := range []string{"", ".", "..", "a b", "größer", strings.Repeat("a", 250)} {
		s := sink(t, c, kafkasink.Config{Topic: func(outbox.Event) string { return topic }})
		if n, err := s.Send(ctx, sent[:1]); n != 0 || kind(err) != "permanent" {
			t.Errorf("topic %q: %d accepted, %v", topic, n, err)
		}
	}
}

func TestSend_down(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	c := cluster(t)
	short := kafkasink.Config{Timeout: time.Second}
	one := []outbox.Event{event(1, "a")}

	unknown := short
	unknown.Topic = func(outbox.Event) string { return "unknown" }
	if n, err := sink(t, c, unknown).Send(ctx, one); n != 0 || kind(err) != "unavailable" {
		t.Errorf("no such topic: %d accepted, %s, %v", n, kind(err), err)
	}
	for _, e := range []*kerr.Error{kerr.TopicAuthorizationFailed, kerr.NotEnoughReplicas, kerr.NotLeaderForPartition, kerr.ClusterAuthorizationFailed} {
		s := sink(t, c, short)
		h := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: e, Count: -1})
		if n, err := s.Send(ctx, one); n != 0 || kind(err) != "unavailable" {
			t.Errorf("%s: %d accepted, %s, %v", e.Message, n, kind(err), err)
		}
		h.Remove()
		if n, err := s.Send(ctx, one); n != 1 {
			t.Errorf("%s is over: %v", e.Message, err)
		}
	}
	s := sink(t, c, short)
	if n, err := s.Send(ctx, one); n != 1 {
		t.Fatal(err)
	}
	late := sink(t, c, short)
	c.Close()
	if n, err := s.Send(ctx, one); n != 0 || kind(err) != "unavailable" {
		t.Errorf("brokers gone: %d accepted, %s, %v", n, kind(err), err)
	}
	if n, err := late.Send(ctx, one); n != 0 || kind(err) != "unavailable" {
		t.Errorf("brokers gone from the beginning: %d accepted, %s, %v", n, kind(err), err)
	}
	s.Close()
	if n, err := s.Send(ctx, one); n != 0 || kind(err) != "unavailable" {
		t.Errorf("closed: %d accepted, %s, %v", n, kind(err), err)
	}
}

// What is over soon is waited out, and what was stored though the broker says that it may not have been is stored once.
func TestSend_retried(t *testing.T) {
	t.Parallel()
	for _, e := range []*kerr.Error{kerr.NotLeaderForPartition, kerr.NotEnoughReplicas, kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend} {
		c := cluster(t)
		h := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: e, Count: 2})
		if n, err := sink(t, c, kafkasink.Config{}).Send(within(t), []outbox.Event{event(1, "a"), event(2, "a")}); n != 2 {
			t.Errorf("%s: %d accepted, %v", e.Message, n, err)
		}
		if got := ids(t, c)["a"]; got != "<1> <2>" || h.Hits() != 2 {
			t.Errorf("%s: stored are %s after %d faults", e.Message, got, h.Hits())
		}
	}
}

// partitioned is told of each record that waits in its partition.
type partitioned chan string

func (p partitioned) OnProduceRecordPartitioned(r *kgo.Record, _ int32) { p <- string(r.Value) }

// A call whose ctx ends fails itself only, though the client fails with its record all that waits for the same partition.
func TestSend_ctx(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	waits := make(partitioned, 100)
	s := sink(t, c, kafkasink.Config{Timeout: patience}, kgo.WithHooks(waits))
	refused := make(chan struct{}, 1000)
	h := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1, When: func(kmsg.Request) bool {
		refused <- struct{}{}
		return true
	}})
	ctx, cancel := context.WithCancel(within(t))
	var group sync.WaitGroup
	group.Go(func() {
		if n, err := s.Send(ctx, []outbox.Event{event(1, "a")}); n != 0 || kind(err) != "failed" || !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %d accepted, %s, %v", n, kind(err), err)
		}
		h.Remove()
	})
	<-waits
	<-refused
	group.Go(func() {
		if n, err := s.Send(within(t), []outbox.Event{event(2, "a")}); n != 1 {
			t.Errorf("the other: %d accepted, %v", n, err)
		}
	})
	<-waits
	cancel()
	group.Wait()
}

// A broker that says nothing keeps nobody once ctx has ended, nor what is sent after.
func TestSend_silent(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	s := sink(t, c, kafkasink.Config{Timeout: patience})
	arrived := make(chan struct{})
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		close(arrived)
		return nil, nil, true
	})
	ctx, cancel := context.WithCancel(within(t))
	go func() { <-arrived; cancel() }()
	if n, err := s.Send(ctx, []outbox.Event{event(1, "a")}); n != 0 || kind(err) != "failed" {
		t.Errorf("%d accepted, %s, %v", n, kind(err), err)
	}
	ctx, cancel = context.WithTimeout(within(t), patience/3) // less than the client waits for an answer
	defer cancel()
	if n, err := s.Send(ctx, []outbox.Event{event(1, "a"), event(2, "a")}); n != 2 {
		t.Errorf("%d accepted, %v", n, err)
	}
	if got := ids(t, c)["a"]; got != "<1> <2>" {
		t.Errorf("stored are %s", got)
	}
}

// Leaders that move, and connections that break, lose nothing and change no order.
func TestSend_storm(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const (
		senders = 4
		each    = 1000
	)
	c := cluster(t)
	s := sink(t, c, kafkasink.Config{})
	ctx := within(t)
	var (
		group sync.WaitGroup
		sent  = make(chan struct{}, senders*each)
		done  = make(chan struct{})
	)
	c.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		for n := 7; n < senders*each; n += 211 {
			if holds(req, fmt.Sprintf("<%d>", n)) && time.Now().UnixNano()%2 == 0 {
				return nil, errors.New("cut"), true
			}
		}
		return nil, nil, false
	})
	for k := range senders {
		group.Go(func() {
			var mine []outbox.Event
			for n := range each {
				mine = append(mine, event(k*each+n, fmt.Sprintf("%d %d", k, n%7)))
			}
			for len(mine) > 0 && ctx.Err() == nil {
				short, stop := context.WithTimeout(ctx, 500*time.Millisecond)
				n, _ := s.Send(short, mine[:min(50, len(mine))])
				stop()
				mine = mine[n:]
				for range n {
					sent <- struct{}{}
				}
			}
		})
	}
	go func() {
		defer close(done)
		for n := range senders * each {
			select {
			case <-sent:
			case <-ctx.Done():
				return
			}
			if n%400 == 0 {
				c.ShufflePartitionLeaders()
			}
		}
	}()
	group.Wait()
	<-done
	last, seen := map[string]int{}, map[string]bool{}
	for _, e := range must(events(ctx, c)) {
		if seen[e.ID] {
			continue
		}
		seen[e.ID] = true
		n := 0
		_, _ = fmt.Sscanf(e.ID, "<%d>", &n)
		if before, ok := last[e.Key]; ok && n != before+7 {
			t.Errorf("event %d of key %q comes after event %d", n, e.Key, before)
		}
		last[e.Key] = n
	}
	if len(seen) != senders*each {
		t.Errorf("%d events are stored, want %d", len(seen), senders*each)
	}
}

// A cluster that goes and comes back is found again.
func TestSend_restart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := cluster(t, kfake.DataDir(dir))
	s := sink(t, first, kafkasink.Config{Timeout: time.Second})
	if n, err := s.Send(within(t), []outbox.Event{event(1, "a")}); n != 1 {
		t.Fatal(err)
	}
	var ports []int
	for _, address := range first.ListenAddrs() {
		ports = append(ports, must(net.ResolveTCPAddr("tcp", address)).Port)
	}
	first.Close()
	if n, err := s.Send(within(t), []outbox.Event{event(2, "a")}); n != 0 || kind(err) != "unavailable" {
		t.Errorf("gone: %d accepted, %v", n, err)
	}
	again, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.DataDir(dir), kfake.Ports(ports...))
	if err != nil {
		t.Skip(err) // somebody else has taken a port
	}
	t.Cleanup(again.Close)
	for ctx := within(t); ; {
		if n, _ := s.Send(ctx, []outbox.Event{event(2, "a"), event(3, "a")}); n == 2 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("it is not found again")
		}
	}
	if got := ids(t, again)["a"]; !strings.HasPrefix(got, "<1> <2>") || !strings.HasSuffix(got, "<3>") {
		t.Errorf("stored are %s", got)
	}
}

// A topic that is made anew is found again.
func TestSend_topicAgain(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	c := cluster(t)
	s := sink(t, c, kafkasink.Config{Timeout: time.Second})
	if n, err := s.Send(ctx, []outbox.Event{event(1, "a")}); n != 1 {
		t.Fatal(err)
	}
	if err := c.DeleteTopic("order"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Send(ctx, []outbox.Event{event(2, "a")}); n != 0 || kind(err) != "unavailable" {
		t.Errorf("deleted: %d accepted, %s, %v", n, kind(err), err)
	}
	if err := c.CreateTopic("order", partitions, nil); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := s.Send(ctx, []outbox.Event{event(2, "a")})
		if n == 1 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("it is not found again: %v", err)
		}
	}
}

func BenchmarkSend(b *testing.B) {
	for _, keys := range []int{1, 100} {
		b.Run(fmt.Sprintf("keys=%d/batch=100", keys), func(b *testing.B) {
			c := must(kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, "order")))
			defer c.Close()
			s := must(kafkasink.New(kafkasink.Config{Client: []kgo.Opt{kgo.SeedBrokers(c.ListenAddrs()...)}}))
			defer s.Close()
			events := make([]outbox.Event, 100)
			n := 0
			for b.Loop() {
				for i := range events {
					n++
					events[i] = event(n, fmt.Sprint(i%keys))
				}
				if _, err := s.Send(b.Context(), events); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
