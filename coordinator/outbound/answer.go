package outbound

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
)

const (
	shownMax       = 200 // characters of an answer in an error
	secretBytesMin = 6   // of a URL or a header, to be kept out of errors
)

// Concealer takes out of texts what only the two sides are to know: path, query and password of the URLs that are called, and the values of configured headers, of 6 bytes and more.
// It is safe for concurrent use.
type Concealer struct{ replacer *strings.Replacer }

// NewConcealer conceals what is in the headers and URLs.
func NewConcealer(headers http.Header, urls ...*url.URL) *Concealer {
	var secrets []string
	for _, u := range urls {
		secrets = append(secrets, u.RequestURI(), u.EscapedPath(), u.Path, u.RawQuery)
		secrets = append(secrets, strings.Split(u.Path, "/")...)
		for _, values := range u.Query() {
			secrets = append(secrets, values...)
		}
		if password, ok := u.User.Password(); ok {
			secrets = append(secrets, password)
		}
	}
	for _, values := range headers {
		for _, value := range values {
			secrets = append(append(secrets, value), strings.Fields(value)...)
		}
	}
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) }) // the longest is found first
	var pairs []string
	for _, secret := range secrets {
		if len(secret) >= secretBytesMin {
			pairs = append(pairs, secret, "…")
		}
	}
	return &Concealer{strings.NewReplacer(pairs...)}
}

// Shown is the beginning of an answer as one line, up to 200 characters, for an error.
func (c *Concealer) Shown(answer []byte) string {
	words := strings.FieldsFunc(strings.ToValidUTF8(c.replacer.Replace(string(answer)), "\uFFFD"), func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) })
	line := []rune(strings.Join(words, " "))
	if len(line) > shownMax {
		line = append(line[:shownMax], '…')
	}
	return string(line)
}

// CheckHeaders has net/http look at headers, which it does before it sees that a request is cancelled. The error names the header, and not its value.
func CheckHeaders(headers http.Header) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost", nil)
	if err != nil {
		return err
	}
	if headers != nil {
		req.Header = headers
	}
	resp, err := (&http.Transport{}).RoundTrip(req)
	if err == nil {
		return resp.Body.Close()
	}
	if !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// ParseURL reads a URL to call. The error does not tell it, which may hold a secret.
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("it must be of the form http://host/path or https://host/path")
	}
	return u, nil
}
