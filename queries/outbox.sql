-- name: PublishEvent :exec
-- Empty strings stand for NULL.
SELECT pawl.publish_event(@ns::smallint, @topic::text, nullif(@key::text, ''), @type::text, @payload::bytea, nullif(@content_type::text, ''), nullif(@headers::text, '')::json,
  nullif(@event_id::text, '')::uuid);

-- name: PublishEvents :exec
-- Empty strings stand for NULL in keys and content types, event_ids and headers.
SELECT pawl.publish_many(@ns::smallint, @topics::text[], array_replace(@keys::text[], '', NULL), @types::text[], @payloads::bytea[],
  array_replace(@content_types::text[], '', NULL), array_replace(@headers::text[], '', NULL)::json[], array_replace(@event_ids::text[], '', NULL)::uuid[]);

-- name: OrderKeys :exec
SELECT pawl.ordered(@ns::smallint, @keys::text[]);

-- name: CreateSubscription :one
SELECT id::int AS id, created::boolean AS created
FROM pawl.subscription_create(@ns::smallint, @name::text, nullif(@topics::text[], '{}'), @shards::smallint, @sink::text, @beginning::boolean);

-- name: ReadPosition :one
-- done -1: no batch is open, and to_* mean nothing. incarnation 0: none has begun, see Incarnate.
SELECT b.id::bigint AS id, b.epoch::smallint AS epoch, b.seen_xid::xid8 AS seen_xid, b.late::text[] AS late, b.floor::bigint AS floor, b.mark::bigint AS mark, coalesce(b.to_epoch, 0)::smallint AS to_epoch,
  coalesce(b.to_xid, '0')::xid8 AS to_xid, coalesce(b.to_late, '{}')::text[] AS to_late, coalesce(b.to_floor, 0)::bigint AS to_floor, coalesce(b.to_mark, 0)::bigint AS to_mark, coalesce(b.ceiling, 0)::bigint AS ceiling,
  coalesce(b.done, -1)::bigint AS done, coalesce((SELECT i.nonce FROM pawl.incarnation i), 0)::bigint AS incarnation,
  (extract(epoch FROM clock_timestamp() - b.at) * 1000)::bigint AS age_ms
FROM pawl.subscription_position(@ns::smallint, @subscription_id::int, @shard::smallint) b;

-- name: Incarnate :exec
SELECT pawl.incarnate();

-- name: OpenBatch :one
SELECT to_epoch::smallint AS to_epoch, to_xid::xid8 AS to_xid, to_late::text[] AS to_late, to_mark::bigint AS to_mark, ceiling::bigint AS ceiling,
  coalesce(topics, '{}')::text[] AS topics, paused::boolean AS paused, incarnation::bigint AS incarnation
FROM pawl.outbox_open(@ns::smallint, @subscription_id::int, @epoch::smallint, @seen_xid::xid8);

-- name: ReadPage :many
SELECT id::bigint AS id, created_at::timestamptz AS created_at, event_id::text AS event_id, topic::text AS topic, coalesce(key, '')::text AS key, type::text AS type,
  coalesce(content_type, '')::text AS content_type, coalesce(headers, 'null')::json AS headers, payload::bytea AS payload
FROM pawl.outbox_page(@ns::smallint, nullif(@topics::text[], '{}'), @shards::int, @shard::int, @epoch::smallint, @seen_xid::xid8, (@late::text[])::xid8[], @floor::bigint,
  @to_xid::xid8, (@to_late::text[])::xid8[], @ceiling::bigint, @done::bigint, @limit_events::int);

-- name: SettleBatch :one
-- done -1: the batch is closed, to_* mean nothing. retry_ms -1: none.
SELECT pawl.outbox_settle(@ns::smallint, @subscription_id::int, @shard::smallint, @from_id::bigint, @epoch::smallint, @seen_xid::xid8, (@late::text[])::xid8[], @floor::bigint, @mark::bigint,
  CASE WHEN @done::bigint >= 0 THEN @to_epoch::smallint END, CASE WHEN @done::bigint >= 0 THEN @to_xid::xid8 END,
  CASE WHEN @done::bigint >= 0 THEN (@to_late::text[])::xid8[] END, CASE WHEN @done::bigint >= 0 THEN @to_floor::bigint END, CASE WHEN @done::bigint >= 0 THEN @to_mark::bigint END,
  CASE WHEN @done::bigint >= 0 THEN @ceiling::bigint END, CASE WHEN @done::bigint >= 0 THEN @done::bigint END,
  @events::bigint, @ids::bigint[], @attempts::int[], array_replace(@retry_ms::bigint[], -1, NULL), @dead::boolean[], @errors::text[], @skip::boolean, @durable::boolean, @incarnation::bigint)::bigint AS id;

