package checkout

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/webhook"
)

// SubscriptionName is the name of shipping's subscription.
const SubscriptionName = "shipping"

// subscription says what is relayed to shipping. A key that failed waits for a moment only: in this example the reason is nearly always that a process was killed.
func subscription(ns int16, sink outbox.Sink) outbox.Subscription {
	return outbox.Subscription{
		Namespace: ns, Name: SubscriptionName, Topics: []string{Topic}, Sink: sink, Describe: "webhook of shipping",
		Batch: 10, Backoff: 200 * time.Millisecond, BackoffMax: 5 * time.Second,
	}
}

// RelayConfig configures Relay.
type RelayConfig struct {
	Namespace int16
	Name      string // of this process, for operators, as its version
	Version   string
	URL       string        // of shipping
	Secret    string        // events are signed with: whsec_ and base64
	TTL       time.Duration // how long after this process dies another one takes over, 0: as by default
	Specs     map[string]string
	Logger    *slog.Logger
}

// Relay relays the shop's events to shipping until ctx ends. Any number may run: one of them relays at a time.
func Relay(ctx context.Context, pool *pgxpool.Pool, conf RelayConfig) error {
	sink, err := webhook.New(webhook.Config{
		URL: conf.URL, Source: "/shop", Secrets: []string{conf.Secret},
		AllowPrivate: true, // shipping listens on this machine
	})
	if err != nil {
		return err
	}
	c, err := coordinator.New(pool, coordinator.Config{
		Namespace: conf.Namespace, Name: conf.Name, Version: conf.Version, TTL: conf.TTL, Specs: conf.Specs, Logger: conf.Logger,
		Subscriptions: []outbox.Subscription{subscription(conf.Namespace, sink)},
	})
	if err != nil {
		return err
	}
	return c.Run(ctx)
}
