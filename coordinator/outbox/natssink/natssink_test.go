package natssink_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/natssink"
	"github.com/pawl-dev/pawl/coordinator/outbox/sinktest"
)

const patience = 30 * time.Second

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

// start starts a server on a port of its own, or on the one given, with what dir holds.
func start(t *testing.T, dir string, port int) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, MaxPayload: 8 << 20, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { stop(s) })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server has not started")
	}
	return s
}

func stop(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

func connect(t *testing.T, s *server.Server) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(s.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return must(jetstream.New(conn))
}

func sink(t *testing.T, js jetstream.JetStream, conf natssink.Config) *natssink.Sink {
	t.Helper()
	s, err := natssink.New(js, conf)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// stored returns what a stream holds.
func stored(ctx context.Context, js jetstream.JetStream, name string) ([]*jetstream.RawStreamMsg, error) {
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	state := stream.CachedInfo().State
	var all []*jetstream.RawStreamMsg
	for seq := max(state.FirstSeq, 1); seq <= state.LastSeq; seq++ {
		m, err := stream.GetMsg(ctx, seq)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

func events(ctx context.Context, js jetstream.JetStream, name string) ([]outbox.Event, error) {
	all, err := stored(ctx, js, name)
	if err != nil {
		return nil, err
	}
	out := make([]outbox.Event, len(all))
	for i, m := range all {
		if out[i], err = natssink.Event(m.Header, m.Data); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ids are those of the events that a stream holds.
func ids(t *testing.T, js jetstream.JetStream, name string) string {
	t.Helper()
	var out []string
	for _, e := range must(events(within(t), js, name)) {
		out = append(out, e.ID)
	}
	return strings.Join(out, " ")
}

func TestConformance(t *testing.T) {
	t.Parallel()
	nats := start(t, t.TempDir(), server.RANDOM_PORT)
	for name, inFlight := range map[string]int{"one": 1, "many": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sinktest.Run(t, func(t *testing.T) sinktest.Target {
				// The sink publishes to the front, which stands before the stream.
				name := strings.NewReplacer("/", "-", "#", "-").Replace(t.Name())
				js := connect(t, nats)
				must(js.CreateStream(within(t), jetstream.StreamConfig{Name: name, Subjects: []string{"store." + name + ".>"}, Storage: jetstream.MemoryStorage}))
				f := newFront(t, connect(t, nats), "in."+name+".>", "store.")
				return sinktest.Target{
					Sink: sink(t, js, natssink.Config{Prefix: "in." + name, InFlight: inFlight}), Break: f.breakAt, Mend: f.mend, Recognises: true,
					Received: func() ([]outbox.Event, error) { return events(within(t), js, name) },
				}
			})
		})
	}
}

// front takes what is published, and passes it on to the stream and the acknowledgement back, but for what it is broken at.
type front struct {
	js jetstream.JetStream
	to string

	mu     sync.Mutex
	fault  sinktest.Fault
	id     string
	met    chan struct{}
	mended chan struct{}
	once   *sync.Once
}

func newFront(t *testing.T, js jetstream.JetStream, subject, to string) *front {
	t.Helper()
	f := &front{js: js, to: to}
	sub, err := js.Conn().Subscribe(subject, f.take)
	if err != nil {
		t.Fatal(err)
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	if err := js.Conn().Flush(); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *front) breakAt(fault sinktest.Fault, id string) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.id, f.met, f.mended, f.once = fault, id, make(chan struct{}), make(chan struct{}), &sync.Once{}
	return f.met
}

func (f *front) mend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.id = ""
	close(f.mended)
}

func (f *front) take(m *nats.Msg) {
	f.mu.Lock()
	fault, met := f.fault, func() {}
	if m.Header.Get(jetstream.MsgIDHeader) != f.id {
		fault = ""
	} else {
		met = func() { f.once.Do(func() { close(f.met) }) }
	}
	f.mu.Unlock()
	switch fault {
	case sinktest.Refuse:
		met()
		_ = m.Respond([]byte(`{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"}}`))
	case sinktest.Garble:
		met()
		_ = m.Respond([]byte("what?"))
	case sinktest.Hang:
		met()
	default:
		_, rest, _ := strings.Cut(m.Subject, ".")
		reply := m.Reply
		ack, err := f.js.Conn().RequestMsg(&nats.Msg{Subject: f.to + rest, Header: m.Header, Data: m.Data}, patience)
		met()
		if err == nil && fault != sinktest.Lose {
			_ = f.js.Conn().Publish(reply, ack.Data)
		}
	}
}

func event(n int, key string) outbox.Event {
	return outbox.Event{ID: fmt.Sprint(n), Topic: "order", Key: key, Type: "order.paid", Payload: fmt.Append(nil, n), ContentType: "application/json", Attempt: 1}
}

// What is in a message, for those who read it without Event.
func TestSend_message(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	js := connect(t, start(t, t.TempDir(), server.RANDOM_PORT))
	must(js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"outbox.>", "other.>"}}))
	e := event(1, "Zürich 100%")
	e.Seq, e.CreatedAt = 7, time.Date(2027, 1, 1, 9, 30, 0, 0, time.UTC)
	e.Headers = map[string]string{"traceparent": "00-1", "Nats-Rollup": "all", "ce-id": "own", "x": "a\nb", "é": "1", "Content-Type": "own"}
	for _, topic := range []string{"order", "order.paid", "a b.*", "a%20b.>", ".", "é"} {
		e.ID, e.Topic = "id of "+topic, topic
		if n, err := sink(t, js, natssink.Config{Source: "shop", Stream: "S"}).Send(ctx, []outbox.Event{e}); n != 1 {
			t.Fatal(err)
		}
	}
	e.ID = "by Subject"
	other := sink(t, js, natssink.Config{Subject: func(e outbox.Event) string { return "other." + e.Type }})
	if n, err := other.Send(ctx, []outbox.Event{e}); n != 1 {
		t.Fatal(err)
	}
	all := must(stored(ctx, js, "S"))
	for i, want := range []string{"outbox.order", "outbox.order.paid", "outbox.a%20b.%2A", "outbox.a%2520b.%3E", "outbox.%.%", "outbox.é", "other.order.paid"} {
		if all[i].Subject != want {
			t.Errorf("subject %q, want %q", all[i].Subject, want)
		}
	}
	for name, want := range map[string]string{
		"Nats-Msg-Id": "id of order", "ce-id": "id%20of%20order", "ce-specversion": "1.0", "ce-source": "shop", "ce-type": "order.paid", "ce-subject": "Z%C3%BCrich%20100%25",
		"ce-time": "2027-01-01T09:30:00Z", "ce-datacontenttype": "application/json", "ce-pawltopic": "order", "ce-pawlseq": "7", "traceparent": "00-1", "Nats-Rollup": "", "x": "", "Content-Type": "",
		"ce-pawlheaders": `{%22Content-Type%22:%22own%22,%22Nats-Rollup%22:%22all%22,%22ce-id%22:%22own%22,%22x%22:%22a\nb%22,%22%C3%A9%22:%221%22}`,
	} {
		if got := all[0].Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if len(all) != 7 || string(all[0].Data) != "1" {
		t.Errorf("%d messages, the first %q", len(all), all[0].Data)
	}
	for name, header := range map[string]nats.Header{
		"none": nil, "not ours": {"a": {"b"}}, "no type": {"ce-id": {"1"}, "ce-specversion": {"1.0"}, "ce-source": {"x"}},
		"bad percent": {"ce-id": {"%"}, "ce-specversion": {"1.0"}, "ce-source": {"x"}, "ce-type": {"y"}},
	} {
		if e, err := natssink.Event(header, nil); !errors.Is(err, natssink.ErrMalformed) {
			t.Errorf("%s: %+v, %v; want ErrMalformed", name, e, err)
		}
	}
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

func TestSend_refused(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	js := connect(t, start(t, t.TempDir(), server.RANDOM_PORT))
	for _, conf := range []jetstream.StreamConfig{
		{Name: "SMALL", Subjects: []string{"small.>"}, MaxMsgSize: 1000},
		{Name: "FULL", Subjects: []string{"full.>"}, MaxMsgs: 1, Discard: jetstream.DiscardNew},
		{Name: "SEALED", Subjects: []string{"sealed.>"}},
		{Name: "OPEN", Subjects: []string{"open.>"}},
	} {
		must(js.CreateStream(ctx, conf))
	}
	sealed := must(js.Stream(ctx, "SEALED")).CachedInfo().Config
	sealed.Sealed = true
	must(js.UpdateStream(ctx, sealed))
	large := event(2, "a")
	large.Payload = make([]byte, 1000)
	huge := event(2, "a")
	huge.Payload = make([]byte, 8<<20)
	wide := event(2, "a")
	wide.Headers = map[string]string{"a": strings.Repeat("a", 1<<16)}
	for name, c := range map[string]struct {
		conf   natssink.Config
		second outbox.Event
		n      int
		want   string
	}{
		"too large for the stream":  {natssink.Config{Prefix: "small"}, large, 1, "permanent"},
		"too large for the server":  {natssink.Config{Prefix: "open.payload"}, huge, 1, "permanent"},
		"too large a header":        {natssink.Config{Prefix: "open.header"}, wide, 1, "permanent"},
		"full":                      {natssink.Config{Prefix: "full"}, event(2, "a"), 1, "unavailable"},
		"sealed":                    {natssink.Config{Prefix: "sealed"}, event(2, "a"), 0, "unavailable"},
		"another stream":            {natssink.Config{Prefix: "open.other", Stream: "SMALL"}, event(2, "a"), 0, "unavailable"},
		"no stream":                 {natssink.Config{Prefix: "nobody"}, event(2, "a"), 0, "unavailable"},
		"no subject":                {natssink.Config{Subject: func(outbox.Event) string { return "open.*" }}, event(2, "a"), 0, "permanent"},
		"not even one token":        {natssink.Config{Subject: func(outbox.Event) string { return "" }}, event(2, "a"), 0, "permanent"},
		"a subject without a token": {natssink.Config{Subject: func(outbox.Event) string { return "open..a" }}, event(2, "a"), 0, "permanent"},
		"a subject with a space":    {natssink.Config{Subject: func(outbox.Event) string { return "open. a" }}, event(2, "a"), 0, "permanent"},
	} {
		// The third is of the same key: it may not overtake the second.
		n, err := sink(t, js, c.conf).Send(ctx, []outbox.Event{event(1, "a"), c.second, event(3, "a")})
		if n != c.n || kind(err) != c.want {
			t.Errorf("%s: %d accepted, %s, %v; want %d, %s", name, n, kind(err), err, c.n, c.want)
		}
	}
	if got := ids(t, js, "SMALL") + ", " + ids(t, js, "FULL") + ", " + ids(t, js, "OPEN"); got != "1, 1, 1" {
		t.Errorf("stored are %q; want the first of each", got) // the ID is the same on all subjects of OPEN
	}
}

// What may be the event's fault counts against it.
func TestSend_faults(t *testing.T) {
	t.Parallel()
	js := connect(t, start(t, t.TempDir(), server.RANDOM_PORT))
	f := newFront(t, js, "outbox.>", "store.")
	for fault, want := range map[sinktest.Fault]string{sinktest.Refuse: "unavailable", sinktest.Garble: "failed", sinktest.Hang: "failed"} {
		met := f.breakAt(fault, "1")
		ctx, cancel := context.WithCancel(within(t))
		if fault == sinktest.Hang {
			go func() { <-met; cancel() }()
		}
		if n, err := sink(t, js, natssink.Config{}).Send(ctx, []outbox.Event{event(1, "a")}); n != 0 || kind(err) != want {
			t.Errorf("%s: %d accepted, %s, %v; want %s", fault, n, kind(err), err, want)
		}
		cancel()
	}
}

// What is behind a failed event is not begun with, but what was before it is brought to its end.
func TestSend_first(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	js := connect(t, start(t, t.TempDir(), server.RANDOM_PORT))
	must(js.CreateStream(ctx, jetstream.StreamConfig{Name: "SMALL", Subjects: []string{"outbox.>"}, MaxMsgSize: 1000}))
	large := event(2, "b")
	large.Payload = make([]byte, 1000)
	n, err := sink(t, js, natssink.Config{InFlight: 1}).Send(ctx, []outbox.Event{event(1, "a"), large, event(3, "b"), event(4, "c"), event(5, "")})
	if got := ids(t, js, "SMALL"); n != 1 || kind(err) != "permanent" || got != "1" {
		t.Errorf("%d accepted, %v; stored are %s", n, err, got)
	}
	n, err = sink(t, js, natssink.Config{InFlight: 1}).Send(ctx, []outbox.Event{event(6, "a"), event(7, "b"), large, event(8, "a"), event(9, "c")})
	if got := ids(t, js, "SMALL"); n != 2 || kind(err) != "permanent" || got != "1 6 8 7" {
		t.Errorf("%d accepted, %v; stored are %s", n, err, got)
	}
}

func TestNew_faults(t *testing.T) {
	t.Parallel()
	for _, conf := range []natssink.Config{{Prefix: "a b"}, {Prefix: "a."}, {Prefix: ">"}, {InFlight: -1}, {InFlight: 5000}} {
		if _, err := natssink.New(nil, conf); !errors.Is(err, outbox.ErrInvalid) || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("%+v: %v, want two faults", conf, err)
		}
	}
}

// While the server is away nothing is sent, and nothing is kept to be sent later; all goes on when it is back, and the stream knows the IDs from before.
func TestSend_restart(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	dir := filepath.Join(t.TempDir(), "js")
	first := start(t, dir, server.RANDOM_PORT)
	js := connect(t, first)
	must(js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"outbox.>"}}))
	s := sink(t, js, natssink.Config{})
	if n, err := s.Send(ctx, []outbox.Event{event(1, "a"), event(2, "a")}); n != 2 {
		t.Fatal(err)
	}
	port := first.Addr().(*net.TCPAddr).Port
	away := js.Conn().StatusChanged(nats.RECONNECTING)
	stop(first)
	<-away
	if n, err := s.Send(ctx, []outbox.Event{event(3, "a"), event(4, "a")}); n != 0 || kind(err) != "unavailable" {
		t.Errorf("stopped: %d accepted, %v", n, err)
	}
	back := js.Conn().StatusChanged(nats.CONNECTED)
	start(t, dir, port)
	<-back
	if got := ids(t, js, "S"); got != "1 2" {
		t.Errorf("started again: %s", got)
	}
	if n, err := s.Send(ctx, []outbox.Event{event(1, "a"), event(2, "a"), event(3, "a"), event(4, "a")}); n != 4 {
		t.Errorf("started again: %d accepted, %v", n, err)
	}
	if got := ids(t, js, "S"); got != "1 2 3 4" {
		t.Errorf("started again: %s", got)
	}
}

