-- name: AskLock :one
-- number: 0 for none; info: '' for none.
SELECT status::text AS status, coalesce(number, 0)::bigint AS number, coalesce(info, '')::text AS info
FROM pawl.lock_ask(@ns::smallint, @session_id::bigint, @op::text, @name::text, @owner::text, CAST(@mode::text AS pawl.lock_mode), @permits::int,
  @waits::boolean, @holds::boolean, nullif(@hold_ms::int, 0), @delay_ms::int, @number_in::bigint);

-- name: LockBatch :one
-- numbers: 0 for none; infos: NULL, or one for each.
SELECT statuses::text[] AS statuses, array_replace(numbers, NULL, 0)::bigint[] AS numbers, array_replace(infos, NULL, '')::text[] AS infos
FROM pawl.lock_batch(@ns::smallint, @session_id::bigint, @ops::text[], @names::text[], @owners::text[], CAST(@modes::text[] AS pawl.lock_mode[]), @permits::int[],
  @waits::boolean[], @holds::boolean[], array_replace(@hold_ms::int[], 0, NULL), @delay_ms::int[], @numbers_in::bigint[]);

-- name: AssertLock :exec
SELECT pawl.lock_assert(@ns::smallint, @session_id::bigint, @name::text, @token::bigint);

-- name: GuardLock :exec
SELECT pawl.lock_guard_check(@ns::smallint, @resource::text, @token::bigint);

-- name: ResyncLocks :one
-- NULL: that was all.
SELECT last FROM pawl.lock_resync(@ns::smallint, @session_id::bigint, @tokens::bigint[], @waiters::bigint[], @after_key::bigint, @names_max::int);

-- name: ForceLock :one
SELECT pawl.lock_force(@ns::smallint, @name::text, @reason::text)::int AS holders;

-- name: SweepLocks :one
-- last NULL: the round is done; removed -1: another node is at it.
SELECT coalesce(removed, -1)::bigint AS removed, last FROM pawl.sweep_locks(@ns::smallint, @after_key::bigint, @limit_locks::int, @keep::interval);

-- name: LockInTx :exec
-- The keys of short critical sections, ascending and each once.
SELECT pg_advisory_xact_lock(k) FROM (SELECT DISTINCT hashtextextended(n, (7040::bigint << 16) + @ns::smallint) AS k FROM unnest(@names::text[]) n ORDER BY k) o;

-- name: TryLockInTx :one
SELECT coalesce(bool_and(pg_try_advisory_xact_lock(k)), true)::boolean AS taken
FROM (SELECT DISTINCT hashtextextended(n, (7040::bigint << 16) + @ns::smallint) AS k FROM unnest(@names::text[]) n ORDER BY k) o;

-- name: ListLocks :many
-- Locks that are held, delayed or waited for, by name behind after_name; a row a holder, none of it where nobody holds the lock. only_name: that one ('': all).
SELECT s.name, s.at, s.mode::text AS mode, s.free_at, s.waiters::bigint AS waiters, coalesce(h.token, 0)::bigint AS token, coalesce(h.owner, '')::text AS owner,
  coalesce(h.since, s.at)::timestamptz AS since, coalesce(h.until, '9999-12-31')::timestamptz AS until, coalesce(h.session_id, 0)::bigint AS session_id, coalesce(z.name, '')::text AS session_name,
  coalesce(z.host, '')::text AS host, coalesce(z.pid, 0)::int AS pid, coalesce(z.ended_at IS NOT NULL, false)::boolean AS ended
FROM (
  SELECT n.name, x.at, x.mode, x.free_at, x.holders, (SELECT count(*) FROM pawl.lock_waiter w WHERE w.key = x.key AND w.id > x.served) AS waiters
  FROM (SELECT DISTINCT y.name FROM pawl.lock_state y WHERE y.ns = @ns::smallint AND y.name > @after_name::text AND (@only_name::text = '' OR y.name = @only_name::text)) n
  CROSS JOIN LATERAL pawl.lock_now(@ns::smallint, n.name) x
  ORDER BY n.name) s
LEFT JOIN LATERAL unnest(s.holders) h ON true
LEFT JOIN pawl.session z ON z.ns = @ns::smallint AND z.id = h.session_id
WHERE h.token IS NOT NULL OR s.waiters > 0 OR s.free_at IS NOT NULL
ORDER BY s.name, h.token
LIMIT @limit_rows::int;

-- name: ListLockWaiters :many
SELECT w.id, w.owner, w.mode::text AS mode, w.at, w.session_id, z.name AS session_name, z.host, z.pid
FROM pawl.lock_waiter w JOIN pawl.session z ON z.ns = w.ns AND z.id = w.session_id
WHERE w.key = pawl.lock_key(@ns::smallint, @name::text) AND w.id > coalesce((SELECT s.served FROM pawl.lock_now(@ns::smallint, @name::text) s), 0)
ORDER BY w.id LIMIT @limit_rows::int;

-- name: ListOwnerWaits :many
-- What an owner waits for.
SELECT w.name, w.at FROM pawl.lock_waiter w
WHERE w.owner = @owner::text AND w.ns = @ns::smallint AND w.id > coalesce((SELECT s.served FROM pawl.lock_now(@ns::smallint, w.name) s), 0)
ORDER BY w.id LIMIT @limit_rows::int;

-- name: ListLockHistory :many
-- What is kept of it, newest first.
SELECT s.id, s.at, s.what, s.token, coalesce(s.granted_to, 0)::bigint AS session_id, coalesce(s.reason, '')::text AS reason, cardinality(s.holders)::int AS holders
FROM pawl.lock_state s WHERE s.key = pawl.lock_key(@ns::smallint, @name::text)
ORDER BY s.id DESC LIMIT @limit_rows::int;

-- name: ReadLockHolder :one
-- Who holds an exclusive lock alive; 0 and '' if nobody does. One row always.
SELECT coalesce(max(h.token), 0)::bigint AS token, coalesce(max(h.session_id), 0)::bigint AS session_id, coalesce(max(h.process), '')::text AS process
FROM pawl.lock_alive(@ns::smallint, @name::text) h;
