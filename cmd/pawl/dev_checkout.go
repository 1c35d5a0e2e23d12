package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/pawl-dev/pawl/cmd/checkout"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/saga"
)

const (
	// devOrdersMax is how many orders may be asked for.
	devOrdersMax = 100_000
	// devEach is how many processes each service has.
	devEach = 2
)

// devServices are what those processes do.
var devServices = []string{"shop", "inventory", "payments", "shipping", "relay"}

// devCheckout is the example of package checkout: its services in processes of their own, and the clients here.
type devCheckout struct {
	*dev
	run      int64
	secret   string // of the webhooks
	shop     *address
	payments *address
	shipping *address
	load     *checkout.Load
	recorded atomic.Bool // all clients have an answer, which is in the tables
	steps    int         // orders placed, decided and packed so far,
	moved    time.Time   // and since when
	pace     *pace
	began    time.Time
	report   checkoutReport
}

func (e *devCheckout) check(context.Context) error {
	switch {
	case runtime.GOOS == "windows":
		return usagef("--example checkout hands listening sockets to its processes, which Windows does not do")
	case e.Src != "":
		return usagef("--src is for --example gosrc")
	case e.Orders < 1 || e.Orders > devOrdersMax:
		return usagef("--orders %d is outside 1 to %d", e.Orders, devOrdersMax)
	}
	return nil
}

func (e *devCheckout) start(ctx context.Context) (err error) {
	if err := checkout.Create(ctx, e.pool, e.app.namespace); err != nil {
		return err
	}
	e.secret = newSecret()
	for _, a := range []**address{&e.shop, &e.payments, &e.shipping} {
		if *a, err = listen(); err != nil {
			return err
		}
		e.ends = append(e.ends, (*a).close)
	}
	var roles []role
	for _, service := range devServices {
		roles = append(roles, role{name: service, size: devEach, command: e.serviceCommand(service)})
	}
	e.startFleet(ctx, roles...)
	var requests []checkout.Request
	if e.run, requests, err = checkout.Start(ctx, e.pool, e.Orders); err != nil {
		return err
	}
	e.report = checkoutReport{Run: e.run, URL: e.shop.url}
	e.live.say("Run %d: %s orders from impatient clients, 2 to 5 for each, at the shop on %s.", e.run, thousands(e.Orders), e.shop.url)
	e.live.say("Each order is a saga of shop, inventory and payments; a relay tells shipping of those that are confirmed. %d processes each.", devEach)
	if e.Kill {
		e.live.say("Killing %d processes on the way, of each service some. Sessions expire after %s here (default %s), then others take over.", devKills, devKillTTL, devTTL)
	}
	e.began = time.Now()
	e.pace = newPace(e.began)
	e.startLoad(ctx, requests)
	return nil
}

// startLoad has the clients ask until the run ends.
func (e *devCheckout) startLoad(ctx context.Context, requests []checkout.Request) {
	e.load = checkout.NewLoad(e.shop.url)
	ctx, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		answers, err := e.load.Run(ctx, requests)
		if err == nil {
			err = checkout.Record(ctx, e.pool, e.run, answers)
		}
		if err != nil && ctx.Err() == nil {
			e.cancel(err)
		}
		e.recorded.Store(err == nil)
	}()
	e.ends = append(e.ends, func() { end(); <-done })
}

func (e *devCheckout) look(ctx context.Context) (devProgress, error) {
	recorded, placed := e.recorded.Load(), e.load.Done()
	p, err := checkout.ReadProgress(ctx, e.pool, e.app.namespace, e.run)
	if err != nil {
		return devProgress{}, err
	}
	now := time.Now()
	if steps := placed + p.Decided + p.Parcels; steps > e.steps {
		e.steps, e.moved = steps, now
	}
	line := e.line(fmt.Sprintf("%s of %s orders placed", thousands(placed), thousands(e.Orders)), e.pace.rate(now, placed), plural(e.fleet.alive(), "process", "processes"),
		fmt.Sprintf("%s decided, %s shipped", thousands(p.Decided), thousands(p.Parcels)), e.pace.elapsed(now))
	return devProgress{Done: placed + p.Decided, All: 2 * e.Orders, Moved: e.steps, Line: line, Finished: recorded && p.Open == 0 && p.Waiting == 0}, nil
}

