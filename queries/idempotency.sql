-- name: LookKey :one
SELECT fingerprint::bytea AS fingerprint, status::int AS status, coalesce(headers, 'null')::json AS headers, body::bytea AS body, created_at::timestamptz AS created_at
FROM pawl.idempotency_look(@ns::smallint, @scope::text, @key::text);

-- name: TakeKey :one
SELECT pawl.idempotency_take(@ns::smallint, @scope::text, @key::text, @wait_ms::int)::boolean AS taken;

-- name: StoreKey :exec
SELECT pawl.idempotency_store(@ns::smallint, @scope::text, @key::text, @fingerprint::bytea, @status::int, nullif(@headers::text, '')::json, @body::bytea, @ttl::interval);

-- name: SeeMessage :one
SELECT pawl.once(@ns::smallint, @consumer::text, @message_id::text, @keep::interval)::boolean AS first;

-- name: SweepIdempotency :one
-- -1: another node is at it.
SELECT coalesce(pawl.sweep_idempotency(@ns::smallint, @limit_rows::int), -1)::bigint AS removed;

-- name: FindKeys :many
SELECT k.scope::text AS scope, k.key::text AS key, k.status::int AS status, coalesce(k.headers, 'null')::json AS headers, k.body::bytea AS body,
  k.created_at::timestamptz AS created_at, k.expires_at::timestamptz AS expires_at
FROM pawl.idempotency_key k
WHERE k.ns = @ns::smallint AND k.key = @key::text
ORDER BY k.scope
LIMIT @limit_rows::int;
