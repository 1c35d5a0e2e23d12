package kafkasink

import (
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/cloudevent"
)

const (
	attributePrefix   = "ce_"
	contentTypeHeader = "content-type"
)

// encode returns an event's headers, in one order.
func encode(e outbox.Event, source string) []kgo.RecordHeader {
	attributes, headers := cloudevent.Encode(e, source, fits)
	out := make([]kgo.RecordHeader, 0, len(attributes)+len(headers))
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		header := attributePrefix + name
		if name == "datacontenttype" {
			header = contentTypeHeader
		}
		out = append(out, kgo.RecordHeader{Key: header, Value: []byte(attributes[name])})
	}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		out = append(out, kgo.RecordHeader{Key: name, Value: []byte(headers[name])})
	}
	return out
}

// fits tells whether a header is not one that readers of CloudEvents would take for an attribute.
func fits(name, _ string) bool {
	return !strings.HasPrefix(name, attributePrefix) && !strings.EqualFold(name, contentTypeHeader)
}

// Event returns the event in a record that a Sink has produced. Topic is the event's, not the record's. The error is ErrMalformed.
func Event(r *kgo.Record) (outbox.Event, error) {
	attributes, headers := map[string]string{}, map[string]string{}
	for _, h := range r.Headers {
		attribute, ok := strings.CutPrefix(h.Key, attributePrefix)
		switch {
		case ok:
			attributes[attribute] = string(h.Value)
		case h.Key == contentTypeHeader:
			attributes["datacontenttype"] = string(h.Value)
		default:
			headers[h.Key] = string(h.Value)
		}
	}
	e, err := cloudevent.Decode(attributes, headers)
	if err != nil {
		return outbox.Event{}, err
	}
	e.Payload = r.Value
	return e, nil
}
