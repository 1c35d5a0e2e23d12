package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/cmd/checkout"
	"github.com/pawl-dev/pawl/coordinator"
	"github.com/pawl-dev/pawl/worker"
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
	Service  string        `arg:"" enum:"shop,inventory,payments,shipping,relay" help:"What it does: shop, inventory, payments, shipping or relay."`
	Name     string        `default:"pawl dev checkout" help:"Name of the session."`
	TTL      time.Duration `name:"ttl" default:"15s" help:"Ttl of the session."`
	Sweep    string        `help:"When expired sessions are looked for."`
	Shipping string        `help:"Where shipping listens."`
	Payments string        `help:"Where payments listens."`

	// wrap goes round the services' handlers, and use round their steps of sagas, for tests.
	wrap func(http.Handler) http.Handler
	use  []worker.Middleware
}

// Run serves, works or relays until standard input ends.
func (c *devCheckoutCmd) Run(a *app) error {
	return a.runDevProcess(c.Name, devServiceConns, func(ctx context.Context, pool *pgxpool.Pool) error {
		work := func(ctx context.Context) error {
			return checkout.Work(ctx, pool, checkout.WorkConfig{
				Service: c.Service, Namespace: a.namespace, Name: c.Name, Version: readBuild().Version, PaymentsURL: c.Payments, TTL: c.TTL, Drain: devStopMax / 2, Use: c.use, Logger: a.log,
			})
		}
		secret := os.Getenv(devSecretEnv)
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
			h, err := checkout.Shop(pool, a.namespace, a.log)
			if err != nil {
				return err
			}
			return together(ctx, work, c.serve(h))
		case "payments":
			return together(ctx, work, c.serve(checkout.Unreliable(checkout.Payments(pool, a.namespace, a.log))))
		case "shipping":
			h, err := checkout.Shipping(pool, a.namespace, secret, a.log)
			if err != nil {
				return err
			}
			return c.serve(h)(ctx)
		default:
			return work(ctx)
		}
	})
}

// serve makes what serves on the socket that this process was given.
func (c *devCheckoutCmd) serve(h http.Handler) func(context.Context) error {
	if c.wrap != nil {
		h = c.wrap(h)
	}
	return func(ctx context.Context) error {
		l, err := net.FileListener(os.NewFile(devListenFD, "listener"))
		if err != nil {
			return err
		}
		return checkout.Serve(ctx, l, h)
	}
}

// together runs all until ctx ends or one of them does.
func together(ctx context.Context, runs ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	errs := make([]error, len(runs))
	for i, run := range runs {
		group.Go(func() {
			defer cancel()
			errs[i] = run(ctx)
		})
	}
	group.Wait()
	return errors.Join(errs...)
}
