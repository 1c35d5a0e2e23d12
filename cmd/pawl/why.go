package main

import (
	"os/user"
	"strings"
)

// why is who does something, and why. Both are kept with what is done.
type why struct {
	Reason string `required:"" placeholder:"TEXT" help:"Why; it is kept in the history."`
	Actor  string `placeholder:"NAME" help:"Who does it; kept as well. Default: the user of the operating system."`
}

// check makes the actor known.
func (w *why) check() error {
	if strings.TrimSpace(w.Reason) == "" {
		return usagef("--reason is empty: whoever looks at this later wants to know")
	}
	if w.Actor == "" {
		u, err := user.Current()
		if err != nil || u.Username == "" {
			return usagef("the operating system does not tell who you are: say so with --actor")
		}
		w.Actor = u.Username
	}
	return nil
}
