//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/cmd/checkout"
)

// checkoutReport waits for the end of a run that is to be right, and returns what it wrote.
func (r *devRun) checkoutReport(t *testing.T, orders int) checkoutReport {
	t.Helper()
	if err := r.wait(t); err != nil {
		t.Fatalf("pawl dev: %v\n%s", err, r.out.String())
	}
	var report checkoutReport
	if err := json.Unmarshal(r.out.Bytes(), &report); err != nil {
		t.Fatalf("%v\n%s", err, r.out.String())
	}
	if err := report.wrong(); err != nil || len(report.Claims) == 0 {
		t.Errorf("%v: %+v", err, report.Claims)
	}
	if f := report.Figures; f.Keys != orders || f.Orders != orders || f.Confirmed+f.Cancelled != orders || f.Parcels != f.Confirmed || f.Confirmed == 0 || f.Refused+f.Unanswered == 0 || f.Clients < 2*orders {
		t.Errorf("got %+v, want %d orders", f, orders)
	}
	if c := report.Calls; c.Answers != report.Figures.Clients+report.Figures.Others || c.Replayed == 0 || c.Calls != c.Answers+c.InFlight+c.Failed+c.Cut+c.Hurried {
		t.Errorf("the clients counted %+v", c)
	}
	mentions(t, r.log.String(), "orders placed")
	if text := r.log.String(); strings.Contains(text, "ended by itself") {
		t.Error("a process ended by itself")
	}
	return report
}

func TestDev_checkoutKill(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	t.Parallel()
	pool, url := openPool(t)
	const orders = 300
	r := runDev(t, url, &devCmd{Example: "checkout", Exit: true, Kill: true, Orders: orders, command: devProcess("slow")})
	report := r.checkoutReport(t, orders)
	n, _ := report.kills()
	for _, service := range devServices {
		if report.Kills[service] == 0 {
			t.Errorf("no process of %s was killed", service)
		}
		mentions(t, r.log.String(), "killed "+service)
	}
	if n != devKills {
		t.Errorf("killed %v, want %d", report.Kills, devKills)
	}
	awaitRow(t, pool, "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pawl dev%'")
}

// It stays up for a look around; what it says to try can be tried.
func TestDev_checkoutStaysUp(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	t.Parallel()
	_, url := openPool(t)
	const orders = 30
	r := runDev(t, url, &devCmd{Example: "checkout", Orders: orders, command: devProcess("quick")})
	r.log.await(t, "It stays up until Ctrl-C.")
	_, at, _ := strings.Cut(r.log.String(), "at the shop on ")
	at, _, _ = strings.Cut(at, ".\n")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at+"/orders", strings.NewReader(`{"item": "tea", "cents": 450}`))
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth("you", "")
	request.Header.Set("Idempotency-Key", "1")
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Errorf("status %d, %v: %s", resp.StatusCode, err, body)
	}
	r.interrupt()
	report := r.checkoutReport(t, orders)
	if report.URL != at || report.Run != 1 {
		t.Errorf("got run %d at %s, want 1 at %s", report.Run, report.URL, at)
	}
	e := devCheckout{dev: &dev{app: r.app}, shop: &address{url: report.URL}, report: report}
	var out bytes.Buffer
	tried := 0
	e.lookAround(&out, func(args, _ string) {
		tried++
		must(t, exitOK, url, strings.Fields(args)...)
	})
	if tried < 4 {
		t.Errorf("only %d commands are named", tried)
	}
	mentions(t, out.String(), "curl ", report.URL, fmt.Sprintf("/orders/%d", report.Figures.ExampleOrder), report.Figures.ExampleCustomer)
}

// What the shop took in a run that is cut off is decided and shipped by the next.
func TestDev_checkoutInterrupt(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	t.Parallel()
	pool, url := openPool(t)
	r := runDev(t, url, &devCmd{Example: "checkout", Orders: 10_000, command: devProcess("slow")})
	r.log.await(t, "orders from impatient clients")
	awaitRow(t, pool, "SELECT count(*) > 10 FROM checkout.orders")
	r.interrupt()
	if err := r.wait(t); exitCode(err) != exitFailed {
		t.Errorf("got %v, want an end that was reported", err)
	}
	mentions(t, r.log.String(), "Interrupted. What the shop took in run 1")
	next := runDev(t, url, &devCmd{Example: "checkout", Exit: true, Orders: 10, command: devProcess("quick")})
	if report := next.checkoutReport(t, 10); report.Run != 2 {
		t.Errorf("got run %d, want 2", report.Run)
	}
	var left int
	if err := pool.QueryRow(t.Context(), `
		SELECT count(*)
		FROM checkout.orders o
		WHERE (o.state, (SELECT count(*) FROM checkout.parcel p WHERE p.order_id = o.id)) NOT IN (('confirmed', 1), ('cancelled', 0))`).Scan(&left); err != nil || left > 0 {
		t.Errorf("%d orders are neither confirmed and packed nor cancelled, %v", left, err)
	}
}

