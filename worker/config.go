package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Config configures a worker. Every field but Queues may be left zero.
type Config struct {
	// Queues maps each queue to how many of its jobs run here at a time, 1 to 100,000.
	Queues map[string]int
	// Namespace is the number of the namespace. Default: 1, "default".
	Namespace int16
	// Name and Version tell operators what this process is. Default: the program's name.
	Name, Version string
	// TTL is how long the process may be silent before its jobs are given to others. Default: 15 s.
	TTL time.Duration
	// Timeout cancels the context of a handler whose job names no timeout of its own. Default: 1 min; negative: none.
	Timeout time.Duration
	// Grace is how long a handler may ignore its cancelled context before it is given up: its attempt is ended, its slot freed. Default: 30 s.
	Grace time.Duration
	// Drain is how long running jobs get to finish once Run's context is cancelled; what still runs then is cancelled and handed back. Default: 30 s.
	Drain time.Duration
	// PollOnly turns hints (LISTEN) off, as behind a transaction pooler. Default: hints wake the worker.
	PollOnly bool
	// PollMin and PollMax bound how often a worker looks for work: closely after it had some, ever less often while idle. Default: 2 ms, 400 ms.
	PollMin, PollMax time.Duration
	// PrefetchMax is how many jobs of a queue may wait here for a slot, at most; the worker fetches no more ahead than it ran in the last 50 ms.
	// Default: 2,000.
	PrefetchMax int
	// UnknownDelay is how long a job of a kind without a handler here waits before it is offered again (a rolling deploy). Default: 10 s.
	UnknownDelay time.Duration
	// Logger receives what happens. Default: none.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	set(&c.TTL, 15*time.Second)
	set(&c.Timeout, time.Minute)
	set(&c.Grace, 30*time.Second)
	set(&c.Drain, 30*time.Second)
	set(&c.PollMin, 2*time.Millisecond)
	set(&c.PollMax, 400*time.Millisecond)
	set(&c.UnknownDelay, 10*time.Second)
	if c.Namespace == 0 {
		c.Namespace = 1
	}
	if c.PrefetchMax == 0 {
		c.PrefetchMax = 2000
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// validate reports all faults at once.
func (c Config) validate() error {
	var faults []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Errorf("worker: "+format, args...))
		}
	}
	fault(len(c.Queues) == 0, "no queue to work on: set Config.Queues")
	for name, slots := range c.Queues {
		fault(name == "" || len(name) > 128, "a queue's name has 1 to 128 bytes, not %d", len(name))
		fault(slots < 1 || slots > 100_000, "queue %q: %d slots are outside 1 to 100,000", name, slots)
	}
	fault(c.Grace < 0, "grace of %s is negative", c.Grace)
	fault(c.Drain < 0, "drain of %s is negative", c.Drain)
	fault(c.PollMin <= 0 || c.PollMax < c.PollMin, "poll interval from %s to %s is empty", c.PollMin, c.PollMax)
	fault(c.PrefetchMax < 1 || c.PrefetchMax > 100_000, "prefetch of %d is outside 1 to 100,000", c.PrefetchMax)
	return errors.Join(faults...)
}
