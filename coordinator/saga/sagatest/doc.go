// Package sagatest runs sagas in tests: on a real Postgres, without processes, in the same order at every run. A [Bench] takes the handlers of services in the place of their worker; it lets steps fail, has
// the process die where it hurts most, and lets time pass:
//
//	b := sagatest.New(t, pool)
//	checkout.Handlers(b)                          // saga.Handle(b, …), as the services do with their worker
//	id, _ := checkout.Saga.Start(ctx, pool, order)
//	b.CrashAt("charge", sagatest.AfterAction)     // done, and nobody knows
//	b.RefuseAt("ship", errors.New("no address"))
//	b.Run(ctx)
//	if b.State(id) != saga.StateCompensated { … }
//	t.Log(b.History(id))                          // a line an event, for a golden file
//
// What a saga does is done by the database, as in production: the bench claims jobs, and ends them, with the statements of a worker, and what is due is done by those of a coordinator. What it leaves out is what comes
// from several processes at once. It knows the namespace "default", and is the only one to work there: start no worker for the same queues, and no coordinator.
//
//	Situation                                    | What the test sees
//	the database fails, or Run comes to no rest  | Fatal
//	a fault was planned and its step never ran   | an error at the end of the test
//	no handler for a step                        | its saga waits, and Run goes on with others
package sagatest
