-- name: EnsureQueue :one
-- Looked up or created with the line of the default priority.
SELECT c.queue_id::int AS id FROM pawl.line_create(@ns::smallint, @queue_name::text, @priority::smallint) c;

-- name: LookForWork :one
SELECT queue_ids::int[] AS queue_ids, priorities::smallint[] AS priorities FROM pawl.look(@ns::smallint, @queue_ids::int[]);

-- name: ClaimJobs :one
-- A transaction of its own, never batched with another statement. claim_id 0: nothing there.
SELECT coalesce(claim_id, 0)::bigint AS claim_id, coalesce(jobs, 0)::int AS jobs
FROM pawl.claim(@ns::smallint, @session_id::bigint, @nonce::bigint, @queue_id::int, @priority::smallint, @jobs_max::int);

-- name: ReadBodies :many
SELECT ordinal::int AS ordinal, id::bigint AS id, attempt::smallint AS attempt, max_attempts::smallint AS max_attempts, created_at::timestamptz AS created_at,
  coalesce(timeout_ms, 0)::int AS timeout_ms, kind::text AS kind, args::json AS args, headers::json AS headers
FROM pawl.claim_bodies(@ns::smallint, @claim_id::bigint, @nonce::bigint, @ordinal_from::int, @ordinal_to::int);

-- name: FinishJobs :one
SELECT pawl.finish(@ns::smallint, @session_id::bigint, @claim_ids::bigint[], @nonces::bigint[], CAST(@jobs::text[] AS int4multirange[]))::text[] AS lost;

-- name: SettleJobs :one
-- queues got jobs, and the sagas ended have ended.
SELECT counted::text[] AS counted, queues::text[] AS queues, ended::text[] AS ended
FROM pawl.settle(@ns::smallint, @session_id::bigint, @claim_ids::bigint[], @nonces::bigint[], @ordinals::int[], CAST(@outcomes::text[] AS pawl.outcome[]),
  @details::json[], @delays_ms::bigint[], @results::json[]);

-- name: FinishJobTx :one
SELECT queues::text[] AS queues, ended::text[] AS ended
FROM pawl.finish_tx(@ns::smallint, @session_id::bigint, @claim_id::bigint, @nonce::bigint, @ordinal::int, sqlc.narg(result)::json);

-- name: AbandonClaim :one
SELECT pawl.abandon(@ns::smallint, @session_id::bigint, @nonce::bigint, @queue_id::int, @priority::smallint)::int AS jobs;

-- name: ReadSweepAge :one
-- Seconds since a coordinator last swept the sessions; a year if none ever did.
SELECT coalesce(extract(epoch FROM clock_timestamp() - max(w.ran_at)), 31536000)::float8 AS age_s FROM pawl.sweep w WHERE w.ns = @ns::smallint AND w.name = 'sessions';

-- name: SendHint :exec
SELECT pg_notify(@channel::text, @payload::text);
