package saga

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// spec is a definition as it is registered. Names that are left out have no meaning there.
type spec struct {
	Name       string     `json:"name"`
	Version    int        `json:"version"`
	DeadlineMs int64      `json:"deadline_ms,omitempty"`
	Steps      []specStep `json:"steps"` // each behind those it needs
}

type specStep struct {
	Name     string   `json:"name"`
	Kind     Kind     `json:"kind"`
	After    []string `json:"after,omitempty"` // sorted
	Pivot    bool     `json:"pivot,omitempty"`
	ReadOnly bool     `json:"read_only,omitempty"`
	specPolicy
	Priority int         `json:"priority,omitempty"`
	Undo     *specPolicy `json:"undo,omitempty"`    // nil: nothing to undo
	WaitMs   int64       `json:"wait_ms,omitempty"` // of a timer; of a signal: 0 for ever
	Child    *specChild  `json:"child,omitempty"`
}

// specPolicy is how a job of a step, or of its compensation, is tried.
type specPolicy struct {
	Queue        string `json:"queue,omitempty"`
	MaxAttempts  int    `json:"max_attempts,omitempty"`
	TimeoutMs    int64  `json:"timeout_ms,omitempty"`     // 0: the worker's
	BackoffMs    *int64 `json:"backoff_ms,omitempty"`     // nil: 1 s
	BackoffMsMax *int64 `json:"backoff_ms_max,omitempty"` // nil: 1 h
}

type specChild struct {
	Name    string `json:"name"`
	Version int    `json:"version"`
}

func newSealed(d *definition) *sealed {
	if err := d.validate(); err != nil {
		return &sealed{err: err}
	}
	s := d.spec()
	text, err := json.Marshal(s)
	if err != nil {
		return &sealed{err: fmt.Errorf("%w: %w", ErrInvalid, err)}
	}
	return &sealed{spec: text, digest: s.digest()}
}

// digest is the SHA-256 of the spec with its steps by name: in which order services declare steps that do not need each other makes no difference.
func (s spec) digest() string {
	s.Steps = slices.SortedFunc(slices.Values(s.Steps), func(a, b specStep) int { return cmp.Compare(a.Name, b.Name) })
	text, _ := json.Marshal(s) // has been marshalled before
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func (d *definition) spec() spec {
	out := spec{Name: d.name, Version: d.version, DeadlineMs: d.deadline.Milliseconds()}
	for _, s := range d.steps {
		out.Steps = append(out.Steps, s.spec())
	}
	return out
}

func (s *step) spec() specStep {
	out := specStep{Name: s.name, Kind: s.kind, Pivot: s.opts.pivot}
	for _, a := range s.opts.after {
		out.After = append(out.After, a.name)
	}
	slices.Sort(out.After)
	out.After = slices.Compact(out.After)
	if s.kind == KindTimer || s.kind == KindSignal {
		out.ReadOnly = true
		out.WaitMs = max(s.wait, s.opts.expires).Milliseconds()
		return out
	}
	out.ReadOnly = s.opts.readOnly
	attempts := AttemptsDefault
	if s.sure() {
		attempts = AttemptsSureDefault
	}
	out.specPolicy = s.opts.policy(QueueDefault, attempts)
	out.Priority = cmp.Or(s.opts.priority, PriorityDefault)
	if s.compensated() {
		undo := stepOptions{}
		if s.opts.undo != nil {
			undo = *s.opts.undo
		}
		p := undo.policy(out.Queue, AttemptsSureDefault)
		out.Undo = &p
	}
	if s.child != nil {
		out.Child = &specChild{s.child.name, s.child.version}
	}
	return out
}

func (o *stepOptions) policy(queue string, attempts int) specPolicy {
	p := specPolicy{Queue: cmp.Or(o.queue, queue), MaxAttempts: cmp.Or(o.maxAttempts, attempts), TimeoutMs: o.timeout.Milliseconds()}
	if o.has("Backoff") {
		base, longest := o.backoff.Milliseconds(), o.backoffMax.Milliseconds()
		p.BackoffMs, p.BackoffMsMax = &base, &longest
	}
	return p
}

// validate lists all faults.
func (d *definition) validate() error {
	var faults []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Errorf("%w: definition %q, version %d: "+format, slices.Concat([]any{ErrInvalid, d.name, d.version}, args)...))
		}
	}
	fault(len(d.steps) == 0, "it has no step")
	fault(len(d.steps) > StepsMax, "it has %d steps, and %d are the most", len(d.steps), StepsMax)
	seen, pivots := map[string]bool{}, 0
	for _, s := range d.steps {
		if seen[s.name] {
			fault(true, "step %q: there are two of that name", s.name)
		}
		seen[s.name] = true
		if s.opts.pivot {
			pivots++
		}
		for _, f := range s.faults() {
			fault(true, "step %q: %s", s.name, f)
		}
	}
	fault(pivots > 1, "it has %d pivots, and one is the most", pivots)
	if p := d.pivot(); p != nil && pivots == 1 {
		for _, s := range d.steps {
			fault(s != p && !s.needs(p) && !p.needs(s), "step %q neither comes before the pivot %q nor behind it: say which with After", s.name, p.name)
		}
	}
	return errors.Join(faults...)
}

