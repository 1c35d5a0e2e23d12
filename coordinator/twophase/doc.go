// Package twophase runs transactions that are atomic over several databases: all of them commit, or none, whatever crashes.
//
// What can stay in one Postgres stays there: a plain transaction beats this, and a saga does where steps may be undone; between services that reserve, package tcc does. Each database that writes must prepare, which costs it two writes to its disk in place of one,
// and while a coordinator is down its rows stay locked until another recovers.
//
// Each participant prepares (PREPARE TRANSACTION, XA PREPARE) what it did, together with a row that will be its witness. Then one row in the coordinator's own database decides: that is the commit point, and work in
// that database rides in it, unprepared. Then all commit, in parallel. Nothing is written down before the commit point: no row is an abort ("presumed abort", Mohan, Lindsay, Obermarck 1986). Recover, which
// coordinator.Run calls, finds what was left prepared, commits what is decided, and aborts the rest once its deadline, which is in the branch's name, has passed; the row's primary key settles a race with who would
// still commit it.
//
// A participant that does not know a branch any more which should commit is believed only if the witness is there: else somebody rolled it back by hand, or a restore lost it. That is called mixed: it is an
// error, an entry for a person (Doubts, "pawl tx list"), and nothing of it is put right silently. Of transactions that began before the coordinator's database was restored, or failed over, nothing is presumed: the
// branches name it, its timeline and its incarnation, and participants keep how far its log was, so that an older copy is known as one.
//
//	Situation                               | Error                     | What to do
//	nothing was committed                   | ErrAborted, with why      | do it again from the beginning
//	the commit point's reply was lost       | ErrUnknown                | ask Outcome later; recovery makes all agree
//	the same, and only one has written      | ErrUnknown                | look there: Outcome knows nothing of it
//	a participant did the opposite          | MixedError                | put it right by hand, then "pawl tx resolve"
//	no prepared transactions there          | ErrCannotPrepare          | raise max_prepared_transactions; see "pawl doctor"
//	a participant lacks its tables          | ErrNotSetUp               | call Setup, or "pawl tx setup"
//	schema missing                          | ErrSchema                 | run "pawl migrate up"
package twophase
