// Package barrier is for the services that a saga or a global transaction calls: it makes what they do of a branch happen once, and keeps it from happening after its compensation.
//
// A caller that gets no answer calls again, or compensates; so a service gets calls twice, compensations of what never happened, and calls that arrive after their compensation.
// The barrier is a row for each branch in the service's own database that commits with the service's own writes:
//
//	[Do]       in a transaction of the service's own, whatever brought the call there
//	[Handler]  for net/http, the other side of a saga's HTTP branches: it begins, commits and answers
//
// # What becomes of a call
//
//	it is new                                          | done      | work runs; its writes, its result and the row commit together
//	it was done before                                 | duplicate | work does not run; the stored result is the answer
//	it compensates what never happened, or was refused | null      | work does not run; from now on what it compensates is refused
//	its compensation came first                        | ErrTooLate, 409
//	another transaction is at work on the branch       | it waits for that one's end, for up to [WaitMax]; then ErrInFlight, 425
//
// Calls of one branch go one after the other, whatever they ask for. So a compensation that arrives while its action is not committed yet waits, and then compensates if the action was
// committed, or bars it if that was rolled back. A crash anywhere before the commit leaves neither writes nor row, one after it both: the caller calls again, and learns which.
//
// # Refusals
//
// [Refuse] says that nothing was done and that this is final for the caller: a saga compensates its other steps, and not this one. Nothing of it is stored. The same call may come again
// and succeed, as when an operator has filled the stock and has a saga try on; an answer that was stored would be repeated for ever, however the world has changed. So a refusal tells of
// the past only: a copy of the call that is still under way, of an earlier attempt that ended without an answer, may yet be done. Only the compensation shuts the door behind it,
// a null one here. A caller that was refused after an attempt whose outcome it does not know has to compensate that branch too; and what was compensated is refused from then on.
//
// Only an action or a try may refuse. Whoever asks for a compensation or a confirmation does not give up at a 409, and asks again.
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
//	work refuses                                         | ErrRefused    | roll back; 409 with the text
//	work ended the transaction by SQL itself             | ErrEnded      | a bug in work; no row was written
//	bad id, branch, op or result; no such namespace      | ErrInvalid    | nothing was done; a bad header is answered with 400, a result with 500
//	the transaction is not READ COMMITTED                | ErrInvalid    | begin it so: its snapshot would not show what was waited for
//	the connection was lost during COMMIT                | the caller's  | unknown: 503; called again, the row tells
//	the schema is missing                                | ErrSchema     | run "pawl migrate up"
package barrier