func TestDev_checkoutBadInput(t *testing.T) {
	t.Parallel()
	_, url := openPool(t)
	for want, cmd := range map[string]*devCmd{
		"--orders 0 is outside":      {Example: "checkout"},
		"--orders 100001 is outside": {Example: "checkout", Orders: 100_001},
		"--src is for":               {Example: "checkout", Orders: 1, Src: t.TempDir()},
	} {
		err := runDev(t, url, cmd).wait(t)
		if exitCode(err) != exitUsage {
			t.Fatalf("got %v, want wrong usage", err)
		}
		mentions(t, err.Error(), want)
	}
	refused(t, exitUsage, url, []string{"dev", "--example", "nothing"}, "--example", "gosrc", "checkout")
}

func TestCheckoutReport(t *testing.T) {
	t.Parallel()
	r := checkoutReport{
		Run: 3, ElapsedS: 17.6, Kills: map[string]int{"shop": 2, "inventory": 2, "payments": 1, "shipping": 2, "relay": 1},
		Calls: checkout.Tally{Calls: 9000, Answers: 3300, Replayed: 2200, InFlight: 5000, Failed: 1, Cut: 99, Hurried: 600},
		Figures: checkout.Figures{
			Keys: 1000, Clients: 3200, Others: 100, Customers: 24, Orders: 1000, Confirmed: 850, Cancelled: 150, Short: 60, Refused: 80, Unanswered: 10,
			Items: 16, Payments: 866, Refunds: 8, PaymentRepeats: 140, Parcels: 850, Repeats: 16,
		},
		Claims: []checkout.Claim{{Count: 1000, Of: "keys", Text: "each has one order"}, {Count: 24, Of: "customers", Text: "their orders came in order"}},
	}
	var out bytes.Buffer
	a := &app{out: &out}
	if err := r.write(a); err != nil || r.wrong() != nil {
		t.Fatal(err, r.wrong())
	}
	const want = `
1,000 orders of 24 customers in 17.6 s: asked for by 3,200 clients, several with one key at once.
8 processes were killed: shop 2, inventory 2, payments 1, shipping 2, relay 1.
9,000 calls to the shop: 3,300 answers, of them 2,200 with what was stored for the key.
The others were made again: 5,000 met another with their key at work (409), 600 were given up by the client, 99 cut off, 1 failed.
850 orders were confirmed, 150 cancelled: for 60 nothing was left in stock, 80 the bank refused, 10 got no answer from payments.
866 payments, of them 8 refunds; 140 calls came again, and the barrier knew them.
866 deliveries to shipping: 16 again, of events that its inbox knew.

Proof, from the tables:
  1,000 keys: each has one order.
     24 customers: their orders came in order.
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	out.Reset()
	if r.Figures.Stopped = 2; r.write(a) != nil {
		t.Fatal("no report")
	}
	mentions(t, out.String(), "10 got no answer from payments, 2 by an operator.\n")
	for i := range devDiffMax + 2 {
		r.Claims[1].Differences = append(r.Claims[1].Differences, fmt.Sprintf("ada: %d\x1b", i))
	}
	out.Reset()
	err := (&dev{app: a, live: newLive(&out)}).conclude(&r)
	if exitCode(err) != exitFailed {
		t.Errorf("got %v, want a failure", err)
	}
	mentions(t, out.String(), "WRONG, 22 differences from this: 24 customers: their orders came in order.\n  ada: 0", "and 2 more\n")
	if text := out.String(); strings.Contains(text, "Proof") || strings.Contains(text, "each has one order") || strings.Contains(text, "\x1b") {
		t.Errorf("claims a proof, or writes what a terminal would obey:\n%q", text)
	}
}
