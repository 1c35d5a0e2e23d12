-- +goose Up

-- What a step that was done came to; null in JSON where it has no output of its own. NULL: it was not done, or not yet.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_step_output(p_ns smallint, p_saga bigint, p_step text) RETURNS json
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_step smallint;
  v_ok   bigint;
BEGIN
  SELECT array_position(d.steps, p_step) INTO v_step
    FROM pawl.saga s JOIN pawl.saga_definition d ON d.ns = s.ns AND d.id = s.definition_id
    WHERE s.ns = p_ns AND s.id = p_saga;
  SELECT e.ok INTO v_ok FROM pawl.saga_event e WHERE e.ns = p_ns AND e.saga_id = p_saga ORDER BY e.seq DESC LIMIT 1;
  IF v_ok & (1::bigint << v_step - 1) <> 0 THEN
    RETURN coalesce(pawl.saga_output(p_ns, p_saga, v_step, ARRAY['succeeded', 'skipped']::pawl.saga_what[], '{}'), 'null');
  END IF;
  RETURN NULL;
END $$;
-- +goose StatementEnd

-- What the units of a step came to, a row each, by number.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_unit_outputs(p_ns smallint, p_saga bigint, p_step text) RETURNS TABLE (n int, output json)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_step smallint;
BEGIN
  SELECT array_position(d.steps, p_step) INTO v_step
    FROM pawl.saga s JOIN pawl.saga_definition d ON d.ns = s.ns AND d.id = s.definition_id
    WHERE s.ns = p_ns AND s.id = p_saga;
  RETURN QUERY
    SELECT o.key::int, o.value FROM pawl.saga_event e CROSS JOIN LATERAL json_each(e.detail->'outputs') o
    WHERE e.ns = p_ns AND e.saga_id = p_saga AND e.step = v_step AND e.what = 'units'
    ORDER BY 1, e.seq;  -- a step that was split anew has two of some: the later counts
END $$;
-- +goose StatementEnd

-- How sagas stand, by their ids; those that are not there are left out. Of those that have ended also what their steps came to, a JSON object, and what turned them, if anything did.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_ends(p_ns smallint, p_keys text[]) RETURNS TABLE (key text, state pawl.saga_state, step text, what pawl.saga_what, detail json, outputs json)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  RETURN QUERY
    SELECT s.key, n.state, coalesce(d.steps[t.step], ''), t.what, t.detail, o.outputs
    FROM (SELECT DISTINCT k.key FROM unnest(p_keys) k(key)) k
    CROSS JOIN LATERAL (SELECT x.* FROM pawl.saga x WHERE -x.ns = -p_ns AND x.key = k.key OFFSET 0) s
    CROSS JOIN LATERAL (SELECT x.* FROM pawl.saga_event x WHERE x.ns = p_ns AND x.saga_id = s.id ORDER BY x.seq DESC LIMIT 1) n
    CROSS JOIN LATERAL (SELECT x.steps FROM pawl.saga_definition x WHERE x.ns = p_ns AND x.id = s.definition_id OFFSET 0) d
    LEFT JOIN LATERAL (
      SELECT x.step, x.what, CASE x.what WHEN 'units' THEN coalesce((  -- the last units may have succeeded
            SELECT y.detail FROM pawl.saga_event y
            WHERE y.ns = p_ns AND y.saga_id = s.id AND y.step = x.step AND y.what = 'units' AND y.detail->>'error' IS NOT NULL ORDER BY y.seq LIMIT 1), x.detail) ELSE x.detail END AS detail
      FROM pawl.saga_event x
      WHERE x.ns = p_ns AND x.saga_id = s.id AND x.backward AND n.state = 'compensated' ORDER BY x.seq LIMIT 1) t ON true
    LEFT JOIN LATERAL (
      SELECT json_object_agg(d.steps[x.step], CASE x.what WHEN 'skipped' THEN x.detail->'output' ELSE x.detail END) AS outputs FROM pawl.saga_event x
      WHERE x.ns = p_ns AND x.saga_id = s.id AND x.what IN ('succeeded', 'skipped') AND pawl.saga_over(n.state)
        AND (n.ok & ~x.undone) >> x.step - 1 & 1 = 1) o ON true;
END $$;
-- +goose StatementEnd

-- Whether a saga still goes forward.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_forward(p_ns smallint, p_saga bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  RETURN coalesce((SELECT NOT x.backward AND x.state IN ('running', 'stuck') FROM pawl.saga_event x WHERE x.ns = p_ns AND x.saga_id = p_saga ORDER BY x.seq DESC LIMIT 1), false);
END $$;
-- +goose StatementEnd

-- What happened to a saga, the oldest first: its newest p_newest events, and of the older ones the last of each kind and step, which are few.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_told(p_ns smallint, p_saga bigint, p_newest int) RETURNS SETOF pawl.saga_event
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_left int := (SELECT x.seq FROM pawl.saga_now(p_ns, p_saga) x) - p_newest;
BEGIN
  IF v_left > 0 THEN
    RETURN QUERY
      SELECT e.* FROM (SELECT max(x.seq) AS seq FROM pawl.saga_event x WHERE x.ns = p_ns AND x.saga_id = p_saga AND x.seq <= v_left GROUP BY x.step, x.what) l
      CROSS JOIN LATERAL (SELECT x.* FROM pawl.saga_event x WHERE x.ns = p_ns AND x.saga_id = p_saga AND x.seq = l.seq OFFSET 0) e
      ORDER BY e.seq;
  END IF;
  RETURN QUERY SELECT x.* FROM pawl.saga_event x WHERE x.ns = p_ns AND x.saga_id = p_saga AND x.seq > v_left ORDER BY x.seq;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.saga_told, pawl.saga_forward, pawl.saga_ends, pawl.saga_unit_outputs, pawl.saga_step_output;
