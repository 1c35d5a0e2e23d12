package dbtest

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What a Proxy does to the next COMMIT.
const (
	PassCommit int32 = iota
	DropCommit       // it does not reach the server
	DropReply        // it does, and its reply does not come back
	CutClient        // it does, and the client's connection is cut at once, while the server is at it
	HoldReply        // it does, and from then on nothing comes back, though the connection stays
)

// Proxy stands between pools and the server and understands what they say. It is safe for concurrent use.
type Proxy struct {
	Commit  atomic.Int32 // what to do to the next COMMIT; it is PassCommit again once that was done
	Trips   atomic.Int32 // round trips: messages that ask the server to answer
	like    atomic.Pointer[string]
	refuse  atomic.Bool // new connections are closed
	network string
	address string

	mu    sync.Mutex
	conns []net.Conn
}

// NewProxy returns a pool of up to conns connections through a proxy. Both end with the test.
func NewProxy(tb testing.TB, pool *pgxpool.Pool, conns int32) (*Proxy, *pgxpool.Pool) {
	tb.Helper()
	conf := pool.Config()
	p := &Proxy{}
	p.network, p.address = pgconn.NetworkAddress(conf.ConnConfig.Host, conf.ConnConfig.Port)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	addr := listener.Addr().(*net.TCPAddr)
	conf.ConnConfig.Host, conf.ConnConfig.Port, conf.ConnConfig.Fallbacks, conf.ConnConfig.TLSConfig = addr.IP.String(), uint16(addr.Port), nil, nil
	conf.MaxConns = conns
	through, err := pgxpool.NewWithConfig(tb.Context(), conf)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(through.Close)
	return p, through
}

// Take has Commit be of statements that contain this text, rather than of COMMIT.
func (p *Proxy) Take(text string) { p.like.Store(&text) }

func (p *Proxy) isCommit(sql string) bool {
	if like := p.like.Load(); like != nil {
		return strings.Contains(sql, *like)
	}
	return strings.EqualFold(sql, "COMMIT")
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	if p.refuse.Load() {
		return
	}
	upstream, err := net.Dial(p.network, p.address)
	if err != nil {
		return
	}
	defer upstream.Close()
	p.mu.Lock()
	p.conns = append(p.conns, client)
	p.mu.Unlock()
	var cut, hold atomic.Bool // replies go nowhere
	go func() {
		defer client.Close()
		buffer := make([]byte, 1<<16)
		for {
			n, err := upstream.Read(buffer)
			if err != nil || cut.Load() {
				return
			}
			if hold.Load() {
				continue
			}
			if _, err := client.Write(buffer[:n]); err != nil {
				return
			}
		}
	}()
	from, to := pgproto3.NewBackend(client, client), pgproto3.NewFrontend(upstream, upstream)
	start, err := from.ReceiveStartupMessage()
	if _, cancel := start.(*pgproto3.CancelRequest); err != nil || cancel { // pgx would cancel what it has lost
		return
	}
	to.Send(start)
	if to.Flush() != nil {
		return
	}
	commits := map[string]bool{} // names of prepared statements
	acting := PassCommit
	for {
		msg, err := from.Receive()
		if err != nil {
			return
		}
		isCommit, asks := false, false
		switch m := msg.(type) {
		case *pgproto3.Parse:
			commits[m.Name] = p.isCommit(m.Query)
		case *pgproto3.Bind:
			isCommit = commits[m.PreparedStatement]
		case *pgproto3.Query:
			isCommit, asks = p.isCommit(m.String), true
			p.Trips.Add(1)
		case *pgproto3.Sync:
			asks = true
			p.Trips.Add(1)
		}
		if isCommit {
			acting = p.Commit.Swap(PassCommit)
		}
		if acting == DropCommit {
			return
		}
		switch acting {
		case PassCommit:
		case HoldReply:
			hold.Store(true)
		default:
			cut.Store(true)
		}
		to.Send(msg)
		if asks {
			if to.Flush() != nil {
				return
			}
			if acting == CutClient {
				_ = client.Close()
				_, _ = upstream.Read(make([]byte, 1)) // until the server is done
				return
			}
		}
	}
}

// CutAll closes all connections and lets no new one through.
func (p *Proxy) CutAll() {
	p.refuse.Store(true)
	p.CutOld()
}

// CutOld closes all connections that there are.
func (p *Proxy) CutOld() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
}
