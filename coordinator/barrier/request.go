package barrier

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// The headers that name a branch. ID and branch are percent-encoded where they hold anything that a segment of a URL's path could not.
const (
	HeaderSaga = "Pawl-Saga"
	HeaderStep = "Pawl-Step"
	HeaderOp   = "Pawl-Op"
	// HeaderAttempt is the caller's job and attempt, as in 4711.2. A call may go without.
	HeaderAttempt = "Pawl-Attempt"
)

// SetHeaders names the branch in the headers of a call, for FromRequest on its other side.
func (b Branch) SetHeaders(h http.Header) {
	h.Set(HeaderSaga, url.PathEscape(b.ID))
	h.Set(HeaderStep, url.PathEscape(b.Branch))
	h.Set(HeaderOp, string(b.Op))
	h.Set(HeaderAttempt, fmt.Sprintf("%d.%d", b.Job, b.Attempt))
}

// FromRequest reads which branch a request is about. The error is ErrInvalid and names every header that is at fault.
func FromRequest(r *http.Request) (Branch, error) {
	var faults []error
	read := func(name string, check func(value string) string) string {
		var value string
		values := r.Header.Values(name)
		fault := fmt.Sprintf("must be there once, not %d times", len(values))
		if len(values) == 1 {
			var err error
			if value, err = url.PathUnescape(values[0]); err != nil {
				fault = "is not percent-encoded as it should be"
			} else {
				fault = check(value)
			}
		}
		if fault != "" {
			faults = append(faults, fmt.Errorf("%w: header %s %s", ErrInvalid, name, fault))
		}
		return value
	}
	b := Branch{
		ID:     read(HeaderSaga, func(s string) string { return checkText(s, IDBytesMax) }),
		Branch: read(HeaderStep, func(s string) string { return checkText(s, BranchBytesMax) }),
		Op: Op(read(HeaderOp, func(s string) string {
			if slices.Contains(ops, Op(s)) {
				return ""
			}
			return "must be one of " + opList()
		})),
	}
	if r.Header.Get(HeaderAttempt) != "" {
		read(HeaderAttempt, func(s string) string {
			job, attempt, _ := strings.Cut(s, ".")
			j, err := strconv.ParseUint(job, 10, 63)
			n, err2 := strconv.ParseUint(attempt, 10, 31)
			if err != nil || err2 != nil {
				return "must be two numbers, as in 4711.2"
			}
			b.Job, b.Attempt = int64(j), int(n)
			return ""
		})
	}
	if err := errors.Join(faults...); err != nil {
		return Branch{}, err
	}
	return b, nil
}
