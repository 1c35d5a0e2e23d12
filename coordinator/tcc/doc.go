// Package tcc runs global transactions over services: all of them confirm what they were asked to try, or all cancel it, whatever crashes.
//
// What can stay in one Postgres stays there: a plain transaction beats this. Where several databases can prepare, package twophase is atomic without a word of the services; a saga does where what was done may be seen,
// and undone. Here each participant reserves first, which others must not use up and nobody sees as done, and later uses it or gives it up.
//
//	hold := tcc.Define[Hold]("inventory.hold", tcc.Queue("inventory"))                  // what both sides agree on
//
//	t, err := tcc.Begin(ctx, pool, tcc.Timeout(30*time.Second))                         // the initiator
//	err = hold.TryTx(ctx, t, inventory, Hold{"book"}, func(ctx context.Context, tx pgx.Tx) error { … })
//	err = t.Confirm(ctx)                                                                // or t.Cancel(ctx)
//
//	tcc.HandleTx(w, hold, confirm, cancel)                                              // the service
//
// A branch is registered before it is tried, in a transaction of its own, and only while its transaction is active and before its deadline. So whatever dies, who cancels knows all that may have been tried. One row decides, the
// first that comes; with it the jobs commit that confirm or cancel all branches, in parallel, and are tried until they have. What nobody has decided by its deadline, the sweep "tcc" of coordinator.Run cancels. Hot paths only append.
//
//	active ── Confirm, before the deadline, all tried ──► confirming ── all branches done ──► confirmed
//	   └───── Cancel, or the deadline ──────────────────► cancelling ── all branches done ──► cancelled
//
// A branch whose job has used up its attempts is stuck, and its transaction with it, until an operator has it tried again (Retry, "pawl tcc retry"): the sweep logs it, and publishes tcc.stuck under the topic pawl.tcc, once. "pawl tcc show"
// tells of each branch how it stands, and why.
//
// # What a participant must bear
//
// Copies of every call; a cancel of what was never tried, or was refused; a cancel that meets its try uncommitted; and a try that arrives after its cancel. Package barrier bears all of that: TryTx, HandleTx, HandleOn, and on MariaDB and MySQL TryMySQL and HandleMySQL go through it,
// barrier.Do and barrier.Handler are for participants of other forms. What was reserved must stay until it is confirmed or cancelled, so neither may refuse.
//
// # Crashes
//
//	before a branch is registered               | it is not tried; the others are cancelled at the deadline
//	after it, before, in or after its try       | all are cancelled at the deadline, this one with them
//	before the decision commits / after it      | cancelled at the deadline / confirmed or cancelled everywhere
//	a worker, while it confirms or cancels      | another does it again, from the beginning; in transactions it counts once
//
// A restore of the coordinator's database to an earlier time forgets decisions and branches since: participants then hold what nobody will ever confirm or cancel. Reservations carry the transaction's id in their barrier rows.
//
//	Situation                                            | Error              | What to do
//	there is a transaction of this ID                    | ErrExists          | it was begun before: Get tells what became of it
//	the participant said no                              | ErrRefused         | Cancel
//	a try failed, or its outcome is not known            | what try returned  | Cancel, which includes it
//	Confirm, and not all were tried with success         | ErrUntried         | Cancel
//	it is cancelled: by somebody, or at its deadline     | ErrCancelled       | nothing; begin anew
//	it is confirmed                                      | ErrConfirmed       | nothing
//	its deadline has passed                              | ErrExpired         | nothing: it is, or will be, cancelled
//	another is deciding it, and does not end             | ErrBusy            | again, soon
//	replies to a decision were lost                      | ErrUnknown         | Confirm or Cancel again: it tells
//	Await's context ended before the branches            | ErrUnfinished      | await it again; see whether it is stuck
//	Retry, and no branch is stuck                        | ErrNotStuck        | nothing
//	more than BranchesMax branches                       | ErrTooMany         | fewer, larger branches
//	args exceed what the queue allows                    | ErrPayloadTooLarge | store them elsewhere, and pass their key
//	bad argument or option; not READ COMMITTED           | ErrInvalid         | correct it
//	no such transaction, or none any more                | ErrNotFound        | those that are done are kept for Keep
//	the database was restored or copied elsewhere        | ErrMoved           | run "pawl doctor --rebase"
//	schema missing                                       | ErrSchema          | run "pawl migrate up"
package tcc
