-- name: BeginTCC :exec
SELECT pawl.tcc_begin(@ns::smallint, @id::text, @timeout_ms::bigint, sqlc.narg(headers)::json);

-- name: RegisterTCCBranch :one
SELECT n::int AS n, left_ms::float8 AS left_ms FROM pawl.tcc_register(@ns::smallint, @id::text, @kind::text, @queue::text, @priority::smallint, @max_attempts::smallint, sqlc.narg(timeout_ms)::int,
  sqlc.narg(backoff_ms)::int, sqlc.narg(backoff_ms_max)::int, @args::json, @branches_max::int);

-- name: DecideTCC :one
-- queues: that got work.
SELECT pawl.tcc_decide(@ns::smallint, @id::text, @confirm::boolean, @tried::int[], @decided_by::text, @reason::text)::text[] AS queues;

-- name: EndTCCBranch :exec
SELECT pawl.tcc_done(@ns::smallint, @id::text, @n::int);

-- name: ReadTCC :one
-- begun_at NULL: there is none.
SELECT begun_at AS begun_at, deadline_at AS deadline_at, coalesce(begun_by, '')::text AS begun_by, (confirmed IS NOT NULL)::boolean AS decided, coalesce(confirmed, false)::boolean AS confirmed, decided_at AS decided_at,
  coalesce(decided_by, '')::text AS decided_by, coalesce(reason, '')::text AS reason, coalesce(branches, 0)::int AS branches, coalesce(ended, 0)::int AS ended
FROM pawl.tcc_look(@ns::smallint, @id::text);

-- name: ListTCCBranches :many
-- job_id 0: there is none. done: at ended_at.
SELECT n::int AS n, kind::text AS kind, queue::text AS queue, at::timestamptz AS at, args::json AS args, coalesce(job_id, 0)::bigint AS job_id, (ended_at IS NOT NULL)::boolean AS done, coalesce(ended_at, 'epoch')::timestamptz AS ended_at, stuck::boolean AS stuck
FROM pawl.tcc_branches(@ns::smallint, @id::text);

-- name: ListTCC :many
-- Latest deadline first, below (before_at, before_id).
SELECT t.id, t.begun_at, t.deadline_at, t.begun_by FROM pawl.tcc t
WHERE -t.ns = -(@ns::smallint) AND (t.deadline_at, t.id) < (@before_at::timestamptz, @before_id::text) ORDER BY t.deadline_at DESC, t.id DESC LIMIT @limit_rows::int;

-- name: RetryTCC :one
SELECT pawl.tcc_retry(@ns::smallint, @id::text, @actor::text, @reason::text)::text[] AS queues;

-- name: SweepTCC :one
-- did below 0: another node is at it. last NULL: the round is over.
SELECT coalesce(did, -1)::int AS did, queues::text[] AS queues, failed::text[] AS failed, last AS last, coalesce(last_id, '')::text AS last_id
FROM pawl.sweep_tcc(@ns::smallint, @after_at::timestamptz, @after_id::text, @limit_rows::int);

-- name: SweepTCCStuck :one
-- last NULL: the round is over.
SELECT stuck::text[] AS stuck, last AS last, coalesce(last_id, '')::text AS last_id FROM pawl.sweep_tcc_stuck(@ns::smallint, @after_at::timestamptz, @after_id::text, @limit_rows::int);

-- name: SweepTCCOld :one
SELECT removed::int AS removed, last AS last, coalesce(last_id, '')::text AS last_id FROM pawl.sweep_tcc_old(@ns::smallint, @keep::interval, @after_at::timestamptz, @after_id::text, @limit_rows::int);
