package idempotency

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// neverStored are the headers that belong to one connection or to one answer.
var neverStored = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length", "Date", HeaderReplayed,
}

// recorder holds an answer back. It has no other method than an http.ResponseWriter needs: nothing goes out before the commit.
type recorder struct {
	max    int // bytes of the body
	header http.Header
	sent   http.Header // as it was when the status was written
	status int
	body   bytes.Buffer
	fault  error
}

func newRecorder(bytesMax int) *recorder { return &recorder{max: bytesMax, header: http.Header{}} }

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) {
	if status < 100 || status > 999 { // as net/http has it
		panic(fmt.Sprintf("idempotency: invalid status %d", status))
	}
	if r.status == 0 && status >= 200 {
		r.status, r.sent = status, r.header.Clone()
	}
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	switch {
	case r.status == http.StatusNoContent || r.status == http.StatusNotModified:
		return 0, http.ErrBodyNotAllowed
	case r.body.Len()+len(p) > r.max:
		r.fault = fmt.Errorf("%w: the answer exceeds the %d bytes that are stored", ErrInvalid, r.max)
		return 0, r.fault
	}
	return r.body.Write(p)
}

// response is what is stored.
func (r *recorder) response(headers []string, stored func(int) bool) (Response, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	if r.fault != nil {
		return Response{}, r.fault
	}
	if !stored(r.status) {
		return Response{}, errNotStored
	}
	out := Response{Status: r.status, Headers: map[string][]string{}, Body: r.body.Bytes()}
	for _, name := range headers {
		if values := r.sent.Values(name); len(values) > 0 {
			out.Headers[http.CanonicalHeaderKey(name)] = values
		}
	}
	return out, nil
}

// send sends the answer for the first time.
func (r *recorder) send(w http.ResponseWriter) {
	for name, values := range r.sent {
		w.Header()[name] = values
	}
	w.Header().Del("Trailer") // none comes
	write(w, r.status, r.body.Bytes())
}

// replay sends an answer that was stored.
func replay(w http.ResponseWriter, out Response) {
	for name, values := range out.Headers {
		w.Header()[name] = values
	}
	w.Header().Set(HeaderReplayed, "true")
	write(w, out.Status, out.Body)
}

func write(w http.ResponseWriter, status int, body []byte) {
	if len(body) > 0 {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// readKey reads the field's value: a string of structured fields (RFC 9651), in quotes, or bare, as most clients send it.
func readKey(values []string) (string, error) {
	if len(values) != 1 {
		return "", fmt.Errorf("the request must have one Idempotency-Key, not %d", len(values))
	}
	key := strings.TrimSpace(values[0])
	if strings.HasPrefix(key, `"`) {
		inner, ok := unquote(key)
		if !ok {
			return "", errors.New("the key begins with a quote and must be one string in quotes")
		}
		key = inner
	}
	if key == "" || len(key) > KeyBytesMax {
		return "", fmt.Errorf("the key must have 1 to %d characters, not %d", KeyBytesMax, len(key))
	}
	for _, c := range []byte(key) {
		if c < ' ' || c > '~' {
			return "", errors.New("the key may hold printable ASCII characters only")
		}
	}
	return key, nil
}

// unquote reads a string of structured fields. Parameters behind it mean nothing here.
func unquote(text string) (string, bool) {
	var out strings.Builder
	for i := 1; i < len(text); i++ {
		switch c := text[i]; c {
		case '\\':
			i++
			if i == len(text) || text[i] != '"' && text[i] != '\\' {
				return "", false
			}
			out.WriteByte(text[i])
		case '"':
			rest := strings.TrimSpace(text[i+1:])
			return out.String(), rest == "" || rest[0] == ';'
		default:
			out.WriteByte(c)
		}
	}
	return "", false
}

// fingerprint tells requests apart. Each part is preceded by its length.
func fingerprint(r *http.Request, body []byte) []byte {
	sum := sha256.New()
	for _, part := range []string{r.Method, target(r), r.Header.Get("Content-Type"), string(body)} {
		fmt.Fprintf(sum, "%d %s", len(part), part)
	}
	return sum.Sum(nil)
}

// target is the path and query as the client sent them, whatever outer handlers have stripped since.
func target(r *http.Request) string {
	if r.RequestURI != "" {
		return r.RequestURI
	}
	return r.URL.RequestURI()
}

func (h HTTP) retry(w http.ResponseWriter, status int, kind, title, detail string) {
	w.Header().Set("Retry-After", strconv.Itoa(int((h.RetryAfter+time.Second-1)/time.Second)))
	h.problem(w, status, kind, title, detail)
}

// problem answers with problem details (RFC 9457).
func (h HTTP) problem(w http.ResponseWriter, status int, kind, title, detail string) {
	p := struct {
		Type   string `json:"type,omitempty"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{Title: title, Status: status, Detail: detail}
	if h.Docs != "" {
		p.Type = h.Docs + "#" + kind
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(p)
}
