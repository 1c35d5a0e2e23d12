package kafkasink

import (
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/cloudevent"
)

// encode returns an event's headers, in one order.
func encode(e outbox.Event, source string) []kgo.RecordHeader {
	headers := cloudevent.Headers(e, source)
	out := make([]kgo.RecordHeader, 0, len(headers))
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		out = append(out, kgo.RecordHeader{Key: name, Value: []byte(headers[name])})
	}
	return out
}

// Event returns the event in a record that a Sink has produced. Topic is the event's, not the record's. The error is ErrMalformed.
func Event(r *kgo.Record) (outbox.Event, error) {
	headers := map[string]string{}
	for _, h := range r.Headers {
		headers[h.Key] = string(h.Value)
	}
	e, err := cloudevent.FromHeaders(headers)
	if err != nil {
		return outbox.Event{}, err
	}
	e.Payload = r.Value
	return e, nil
}
