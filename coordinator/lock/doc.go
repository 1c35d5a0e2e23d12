// Package lock is mutual exclusion for processes that share a Postgres: one holder in the cluster, reentrant, in the order of asking, fenced.
//
// # The lock table
//
// [Locks] is a process's membership: one session, one heartbeat, at most three connections, however many locks it holds. A lock is a name; its newest row is its
// state, and each change appends one. A release grants the lock to the first waiter in the same transaction and hints that waiter's process alone. A grant
// commits synchronously; a release that grants to nobody does not wait for the disk, since a session gives up, after a crash of the server, what
// its process does not know of.
//
// A holder is valid while its session is: [Lease.Context] ends, by the process's own monotonic clock, before Postgres lets another have the lock. That is as much as a
// lease can promise: a process may be stopped between looking at it and writing. Fence what matters:
//
//   - rows in this database: [Lease.Assert] in the transaction that writes them;
//   - anything else: hand [Lease.Token] along, and refuse older ones; [Lease.Guard] does so for what is named.
//
// Tokens of a name rise with every grant, also over the promotion of a standby that lacks the last ones.
//
// # Short critical sections
//
// [InTx] and [TryInTx] are advisory locks of a transaction: no rows, gone with it, good behind a pooler. [OnConn] holds one on a connection of its own.
//
//	Situation                                        | Error                | What to do
//	another holds it, TryAcquire or Wait(0)          | ErrHeld, *HeldError  | do without, or wait
//	not free within Wait                             | ErrTimeout           | try later
//	the holder waits for this owner                  | ErrDeadlock          | release and begin anew; AcquireAll takes several in order
//	the heartbeat did not get through, session ended | ErrLost              | stop; what was begun is undone by Assert's failure
//	an operator took it                              | ErrForced            | stop
//	the maximum hold is over                         | ErrExpired           | stop, or ask for longer
//	released twice                                   | ErrReleased          | a mistake in the program
//	released while a transaction asserts it          | ErrAsserted          | commit or roll back first; the release goes on by itself
//	bad name, option or duration                     | ErrInvalid           | nothing was asked of the database
//	Locks were closed                                | ErrClosed            |
//	OnConn behind a pooler in transaction mode       | ErrPooler            | give it a direct URL, or use InTx
//	the schema is missing                            | ErrSchema            | run "pawl migrate up"
package lock
