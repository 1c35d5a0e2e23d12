// Package devpg finds, initialises, starts and stops a private Postgres, for
// development and for tests. It is not for production: nothing here backs up,
// replicates or upgrades.
//
// [Start] turns a directory into a running server and is safe to call from
// any number of processes at once. A lock file in the directory is held by the
// process that owns the server, for as long as the server runs:
//
//	lock free, no server    we initialise if need be, start, and own it
//	lock free, our orphan   its owner died: we stop it, then start and own
//	lock free, other server somebody started it by hand: we adopt it
//	lock held, server ready its owner lives: we adopt it
//	lock held, not ready    we wait: it becomes ready, or the lock comes free
//
// The server listens on a Unix socket in a directory only its own user can
// enter. It listens on TCP only if asked to, on 127.0.0.1, and never without a
// password. Started by root it runs as the user postgres, else nobody, because
// Postgres refuses to run as root.
//
// A server does not outlive its owner: on Linux the kernel tells it to stop
// when the owner dies, however it dies; elsewhere a small shell process
// watches the owner.
//
// # Errors
//
//	Situation                                   Error             What to do
//	no PostgreSQL 14 or newer anywhere          ErrNoBinaries     install what the message names
//	binaries of another major than the data     ErrVersion        install that major, or remove the directory
//	the server did not become ready             *StartError       read the end of its log, which it holds
//	root, and the directory is closed to the    ErrUnreachable    choose a directory that user can enter
//	user the server runs as
//	not a Unix system                           ErrUnsupported    give a database URL instead
package devpg
