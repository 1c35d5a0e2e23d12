package saga

// Spec gives a definition as it is registered, and its digest.
func Spec[In any](d *Definition[In]) (spec, digest string) {
	s := d.def.seal()
	return string(s.spec), s.digest
}

// Difference is difference.
func Difference(ours, theirs string) []string { return difference([]byte(ours), []byte(theirs)) }
