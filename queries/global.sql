-- name: ReadGlobalHome :one
SELECT h.home::text AS home, h.at::timestamptz AS at, (h.lsn - '0/0')::bigint AS lsn FROM pawl.global_here() h;

-- name: DecideGlobal :many
-- The usual case of pawl.global_decide, in one statement: gives those that are decided now, to commit. participants: names with commas between.
INSERT INTO pawl.global_decision (ns, id, decided_at, committed, branch, participants, decided_by)
SELECT @ns::smallint, u.id, clock_timestamp(), true, u.branch, string_to_array(u.participants, ','), @decided_by::text
FROM ROWS FROM (unnest(CAST(@ids::text[] AS uuid[])), unnest(@deadlines::timestamptz[]), unnest(@branches::text[]), unnest(@participants::text[])) u(id, deadline, branch, participants)
WHERE u.deadline > clock_timestamp() ORDER BY u.id
ON CONFLICT DO NOTHING
RETURNING id::text AS id, coalesce(CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'local', true) END, '')::text AS durable;

-- name: SettleGlobalDecision :one
-- Whoever was first has decided. committed: what.
SELECT pawl.global_decide(@ns::smallint, CAST(@ids::text[] AS uuid[]), @deadlines::timestamptz[], @branches::text[], @participants::text[], @decided_by::text)::boolean[] AS committed;

-- name: AbortGlobal :exec
SELECT pawl.global_abort(@ns::smallint, CAST(@ids::text[] AS uuid[]), @decided_by::text, @reason::text);

-- name: PresumeGlobal :one
-- Not known: nothing is decided, and nothing may be presumed.
SELECT (c IS NOT NULL)::boolean AS known, coalesce(c, false)::boolean AS committed FROM pawl.global_presume(@ns::smallint, CAST(@id::text AS uuid), @home::text, @decided_by::text, @reason::text) c;

-- name: EndGlobal :exec
SELECT pawl.global_ended(@ns::smallint, CAST(@ids::text[] AS uuid[]));

-- name: ReadGlobalDecisions :many
SELECT d.id::text AS id, d.decided_at, d.committed, d.participants, d.decided_by, coalesce(d.reason, '')::text AS reason,
  EXISTS (SELECT FROM pawl.global_end e WHERE e.ns = d.ns AND e.id = d.id)::boolean AS ended
FROM pawl.global_decision d
WHERE d.ns = @ns::smallint AND d.id = ANY (CAST(@ids::text[] AS uuid[])) LIMIT cardinality(@ids::text[]);

-- name: ReadGlobalOpen :many
-- Those of ids that are committed, and not noted as committed everywhere.
SELECT d.id::text AS id FROM pawl.global_decision d
WHERE d.ns = @ns::smallint AND d.id = ANY (CAST(@ids::text[] AS uuid[])) AND d.committed AND NOT EXISTS (SELECT FROM pawl.global_end e WHERE e.ns = d.ns AND e.id = d.id) LIMIT cardinality(@ids::text[]);

-- name: ReadGlobalUnfinished :one
-- last NULL: the round is over. open_at NULL: all that were looked at are done.
SELECT ids::text[] AS ids, branches::text[] AS branches, participants::text[] AS participants, last AS last, coalesce(last_id::text, '')::text AS last_id, open_at AS open_at
FROM pawl.global_unfinished(@ns::smallint, @after_at::timestamptz, CAST(@after_id::text AS uuid), @grace::interval, @limit_rows::int);

-- name: SweepGlobalOld :one
SELECT removed::int AS removed, last AS last, coalesce(last_id::text, '')::text AS last_id
FROM pawl.sweep_global_old(@ns::smallint, @keep::interval, @after_at::timestamptz, CAST(@after_id::text AS uuid), @limit_rows::int);

-- name: DoubtGlobal :exec
INSERT INTO pawl.global_doubt AS d (ns, id, participant, branch, what, first_at, last_at, detail)
VALUES (@ns::smallint, CAST(@id::text AS uuid), @participant::text, @branch::text, CAST(@what::text AS pawl.doubt), clock_timestamp(), clock_timestamp(), @detail::text)
ON CONFLICT (ns, id, participant) DO UPDATE SET what = excluded.what, last_at = excluded.last_at, detail = excluded.detail WHERE d.resolved_at IS NULL;

