package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/checkout"
	"github.com/pawl-dev/pawl/coordinator"
)

const (
	// devSecretEnv is the environment variable with the secret of the webhooks.
	devSecretEnv = "PAWL_DEV_WEBHOOK_SECRET"
	// devServiceConns is how many connections to the database a service has.
	devServiceConns = 10
	// devListenFD is the socket that a service is given.
	devListenFD = 3
)

// devCheckoutCmd is "pawl dev-checkout", hidden: a process of the example checkout.
type devCheckoutCmd struct {
	Service  string        `arg:"" enum:"shop,shipping,relay" help:"What it does: shop, shipping or relay."`
	Name     string        `default:"pawl dev checkout" help:"Name of the session."`
	TTL      time.Duration `name:"ttl" default:"15s" help:"Ttl of the session."`
	Sweep    string        `help:"When expired sessions are looked for."`
	Shipping string        `help:"Where shipping listens."`

	// wrap goes round the services' handlers, for tests.
	wrap func(http.Handler) http.Handler
}

// Run serves, or relays, until standard input ends.
func (c *devCheckoutCmd) Run(a *app) error {
	return a.runDevProcess(c.Name, devServiceConns, func(ctx context.Context, pool *pgxpool.Pool) error {
		secret := os.Getenv(devSecretEnv)
		var h http.Handler
		var err error
		switch c.Service {
		case "relay":
			conf := checkout.RelayConfig{
				Namespace: a.namespace, Name: c.Name, Version: readBuild().Version, URL: c.Shipping, Secret: secret, TTL: c.TTL, Logger: a.log,
			}
			if c.Sweep != "" {
				conf.Specs = map[string]string{coordinator.SweepSessions: c.Sweep}
			}
			return checkout.Relay(ctx, pool, conf)
		case "shop":
			h, err = checkout.Shop(pool, a.namespace, a.log)
		default:
			h, err = checkout.Shipping(pool, a.namespace, secret, a.log)
		}
		if err != nil {
			return err
		}
		if c.wrap != nil {
			h = c.wrap(h)
		}
		l, err := net.FileListener(os.NewFile(devListenFD, "listener"))
		if err != nil {
			return err
		}
		return checkout.Serve(ctx, l, h)
	})
}