func (e *devCheckout) stalled(ctx context.Context) error {
	parked, err := outbox.Parked(ctx, e.pool, e.app.namespace, checkout.SubscriptionName, devMissingMax)
	if err != nil {
		return err
	}
	for _, p := range parked {
		e.live.say("Event %s of %s waits at attempt %d: %s", p.ID, p.Key, p.Attempt, p.Error)
	}
	for _, state := range []saga.State{saga.StateStuck, saga.StateRunning, saga.StateCompensating} {
		open, _, err := saga.List(ctx, e.pool, e.app.namespace, saga.Filter{State: state, Name: checkout.SagaName, Limit: devMissingMax})
		if err != nil {
			return err
		}
		for _, s := range open {
			e.live.say("Saga %s is %s since %s", s.ID, s.State, s.At.Format(time.TimeOnly))
		}
	}
	return fmt.Errorf("nothing happened for %s, with %d of %d orders placed", devStallMax, e.load.Done(), e.Orders)
}

func (e *devCheckout) interrupted() string {
	if e.run == 0 {
		return ""
	}
	return fmt.Sprintf("What the shop took in run %d will be decided and shipped the next time.", e.run)
}

func (e *devCheckout) prove(ctx context.Context) (devReport, error) {
	r := &e.report
	r.ElapsedS = e.moved.Sub(e.began).Seconds()
	r.Calls = e.load.Tally()
	r.Kills = map[string]int{}
	for _, name := range devServices {
		r.Kills[name] = e.fleet.killed(name)
	}
	var err error
	r.Figures, r.Claims, err = checkout.Prove(ctx, e.pool, e.app.namespace, e.run)
	return r, err
}

func (e *devCheckout) lookAround(w io.Writer, try func(args, what string)) {
	f := e.report.Figures
	try("saga show "+checkout.SagaID(f.ExampleOrder), "the steps of an order, and when they were done")
	if f.ExampleCancelled != 0 {
		try("saga show "+checkout.SagaID(f.ExampleCancelled), "one that was cancelled: what was undone, and why")
	}
	try("saga list", "the newest sagas")
	try("outbox lag", "how far shipping is behind the shop")
	try("subscription list", "who is told of what")
	try("subscription parked "+checkout.SubscriptionName, "events that shipping refused")
	try("idempotency show "+f.ExampleKey, "the answer that is stored for a key")
	try("outbox list --key "+f.ExampleCustomer, "the events of its customer")
	try("session list --all", "the services' workers, and the relays")
	fmt.Fprintf(w, "\n  curl -i -u you: -H 'Idempotency-Key: 1' -d '{\"item\": \"tea\", \"cents\": 450}' %s/orders   # and once more; and with other cents\n", e.shop.url)
	fmt.Fprintf(w, "  curl -u %s: %s/orders/%d\n", f.ExampleCustomer, e.shop.url, f.ExampleOrder)
	fmt.Fprintf(w, "\n  psql %s -c \"SELECT * FROM checkout.orders WHERE customer = 'you'\"\n", shellQuote(e.app.databaseURL))
	if f.ExampleCancelled != 0 {
		fmt.Fprintf(w, "  psql %s -c 'SELECT * FROM checkout.payment WHERE order_id = %d'   # that was cancelled\n", shellQuote(e.app.databaseURL), f.ExampleCancelled)
	}
}

// newSecret makes a secret to sign webhooks with.
func newSecret() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return "whsec_" + base64.StdEncoding.EncodeToString(key)
}

// address is a socket that listens and that processes of a fleet share: when one of them dies, what is connected to it is cut off, and new connections go to the others or wait
// for the one that takes its place.
type address struct {
	url  string
	file *os.File
}

func listen() (*address, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close() // the file is another of the same socket
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	return &address{"http://" + l.Addr().String(), file}, nil
}

func (a *address) close() { _ = a.file.Close() }

// serviceCommand makes the commands of a service's processes. The secret goes by the environment: others see arguments.
func (e *devCheckout) serviceCommand(service string) func(n int) (*exec.Cmd, error) {
	at := map[string]*address{"shop": e.shop, "payments": e.payments, "shipping": e.shipping}[service]
	return func(n int) (*exec.Cmd, error) {
		args := []string{"dev-checkout", service, fmt.Sprintf("--name=pawl dev %s %d", service, n), "--ttl=" + e.ttl().String(), "--shipping=" + e.shipping.url, "--payments=" + e.payments.url}
		if e.Kill {
			args = append(args, "--sweep="+devKillSweep)
		}
		cmd, err := e.processCommand(args...)
		if err != nil {
			return nil, err
		}
		cmd.Env = append(cmd.Env, devSecretEnv+"="+e.secret)
		if at != nil {
			cmd.ExtraFiles = []*os.File{at.file}
		}
		return cmd, nil
	}
}
