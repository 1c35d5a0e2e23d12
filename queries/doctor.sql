-- What "pawl doctor" looks at. Nothing here changes anything, and nothing reads more than a page of rows.

-- name: ReadClock :one
SELECT clock_timestamp()::timestamptz AS at;

-- name: ReadServer :one
-- The server, and the settings that Pawl's promises hang on.
SELECT current_setting('server_version')::text AS version, current_setting('server_version_num')::int AS version_num,
  current_setting('fsync')::boolean AS fsync, current_setting('full_page_writes')::boolean AS full_page_writes, current_setting('autovacuum')::boolean AS autovacuum,
  pg_is_in_recovery()::boolean AS standby,
  (pg_has_role('pg_read_all_stats', 'USAGE'))::boolean AS sees_all;

-- name: ReadBackendPID :one
SELECT pg_backend_pid()::int AS pid;

-- name: ReadLines :one
-- away: lines that count in another cluster's transaction ids. The outbox counts as one.
SELECT count(*)::bigint AS lines, count(*) FILTER (WHERE l.away)::bigint AS away
FROM (
  SELECT x.cluster <> pawl.cluster() AS away FROM pawl.line x WHERE x.ns = @ns::smallint
  UNION ALL
  SELECT pawl.outbox_away(o.ns) FROM pawl.outbox o WHERE o.ns = @ns::smallint) l;

-- name: ReadSessionTrouble :one
-- Of sessions that are not rescued: those alive, those past their time that no sweep has ended, and those ended that hold on to jobs. Ages in seconds.
SELECT count(*) FILTER (WHERE s.ended_at IS NULL AND s.expires_at > clock_timestamp())::bigint AS alive,
  count(*) FILTER (WHERE s.ended_at IS NULL AND s.expires_at <= clock_timestamp())::bigint AS expired,
  coalesce(max(extract(epoch FROM clock_timestamp() - s.expires_at)) FILTER (WHERE s.ended_at IS NULL), 0)::float8 AS expired_s,
  count(*) FILTER (WHERE s.ended_at IS NOT NULL)::bigint AS unrescued,
  coalesce(max(extract(epoch FROM clock_timestamp() - s.ended_at)), 0)::float8 AS unrescued_s
FROM pawl.session s
WHERE s.ns = @ns::smallint AND s.rescued_at IS NULL;

-- name: ListOldTransactions :many
-- The longest open transactions of the cluster. Statements are left out: they may hold what nobody should read.
SELECT a.pid::int AS pid, coalesce(a.datname, '')::text AS database, coalesce(a.usename, '')::text AS role, coalesce(a.application_name, '')::text AS application,
  coalesce(a.state, '')::text AS state, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age_s
FROM pg_catalog.pg_stat_activity a
WHERE a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
ORDER BY a.xact_start
LIMIT 1;

-- name: ListIdleTransactions :many
-- Those that have done nothing for the longest time in an open transaction.
SELECT a.pid::int AS pid, coalesce(a.datname, '')::text AS database, coalesce(a.usename, '')::text AS role, coalesce(a.application_name, '')::text AS application,
  extract(epoch FROM clock_timestamp() - a.state_change)::float8 AS idle_s
FROM pg_catalog.pg_stat_activity a
WHERE a.state IN ('idle in transaction', 'idle in transaction (aborted)') AND a.pid <> pg_backend_pid()
ORDER BY a.state_change
LIMIT 1;

-- name: ReadPreparedTransactions :one
SELECT count(*)::bigint AS prepared, coalesce(max(extract(epoch FROM clock_timestamp() - x.prepared)), 0)::float8 AS oldest_s FROM pg_catalog.pg_prepared_xacts x;

-- name: ListSlots :many
-- Replication slots, those that keep the most WAL first.
SELECT s.slot_name::text AS name, s.active::boolean AS active, coalesce(s.wal_status, '')::text AS wal_status,
  coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, s.restart_lsn), 0)::float8 AS retained_bytes
FROM pg_catalog.pg_replication_slots s
ORDER BY 4 DESC, s.slot_name
LIMIT 100;

-- name: ReadNotifyQueue :one
-- How full the cluster's queue of notifications is, 0 to 1.
SELECT pg_notification_queue_usage()::float8 AS used;

-- name: ListPartitionRoom :many
-- The last range of each partitioned table, where the table stands, and where and how long ago it stood when the range was made.
SELECT DISTINCT ON (p.parent) p.parent, p.range_from::float8 AS range_from, p.range_to::float8 AS range_to, pawl.partition_position(p.parent)::float8 AS position,
  p.position_at::float8 AS position_at, extract(epoch FROM clock_timestamp() - p.created_at)::float8 AS age_s
FROM pawl.partition p
ORDER BY p.parent, p.range_from DESC
LIMIT 100;

-- name: ListDeadRows :many
-- Pawl's tables with the most dead rows. vacuumed_s -1: never vacuumed.
SELECT t.relname::text AS name, t.n_live_tup::bigint AS live, t.n_dead_tup::bigint AS dead,
  coalesce(extract(epoch FROM clock_timestamp() - greatest(t.last_vacuum, t.last_autovacuum)), -1)::float8 AS vacuumed_s
FROM pg_catalog.pg_stat_all_tables t
WHERE t.schemaname = 'pawl'
ORDER BY t.n_dead_tup DESC, t.relname
LIMIT 5;

-- name: ReadXIDAge :one
-- How many transactions ago the oldest row of this database that is not frozen was written.
SELECT age(d.datfrozenxid)::bigint AS age FROM pg_catalog.pg_database d WHERE d.datname = current_database();
