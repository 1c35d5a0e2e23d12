// Package outbox publishes events in the transaction of the rows they tell of, and relays them to sinks: at least once, in order within a key.
//
// # Publishing
//
// [Publish] inserts events in the caller's transaction; pawl.publish(…) does so in SQL. Events of one key are delivered in the order of the commits if their writers hold a
// lock on the key before they publish: writers of one aggregate do, since they update its row; [Ordered] takes a lock for others.
//
// # Subscriptions
//
// A subscription reads by the difference of snapshots: a batch is what is visible in a snapshot and was not in the one before, in the order of ids. So nothing is skipped,
// and a long transaction delays its own events only. Neither of the usual recipes does that. Reading "id > last" loses what commits late. Reading in the order of transaction
// ids below the oldest running transaction waits for everyone, and breaks the order of a key whenever a writer took its id long before it had the key's lock: the test of
// this package that runs both on the same storm of writers finds dozens of inversions in 400 events with that recipe, and none with this one.
//
// The position of a shard is its newest row, and each settled page appends one, which names the row that it goes on from: relays that race lose nothing. Nothing is updated,
// so an open transaction slows nothing.
//
// [Relay] hands events to a [Sink], several keys at once, one key in order, with no transaction open. An event that fails is put aside with those of its key
// (pawl.parked_event) and tried again with backoff, while other keys go on; a receiver that is down as a whole is left alone for a while, and no attempt is counted.
// coordinator.Run relays what its configuration names, each shard in one process at a time.
//
// Sinks are in packages of their own below this one: webhook, natssink, kafkasink, watermillsink and, for jobs in this database, jobs. For one of your own, [Each] makes a Send out of a function that sends one
// event, and package sinktest checks what [Sink] promises to relays.
//
// A [TxSink] is for consumers in the same database: what it writes and the position are one transaction, so an event has its effect exactly once; all else is as with a Sink.
// [ConsumeTx] is the same for who asks for events himself.
//
// After a crash or a fail-over Postgres gives transaction ids out again of which nothing had reached the disk. What a relay read before is refused then (pawl.incarnation), and read
// anew.
//
// # Retention
//
// Events leave by whole ranges of ids, some time after all subscriptions have passed them (coordinator.Config: OutboxKeep). A subscription that is behind keeps them for no
// longer than OutboxHold: then it is paused, and [List] says how many events it has missed, until an operator accepts that. [Retention] tells what is kept, and who holds it.
//
//	Situation                                       | Error                | What to do
//	bad event, subscription or argument             | ErrInvalid           | the text says what; the transaction is aborted
//	payload beyond the limit                        | ErrPayloadTooLarge   | publish a reference, or raise payload_bytes_max in pawl.outbox
//	the database was restored or copied             | ErrMoved             | run "pawl doctor --rebase" once; nothing is lost
//	no such subscription                            | ErrNotFound          | Create it
//	the subscription is paused                      | ErrPaused            | "pawl subscription resume"
//	events were dropped before it had them          | ErrGap               | "pawl subscription resume --accept-gap"
//	another relay or an operator moved the position | ErrLost              | relays read it again by themselves
//	the schema is missing                           | ErrSchema            | run "pawl migrate up"
package outbox
