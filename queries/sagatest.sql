-- name: ListSagaQueues :many
-- The queues of steps and compensations of all definitions.
SELECT DISTINCT q.id::int AS id FROM pawl.saga_definition d CROSS JOIN LATERAL unnest(d.queue_ids || d.undo_queue_ids) q(id) WHERE d.ns = @ns::smallint AND q.id IS NOT NULL ORDER BY 1 LIMIT @limit_rows::int;

-- name: ListSagasToWithdraw :many
-- Those whose waiting jobs are to be withdrawn.
SELECT t.saga_id FROM pawl.saga_timer t WHERE t.ns = @ns::smallint AND t.step < 0 ORDER BY t.saga_id LIMIT @limit_rows::int;

-- name: AdvanceSagaTimers :exec
UPDATE pawl.saga_timer AS t SET at = t.at - @by::interval WHERE t.ns = @ns::smallint AND t.step >= 0;

-- name: AdvanceSagaDeadlines :exec
UPDATE pawl.saga AS s SET deadline_at = s.deadline_at - @by::interval WHERE s.ns = @ns::smallint AND s.deadline_at IS NOT NULL;

-- name: AdvanceScheduled :exec
UPDATE pawl.scheduled AS d SET run_at = d.run_at - @by::interval WHERE d.ns = @ns::smallint;
