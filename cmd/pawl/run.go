package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"
)

// globals are the flags of every sub-command.
type globals struct {
	DatabaseURL string `name:"database-url" env:"PAWL_DATABASE_URL" placeholder:"URL" group:"global" help:"Database to work on, as postgres://user@host/database. Default: the private Postgres of \"pawl dev\", if it runs"`
	Namespace   string `default:"default" placeholder:"NAME" group:"global" help:"Namespace, by name or number."`
	JSON        bool   `name:"json" group:"global" help:"Print JSON instead of text, and log it."`
	LogLevel    string `enum:"debug,info,warn,error" default:"info" placeholder:"LEVEL" group:"global" help:"Least level that is logged, to standard error: debug, info, warn or error. Default: ${default}."`
}

const description = `Jobs and transactions on one Postgres.

Start with "pawl dev", which brings a Postgres of its own. On yours: "pawl migrate up",
then "pawl serve" and "pawl work", on as many machines as you like.

Exit codes:
  0    ok
  1    failed
  2    wrong usage or input
  3    not found
  4    database not reachable
  5    schema missing, too old or too new
  130  stopped at once by a second interrupt`

// run runs one command line and returns its exit code. It ends when ctx does, as soon as what the command runs has come to an end.
func run(ctx context.Context, args []string, in io.Reader, out, stderr io.Writer) int {
	a := &app{ctx: ctx, in: in, out: out, err: stderr}
	err := parseAndRun(a, args)
	if err != nil {
		a.complain(err)
	}
	return exitCode(err)
}

func parseAndRun(a *app, args []string) error {
	var c cli
	helped := false
	parser, err := kong.New(&c,
		kong.Name("pawl"), kong.Description(description), kong.Writers(a.out, a.err),
		kong.ExplicitGroups([]kong.Group{{Key: "global", Title: "Global flags:"}}),
		kong.Exit(func(int) { helped = true }), // --help, which has been printed
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100, NoAppDescFormat: true}),
	)
	if err != nil {
		return err
	}
	switch { // what people try first
	case len(args) == 0:
		args = []string{"--help"}
	case args[0] == "help":
		args = append(slices.Clone(args[1:]), "--help")
	case args[0] == "--version":
		args = []string{"version"}
	}
	parsed, err := parser.Parse(args)
	if helped {
		return nil
	}
	if err != nil {
		return usage(parser, err)
	}
	a.use(c.globals)
	a.command, _, _ = strings.Cut(parsed.Command(), " <") // without arguments
	return parsed.Run(a)
}

// usage says which help to read.
func usage(parser *kong.Kong, err error) error {
	command := parser.Model.Name
	var failed *kong.ParseError
	if errors.As(err, &failed) && failed.Context.Selected() != nil {
		command = failed.Context.Selected().FullPath()
	}
	return usageError{err.Error() + `; see "` + command + ` --help"`}
}

// use takes over the global flags.
func (a *app) use(g globals) {
	a.json, a.databaseURL = g.JSON, g.DatabaseURL
	if n, err := strconv.ParseInt(g.Namespace, 10, 16); err == nil {
		a.namespace = int16(n)
	} else {
		a.namespaceName = g.Namespace // pool looks it up
	}
	if g.Namespace == "default" {
		a.namespace, a.namespaceName = 1, ""
	}
	var level slog.Level
	_ = level.UnmarshalText([]byte(g.LogLevel)) // one of the enum
	options := &slog.HandlerOptions{Level: level}
	a.log = slog.New(slog.NewTextHandler(a.err, options))
	if g.JSON {
		a.log = slog.New(slog.NewJSONHandler(a.err, options))
	}
}