// faults lists what is wrong with a step by itself.
func (s *step) faults() (faults []string) {
	fault := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	o := &s.opts
	fault(!nameForm.MatchString(s.name), "a name has 1 to 64 letters, digits, dots, hyphens and underscores")
	for _, a := range o.after {
		fault(a.def != s.def, "After names step %q of definition %q", a.name, a.def.name)
	}
	fault(o.has("Expires") && s.kind != KindSignal, "Expires is for signals")
	fault(o.has("Expires") && checkDuration("", o.expires) != nil, "Expires of %s is outside 1 ms to 10 years", o.expires)
	fault(s.kind == KindTimer && checkDuration("", s.wait) != nil, "a wait of %s is outside 1 ms to 10 years", s.wait)
	fault(o.pivot && o.readOnly, "a pivot is not ReadOnly: what cannot be undone is what makes it one")
	if s.kind == KindTimer || s.kind == KindSignal {
		for _, name := range o.given {
			fault(name != "After" && name != "ReadOnly" && name != "Expires", "%s has no meaning for a %s", name, s.kind)
		}
		return faults
	}
	fault(o.pivot && s.kind == KindEach, "a pivot happens as a whole or not at all, and units do not")
	faults = append(faults, o.faults()...)
	if o.undo != nil {
		fault(!s.compensated(), "Undo, and it has nothing to undo: it is the pivot, or behind it, or ReadOnly")
		for _, name := range o.undo.given {
			fault(!slices.Contains(undoOptions, name), "Undo: %s is not for compensations", name)
		}
		for _, f := range o.undo.faults() {
			fault(true, "Undo: %s", f)
		}
	}
	if s.child != nil {
		fault(s.child.namespace != s.def.namespace, "its child %q is of another namespace", s.child.name)
		fault(s.child.contains(s.def, map[*definition]bool{}), "its child %q contains %q, and so never ends", s.child.name, s.def.name)
	}
	return faults
}

var undoOptions = []string{"Queue", "MaxAttempts", "Timeout", "Backoff"}

// contains tells whether a saga of d starts one of other, directly or through its children, or is one.
func (d *definition) contains(other *definition, seen map[*definition]bool) bool {
	if d == other || d.name == other.name && d.version == other.version {
		return true
	}
	if seen[d] {
		return false
	}
	seen[d] = true
	return slices.ContainsFunc(d.steps, func(s *step) bool { return s.child != nil && s.child.contains(other, seen) })
}

// faults lists what is wrong with how something is tried.
func (o *stepOptions) faults() (faults []string) {
	fault := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	const most = math.MaxInt32 * time.Millisecond
	fault(o.has("Queue") && (o.queue == "" || len(o.queue) > 128), "a queue's name has 1 to 128 bytes, not %d", len(o.queue))
	fault(o.has("Priority") && (o.priority < 1 || o.priority > 4), "priority %d is outside 1 (first) to 4 (last)", o.priority)
	fault(o.has("MaxAttempts") && (o.maxAttempts < 1 || o.maxAttempts > 1000), "max attempts of %d is outside 1 to 1,000", o.maxAttempts)
	fault(o.has("Timeout") && (o.timeout < time.Millisecond || o.timeout > most), "timeout of %s is outside 1 ms to 24 days", o.timeout)
	fault(o.has("Backoff") && (o.backoff < 0 || o.backoffMax < o.backoff || o.backoffMax > most), "a backoff from %s to %s: the first is 0 or more, the second no less, and up to 24 days", o.backoff, o.backoffMax)
	return faults
}

// difference tells, a line each, where a definition is not the one that is registered under its name and version.
func difference(ours, theirs []byte) []string {
	a, err := parts(ours)
	if err != nil {
		return []string{err.Error()}
	}
	b, err := parts(theirs)
	if err != nil {
		return []string{err.Error()}
	}
	var lines []string
	for _, part := range union(a, b) {
		switch here, there := a[part], b[part]; {
		case there == nil:
			lines = append(lines, part+" is new")
		case here == nil:
			lines = append(lines, part+" is missing")
		default:
			for _, name := range union(here, there) {
				if x, y := here[name], there[name]; x != y {
					lines = append(lines, fmt.Sprintf("%s: %s is %s, was %s", part, name, cmp.Or(x, "none"), cmp.Or(y, "none")))
				}
			}
		}
	}
	return lines
}

// parts reads a spec: its steps by name, and it itself without them, each with its members as canonical JSON.
func parts(text []byte) (map[string]map[string]string, error) {
	var top map[string]any
	if err := json.Unmarshal(text, &top); err != nil {
		return nil, fmt.Errorf("a definition cannot be read: %w", err)
	}
	steps, _ := top["steps"].([]any)
	delete(top, "steps")
	out := map[string]map[string]string{"the definition": members(top)}
	for _, s := range steps {
		if s, ok := s.(map[string]any); ok {
			out[fmt.Sprintf("step %v", s["name"])] = members(s)
		}
	}
	return out, nil
}

func members(m map[string]any) map[string]string {
	out := map[string]string{}
	for name, v := range m {
		text, _ := json.Marshal(v) // it was JSON before
		out[name] = string(text)
	}
	return out
}

// union gives the keys of both, sorted.
func union[V any](a, b map[string]V) []string {
	keys := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(keys)
	return slices.Compact(keys)
}
