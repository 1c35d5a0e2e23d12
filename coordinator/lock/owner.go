package lock

import (
	"context"
	"fmt"
	"sync"
)

// owner is who holds locks: a call chain, which a context carries, or a name that spans processes. Its grants are counted here, so that acquiring again what it
// holds asks nothing of the database.
type owner struct {
	name string

	mu    sync.Mutex
	holds map[string][]*hold // by lock; those who asked at the same moment have one each
}

type ownerKey struct{ locks *Locks }

// ownerOf returns the owner for a request: the named one, that of the context, or a new one.
func (l *Locks) ownerOf(ctx context.Context, name string) *owner {
	if name != "" {
		l.mu.Lock()
		defer l.mu.Unlock()
		o := l.owners[name]
		if o == nil {
			o = &owner{name: name, holds: map[string][]*hold{}}
			l.owners[name] = o
		}
		return o
	}
	if o, ok := ctx.Value(ownerKey{l}).(*owner); ok {
		return o
	}
	return &owner{name: l.prefix + "." + l.next(), holds: map[string][]*hold{}}
}

// tidy forgets a named owner that holds nothing.
func (l *Locks) tidy(o *owner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owners[o.name] == o && !o.holding() {
		delete(l.owners, o.name)
	}
}

// again returns one more lease of what the owner holds alive, if it does.
func (o *owner) again(ctx context.Context, name, mode string) (*Lease, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, h := range o.holds[name] {
		if h.ctx.Err() != nil {
			continue
		}
		if h.mode != mode && h.mode != "exclusive" {
			return nil, fmt.Errorf("%w: lock %s: the owner holds it as %s, release that before it is taken as %s", ErrInvalid, name, h.mode, mode)
		}
		h.count++
		return h.lease(ctx), nil
	}
	return nil, nil
}

// holding tells whether the owner holds anything.
func (o *owner) holding() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.holds) > 0
}
