package main

import (
	"fmt"
	"io/fs"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/pawl-dev/pawl/migrations"
)

// versionCmd is "pawl version".
type versionCmd struct{}

// build is what is known of this binary.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source
	Time     string `json:"time,omitempty"`     // of the revision
	Modified bool   `json:"modified,omitempty"` // the source was changed after it
	Schema   int64  `json:"schema"`             // the newest migration
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Run prints the version. It needs no database.
func (*versionCmd) Run(a *app) error {
	b := readBuild()
	if a.json {
		return a.printJSON(b)
	}
	fmt.Fprintf(a.out, "pawl %s\n", b.Version)
	if b.Revision != "" {
		changed := ""
		if b.Modified {
			changed = ", changed since"
		}
		fmt.Fprintf(a.out, "revision %s of %s%s\n", b.Revision, b.Time, changed)
	}
	fmt.Fprintf(a.out, "schema %d, %s, %s\n", b.Schema, b.Go, b.Platform)
	return nil
}

// String is short: the version, and of an unreleased one the revision.
func (b build) String() string {
	if b.Revision == "" {
		return b.Version
	}
	changed := ""
	if b.Modified {
		changed = ", changed"
	}
	return fmt.Sprintf("%s (%.12s%s)", b.Version, b.Revision, changed)
}

func readBuild() build {
	b := build{Version: "(devel)", Schema: schemaVersion(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// schemaVersion is the number of the newest migration in this binary.
func schemaVersion() int64 {
	names, err := fs.Glob(migrations.FS, "*.sql") // sorted
	if err != nil || len(names) == 0 {
		return 0
	}
	number, _, _ := strings.Cut(names[len(names)-1], "_")
	version, _ := strconv.ParseInt(number, 10, 64) // goose checks it
	return version
}
