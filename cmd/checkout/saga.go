package checkout

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/saga"
	"github.com/pawl-dev/pawl/worker"
)

// SagaName is the name of the saga that each order is; its id is "checkout:" and the order's.
const SagaName = "checkout"

// The services that do its steps, each on a queue of its own.
const (
	ServiceShop      = "shop"
	ServiceInventory = "inventory"
	ServicePayments  = "payments"
)

const (
	queuePrefix    = "checkout." // of the services' queues
	slots          = 8           // steps that a process does at a time
	chargeAttempts = 2           // without an answer; then the order is cancelled, whether it was charged or not
)

// checkout is what becomes of an order: what its steps are, not how they are done, which their services know.
//
//	accept ──▶ reserve ──▶ charge ──▶ confirm
//	   └─────▶ welcome ──────────────────┘
type checkout struct {
	*saga.Definition[Order]
	accept  *saga.StepOf[Order, saga.None] // shop; undone: the order is cancelled
	reserve *saga.StepOf[Order, saga.None] // inventory; undone: the piece is back in stock
	welcome *saga.StepOf[Order, welcome]   // shop; nothing to undo
	charge  *saga.StepOf[Order, payment]   // payments, over HTTP; undone: a refund
	confirm *saga.StepOf[Order, saga.None] // shop; from here on there is no way back
}

// welcome says whether an order is the one that its customer gets a gift with.
type welcome struct {
	Gift bool `json:"gift"`
}

func newCheckout(ns int16) *checkout {
	soon := saga.Backoff(50*time.Millisecond, time.Second) // in this example the reason is nearly always a process that was killed, or an answer that was lost
	first := saga.Priority(1)                              // before other orders are accepted
	at := func(service string) saga.StepOption { return saga.Queue(queuePrefix + service) }
	c := &checkout{Definition: saga.Define[Order](SagaName, saga.Namespace(ns))}
	c.accept = saga.Step[saga.None](c.Definition, "accept", at(ServiceShop), soon, saga.Undo(soon))
	c.reserve = saga.Step[saga.None](c.Definition, "reserve", at(ServiceInventory), saga.After(c.accept), soon, saga.Undo(soon))
	c.welcome = saga.Step[welcome](c.Definition, "welcome", at(ServiceShop), saga.After(c.accept), first, soon, saga.ReadOnly())
	c.charge = saga.Step[payment](c.Definition, "charge", at(ServicePayments), saga.After(c.reserve), soon, saga.MaxAttempts(chargeAttempts), saga.Undo(soon))
	c.confirm = saga.Step[saga.None](c.Definition, "confirm", at(ServiceShop), saga.After(c.charge, c.welcome), first, soon, saga.Pivot())
	return c
}

// SagaID is the id of the saga of an order.
func SagaID(order int64) string { return fmt.Sprintf("%s:%d", SagaName, order) }

// WorkConfig configures Work.
type WorkConfig struct {
	Service       string // whose steps are done
	Namespace     int16
	Name, Version string        // of this process, for operators
	PaymentsURL   string        // where Payments listens, for ServicePayments
	TTL, Drain    time.Duration // as those of worker.Config
	Use           []worker.Middleware
	Logger        *slog.Logger
}

// Work does the steps of a service until ctx ends. Any number may.
func Work(ctx context.Context, pool *pgxpool.Pool, conf WorkConfig) error {
	w, err := worker.New(pool, worker.Config{
		Queues: map[string]int{queuePrefix + conf.Service: slots}, Namespace: conf.Namespace, Name: conf.Name, Version: conf.Version, TTL: conf.TTL, Drain: conf.Drain, Logger: conf.Logger,
	})
	if err != nil {
		return err
	}
	w.Use(conf.Use...)
	c := newCheckout(conf.Namespace)
	switch conf.Service {
	case ServiceShop:
		s := &steps{ns: conf.Namespace, saga: c}
		saga.HandleTx(w, c.accept, s.accept, s.cancel)
		saga.HandleTx(w, c.welcome, s.welcome, nil)
		saga.HandleTx(w, c.confirm, s.confirm, nil)
	case ServiceInventory:
		saga.HandleTx(w, c.reserve, reserve, release)
	case ServicePayments:
		saga.HandleHTTP(w, c.charge, saga.Branch{
			URL:   conf.PaymentsURL + "/charge",
			Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, // Payments listens on this machine
		})
	default:
		return fmt.Errorf("no service %q does steps", conf.Service)
	}
	return w.Run(ctx)
}
