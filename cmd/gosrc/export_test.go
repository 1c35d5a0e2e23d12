package gosrc

// For tests: the handler of JoinRun, and how long it waits.
var (
	JoinHandler = join
	JoinWait    = joinWait
)

const (
	JoinWaitMin = joinWaitMin
	JoinWaitMax = joinWaitMax
)
