package natssink

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/cloudevent"
)

const attributePrefix = "ce-"

// encode returns an event's headers.
func encode(e outbox.Event, source string) nats.Header {
	attributes, headers := cloudevent.Encode(e, source, fits)
	out := make(nats.Header, len(attributes)+len(headers)+2)
	for name, value := range attributes {
		out[attributePrefix+name] = []string{percent(value, func(b byte) bool { return b <= ' ' || b > '~' || b == '"' || b == '%' })}
	}
	for name, value := range headers {
		out[name] = []string{value}
	}
	return out
}

// fits tells whether a header can go along as it is: it is one of NATS', it means nothing to a stream, nor to readers of CloudEvents.
func fits(name, value string) bool {
	lower := strings.ToLower(name)
	if name == "" || lower == "content-type" || strings.HasPrefix(lower, attributePrefix) || strings.HasPrefix(lower, "nats-") {
		return false
	}
	odd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r) }
	return !strings.ContainsFunc(name, odd) && !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) && strings.TrimSpace(value) == value
}

// Event returns the event in a message that a Sink has published: msg.Headers() and msg.Data() of a jetstream.Msg, Header and Data of a *nats.Msg. The error is ErrMalformed.
func Event(header nats.Header, data []byte) (outbox.Event, error) {
	attributes, headers := map[string]string{}, map[string]string{}
	for name, values := range header {
		if len(values) == 0 {
			continue
		}
		attribute, ok := strings.CutPrefix(name, attributePrefix)
		switch {
		case ok:
			value, err := url.PathUnescape(values[0])
			if err != nil {
				return outbox.Event{}, fmt.Errorf("%w: %s: %w", ErrMalformed, name, err)
			}
			attributes[attribute] = value
		case !strings.HasPrefix(strings.ToLower(name), "nats-"):
			headers[name] = values[0]
		}
	}
	e, err := cloudevent.Decode(attributes, headers)
	if err != nil {
		return outbox.Event{}, err
	}
	e.Payload = data
	return e, nil
}

// percent encodes bytes as %XX.
func percent(s string, odd func(byte) bool) string {
	var out []byte
	for i := range len(s) {
		switch {
		case odd(s[i]):
			if out == nil {
				out = append(make([]byte, 0, len(s)+16), s[:i]...)
			}
			out = fmt.Appendf(out, "%%%02X", s[i])
		case out != nil:
			out = append(out, s[i])
		}
	}
	if out == nil {
		return s
	}
	return string(out)
}
