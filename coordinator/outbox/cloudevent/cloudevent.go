// Package cloudevent says how an event of the outbox is a CloudEvent 1.0, whatever carries it: which attributes it has, and what becomes of its headers.
//
//	id               the event's ID
//	source           the sink's
//	type             the event's type
//	subject          its key; none without a key
//	time             when the transaction that published it began
//	datacontenttype  its content type
//	pawltopic        its topic
//	pawlseq          its number in the outbox; those of one key ascend
//	pawlheaders      those of its headers that the carrier cannot carry as they are, a JSON object as text
package cloudevent

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

// SourceDefault is the source of a sink that is not told another.
const SourceDefault = "pawl"

// ErrMalformed: what was received is no CloudEvent 1.0.
var ErrMalformed = errors.New("not a CloudEvent 1.0")

// known are the attributes that are not headers.
var known = map[string]bool{
	"specversion": true, "id": true, "source": true, "type": true, "subject": true, "time": true, "datacontenttype": true, "dataschema": true, "data": true,
	"pawltopic": true, "pawlseq": true, "pawlheaders": true,
}

// IsKnown tells whether a name is that of an attribute which CloudEvents or Pawl define, and so not a header's.
func IsKnown(name string) bool { return known[name] }

// Encode returns an event's attributes, and those of its headers that fit the carrier as they are.
func Encode(e outbox.Event, source string, fits func(name, value string) bool) (attributes, headers map[string]string) {
	attributes = map[string]string{"specversion": "1.0", "id": e.ID, "source": source, "type": e.Type, "pawltopic": e.Topic}
	if e.Key != "" {
		attributes["subject"] = e.Key
	}
	if e.ContentType != "" {
		attributes["datacontenttype"] = e.ContentType
	}
	if !e.CreatedAt.IsZero() {
		attributes["time"] = e.CreatedAt.UTC().Format(time.RFC3339Nano)
	}
	if e.Seq != 0 {
		attributes["pawlseq"] = strconv.FormatInt(e.Seq, 10)
	}
	headers, others := map[string]string{}, map[string]string{}
	for name, value := range e.Headers {
		if fits(name, value) {
			headers[name] = value
		} else {
			others[name] = value
		}
	}
	if len(others) > 0 {
		text, err := json.Marshal(others)
		if err != nil {
			panic(err) // there is no such map
		}
		attributes["pawlheaders"] = string(text)
	}
	return attributes, headers
}

// Decode returns the event that has these attributes and headers, without its payload. The error is ErrMalformed.
func Decode(attributes, headers map[string]string) (outbox.Event, error) {
	e := outbox.Event{
		ID: attributes["id"], Topic: attributes["pawltopic"], Key: attributes["subject"], Type: attributes["type"], ContentType: attributes["datacontenttype"],
	}
	if attributes["specversion"] != "1.0" || e.ID == "" || attributes["source"] == "" || e.Type == "" {
		return outbox.Event{}, fmt.Errorf("%w: specversion 1.0, id, source and type are required", ErrMalformed)
	}
	var err error
	if at := attributes["time"]; at != "" {
		if e.CreatedAt, err = time.Parse(time.RFC3339Nano, at); err != nil {
			return outbox.Event{}, fmt.Errorf("%w: time is not a time", ErrMalformed)
		}
	}
	if seq := attributes["pawlseq"]; seq != "" {
		if e.Seq, err = strconv.ParseInt(seq, 10, 64); err != nil {
			return outbox.Event{}, fmt.Errorf("%w: pawlseq is not a number", ErrMalformed)
		}
	}
	if others := attributes["pawlheaders"]; others != "" {
		if err := json.Unmarshal([]byte(others), &e.Headers); err != nil {
			return outbox.Event{}, fmt.Errorf("%w: pawlheaders is not an object of texts", ErrMalformed)
		}
	}
	if e.Headers == nil && len(headers) > 0 {
		e.Headers = map[string]string{}
	}
	maps.Copy(e.Headers, headers)
	return e, nil
}

// The names of Headers.
const (
	headerPrefix      = "ce_"
	headerContentType = "content-type"
)

// Headers returns an event's attributes and headers together, as the Kafka binding of CloudEvents has them in binary mode: attributes under "ce_", the content type as
// content-type, and the event's own headers as they are, but for those that would be taken for attributes.
func Headers(e outbox.Event, source string) map[string]string {
	attributes, headers := Encode(e, source, func(name, _ string) bool {
		return !strings.HasPrefix(name, headerPrefix) && !strings.EqualFold(name, headerContentType)
	})
	for name, value := range attributes {
		if name == "datacontenttype" {
			headers[headerContentType] = value
		} else {
			headers[headerPrefix+name] = value
		}
	}
	return headers
}

// FromHeaders returns the event that has these Headers, without its payload. The error is ErrMalformed.
func FromHeaders(headers map[string]string) (outbox.Event, error) {
	attributes, own := map[string]string{}, map[string]string{}
	for name, value := range headers {
		attribute, ok := strings.CutPrefix(name, headerPrefix)
		switch {
		case ok:
			attributes[attribute] = value
		case name == headerContentType:
			attributes["datacontenttype"] = value
		default:
			own[name] = value
		}
	}
	return Decode(attributes, own)
}