// A server that is stopped and started again and again under load: what is accepted is stored, in order, and what is sent until it is accepted is stored once.
func TestSend_storm(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const (
		senders  = 4
		each     = 1500
		restarts = 4
	)
	ctx := within(t)
	dir := filepath.Join(t.TempDir(), "js")
	nats := start(t, dir, server.RANDOM_PORT)
	js := connect(t, nats)
	must(js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"outbox.>"}, Duplicates: time.Hour}))
	var (
		group    sync.WaitGroup
		sent     = make(chan struct{}, senders*each)
		failures [senders]int
	)
	for k := range senders {
		group.Go(func() {
			s := sink(t, js, natssink.Config{})
			var mine []outbox.Event
			for n := range each {
				mine = append(mine, event(k*each+n, fmt.Sprintf("%d %d", k, n%7)))
			}
			for len(mine) > 0 && ctx.Err() == nil {
				short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
				n, err := s.Send(short, mine[:min(20, len(mine))])
				stop()
				mine = mine[n:]
				for range n {
					sent <- struct{}{}
				}
				if err != nil {
					failures[k]++
				}
			}
		})
	}
	port := nats.Addr().(*net.TCPAddr).Port
	for range restarts {
		for range senders * each / (restarts + 1) {
			select {
			case <-sent:
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			}
		}
		stop(nats)
		nats = start(t, dir, port)
	}
	group.Wait()
	if failures[0] == 0 {
		t.Error("the restarts went by unnoticed")
	}
	got, last := must(events(ctx, js, "S")), map[string]int{}
	if len(got) != senders*each {
		t.Errorf("%d events are stored, want %d", len(got), senders*each)
	}
	for _, e := range got {
		n := 0
		_, _ = fmt.Sscan(e.ID, &n)
		if before, ok := last[e.Key]; ok && before >= n {
			t.Errorf("event %d of key %q comes after event %d", n, e.Key, before)
		}
		last[e.Key] = n
	}
}

