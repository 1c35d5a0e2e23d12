-- +goose Up

-- What the events of a namespace have in common. epoch and cluster: in whose transaction ids they count. keep: how long events stay at least; hold: how long a subscription
-- that has not passed them may keep them; both from when their range was full and nothing came to it any more.
CREATE TABLE pawl.outbox (
  ns                smallint PRIMARY KEY REFERENCES pawl.namespace,
  epoch             smallint NOT NULL DEFAULT 0,
  cluster           bigint   NOT NULL,
  payload_bytes_max int      NOT NULL DEFAULT 1048576,
  keep              interval NOT NULL DEFAULT '7 days',
  hold              interval NOT NULL DEFAULT '30 days',
  CONSTRAINT outbox_payload_bytes_max CHECK (payload_bytes_max BETWEEN 1 AND 67108864),
  CONSTRAINT outbox_keep CHECK (keep >= '0' AND hold >= keep)
);

-- An event is inserted once and never touched again; it leaves with its whole range. Ids are drawn one at a time (CACHE 1): writers of one key that hold a lock on it
-- before they publish draw them in the order of their commits. key_hash: of the key, of the id where there is none.
CREATE SEQUENCE pawl.outbox_event_id;
CREATE TABLE pawl.outbox_event (
  id           bigint      NOT NULL,
  xid          xid8        NOT NULL,
  created_at   timestamptz NOT NULL,
  event_id     uuid        NOT NULL,
  key_hash     int         NOT NULL,
  ns           smallint    NOT NULL,
  epoch        smallint    NOT NULL,
  topic        text        NOT NULL,
  key          text,
  type         text        NOT NULL,
  content_type text,
  headers      json,
  payload      bytea       NOT NULL,
  PRIMARY KEY (ns, id)
) PARTITION BY RANGE (id);
CREATE INDEX outbox_event_xid ON pawl.outbox_event (ns, xid, id);

-- topics NULL: all. sink: what its relays say they send to. paused_why: by an operator, by a policy, since the receiver is gone, or since events left before it had them:
-- missed of them, the first and the last of which are named, until an operator accepts that.
CREATE TABLE pawl.subscription (
  ns             smallint    NOT NULL REFERENCES pawl.namespace,
  id             int         GENERATED ALWAYS AS IDENTITY,
  name           text        NOT NULL,
  topics         text[],
  shards         smallint    NOT NULL,
  sink           text        NOT NULL DEFAULT '',
  created_at     timestamptz NOT NULL,
  paused_at      timestamptz,
  paused_why     text,
  missed         bigint      NOT NULL DEFAULT 0,
  missed_from    bigint,
  missed_to      bigint,
  PRIMARY KEY (ns, id),
  UNIQUE (ns, name),
  CONSTRAINT subscription_name_length CHECK (length(name) BETWEEN 1 AND 128),
  CONSTRAINT subscription_shards CHECK (shards BETWEEN 1 AND 64),
  CONSTRAINT subscription_missed CHECK (CASE WHEN missed = 0 THEN num_nonnulls(missed_from, missed_to) = 0 ELSE missed > 0 AND num_nulls(missed_from, missed_to, paused_at) = 0 END)
);

-- Where a shard of a subscription stands: its newest row. Seen are the events of earlier epochs and, of this one, those whose transaction is below seen_xid and not in late;
-- every id that a transaction from seen_xid on draws is above floor, or is not asked for. A snapshot does not list those that run from its xmax on, which is only one beyond the newest that is
-- over: so no number read beside a snapshot is such a floor. mark is: read before this row's transaction took its id, which is below the xmax of every snapshot that sees
-- the row, it is below all that transactions from there on draw. While a batch is open (to_*), it holds what is visible in (to_xid, to_late) and was not seen, in the
-- order of ids, none above ceiling; those up to done are settled. Who appends names the row that he goes on from, which must be the newest: that is the fence.
CREATE TABLE pawl.subscription_batch (
  ns              smallint    NOT NULL,
  subscription_id int         NOT NULL,
  shard           smallint    NOT NULL,
  id              bigint      GENERATED ALWAYS AS IDENTITY,
  at              timestamptz NOT NULL,
  epoch           smallint    NOT NULL,
  seen_xid        xid8        NOT NULL,
  late            xid8[]      NOT NULL,
  floor           bigint      NOT NULL,
  mark            bigint      NOT NULL,
  to_epoch        smallint,
  to_xid          xid8,
  to_late         xid8[],
  to_floor        bigint,
  to_mark         bigint,
  ceiling         bigint,
  done            bigint,
  events          bigint      NOT NULL,
  PRIMARY KEY (ns, subscription_id, shard, id),
  CONSTRAINT subscription_batch_open CHECK (num_nulls(to_epoch, to_xid, to_late, to_floor, to_mark, ceiling, done) IN (0, 7))
);

-- Events that a subscription has put aside: one that failed, and those of its key after it, in the order of ids. A copy, so that the outbox need not keep them.
-- retry_at: of the first of a key, when it is tried again; dead_at: when it was given up; skipped: and its key
-- went on without it.
CREATE TABLE pawl.parked_event (
  ns              smallint    NOT NULL,
  subscription_id int         NOT NULL,
  shard           smallint    NOT NULL,
  id              bigint      NOT NULL,
  key             text,
  parked_at       timestamptz NOT NULL,
  attempt         int         NOT NULL,
  retry_at        timestamptz,
  dead_at         timestamptz,
  skipped         boolean     NOT NULL,
  error           text,
  created_at      timestamptz NOT NULL,
  event_id        uuid        NOT NULL,
  topic           text        NOT NULL,
  type            text        NOT NULL,
  content_type    text,
  headers         json,
  payload         bytea       NOT NULL,
  PRIMARY KEY (ns, subscription_id, shard, id)
);
CREATE INDEX parked_event_due ON pawl.parked_event ((-ns), subscription_id, shard, retry_at) WHERE dead_at IS NULL AND retry_at IS NOT NULL;
CREATE INDEX parked_event_key ON pawl.parked_event (ns, subscription_id, shard, key, id) WHERE NOT skipped;

