package outbound

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func get(t *testing.T, transport http.RoundTripper, target string) (*http.Response, error) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(stop)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err == nil {
		t.Cleanup(func() { _ = resp.Body.Close() })
	}
	return resp, err
}

func TestTransport(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch user, password, _ := r.BasicAuth(); {
		case r.URL.Path == "/away":
			w.Header().Set("Location", "/?%zz=s3cr3t") // which net/url does not parse
			w.WriteHeader(http.StatusFound)
		case user == "ada" && password == "s3cr3t":
			w.WriteHeader(http.StatusNoContent)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(server.Close)
	all := Transport(true)
	for target, want := range map[string]int{
		server.URL:           401,
		server.URL + "/away": 302,
		strings.Replace(server.URL, "//", "//ada:s3cr3t@", 1): 204,
	} {
		if resp, err := get(t, all, target); err != nil || resp.StatusCode != want {
			t.Errorf("%s: %v, %v; want %d", target, resp, err, want)
		}
	}
	// Names are looked at after they were resolved.
	port := must(url.Parse(server.URL)).Port()
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"} {
		if _, err := get(t, Transport(false), "http://"+host+":"+port+"/?token=s3cr3t"); !errors.Is(err, ErrNotPublic) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: %v, want ErrNotPublic and no secret", host, err)
		}
	}
	for _, c := range []struct {
		allow, host string
		ok          bool
	}{
		{"127.0.0.0/8", "127.0.0.1", true}, {"127.0.0.0/8", "[::ffff:127.0.0.1]", true}, {"127.0.0.2/32", "127.0.0.1", false}, {"10.0.0.0/8", "127.0.0.1", false}, {"::1/128", "127.0.0.1", false},
	} {
		_, err := get(t, TransportTo(netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix(c.allow)), "http://"+c.host+":"+port)
		if (err == nil) != c.ok || !c.ok && !errors.Is(err, ErrNotPublic) {
			t.Errorf("%s with %s allowed: %v", c.host, c.allow, err)
		}
	}
	server.Close()
	if _, err := get(t, all, server.URL+"/?token=s3cr3t"); err == nil || !strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("nobody there: %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestIsPublic(t *testing.T) {
	t.Parallel()
	for _, ip := range []string{"1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101", "::ffff:8.8.8.8"} {
		if !isPublic(netip.MustParseAddr(ip)) {
			t.Errorf("%s is refused", ip)
		}
	}
	for _, ip := range []string{
		"127.0.0.1", "127.8.9.1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "0.1.2.3",
		"224.0.0.1", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1",
		"::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
		"64:ff9b:1::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "2001::1", "2001:db8::1",
	} {
		if isPublic(netip.MustParseAddr(ip)) {
			t.Errorf("%s is allowed", ip)
		}
	}
	for _, address := range []string{"127.0.0.1:80", "[::1]:80", "/run/x.sock", ""} {
		if err := refuse(nil)("tcp", address, nil); !errors.Is(err, ErrNotPublic) {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// As many connections are kept as there were calls at a time, and used again.
func TestTransportReuse(t *testing.T) {
	t.Parallel()
	const calls, rounds = 64, 3
	var (
		conns, inside atomic.Int32
		full          = make(chan struct{}, rounds)
	)
	release := make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if inside.Add(1)%calls == 0 {
			full <- struct{}{}
		}
		<-release
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	transport := Transport(true)
	for range rounds {
		var group sync.WaitGroup
		for range calls {
			group.Go(func() {
				resp, err := transport.RoundTrip(must(http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)))
				if err != nil {
					t.Error(err)
					return
				}
				_ = resp.Body.Close()
			})
		}
		<-full // all are in flight at once
		for range calls {
			release <- struct{}{}
		}
		group.Wait()
	}
	if n := conns.Load(); n != calls {
		t.Errorf("%d connections for %d calls at a time", n, calls)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	const date = "Fri, 01 Jan 2027 00:00:00 GMT"
	for _, c := range []struct {
		value, date string
		want        time.Duration
		ok          bool
	}{
		{"", date, 0, false},
		{"soon", date, 0, false},
		{"-1", date, 0, false},
		{"1.5", date, 0, false},
		{"99999999999", date, 0, false},
		{"0", "", 0, true},
		{" 7 ", "", 7 * time.Second, true},
		{"31536000", "", RetryAfterMax, true},
		{"Fri, 01 Jan 2027 00:00:30 GMT", date, 30 * time.Second, true},
		{"Thu, 01 Jan 2099 00:00:30 GMT", "not a date", RetryAfterMax, true}, // by this machine's clock
		{"Thu, 31 Dec 2026 23:59:59 GMT", date, 0, true},
		{"Sat, 01 Jan 2028 00:00:00 GMT", date, RetryAfterMax, true},
		{"Sat, 01 Jan 2000 00:00:00 GMT", "", 0, true},
	} {
		resp := &http.Response{Header: http.Header{"Retry-After": {c.value}, "Date": {c.date}}}
		if wait, ok := RetryAfter(resp); wait != c.want || ok != c.ok {
			t.Errorf("%q at %q: %s, %t; want %s, %t", c.value, c.date, wait, ok, c.want, c.ok)
		}
	}
}
