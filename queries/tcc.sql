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
-- job_id 0: there is none. done: at ended_at. attempt, of the job: 0 if it is not there any more. error: of its newest attempt that failed. served: a live process confirms or cancels the kind, as is decided.
SELECT b.n::int AS n, b.kind::text AS kind, b.queue::text AS queue, b.at::timestamptz AS at, b.args::json AS args, coalesce(b.job_id, 0)::bigint AS job_id, (b.ended_at IS NOT NULL)::boolean AS done,
  coalesce(b.ended_at, 'epoch')::timestamptz AS ended_at, b.stuck::boolean AS stuck, k.max_attempts, coalesce(j.attempt, 0)::smallint AS attempt, coalesce(e.error, '')::text AS error,
  EXISTS (SELECT FROM pawl.session s WHERE s.ns = @ns::smallint AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
    AND 'tcc:' || b.kind || CASE WHEN d.confirmed THEN '/confirm' ELSE '/cancel' END = ANY (s.kinds))::boolean AS served
FROM pawl.tcc_branches(@ns::smallint, @id::text) b
JOIN pawl.tcc_branch k ON k.ns = @ns::smallint AND k.id = @id::text AND k.n = b.n
LEFT JOIN pawl.tcc_decision d ON d.ns = @ns::smallint AND d.id = @id::text
LEFT JOIN LATERAL pawl.job_state(@ns::smallint, b.job_id) j ON true
LEFT JOIN LATERAL (
  SELECT a.detail->>'error' AS error FROM pawl.job_attempts(@ns::smallint, b.job_id) a
  WHERE a.detail->>'error' IS NOT NULL ORDER BY coalesce(a.ended_at, 'epoch') DESC LIMIT 1) e ON true
ORDER BY b.n;

-- name: ListTCCEvents :many
-- What happened to a transaction, the newest first. n 0: to all of it.
SELECT e.what::text AS what, e.n::int AS n, e.at::timestamptz AS at, coalesce(e.actor, '')::text AS actor, coalesce(e.reason, '')::text AS reason, coalesce(e.job_id, 0)::bigint AS job_id
FROM (
  SELECT 1 AS step, 'begun' AS what, 0 AS n, t.begun_at AS at, t.begun_by AS actor, NULL::text AS reason, NULL::bigint AS job_id FROM pawl.tcc t WHERE t.ns = @ns::smallint AND t.id = @id::text
  UNION ALL
  SELECT 2, 'registered', b.n, b.at, NULL, NULL, NULL FROM pawl.tcc_branch b WHERE b.ns = @ns::smallint AND b.id = @id::text
  UNION ALL
  SELECT 3, CASE WHEN d.confirmed THEN 'confirming' ELSE 'cancelling' END, 0, d.decided_at, d.decided_by, d.reason, NULL FROM pawl.tcc_decision d WHERE d.ns = @ns::smallint AND d.id = @id::text
  UNION ALL
  SELECT 4, 'stuck', s.n, s.at, NULL, NULL, s.job_id FROM pawl.tcc_stuck s WHERE s.ns = @ns::smallint AND s.id = @id::text
  UNION ALL
  SELECT 5, 'retried', j.n, j.at, j.actor, j.reason, j.job_id FROM pawl.tcc_job j WHERE j.ns = @ns::smallint AND j.id = @id::text AND j.actor IS NOT NULL
  UNION ALL
  SELECT 6, CASE WHEN d.confirmed THEN 'confirmed' ELSE 'cancelled' END, e.n, e.at, NULL, NULL, NULL
  FROM pawl.tcc_end e JOIN pawl.tcc_decision d ON d.ns = e.ns AND d.id = e.id WHERE e.ns = @ns::smallint AND e.id = @id::text) e
ORDER BY e.at DESC, e.step DESC, e.n DESC LIMIT @newest_rows::int;

-- name: ListTCC :many
-- Latest deadline first, below (before_at, before_id), each as it stands. stuck: how many of its branches are.
SELECT t.id, t.begun_at, t.deadline_at, t.begun_by, (d.confirmed IS NOT NULL)::boolean AS decided, coalesce(d.confirmed, false)::boolean AS confirmed, d.decided_at AS decided_at,
  coalesce(d.decided_by, '')::text AS decided_by, coalesce(d.reason, '')::text AS reason, n.branches::int AS branches, n.ended::int AS ended,
  CASE WHEN d.confirmed IS NOT NULL AND n.ended < n.branches THEN (SELECT count(*) FROM pawl.tcc_branches(@ns::smallint, t.id) b WHERE b.stuck) ELSE 0 END::int AS stuck
FROM (
  SELECT x.* FROM pawl.tcc x
  WHERE -x.ns = -(@ns::smallint) AND (x.deadline_at, x.id) < (@before_at::timestamptz, @before_id::text) ORDER BY x.deadline_at DESC, x.id DESC LIMIT @limit_rows::int) t
LEFT JOIN pawl.tcc_decision d ON d.ns = @ns::smallint AND d.id = t.id
CROSS JOIN LATERAL (
  SELECT (SELECT count(*) FROM pawl.tcc_branch b WHERE b.ns = @ns::smallint AND b.id = t.id) AS branches, (SELECT count(*) FROM pawl.tcc_end e WHERE e.ns = @ns::smallint AND e.id = t.id) AS ended) n
ORDER BY t.deadline_at DESC, t.id DESC;

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
