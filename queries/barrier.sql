-- name: SweepBarrier :one
-- -1: another node is at it.
SELECT coalesce(pawl.sweep_barrier(@ns::smallint, @keep::interval, @limit_rows::int), -1)::bigint AS removed;
