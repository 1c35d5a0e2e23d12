package cloudevent_test

import (
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/outbox/cloudevent"
)

func lower(name, _ string) bool { return strings.ToLower(name) == name && !cloudevent.IsKnown(name) }

func TestEncode(t *testing.T) {
	t.Parallel()
	at := time.Date(2027, 1, 1, 9, 30, 0, 120000000, time.FixedZone("", 3600))
	for _, c := range []struct {
		event               outbox.Event
		attributes, headers map[string]string
	}{
		{
			outbox.Event{ID: "7", Topic: "t", Type: "x", Payload: []byte("1"), Attempt: 3},
			map[string]string{"specversion": "1.0", "id": "7", "source": "shop", "type": "x", "pawltopic": "t"},
			map[string]string{},
		},
		{
			outbox.Event{ID: "7", Topic: "t", Type: "x", Key: "k", ContentType: "a/b", Seq: 9, CreatedAt: at, Headers: map[string]string{"a": "b", "C": "d\n", "time": "u"}},
			map[string]string{
				"specversion": "1.0", "id": "7", "source": "shop", "type": "x", "pawltopic": "t", "subject": "k", "datacontenttype": "a/b", "pawlseq": "9",
				"time": "2027-01-01T08:30:00.12Z", "pawlheaders": `{"C":"d\n","time":"u"}`,
			},
			map[string]string{"a": "b"},
		},
	} {
		attributes, headers := cloudevent.Encode(c.event, "shop", lower)
		if !maps.Equal(attributes, c.attributes) || !maps.Equal(headers, c.headers) {
			t.Errorf("%v, %v; want\n%v, %v", attributes, headers, c.attributes, c.headers)
		}
		want := c.event
		want.Payload, want.Attempt = nil, 0
		if !want.CreatedAt.IsZero() {
			want.CreatedAt = want.CreatedAt.UTC()
		}
		if got, err := cloudevent.Decode(attributes, headers); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
}

func TestDecode_malformed(t *testing.T) {
	t.Parallel()
	good := map[string]string{"specversion": "1.0", "id": "7", "source": "x", "type": "y"}
	if _, err := cloudevent.Decode(good, nil); err != nil {
		t.Fatal(err)
	}
	for name, values := range map[string][]string{
		"specversion": {"", "0.3"}, "id": {""}, "source": {""}, "type": {""}, "time": {"yesterday"}, "pawlseq": {"x", "1.5"}, "pawlheaders": {"[]", "{", `{"a":1}`},
	} {
		for _, value := range values {
			bad := maps.Clone(good)
			bad[name] = value
			if e, err := cloudevent.Decode(bad, nil); !errors.Is(err, cloudevent.ErrMalformed) || e.ID != "" {
				t.Errorf("%s %q: %+v, %v; want ErrMalformed", name, value, e, err)
			}
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	e := outbox.Event{ID: "7", Topic: "t", Type: "x", Key: "k", ContentType: "a/b", Headers: map[string]string{"a": "b", "ce_id": "own", "Content-Type": "own", "content-type": "own", "CE_x": "y"}}
	got := cloudevent.Headers(e, "shop")
	want := map[string]string{
		"ce_specversion": "1.0", "ce_id": "7", "ce_source": "shop", "ce_type": "x", "ce_pawltopic": "t", "ce_subject": "k", "content-type": "a/b", "a": "b", "CE_x": "y",
		"ce_pawlheaders": `{"Content-Type":"own","ce_id":"own","content-type":"own"}`,
	}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want\n%v", got, want)
	}
	if back, err := cloudevent.FromHeaders(got); err != nil || !reflect.DeepEqual(back, e) {
		t.Errorf("%+v, %v; want %+v", back, err, e)
	}
	if _, err := cloudevent.FromHeaders(map[string]string{"a": "b"}); !errors.Is(err, cloudevent.ErrMalformed) {
		t.Errorf("%v, want ErrMalformed", err)
	}
}
