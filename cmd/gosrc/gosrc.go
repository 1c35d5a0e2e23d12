// Package gosrc is the example that "pawl dev" runs: it counts the Go source below a directory, one job a file.
//
// [Start] lines up a job for each file, on two queues, and one job more, the join. A worker with the handlers of [Register] parses each file and writes what
// is in it to the example's own tables, in the transaction that ends the job; the join writes the totals of each package. [Walk] counts the same
// files one after the other without a database, so that the answer can be checked.
//
// # Exactly once
//
// The table gosrc.file has no unique key, on purpose: nothing but worker.HandleTx keeps a file from being counted twice when its worker
// is killed and the job runs again elsewhere. A file that was counted twice, or never, shows in the totals.
//
// # The join
//
// How does anyone know that all files are done? The run's row says how many there are, and gets committed with their jobs and with the join, in one
// transaction. The join counts the rows of gosrc.file; while some are missing it snoozes; when all are there it writes the totals in the
// transaction that ends it. This holds because
//
//   - rows are only added, and each is committed with the end of its job: once all are seen, none can follow, whoever crashed meanwhile;
//   - it is a job like any other: a crash between any two steps has it run again, so no run stays without its totals;
//   - it was enqueued once, and its totals commit with its end or not at all, so no run gets them twice.
//
// The other way, the file that is the last one enqueues the join, needs each handler to take a lock that all of a run share before it looks whether
// others are left: two that look at the same time each see the other's as missing, and both leave. That lock is held to the end of the
// commit, so the files of a run would commit one by one. Looking again now and then costs nothing beside that.
package gosrc

import (
	"time"

	"github.com/pawl-dev/pawl/coordinator/job"
)

// The two queues. Tests have their own, so that a worker can give them fewer slots.
const (
	QueueParse     = "parse"
	QueueParseTest = "parse-test"
)

// File is a job's input: one file of a run.
type File struct {
	Run  int64  `json:"run"`
	Root string `json:"root"` // the directory that was counted
	Path string `json:"path"` // below it, with slashes
}

// Join is the input of the job that ends a run.
type Join struct {
	Run int64 `json:"run"`
}

var (
	// ParseFile counts one file. Tests are enqueued to QueueParseTest instead.
	ParseFile = job.Define[File]("gosrc.parse", job.Queue(QueueParse), job.Timeout(time.Minute))
	// JoinRun writes the totals of a run when all its files are counted.
	JoinRun = job.Define[Join]("gosrc.join", job.Queue(QueueParse), job.Timeout(time.Minute))
)
