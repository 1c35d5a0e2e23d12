-- name: StartSession :one
SELECT pawl.session_start(@ns::smallint, @name::text, @host::text, @pid::int, @version::text, @ttl::interval, @kinds::text[])::bigint AS id;

-- name: RenewSession :one
-- The heartbeat. One row always.
SELECT alive::boolean AS alive, stray_claims::bigint[] AS stray_claims, cancel_claims::bigint[] AS cancel_claims, cancel_ordinals::int[] AS cancel_ordinals
FROM pawl.session_renew(@ns::smallint, @session_id::bigint, @held::bigint[]);

-- name: EndSession :one
SELECT pawl.session_end(@ns::smallint, @session_id::bigint, @why::text)::boolean AS ended;

-- name: ListSessions :many
-- Newest first; those that have ended only where asked for.
SELECT s.id, s.name, s.host, s.pid, s.version, s.ttl, s.started_at, s.expires_at, s.ended_at, s.ended_why, s.rescued_at,
  (s.ended_at IS NULL AND s.expires_at > clock_timestamp())::boolean AS alive
FROM pawl.session s
WHERE s.ns = @ns::smallint AND (@ended::boolean OR s.ended_at IS NULL)
ORDER BY s.id DESC
LIMIT @limit_rows::int;

-- name: FindNamespace :one
SELECT n.ns FROM pawl.namespace n WHERE n.name = @name::text;

-- name: GiveBackClaim :one
-- Only if the claim is the session's still: after a crash its id may be another's.
SELECT coalesce(sum(pawl.claim_give_back(c.ns, ARRAY[c.id], 'returned', NULL)), 0)::int AS jobs
FROM pawl.claim c WHERE c.ns = @ns::smallint AND c.id = @claim_id::bigint AND c.session_id = @session_id::bigint;
