package main

import (
	"fmt"

	"github.com/pawl-dev/pawl/coordinator/saga"
)

// sagaStartCmd is "pawl saga start".
type sagaStartCmd struct {
	Name    string `arg:"" help:"Definition, as a service registered it."`
	Version int    `placeholder:"N" help:"Version of the definition. Default: the newest that is registered."`
	ID      string `placeholder:"ID" help:"Id of the saga, which starts it once however often it is asked for. Default: a new UUID."`
	Input   string `default:"{}" placeholder:"JSON" help:"Input: JSON, @FILE, or - for standard input. Default: ${default}."`
}

// Help is the long help text.
func (*sagaStartCmd) Help() string {
	return `Prints the saga's id. With --id it may be repeated: a saga of that id with the same definition and input is left as it is, with others it is an error. Nobody checks the input: its first step finds out.

Example:

    pawl saga start checkout --id checkout:4711 --input '{"order": "4711"}'`
}

// Run starts one saga.
func (c *sagaStartCmd) Run(a *app) error {
	input, err := readJSON("--input", c.Input, a.in)
	if err != nil {
		return err
	}
	var opts []saga.StartOption
	if c.ID != "" {
		opts = append(opts, saga.ID(c.ID))
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	got, err := saga.StartByName(a.ctx, pool, a.namespace, c.Name, c.Version, input, opts...)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(struct {
			ID        string `json:"id"`
			Duplicate bool   `json:"duplicate"` // it was there already
		}{got.ID, got.Duplicate})
	}
	if got.Duplicate {
		fmt.Fprintf(a.out, "nothing started: saga %s is there, with this definition and input\n", plain(got.ID))
		return nil
	}
	fmt.Fprintf(a.out, "saga %s started\n", plain(got.ID))
	return nil
}
