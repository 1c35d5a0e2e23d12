// Package idempotency makes an effect happen once however often it is asked for: by the key that a client gives its request, or by the id of a message.
//
//	[Do]          effects in this database: they, and the answer that is stored under the key, are one transaction
//	[Phases]      effects elsewhere too: phase by phase, each a recovery point that commits with its effects, from which a retry goes on
//	[Middleware]  either, for net/http, by the header Idempotency-Key
//	[Once]        the inbox: first in a consumer's own transaction
//
// [Precondition] and [AnswerPut] are for GET, PUT and DELETE, which HTTP defines as idempotent and which need no key.
//
// # Which one
//
// An effect in this database needs [Do] and no more: a crash anywhere before the commit leaves nothing behind, so there is no lease to wait for and nothing to put right.
// [Phases] is for a request that must also call another service before it is answered. Nobody goes on with it but a client that asks again. So long work, and work that
// must come to its end even if the client is never seen again, is better started as a job or a saga with the idempotency key as its id (job.Dedupe), in a [Do]
// whose answer is 202: duplicates of the request attach to it.
//
// # Keys
//
// A key is told apart by its namespace and scope: the scope holds whose key it is (the authenticated client or tenant) and what for (the route), or one client could be
// answered with what another was. An answer is kept for Options.TTL, from when it was stored; then the key is like one never used. A key in progress does not expire:
// a [Do] is a transaction, and what a phased request has reached stays until its answer expires, or for [AbandonedKeep] after the last that was heard of it, if nobody
// comes back.
//
// # Copies of the database
//
// Answers, points and messages are plain rows. No cursor and no transaction id is among them, so a database that was restored or copied into another cluster needs no rebase
// and nothing is refused: it answers as it would have at the moment of the copy. What Do and Once did after that moment is gone with its answers, together, and done anew when
// it is asked for. What a phased request did elsewhere after that moment is not gone: it is done again with the same [DerivedKey], which its receiver knows.
// Tokens hold the server's timeline, so one from before a promotion or a restore to a point in time fences nobody who came after. Where a copy runs beside the original, as
// for a test, both derive the same keys: give the copy other accounts elsewhere.
//
//	Situation                                        | Error       | What to do
//	another is at work on the key                    | ErrInFlight | try again soon; or wait, with Options.Wait
//	the key was used for another request             | ErrMismatch | a mistake of the client; nothing was run or replayed
//	the connection was lost during COMMIT            | ErrUnknown  | try again with the same key: what is stored tells
//	the claim was taken over by another              | ErrLost     | nothing of this phase was written; the other goes on, try again to be answered
//	a stored point is not what the code does next    | ErrPoint    | run code that knows it: the error names the point; nothing was run
//	the function ended its transaction by SQL itself | ErrEnded    | a bug in the function; no answer was stored
//	bad key, scope, name, option, or too large       | ErrInvalid  | nothing was stored
//	the schema is missing                            | ErrSchema   | run "pawl migrate up"
package idempotency
