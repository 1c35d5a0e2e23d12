package saga

import "time"

// Spec gives a definition as it is registered, and its digest.
func Spec[In any](d *Definition[In]) (spec, digest string) {
	s := d.def.seal()
	return string(s.spec), s.digest
}

// Difference is difference.
func Difference(ours, theirs string) []string { return difference([]byte(ours), []byte(theirs)) }

// SetPause sets how long Await waits between looks, unless it hears of an end.
func SetPause[In any](d *Definition[In], pause time.Duration) { d.def.ends.pause = pause }

// Watchers tells how many pools are looked at for those who await sagas of d.
func Watchers[In any](d *Definition[In]) int {
	d.def.ends.mu.Lock()
	defer d.def.ends.mu.Unlock()
	return len(d.def.ends.watchers)
}

// Looked tells how many who await sagas of d have been looked for and will not be soon.
func Looked[In any](d *Definition[In]) (n int) {
	d.def.ends.mu.Lock()
	defer d.def.ends.mu.Unlock()
	for _, w := range d.def.ends.watchers {
		for _, one := range w.due {
			if one.last != "" && one.at != 0 {
				n++
			}
		}
	}
	return n
}

// FirstLook tells how long who awaits a saga of d waits for word of its end before the first look.
func FirstLook[In any](d *Definition[In]) time.Duration {
	w := d.def.newWaiter("x")
	return time.Duration(max(w.at-w.since, 0))
}
