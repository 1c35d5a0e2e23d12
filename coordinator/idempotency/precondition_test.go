package idempotency_test

import (
	"net/http/httptest"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
)

func TestPrecondition(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method        string
		match, noneOf []string
		now, after    string
		want          int
	}{
		{"GET", nil, nil, `"a"`, "", 0},
		{"GET", nil, []string{`"a"`}, `"a"`, "", 304},
		{"HEAD", nil, []string{`"b", "a"`}, `"a"`, "", 304},
		{"HEAD", nil, []string{`"b"`, `"a"`}, `"a"`, "", 304},
		{"GET", nil, []string{`W/"a"`}, `"a"`, "", 304},
		{"GET", nil, []string{`"a"`}, `W/"a"`, "", 304},
		{"GET", nil, []string{`"W/"`}, `""`, "", 0},
		{"GET", nil, []string{`"b"`}, `"a"`, "", 0},
		{"GET", nil, []string{"*"}, `"a"`, "", 304},
		{"GET", nil, []string{"*"}, "", "", 0},
		{"PUT", nil, []string{"*"}, "", "", 0},
		{"PUT", nil, []string{"*"}, `"a"`, "", 412},
		{"PUT", nil, []string{"*"}, `"a"`, `"b"`, 412},
		{"PUT", nil, []string{"*"}, `"a"`, `"a"`, 0}, // the first try did it
		{"PUT", []string{`"a"`}, nil, `"a"`, "", 0},
		{"PUT", []string{`"a"`}, nil, `"b"`, `"c"`, 412},
		{"PUT", []string{`"a"`}, nil, `"b"`, `"b"`, 0}, // the first try did it
		{"PUT", []string{`"a"`}, nil, "", "", 412},
		{"PUT", []string{"*"}, nil, `"a"`, "", 0},
		{"PUT", []string{"*"}, nil, "", "", 412},
		{"PUT", []string{` "x,y" ,, "a"`}, nil, `"a"`, "", 0},
		{"PUT", []string{`"x`, "a"}, nil, `"a"`, "", 412},
		{"PUT", []string{`W/"a"`}, nil, `"a"`, "", 412},   // strong comparison
		{"PUT", []string{`W/"a"`}, nil, `W/"a"`, "", 412}, // strong comparison
		{"PATCH", []string{`"a"`}, nil, `"b"`, `"b"`, 412},
		{"DELETE", []string{`"a"`}, nil, `"b"`, "", 412},
		{"DELETE", []string{`"a"`}, nil, "", "", 0}, // the first try did it
		{"DELETE", []string{`"a"`}, []string{`"a"`}, `"a"`, "", 412},
	} {
		r := httptest.NewRequest(c.method, "/", nil)
		if c.match != nil {
			r.Header["If-Match"] = c.match
		}
		if c.noneOf != nil {
			r.Header["If-None-Match"] = c.noneOf
		}
		if got := idempotency.Precondition(r, c.now, c.after); got != c.want {
			t.Errorf("%+v: got %d", c, got)
		}
	}
	if a, b := idempotency.ETag([]byte("a")), idempotency.ETag([]byte("b")); a == b || a != idempotency.ETag([]byte("a")) || a[0] != '"' || a[len(a)-1] != '"' {
		t.Errorf("tags %s and %s", a, b)
	}
}
