package webhook

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"strings"
	"unicode/utf8"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/cloudevent"
)

const (
	contentType       = "application/cloudevents+json"
	attributeBytesMax = 20 // of a header's name that becomes an attribute's
)

// encode makes a CloudEvent in JSON of an event. The same event becomes the same bytes.
func encode(e outbox.Event, source string) []byte {
	attributes, headers := cloudevent.Encode(e, source, isAttribute)
	maps.Copy(attributes, headers)
	out, err := json.Marshal(attributes)
	if err != nil {
		panic(err) // there is no such map
	}
	out = out[:len(out)-1] // data come before the brace
	switch {
	case len(e.Payload) == 0:
	case isJSON(e.ContentType, "") && utf8.Valid(e.Payload) && json.Valid(e.Payload):
		out = append(append(out, `,"data":`...), e.Payload...)
	default:
		out = append(out, `,"data_base64":"`...)
		out = append(base64.StdEncoding.AppendEncode(out, e.Payload), '"')
	}
	return append(out, '}')
}

func isAttribute(name, _ string) bool {
	odd := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }
	return name != "" && len(name) <= attributeBytesMax && !cloudevent.IsKnown(name) && !strings.ContainsFunc(name, odd)
}

// isJSON tells whether a payload of this type is JSON, as it is said to be if there is none. orSuffix "+json" counts those too, as CloudEvents have it; but their Go SDK takes
// such data for text, so that it is not sent as data.
func isJSON(contentType, orSuffix string) bool {
	kind, _, err := mime.ParseMediaType(contentType)
	return contentType == "" || err == nil && (strings.HasSuffix(kind, "/json") || orSuffix != "" && strings.HasSuffix(kind, orSuffix))
}

// decode reads what encode wrote, and CloudEvents of others: their attributes that Pawl does not know become headers.
func decode(body []byte) (outbox.Event, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil {
		return outbox.Event{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	attributes, headers := map[string]string{}, map[string]string{}
	for name, raw := range members {
		if name == "data" || name == "data_base64" || string(raw) == "null" {
			continue
		}
		if raw[0] == '{' || raw[0] == '[' {
			return outbox.Event{}, fmt.Errorf("%w: attribute %.40q is neither text, number nor boolean", ErrMalformed, name)
		}
		var text string
		if json.Unmarshal(raw, &text) != nil {
			text = string(raw)
		}
		if cloudevent.IsKnown(name) {
			attributes[name] = text
		} else {
			headers[name] = text
		}
	}
	e, err := cloudevent.Decode(attributes, headers)
	if err == nil {
		e.Payload, err = decodeData(e.ContentType, members["data"], members["data_base64"])
	}
	if err != nil {
		return outbox.Event{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return e, nil
}

func decodeData(contentType string, data, encoded json.RawMessage) (payload []byte, err error) {
	switch {
	case data != nil && encoded != nil:
		return nil, errors.New("it has both data and data_base64")
	case encoded != nil:
		if err := json.Unmarshal(encoded, &payload); err != nil {
			return nil, errors.New("data_base64 is not base64")
		}
		return payload, nil
	case data != nil && !isJSON(contentType, "+json") && data[0] == '"':
		var text string
		err = json.Unmarshal(data, &text)
		return []byte(text), err
	default:
		return data, nil
	}
}
