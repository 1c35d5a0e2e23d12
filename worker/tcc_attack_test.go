package worker_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/barrier"
	"github.com/pawl-dev/pawl/coordinator/branch"
	"github.com/pawl-dev/pawl/coordinator/tcc"
)

// Ids, headers and args of whatever characters go all the way, to participants of each form.
func TestTCC_oddNames(t *testing.T) {
	t.Parallel()
	pool, bank := ledger(t)
	far := tcc.Define[money]("far.1", tcc.Backoff(0, 0))
	s := &tcc.Service{URL: service(t, bank), Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	w := newWorker(t, pool, quick())
	registerTCC(w, bank)
	tcc.HandleHTTP(w, far, s)
	run(t, w)
	ctx := t.Context()
	moved := 0
	for i, id := range []string{" ", "%", "%2F", "a/b", "ü", "'", "\n", "..", "a\u202e", "\\", "\x7f", strings.Repeat("\U0001F600", tcc.IDCharsMax)} {
		for j, header := range [][2]string{{"traceparent", "00-1"}, {"a", "x\x00y"}, {"", ""}, {"a b\r\n", "c\r\nd: e"}, {"\xff", "\xff"}, {"Content-Length", "1"}}[:1+i%2*5] {
			x, err := tcc.Begin(ctx, pool, tcc.ID(id), tcc.Header(header[0], header[1]))
			if errors.Is(err, tcc.ErrExists) {
				x, err = tcc.Begin(ctx, pool, tcc.ID(fmt.Sprint(i, "/", j)), tcc.Header(header[0], header[1]))
			}
			if err != nil {
				t.Fatalf("%q, %q: %v", id, header, err)
			}
			m := money{"1", 1}
			_, err = far.TryHTTP(ctx, x, m, s)
			if err := errors.Join(err, debit.TryTx(ctx, x, pool, money{"1", 2}, tryDebit(money{"1", 2})), credit.TryTx(ctx, x, bank, m, tryCredit(m)), x.Confirm(ctx)); err != nil {
				t.Fatalf("%q, %q: %v", id, header, err)
			}
			moved += 2
			if err := tcc.Await(ctx, pool, 1, x.ID()); err != nil {
				t.Fatalf("%q, %q: %v", id, header, err)
			}
		}
	}
	balanced(t, pool, bank, moved)
}

// A service that confirms, and says more than anybody asked, has confirmed.
func TestTCC_longAnswer(t *testing.T) {
	t.Parallel()
	pool, _ := ledger(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, branch.AnswerBytesMax+1))
	}))
	t.Cleanup(server.Close)
	s := &tcc.Service{URL: server.URL, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	k := tcc.Define[money]("talks", tcc.Backoff(0, 0), tcc.MaxAttempts(2))
	w := newWorker(t, pool, quick())
	tcc.HandleHTTP(w, k, s)
	run(t, w)
	x, err := tcc.Begin(t.Context(), pool)
	if err == nil {
		err = k.Try(t.Context(), x, money{}, func(context.Context, barrier.Branch) error { return nil })
	}
	if err == nil {
		err = x.Confirm(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	until(t, "its end", func() bool {
		state := tellTCC(t, pool, x.ID()).State
		return state == tcc.Confirmed || state == tcc.Stuck
	})
	if s := tellTCC(t, pool, x.ID()); s.State != tcc.Confirmed {
		t.Errorf("state %s", s.State)
	}
}