// Within the duplicate window an event is stored once; after it, again.
func TestSend_duplicates(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	js := connect(t, start(t, t.TempDir(), server.RANDOM_PORT))
	must(js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"outbox.>"}, Duplicates: 200 * time.Millisecond}))
	s := sink(t, js, natssink.Config{})
	for range 3 {
		if n, err := s.Send(ctx, []outbox.Event{event(1, "a")}); n != 1 {
			t.Fatal(err)
		}
	}
	for len(must(stored(ctx, js, "S"))) < 2 {
		if n, err := s.Send(ctx, []outbox.Event{event(1, "a")}); n != 1 {
			t.Fatal(err)
		}
	}
	if got := ids(t, js, "S"); got != "1 1" {
		t.Errorf("stored are %s", got)
	}
}

// BenchmarkSend has a stream on disk.
func BenchmarkSend(b *testing.B) {
	for _, keys := range []int{1, 100} {
		b.Run(fmt.Sprintf("keys=%d/batch=100", keys), func(b *testing.B) {
			s := must(server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: b.TempDir(), NoSigs: true, NoLog: true}))
			s.Start()
			defer stop(s)
			if !s.ReadyForConnections(patience) {
				b.Fatal("the server has not started")
			}
			conn := must(nats.Connect(s.ClientURL()))
			defer conn.Close()
			js := must(jetstream.New(conn))
			must(js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"outbox.>"}, MaxMsgs: 10_000}))
			sink := must(natssink.New(js, natssink.Config{}))
			events := make([]outbox.Event, 100)
			n := 0
			for b.Loop() {
				for i := range events {
					n++
					events[i] = event(n, fmt.Sprint(i%keys))
				}
				if _, err := sink.Send(b.Context(), events); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