-- name: ListParkedKeys :many
SELECT DISTINCT coalesce(e.key, '')::text AS key FROM pawl.parked_event e
WHERE e.ns = @ns::smallint AND e.subscription_id = @subscription_id::int AND e.shard = @shard::smallint AND e.key IS NOT NULL AND NOT e.skipped
ORDER BY 1
LIMIT @limit_keys::int;

-- name: CountParked :one
SELECT count(*)::bigint AS parked FROM (
  SELECT FROM pawl.parked_event e WHERE e.ns = @ns::smallint AND e.subscription_id = @subscription_id::int AND e.shard = @shard::smallint LIMIT @limit_events::int) e;

-- name: ListDueParked :many
-- The first of each key that is due, longest due first; key '': it goes by itself. None while the subscription is paused.
SELECT coalesce(key, '')::text AS key, id::bigint AS id FROM pawl.parked_due(@ns::smallint, @subscription_id::int, @shard::smallint, @limit_keys::int);

-- name: NextParked :one
-- How long until the next parked event is due, 0 if one is, also while the subscription is paused; -1: none is.
SELECT coalesce((SELECT greatest(extract(epoch FROM n.at - clock_timestamp()) * 1000, 0)
  FROM (SELECT pawl.parked_next(@ns::smallint, @subscription_id::int, @shard::smallint) AS at OFFSET 0) n WHERE n.at IS NOT NULL), -1)::bigint AS in_ms;

-- name: ReadParked :many
-- key '': the event by itself.
SELECT e.id::bigint AS id, e.created_at::timestamptz AS created_at, e.event_id::text AS event_id, e.topic::text AS topic, coalesce(e.key, '')::text AS key, e.type::text AS type,
  coalesce(e.content_type, '')::text AS content_type, coalesce(e.headers, 'null')::json AS headers, e.payload::bytea AS payload, e.attempt::int AS attempt
FROM pawl.parked_page(@ns::smallint, @subscription_id::int, @shard::smallint, nullif(@key::text, ''), @id::bigint, @limit_events::int, @limit_bytes::bigint) e;

-- name: SettleParked :one
SELECT pawl.parked_settle(@ns::smallint, @subscription_id::int, @shard::smallint, nullif(@key::text, ''), @delivered::bigint[], nullif(@failed::bigint, 0), @attempt::int,
  nullif(@retry_ms::bigint, -1), @dead::boolean, @skip::boolean, @error::text, @incarnation::bigint)::bigint AS left_over;

-- name: PauseSubscription :one
-- why '': resume; accept_gap: also if events were dropped before it had them.
SELECT pawl.subscription_pause(@ns::smallint, @name::text, nullif(@why::text, ''), @accept_gap::boolean)::boolean AS found;

-- name: RewindSubscription :one
SELECT coalesce(pawl.subscription_rewind(@ns::smallint, @name::text, @id::bigint), 0)::int AS shards;

-- name: RemoveSubscription :one
SELECT pawl.subscription_remove(@ns::smallint, @name::text)::boolean AS found;

-- name: ReplaySubscription :one
SELECT pawl.subscription_replay(@ns::smallint, @name::text, sqlc.narg(key)::text, @drop_dead::boolean)::bigint AS events;

-- name: SweepOutbox :one
-- -1: another node is at it.
SELECT coalesce(pawl.sweep_outbox(@ns::smallint, @keep::interval, @limit_rows::int), -1)::bigint AS removed;

-- name: BoundStatements :exec
SELECT set_config('statement_timeout', (@ms::int)::text, true);

-- name: LockSubscription :exec
SELECT pg_advisory_xact_lock(pawl.subscription_key(@subscription_id::int, @shard::smallint));

