// Command pawl migrates, coordinates, works and answers an operator: jobs and transactions on one Postgres.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// sameInterrupt is how close two signals are one interrupt: a terminal sends one, and a parent process passes it on.
const sameInterrupt = time.Second / 2

// main stops on the first interrupt as soon as what runs has come to an end, and on the second at once.
func main() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		for first := time.Now(); time.Since(first) < sameInterrupt; {
			<-signals
		}
		os.Exit(exitInterrupted)
	}()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// cli is the command line. Its sub-commands are in files named after them.
type cli struct {
	globals

	Dev          devCmd          `cmd:"" help:"Run everything here, with a Postgres of its own and an example."`
	Migrate      migrateCmd      `cmd:"" help:"Bring the schema up to date, or look at it."`
	Serve        serveCmd        `cmd:"" help:"Run a coordinator: the sweeps that start due jobs and put right what crashed."`
	Work         workCmd         `cmd:"" help:"Run a worker for HTTP calls and configured commands."`
	Job          jobCmd          `cmd:"" help:"Enqueue, look at, cancel and retry jobs."`
	Queue        queueCmd        `cmd:"" help:"Look at, pause and resume queues."`
	Lock         lockCmd         `cmd:"" help:"Look at locks, take them away, run a command under one."`
	Outbox       outboxCmd       `cmd:"" help:"Look at published events."`
	Idempotency  idempotencyCmd  `cmd:"" help:"Look at idempotency keys."`
	Saga         sagaCmd         `cmd:"" help:"Start, look at and steer sagas: steps in several services, undone if they cannot all be done."`
	Tx           txCmd           `cmd:"" help:"Look at global transactions over several databases, and settle those in doubt."`
	Tcc          tccCmd          `cmd:"" help:"Look at global transactions over services (try, then confirm or cancel), and bring on what is stuck."`
	Subscription subscriptionCmd `cmd:"" help:"Look at subscriptions of events, and steer them."`
	Session      sessionCmd      `cmd:"" help:"Look at the processes that take part."`
	Sweep        sweepCmd        `cmd:"" help:"Run one sweep now, or list what the sweeps did."`
	Doctor       doctorCmd       `cmd:"" help:"Check the database and everything that Pawl relies on."`
	Bench        benchCmd        `cmd:"" help:"Measure, on a private Postgres with fsync on."`
	Version      versionCmd      `cmd:"" help:"Print the version of this binary."`

	DevWorker      devWorkerCmd      `cmd:"" hidden:""`
	DevCheckout    devCheckoutCmd    `cmd:"" hidden:""`
	DevTransfer    devTransferCmd    `cmd:"" hidden:""`
	BenchWorker    benchWorkerCmd    `cmd:"" hidden:""`
	BenchTransfers benchTransfersCmd `cmd:"" hidden:""`
	BenchLocker    benchLockerCmd    `cmd:"" hidden:""`
}

type migrateCmd struct {
	Up     migrateUpCmd     `cmd:"" help:"Apply all pending migrations."`
	Down   migrateDownCmd   `cmd:"" help:"Undo migrations. Removes what they made, jobs included."`
	Status migrateStatusCmd `cmd:"" help:"List migrations, applied and pending."`
	SQL    migrateSQLCmd    `cmd:"" name:"sql" help:"Print all migrations as one script for psql. Needs no database."`

	Barrier migrateBarrierCmd `cmd:"" help:"Make the barrier alone, in the database of a service that sagas and global transactions call."`
}

type jobCmd struct {
	Enqueue jobEnqueueCmd `cmd:"" help:"Add a job."`
	List    jobListCmd    `cmd:"" help:"List jobs, newest first."`
	Show    jobShowCmd    `cmd:"" help:"Tell the whole story of a job."`
	Cancel  jobCancelCmd  `cmd:"" help:"Cancel jobs: waiting ones at once, running ones by asking their process."`
	Retry   jobRetryCmd   `cmd:"" help:"Run jobs again now: waiting ones at once, finished ones with one attempt more."`
}

type queueCmd struct {
	List   queueListCmd   `cmd:"" help:"List queues and what waits in them."`
	Pause  queuePauseCmd  `cmd:"" help:"Stop workers from taking jobs from queues. What runs goes on."`
	Resume queueResumeCmd `cmd:"" help:"End the pause of queues."`
}

