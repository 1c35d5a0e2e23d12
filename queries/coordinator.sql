-- name: SweepSessions :one
-- Sessions that have ended and wait for their rescue. did false: another node is at it.
SELECT (s IS NOT NULL)::boolean AS did, coalesce(s, '{}')::bigint[] AS ended FROM pawl.sweep_sessions(@ns::smallint, @limit_rows::int) s;

-- name: RescueSession :one
SELECT jobs::int AS jobs, left_over::boolean AS left_over FROM pawl.session_rescue(@ns::smallint, @session_id::bigint, @claims_max::int);

-- name: SweepDue :one
-- moved -1: another node is at it. next_in_ms -1: nothing is scheduled.
SELECT coalesce(moved, -1)::int AS moved, queue_ids::int[] AS queue_ids, coalesce(extract(epoch FROM next_in) * 1000, -1)::float8 AS next_in_ms, moved_to
FROM pawl.sweep_due(@ns::smallint, sqlc.narg(from_at)::timestamptz, @limit_rows::int);

-- name: SweepDedupe :one
SELECT removed::int AS removed, coalesce(last_kind, '')::text AS last_kind, coalesce(last_key, '')::text AS last_key
FROM pawl.sweep_dedupe(@ns::smallint, @after_kind::text, @after_key::text, @limit_rows::int);

-- name: SweepPartitions :one
SELECT pawl.partition_ahead()::int AS made;

-- name: LeaveOutbox :one
-- Marks the oldest range of events if it may leave. leaves false: it may not. missed: events that subscriptions had not got.
SELECT (range_to IS NOT NULL)::boolean AS leaves, coalesce(range_from, 0)::bigint AS range_from, coalesce(range_to, 0)::bigint AS range_to, coalesce(missed, '{}')::text[] AS missed
FROM pawl.outbox_leave();

-- name: ListLeaving :many
-- statement: what detaches the range; '': it is detached.
SELECT parent::text AS parent, range_from::bigint AS range_from, range_to::bigint AS range_to, statement::text AS statement FROM pawl.partition_leaving();

-- name: LockLeaving :one
-- Whether this transaction is the one to detach and drop ranges.
SELECT pg_try_advisory_xact_lock(pawl.sweep_key(0::smallint, 'partitions'))::boolean AS held;

-- name: DropPartition :one
SELECT pawl.partition_drop(@parent::text, @range_from::bigint)::boolean AS dropped;

-- name: KeepOutbox :exec
SELECT pawl.outbox_keep(@ns::smallint, sqlc.narg(keep)::interval, sqlc.narg(hold)::interval);

-- name: ReportSweep :exec
SELECT pawl.sweep_report(@ns::smallint, @name::text, clock_timestamp() - @took::interval, @did::bigint, sqlc.narg(error)::text);

-- name: ListSweeps :many
SELECT w.name, w.ran_at, w.took_ms, w.did, w.did_total, w.runs, w.error FROM pawl.sweep w WHERE w.ns = @ns::smallint ORDER BY w.name LIMIT 100;

-- name: RebaseLines :one
SELECT pawl.rebase(@ns::smallint)::int AS lines;

-- name: ListQueueNames :many
SELECT q.name FROM pawl.queue q WHERE q.ns = @ns::smallint AND q.id = ANY (@queue_ids::int[]) ORDER BY q.name LIMIT 10000;

-- name: SweepSagas :one
-- did -1: another node is at it. next_in_ms -1: nothing is waited for.
SELECT coalesce(did, -1)::int AS did, coalesce(withdraw, '{}')::bigint[] AS withdraw, coalesce(extract(epoch FROM next_in) * 1000, -1)::float8 AS next_in_ms,
  coalesce(queues, '{}')::text[] AS queues
FROM pawl.sweep_sagas(@ns::smallint, @limit_rows::int);

-- name: WithdrawSaga :one
-- more: units are left, for another call. sessions: those that run what was asked to stop.
SELECT more::boolean AS more, sessions::bigint[] AS sessions, queues::text[] AS queues FROM pawl.saga_withdraw(@ns::smallint, @saga_id::bigint);

-- name: SweepSagasForgotten :one
SELECT last, forgotten::text[] AS forgotten FROM pawl.sweep_sagas_forgotten(@ns::smallint, @after_id::bigint, @limit_rows::int);

-- name: SweepSagasOld :one
SELECT removed::int AS removed, last FROM pawl.sweep_sagas_old(@ns::smallint, @keep::interval, @after_id::bigint, @limit_rows::int);
