package idempotency

// WithFail has f called at every failpoint: claimed, NAME:called and NAME:committed of each phase, before-answer, after-answer; before-commit and after-commit of Do.
func WithFail(o Options, f func(point string)) Options {
	o.fail = f
	return o
}
