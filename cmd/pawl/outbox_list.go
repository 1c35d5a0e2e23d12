package main

import (
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/coordinator/outbox"
)

const payloadShown = 60 // bytes in a listing

// outboxListCmd is "pawl outbox list".
type outboxListCmd struct {
	Topic string `help:"Only events of this topic."`
	Key   string `help:"Only events of this key."`
	Limit int    `default:"20" placeholder:"N" help:"Rows at most, 1 to 10,000. Default: ${default}."`
}

// eventRow is an event as it is printed. Its number is a string: JSON readers may keep only 53 bits of a number.
type eventRow struct {
	ID          string            `json:"id"`
	Seq         int64             `json:"seq,string"`
	CreatedAt   time.Time         `json:"created_at"`
	Topic       string            `json:"topic"`
	Key         string            `json:"key,omitempty"`
	Type        string            `json:"type"`
	ContentType string            `json:"content_type"`
	Headers     map[string]string `json:"headers,omitempty"`
	Payload     json.RawMessage   `json:"payload,omitempty"` // if it is JSON
	Bytes       []byte            `json:"payload_base64,omitempty"`
}

func newEventRow(e outbox.Event) eventRow {
	r := eventRow{ID: e.ID, Seq: e.Seq, CreatedAt: e.CreatedAt, Topic: e.Topic, Key: e.Key, Type: e.Type, ContentType: e.ContentType, Headers: e.Headers}
	if json.Valid(e.Payload) {
		r.Payload = e.Payload
	} else {
		r.Bytes = e.Payload
	}
	return r
}

// payloadText writes a payload for a terminal.
func payloadText(payload []byte, most int) string {
	if !utf8.Valid(payload) {
		return fmt.Sprintf("(%d bytes that are no text)", len(payload))
	}
	return plain(cut(string(payload), most))
}

// Run lists events.
func (c *outboxListCmd) Run(a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	events, err := outbox.Events(a.ctx, pool, a.namespace, outbox.Filter{Topic: c.Topic, Key: c.Key}, c.Limit)
	if err != nil {
		return err
	}
	if a.json {
		rows := []eventRow{}
		for _, e := range events {
			rows = append(rows, newEventRow(e))
		}
		return a.printJSON(map[string]any{"events": rows})
	}
	if len(events) == 0 {
		fmt.Fprintln(a.err, "no such event is kept")
		return nil
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	t := a.table("ID", "PUBLISHED", "TOPIC", "KEY", "TYPE", "PAYLOAD")
	for _, e := range events {
		t.row(e.ID, ago(now, e.CreatedAt), e.Topic, e.Key, e.Type, payloadText(e.Payload, payloadShown))
	}
	return t.end()
}

// outboxShowCmd is "pawl outbox show".
type outboxShowCmd struct {
	ID string `arg:"" help:"Event, by its UUID."`
}

// Run shows an event.
func (c *outboxShowCmd) Run(a *app) error {
	pool, err := a.pool(a.ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	events, err := outbox.Events(a.ctx, pool, a.namespace, outbox.Filter{ID: c.ID}, 1)
	if err != nil {
		return err
	}
	if len(events) == 0 {
		return fmt.Errorf("%w: event %s is not kept", job.ErrNotFound, c.ID)
	}
	e := events[0]
	if a.json {
		return a.printJSON(newEventRow(e))
	}
	now, err := a.now(a.ctx, pool)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "event %s, number %d\n  published  %s\n  topic      %s\n  key        %s\n  type       %s\n", e.ID, e.Seq, moment(now, e.CreatedAt), plain(e.Topic), plain(e.Key),
		plain(e.Type))
	for name, value := range e.Headers {
		fmt.Fprintf(a.out, "  header     %s: %s\n", plain(name), plain(value))
	}
	fmt.Fprintf(a.out, "  payload    %d bytes of %s\n\n%s\n", len(e.Payload), plain(e.ContentType), payloadText(e.Payload, 1<<16))
	return nil
}

// outboxLagCmd is "pawl outbox lag".
type outboxLagCmd struct{}

// Run shows how far subscriptions are behind.
func (c *outboxLagCmd) Run(a *app) error { return (&subscriptionListCmd{Limit: 10_000}).Run(a) }
