package idempotency

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
)

// ETag is the strong entity tag of a representation: equal bytes have equal tags.
func ETag(representation []byte) string {
	sum := sha256.Sum256(representation)
	return `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`
}

// Precondition evaluates If-Match and If-None-Match (RFC 9110, section 13) and tells the status to answer with at once, or 0 to go ahead: 412, or 304 for GET and HEAD. now is
// the tag of the resource as it is, "" if there is none; after the tag that it will have if the request is carried out, "" if that is not known.
//
// A client that did not get its answer asks again, with the same precondition, and must not be told that it failed when it is its own first try that made it so. Hence, as the RFC
// allows, a request whose effect is there already goes ahead: a PUT whose now is after, and a DELETE of what is gone. Where after cannot be known, put the method among
// HTTP.Methods and have such requests carry an Idempotency-Key.
//
// For PUT, PATCH and DELETE the answer counts only under a lock on the resource (SELECT … FOR UPDATE), in the transaction that changes it; and two that would create it both see none:
// INSERT … ON CONFLICT DO NOTHING tells the second, which is to be answered 412 if it has If-None-Match.
func Precondition(r *http.Request, now, after string) (status int) {
	switch {
	case r.Method == http.MethodPut && now != "" && now == after, r.Method == http.MethodDelete && now == "":
		return 0
	}
	if tags := r.Header.Values("If-Match"); len(tags) > 0 && !matches(tags, now, false) {
		return http.StatusPreconditionFailed
	}
	if tags := r.Header.Values("If-None-Match"); len(tags) > 0 && matches(tags, now, true) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			return http.StatusNotModified
		}
		return http.StatusPreconditionFailed
	}
	return 0
}

// AnswerPut answers a PUT that was carried out: 201 if it created the resource, else 204. tag is the new representation's, "" for none; it must not be given if what was stored is
// not what was sent, byte for byte. In one statement, INSERT … ON CONFLICT … DO UPDATE … RETURNING xmax = 0 tells which it was.
func AnswerPut(w http.ResponseWriter, created bool, tag string) {
	if tag != "" {
		w.Header().Set("Etag", tag)
	}
	if created {
		w.WriteHeader(http.StatusCreated)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// AnswerDelete answers a DELETE: 204, whether or not there was something, since a client that did not get its answer asks again.
func AnswerDelete(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) }

// matches tells whether the resource exists and its tag is listed, or * is. weak: by the weak comparison, to which W/"a" and "a" are the same; else a weak tag is like no other.
func matches(fields []string, tag string, weak bool) bool {
	if tag == "" {
		return false
	}
	for _, field := range fields {
		for rest := strings.Trim(field, " \t,"); rest != ""; {
			one := rest
			if start := strings.IndexByte(rest, '"'); start >= 0 {
				if length := strings.IndexByte(rest[start+1:], '"'); length >= 0 {
					one = rest[:start+length+2]
				}
			}
			rest = strings.TrimLeft(rest[len(one):], " \t,")
			if one == "*" || weak && strings.TrimPrefix(one, "W/") == strings.TrimPrefix(tag, "W/") || one == tag && !strings.HasPrefix(tag, "W/") {
				return true
			}
		}
	}
	return false
}
