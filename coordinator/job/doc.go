// Package job defines kinds of jobs, enqueues them, and tells and changes what becomes of them. Package worker runs them.
//
// # What a job is
//
// Everything about a job is appended; nothing on the way of a job is updated or deleted. Its body is a row of pawl.job. A place in line is a row of
// pawl.ready, (xid, first id, count), which holds a whole batch. A claim is a row of pawl.claim: a session took these jobs, and the line
// stands here since. A receipt is a row of pawl.receipt: these jobs of that claim ended so. A job's state is derived from them:
//
//	in pawl.scheduled                           scheduled, or retrying if it was tried before
//	in line, beyond the position of the line    available
//	in a claim, without a receipt               running
//	with a final receipt                        succeeded, discarded, cancelled
//
// # Why no job is missed or taken twice
//
// Transactions commit in another order than they got their ids, so "everything after the last one" misses what commits late. A line's position is therefore
// (xid, job id) and the list of the transactions that were still running below it when it was taken, each with how far its rows have been taken. The next claim
// takes, under the line's lock: the rows of those that have committed since, then the rows beyond the position whose transactions its snapshot sees. The invariant:
//
//	every row of a transaction that a claim's snapshot sees is at or below the claim's position or listed as late, or it is taken by no claim yet and beyond it
//
// xids mean something in one cluster only. A line knows its cluster, and refuses work in another until it is rebased: (epoch, xid, job id) is the order,
// and rows of an earlier epoch count as settled.
//
// # Situations
//
//	Situation                                                | Error              | What to do
//	args larger than the queue allows                        | ErrPayloadTooLarge | store them elsewhere and enqueue the key, or raise the queue's payload_bytes_max
//	a name, priority or other argument out of its bounds     | ErrInvalid         | mend the call; nothing was enqueued
//	no such job or queue                                     | ErrNotFound        |
//	the database came from another cluster                   | ErrMoved           | run "pawl doctor --rebase" once
//	the schema is missing or too old                         | ErrSchema          | run "pawl migrate up"
//	Await's context ended first                              | ErrUnfinished      | wait again
//	Await of a job that was given up or cancelled            | ErrDiscarded, ErrCancelled |
//	the connection broke during an enqueue on a pool         | the driver's       | unknown whether it is there: repeat with a dedupe key, or enqueue in a transaction
package job
