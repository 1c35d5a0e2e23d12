// Package outbound is how HTTP calls leave for URLs that come from data or configuration: to public addresses only, unless others are allowed; through no proxy, whose address
// would be checked in place of the target's; and following no redirect, which would take a request with all it carries to where the other side likes.
package outbound

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The limits of a call. The whole of it is bounded by the request's context.
const (
	connectTimeout = 5 * time.Second // each: to resolve and connect, and to shake hands for TLS
	idleTimeout    = 30 * time.Second
	idlePerHostMax = 128
	headerBytesMax = 64 << 10
	RetryAfterMax  = 24 * time.Hour // a longer wait is taken for this
)

// ErrNotPublic refuses an address that leads to this machine, to a private network, or nowhere.
var ErrNotPublic = errors.New("the address is not public")

// Transport returns a transport that connects to public addresses only, or to all. Use it by its RoundTrip, without an http.Client: then a redirect is an answer like any
// other, and no error has the URL in it, which may hold a secret. User and password of a URL become its Authorization. Up to 128 connections to a host are kept for the next calls. It
// is safe for concurrent use.
func Transport(allowPrivate bool) http.RoundTripper {
	if allowPrivate {
		return newTransport(nil)
	}
	return TransportTo()
}

// TransportTo is a Transport that connects to public addresses and to those in allow.
func TransportTo(allow ...netip.Prefix) http.RoundTripper {
	return newTransport(refuse(allow))
}

func newTransport(control func(network, address string, c syscall.RawConn) error) http.RoundTripper {
	dialer := &net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second, Control: control}
	return &transport{http.Transport{
		DialContext: dialer.DialContext, TLSHandshakeTimeout: connectTimeout, IdleConnTimeout: idleTimeout,
		MaxResponseHeaderBytes: headerBytesMax, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: idlePerHostMax,
	}}
}

type transport struct{ http.Transport }

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if user := req.URL.User; user != nil && req.Header.Get("Authorization") == "" {
		req = req.Clone(req.Context())
		password, _ := user.Password()
		req.SetBasicAuth(user.Username(), password)
	}
	return t.Transport.RoundTrip(req)
}

// notPublic lists what netip.Addr has no method for: addresses that lead to this or a private network, or nowhere.
var notPublic = func() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
	} {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}()

// nat64 is where IPv4 is reached through IPv6.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// refuse is the dialer's last look before it connects, after the name was resolved: a name cannot lie to it.
func refuse(allow []netip.Prefix) func(network, address string, c syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("%w: %s", ErrNotPublic, address)
		}
		ip := at.Addr().Unmap().WithZone("")
		if !isPublic(ip) && !slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			return fmt.Errorf("%w: %s", ErrNotPublic, at.Addr())
		}
		return nil
	}
}

func isPublic(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

// RetryAfter reads when the server wants to be asked again: in seconds, or as a date by its own clock, or by this machine's if it does not tell the time. At most
// RetryAfterMax. ok is false if it says nothing that can be read.
func RetryAfter(resp *http.Response) (wait time.Duration, ok bool) {
	value := strings.TrimSpace(resp.Header.Get("Retry-After"))
	if value == "" {
		return 0, false
	}
	if s, err := strconv.ParseUint(value, 10, 32); err == nil {
		return min(time.Duration(s)*time.Second, RetryAfterMax), true
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	now, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return min(max(at.Sub(now), 0), RetryAfterMax), true
}