type lockCmd struct {
	List    lockListCmd    `cmd:"" help:"List locks that are held or waited for."`
	Show    lockShowCmd    `cmd:"" help:"Tell who holds a lock, who waits for it and for whom, and what happened to it."`
	Release lockReleaseCmd `cmd:"" help:"Take a lock away from whoever holds it."`
	Run     lockRunCmd     `cmd:"" help:"Run a command while holding a lock, in the whole cluster."`
}

type outboxCmd struct {
	List outboxListCmd `cmd:"" help:"List events, newest first."`
	Show outboxShowCmd `cmd:"" help:"Show an event."`
	Lag  outboxLagCmd  `cmd:"" help:"Tell how far each subscription is behind."`
}

type subscriptionCmd struct {
	List   subscriptionListCmd   `cmd:"" help:"List subscriptions and how far they are behind."`
	Parked subscriptionParkedCmd `cmd:"" help:"List events that a subscription has put aside."`
	Pause  subscriptionPauseCmd  `cmd:"" help:"Stop the delivery of a subscription."`
	Resume subscriptionResumeCmd `cmd:"" help:"End the pause of a subscription."`
	Rewind subscriptionRewindCmd `cmd:"" help:"Deliver events again from a time on."`
	Remove subscriptionRemoveCmd `cmd:"" help:"Remove a subscription that nobody needs any more."`
	Replay subscriptionReplayCmd `cmd:"" help:"Try parked events now, those given up too, or remove those."`
}

type sagaCmd struct {
	List        sagaListCmd        `cmd:"" help:"List sagas, newest first."`
	Show        sagaShowCmd        `cmd:"" help:"Say what a saga needs, draw its steps, and tell what happened to it."`
	Start       sagaStartCmd       `cmd:"" help:"Start a saga."`
	Signal      sagaSignalCmd      `cmd:"" help:"Bring a saga the signal that it waits for."`
	Cancel      sagaCancelCmd      `cmd:"" help:"Undo a saga that has not passed its pivot."`
	Retry       sagaRetryCmd       `cmd:"" help:"Try again what is stuck."`
	Skip        sagaSkipCmd        `cmd:"" help:"Go on as if a stuck step, or its compensation, had ended."`
	Force       sagaForceCmd       `cmd:"" help:"End a saga as it stands."`
	Definitions sagaDefinitionsCmd `cmd:"" help:"List what services registered, and which steps nobody serves."`
}

type txCmd struct {
	List         txListCmd         `cmd:"" help:"List what needs a person, what is unfinished, and participants that are not reached."`
	Show         txShowCmd         `cmd:"" help:"Tell what is known of a global transaction, and what to do about it."`
	Resolve      txResolveCmd      `cmd:"" help:"Decide a transaction that is in doubt, or accept one that you have put right by hand."`
	Participants txParticipantsCmd `cmd:"" help:"List the participants that coordinators know."`
	Setup        txSetupCmd        `cmd:"" help:"Make the tables that participants need of their own."`
	Recover      txRecoverCmd      `cmd:"" help:"Settle at participants what crashed transactions have left, once."`
	Restored     txRestoredCmd     `cmd:"" help:"Say that the coordinator's database was restored, so that decisions may be lost."`
}

type tccCmd struct {
	List   tccListCmd   `cmd:"" help:"List transactions, the latest deadline first."`
	Show   tccShowCmd   `cmd:"" help:"Say what a transaction needs, how its branches stand, and what happened to it."`
	Retry  tccRetryCmd  `cmd:"" help:"Try again what is stuck."`
	Cancel tccCancelCmd `cmd:"" help:"Cancel a transaction that nobody has decided."`
}

type idempotencyCmd struct {
	List idempotencyListCmd `cmd:"" help:"List phased requests in progress, the oldest first."`
	Show idempotencyShowCmd `cmd:"" help:"Show the answers, claims and recovery points that are stored for a key."`
}

type sessionCmd struct {
	List sessionListCmd `cmd:"" help:"List sessions: workers and other processes, kept alive by a heartbeat."`
}
