-- name: LookKey :one
SELECT what::text AS what, coalesce(status, 0)::int AS status, coalesce(headers, 'null')::json AS headers, body::bytea AS body
FROM pawl.idempotency_look(@ns::smallint, @scope::text, @key::text, @fingerprint::bytea);

-- name: ClaimKey :one
SELECT what::text AS what, coalesce(status, 0)::int AS status, coalesce(headers, 'null')::json AS headers, body::bytea AS body, coalesce(token, 0)::bigint AS token,
  coalesce(points, '[]')::json AS points
FROM pawl.idempotency_claim(@ns::smallint, @scope::text, @key::text, @fingerprint::bytea, @holder::text, @lease::interval);

-- name: AdvanceKey :exec
-- A phase whose effect is elsewhere. Its output, '' stands for NULL.
SELECT pawl.idempotency_advance(@ns::smallint, @scope::text, @key::text, @token::bigint, @n::int, @name::text, nullif(@output::text, '')::json, NULL);

-- name: RenewKey :one
-- A lease of 0 gives the claim up.
SELECT pawl.idempotency_renew(@ns::smallint, @scope::text, @key::text, @token::bigint, @lease::interval)::boolean AS held;

-- name: FinishKey :exec
SELECT pawl.idempotency_finish(@ns::smallint, @scope::text, @key::text, @token::bigint, @status::int, nullif(@headers::text, '')::json, @body::bytea, @ttl::interval);

-- name: SeeMessage :one
SELECT pawl.once(@ns::smallint, @consumer::text, @message_id::text, @keep::interval)::boolean AS first;

-- name: SweepIdempotency :one
-- -1: another node is at it.
SELECT coalesce(pawl.sweep_idempotency(@ns::smallint, @keep::interval, @limit_rows::int), -1)::bigint AS removed;

-- name: FindKeys :many
SELECT k.scope::text AS scope, k.status::int AS status, coalesce(k.headers, 'null')::json AS headers, k.body::bytea AS body, k.created_at::timestamptz AS created_at,
  k.expires_at::timestamptz AS expires_at
FROM pawl.idempotency_key k
WHERE k.ns = @ns::smallint AND k.key = @key::text
ORDER BY k.scope
LIMIT @limit_rows::int;

-- name: FindClaims :many
SELECT c.scope::text AS scope, c.token::bigint AS token, c.holder::text AS holder, c.claims::int AS claims, c.created_at::timestamptz AS created_at,
  c.claimed_at::timestamptz AS claimed_at, c.until::timestamptz AS until
FROM pawl.idempotency_claim c
WHERE c.ns = @ns::smallint AND c.key = @key::text
ORDER BY c.scope
LIMIT @limit_rows::int;

-- name: FindPoints :many
SELECT p.scope::text AS scope, p.name::text AS name, p.token::bigint AS token, coalesce(p.output, 'null')::json AS output, p.at::timestamptz AS at
FROM pawl.idempotency_point p
WHERE p.ns = @ns::smallint AND p.key = @key::text
ORDER BY p.scope, p.n
LIMIT @limit_rows::int;

-- name: ListClaims :many
-- Phased requests in progress, the oldest first, and their newest points; point '': they have reached none.
SELECT c.scope::text AS scope, c.key::text AS key, c.token::bigint AS token, c.holder::text AS holder, c.claims::int AS claims, c.created_at::timestamptz AS created_at,
  c.claimed_at::timestamptz AS claimed_at, c.until::timestamptz AS until,
  coalesce(p.name, '')::text AS point, coalesce(p.token, 0)::bigint AS point_token, coalesce(p.output, 'null')::json AS output, coalesce(p.at, c.created_at)::timestamptz AS at
FROM pawl.idempotency_claim c
LEFT JOIN LATERAL (
  SELECT x.name, x.token, x.output, x.at FROM pawl.idempotency_point x WHERE x.ns = c.ns AND x.key = c.key AND x.scope = c.scope ORDER BY x.n DESC LIMIT 1) p ON true
WHERE -c.ns = -(@ns::smallint)
ORDER BY c.created_at
LIMIT @limit_rows::int;
