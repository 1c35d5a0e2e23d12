// Package barrier is for the services that a saga or a global transaction calls: it makes what they do of a branch happen once, and keeps it from happening after its compensation.
//
// A caller that gets no answer calls again, or compensates; so a service gets calls twice, compensations of what never happened, and calls that arrive after their compensation.
// The barrier is a row for each branch in the service's own database that commits with the service's own writes:
//
//	[Do]       in a transaction of the service's own, whatever brought the call there
//	[Handler]  for net/http, the other side of a saga's HTTP branches: it begins, commits and answers
//
// The database is a Postgres that has Pawl's schema, or, where no Pawl runs, what [Setup] makes of it; there [Sweep] removes old rows. Or it is MariaDB (10.5 or newer) or MySQL (8.0 or newer), with a table that [SetupMySQL] makes:
// [DoMySQL], [RunMySQL], [HandlerMySQL] and [SweepMySQL] go by the same rules. "pawl migrate barrier URL" sets up either.
//
// # What becomes of a call
//
//	it is new                                          | done      | work runs; its writes, its result and the row commit together
//	it was done before                                 | duplicate | work does not run; the stored result is the answer
//	work refuses, or did so before                     | refused   | what it wrote is undone; the reason is stored, and is the answer: 409
//	it compensates what never happened, or was refused | null      | work does not run; from now on what it compensates is refused
//	its compensation came first                        | ErrTooLate, 409
//	another transaction is at work on the branch       | it waits for that one's end, for up to [WaitMax]; then ErrInFlight, 425
//
// Calls of one branch go one after the other, whatever they ask for. So a compensation that arrives while its action is not committed yet waits, and then compensates if the action was
// committed, or bars it if that was rolled back. A crash anywhere before the commit leaves neither writes nor row, one after it both: the caller calls again, and learns which.
//
// # Refusals
//
// [Refuse] says that nothing was done and that this is the last word: a saga then compensates its other steps, and not this one. So it has to be true of every copy of the call, also of
// one that is still under way from an attempt that ended without an answer, and that arrives when there is money again: the saga would be over, and the money gone. Therefore a refusal
// is stored, and repeated.
//
// It is repeated to what was sent before it, and to copies of the call that was refused. A call of a later attempt or job ([HeaderAttempt]) comes from somebody who knows the refusal and
// asks all the same, as an operator who has a saga try again after filling the stock, or never got the answer: it has the work run again, and may succeed. After a compensation
// nothing does. A caller that does not say which attempt it is has one try.
//
// Only an action or a try may refuse. Whoever asks for a compensation or a confirmation does not give up, and asks again.
//
// # How long
//
// Rows are kept for [Keep], unless the sweep is told otherwise: longer than any saga takes from an action to its last compensation or retry. After that a compensation would find nothing to
// compensate, and do nothing.
//
// # Whose ids
//
// A saga's id is unique in its namespace, and so told apart here only by HTTP.Namespace or Branch.Namespace of this side. A service that several databases or namespaces call has
// a handler with a namespace of its own for each, on a path of its own. Who may call is to be checked outside of the handler: it answers with stored results to whoever asks.
//
// Rows are plain: a copy or restore of the database needs no rebase. What was done after the moment of a copy is gone there with its rows, together.
//
//	Situation                                            | Error         | What to do
//	the compensation came first                          | ErrTooLate    | refuse: 409; roll back
//	another transaction is at work on the branch         | ErrInFlight   | roll back; ask again soon: 425
//	work refuses                                         | none          | commit; the Result says Refused: 409 with its Reason
//	work refuses to compensate or to confirm             | work's        | a bug in work; it is asked again
//	work ended the transaction by SQL itself             | ErrEnded      | a bug in work; no row was written
//	bad id, branch, op or result; no such namespace      | ErrInvalid    | nothing was done; a bad header is answered with 400, a result with 500
//	the transaction is not READ COMMITTED                | ErrInvalid    | begin it so: its snapshot would not show what was waited for; on MySQL: did not
//	the connection was lost during COMMIT                | the caller's  | unknown: 503; called again, the row tells
//	the schema is missing                                | ErrSchema     | run "pawl migrate up", or call Setup or SetupMySQL
package barrier
