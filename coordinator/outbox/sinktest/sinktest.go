// Package sinktest checks that a sink does what outbox.Sink promises to relays, with a receiver that works, and with one that does not:
//
//	func TestSink(t *testing.T) {
//		sinktest.Run(t, func(t *testing.T) sinktest.Target {
//			receiver := startReceiver(t)
//			return sinktest.Target{Sink: mysink.New(receiver.URL), Received: receiver.Events, Break: receiver.Break, Mend: receiver.Mend}
//		})
//	}
package sinktest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

const (
	patience = time.Minute     // bounds a check
	soon     = 5 * time.Second // after ctx has ended, Send has returned

	faultTime = 300 * time.Millisecond // how long a sink may take to notice a fault, before its ctx ends
)

// Fault is what a receiver does with an event.
type Fault string

// The faults.
const (
	// Refuse: it says that it failed, and does not have the event.
	Refuse Fault = "refuse"
	// Garble: its answer makes no sense.
	Garble Fault = "garble"
	// Hang: it does not answer as long as it is broken.
	Hang Fault = "hang"
	// Lose: it has the event, and its answer is lost.
	Lose Fault = "lose"
)

// Target is a sink with a receiver of its own, which nobody else sends to.
type Target struct {
	Sink outbox.Sink
	// Received returns what the receiver has durably, in its order, which means something within a key only. Of each event all of ID, Topic, Key, Type, Payload, ContentType
	// and Headers is looked at.
	Received func() ([]outbox.Event, error)
	// Break has the receiver do so with the event of this ID whenever it comes, until Mend. met is closed when the event has come for the first time, for Lose when the receiver
	// has it. A receiver that takes several events at once may do so with all of them. met is nil if the receiver cannot be made to: what needs it is skipped.
	Break func(f Fault, id string) (met <-chan struct{})
	// Mend undoes Break, and ends what hangs.
	Mend func()
	// Recognises is set if the receiver knows an event's ID again, and then has it once: else events may be received several times.
	Recognises bool
}

// Run checks a sink, in sub-tests, each with a target of its own; open registers its end with Cleanup. Payloads are of up to outbox.PayloadBytesMax.
func Run(t *testing.T, open func(*testing.T) Target) {
	for _, c := range checks() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, stop := context.WithTimeout(t.Context(), patience)
			defer stop()
			err := c.check(ctx, open(t))
			if errors.Is(err, errSkip) {
				t.Skip(err)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

type check struct {
	name  string
	check func(context.Context, Target) error
}

var errSkip = errors.New("the receiver has no such fault")

func checks() []check {
	all := []check{
		{"nothing", nothing},
		{"order", order},
		{"contents", contents},
		{"again", again},
		{"concurrent", concurrent},
		{"late", late},
	}
	for _, f := range []Fault{Refuse, Garble, Lose, Hang} {
		for _, at := range []int{0, 7, events - 1} {
			all = append(all, check{fmt.Sprintf("%s/%d", f, at), func(ctx context.Context, t Target) error { return broken(ctx, t, f, at) }})
		}
	}
	return all
}
