package webhook

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

const (
	contentType       = "application/cloudevents+json"
	attributeBytesMax = 20 // of a header's name that becomes an attribute's
)

// known are the attributes that are not headers.
var known = map[string]bool{
	"specversion": true, "id": true, "source": true, "type": true, "subject": true, "time": true, "datacontenttype": true, "dataschema": true, "data": true,
	"pawltopic": true, "pawlseq": true, "pawlheaders": true,
}

// encode makes a CloudEvent of an event. The same event becomes the same bytes.
func encode(e outbox.Event, source string) []byte {
	attributes := map[string]string{"specversion": "1.0", "id": e.ID, "source": source, "type": e.Type, "pawltopic": e.Topic}
	for name, value := range map[string]string{"subject": e.Key, "datacontenttype": e.ContentType} {
		if value != "" {
			attributes[name] = value
		}
	}
	if !e.CreatedAt.IsZero() {
		attributes["time"] = e.CreatedAt.UTC().Format(time.RFC3339Nano)
	}
	if e.Seq != 0 {
		attributes["pawlseq"] = strconv.FormatInt(e.Seq, 10)
	}
	others := map[string]string{}
	for name, value := range e.Headers {
		if isAttribute(name) {
			attributes[name] = value
		} else {
			others[name] = value
		}
	}
	if len(others) > 0 {
		attributes["pawlheaders"] = string(marshal(others))
	}
	out := marshal(attributes)
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

func marshal(m map[string]string) []byte {
	out, err := json.Marshal(m)
	if err != nil {
		panic(err) // there is no such map
	}
	return out
}

func isAttribute(name string) bool {
	odd := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }
	return name != "" && len(name) <= attributeBytesMax && !known[name] && !strings.ContainsFunc(name, odd)
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
	attributes := map[string]string{}
	for name, raw := range members {
		if name == "data" || name == "data_base64" || string(raw) == "null" {
			continue
		}
		var text string
		if raw[0] == '{' || raw[0] == '[' {
			return outbox.Event{}, fmt.Errorf("%w: attribute %.40q is neither text, number nor boolean", ErrMalformed, name)
		}
		if json.Unmarshal(raw, &text) != nil {
			text = string(raw)
		}
		attributes[name] = text
	}
	if attributes["specversion"] != "1.0" || attributes["id"] == "" || attributes["source"] == "" || attributes["type"] == "" {
		return outbox.Event{}, fmt.Errorf("%w: specversion 1.0, id, source and type are required", ErrMalformed)
	}
	e := outbox.Event{
		ID: attributes["id"], Topic: attributes["pawltopic"], Key: attributes["subject"], Type: attributes["type"], ContentType: attributes["datacontenttype"],
	}
	err := errors.Join(decodeData(&e, members), decodeNumbers(&e, attributes), decodeHeaders(&e, attributes))
	if err != nil {
		return outbox.Event{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return e, nil
}

func decodeData(e *outbox.Event, members map[string]json.RawMessage) (err error) {
	data, encoded := members["data"], members["data_base64"]
	switch {
	case data != nil && encoded != nil:
		return errors.New("it has both data and data_base64")
	case encoded != nil:
		if err := json.Unmarshal(encoded, &e.Payload); err != nil {
			return errors.New("data_base64 is not base64")
		}
	case data != nil && !isJSON(e.ContentType, "+json") && data[0] == '"':
		var text string
		err = json.Unmarshal(data, &text)
		e.Payload = []byte(text)
	default:
		e.Payload = data
	}
	return err
}

func decodeNumbers(e *outbox.Event, attributes map[string]string) (err error) {
	if at := attributes["time"]; at != "" {
		if e.CreatedAt, err = time.Parse(time.RFC3339Nano, at); err != nil {
			return errors.New("time is not a time")
		}
	}
	if seq := attributes["pawlseq"]; seq != "" {
		if e.Seq, err = strconv.ParseInt(seq, 10, 64); err != nil {
			return errors.New("pawlseq is not a number")
		}
	}
	return nil
}

func decodeHeaders(e *outbox.Event, attributes map[string]string) error {
	if others := attributes["pawlheaders"]; others != "" {
		if err := json.Unmarshal([]byte(others), &e.Headers); err != nil {
			return errors.New("pawlheaders is not an object of texts")
		}
	}
	for name, value := range attributes {
		if known[name] {
			continue
		}
		if e.Headers == nil {
			e.Headers = map[string]string{}
		}
		e.Headers[name] = value
	}
	return nil
}