-- name: ClearGlobalDoubts :exec
-- Those of a participant's branches that are settled by now; what is mixed stays.
DELETE FROM pawl.global_doubt d WHERE d.ns = @ns::smallint AND d.participant = @participant::text AND d.what <> 'mixed' AND d.resolved_at IS NULL AND d.id <> ALL (CAST(@still::text[] AS uuid[]));

-- name: ListGlobalDoubts :many
-- Oldest first. all: those that a person has dealt with too.
SELECT d.id::text AS id, d.participant, d.branch, d.what::text AS what, d.first_at, d.last_at, d.detail, d.resolved_at, coalesce(d.resolved_by, '')::text AS resolved_by, coalesce(d.reason, '')::text AS reason
FROM pawl.global_doubt d WHERE d.ns = @ns::smallint AND (@every::boolean OR d.resolved_at IS NULL) AND (@id::text = '' OR d.id::text = @id::text) ORDER BY d.first_at, d.id, d.participant LIMIT @limit_rows::int;

-- name: ResolveGlobalDoubt :execrows
UPDATE pawl.global_doubt d SET resolved_at = clock_timestamp(), resolved_by = @actor::text, reason = @reason::text
WHERE d.ns = @ns::smallint AND d.id = CAST(@id::text AS uuid) AND d.resolved_at IS NULL AND d.what = 'mixed';

-- name: SeeGlobalParticipant :exec
INSERT INTO pawl.global_participant AS p (ns, name, kind, address, seen_at, tried_at, prepared, error)
VALUES (@ns::smallint, @name::text, @kind::text, @address::text, CASE WHEN sqlc.narg(fault)::text IS NULL THEN clock_timestamp() END, clock_timestamp(), @prepared::int, sqlc.narg(fault)::text)
ON CONFLICT (ns, name) DO UPDATE SET kind = excluded.kind, address = excluded.address, seen_at = coalesce(excluded.seen_at, p.seen_at), tried_at = excluded.tried_at, prepared = excluded.prepared, error = excluded.error;

-- name: ListGlobalParticipants :many
SELECT p.name, p.kind, p.address, p.seen_at, p.tried_at, p.prepared, coalesce(p.error, '')::text AS error FROM pawl.global_participant p WHERE p.ns = @ns::smallint ORDER BY p.name LIMIT @limit_rows::int;

-- name: ListGlobalDecisions :many
-- Newest first below before_id; unfinished: only those committed that are not noted as committed everywhere.
SELECT d.id::text AS id, d.decided_at, d.committed, d.participants, d.decided_by, coalesce(d.reason, '')::text AS reason, e.ended::boolean AS ended
FROM pawl.global_decision d CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM pawl.global_end x WHERE x.ns = d.ns AND x.id = d.id) AS ended) e
WHERE d.ns = @ns::smallint AND d.id < CAST(@before_id::text AS uuid) AND (NOT @unfinished::boolean OR d.committed AND NOT e.ended)
ORDER BY d.id DESC LIMIT @limit_rows::int;

-- name: RaiseGlobalIncarnation :one
-- Nothing is presumed any more of transactions that began before.
UPDATE pawl.global_home SET incarnation = incarnation + 1 RETURNING incarnation;

-- name: RaiseGlobalIncarnationOf :execrows
-- Unless the home is another already.
UPDATE pawl.global_home SET incarnation = incarnation + 1 WHERE to_hex(incarnation) = split_part(@home::text, '.', 3);

-- name: DecideGlobalByHand :exec
-- An operator's: first come, first served.
INSERT INTO pawl.global_decision (ns, id, decided_at, committed, branch, participants, decided_by, reason)
VALUES (@ns::smallint, CAST(@id::text AS uuid), clock_timestamp(), @committed::boolean, @branch::text, @participants::text[], @actor::text, @reason::text) ON CONFLICT DO NOTHING;
