package coordinator

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pawl-dev/pawl/coordinator/outbox"
	"github.com/pawl-dev/pawl/coordinator/twophase"
)

// Config configures a coordinator. Its zero value works.
type Config struct {
	// Namespace is the number of the namespace. Default: 1, "default".
	Namespace int16
	// Specs overrides when sweeps run, by name: five fields, six with seconds, or a descriptor such as "@every 5s", as robfig/cron reads them.
	// None can be left out. Defaults: SweepSpecs.
	Specs map[string]string
	// DueMax is how long, at most, the due sweep waits when it knows of nothing due earlier. Default: 1 s.
	DueMax time.Duration
	// Name and Version tell operators what this process is, in the list of sessions; only those that relay have one. Default: the program's name.
	Name, Version string
	// TTL is how long after the last heartbeat of this process another may relay what it relayed, 1 s to 1 h. Default: 15 s.
	TTL time.Duration
	// PollOnly turns hints (LISTEN) off, as behind a transaction pooler. Default: a hint makes the due sweep look at once.
	PollOnly bool
	// Subscriptions are relayed by Run: of all coordinators that have a subscription, one relays each shard of it at a time. Namespace is the coordinator's.
	Subscriptions []outbox.Subscription
	// OutboxKeep is how long events are kept at least after all subscriptions have passed them, up to one range of ids longer; of several namespaces the longest counts. Run
	// stores it in the database, where every coordinator and "pawl sweep" find it. Default: as stored, at first 7 days.
	OutboxKeep time.Duration
	// OutboxHold is for how long a subscription that has not passed them may keep events, not less than OutboxKeep. Then it is paused, and misses them; see outbox.ErrGap.
	// Stored likewise. Default: as stored, at first 30 days.
	OutboxHold time.Duration
	// SagaKeep is how long sagas that have ended are kept, with their histories. Default: 30 days.
	SagaKeep time.Duration
	// Global has the participants of global transactions whose crashed ones this coordinator is to settle; its namespace is the coordinator's. Each participant must be known to one coordinator at least, and had
	// better be to two. Default: none; then only old decisions are removed.
	Global *twophase.Manager
	// GlobalKeep is how long the decisions of global transactions are kept at least. Default: twophase.KeepDefault.
	GlobalKeep time.Duration
	// Logger receives what the sweeps did. Default: none.
	Logger *slog.Logger
}

// The names of the sweeps.
const (
	SweepSessions    = "sessions"    // ends expired sessions and puts what they held back in line, their locks to the next
	SweepDue         = "due"         // moves scheduled jobs whose time has come to the line
	SweepDedupe      = "dedupe"      // removes dedupe keys whose job or window is over
	SweepLocks       = "locks"       // removes what newer states of locks have replaced, and grants what is due
	SweepOutbox      = "outbox"      // removes positions of subscriptions that newer ones have replaced
	SweepIdempotency = "idempotency" // removes answers and messages whose time is over
	SweepBarrier     = "barrier"     // removes what barriers need no more
	SweepInDoubt     = "in-doubt"    // settles what crashed global transactions have left prepared, removes old decisions; at the same time on all nodes
	SweepTCC         = "tcc"         // deadlines of global transactions over services, branches that are stuck, removal of old ones
	SweepSagas       = "sagas"       // deadlines and timers of sagas, proof that none is forgotten, removal of old ones
	SweepPartitions  = "partitions"  // makes the hot tables' next ranges, and drops those of the outbox that are not kept any more
)

// SweepNames returns the names of all sweeps, in the order of their urgency.
func SweepNames() []string {
	return []string{SweepSessions, SweepDue, SweepInDoubt, SweepDedupe, SweepLocks, SweepIdempotency, SweepOutbox, SweepSagas, SweepTCC, SweepBarrier, SweepPartitions}
}

// SweepSpecs are the default times of the sweeps that run by the clock. The due sweep has none: it runs at the next due time.
var SweepSpecs = map[string]string{
	SweepSessions:    "@every 5s",
	SweepInDoubt:     "@every 5s",
	SweepDedupe:      "@every 1m",
	SweepLocks:       "@every 10s",
	SweepOutbox:      "@every 10s",
	SweepIdempotency: "@every 1m",
	SweepSagas:       "@every 10s",
	SweepTCC:         "@every 10s",
	SweepBarrier:     "@every 1m",
	SweepPartitions:  "@every 1m",
}

func (c Config) withDefaults() Config {
	if c.Namespace == 0 {
		c.Namespace = 1
	}
	if c.SagaKeep == 0 {
		c.SagaKeep = SagaKeepDefault
	}
	if c.GlobalKeep == 0 {
		c.GlobalKeep = twophase.KeepDefault
	}
	if c.DueMax == 0 {
		c.DueMax = time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	specs := map[string]string{}
	for name, spec := range SweepSpecs {
		specs[name] = spec
		if own := c.Specs[name]; own != "" {
			specs[name] = own
		}
	}
	for name, spec := range c.Specs {
		specs[name] = spec // also unknown ones, for validate to name
	}
	c.Specs = specs
	return c
}

// validate reports all faults at once.
func (c Config) validate() error {
	var faults []error
	for name, spec := range c.Specs {
		if _, ok := SweepSpecs[name]; !ok {
			faults = append(faults, fmt.Errorf("coordinator: there is no sweep %q with a time of its own", name))
			continue
		}
		if _, err := parser.Parse(spec); err != nil {
			faults = append(faults, fmt.Errorf("coordinator: sweep %q: %w", name, err))
		}
	}
	if c.DueMax < 10*time.Millisecond {
		faults = append(faults, fmt.Errorf("coordinator: DueMax of %s is below 10 ms", c.DueMax))
	}
	if c.TTL != 0 && (c.TTL < time.Second || c.TTL > time.Hour) {
		faults = append(faults, fmt.Errorf("coordinator: TTL of %s is outside 1 s to 1 h", c.TTL))
	}
	if c.SagaKeep < 0 {
		faults = append(faults, fmt.Errorf("coordinator: SagaKeep of %s is below 0", c.SagaKeep))
	}
	if c.GlobalKeep < twophase.TimeoutMax {
		faults = append(faults, fmt.Errorf("coordinator: GlobalKeep of %s is below %s, which a transaction may take", c.GlobalKeep, twophase.TimeoutMax))
	}
	if c.OutboxKeep < 0 || c.OutboxHold < 0 || c.OutboxHold > 0 && c.OutboxHold < c.OutboxKeep {
		faults = append(faults, fmt.Errorf("coordinator: OutboxKeep %s and OutboxHold %s: neither below 0, and the second no less than the first", c.OutboxKeep, c.OutboxHold))
	}
	names := map[string]bool{}
	for _, s := range c.Subscriptions {
		if err := s.Validate(); err != nil {
			faults = append(faults, err)
		}
		if names[s.Name] {
			faults = append(faults, fmt.Errorf("coordinator: there are two subscriptions %q", s.Name))
		}
		names[s.Name] = true
	}
	return errors.Join(faults...)
}
