-- +goose Up

-- Held while it is decided what leaves, shared by who makes or moves back a position: what that is owed is seen, or has left before.
CREATE FUNCTION pawl.retention_key() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended(1, 7005)';

-- Events from this id on are kept.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_oldest() RETURNS bigint LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT greatest(min(p.range_from)::bigint, 1) FROM pawl.partition p WHERE p.parent = 'outbox_event' AND p.leaving_at IS NULL;
END;
-- +goose StatementEnd

-- Sets how long events are kept and may be held; NULL leaves it as it is. A hold that would be shorter than what is kept becomes that.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_keep(p_ns smallint, p_keep interval, p_hold interval) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_keep interval;
  v_hold interval;
BEGIN
  PERFORM pawl.outbox_create(p_ns);
  SELECT coalesce(p_keep, o.keep), coalesce(p_hold, o.hold) INTO v_keep, v_hold FROM pawl.outbox o WHERE o.ns = p_ns;
  v_hold := greatest(v_hold, v_keep);
  UPDATE pawl.outbox o SET keep = v_keep, hold = v_hold WHERE o.ns = p_ns AND (o.keep, o.hold) <> (v_keep, v_hold);
END $$;
-- +goose StatementEnd

-- Whether a shard has passed a range of ids below p_to that is over (see outbox_leave): whether it is owed nothing of it. p_xid: above all transactions that drew its ids;
-- p_epoch: that of the outbox, in which p_xid counts.
--
-- What is owed after a position (seen_xid, late, floor) is what transactions in late published, and, above floor, those from seen_xid on. So a shard has passed the range
-- if none in late is below p_xid, and either all of the range's transactions are below seen_xid, or those from there on draw higher ids: floor reaches its end. With the
-- second a shard that found nothing more to do, and so moved no further, does not hold the range. While a batch is open, what it holds up to done is settled, and the rest is
-- owed after (to_xid, to_late, to_floor): so the same must hold there, and done reach the range's end. In an earlier epoch the shard may be owed anything.
-- +goose StatementBegin
CREATE FUNCTION pawl.position_passed(b pawl.subscription_batch, p_epoch smallint, p_xid xid8, p_to bigint) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (b.epoch = p_epoch AND (
    (b.seen_xid >= p_xid OR b.floor >= p_to - 1) AND NOT EXISTS (SELECT FROM unnest(b.late) l WHERE l < p_xid)
    OR b.done >= p_to - 1 AND (b.to_xid >= p_xid OR b.to_floor >= p_to - 1) AND NOT EXISTS (SELECT FROM unnest(b.to_late) l WHERE l < p_xid))) IS TRUE;
END $$;
-- +goose StatementEnd

