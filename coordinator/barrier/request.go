package barrier

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
)

// The headers that name a branch. ID and branch are percent-encoded where they hold anything that a segment of a URL's path could not.
const (
	HeaderSaga = "Pawl-Saga"
	HeaderStep = "Pawl-Step"
	HeaderOp   = "Pawl-Op"
)

// SetHeaders names the branch in the headers of a call, for FromRequest on its other side.
func (b Branch) SetHeaders(h http.Header) {
	h.Set(HeaderSaga, url.PathEscape(b.ID))
	h.Set(HeaderStep, url.PathEscape(b.Branch))
	h.Set(HeaderOp, string(b.Op))
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
	if err := errors.Join(faults...); err != nil {
		return Branch{}, err
	}
	return b, nil
}
