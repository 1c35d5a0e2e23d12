-- name: RegisterSaga :one
-- id 0: the name and version are there with another digest, and theirs is its spec.
SELECT coalesce(id, 0)::int AS id, theirs::json AS theirs
FROM pawl.saga_register(@ns::smallint, @name::text, @version::int, @digest::text, @spec::json);

-- name: StartSagas :one
-- deadlines_ms negative: the definition's; 0: none. version 0: the newest. gathered: of several callers. queues: those that got their first jobs.
SELECT duplicates::boolean[] AS duplicates, queues::text[] AS queues
FROM pawl.saga_start(@ns::smallint, @name::text, @version::int, @keys::text[], @inputs::json[], @deadlines_ms::bigint[], @headers::json[], @gathered::boolean);

-- name: ActOnSaga :one
-- was: its state before.
SELECT coalesce(was::text, '')::text AS was, queues::text[] AS queues, ended::text[] AS ended
FROM pawl.saga_act(@ns::smallint, @key::text, CAST(@what::text AS pawl.saga_what), sqlc.narg(step)::text, sqlc.narg(output)::json, @actor::text, @reason::text);

-- name: SendToSaga :one
SELECT queues::text[] AS queues, ended::text[] AS ended FROM pawl.saga_send(@ns::smallint, @key::text, @signal::text, @value::json);

-- name: HoldForSaga :one
-- '': held by this saga now; else the id of the one that has it.
SELECT coalesce(pawl.saga_hold(@ns::smallint, @key::text, @name::text), '')::text AS holder;

-- name: ReadSagaEnds :many
-- How sagas stand, by their ids; those that are not there are left out. outputs and what turned them are NULL and '' before their end.
SELECT e.key::text AS key, e.state::text AS state, coalesce(e.step, '')::text AS step, coalesce(e.what::text, '')::text AS what, e.detail::json AS detail, e.outputs::json AS outputs
FROM pawl.saga_ends(@ns::smallint, @keys::text[]) e;

-- name: ReadSagaOutput :one
SELECT pawl.saga_step_output(@ns::smallint, @saga_id::bigint, @step::text)::json AS output;

-- name: ListSagaUnitOutputs :many
SELECT u.n::int AS n, u.output::json AS output FROM pawl.saga_unit_outputs(@ns::smallint, @saga_id::bigint, @step::text) u;

-- name: ReadSagaForward :one
SELECT pawl.saga_forward(@ns::smallint, @saga_id::bigint)::boolean AS forward;

-- name: ReadSaga :one
-- parent: its id, '' if it has none.
SELECT s.id, s.key, s.started_at, s.started_by, s.deadline_at, s.input, s.headers, d.name, d.version, d.spec, coalesce(p.key, '')::text AS parent
FROM pawl.saga s
JOIN pawl.saga_definition d ON d.ns = s.ns AND d.id = s.definition_id
LEFT JOIN pawl.saga p ON p.ns = s.ns AND p.id = s.parent_id
WHERE -s.ns = -(@ns::smallint) AND s.key = @key::text;

-- name: ListSagaEvents :many
-- The newest_rows, and of the older ones the last of each kind and step. Oldest first.
SELECT e.seq, e.at, e.what::text AS what, e.state::text AS state, e.step, e.lined, e.ok, e.refused, e.unknown, e.undoing, e.undone, e.stuck, coalesce(e.units, 0)::int AS units,
  coalesce(e.units_over, 0)::int AS units_over, e.jobs, e.job_steps, e.detail, coalesce(e.actor, '')::text AS actor
FROM pawl.saga_told(@ns::smallint, @saga_id::bigint, @newest_rows::int) e;

-- name: ListSagaHolds :many
SELECT h.name FROM pawl.saga_hold h WHERE -h.ns = -(@ns::smallint) AND h.saga_id = @saga_id::bigint ORDER BY h.name LIMIT @limit_rows::int;

-- name: ListSagaChildren :many
-- By the number of the step that each is: the newest, where one that was compensated has begun anew.
SELECT DISTINCT ON (s.parent_step) coalesce(s.parent_step, 0)::smallint AS step, s.key
FROM pawl.saga s WHERE s.ns = @ns::smallint AND s.parent_id = @saga_id::bigint ORDER BY s.parent_step, s.id DESC LIMIT @limit_rows::int;