-- name: ReadSubscription :one
SELECT s.id::int AS id, s.shards::smallint AS shards, (s.paused_at IS NOT NULL)::boolean AS paused FROM pawl.subscription s WHERE s.ns = @ns::smallint AND s.name = @name::text;

-- name: ListSubscriptions :many
-- lag: events published beyond where the shard that is farthest behind stands, of all topics; lag_s: how long ago the first of them was published, 0 for none.
SELECT s.name::text AS name, coalesce(s.topics, '{}')::text[] AS topics, s.shards::smallint AS shards, s.sink::text AS sink, s.created_at::timestamptz AS created_at,
  s.paused_at, coalesce(s.paused_why, '')::text AS paused_why, s.missed::bigint AS missed, coalesce(s.missed_from, 0)::bigint AS missed_from,
  coalesce(s.missed_to, 0)::bigint AS missed_to, b.events::bigint AS events, b.moved_at::timestamptz AS moved_at,
  greatest(pawl.outbox_last() - b.place, 0)::bigint AS lag,
  coalesce(extract(epoch FROM clock_timestamp() - (SELECT e.created_at FROM pawl.outbox_event e WHERE e.ns = s.ns AND e.id > b.place ORDER BY e.id LIMIT 1)), 0)::float8 AS lag_s,
  (SELECT count(*) FROM pawl.parked_event p WHERE p.ns = s.ns AND p.subscription_id = s.id AND p.dead_at IS NULL)::bigint AS parked,
  (SELECT count(*) FROM pawl.parked_event p WHERE p.ns = s.ns AND p.subscription_id = s.id AND p.dead_at IS NOT NULL)::bigint AS dead
FROM pawl.subscription s
CROSS JOIN LATERAL (
  SELECT min(greatest(x.floor, coalesce(x.done, 0))) AS place, sum(x.events) AS events, max(x.at) AS moved_at
  FROM generate_series(0, s.shards - 1) i CROSS JOIN LATERAL pawl.subscription_position(s.ns, s.id, i::smallint) x) b
WHERE s.ns = @ns::smallint
ORDER BY s.name
LIMIT @limit_rows::int;

-- name: ListParked :many
-- In the order of ids, those of all shards. dead_at: when it was given up.
SELECT e.id::bigint AS id, e.event_id::text AS event_id, e.topic::text AS topic, coalesce(e.key, '')::text AS key, e.type::text AS type, e.parked_at::timestamptz AS parked_at,
  e.attempt::int AS attempt, e.retry_at, e.dead_at, coalesce(e.error, '')::text AS error
FROM pawl.parked_event e JOIN pawl.subscription s ON s.ns = e.ns AND s.id = e.subscription_id
WHERE e.ns = @ns::smallint AND s.name = @name::text
ORDER BY e.id
LIMIT @limit_rows::int;

-- name: ListEvents :many
-- Newest first.
SELECT e.id::bigint AS id, e.created_at::timestamptz AS created_at, e.event_id::text AS event_id, e.topic::text AS topic, coalesce(e.key, '')::text AS key, e.type::text AS type,
  coalesce(e.content_type, '')::text AS content_type, coalesce(e.headers, 'null')::json AS headers, e.payload::bytea AS payload
FROM pawl.outbox_event e
WHERE e.ns = @ns::smallint AND (@topic::text = '' OR e.topic = @topic::text) AND (@key::text = '' OR e.key = @key::text)
  AND (@event_id::text = '' OR e.event_id = nullif(@event_id::text, '')::uuid)
ORDER BY e.id DESC
LIMIT @limit_rows::int;

-- name: FirstEventSince :one
-- The oldest event kept that was published at that time or later; 0: none.
SELECT coalesce(min(e.id), 0)::bigint AS id FROM pawl.outbox_event e
WHERE e.ns = @ns::smallint AND e.id >= (SELECT pawl.outbox_oldest()) AND e.created_at >= @since::timestamptz;

-- name: ReadKept :one
SELECT oldest_id::bigint AS oldest_id, oldest_at, ranges::bigint AS ranges, keep::interval AS keep, hold::interval AS hold, why::text AS why, coalesce(who, '')::text AS who, since, leaving_at
FROM pawl.outbox_kept(@ns::smallint);
