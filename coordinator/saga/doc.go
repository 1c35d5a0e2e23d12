// Package saga coordinates work that spans services and time: steps that commit on their own, each in the service that owns it, and compensations that undo them when the whole does not come about. What fits
// into one transaction of one database belongs there: that is simpler, and isolated. Where nobody may see, or use up, what is half done, package tcc reserves first.
//
// # What a saga is
//
// A [Definition] names steps and what each needs; services that share it register how their own steps are done ([Handle], [HandleTx], [HandleEach], [HandleChild], [HandleHTTP]) and undone. Every action and every
// compensation is an ordinary job on the queue of its service: claimed, retried, rescued and fenced like any. The saga goes on in the transaction that ends such a job: the event, the next jobs, or the
// saga's own end are written there, so a crash leaves either both or neither, and a saga that waits costs no process anything. Everything is appended; the newest event of a saga is its state:
//
//	running ──▶ succeeded
//	   │  └───▶ stuck ──▶ running, by an operator
//	   ▼
//	compensating ──▶ compensated
//	      └───▶ stuck ──▶ compensating, by an operator;   forced, from anywhere, by an operator
//
// # What a step may answer
//
//	an output       done
//	[Fail]          refused: nothing was done, and will not be
//	job.Snooze      not yet: asked again later, without an attempt used
//	anything else   unknown: it may have been done, and may still be. It is tried again with the same [Call.Key]; when its attempts are used up, it is compensated with those that were done
//
// Steps are those that can be undone, then at most one pivot ([Pivot]), then those that must be done. A refusal, used-up attempts, a deadline or [Cancel] before the pivot compensate: running steps answer first, those
// that wait in line are withdrawn, and then each step that was done, or may have been, is undone after all that needed it. A pivot of which nobody knows whether it was done leaves
// the saga stuck, and neither deadline nor Cancel turns it then. From the pivot's success on it only goes forward, and what fails for good leaves it stuck: [Retry], [Skip] and [Force] are for the operator, who is told by an event of topic pawl.saga in the outbox.
//
// A coordinator proves, over and over, that each saga has something to wait for. Where a job is gone that a saga waited for, as after its rows were deleted, the step counts as unknown, its attempts used up, and its
// compensation as stuck.
//
// A saga is not isolated: others see what it has done so far, and that may be undone. [Hold] keeps sagas apart that ask; otherwise order the steps so that what others may act upon comes last, and write
// compensations as new facts (a refund) rather than by putting back what was read.
//
// # Compensations
//
// One must bear to be run twice, and to be run for an action whose outcome nobody knows: it may have been done, may never have begun, or may arrive later. In this database [HandleTx] answers that: an attempt that
// did not commit has done nothing, and never will. Elsewhere package barrier, on the other side, keeps an action from being done after its compensation.
//
// # Versions
//
// Sagas keep the version of the definition that they started with. A handler serves all versions unless it is registered with AtVersion. A step that no live worker serves waits, and is shown so.
//
//	Situation                                             | Error                                     | What to do
//	the definition is wrong                               | ErrInvalid, from Validate and Register    | mend it: all faults are told
//	name and version are registered with other steps      | ErrChanged ([ChangedError])               | give the changed definition another Version
//	the definition, a child's too, is not registered      | ErrUnregistered                           | Register when the service starts
//	the id was used with another input or definition      | ErrConflict                               | a mistake, or take another id
//	Await: it failed, and what it did is undone           | ErrCompensated ([CompensatedError])       | the error says which step, and why
//	Await: an operator ended it                           | ErrForced                                 | ask them
//	Await's context ended first                           | ErrUnfinished                             | wait again
//	Cancel past the pivot                                 | ErrTooLate                                | it goes forward
//	an action on a saga that has ended                    | ErrEnded                                  |
//	retry or skip of what is not stuck; a second signal   | ErrNotWaiting                             |
//	no such saga, step or signal                          | ErrNotFound                               |
//	another saga has the semantic lock                    | ErrHeld ([HeldError])                     | return job.Snooze to wait, or Fail
//	output of a step that was not done                    | ErrNoOutput                               | name the step in After
//	an input, output or value that is too large           | ErrPayloadTooLarge                        | store it elsewhere, and hand on its key
//	an argument out of its bounds                         | ErrInvalid                                | mend the call
//	the database came from another cluster                | ErrMoved                                  | run "pawl doctor --rebase" once
//	the schema is missing or too old                      | ErrSchema                                 | run "pawl migrate up"
//	the connection broke during a start on a pool         | the driver's                              | unknown whether it started: repeat with the same ID
package saga