-- name: FindSagaChild :one
-- The id of the saga that a step is, the newest; '': none.
SELECT coalesce((pawl.saga_child(s.ns, s.id, array_position(d.steps, @step::text)::smallint)).key, '')::text AS key
FROM pawl.saga s JOIN pawl.saga_definition d ON d.ns = s.ns AND d.id = s.definition_id WHERE s.ns = @ns::smallint AND s.id = @saga_id::bigint;

-- name: ListSagaTimers :many
-- When steps are over that wait for a time, or for a signal until then.
SELECT t.step, t.at FROM pawl.saga_timer t WHERE t.ns = @ns::smallint AND t.saga_id = @saga_id::bigint AND t.step > 0 ORDER BY t.step LIMIT @limit_rows::int;

-- name: ListAttemptsOfJobs :many
-- Which attempt each job is at, or ended with; without those that are not kept any more.
SELECT j.id, j.max_attempts, coalesce(s.attempt, 0)::smallint AS attempt
FROM pawl.job j CROSS JOIN LATERAL pawl.job_state(j.ns, j.id) s
WHERE j.ns = @ns::smallint AND j.id = ANY (@job_ids::bigint[]) ORDER BY j.id LIMIT @limit_rows::int;

-- name: ListSagas :many
-- Newest first below before_id, each as it stands.
SELECT s.id, s.key, s.started_at, d.name, d.version, n.state::text AS state, n.at
FROM (
  SELECT x.* FROM pawl.saga x
  WHERE x.ns = @ns::smallint AND x.id < @before_id::bigint AND (@name::text = '' OR x.definition_id = ANY (ARRAY(
    SELECT y.id FROM pawl.saga_definition y WHERE y.ns = @ns::smallint AND y.name = @name::text)))
  ORDER BY x.id DESC LIMIT @limit_rows::int) s
JOIN pawl.saga_definition d ON d.ns = s.ns AND d.id = s.definition_id
CROSS JOIN LATERAL pawl.saga_now(s.ns, s.id) n
ORDER BY s.id DESC;

-- name: ListStuckSagas :many
-- As ListSagas, of those that are stuck or once were.
SELECT s.id, s.key, s.started_at, d.name, d.version, n.state::text AS state, n.at
FROM (
  SELECT DISTINCT e.saga_id FROM pawl.saga_event e
  WHERE e.ns = @ns::smallint AND e.state = 'stuck' AND e.saga_id < @before_id::bigint
  ORDER BY e.saga_id DESC LIMIT @limit_rows::int) c
JOIN pawl.saga s ON s.ns = @ns::smallint AND s.id = c.saga_id
JOIN pawl.saga_definition d ON d.ns = s.ns AND d.id = s.definition_id
CROSS JOIN LATERAL pawl.saga_now(s.ns, s.id) n
ORDER BY s.id DESC;

-- name: FindSaga :one
SELECT s.id FROM pawl.saga s WHERE -s.ns = -(@ns::smallint) AND s.key = @key::text;

-- name: ListSagaDefinitions :many
-- open: of the newest scan_rows sagas those that have not ended. older: there are more than scan_rows.
SELECT d.name, d.version, d.digest, d.registered_at, d.spec, coalesce(o.open, 0)::bigint AS open, EXISTS (SELECT FROM pawl.saga y WHERE y.ns = @ns::smallint OFFSET @scan_rows::int)::boolean AS older
FROM pawl.saga_definition d
LEFT JOIN (
  SELECT x.definition_id, count(*) AS open
  FROM (SELECT y.id, y.definition_id FROM pawl.saga y WHERE y.ns = @ns::smallint ORDER BY y.id DESC LIMIT @scan_rows::int) x
  CROSS JOIN LATERAL pawl.saga_now(@ns::smallint, x.id) n
  WHERE NOT pawl.saga_over(n.state)
  GROUP BY x.definition_id) o ON o.definition_id = d.id
WHERE d.ns = @ns::smallint
ORDER BY d.name, d.version DESC LIMIT @limit_rows::int;

-- name: ListServedKinds :many
-- The kinds of jobs of sagas that live processes have handlers for.
SELECT DISTINCT k.kind::text AS kind FROM pawl.session s CROSS JOIN LATERAL unnest(s.kinds) k(kind)
WHERE s.ns = @ns::smallint AND s.ended_at IS NULL AND s.expires_at > clock_timestamp() AND k.kind LIKE 'saga:%'
ORDER BY 1;
