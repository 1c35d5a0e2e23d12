// Package webhook delivers events of the outbox by HTTP, one POST each: a CloudEvent 1.0 in structured mode, signed as Standard Webhooks say. [New] makes the sink, [Handler]
// and [Verify] are its other side.
//
// # What is sent
//
// The body is the event as a JSON object, the same at every attempt:
//
//	{
//	  "specversion": "1.0", "id": "0199…", "source": "shop", "type": "order.paid", "subject": "42",
//	  "time": "2027-01-01T09:30:00.123456Z", "datacontenttype": "application/json",
//	  "pawltopic": "order", "pawlseq": "1017", "traceparent": "00-…",
//	  "data": {"cents": 1999}
//	}
//
// The attributes are those of package cloudevent, and those of the event's headers whose names can be attributes': up to 20 small letters and digits. data is the payload as it
// is if that is JSON and its content type is application/json; any other payload is base64 in data_base64; an empty one is neither. With it go
//
//	Content-Type: application/cloudevents+json
//	Idempotency-Key: "0199…", the event's ID
//	traceparent and tracestate of the event's headers, if there are any
//	webhook-id: the event's ID
//	webhook-timestamp: when this attempt was made, in seconds since 1970
//	webhook-signature: for each secret v1, and the base64 of the HMAC-SHA-256 of id.timestamp.body
//
// The timestamp is by this process's clock, the only one that knows when a request leaves: a receiver refuses old ones, so that nobody who has seen a request can send it again
// for long. It decides nothing here.
//
// Events of one call are sent one after the other, and none after one that failed; a relay calls for several keys at once (Subscription.Parallel), and Subscription.Timeout
// bounds the call as a whole. So Batch times the receiver's usual time should stay well below Timeout: 10 is a good Batch.
//
// # What answers mean
//
//	Situation                                              | Error                      | What to do
//	2xx                                                    | none                       | answer so only when the event is stored, or its effect committed
//	410                                                    | outbox.ErrGone             | "pawl subscription resume", should it come back
//	413, 422: this event is never wanted                   | outbox.Permanent           | replay or drop it, by the subscription's Policy
//	503; no connection, TLS, an address that is not public | outbox.Unavailable         | wait; all events do
//	Retry-After, with any other failure                    | outbox.RetryAfter          | wait; the key does
//	any other status, no answer in time, a lost connection | another                    | wait; the key does, by the subscription's Backoff
//	a bad Config                                           | outbox.ErrInvalid, by New  | the text says what
//	bad secrets                                            | outbox.ErrInvalid          | as above
//	not signed with any of the secrets                     | ErrSignature, by Verify    | answer 401; a secret may be about to be replaced
//	signed too long ago or ahead                           | ErrStale, by Verify        | answer 401; look at both clocks
//	signed, but no CloudEvent                              | ErrMalformed, by Verify    | answer 400
//
// 400, 401, 403, 404 and 405 count as failed attempts and not as a last word, as a receiver that was badly deployed, or lacks a new secret, answers so to everything. 502 and
// 504 too, since a gateway answers so for one event that crashes its server or is too much for it; when the receiver is down behind it, the relay finds out by the failures in a
// row. A Retry-After, in seconds or as a date, counts for up to an hour.
//
// An error names the host and the first words of the answer: neither path nor query of the URL, nor a header of the Config, even if the receiver answers with them (of 6 bytes
// and more).
package webhook
