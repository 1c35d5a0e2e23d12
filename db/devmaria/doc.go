// Package devmaria starts a private MariaDB, for development and tests.
//
//	server, err := devmaria.Start(ctx, "")
//	db, err := sql.Open("mysql", server.DSN("mysql"))
//
// It finds the server that the machine has installed, or takes the one in the directory that PAWL_MARIADB_BIN names, initialises a data directory, and listens on a Unix socket in it only, of which nobody but root
// and its owner can come near. The server writes each commit to the disk, so that what is prepared outlives Kill. Its user is root, without a password. As root it runs the server as user mysql, or nobody. The
// server ends with this process, however that ends. Where several processes start one in the same directory, the first owns it, as long as that lives, and the others adopt it.
//
// It needs Unix: elsewhere Start returns ErrUnsupported.
package devmaria

import "errors"

var (
	// ErrNotInstalled: the machine has no MariaDB. The error says how to install one.
	ErrNotInstalled = errors.New("devmaria: no MariaDB is installed")
	// ErrTooLong: the directory's path leaves no room for a socket's name.
	ErrTooLong = errors.New("devmaria: too long a path for a socket")
	// ErrUnsupported: only on Unix.
	ErrUnsupported = errors.New("devmaria: a private MariaDB needs Unix")
)
