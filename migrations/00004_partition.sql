-- +goose Up

-- The ranges of the hot tables, made ahead of need. position_at: where the table's key stood when the range was made, which
-- gives the rate that the next range's size follows. full_xid: all its keys were drawn, by transactions below this id. over_at: since when these are all
-- over, so that nothing comes to it any more. leaving_at: since when nobody counts on what is in it; it is detached, then dropped, and its row here goes with it.
CREATE TABLE pawl.partition (
  parent      text        NOT NULL,
  range_from  numeric     NOT NULL,
  range_to    numeric     NOT NULL,
  position_at numeric     NOT NULL,
  created_at  timestamptz NOT NULL,
  full_xid    xid8,
  over_at     timestamptz,
  leaving_at  timestamptz,
  PRIMARY KEY (parent, range_from),
  CONSTRAINT partition_range CHECK (range_from < range_to),
  CONSTRAINT partition_leaving CHECK ((over_at IS NULL OR full_xid IS NOT NULL) AND (leaving_at IS NULL OR over_at IS NOT NULL))
);

-- Where the partition key of a table stands: ids drawn so far, or the cluster's next xid.
-- +goose StatementBegin
CREATE FUNCTION pawl.partition_position(p_parent text) RETURNS numeric
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_at bigint;
BEGIN
  CASE p_parent
    WHEN 'ready' THEN RETURN pg_snapshot_xmax(pg_current_snapshot())::text::numeric;
    WHEN 'job', 'result' THEN SELECT last_value << 10 INTO v_at FROM pawl.job_id;
    WHEN 'outbox_event' THEN SELECT last_value INTO v_at FROM pawl.outbox_event_id;
    WHEN 'claim', 'receipt' THEN SELECT last_value INTO v_at FROM pawl.claim_id_seq;
  END CASE;
  RETURN v_at;
END $$;
-- +goose StatementEnd

-- The table of a range.
CREATE FUNCTION pawl.partition_name(p_parent text, p_from numeric) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT $1 || ''_'' || $2::text';

-- How fast a table moved over the time given, or a longer one, up to where it stands: keys a second.
-- +goose StatementBegin
CREATE FUNCTION pawl.partition_rate(p_parent text, p_at numeric, p_span interval) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN coalesce((SELECT greatest(p_at - p.position_at, 0) / extract(epoch FROM greatest(clock_timestamp() - p.created_at, p_span)) FROM pawl.partition p WHERE p.parent = p_parent
    ORDER BY p.created_at <= clock_timestamp() - p_span DESC, abs(extract(epoch FROM clock_timestamp() - p_span - p.created_at)) LIMIT 1), 0);
END $$;
-- +goose StatementEnd

-- Makes ranges until each table has a whole one, two hours of its recent rate and 10,000,000 draws of its sequence ahead of where it stands. A range holds about six hours
-- of work: 10,000,000 draws at least and 100,000,000 at most (xids: ten times that, since every transaction of the cluster uses them). One of events holds about a day's, and
-- 2,000,000 draws at least, by which more are kept than must be, since it leaves as a whole; its rate is that of an hour and a day, so that a burst makes none that lasts for months.
-- Made loose and attached: CREATE … PARTITION OF would lock the parent against every enqueue while any reader is open.
-- Safe on any number of nodes (the second skips); gives the number of ranges made.
-- +goose StatementBegin
CREATE FUNCTION pawl.partition_ahead() RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
  c_ahead    CONSTANT numeric := 10000000;
  c_size_max CONSTANT numeric := 100000000;
  c_made_max CONSTANT int := 32;
  v_parent   text;
  v_last     pawl.partition;
  v_at       numeric;
  v_rate     numeric;  -- a second
  v_unit     numeric;
  v_size     numeric;
  v_name     text;
  v_key      text;
  v_low      text;
  v_made     int := 0;
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashint8extended(0, 7005)) THEN
    RETURN 0;
  END IF;
  FOREACH v_parent IN ARRAY ARRAY['job', 'result', 'ready', 'claim', 'receipt', 'outbox_event'] LOOP
    CONTINUE WHEN to_regclass('pawl.' || v_parent) IS NULL;  -- a later migration makes it
    v_at := pawl.partition_position(v_parent);
    v_unit := CASE v_parent WHEN 'ready' THEN 10 WHEN 'job' THEN 1024 WHEN 'result' THEN 1024 ELSE 1 END;
    SELECT * INTO v_last FROM pawl.partition p WHERE p.parent = v_parent ORDER BY p.range_from DESC LIMIT 1;
    v_rate := pawl.partition_rate(v_parent, v_at, CASE v_parent WHEN 'outbox_event' THEN interval '1 hour' ELSE '1 min' END);
    v_size := CASE v_parent WHEN 'outbox_event' THEN greatest(pawl.partition_rate(v_parent, v_at, '1 day') * 86400, 2000000) ELSE greatest(v_rate * 21600, 10000000 * v_unit) END;
    v_size := round(least(v_size, c_size_max * v_unit));
    LOOP
      EXIT WHEN v_made >= c_made_max
        OR v_last.range_from > v_at AND v_last.range_to > v_at + greatest(v_rate * 7200, c_ahead * v_unit);
      v_name := pawl.partition_name(v_parent, coalesce(v_last.range_to, 0));
      v_key := CASE v_parent WHEN 'ready' THEN 'xid' WHEN 'receipt' THEN 'claim_id' WHEN 'result' THEN 'job_id' ELSE 'id' END;
      v_low := CASE WHEN v_last.range_to IS NULL THEN 'MINVALUE' ELSE quote_literal(v_last.range_to::text) END;
      v_last := ROW(v_parent, coalesce(v_last.range_to, 0), greatest(coalesce(v_last.range_to, 0), v_at) + v_size, v_at, clock_timestamp(), NULL, NULL, NULL);
      EXECUTE format('CREATE TABLE pawl.%I (LIKE pawl.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', v_name, v_parent);
      EXECUTE format('ALTER TABLE pawl.%I ATTACH PARTITION pawl.%I FOR VALUES FROM (%s) TO (%L)', v_parent, v_name, v_low, v_last.range_to::text);
      INSERT INTO pawl.partition (parent, range_from, range_to, position_at, created_at)
        VALUES (v_last.parent, v_last.range_from, v_last.range_to, v_last.position_at, v_last.created_at);
      v_made := v_made + 1;
    END LOOP;
  END LOOP;
  RETURN v_made;
END $$;
-- +goose StatementEnd
SELECT pawl.partition_ahead();

-- +goose Down
DROP FUNCTION pawl.partition_ahead, pawl.partition_rate, pawl.partition_name, pawl.partition_position;
DROP TABLE pawl.partition;
