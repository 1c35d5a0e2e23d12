package barrier_test

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What a proxy does to the next COMMIT.
const (
	passCommit int32 = iota
	dropCommit       // it does not reach the server
	dropReply        // it does, and its reply does not come back
)

// proxy stands between a pool and the server and understands what they say.
type proxy struct {
	commit  atomic.Int32 // what to do to the next COMMIT
	trips   atomic.Int32 // round trips: messages that ask the server to answer
	network string
	address string
}

// newProxy returns a pool of up to conns connections through a proxy.
func newProxy(t *testing.T, pool *pgxpool.Pool, conns int32) (*proxy, *pgxpool.Pool) {
	t.Helper()
	conf := pool.Config()
	p := &proxy{}
	p.network, p.address = pgconn.NetworkAddress(conf.ConnConfig.Host, conf.ConnConfig.Port)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
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
	through, err := pgxpool.NewWithConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(through.Close)
	return p, through
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	upstream, err := net.Dial(p.network, p.address)
	if err != nil {
		return
	}
	defer upstream.Close()
	var cut atomic.Bool // replies go nowhere
	go func() {
		defer client.Close()
		buffer := make([]byte, 1<<16)
		for {
			n, err := upstream.Read(buffer)
			if err != nil || cut.Load() {
				return
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
	for {
		msg, err := from.Receive()
		if err != nil {
			return
		}
		isCommit, asks := false, false
		switch m := msg.(type) {
		case *pgproto3.Parse:
			commits[m.Name] = strings.EqualFold(m.Query, "COMMIT")
		case *pgproto3.Bind:
			isCommit = commits[m.PreparedStatement]
		case *pgproto3.Query:
			isCommit, asks = strings.EqualFold(m.String, "COMMIT"), true
		case *pgproto3.Sync:
			asks = true
		}
		if isCommit {
			switch p.commit.Swap(passCommit) {
			case dropCommit:
				return
			case dropReply:
				cut.Store(true)
			}
		}
		to.Send(msg)
		if asks {
			p.trips.Add(1)
			if to.Flush() != nil {
				return
			}
		}
	}
}
