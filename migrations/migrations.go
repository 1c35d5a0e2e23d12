// Package migrations embeds the goose files that build the schema pawl.
package migrations

import "embed"

// FS holds the migrations, one noun to a file, in the order of their names.
//
//go:embed *.sql
var FS embed.FS
