package main

import "github.com/pawl-dev/pawl/db/migrate"

// migrateSQLCmd is "pawl migrate sql".
type migrateSQLCmd struct{}

// Run prints the migrations.
func (*migrateSQLCmd) Run(a *app) error { return migrate.SQL(a.out) }