-- The subscriptions, of all namespaces, that have not passed a range. lets: it may leave nevertheless: they have missed events before, or were given their time since p_over.
-- moved: they count in another cluster's transaction ids, or in this one's future, and their place means nothing until a rebase.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_holders(p_xid xid8, p_to bigint, p_over timestamptz) RETURNS TABLE (ns smallint, id int, name text, shards smallint, moved boolean, lets boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
  RETURN QUERY
    SELECT s.ns, s.id, s.name, s.shards, h.moved, NOT h.moved AND (s.missed > 0 OR p_over + o.hold <= clock_timestamp())
    FROM pawl.subscription s
    JOIN pawl.outbox o ON o.ns = s.ns
    CROSS JOIN LATERAL (
      SELECT NOT pawl.is_home(o.cluster) OR coalesce(bool_or(b.epoch = o.epoch AND b.seen_xid > pg_snapshot_xmax(pg_current_snapshot())), false) AS moved,
        bool_and(b.id IS NOT NULL AND pawl.position_passed(b, o.epoch, p_xid, p_to)) AS passed
      FROM generate_series(0, s.shards - 1) i LEFT JOIN LATERAL pawl.subscription_position(s.ns, s.id, i::smallint) b ON true) h
    WHERE h.moved OR NOT h.passed
    ORDER BY s.ns, s.name;
END $$;
-- +goose StatementEnd

-- Notes what a subscription misses when a range leaves that it has not passed: it is paused, unless nothing in the range is for it, and its position gets a new row, so that a
-- page being delivered is not settled as if the rest of it were still there. The caller holds its shards' locks. Gives the number of events.
-- +goose StatementBegin
CREATE FUNCTION pawl.subscription_miss(p_ns smallint, p_subscription int, p_from bigint, p_to bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  v_n    bigint;
  v_low  bigint;
  v_high bigint;
BEGIN
  SELECT count(*), min(e.id), max(e.id) INTO v_n, v_low, v_high
    FROM pawl.subscription s
    CROSS JOIN LATERAL generate_series(0, s.shards - 1) i
    CROSS JOIN LATERAL pawl.subscription_position(p_ns, s.id, i::smallint) b
    JOIN pawl.outbox_event e ON (e.key_hash & 2147483647) % s.shards = i
    WHERE s.ns = p_ns AND s.id = p_subscription AND e.ns = p_ns AND e.id >= p_from AND e.id < p_to AND (s.topics IS NULL OR e.topic = ANY (s.topics))
      AND (e.epoch > b.epoch OR e.epoch = b.epoch AND (e.xid = ANY (b.late) OR e.xid >= b.seen_xid AND e.id > b.floor)
        AND (e.xid < b.to_xid AND NOT e.xid = ANY (b.to_late) AND e.id <= b.done) IS NOT TRUE);
  IF v_n = 0 THEN
    RETURN 0;
  END IF;
  UPDATE pawl.subscription s SET missed = s.missed + v_n, missed_from = coalesce(s.missed_from, v_low), missed_to = v_high, paused_at = coalesce(s.paused_at, now()),
      paused_why = CASE WHEN s.paused_at IS NULL THEN 'events were dropped before it had them' ELSE s.paused_why END
    WHERE s.ns = p_ns AND s.id = p_subscription;
  INSERT INTO pawl.subscription_batch (ns, subscription_id, shard, at, epoch, seen_xid, late, floor, mark, to_epoch, to_xid, to_late, to_floor, to_mark, ceiling, done, events)
    SELECT b.ns, b.subscription_id, b.shard, b.at, b.epoch, b.seen_xid, b.late, b.floor, b.mark, b.to_epoch, b.to_xid, b.to_late, b.to_floor, b.to_mark, b.ceiling, b.done, b.events
    FROM pawl.subscription s
    CROSS JOIN LATERAL generate_series(0, s.shards - 1) i
    CROSS JOIN LATERAL pawl.subscription_position(p_ns, s.id, i::smallint) b
    WHERE s.ns = p_ns AND s.id = p_subscription;
  RETURN v_n;
END $$;
-- +goose StatementEnd

-- Decides whether the oldest range of outbox_event leaves, and marks it: from then on it does not count as kept. Call it again until it gives NULL. Several at once do no harm.
--
-- A range leaves when it is full: all its ids are drawn; when it is over: no transaction that drew one still runs, prepared or not, so that what it holds is known and stays so;
-- when it has been so for as long as any namespace keeps events; and when every shard of every subscription has passed it, or was given its time, in which case the
-- subscription is paused and what it misses is noted (missed: which, and how much).
--
-- Over: a writer takes its transaction's id before it draws one of the range (see subscription_batch.mark). Here the sequence is read first, then this transaction's id is
-- taken: full_xid is above those of all writers. A later snapshot whose xmin is not below full_xid was taken after they had all ended: xmin is the lowest of all that run,
-- those that are prepared and those of other databases among them. So this must come before its transaction has an id: PW005.
--
-- Positions commit asynchronously, so a crash may take one back. It takes back what came later in the log as well, a drop that relied on it among that.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_leave(OUT range_from bigint, OUT range_to bigint, OUT missed text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off SET lock_timeout = '2s' AS $$
DECLARE
  r      pawl.partition;
  h      record;
  v_last bigint;
  v_xid  xid8;
  v_n    bigint;
BEGIN
  PERFORM pawl.require_read_committed();
  IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
    RAISE EXCEPTION 'pawl: what leaves is decided in a transaction that has not written' USING ERRCODE = 'PW005';
  END IF;
  v_last := pawl.outbox_last();
  IF EXISTS (SELECT FROM pawl.partition p WHERE p.parent = 'outbox_event' AND p.full_xid IS NULL AND p.range_to - 1 <= v_last) THEN
    v_xid := pg_current_xact_id();
    UPDATE pawl.partition p SET full_xid = v_xid WHERE p.parent = 'outbox_event' AND p.full_xid IS NULL AND p.range_to - 1 <= v_last;
  END IF;
  v_xid := pg_snapshot_xmin(pg_current_snapshot());
  UPDATE pawl.partition p SET over_at = clock_timestamp() WHERE p.parent = 'outbox_event' AND p.over_at IS NULL AND p.full_xid <= v_xid;

  IF NOT pg_try_advisory_xact_lock(pawl.retention_key()) THEN
    RETURN;
  END IF;
  -- The newest range stays, full or not: the next one follows it.
  SELECT * INTO r FROM pawl.partition p WHERE p.parent = 'outbox_event' AND p.leaving_at IS NULL ORDER BY p.range_from LIMIT 1;
  IF (r.over_at + coalesce((SELECT max(o.keep) FROM pawl.outbox o), '7 days') <= clock_timestamp()) IS NOT TRUE
      OR NOT EXISTS (SELECT FROM pawl.partition p WHERE p.parent = 'outbox_event' AND p.range_from >= r.range_to)
      OR EXISTS (SELECT FROM pawl.outbox_holders(r.full_xid, r.range_to::bigint, r.over_at) x WHERE NOT x.lets) THEN
    RETURN;
  END IF;
  -- A consumer at work is not held up; the next run finds it.
  IF EXISTS (SELECT FROM pawl.outbox_holders(r.full_xid, r.range_to::bigint, r.over_at) x CROSS JOIN generate_series(0, x.shards - 1) i
      WHERE NOT pg_try_advisory_xact_lock(pawl.subscription_key(x.id, i::smallint))) THEN
    RETURN;
  END IF;
  missed := '{}';
  FOR h IN SELECT x.*, n.name AS namespace FROM pawl.outbox_holders(r.full_xid, r.range_to::bigint, r.over_at) x JOIN pawl.namespace n ON n.ns = x.ns LOOP
    v_n := pawl.subscription_miss(h.ns, h.id, r.range_from::bigint, r.range_to::bigint);
    IF v_n > 0 THEN
      missed := missed || format('%s of subscription %s/%s', v_n, h.namespace, h.name);
    END IF;
  END LOOP;
  UPDATE pawl.partition p SET leaving_at = clock_timestamp() WHERE p.parent = r.parent AND p.range_from = r.range_from;
  range_from := r.range_from;
  range_to := r.range_to;
END $$;
-- +goose StatementEnd

-- The ranges of all tables that are to leave, one half detached first, for there may be one only. statement: what is to be run next for it, outside of any transaction; '': it
-- is detached, and partition_drop ends it. Detached CONCURRENTLY, for else the parent is locked against everyone who publishes while any reader of it is open.
-- +goose StatementBegin
CREATE FUNCTION pawl.partition_leaving() RETURNS TABLE (parent text, range_from bigint, range_to bigint, statement text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY
    SELECT p.parent, p.range_from::bigint, p.range_to::bigint, CASE WHEN i.inhrelid IS NULL THEN '' ELSE
        format('ALTER TABLE pawl.%I DETACH PARTITION pawl.%I %s', p.parent, pawl.partition_name(p.parent, p.range_from), CASE WHEN i.inhdetachpending THEN 'FINALIZE' ELSE 'CONCURRENTLY' END) END
    FROM pawl.partition p
    LEFT JOIN pg_inherits i ON i.inhrelid = to_regclass(format('pawl.%I', pawl.partition_name(p.parent, p.range_from)))
    WHERE p.leaving_at IS NOT NULL
    ORDER BY i.inhdetachpending DESC NULLS LAST, p.parent, p.range_from
    LIMIT 100;
END $$;
-- +goose StatementEnd

-- Drops a range that has left, and its row. False: it is attached, or not to leave. Waits a second for who still reads it, then raises 55P03.
-- +goose StatementBegin
CREATE FUNCTION pawl.partition_drop(p_parent text, p_from bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' SET client_min_messages = warning AS $$
DECLARE
  v_name text := pawl.partition_name(p_parent, p_from);
BEGIN
  DELETE FROM pawl.partition p WHERE p.parent = p_parent AND p.range_from = p_from AND p.leaving_at IS NOT NULL
    AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = to_regclass(format('pawl.%I', v_name)));
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  EXECUTE format('DROP TABLE IF EXISTS pawl.%I', v_name);
  RETURN true;
END $$;
-- +goose StatementEnd

-- What is kept of the outbox, and why its oldest range is. ranges: those that were drawn from; oldest_at: of the namespace. why: 'filling' (ids are left), 'transaction' (who, since when, may
-- still commit to it), 'age', 'subscription' or 'moved' (who has not passed it; since when it could have left), '' (the next sweep takes it). leaving_at: since when one is being detached.
-- +goose StatementBegin
CREATE FUNCTION pawl.outbox_kept(p_ns smallint, OUT oldest_id bigint, OUT oldest_at timestamptz, OUT ranges bigint, OUT keep interval, OUT hold interval,
  OUT why text, OUT who text, OUT since timestamptz, OUT leaving_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  r      pawl.partition;
  v_last bigint := pawl.outbox_last();
  v_xmin xid8 := pg_snapshot_xmin(pg_current_snapshot());
BEGIN
  oldest_id := pawl.outbox_oldest();
  SELECT e.created_at INTO oldest_at FROM pawl.outbox_event e WHERE e.ns = p_ns AND e.id >= oldest_id ORDER BY e.id LIMIT 1;
  SELECT count(*) FILTER (WHERE p.range_from <= v_last), min(p.leaving_at) INTO ranges, leaving_at FROM pawl.partition p WHERE p.parent = 'outbox_event';
  SELECT coalesce(max(o.keep), '7 days'), coalesce(max(o.hold), '30 days') INTO keep, hold FROM pawl.outbox o;
  SELECT * INTO r FROM pawl.partition p WHERE p.parent = 'outbox_event' AND p.leaving_at IS NULL ORDER BY p.range_from LIMIT 1;
  why := '';
  IF r.range_to - 1 > v_last THEN
    why := 'filling';
  ELSIF r.over_at IS NULL AND r.full_xid > v_xmin THEN
    why := 'transaction';
    SELECT format('prepared transaction %s', x.gid), x.prepared INTO who, since FROM pg_prepared_xacts x WHERE x.transaction = v_xmin::xid;
    IF NOT FOUND THEN
      SELECT concat_ws(', ', format('pid %s', a.pid), 'database ' || a.datname, 'role ' || a.usename, 'application ' || nullif(a.application_name, '')), a.xact_start INTO who, since
        FROM pg_stat_activity a WHERE a.backend_xid = v_xmin::xid LIMIT 1;
    END IF;
  ELSIF r.over_at + keep > clock_timestamp() THEN
    why := 'age';
    since := r.over_at;
  ELSIF r.over_at IS NOT NULL THEN
    SELECT CASE WHEN bool_or(x.moved) THEN 'moved' ELSE 'subscription' END, string_agg(CASE WHEN x.ns = p_ns THEN x.name ELSE n.name || '/' || x.name END, ', ' ORDER BY x.ns, x.name)
      INTO why, who
      FROM (SELECT * FROM pawl.outbox_holders(r.full_xid, r.range_to::bigint, r.over_at) y WHERE NOT y.lets LIMIT 10) x JOIN pawl.namespace n ON n.ns = x.ns HAVING count(*) > 0;
    why := coalesce(why, '');
    since := r.over_at + keep;
  END IF;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.outbox_kept, pawl.partition_drop, pawl.partition_leaving, pawl.outbox_leave, pawl.subscription_miss, pawl.outbox_holders, pawl.position_passed, pawl.outbox_keep,
  pawl.outbox_oldest, pawl.retention_key;
