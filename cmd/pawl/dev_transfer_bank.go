package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/pawl-dev/pawl/cmd/transfer"
	"github.com/pawl-dev/pawl/db/devmaria"
	"github.com/pawl-dev/pawl/db/devpg"
)

const (
	devBankMaria    = "south"    // the bank that is a MariaDB
	devBankDatabase = "transfer" // in it
	devBanksEnv     = "PAWL_DEV_BANKS"
)

// devBanksPostgres are the banks that are a Postgres.
var devBanksPostgres = []string{"east", "west"}

// devBank is a bank's private server.
type devBank struct {
	name, url string
	client    string // a command line that takes a statement
	server    interface {
		Kill() error
		Restart(ctx context.Context) error
		Stop(ctx context.Context) error
	}
}

// devPostgres is a Postgres that is started again as a MariaDB is.
type devPostgres struct{ *devpg.Server }

// Restart starts it again after Kill.
func (p *devPostgres) Restart(ctx context.Context) error {
	server, err := devpg.Start(ctx, p.Config())
	if err == nil {
		p.Server = server
	}
	return err
}

// bankDir is where the server of a bank lies: beside the private one.
func (e *devTransfer) bankDir(name string) (string, error) {
	if e.Dir != "" {
		return e.Dir + "-" + name, nil
	}
	return devpg.DefaultDir(devName + "-" + name)
}

func (e *devTransfer) startPostgres(ctx context.Context, name string) error {
	dir, err := e.bankDir(name)
	if err != nil {
		return err
	}
	server, err := devpg.Start(ctx, devpg.Config{Dir: dir, Durable: true, Logger: e.live.logger(e.app.log)})
	if err != nil {
		return err
	}
	url := server.URL("postgres")
	e.servers = append(e.servers, devBank{name, url, "psql " + shellQuote(url) + " -c", &devPostgres{server}})
	e.live.say("Bank %s: PostgreSQL %s in %s.", name, server.Version(), dir)
	return nil
}

func (e *devTransfer) startMaria(ctx context.Context) error {
	dir, err := e.bankDir(devBankMaria)
	if err != nil {
		return err
	}
	server, err := devmaria.Start(ctx, dir)
	if err != nil {
		return err
	}
	e.servers = append(e.servers, devBank{devBankMaria, server.URL(devBankDatabase), "mariadb -u root -S " + shellQuote(server.Socket()) + " -e", server})
	db, err := participantMySQL(devBankMaria, server.URL("mysql"))
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE DATABASE IF NOT EXISTS "+devBankDatabase); err != nil {
		return fmt.Errorf("bank %s: %w", devBankMaria, err)
	}
	var version string
	if err := db.QueryRowContext(ctx, "SELECT VERSION()").Scan(&version); err != nil {
		return fmt.Errorf("bank %s: %w", devBankMaria, err)
	}
	version, _, _ = strings.Cut(version, "-")
	e.live.say("Bank %s: MariaDB %s in %s.", devBankMaria, version, dir)
	return nil
}

// named gives the banks as NAME=URL.
func (e *devTransfer) named() []string {
	named := make([]string, len(e.servers))
	for i, bank := range e.servers {
		named[i] = bank.name + "=" + bank.url
	}
	return named
}

// openBanks opens pools of banks, each NAME=URL. It reaches none yet.
func (a *app) openBanks(named []string) (banks []transfer.Bank, closeAll func(), err error) {
	var closes []func()
	closeAll = func() {
		for _, f := range closes {
			f()
		}
	}
	for _, text := range named {
		name, url, _ := strings.Cut(text, "=")
		if strings.HasPrefix(url, "mysql:") {
			db, err := participantMySQL(name, url)
			if err != nil {
				closeAll()
				return nil, nil, err
			}
			db.SetMaxIdleConns(devTransferConns)
			closes = append(closes, func() { _ = db.Close() })
			banks = append(banks, transfer.MySQL(name, db))
			continue
		}
		pool, err := participantPool(a, name, url)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		closes = append(closes, pool.Close)
		banks = append(banks, transfer.Postgres(name, pool))
	}
	return banks, closeAll, nil
}

// killServer kills a bank's server and starts it again, while the others go on.
func (e *devTransfer) killServer(ctx context.Context) {
	select {
	case e.killing <- struct{}{}:
	default:
		return // the last one is not back yet
	}
	bank := e.servers[e.crashed%len(e.servers)]
	e.crashed++
	go func() {
		defer func() { <-e.killing }()
		e.live.say("  killing the server of bank %s", bank.name)
		if err := bank.server.Kill(); err != nil {
			e.live.say("  it could not be killed: %v", err)
			return
		}
		restart, stop := context.WithTimeout(context.WithoutCancel(ctx), devStallMax)
		defer stop()
		if err := bank.server.Restart(restart); err != nil {
			e.cancel(fmt.Errorf("bank %s: %w", bank.name, err))
			return
		}
		for range devTransferConns { // connections from before fail once
			if _, err := e.banks.Prepared(ctx); err == nil {
				break
			}
		}
		e.live.say("  bank %s is back", bank.name)
	}()
}

func (e *devTransfer) stopServers() {
	e.killing <- struct{}{} // wait for the one that is started
	for _, bank := range e.servers {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(e.app.ctx), devStopMax)
		if err := bank.server.Stop(ctx); err != nil {
			e.live.say("The server of bank %s did not stop: %v", bank.name, err)
		}
		cancel()
	}
}