-- A number that is drawn anew after each crash, fail-over and restore: Postgres empties an unlogged table then. Transaction ids of which no WAL had been flushed are given
-- out again at the same moments, so a snapshot of before, kept in a process, means nothing after.
CREATE UNLOGGED TABLE pawl.incarnation (
  one   boolean PRIMARY KEY DEFAULT true CHECK (one),
  nonce bigint  NOT NULL CHECK (nonce > 0)
);

-- The server's incarnation, which begins if it has none.
-- +goose StatementBegin
CREATE FUNCTION pawl.incarnate() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_nonce bigint;
BEGIN
  SELECT i.nonce INTO v_nonce FROM pawl.incarnation i;
  IF NOT FOUND THEN
    INSERT INTO pawl.incarnation (nonce) VALUES (1 + (random() * 9e15)::bigint) ON CONFLICT DO NOTHING;
    SELECT i.nonce INTO v_nonce FROM pawl.incarnation i;
  END IF;
  RETURN v_nonce;
END $$;
-- +goose StatementEnd

-- What a relay holds while it reads or moves its position, and an operator while he changes it.
CREATE FUNCTION pawl.subscription_key(p_subscription int, p_shard smallint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended(($1::bigint << 16) + $2, 7012)';
CREATE FUNCTION pawl.event_key(p_ns smallint, p_key text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashtextextended($2, (7013::bigint << 16) + $1)';

-- The ids of the transactions that were running in a snapshot.
-- +goose StatementBegin
CREATE FUNCTION pawl.snapshot_late(p_snap pg_snapshot) RETURNS xid8[]
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$ BEGIN RETURN ARRAY(SELECT x FROM pg_snapshot_xip(p_snap) x); END $$;
-- +goose StatementEnd

-- The last id that was drawn.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_last() RETURNS bigint LANGUAGE sql VOLATILE BEGIN ATOMIC
  SELECT CASE WHEN q.is_called THEN q.last_value ELSE q.last_value - 1 END FROM pawl.outbox_event_id q;
END;
-- +goose StatementEnd

-- A new UUID of version 7: a version 4 whose first 48 bits are the time in ms (RFC 9562, 5.7).
-- +goose StatementBegin
CREATE FUNCTION pawl.uuid7() RETURNS uuid LANGUAGE sql VOLATILE BEGIN ATOMIC
  SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send(floor(date_part('epoch', clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
    52, 1), 53, 1), 'hex')::uuid;
END;
-- +goose StatementEnd

-- The outbox of a namespace, made on first use.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_create(p_ns smallint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM pawl.namespace n WHERE n.ns = p_ns) THEN
    RAISE EXCEPTION 'pawl: namespace % does not exist', p_ns USING ERRCODE = '22023', HINT = 'SELECT pawl.namespace_create(name) makes one.';
  END IF;
  INSERT INTO pawl.outbox (ns, cluster) VALUES (p_ns, pawl.cluster()) ON CONFLICT DO NOTHING;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION pawl.raise_event(p_bytes_max int, p_topics text[], p_keys text[], p_types text[], p_payloads bytea[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  e record;
BEGIN
  IF cardinality(p_topics) NOT BETWEEN 1 AND 1000 THEN
    RAISE EXCEPTION 'pawl: a batch has 1 to 1000 events, not %', cardinality(p_topics) USING ERRCODE = '22023';
  END IF;
  FOR e IN SELECT * FROM ROWS FROM (unnest(p_topics), unnest(p_keys), unnest(p_types), unnest(p_payloads)) x(topic, key, type, payload) LOOP
    IF e.topic IS NULL OR octet_length(e.topic) NOT BETWEEN 1 AND 255 THEN
      RAISE EXCEPTION 'pawl: a topic has 1 to 255 bytes, not %', coalesce(octet_length(e.topic), 0) USING ERRCODE = '22023';
    ELSIF e.type IS NULL OR octet_length(e.type) NOT BETWEEN 1 AND 255 THEN
      RAISE EXCEPTION 'pawl: an event''s type has 1 to 255 bytes, not %', coalesce(octet_length(e.type), 0) USING ERRCODE = '22023';
    ELSIF octet_length(e.key) > 1024 THEN
      RAISE EXCEPTION 'pawl: a key of % bytes exceeds the 1024 allowed', octet_length(e.key) USING ERRCODE = '22023';
    ELSIF e.payload IS NULL THEN
      RAISE EXCEPTION 'pawl: an event''s payload may be empty, not NULL' USING ERRCODE = '22023';
    ELSIF octet_length(e.payload) > p_bytes_max THEN
      RAISE EXCEPTION 'pawl: a payload of % bytes exceeds the % allowed', octet_length(e.payload), p_bytes_max
        USING ERRCODE = 'PW002', HINT = 'Store the payload elsewhere and publish its key, or raise payload_bytes_max in pawl.outbox.';
    END IF;
  END LOOP;
  RAISE EXCEPTION 'pawl: the lists of a batch of events differ in length' USING ERRCODE = '22023';
END $$;
-- +goose StatementEnd

-- Publishes up to 1,000 events in the caller's transaction, in the order given: they exist when it commits, and leave nothing if it does not. All lists are as long as
-- p_topics; p_keys, p_content_types, p_headers and p_event_ids may hold NULL. Raises PW002 for a payload beyond payload_bytes_max, PW003 when the database was moved to another cluster, 22023 on a bad argument.
-- +goose StatementBegin
CREATE FUNCTION pawl.publish_many(p_ns smallint, p_topics text[], p_keys text[], p_types text[], p_payloads bytea[], p_content_types text[], p_headers json[],
  p_event_ids uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_n     int := cardinality(p_topics);
  v_xid   xid8 := pg_current_xact_id();  -- before an id is drawn: see subscription_batch.mark
  v_epoch smallint;
  v_home  boolean;
  v_max   int;
  v_good  boolean;
BEGIN
  SELECT o.epoch, pawl.is_home(o.cluster), o.payload_bytes_max INTO v_epoch, v_home, v_max FROM pawl.outbox o WHERE o.ns = p_ns;
  IF NOT FOUND THEN
    PERFORM pawl.outbox_create(p_ns);
    PERFORM pawl.publish_many(p_ns, p_topics, p_keys, p_types, p_payloads, p_content_types, p_headers, p_event_ids);
    RETURN;
  END IF;
  IF NOT v_home THEN
    PERFORM pawl.raise_outbox_moved();
  END IF;
  SELECT bool_and((octet_length(e.topic) BETWEEN 1 AND 255 AND octet_length(e.type) BETWEEN 1 AND 255 AND octet_length(e.payload) <= v_max) IS TRUE
      AND (octet_length(e.key) > 1024) IS NOT TRUE)
    INTO v_good FROM ROWS FROM (unnest(p_topics), unnest(p_keys), unnest(p_types), unnest(p_payloads)) e(topic, key, type, payload);
  IF v_good IS NOT TRUE OR v_n NOT BETWEEN 1 AND 1000 OR cardinality(p_keys) <> v_n OR cardinality(p_types) <> v_n OR cardinality(p_payloads) <> v_n
      OR cardinality(p_content_types) <> v_n OR cardinality(p_headers) <> v_n OR cardinality(p_event_ids) <> v_n THEN
    PERFORM pawl.raise_event(v_max, p_topics, p_keys, p_types, p_payloads);
  END IF;
  -- The ids in a sub-select of their own, so that they ascend with the order given.
  INSERT INTO pawl.outbox_event (id, xid, created_at, event_id, key_hash, ns, epoch, topic, key, type, content_type, headers, payload)
    SELECT e.id, v_xid, now(), coalesce(e.event_id, pawl.uuid7()), coalesce(hashtext(e.key), hashint8(e.id)), p_ns, v_epoch, e.topic, e.key, e.type,
      e.content_type, e.headers, e.payload
    FROM (
      SELECT nextval('pawl.outbox_event_id') AS id, x.*
      FROM ROWS FROM (unnest(p_topics), unnest(p_keys), unnest(p_types), unnest(p_payloads), unnest(p_content_types), unnest(p_headers), unnest(p_event_ids))
        WITH ORDINALITY x(topic, key, type, payload, content_type, headers, event_id, i)
      ORDER BY x.i OFFSET 0) e;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION pawl.raise_outbox_moved() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'pawl: the outbox was last used in another database cluster'
    USING ERRCODE = 'PW003', HINT = 'After a restore, a copy or pg_upgrade run "pawl doctor --rebase" once, then try again.';
END $$;
-- +goose StatementEnd

-- Publishes one event in the caller's transaction, as publish_many does, in less time, and gives its UUID.
-- +goose StatementBegin
CREATE FUNCTION pawl.publish_event(p_ns smallint, p_topic text, p_key text, p_type text, p_payload bytea, p_content_type text, p_headers json, p_event_id uuid) RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_xid   xid8 := pg_current_xact_id();  -- before the id is drawn: see subscription_batch.mark
  v_event uuid := coalesce(p_event_id, pawl.uuid7());
  v_epoch smallint;
  v_home  boolean;
  v_max   int;
  v_id    bigint;
BEGIN
  SELECT o.epoch, pawl.is_home(o.cluster), o.payload_bytes_max, nextval('pawl.outbox_event_id') INTO v_epoch, v_home, v_max, v_id
    FROM pawl.outbox o WHERE o.ns = p_ns;
  IF NOT FOUND THEN
    PERFORM pawl.outbox_create(p_ns);
    RETURN pawl.publish_event(p_ns, p_topic, p_key, p_type, p_payload, p_content_type, p_headers, v_event);
  END IF;
  IF NOT v_home THEN
    PERFORM pawl.raise_outbox_moved();
  END IF;
  IF (octet_length(p_topic) BETWEEN 1 AND 255 AND octet_length(p_type) BETWEEN 1 AND 255 AND octet_length(p_payload) <= v_max) IS NOT TRUE
      OR octet_length(p_key) > 1024 THEN
    PERFORM pawl.raise_event(v_max, ARRAY[p_topic], ARRAY[p_key], ARRAY[p_type], ARRAY[p_payload]);
  END IF;
  INSERT INTO pawl.outbox_event (id, xid, created_at, event_id, key_hash, ns, epoch, topic, key, type, content_type, headers, payload)
    VALUES (v_id, v_xid, now(), v_event, coalesce(hashtext(p_key), hashint8(v_id)), p_ns, v_epoch, p_topic, p_key, p_type, p_content_type, p_headers, p_payload);
  RETURN v_event;
END $$;
-- +goose StatementEnd

-- Publishes one event in the caller's transaction and gives its UUID, for SQL and triggers. Raises what publish_many does.
-- +goose StatementBegin
CREATE FUNCTION pawl.publish(p_ns smallint, p_topic text, p_key text, p_type text, p_payload json, p_headers json DEFAULT NULL, p_event_id uuid DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN pawl.publish_event(p_ns, p_topic, p_key, p_type, convert_to(p_payload::text, 'UTF8'), NULL, p_headers, p_event_id);
END $$;
-- +goose StatementEnd

-- Keeps others that call it for the same keys from publishing until this transaction ends, so that the order of publishing is that of the commits. Sorted: no two deadlock.
-- +goose StatementBegin
CREATE FUNCTION pawl.ordered(p_ns smallint, p_keys text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_key bigint;
BEGIN
  FOR v_key IN SELECT DISTINCT pawl.event_key(p_ns, k) FROM unnest(p_keys) k ORDER BY 1 LOOP
    PERFORM pg_advisory_xact_lock(v_key);
  END LOOP;
END $$;
-- +goose StatementEnd

-- A subscription of that name, made if there is none. p_beginning: it begins with the oldest event kept, else with what commits from now on. One that exists keeps its
-- place; its topics and sink become those given. Raises 22023 for other shards than it has.
-- +goose StatementBegin
CREATE FUNCTION pawl.subscription_create(p_ns smallint, p_name text, p_topics text[], p_shards smallint, p_sink text, p_beginning boolean, OUT id int, OUT created boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s      pawl.subscription;
  v_snap pg_snapshot;
  v_mark bigint;
  v_own  xid8;
  v_next bigint;
  v_late xid8[];
BEGIN
  PERFORM pawl.require_read_committed();
  PERFORM pawl.outbox_create(p_ns);
  created := false;
  IF p_name IS NULL OR length(p_name) NOT BETWEEN 1 AND 128 THEN
    RAISE EXCEPTION 'pawl: a subscription''s name has 1 to 128 characters, not %', coalesce(length(p_name), 0) USING ERRCODE = '22023';
  END IF;
  IF p_shards IS NULL OR p_shards NOT BETWEEN 1 AND 64 THEN
    RAISE EXCEPTION 'pawl: % shards is outside 1 to 64', p_shards USING ERRCODE = '22023';
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended(p_name, (7014::bigint << 16) + p_ns));
  SELECT * INTO s FROM pawl.subscription x WHERE x.ns = p_ns AND x.name = p_name;
  IF FOUND THEN
    IF s.shards <> p_shards THEN
      RAISE EXCEPTION 'pawl: subscription % has % shards, not %', p_name, s.shards, p_shards USING ERRCODE = '22023',
        HINT = 'The number of shards is fixed when a subscription is made. Make another one under a new name.';
    END IF;
    IF s.topics IS DISTINCT FROM p_topics OR s.sink <> p_sink THEN
      UPDATE pawl.subscription x SET topics = p_topics, sink = p_sink WHERE x.ns = p_ns AND x.id = s.id;
    END IF;
    id := s.id;
    RETURN;
  END IF;
  created := true;
  PERFORM pg_advisory_xact_lock_shared(pawl.retention_key());  -- what it is owed stays until its position is committed
  -- Whoever takes a transaction id after this one's draws ids above the mark, and is new; those that run count as late, and this one, which no snapshot of its own lists. If it
  -- has its id already, that says nothing of who took one since.
  v_mark := CASE WHEN pg_current_xact_id_if_assigned() IS NULL THEN pawl.outbox_last() ELSE 0 END;
  v_own := pg_current_xact_id();
  v_snap := pg_current_snapshot();
  v_next := greatest(v_own::text::bigint + 1, pg_snapshot_xmax(v_snap)::text::bigint);
  v_late := pawl.snapshot_late(v_snap) || v_own || ARRAY(SELECT x::text::xid8 FROM generate_series(pg_snapshot_xmax(v_snap)::text::bigint, v_next - 1) x);
  INSERT INTO pawl.subscription (ns, name, topics, shards, sink, created_at) VALUES (p_ns, p_name, p_topics, p_shards, p_sink, now())
    RETURNING subscription.id INTO subscription_create.id;
  INSERT INTO pawl.subscription_batch (ns, subscription_id, shard, at, epoch, seen_xid, late, floor, mark, events)
    SELECT p_ns, subscription_create.id, i, clock_timestamp(), CASE WHEN p_beginning THEN 0 ELSE o.epoch END, CASE WHEN p_beginning THEN '0' ELSE v_next::text::xid8 END,
      CASE WHEN p_beginning THEN '{}' ELSE v_late END, CASE WHEN p_beginning THEN pawl.outbox_oldest() - 1 ELSE v_mark END, CASE WHEN p_beginning THEN 0 ELSE v_mark END, 0
    FROM pawl.outbox o CROSS JOIN generate_series(0, p_shards - 1) i WHERE o.ns = p_ns;
END $$;
-- +goose StatementEnd

-- Where a shard stands. Not to be put in place of its call: where the table was empty when its statistics were made, the planner would read all of it.
-- +goose StatementBegin
CREATE FUNCTION pawl.subscription_position(p_ns smallint, p_subscription int, p_shard smallint) RETURNS SETOF pawl.subscription_batch
LANGUAGE plpgsql STABLE ROWS 1 SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
BEGIN
  RETURN QUERY
    SELECT b.* FROM pawl.subscription_batch b WHERE b.ns = p_ns AND b.subscription_id = p_subscription AND b.shard = p_shard ORDER BY b.id DESC LIMIT 1;
END $$;
-- +goose StatementEnd

-- Opens a batch after a position in p_epoch: all that is committed by now. The mark is read before the snapshot and the ceiling after it, each in a statement of its own.
-- A batch of an earlier epoch holds all that is left of it; the next one begins at the front of the next epoch. Must come before its transaction has an id, which no
-- snapshot of its own lists: PW005. incarnation: of the server, for outbox_settle. Raises PW003 when the database was moved to another cluster.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_open(p_ns smallint, p_subscription int, p_epoch smallint, p_seen_xid xid8,
  OUT to_epoch smallint, OUT to_xid xid8, OUT to_late xid8[], OUT to_mark bigint, OUT ceiling bigint, OUT topics text[], OUT paused boolean, OUT incarnation bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_home boolean;
  v_snap pg_snapshot;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' OR pg_current_xact_id_if_assigned() IS NOT NULL THEN
    RAISE EXCEPTION 'pawl: a batch is opened in a READ COMMITTED transaction that has not written' USING ERRCODE = 'PW005';
  END IF;
  SELECT o.epoch, pawl.is_home(o.cluster), s.topics, s.paused_at IS NOT NULL INTO to_epoch, v_home, topics, paused
    FROM pawl.outbox o JOIN pawl.subscription s ON s.ns = o.ns AND s.id = p_subscription WHERE o.ns = p_ns;
  IF NOT v_home THEN
    PERFORM pawl.raise_outbox_moved();
  END IF;
  IF to_epoch > p_epoch THEN
    to_epoch := p_epoch + 1;
    to_xid := '18446744073709551615';
    to_late := '{}';
    to_mark := 0;
  ELSE
    to_mark := pawl.outbox_last();
    v_snap := pg_current_snapshot();
    to_xid := pg_snapshot_xmax(v_snap);
    to_late := pawl.snapshot_late(v_snap);
    IF p_seen_xid > to_xid THEN -- in the future: events would count as seen
      PERFORM pawl.raise_outbox_moved();
    END IF;
  END IF;
  ceiling := pawl.outbox_last();
  incarnation := pawl.incarnate(); -- not before the snapshot: it may take a transaction id
END $$;
-- +goose StatementEnd

-- A page of a batch: up to p_limit events of one shard after p_done, in the order of ids. Two scans: those of transactions that committed late, by their ids, and those of
-- newer ones, which all stand above the floor, no further than the first has come. Each is written so that its index alone fits, whatever the statistics say: the row
-- comparison leaves only that by transaction, IS TRUE that by id. A page would read and sort all that is left.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_page(p_ns smallint, p_topics text[], p_shards int, p_shard int, p_epoch smallint, p_seen_xid xid8, p_late xid8[], p_floor bigint,
  p_to_xid xid8, p_to_late xid8[], p_ceiling bigint, p_done bigint, p_limit int)
RETURNS TABLE (id bigint, created_at timestamptz, event_id uuid, topic text, key text, type text, content_type text, headers json, payload bytea)
LANGUAGE plpgsql STABLE ROWS 1000 SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
BEGIN
  RETURN QUERY
    WITH late AS MATERIALIZED (
      SELECT x.* FROM unnest(p_late) l CROSS JOIN LATERAL (
        SELECT y.* FROM pawl.outbox_event y
        WHERE y.ns = p_ns AND (y.xid, y.id) > (l, p_done) AND (y.xid, y.id) <= (l, p_ceiling) AND y.epoch = p_epoch
          AND (p_topics IS NULL OR y.topic = ANY (p_topics)) AND (y.key_hash & 2147483647) % p_shards = p_shard
        ORDER BY y.xid, y.id LIMIT p_limit) x
      WHERE l < p_to_xid AND NOT l = ANY (p_to_late)
      ORDER BY x.id LIMIT p_limit)
    SELECT e.id, e.created_at, e.event_id, e.topic, e.key, e.type, e.content_type, e.headers, e.payload
    FROM (
      SELECT x.* FROM late x
      UNION ALL
      (SELECT y.* FROM pawl.outbox_event y
        WHERE y.ns = p_ns AND y.id > greatest(p_done, p_floor) AND y.id <= (SELECT CASE count(*) WHEN p_limit THEN max(x.id) ELSE p_ceiling END FROM late x) AND y.epoch = p_epoch
          AND (y.xid >= p_seen_xid AND y.xid < p_to_xid) IS TRUE AND NOT y.xid = ANY (p_late) AND NOT y.xid = ANY (p_to_late)
          AND (p_topics IS NULL OR y.topic = ANY (p_topics)) AND (y.key_hash & 2147483647) % p_shards = p_shard
        ORDER BY y.id LIMIT p_limit)
      ORDER BY id LIMIT p_limit) e;
END $$;
-- +goose StatementEnd

-- Moves a shard on from the position p_from to the one given, and puts events of the batch aside: those that failed (p_retry_ms: when to try again, NULL with p_dead: never)
-- and those of their keys after them (both NULL). Gives the new position's id. Unless p_durable it commits asynchronously: what a crash undoes is delivered again. Raises PW001 when p_from is
-- not the newest any more: another relay or an operator has moved it; and when the server is not in the incarnation in which the batch was opened.
-- Without JIT, here and below: a table that has no index counts as so dear without sequential scans that Postgres would compile the statement, in 20 ms, at each call.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_settle(p_ns smallint, p_subscription int, p_shard smallint, p_from bigint,
  p_epoch smallint, p_seen_xid xid8, p_late xid8[], p_floor bigint, p_mark bigint, p_to_epoch smallint, p_to_xid xid8, p_to_late xid8[], p_to_floor bigint,
  p_to_mark bigint, p_ceiling bigint, p_done bigint,
  p_events bigint, p_ids bigint[], p_attempts int[], p_retry_ms bigint[], p_dead boolean[], p_errors text[],
  p_skip boolean, p_durable boolean, p_incarnation bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off SET lock_timeout = '10s' AS $$
DECLARE
  v_now    timestamptz;
  v_id     bigint;
  v_events bigint;
BEGIN
  IF NOT p_durable THEN
    PERFORM set_config('synchronous_commit', 'off', true);
  END IF;
  PERFORM pg_advisory_xact_lock(pawl.subscription_key(p_subscription, p_shard));
  SELECT b.id, b.events INTO v_id, v_events FROM pawl.subscription_position(p_ns, p_subscription, p_shard) b;
  IF v_id IS DISTINCT FROM p_from OR p_incarnation IS DISTINCT FROM (SELECT i.nonce FROM pawl.incarnation i) THEN
    RAISE EXCEPTION 'pawl: the position of subscription % shard % was moved by somebody else', p_subscription, p_shard USING ERRCODE = 'PW001';
  END IF;
  v_now := clock_timestamp();
  IF cardinality(p_ids) > 0 THEN
    INSERT INTO pawl.parked_event (ns, subscription_id, shard, id, key, parked_at, attempt, retry_at, dead_at, skipped, error, created_at, event_id, topic, type,
        content_type, headers, payload)
      SELECT p_ns, p_subscription, p_shard, p.id, e.key, v_now, p.attempt, v_now + p.retry_ms * interval '1 ms',
        CASE WHEN p.dead THEN v_now END, p.dead AND p_skip, nullif(p.error, ''), e.created_at, e.event_id, e.topic, e.type, e.content_type, e.headers, e.payload
      FROM ROWS FROM (unnest(p_ids), unnest(p_attempts), unnest(p_retry_ms), unnest(p_dead), unnest(p_errors)) p(id, attempt, retry_ms, dead, error)
      CROSS JOIN LATERAL (SELECT y.* FROM pawl.outbox_event y WHERE y.ns = p_ns AND y.id = p.id OFFSET 0) e
      ON CONFLICT (ns, subscription_id, shard, id) DO NOTHING;
    -- A key may have been drained since its event was read, and after a rewind earlier ones come.
    PERFORM pawl.parked_lead(p_ns, p_subscription, p_shard, ARRAY(
      SELECT DISTINCT e.key FROM unnest(p_ids) i
      CROSS JOIN LATERAL (SELECT y.key, y.skipped FROM pawl.parked_event y WHERE y.ns = p_ns AND y.subscription_id = p_subscription AND y.shard = p_shard AND y.id = i OFFSET 0) e
      WHERE e.key IS NOT NULL AND NOT e.skipped));
  END IF;
  INSERT INTO pawl.subscription_batch (ns, subscription_id, shard, at, epoch, seen_xid, late, floor, mark, to_epoch, to_xid, to_late, to_floor, to_mark,
      ceiling, done, events)
    VALUES (p_ns, p_subscription, p_shard, v_now, p_epoch, p_seen_xid, p_late, p_floor, p_mark, p_to_epoch, p_to_xid, p_to_late, p_to_floor, p_to_mark, p_ceiling, p_done,
      v_events + p_events)
    RETURNING id INTO v_id;
  RETURN v_id;
END $$;
-- +goose StatementEnd

-- Lets the first parked event of each key be tried now, unless it waits for its time or is given up, and none behind it. Key by key: for all at once Postgres may read what is
-- parked behind others.
-- +goose StatementBegin
CREATE FUNCTION pawl.parked_lead(p_ns smallint, p_subscription int, p_shard smallint, p_keys text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
  v_key   text;
  v_first bigint;
BEGIN
  FOREACH v_key IN ARRAY p_keys LOOP
    SELECT x.id INTO v_first FROM pawl.parked_event x
      WHERE x.ns = p_ns AND x.subscription_id = p_subscription AND x.shard = p_shard AND x.key = v_key AND NOT x.skipped ORDER BY x.id LIMIT 1;
    UPDATE pawl.parked_event e SET retry_at = CASE WHEN e.id = v_first THEN clock_timestamp() END
      WHERE e.ns = p_ns AND e.subscription_id = p_subscription AND e.shard = p_shard AND e.key = v_key AND NOT e.skipped AND e.dead_at IS NULL
        AND (e.id = v_first) = (e.retry_at IS NULL);
  END LOOP;
END $$;
-- +goose StatementEnd

-- The first parked event of each key that is due, the longest due first; key NULL: it goes by itself. None while the subscription is paused.
-- +goose StatementBegin
CREATE FUNCTION pawl.parked_due(p_ns smallint, p_subscription int, p_shard smallint, p_limit int) RETURNS TABLE (key text, id bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
  v_now timestamptz := clock_timestamp();
BEGIN
  RETURN QUERY
    SELECT CASE WHEN NOT e.skipped THEN e.key END, e.id FROM pawl.parked_event e
    WHERE -e.ns = -p_ns AND e.subscription_id = p_subscription AND e.shard = p_shard AND e.dead_at IS NULL AND e.retry_at <= v_now
      AND EXISTS (SELECT FROM pawl.subscription s WHERE s.ns = p_ns AND s.id = p_subscription AND s.paused_at IS NULL)
    ORDER BY e.retry_at, e.id LIMIT p_limit;
END $$;
-- +goose StatementEnd

-- When the next parked event is due, also while the subscription is paused; NULL: none is.
-- +goose StatementBegin
CREATE FUNCTION pawl.parked_next(p_ns smallint, p_subscription int, p_shard smallint) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
BEGIN
  RETURN (SELECT e.retry_at FROM pawl.parked_event e
    WHERE -e.ns = -p_ns AND e.subscription_id = p_subscription AND e.shard = p_shard AND e.dead_at IS NULL AND e.retry_at IS NOT NULL ORDER BY e.retry_at LIMIT 1);
END $$;
-- +goose StatementEnd

-- A parked event that is not given up, and with its key (NULL: by itself) those behind it in their order: up to p_limit, and none after the payload that reaches p_bytes.
-- +goose StatementBegin
CREATE FUNCTION pawl.parked_page(p_ns smallint, p_subscription int, p_shard smallint, p_key text, p_id bigint, p_limit int, p_bytes bigint) RETURNS SETOF pawl.parked_event
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
  e pawl.parked_event;
BEGIN
  FOR e IN
    (SELECT x.* FROM pawl.parked_event x WHERE x.ns = p_ns AND x.subscription_id = p_subscription AND x.shard = p_shard AND x.id = p_id AND x.dead_at IS NULL)
    UNION ALL
    (SELECT x.* FROM pawl.parked_event x
      WHERE x.ns = p_ns AND x.subscription_id = p_subscription AND x.shard = p_shard AND x.key = p_key AND x.id > p_id AND NOT x.skipped AND x.dead_at IS NULL
      ORDER BY x.id LIMIT p_limit - 1)
  LOOP
    RETURN NEXT e;
    p_bytes := p_bytes - octet_length(e.payload);
    EXIT WHEN p_bytes <= 0;
  END LOOP;
END $$;
-- +goose StatementEnd

-- After an attempt at parked events of one key: those delivered leave, the one that failed waits again or is given up (p_dead), with p_skip so that its key goes on without it.
-- p_key NULL: of none, or one skipped before.
-- Gives how many of the key are left in the way.
-- +goose StatementBegin
CREATE FUNCTION pawl.parked_settle(p_ns smallint, p_subscription int, p_shard smallint, p_key text, p_delivered bigint[], p_failed bigint, p_attempt int, p_retry_ms bigint,
  p_dead boolean, p_skip boolean, p_error text, p_incarnation bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off SET lock_timeout = '10s' AS $$
DECLARE
  v_id bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(pawl.subscription_key(p_subscription, p_shard));
  IF p_incarnation IS DISTINCT FROM (SELECT i.nonce FROM pawl.incarnation i) THEN -- an id may have been given out again
    RAISE EXCEPTION 'pawl: the server has recovered from a crash' USING ERRCODE = 'PW001';
  END IF;
  FOREACH v_id IN ARRAY p_delivered LOOP  -- one by one, as in parked_lead
    DELETE FROM pawl.parked_event e WHERE e.ns = p_ns AND e.subscription_id = p_subscription AND e.shard = p_shard AND e.id = v_id;
  END LOOP;
  UPDATE pawl.parked_event e SET attempt = p_attempt, error = p_error, retry_at = clock_timestamp() + p_retry_ms * interval '1 ms',
      dead_at = CASE WHEN p_dead THEN clock_timestamp() END, skipped = e.skipped OR p_dead AND p_skip
    WHERE e.ns = p_ns AND e.subscription_id = p_subscription AND e.shard = p_shard AND e.id = p_failed;
  IF p_key IS NULL THEN
    RETURN 0;
  END IF;
  PERFORM pawl.parked_lead(p_ns, p_subscription, p_shard, ARRAY[p_key]);
  RETURN (SELECT count(*) FROM pawl.parked_event e WHERE e.ns = p_ns AND e.subscription_id = p_subscription AND e.shard = p_shard AND e.key = p_key AND NOT e.skipped);
END $$;
-- +goose StatementEnd

-- Pauses a subscription, or resumes it (p_why NULL). False: there is none of that name. Raises PW006 when events left before it had them, unless p_accept says that it may go on without.
-- +goose StatementBegin
CREATE FUNCTION pawl.subscription_pause(p_ns smallint, p_name text, p_why text, p_accept boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s pawl.subscription;
BEGIN
  SELECT * INTO s FROM pawl.subscription x WHERE x.ns = p_ns AND x.name = p_name FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  IF p_why IS NOT NULL THEN
    UPDATE pawl.subscription x SET paused_at = coalesce(x.paused_at, now()), paused_why = CASE WHEN x.paused_at IS NULL THEN p_why ELSE coalesce(x.paused_why, p_why) END
      WHERE x.ns = p_ns AND x.id = s.id;
    RETURN true;
  END IF;
  IF s.missed > 0 AND NOT p_accept THEN
    RAISE EXCEPTION 'pawl: % events, number % to %, were dropped before subscription % had them', s.missed, s.missed_from, s.missed_to, p_name
      USING ERRCODE = 'PW006', HINT = 'See what they meant to its receiver, then let it go on without them: "pawl subscription resume --accept-gap".';
  END IF;
  UPDATE pawl.subscription x SET paused_at = NULL, paused_why = NULL, missed = 0, missed_from = NULL, missed_to = NULL WHERE x.ns = p_ns AND x.id = s.id;
  RETURN true;
END $$;
-- +goose StatementEnd

-- Delivers everything from an event on again: p_id and all after it, as far as they are kept, and some before it if it is among the newest. Gives the number of shards; NULL: there is no such subscription.
-- +goose StatementBegin
CREATE FUNCTION pawl.subscription_rewind(p_ns smallint, p_name text, p_id bigint) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
DECLARE
  s        pawl.subscription;
  b        pawl.subscription_batch;
  v_oldest bigint;
  v_id     bigint;
BEGIN
  SELECT * INTO s FROM pawl.subscription x WHERE x.ns = p_ns AND x.name = p_name;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  PERFORM pg_advisory_xact_lock_shared(pawl.retention_key());  -- what it is owed stays until its position is committed
  v_oldest := pawl.outbox_oldest();
  v_id := greatest(p_id, v_oldest);
  FOR i IN 0 .. s.shards - 1 LOOP
    PERFORM pg_advisory_xact_lock(pawl.subscription_key(s.id, i::smallint));
    SELECT * INTO b FROM pawl.subscription_position(p_ns, s.id, i::smallint);
    -- What was running when it was last looked at may still commit below v_id.
    INSERT INTO pawl.subscription_batch (ns, subscription_id, shard, at, epoch, seen_xid, late, floor, mark, events)
      VALUES (p_ns, s.id, i, clock_timestamp(), least((SELECT e.epoch FROM pawl.outbox_event e WHERE e.ns = p_ns AND e.id >= v_id ORDER BY e.id LIMIT 1), b.epoch), '0',
        b.late || coalesce(b.to_late, '{}'), greatest(least(v_id, b.floor + 1), v_oldest) - 1, b.mark, b.events);
  END LOOP;
  RETURN s.shards;
END $$;
-- +goose StatementEnd

-- Has parked events tried now, those given up too: of one key, or all (NULL). p_drop: removes those given up instead. Gives their number; -1: there is no such subscription.
-- +goose StatementBegin
CREATE FUNCTION pawl.subscription_replay(p_ns smallint, p_name text, p_key text, p_drop boolean) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
DECLARE
  s   pawl.subscription;
  v_n bigint;
BEGIN
  SELECT * INTO s FROM pawl.subscription x WHERE x.ns = p_ns AND x.name = p_name;
  IF NOT FOUND THEN
    RETURN -1;
  END IF;
  FOR i IN 0 .. s.shards - 1 LOOP
    PERFORM pg_advisory_xact_lock(pawl.subscription_key(s.id, i::smallint));
  END LOOP;
  IF p_drop THEN
    DELETE FROM pawl.parked_event e WHERE e.ns = p_ns AND e.subscription_id = s.id AND e.dead_at IS NOT NULL AND (p_key IS NULL OR e.key = p_key);
  ELSE
    UPDATE pawl.parked_event e SET dead_at = NULL, retry_at = clock_timestamp(), attempt = CASE WHEN e.dead_at IS NULL THEN e.attempt ELSE 0 END
      WHERE e.ns = p_ns AND e.subscription_id = s.id AND (e.dead_at IS NOT NULL OR e.retry_at IS NOT NULL) AND (p_key IS NULL OR e.key = p_key);
  END IF;
  GET DIAGNOSTICS v_n = ROW_COUNT;
  PERFORM pawl.parked_lead(p_ns, s.id, k.shard, k.keys) FROM (
    SELECT e.shard, array_agg(DISTINCT e.key) AS keys FROM pawl.parked_event e
    WHERE e.ns = p_ns AND e.subscription_id = s.id AND e.key IS NOT NULL AND NOT e.skipped AND (p_key IS NULL OR e.key = p_key) GROUP BY e.shard) k;
  RETURN v_n;
END $$;
-- +goose StatementEnd

-- Removes a subscription with its place and what it has parked; it holds no events any more. False: there is none of that name.
-- +goose StatementBegin
CREATE FUNCTION pawl.subscription_remove(p_ns smallint, p_name text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
DECLARE
  s pawl.subscription;
BEGIN
  SELECT * INTO s FROM pawl.subscription x WHERE x.ns = p_ns AND x.name = p_name;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  FOR i IN 0 .. s.shards - 1 LOOP
    PERFORM pg_advisory_xact_lock(pawl.subscription_key(s.id, i::smallint));
  END LOOP;
  DELETE FROM pawl.parked_event e WHERE e.ns = p_ns AND e.subscription_id = s.id;
  DELETE FROM pawl.subscription_batch b WHERE b.ns = p_ns AND b.subscription_id = s.id;
  DELETE FROM pawl.subscription x WHERE x.ns = p_ns AND x.id = s.id;
  RETURN FOUND;
END $$;
-- +goose StatementEnd

-- The sweep "outbox": removes positions older than p_keep, but each shard's newest, up to p_limit. NULL: another node is at it.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_outbox(p_ns smallint, p_keep interval, p_limit int) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' SET enable_seqscan = off AS $$
DECLARE
  s     record;
  v_old timestamptz := clock_timestamp() - p_keep;
  v_n   bigint;
  v_did bigint := 0;
BEGIN
  IF NOT pg_try_advisory_xact_lock(pawl.sweep_key(p_ns, 'outbox')) THEN
    RETURN NULL;
  END IF;
  FOR s IN SELECT x.id, i::smallint AS shard FROM pawl.subscription x CROSS JOIN LATERAL generate_series(0, x.shards - 1) i WHERE x.ns = p_ns ORDER BY x.id, i LOOP
    -- The oldest first: ids ascend with time in a shard.
    DELETE FROM pawl.subscription_batch b WHERE b.ns = p_ns AND b.subscription_id = s.id AND b.shard = s.shard AND b.at < v_old AND b.id <= (
      SELECT max(o.id) FROM (
        SELECT x.id, x.at FROM pawl.subscription_batch x
        WHERE x.ns = p_ns AND x.subscription_id = s.id AND x.shard = s.shard AND x.id < (SELECT n.id FROM pawl.subscription_position(p_ns, s.id, s.shard) n)
        ORDER BY x.id LIMIT p_limit - v_did) o
      WHERE o.at < v_old);
    GET DIAGNOSTICS v_n = ROW_COUNT;
    v_did := v_did + v_n;
    EXIT WHEN v_did >= p_limit;
  END LOOP;
  RETURN v_did;
END $$;
-- +goose StatementEnd

-- Whether the outbox of a namespace was last used in another cluster, or a position of it counts in this one's future: a copy from a clone with more transaction ids.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_away(p_ns smallint) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN EXISTS (SELECT FROM pawl.outbox o WHERE o.ns = p_ns AND (o.cluster <> pawl.cluster() OR EXISTS (
    SELECT FROM pawl.subscription s CROSS JOIN LATERAL generate_series(0, s.shards - 1) i CROSS JOIN LATERAL pawl.subscription_position(s.ns, s.id, i::smallint) b
    WHERE s.ns = o.ns AND b.epoch = o.epoch AND b.seen_xid > pg_snapshot_xmax(pg_current_snapshot()))));
END $$;
-- +goose StatementEnd

-- Takes the outbox of a namespace home after a move to another cluster: what was published before counts in an epoch of its own, and none of it is lost. Part of rebase.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_rebase(p_ns smallint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE pawl.outbox o SET epoch = o.epoch + 1, cluster = pawl.cluster() WHERE o.ns = p_ns AND pawl.outbox_away(p_ns);
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  UPDATE pawl.partition p SET full_xid = NULL, over_at = NULL WHERE p.parent = 'outbox_event' AND p.full_xid IS NOT NULL AND p.leaving_at IS NULL;
  RETURN true;
END $$;
-- +goose StatementEnd

SELECT pawl.partition_ahead();

-- +goose Down
DROP FUNCTION pawl.outbox_rebase, pawl.outbox_away, pawl.sweep_outbox, pawl.subscription_remove, pawl.subscription_replay, pawl.subscription_rewind, pawl.subscription_pause, pawl.parked_settle, pawl.parked_page, pawl.parked_next, pawl.parked_due, pawl.parked_lead,
  pawl.outbox_settle, pawl.outbox_page, pawl.outbox_open, pawl.subscription_position, pawl.subscription_create, pawl.ordered, pawl.publish, pawl.publish_event, pawl.raise_outbox_moved,
  pawl.publish_many, pawl.raise_event, pawl.outbox_create, pawl.uuid7, pawl.outbox_last, pawl.snapshot_late, pawl.event_key, pawl.subscription_key, pawl.incarnate;
DROP TABLE pawl.parked_event, pawl.subscription_batch, pawl.subscription, pawl.outbox_event, pawl.outbox, pawl.incarnation;
DROP SEQUENCE pawl.outbox_event_id;
DELETE FROM pawl.partition p WHERE p.parent = 'outbox_event';
