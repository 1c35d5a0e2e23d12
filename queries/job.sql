-- name: EnqueueJob :one
SELECT pawl.enqueue(@ns::smallint, @queue::text, @kind::text, @args::json, @priority::smallint, sqlc.narg(run_at)::timestamptz, @max_attempts::smallint,
  sqlc.narg(timeout_ms)::int, sqlc.narg(backoff_ms)::int, sqlc.narg(backoff_ms_max)::int, sqlc.narg(headers)::json)::bigint AS id;

-- name: EnqueueJobs :one
SELECT first_id::bigint AS first_id, ids::bigint[] AS ids, duplicates::boolean[] AS duplicates
FROM pawl.enqueue_many(@ns::smallint, @queue::text, @kind::text, @args::json[], @priority::smallint, sqlc.narg(run_at)::timestamptz, @max_attempts::smallint,
  sqlc.narg(timeout_ms)::int, sqlc.narg(backoff_ms)::int, sqlc.narg(backoff_ms_max)::int, sqlc.narg(headers)::json,
  sqlc.narg(dedupe_keys)::text[], sqlc.narg(dedupe_window)::interval);

-- name: ReadJobState :one
-- state '' when there is no such job.
SELECT coalesce(state::text, '')::text AS state, coalesce(attempt, 0)::smallint AS attempt, at, coalesce(session_id, 0)::bigint AS session_id
FROM pawl.job_state(@ns::smallint, @job_id::bigint);

-- name: ReadJob :one
SELECT j.id, j.created_at, q.name AS queue, j.priority, j.max_attempts, j.timeout_ms, j.backoff_ms, j.backoff_ms_max, j.kind, j.enqueued_by, j.args, j.headers, j.dedupe_key
FROM pawl.job j JOIN pawl.queue q ON q.ns = j.ns AND q.id = j.queue_id
WHERE j.ns = @ns::smallint AND j.id = @job_id::bigint;

-- name: ListAttempts :many
-- A job's attempts, oldest first. claim_id 0: not claimed. outcome '': not ended.
SELECT a.attempt::smallint AS attempt, coalesce(a.claim_id, 0)::bigint AS claim_id, coalesce(a.session_id, 0)::bigint AS session_id,
  coalesce(a.claimed_at, 'epoch')::timestamptz AS claimed_at, coalesce(a.outcome::text, '')::text AS outcome, coalesce(a.ended_at, 'epoch')::timestamptz AS ended_at,
  a.detail::json AS detail, coalesce(s.name, '')::text AS session_name, coalesce(s.host, '')::text AS host, coalesce(s.pid, 0)::int AS pid
FROM pawl.job_attempts(@ns::smallint, @job_id::bigint) a
LEFT JOIN pawl.session s ON s.ns = @ns::smallint AND s.id = a.session_id;

-- name: ListCancellations :many
SELECT c.attempt, c.at, c.reason, (c.claim_id IS NOT NULL)::boolean AS running FROM pawl.cancellation c
WHERE c.ns = @ns::smallint AND c.job_id = @job_id::bigint
ORDER BY c.attempt LIMIT 1000;

-- name: ListJobs :many
-- Newest first below before_id, each with its derived state.
SELECT j.id, j.created_at, q.name AS queue, j.priority, j.kind, j.max_attempts, coalesce(s.state::text, '')::text AS state,
  coalesce(s.attempt, 0)::smallint AS attempt, coalesce(s.at, j.created_at)::timestamptz AS at
FROM (
  SELECT x.* FROM pawl.job x
  WHERE x.ns = @ns::smallint AND x.id < @before_id::bigint
    AND (@queue_id::int = 0 OR x.queue_id = @queue_id::int) AND (@kind::text = '' OR x.kind = @kind::text)
  ORDER BY x.id DESC LIMIT @limit_rows::int) j
JOIN pawl.queue q ON q.ns = j.ns AND q.id = j.queue_id
CROSS JOIN LATERAL pawl.job_state(j.ns, j.id) s
ORDER BY j.id DESC;

-- name: ReadResult :one
SELECT r.value FROM pawl.result r WHERE r.ns = @ns::smallint AND r.job_id = @job_id::bigint;

-- name: CancelJob :one
SELECT coalesce(was::text, '')::text AS was, coalesce(session_id, 0)::bigint AS session_id FROM pawl.job_cancel(@ns::smallint, @job_id::bigint, @reason::text);

-- name: RetryJob :one
SELECT coalesce(was::text, '')::text AS was FROM pawl.job_retry(@ns::smallint, @job_id::bigint);

-- name: PauseQueue :one
SELECT pawl.queue_pause(@ns::smallint, @queue::text, @paused::boolean)::boolean AS found;

-- name: FindQueue :one
SELECT q.id FROM pawl.queue q WHERE q.ns = @ns::smallint AND q.name = @queue::text;

-- name: ListQueues :many
-- By name, after after_name. available is counted up to available_max of each.
SELECT d.name::text AS name, (d.paused_at IS NOT NULL)::boolean AS paused, d.created_at::timestamptz AS created_at, d.available::bigint AS available, d.scheduled::bigint AS scheduled,
  d.oldest_s::float8 AS oldest_s
FROM pawl.queue_depths(@ns::smallint, @after_name::text, @limit_rows::int, @available_max::int) d;
